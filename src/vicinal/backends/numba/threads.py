"""Running a compiled kernel on torch's own threads.

Torch's operations are spread over threads by OpenMP. A kernel that starts in the same way, through the OpenMP library
that torch has loaded, gets the very threads that torch's operations use: they are awake when it follows one, and none
of them compete. Where torch has no such library, threads of Python do it: a kernel runs without the interpreter.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any

import torch


def run(kernel: int, call: int, threads: int) -> None:
    """Call the C function at `kernel` with `call` on so many threads (OpenMP may give fewer) and wait for all."""
    if threads == 1:
        _function(kernel)(call)
        return
    parallel = openmp()
    if parallel is not None:
        parallel(kernel, call, threads, 0)
    else:
        _run_on_threads(_function(kernel), call, threads)


def _run_on_threads(function: Any, call: int, threads: int) -> None:
    others = [Thread(target=function, args=(call,), daemon=True) for _ in range(threads - 1)]
    for thread in others:
        thread.start()
    function(call)
    interrupted: BaseException | None = None
    for thread in others:
        while thread.is_alive():  # they write to the caller's memory: an interrupt waits for them
            try:
                thread.join()
            except BaseException as error:
                interrupted = error
    if interrupted is not None:
        raise interrupted


@cache
def openmp() -> Any:
    """`GOMP_parallel` of the OpenMP library that torch uses: it calls a function on threads; None if there is none."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        function = ctypes.CDLL(str(library)).GOMP_parallel  # of what it was linked with
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    function.restype = None
    return function


@cache
def _function(kernel: int) -> Any:
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(kernel)
