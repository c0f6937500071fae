"""The sizes of programs that tilings are ranked of, few for each family of problems.

Made by `benchmarks/shortlist.py` for an H200: of all sizes the few whose best tilings are, by the estimate, as good as
all sizes' on a sample of problems. GPUs whose matrix instructions are others, and families that are not here, rank all.
"""

from __future__ import annotations

from typing import NamedTuple

from vicinal.backends.gpu.hardware import Gpu
from vicinal.backends.triton.compiler import STAGES, WARPS
from vicinal.backends.triton.estimate import Kernel
from vicinal.problem import Problem

STEPS = (16, 32, 64, 128)  # tokens


class Size(NamedTuple):
    """Tokens of a tile and of a step; warps and stages of a program."""

    rows: int
    columns: int
    warps: int
    stages: int


def shortlist(problem: Problem, kernel: Kernel, gpu: Gpu) -> list[Size]:
    """The few sizes for a family of problems; all of them where none were chosen."""
    widest = max(16, 1 << (max(problem.head_dim, problem.value_dim) - 1).bit_length())
    found = SHORTLISTS.get((kernel, widest, problem.dtype.itemsize)) if gpu.architecture.warpgroups else None
    if found is None:
        return every_size(problem.rank)
    most = max(STAGES[problem.rank])
    return list(dict.fromkeys(size._replace(stages=min(size.stages, most)) for size in found))


def every_size(rank: int) -> list[Size]:
    """All sizes."""
    return [
        Size(rows, columns, warps, stages)
        for rows, allowed in WARPS.items()
        for columns in STEPS
        for warps in allowed
        for stages in STAGES[rank]
    ]


