"""The sizes of programs that there are: at most three for each family of problems, so that few kernels are compiled.

What shape a size takes along the axes is chosen for each problem, at run time (`vicinal.backends.triton.shapes`).
Made by `benchmarks/shortlist.py`: of all sizes those three whose best tilings are, by the estimate for an H200, closest
to all sizes' on a sample of problems. Families that are not here rank all.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any, NamedTuple

from vicinal.backends.gpu.hardware import Gpu
from vicinal.backends.triton.compiler import STAGES, WARPS
from vicinal.backends.triton.estimate import Kernel, padded
from vicinal.problem import Problem

STEPS = (16, 32, 64, 128)  # tokens
ENOUGH_PROGRAMS = 2**12  # of one warp: they fill a GPU


class Size(NamedTuple):
    """Tokens of a tile and of a step; warps and stages of a program; whether it may hold several dilation groups.

    Of tiles of classes also the most registers of a thread, and how many batch entries are abreast.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    unfolded: bool = False
    registers: int | None = None
    abreast: int = 1


class Family(NamedTuple):
    """What a short list is chosen for.

    Attributes:
        kernel: which.
        widest: of head dim and value dim, as kernels pad them.
        itemsize: bytes of an element.
        rank: of the problem.
        dilated: whether some axis is.
    """

    kernel: Kernel
    widest: int
    itemsize: int
    rank: int
    dilated: bool


def shortlist(problem: Problem, kernel: Kernel, gpu: Gpu) -> list[Size]:
    """The few sizes for a family of problems; all of them where none were chosen."""
    if gpu.architecture.warpgroups:
        widest = padded(max(problem.head_dim, problem.value_dim))
        found = SHORTLISTS.get(Family(kernel, widest, problem.dtype.itemsize, problem.rank, _is_dilated(problem)))
        if found is not None:
            return found
    return every_size(problem, kernel, gpu)


def of_classes_sizes(problem: Problem, kernel: Kernel) -> Sequence[Size]:
    """Sizes of tiles of classes: few, those that were faster than others on an H200 (`docs/laboratory/triton.md`).

    As many batch entries abreast as leave enough programs.
    """
    widest = padded(max(problem.head_dim, problem.value_dim))
    if not problem.has_rpb and (widest > (128 if problem.has_key_mask else 64) or problem.rank == 1):
        return ()
    found = _of_classes(kernel, max(widest, 32), problem.dtype.itemsize, problem.has_rpb, problem.rank)
    if all(size.abreast == 1 for size in found):
        return found
    abreast = max((size.abreast for size in found if _can_be_abreast(problem, size)), default=1)
    return [size for size in found if size.abreast == abreast]


@cache
def _of_classes(kernel: Kernel, widest: int, itemsize: int, has_rpb: bool, rank: int) -> tuple[Size, ...]:
    """All of a family, with as many stages as there may be."""
    found, most = OF_CLASSES.get((kernel, widest, itemsize, has_rpb), ()), max(STAGES[rank])
    return tuple([size._replace(stages=min(size.stages, most)) for size in found])


def _can_be_abreast(problem: Problem, size: Size) -> bool:
    programs = problem.batch * problem.heads * prod(problem.lengths) // (size.rows * size.abreast)
    return problem.batch % size.abreast == 0 and programs >= ENOUGH_PROGRAMS


def every_size(problem: Problem, kernel: Kernel, gpu: Gpu) -> list[Size]:
    """All sizes for a problem, whatever kernel and GPU."""
    dilated = _is_dilated(problem)
    return [
        Size(rows, columns, warps, stages, unfolded)
        for rows, allowed in WARPS.items()
        for columns in STEPS
        for warps in allowed
        for stages in STAGES[problem.rank]
        for unfolded in (False, True)[: 1 + dilated]
    ]


def _is_dilated(problem: Problem) -> bool:
    return any(max(n.dilation) > 1 for n in problem.neighborhoods)


