"""Threads of the CPU backend: independent tasks side by side, each on one thread of torch's.

Torch splits one operation over its threads and waits for the slowest at the end of each. A problem here is hundreds
of short operations, so it is cheaper to give every thread operations of its own. Torch's operations release the
interpreter's lock, so Python's threads will do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from threading import Lock, Thread
from typing import Any, TypeVar

import torch

Task = TypeVar("Task")
_NONE = object()


def each(function: Callable[[Task], None], tasks: Iterable[Task], apart: bool) -> None:
    """Call `function` on every task: in turn, or where `apart` side by side on as many threads as torch has here.

    A task must write nothing that another one reads or writes. On other threads tasks run without autograd, in the
    caller's inference mode, and do not see what else belongs to the caller's thread. The first exception is raised
    when all threads have ended; tasks not begun by then are dropped.
    """
    count = torch.get_num_threads() if apart else 1
    if count == 1:
        for task in tasks:
            function(task)
        return
    left = iter(list(tasks))  # a list's iterator serves several threads
    inference = torch.is_inference_mode_enabled()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with torch.inference_mode(inference), torch.no_grad():  # leaving inference mode turns gradients on
                while not errors:
                    task = next(left, _NONE)
                    if task is _NONE:
                        return
                    function(task)  # type: ignore[arg-type]
        except BaseException as error:
            errors.append(error)

    try:
        while not _team(count).run(work):
            pass
    except BaseException as error:  # the caller is interrupted: the threads end with their tasks
        errors.append(error)
        raise
    if errors:
        raise errors[0]


class _Team:
    """Threads that wait to do something at the same time.

    Attributes:
        left: whether a caller was interrupted while they were at work, after which they cannot be asked again.
    """

    def __init__(self, count: int) -> None:
        self.left = False
        self._work: Callable[[], None] = _nothing
        self._begin = [Lock() for _ in range(count)]
        self._end = [Lock() for _ in range(count)]
        self._turn = Lock()
        for lock in (*self._begin, *self._end):
            lock.acquire()
        for place in zip(self._begin, self._end, _processors(count)):
            Thread(target=self._serve, args=place, name="vicinal", daemon=True).start()
        for end in self._end:
            end.acquire()
        torch.set_num_threads(count)  # the default again, which the threads have set to theirs

    def run(self, work: Callable[[], None]) -> bool:
        """Call `work`, which raises nothing, on every thread; True when all have, False if they cannot be asked."""
        with self._turn:
            if self.left:
                return False
            try:
                self._work = work
                for begin in self._begin:
                    begin.release()
                for end in self._end:
                    end.acquire()
                self._work = _nothing  # and hold on to none of its tensors
            except BaseException:
                self.left = True
                raise
        return True

    def _serve(self, begin: Any, end: Any, processor: int | None) -> None:
        if processor is not None:
            with suppress(OSError):  # not allowed here
                os.sched_setaffinity(0, {processor})  # of this thread
        torch.get_num_threads()  # sets this thread up, once
        torch.set_num_threads(1)  # of this thread, and the default for threads that torch has not met yet
        while True:
            end.release()
            begin.acquire()
            self._work()


_teams: dict[int, _Team] = {}
_making = Lock()


def _team(count: int) -> _Team:
    """The process's team of `count` threads."""
    with _making:
        team = _teams.get(count)
        if team is None or team.left:
            team = _teams[count] = _Team(count)
        return team


def _nothing() -> None:
    pass


def _processors(count: int) -> Sequence[int | None]:
    """One for each thread where there are as many as threads, else any.

    Some kernels wake a thread where its waker runs though another processor is idle, and take milliseconds to move it.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [None] * count
    mine = sorted(os.sched_getaffinity(0))
    return mine if len(mine) == count else [None] * count


def _forget() -> None:
    """A forked process has none of its parent's threads."""
    global _making
    _teams.clear()
    _making = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
