"""Small windows forward: where each warp walks the lines of keys that its queries see.

See `vicinal.backends.triton.kernels.lines`. It takes the place of the kernel of tiles of classes where it was faster.
"""

from __future__ import annotations

from functools import cache, lru_cache
from math import prod
from typing import Any

import triton

from vicinal.backends.gpu.hardware import gpu_of
from vicinal.geometry.window import SHIFT, mode
from vicinal.problem import Problem

TAKEN = True  # the switch: False, and tiles of classes run everything
WINDOW = 7  # along both axes: what was timed
TILE, COLUMNS = 8, 16  # as in the kernel
ENOUGH_PROGRAMS = 2**12
# By head dim: registers of a thread, and of the time of tiles of classes. H200: HDiT 0.102 ms for 0.131, NAT's first
# stage 0.105 for 0.119, its second 0.073 for 0.075.
REGISTERS = {32: 96, 64: 168}
TIME = {32: 0.9, 64: 0.78}


@lru_cache(maxsize=1024)
def has_lines(problem: Problem) -> bool:
    """Whether a problem's forward pass is taken, as far as strides and alignment allow."""
    more = problem.has_rpb or problem.has_key_mask or problem.has_window_sizes or problem.additional > 0
    if not TAKEN or more or problem.per_head or problem.is_part or problem.goes_around or problem.rank != 2:
        return False
    dims = problem.head_dim == problem.value_dim and problem.head_dim in REGISTERS and problem.dtype.itemsize == 2
    if not dims or not 0.0 < problem.scale < float("inf") or gpu_of(problem.device).architecture.name != "sm_90":
        return False
    if any(a.window != WINDOW or a.stride > 1 or a.dilation > 1 or mode(a) != SHIFT for a in problem.neighborhood.axes):
        return False
    enough = problem.lengths[1] >= COLUMNS and programs_of(problem) >= ENOUGH_PROGRAMS
    return enough and isinstance(kernel_of_lines(), triton.JITFunction)


def programs_of(problem: Problem) -> int:
    """Of all heads."""
    return problem.batch * problem.heads * prod([-(-n // TILE) for n in problem.lengths])


@cache
def kernel_of_lines() -> Any:
    """The kernel; None where it is not run: interpreted, or with another Triton than the one that it was timed with."""
    if triton.knobs.runtime.interpret or not triton.__version__.startswith("3.6."):  # Gluon's names move
        return None
    from vicinal.backends.triton.kernels.lines import forward_of_lines_kernel

    return forward_of_lines_kernel