# By kernel, padded head dim, bytes per element, rank, and whether dilated: (rows, columns, warps, stages, unfolded).
# fmt: off
_CHOSEN: dict[tuple[Kernel, int, int, int, bool], list[tuple[Any, ...]]] = {
    ("forward", 32, 2, 1, False): [(64, 64, 4, 2), (16, 32, 1, 2), (32, 32, 1, 2)],
    ("forward", 32, 2, 1, True): [(32, 32, 1, 2, True), (64, 64, 4, 2), (16, 32, 1, 2, True)],
    ("forward", 32, 2, 2, False): [(16, 64, 1, 2), (32, 32, 1, 2), (64, 128, 4, 2)],
    ("forward", 32, 2, 2, True): [(32, 32, 1, 2, True), (16, 64, 1, 2, True), (16, 16, 1, 2)],
    ("forward", 32, 2, 3, False): [(32, 32, 1, 2), (64, 128, 4, 2), (16, 32, 1, 2)],
    ("forward", 32, 2, 3, True): [(32, 32, 1, 2), (64, 64, 4, 2), (32, 16, 1, 2)],
    ("query", 32, 2, 1, False): [(64, 64, 4, 2), (16, 32, 1, 2), (32, 32, 1, 2)],
    ("query", 32, 2, 1, True): [(32, 16, 1, 2, True), (64, 64, 4, 2), (16, 16, 1, 2, True)],
    ("query", 32, 2, 2, False): [(16, 32, 1, 3), (64, 64, 4, 3), (16, 128, 4, 3)],
    ("query", 32, 2, 2, True): [(16, 16, 1, 3), (64, 64, 4, 3), (64, 16, 4, 3)],
    ("query", 32, 2, 3, False): [(16, 32, 1, 3), (64, 64, 4, 3), (16, 16, 1, 3)],
    ("query", 32, 2, 3, True): [(16, 32, 1, 3), (64, 64, 4, 3), (32, 16, 1, 3)],
    ("key_value", 32, 2, 1, False): [(64, 64, 4, 2), (32, 32, 1, 2), (16, 64, 1, 2)],
    ("key_value", 32, 2, 1, True): [(16, 16, 1, 2, True), (32, 32, 1, 2), (64, 64, 4, 2)],
    ("key_value", 32, 2, 2, False): [(16, 64, 1, 3), (64, 64, 4, 3), (32, 32, 1, 3)],
    ("key_value", 32, 2, 2, True): [(16, 16, 1, 3), (64, 64, 4, 3), (32, 32, 1, 3)],
    ("key_value", 32, 2, 3, False): [(64, 64, 4, 3), (16, 32, 1, 3), (16, 128, 4, 3)],
    ("key_value", 32, 2, 3, True): [(64, 64, 4, 3), (32, 32, 1, 3), (16, 32, 1, 3)],
    ("forward", 64, 2, 1, False): [(64, 64, 4, 2), (64, 128, 4, 2), (16, 16, 1, 2)],
    ("forward", 64, 2, 1, True): [(32, 32, 1, 2), (16, 16, 1, 2, True), (128, 64, 4, 2)],
    ("forward", 64, 2, 2, False): [(64, 64, 4, 2), (16, 16, 1, 2), (64, 128, 4, 2)],
    ("forward", 64, 2, 2, True): [(128, 64, 4, 2, True), (16, 16, 1, 2), (64, 64, 4, 2)],
    ("forward", 64, 2, 3, False): [(64, 128, 4, 2), (64, 64, 4, 2), (64, 32, 4, 2)],
    ("forward", 64, 2, 3, True): [(64, 64, 4, 2), (128, 64, 4, 2), (32, 32, 1, 2)],
    ("query", 64, 2, 1, False): [(64, 64, 4, 2), (64, 32, 4, 2), (64, 128, 4, 2)],
    ("query", 64, 2, 1, True): [(64, 32, 4, 2), (16, 16, 1, 2, True), (32, 16, 1, 2, True)],
    ("query", 64, 2, 2, False): [(64, 64, 4, 3), (16, 16, 1, 3), (64, 32, 4, 3)],
    ("query", 64, 2, 2, True): [(64, 32, 4, 3, True), (16, 16, 1, 3), (64, 64, 4, 3)],
    ("query", 64, 2, 3, False): [(64, 64, 4, 3), (64, 32, 4, 3), (64, 128, 4, 3)],
    ("query", 64, 2, 3, True): [(64, 64, 4, 3), (64, 32, 4, 3), (16, 16, 1, 3)],
    ("key_value", 64, 2, 1, False): [(64, 64, 4, 2), (16, 16, 1, 2), (16, 64, 4, 2)],
    ("key_value", 64, 2, 1, True): [(32, 32, 4, 2), (64, 64, 4, 2), (16, 16, 1, 2, True)],
    ("key_value", 64, 2, 2, False): [(64, 64, 4, 3), (16, 16, 1, 3), (16, 128, 4, 3)],
    ("key_value", 64, 2, 2, True): [(64, 64, 4, 3), (16, 16, 1, 3), (32, 64, 2, 3)],
    ("key_value", 64, 2, 3, False): [(64, 64, 4, 3), (16, 64, 4, 3), (16, 16, 1, 3)],
    ("key_value", 64, 2, 3, True): [(64, 64, 4, 3), (16, 16, 1, 3), (16, 128, 4, 3)],
    ("forward", 128, 2, 1, False): [(64, 64, 4, 2), (64, 32, 4, 2), (16, 32, 4, 2)],
    ("forward", 128, 2, 1, True): [(64, 64, 4, 2), (16, 16, 1, 2, True), (64, 32, 4, 2, True)],
    ("forward", 128, 2, 2, False): [(64, 64, 4, 2), (64, 32, 4, 2), (16, 64, 4, 2)],
    ("forward", 128, 2, 2, True): [(64, 64, 4, 2, True), (16, 16, 1, 2), (64, 32, 4, 2)],
    ("forward", 128, 2, 3, False): [(64, 64, 4, 2), (128, 128, 8, 2), (64, 32, 4, 2)],
    ("forward", 128, 2, 3, True): [(64, 64, 4, 2), (64, 32, 4, 2), (64, 128, 4, 2)],
    ("query", 128, 2, 1, False): [(64, 64, 4, 2), (16, 16, 1, 2), (16, 32, 4, 2)],
    ("query", 128, 2, 1, True): [(64, 64, 4, 2, True), (16, 16, 1, 2, True), (16, 16, 4, 2)],
    ("query", 128, 2, 2, False): [(64, 64, 4, 2), (16, 16, 1, 2), (16, 64, 4, 3)],
    ("query", 128, 2, 2, True): [(64, 64, 4, 2, True), (16, 16, 1, 2), (16, 16, 1, 3)],
    ("query", 128, 2, 3, False): [(64, 64, 4, 2), (16, 16, 1, 2), (64, 64, 4, 3)],
    ("query", 128, 2, 3, True): [(64, 64, 4, 2), (16, 16, 1, 3), (16, 64, 4, 3)],
    ("key_value", 128, 2, 1, False): [(64, 32, 4, 2), (16, 32, 4, 2), (16, 64, 4, 2)],
    ("key_value", 128, 2, 1, True): [(64, 32, 4, 2, True), (64, 32, 4, 2), (32, 16, 2, 2, True)],
    ("key_value", 128, 2, 2, False): [(64, 32, 4, 3), (16, 64, 4, 3), (16, 16, 4, 3)],
    ("key_value", 128, 2, 2, True): [(64, 32, 4, 3), (32, 16, 2, 3, True), (16, 64, 4, 3)],
    ("key_value", 128, 2, 3, False): [(64, 32, 4, 3), (16, 128, 4, 3), (128, 32, 8, 3)],
    ("key_value", 128, 2, 3, True): [(64, 32, 4, 3), (16, 128, 4, 3), (16, 64, 4, 3)],
    ("forward", 256, 2, 1, False): [(64, 32, 4, 2), (16, 32, 4, 2), (16, 64, 4, 2)],
    ("forward", 256, 2, 1, True): [(64, 32, 4, 2, True), (16, 16, 4, 2, True), (64, 16, 4, 2, True)],
    ("forward", 256, 2, 2, False): [(64, 32, 4, 2), (16, 64, 4, 2), (16, 16, 4, 2)],
    ("forward", 256, 2, 2, True): [(64, 32, 4, 2, True), (16, 64, 4, 2), (16, 16, 4, 2)],
    ("forward", 256, 2, 3, False): [(64, 32, 4, 2), (32, 64, 4, 2), (64, 16, 4, 2)],
    ("forward", 256, 2, 3, True): [(64, 32, 4, 2), (16, 64, 4, 2), (32, 64, 4, 2)],
    ("query", 256, 2, 1, False): [(32, 32, 4, 2), (32, 16, 4, 2), (16, 32, 4, 2)],
    ("query", 256, 2, 1, True): [(32, 32, 4, 2, True), (16, 16, 4, 2, True), (32, 16, 4, 2, True)],
    ("query", 256, 2, 2, False): [(16, 16, 4, 3), (32, 16, 4, 3), (16, 32, 4, 3)],
    ("query", 256, 2, 2, True): [(16, 16, 4, 3), (32, 16, 4, 3), (16, 32, 4, 3, True)],
    ("query", 256, 2, 3, False): [(16, 16, 4, 3), (32, 16, 4, 3), (32, 32, 4, 2)],
    ("query", 256, 2, 3, True): [(32, 16, 4, 3), (16, 16, 4, 3), (16, 32, 4, 3)],
    ("key_value", 256, 2, 1, False): [(32, 16, 4, 2), (16, 32, 4, 2), (16, 16, 4, 2)],
    ("key_value", 256, 2, 1, True): [(16, 16, 4, 2, True), (32, 16, 4, 2), (16, 16, 4, 2)],
    ("key_value", 256, 2, 2, False): [(16, 16, 4, 3), (32, 16, 4, 3), (16, 64, 4, 3)],
    ("key_value", 256, 2, 2, True): [(16, 16, 4, 3), (32, 16, 4, 3), (16, 32, 4, 3)],
    ("key_value", 256, 2, 3, False): [(16, 16, 4, 3), (16, 32, 4, 3), (32, 16, 4, 3)],
    ("key_value", 256, 2, 3, True): [(16, 16, 4, 3), (32, 16, 4, 3), (16, 64, 4, 3)],
    ("forward", 16, 4, 1, False): [(32, 32, 1, 2), (16, 16, 1, 2), (64, 128, 4, 2)],
    ("forward", 16, 4, 1, True): [(16, 16, 1, 2, True), (32, 16, 1, 2, True), (128, 64, 4, 2)],
    ("forward", 16, 4, 2, False): [(16, 128, 4, 2), (16, 64, 1, 2), (16, 16, 1, 2)],
    ("forward", 16, 4, 2, True): [(16, 16, 1, 2), (16, 64, 1, 2), (32, 32, 1, 2)],
    ("forward", 16, 4, 3, False): [(16, 32, 1, 2), (16, 16, 1, 2), (64, 64, 4, 2)],
    ("forward", 16, 4, 3, True): [(32, 32, 1, 2), (16, 64, 1, 2), (128, 64, 4, 2)],
    ("query", 16, 4, 1, False): [(16, 32, 1, 2), (32, 32, 1, 2), (16, 64, 4, 2)],
    ("query", 16, 4, 1, True): [(32, 32, 1, 2, True), (16, 16, 1, 2, True), (32, 16, 1, 2, True)],
    ("query", 16, 4, 2, False): [(16, 16, 1, 3), (16, 32, 1, 3), (16, 64, 4, 3)],
    ("query", 16, 4, 2, True): [(16, 16, 1, 3), (32, 16, 1, 3, True), (16, 64, 4, 3)],
    ("query", 16, 4, 3, False): [(16, 64, 1, 3), (16, 16, 1, 3), (64, 64, 4, 3)],
    ("query", 16, 4, 3, True): [(16, 16, 1, 3), (16, 64, 1, 3), (32, 16, 1, 3)],
    ("key_value", 16, 4, 1, False): [(16, 32, 1, 2), (64, 64, 4, 2), (32, 16, 1, 2)],
    ("key_value", 16, 4, 1, True): [(16, 16, 1, 2, True), (64, 64, 4, 2), (32, 16, 1, 2)],
    ("key_value", 16, 4, 2, False): [(16, 32, 1, 3), (16, 64, 4, 3), (16, 16, 1, 3)],
    ("key_value", 16, 4, 2, True): [(16, 16, 1, 3), (32, 16, 1, 3), (16, 32, 1, 3)],
    ("key_value", 16, 4, 3, False): [(16, 32, 1, 3), (64, 64, 4, 3), (16, 32, 4, 3)],
    ("key_value", 16, 4, 3, True): [(16, 32, 1, 3), (64, 64, 4, 3), (16, 128, 4, 3)],
    ("forward", 32, 4, 1, False): [(16, 64, 4, 2), (64, 64, 4, 2), (16, 16, 1, 2)],
    ("forward", 32, 4, 1, True): [(16, 16, 1, 2, True), (32, 16, 1, 2, True), (128, 64, 4, 2)],
    ("forward", 32, 4, 2, False): [(16, 16, 1, 2), (16, 64, 4, 2), (64, 64, 4, 2)],
    ("forward", 32, 4, 2, True): [(16, 16, 1, 2), (64, 64, 4, 2), (16, 64, 4, 2)],
    ("forward", 32, 4, 3, False): [(16, 32, 1, 2), (64, 64, 4, 2), (16, 16, 1, 2)],
    ("forward", 32, 4, 3, True): [(16, 32, 1, 2), (64, 64, 4, 2), (32, 16, 1, 2)],
    ("query", 32, 4, 1, False): [(16, 16, 1, 2), (64, 64, 4, 2), (16, 32, 4, 2)],
    ("query", 32, 4, 1, True): [(16, 16, 1, 2, True), (64, 64, 4, 2), (16, 16, 4, 2)],
    ("query", 32, 4, 2, False): [(16, 16, 1, 3), (16, 64, 4, 3), (64, 64, 4, 3)],
    ("query", 32, 4, 2, True): [(16, 16, 1, 3), (64, 64, 4, 3), (16, 64, 4, 3)],
    ("query", 32, 4, 3, False): [(16, 16, 1, 3), (64, 64, 4, 3), (16, 32, 1, 2)],
    ("query", 32, 4, 3, True): [(16, 16, 1, 3), (64, 64, 4, 3), (16, 32, 1, 3)],
    ("key_value", 32, 4, 1, False): [(16, 16, 1, 2), (16, 32, 4, 2), (128, 64, 8, 2)],
    ("key_value", 32, 4, 1, True): [(16, 16, 1, 2, True), (16, 16, 1, 2), (128, 64, 8, 2)],
    ("key_value", 32, 4, 2, False): [(16, 16, 1, 3), (16, 64, 4, 3), (128, 64, 8, 3)],
    ("key_value", 32, 4, 2, True): [(16, 16, 1, 3), (16, 64, 4, 3), (64, 32, 4, 3)],
    ("key_value", 32, 4, 3, False): [(16, 16, 1, 3), (128, 64, 8, 3), (16, 32, 4, 3)],
    ("key_value", 32, 4, 3, True): [(16, 16, 1, 3), (16, 64, 4, 3), (128, 64, 8, 3)],
    ("forward", 64, 4, 1, False): [(16, 16, 1, 2), (64, 64, 4, 2), (16, 32, 4, 2)],
    ("forward", 64, 4, 1, True): [(16, 16, 1, 2), (16, 16, 1, 2, True), (64, 64, 4, 2)],
    ("forward", 64, 4, 2, False): [(16, 32, 4, 3), (16, 16, 1, 2), (64, 64, 4, 2)],
    ("forward", 64, 4, 2, True): [(16, 16, 1, 2), (64, 64, 4, 2), (16, 16, 1, 3)],
    ("forward", 64, 4, 3, False): [(16, 16, 1, 2), (64, 64, 4, 2), (16, 64, 4, 2)],
    ("forward", 64, 4, 3, True): [(16, 16, 1, 2), (64, 64, 4, 2), (16, 64, 4, 2)],
    ("query", 64, 4, 1, False): [(16, 16, 4, 2), (128, 64, 8, 2), (16, 32, 4, 2)],
    ("query", 64, 4, 1, True): [(16, 16, 4, 2), (16, 16, 4, 2, True), (128, 64, 8, 2)],
    ("query", 64, 4, 2, False): [(16, 16, 4, 3), (128, 64, 8, 3), (16, 32, 4, 3)],
    ("query", 64, 4, 2, True): [(16, 16, 4, 3), (64, 32, 4, 3), (128, 64, 8, 3)],
    ("query", 64, 4, 3, False): [(16, 16, 4, 3), (128, 64, 8, 3), (64, 32, 4, 3)],
    ("query", 64, 4, 3, True): [(16, 16, 4, 3), (128, 64, 8, 3), (64, 32, 4, 3)],
    ("key_value", 64, 4, 1, False): [(16, 16, 4, 2), (128, 32, 8, 2), (16, 32, 4, 2)],
    ("key_value", 64, 4, 1, True): [(16, 16, 4, 2), (16, 16, 4, 2, True), (128, 32, 8, 2)],
    ("key_value", 64, 4, 2, False): [(16, 16, 4, 3), (16, 64, 4, 3), (128, 32, 8, 3)],
    ("key_value", 64, 4, 2, True): [(16, 16, 4, 3), (64, 16, 4, 3), (128, 32, 8, 3)],
    ("key_value", 64, 4, 3, False): [(16, 16, 4, 3), (128, 32, 8, 3), (32, 16, 4, 3)],
    ("key_value", 64, 4, 3, True): [(16, 16, 4, 3), (16, 64, 4, 3), (128, 32, 8, 3)],
    ("forward", 128, 4, 1, False): [(16, 16, 4, 2), (128, 32, 8, 2), (16, 32, 4, 2)],
    ("forward", 128, 4, 1, True): [(16, 16, 4, 2, True), (128, 32, 8, 2), (32, 16, 4, 2, True)],
    ("forward", 128, 4, 2, False): [(16, 16, 4, 2), (128, 32, 8, 2), (16, 32, 4, 2)],
    ("forward", 128, 4, 2, True): [(16, 16, 4, 2), (64, 16, 4, 2), (16, 32, 4, 2, True)],
    ("forward", 128, 4, 3, False): [(16, 16, 4, 2), (128, 32, 8, 2), (16, 32, 4, 2)],
    ("forward", 128, 4, 3, True): [(16, 16, 4, 2), (128, 32, 8, 2), (32, 16, 4, 2)],
    ("query", 128, 4, 1, False): [(16, 32, 4, 2), (16, 16, 4, 2)],
    ("query", 128, 4, 1, True): [(16, 16, 4, 2, True), (16, 32, 4, 2, True), (16, 16, 4, 2)],
    ("query", 128, 4, 2, False): [(16, 16, 4, 3), (16, 32, 4, 2), (16, 32, 4, 3)],
    ("query", 128, 4, 2, True): [(16, 16, 4, 3), (16, 32, 4, 2), (16, 32, 4, 3)],
    ("query", 128, 4, 3, False): [(16, 16, 4, 3), (16, 32, 4, 2), (16, 32, 4, 3)],
    ("query", 128, 4, 3, True): [(16, 16, 4, 3), (16, 32, 4, 2), (16, 32, 4, 3)],
    ("key_value", 128, 4, 1, False): [(16, 16, 4, 2)],
    ("key_value", 128, 4, 1, True): [(16, 16, 4, 2, True), (16, 16, 4, 2)],
    ("key_value", 128, 4, 2, False): [(16, 16, 4, 3), (16, 16, 4, 2)],
    ("key_value", 128, 4, 2, True): [(16, 16, 4, 3), (16, 16, 4, 2), (16, 16, 4, 2, True)],
    ("key_value", 128, 4, 3, False): [(16, 16, 4, 3), (16, 16, 4, 2)],
    ("key_value", 128, 4, 3, True): [(16, 16, 4, 3), (16, 16, 4, 2)],
    ("forward", 256, 4, 1, False): [(16, 16, 4, 2)],
    ("forward", 256, 4, 1, True): [(16, 16, 4, 2, True), (16, 16, 4, 2)],
    ("forward", 256, 4, 2, False): [(16, 16, 4, 2), (16, 16, 4, 3)],
    ("forward", 256, 4, 2, True): [(16, 16, 4, 2), (16, 16, 4, 3), (16, 16, 4, 2, True)],
    ("forward", 256, 4, 3, False): [(16, 16, 4, 2), (16, 16, 4, 3)],
    ("forward", 256, 4, 3, True): [(16, 16, 4, 2), (16, 16, 4, 3)],
}
# fmt: on
SHORTLISTS = {Family(*family): [Size(*size) for size in sizes] for family, sizes in _CHOSEN.items()}
# Where tiles are of classes, by kernel, head dim as kernels pad it (32 for less), bytes per element, and whether there
# is a bias. Without one what is not here is faster elsewhere. All registers that there are: the estimate of what a
# program needs is too high.
OF_CLASSES: dict[tuple[Kernel, int, int, bool], list[Size]] = {
    ("forward", 32, 2, False): [Size(32, 32, 1, 2, registers=128)],
    ("query", 32, 2, False): [Size(32, 16, 1, 3, registers=128)],
    ("key_value", 32, 2, False): [Size(32, 32, 1, 3)],
    ("forward", 64, 2, False): [Size(64, 64, 4, 2, registers=128)],
    ("forward", 128, 2, False): [Size(64, 64, 4, 2, registers=240)],  # under a key mask
    ("query", 64, 2, False): [Size(64, 32, 4, 3, registers=128)],
    ("key_value", 64, 2, False): [Size(16, 32, 1, 2, registers=168)],
    ("key_value", 32, 4, False): [Size(16, 32, 1, 3, registers=255)],
    ("forward", 32, 2, True): [Size(32, 32, 1, 2, registers=128)],
    ("query", 32, 2, True): [  # what it computes is written, too
        Size(16, 16, 1, 3, registers=200, abreast=4),
        Size(16, 32, 1, 2, registers=168, abreast=2),
        Size(16, 32, 1, 3, registers=128),
    ],
    ("key_value", 32, 2, True): [Size(32, 32, 1, 3, registers=255)],
    ("forward", 64, 2, True): [Size(64, 64, 4, 2, registers=128), Size(16, 32, 1, 2, registers=128)],
    ("query", 64, 2, True): [Size(64, 32, 4, 3, registers=128), Size(16, 32, 1, 3)],
    ("key_value", 64, 2, True): [Size(32, 32, 1, 2, registers=255), Size(16, 32, 1, 3)],
    ("forward", 32, 4, True): [Size(16, 16, 1, 2), Size(32, 32, 1, 2)],
    ("query", 32, 4, True): [Size(16, 16, 1, 3, abreast=2), Size(16, 32, 1, 3)],
    ("key_value", 32, 4, True): [Size(16, 32, 1, 3, registers=255)],
    ("forward", 64, 4, True): [Size(16, 16, 1, 2), Size(16, 16, 4, 2)],
    ("query", 64, 4, True): [Size(16, 16, 1, 3), Size(16, 16, 4, 3)],
    ("key_value", 64, 4, True): [Size(16, 16, 1, 3), Size(16, 16, 4, 3)],
    ("forward", 128, 2, True): [Size(64, 32, 4, 2, registers=128), Size(16, 32, 1, 2, registers=255)],
    ("query", 128, 2, True): [Size(16, 16, 1, 3, registers=168)],
    ("key_value", 128, 2, True): [Size(16, 16, 1, 3, registers=255)],
    ("forward", 128, 4, True): [Size(16, 16, 1, 2, registers=255)],
    ("query", 128, 4, True): [Size(16, 32, 4, 3, registers=255)],
    ("key_value", 128, 4, True): [Size(16, 32, 4, 3, registers=255)],
    ("forward", 256, 2, True): [Size(64, 32, 4, 2, registers=255)],
    ("query", 256, 2, True): [Size(16, 32, 4, 2, registers=255)],
    ("key_value", 256, 2, True): [Size(32, 32, 4, 3, registers=255)],
    ("forward", 256, 4, True): [Size(16, 32, 4, 2, registers=255)],
    ("query", 256, 4, True): [Size(16, 16, 4, 2, registers=255)],
    ("key_value", 256, 4, True): [Size(16, 16, 4, 2, registers=255)],
}
