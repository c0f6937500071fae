"""Threads of the CPU backend: independent tasks side by side, each on one thread of torch's.

Torch splits one operation over its threads and waits for the slowest at the end of each. A problem here is hundreds
of short operations, so it is cheaper to give every thread operations of its own. Torch's operations release the
interpreter's lock, so Python's threads will do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Barrier, Lock
from typing import TypeVar

import torch

Task = TypeVar("Task")


def each(function: Callable[[Task], None], tasks: Iterable[Task], apart: bool) -> None:
    """Call `function` on every task: in turn, or where `apart` side by side on as many threads as torch has here.

    A task must write nothing that another one reads or writes. Tasks run without autograd, in the caller's inference
    mode, and do not see what else belongs to the caller's thread. The first exception is raised when all threads
    have ended; tasks not begun by then are dropped.
    """
    count = torch.get_num_threads() if apart else 1
    if count == 1:
        for task in tasks:
            function(task)
        return
    inference = torch.is_inference_mode_enabled()
    left, lock = iter(tasks), Lock()
    failed = False

    def work() -> None:
        nonlocal failed
        with torch.inference_mode(inference), torch.no_grad():
            while not failed:
                with lock:
                    task = next(left, None)
                if task is None:
                    return
                try:
                    function(task)
                except BaseException:
                    failed = True
                    raise

    running = [_pool(count).submit(work) for _ in range(count)]
    wait(running)
    for future in running:
        future.result()


_pools: dict[int, ThreadPoolExecutor] = {}
_making = Lock()


def _pool(count: int) -> ThreadPoolExecutor:
    """The process's pool of `count` threads, each of which has one thread of torch's."""
    pool = _pools.get(count)
    if pool is None:
        with _making:
            if count not in _pools:
                _pools[count] = _new_pool(count)
            pool = _pools[count]
    return pool


def _new_pool(count: int) -> ThreadPoolExecutor:
    ready = Barrier(count + 1)
    processors = iter(_processors(count))

    def start() -> None:
        processor = next(processors, None)
        if processor is not None:
            os.sched_setaffinity(0, {processor})  # of this thread
        torch.get_num_threads()  # sets this thread up, once
        torch.set_num_threads(1)  # this thread's, and the default of threads that torch has not met yet
        ready.wait()

    pool = ThreadPoolExecutor(count, "vicinal", start)
    for _ in range(count):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(count)  # the default again
    return pool


def _processors(count: int) -> list[int]:
    """One for each thread where there are as many as threads, else none.

    Some kernels wake a thread where its waker runs, though another processor is idle, and take milliseconds to move it.
    """
    if not hasattr(os, "sched_getaffinity"):
        return []
    mine = sorted(os.sched_getaffinity(0))
    return mine if len(mine) == count else []


def _forget() -> None:
    """A forked process has none of its parent's threads."""
    global _making
    _pools.clear()
    _making = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
