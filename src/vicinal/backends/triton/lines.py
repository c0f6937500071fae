"""Small windows forward: where each warp walks the lines of keys that its queries see.

See `vicinal.backends.triton.kernels.lines`. It takes the place of the kernel of tiles of classes where it was faster.
"""

from __future__ import annotations

from functools import cache, lru_cache
from math import prod
from typing import Any

import triton

from vicinal.backends.gpu.hardware import gpu_of
from vicinal.backends.protocol import Described
from vicinal.backends.triton.config import Tiling
from vicinal.geometry.tiles import key_interval
from vicinal.geometry.window import SHIFT, mode
from vicinal.geometry.work import useful_scores
from vicinal.problem import Problem

TAKEN = True  # the switch: False, and tiles of classes run everything
WINDOW = 7  # along both axes: what was timed
TILE, COLUMNS, WARPS = 8, 16, 4  # as in the kernel
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


def described(problem: Problem, otherwise: Tiling) -> Described:
    """How such a forward pass runs; `otherwise`: the tiling that runs where strides or addresses do not allow it."""
    own = f"{TILE}x{TILE} queries, each warp its own lines of {COLUMNS} keys"
    launched = f"{WARPS} warps, {REGISTERS[problem.head_dim]} registers"
    unless = f"where strides or addresses are no multiples of 16 bytes {otherwise}"
    return Described(f"{own}, {launched} ({unless})", waste(problem))


def waste(problem: Problem) -> float:
    """Scores that are computed over useful ones.

    A warp has two lines of queries, which see one line more than a window has; at borders it walks all of its tile's.
    """
    axis, length = problem.neighborhood.axes[0], problem.lengths[0]
    walked = 0  # lines, by the tiles of a column
    for first in range(0, length, TILE):
        start, stop = key_interval(axis, length, (first, min(first + TILE, length)))
        between = first >= WINDOW // 2 and stop - start == TILE + WINDOW - 1
        walked += WINDOW + 1 if between else stop - start
    columns = -(-problem.lengths[1] // TILE)
    return TILE * TILE * COLUMNS * walked * columns / useful_scores(problem.neighborhood, problem.lengths)


@cache
def kernel_of_lines() -> Any:
    """The kernel; None where it is not run: interpreted, or with another Triton than the one that it was timed with."""
    if triton.knobs.runtime.interpret or not triton.__version__.startswith("3.6."):  # Gluon's names move
        return None
    from vicinal.backends.triton.kernels.lines import forward_of_lines_kernel

    return forward_of_lines_kernel