# By kernel, padded head dim and bytes per element: (rows, columns, warps, stages).
# fmt: off
_CHOSEN: dict[tuple[Kernel, int, int], list[tuple[int, int, int, int]]] = {
    ("forward", 16, 2): [(32, 64, 1, 2), (32, 16, 1, 2), (16, 64, 1, 2), (16, 128, 1, 2), (32, 32, 1, 2),
        (128, 64, 4, 2), (16, 128, 4, 2), (16, 32, 1, 2), (16, 64, 4, 2), (128, 16, 4, 2)],
    ("query", 16, 2): [(16, 32, 1, 3), (32, 16, 1, 3), (16, 64, 1, 3), (32, 64, 1, 3), (16, 128, 1, 3),
        (32, 32, 1, 3), (16, 64, 4, 3), (16, 128, 4, 3), (128, 32, 4, 2)],
    ("key_value", 16, 2): [(16, 64, 1, 3), (32, 32, 1, 3), (64, 64, 4, 3), (32, 16, 1, 3), (16, 128, 4, 3),
        (64, 32, 4, 3), (16, 32, 1, 3), (16, 64, 4, 3)],
    ("forward", 32, 2): [(64, 64, 4, 2), (16, 32, 1, 2), (32, 32, 1, 2), (16, 128, 4, 2), (64, 128, 4, 2),
        (16, 64, 1, 2), (32, 16, 1, 2), (16, 16, 1, 2), (16, 128, 1, 2), (16, 64, 4, 2)],
    ("query", 32, 2): [(16, 32, 1, 3), (64, 64, 4, 3), (32, 16, 1, 3), (16, 64, 4, 3), (16, 64, 1, 3),
        (16, 16, 1, 3), (64, 32, 4, 3), (64, 128, 4, 3), (16, 128, 4, 3), (64, 16, 4, 3)],
    ("key_value", 32, 2): [(64, 64, 4, 3), (32, 32, 1, 3), (16, 32, 1, 3), (16, 128, 4, 3), (32, 16, 1, 3),
        (16, 64, 1, 3), (64, 32, 4, 3), (16, 32, 4, 3), (16, 16, 1, 3)],
    ("forward", 64, 2): [(64, 64, 4, 2), (16, 16, 1, 2), (64, 128, 4, 2), (128, 64, 4, 2), (16, 64, 4, 2),
        (64, 32, 4, 2), (16, 128, 4, 2), (32, 16, 1, 2), (16, 32, 1, 2), (32, 32, 1, 2)],
    ("query", 64, 2): [(64, 64, 4, 3), (16, 16, 1, 3), (64, 32, 4, 3), (16, 64, 4, 3), (64, 128, 4, 3),
        (64, 16, 4, 3), (32, 16, 1, 3), (16, 32, 1, 3), (16, 32, 4, 3)],
    ("key_value", 64, 2): [(64, 64, 4, 3), (16, 16, 1, 3), (16, 64, 4, 3), (16, 32, 1, 3), (16, 128, 4, 3),
        (16, 32, 4, 3)],
    ("forward", 128, 2): [(64, 64, 4, 2), (64, 32, 4, 2), (16, 64, 4, 2), (16, 16, 1, 2), (128, 128, 8, 2),
        (64, 128, 4, 2), (16, 32, 1, 2), (16, 32, 4, 2), (16, 128, 4, 2)],
    ("query", 128, 2): [(64, 64, 4, 2), (16, 16, 1, 2), (16, 32, 4, 3), (16, 64, 4, 3), (64, 16, 4, 3),
        (64, 64, 4, 3), (16, 16, 1, 3)],
    ("key_value", 128, 2): [(64, 32, 4, 3), (16, 64, 4, 3), (16, 32, 4, 3), (32, 16, 2, 3), (16, 128, 4, 3)],
    ("forward", 256, 2): [(64, 32, 4, 2), (16, 32, 4, 2), (16, 64, 4, 2), (16, 16, 4, 2)],
    ("query", 256, 2): [(16, 16, 4, 3), (32, 32, 4, 2), (16, 32, 4, 3), (32, 16, 4, 3), (16, 64, 4, 3)],
    ("key_value", 256, 2): [(16, 16, 4, 3), (32, 16, 4, 3), (16, 32, 4, 3), (16, 64, 4, 3)],
    ("forward", 16, 4): [(16, 32, 1, 2), (16, 16, 1, 2), (64, 64, 4, 2), (16, 64, 4, 2), (128, 64, 4, 2),
        (32, 16, 1, 2), (16, 64, 1, 2), (16, 128, 4, 2), (32, 32, 1, 2), (64, 128, 4, 2)],
    ("query", 16, 4): [(16, 32, 1, 3), (32, 16, 1, 3), (64, 64, 4, 3), (16, 64, 4, 3), (16, 16, 1, 3),
        (16, 64, 1, 3), (128, 64, 4, 3), (32, 32, 1, 3), (16, 32, 4, 3), (16, 128, 4, 3)],
    ("key_value", 16, 4): [(16, 32, 1, 3), (64, 64, 4, 3), (32, 16, 1, 3), (16, 64, 4, 3), (16, 16, 1, 3),
        (16, 128, 4, 3), (16, 32, 4, 3)],
    ("forward", 32, 4): [(16, 32, 1, 2), (64, 64, 4, 2), (16, 16, 1, 2), (16, 64, 4, 2), (128, 64, 4, 2),
        (32, 16, 1, 2), (16, 32, 4, 2), (16, 128, 4, 2), (64, 128, 4, 2)],
    ("query", 32, 4): [(16, 16, 1, 3), (64, 64, 4, 3), (16, 32, 4, 3), (16, 32, 1, 3), (16, 64, 4, 3),
        (16, 32, 1, 2)],
    ("key_value", 32, 4): [(16, 16, 1, 3), (16, 64, 4, 3), (128, 64, 8, 3), (16, 32, 4, 3), (64, 32, 4, 3),
        (16, 16, 4, 3)],
    ("forward", 64, 4): [(16, 16, 1, 2), (64, 64, 4, 2), (16, 32, 4, 2), (16, 64, 4, 2), (16, 16, 1, 3)],
    ("query", 64, 4): [(16, 16, 4, 3), (128, 64, 8, 3), (64, 32, 4, 3), (16, 32, 4, 3), (16, 64, 4, 3)],
    ("key_value", 64, 4): [(16, 16, 4, 3), (16, 64, 4, 3), (128, 32, 8, 3), (32, 16, 4, 3), (64, 16, 4, 3),
        (16, 32, 4, 3)],
    ("forward", 128, 4): [(16, 16, 4, 2), (128, 32, 8, 2), (16, 32, 4, 2), (64, 16, 4, 2), (32, 16, 4, 2)],
    ("query", 128, 4): [(16, 16, 4, 3), (16, 32, 4, 2)],
    ("key_value", 128, 4): [(16, 16, 4, 3)],
}
# fmt: on
SHORTLISTS = {family: tuple(Size(*size) for size in sizes) for family, sizes in _CHOSEN.items()}
