"""What Triton 3.6, or the ptxas that comes with it, compiles badly: tilings that are not taken, with the evidence."""

from __future__ import annotations

from math import prod

from vicinal.backends.triton.config import Tiling
from vicinal.problem import Problem

# By rows of a program. Never 8 for 64 rows: slow, and Triton 3.6 compiles float32 products of 16 columns wrongly; nor
# for 32: they spill, and took 1.5 times as long in float32.
WARPS = {16: (1, 4), 32: (1, 2, 4), 64: (2, 4), 128: (4, 8)}
STAGES = {1: (2,), 2: (2, 3), 3: (2, 3)}  # by rank: Triton 3.6 leaves a loop along one axis unpipelined at 3


def is_compiled_badly(problem: Problem, inverse: bool, tiling: Tiling) -> bool:
    """Key gradients (`inverse`) of 32 keys with 128 queries at head dim 32: ptxas gives them 32 registers, not 255.

    They spill 4.5 kB a thread, and took 7 times as long as other tilings (8x16x16, window 5x7x7, on an H200).
    """
    is_32_by_128 = inverse and prod(tiling.tile) == 32 and prod(tiling.step) == 128
    return is_32_by_128 and max(problem.head_dim, problem.value_dim) <= 32
