"""Running a compiled kernel on torch's own threads.

Torch's operations are spread over threads by OpenMP. A kernel that starts in the same way, through the OpenMP library
that torch has loaded, gets the very threads that torch's operations use: they are awake when it follows one, and none
of them compete. Where torch has no such library, threads of our own do it.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch

from vicinal.backends.numba.team import each


def run(kernel: int, call: int, threads: int) -> None:
    """Call the C function at `kernel` with `call` on so many threads (OpenMP may give fewer) and wait for all."""
    if threads == 1:
        _function(kernel)(call)
        return
    parallel = openmp()
    if parallel is not None:
        parallel(kernel, call, threads, 0)
    else:
        function = _function(kernel)
        each(lambda _: function(call), range(threads), True)


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
