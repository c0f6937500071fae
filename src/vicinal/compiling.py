"""Compilations of kernels: one after the other for each kernel, said so, and ahead of their use in other threads."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from threading import Lock, RLock, Thread, main_thread

log = logging.getLogger("vicinal.compiling")

TOLD_AFTER = 2.0  # seconds, where a terminal watches
WORKERS = 4  # threads that compile ahead, at most

Job = Callable[[], object]


@contextmanager
def compiling(kernel: Hashable, name: str) -> Iterator[None]:
    """Within it, this thread alone compiles `kernel`: who comes later finds what it has made. Says so, by `name`."""
    with one_at_a_time(kernel):
        log.info("compiling %s, or reading it from disk", name)
        start = time.monotonic()
        with _teller.watching(name) if sys.stderr is not None and sys.stderr.isatty() else nullcontext():
            yield
        log.info("%s is ready after %.2f s", name, time.monotonic() - start)


def one_at_a_time(what: Hashable) -> RLock:
    """The lock of that name."""
    return _locks.setdefault(what, RLock())


def ahead(make: Callable[[], Iterable[Job]]) -> None:
    """Run the jobs that `make` returns in other threads, and `make` itself.

    What they raise is logged only: whoever needs what a job makes does it again, and meets the same error. When the
    main thread ends, jobs that have not begun are dropped.
    """

    def start() -> None:
        for job in make():
            _workers.submit(job)

    _workers.submit(start)


def _tell(name: str) -> None:
    print(f"vicinal: compiling {name}, once; it is kept on disk", file=sys.stderr, flush=True)


class _Teller:
    """Says once of each kernel that takes longer than `TOLD_AFTER` that it is compiled; one thread for all, at most."""

    def __init__(self) -> None:
        self._due: dict[object, tuple[float, str]] = {}  # in the order in which they are
        self._lock = Lock()
        self._running = False

    @contextmanager
    def watching(self, name: str) -> Iterator[None]:
        """Within it, the kernel of that name is compiled."""
        token = object()
        with self._lock:
            self._due[token] = time.monotonic() + TOLD_AFTER, name
            starts, self._running = not self._running, True
        if starts:
            Thread(target=self._tell_all, name="vicinal-telling", daemon=True).start()
        try:
            yield
        finally:
            self._pop(token)

    def _tell_all(self) -> None:
        while True:
            with self._lock:
                if not self._due:
                    self._running = False
                    return
                token, (due, name) = next(iter(self._due.items()))
            time.sleep(max(0.0, due - time.monotonic()))
            if self._pop(token):
                _tell(name)

    def _pop(self, token: object) -> bool:
        """Whether it was still waited for."""
        with self._lock:
            return self._due.pop(token, None) is not None


class _Workers:
    """Threads that end when there is nothing to do, so that none waits at the process's end."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._lock = Lock()
        self._running = 0

    def submit(self, job: Job) -> None:
        with self._lock:
            self._jobs.append(job)
            if self._running == WORKERS:
                return
            self._running += 1
        try:
            Thread(target=self._work, name="vicinal-compiling").start()
        except RuntimeError as error:  # the process ends, or may have no more threads
            with self._lock:
                self._running -= 1
            log.debug("nothing is compiled ahead: %s", error)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs or not main_thread().is_alive():
                    self._running -= 1
                    return
                job = self._jobs.popleft()
            try:
                job()
            except Exception as error:
                log.debug("compiling ahead failed: %r", error)


_locks: dict[Hashable, RLock] = {}
_workers = _Workers()
_teller = _Teller()


def _forked() -> None:
    """A child has none of its parent's threads: what they were to do and to release is gone."""
    global _workers, _teller
    _locks.clear()
    _workers, _teller = _Workers(), _Teller()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
