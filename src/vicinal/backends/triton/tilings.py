"""Tilings of the Triton kernels: a few sizes, each in its best shape, ranked by estimated time. No device work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from math import prod
from operator import itemgetter
from typing import Any, Literal, overload

from vicinal.backends.gpu.hardware import gpu_of
from vicinal.backends.gpu.shapes import TRIED, Kind, kind_of, tile_shapes
from vicinal.backends.gpu.shapes import shapes as shapes_of_kind
from vicinal.backends.protocol import Direction
from vicinal.backends.triton.classes import have_classes, may_have_classes
from vicinal.backends.triton.compiler import STAGES, WARPS, is_compiled_badly
from vicinal.backends.triton.config import GradientTilings, Tiling, can_be_together
from vicinal.backends.triton.estimate import (
    Estimate,
    Kernel,
    backward_seconds,
    estimate,
    kernel_seconds,
    most_registers,
    pass_seconds,
    program_of,
    unfolded,
)
from vicinal.backends.triton.shortlist import STEPS, Size, every_size, of_classes_sizes, shortlist
from vicinal.geometry.unfold import can_unfold
from vicinal.problem import Problem

SHAPES = 4  # of each size, that are listed
FILLED = 32  # programs per multiprocessor, beyond which one launch of two kernels gains nothing
LISTED = 12  # tilings of a kind listed, at most
_GRADIENTS: tuple[Kernel, Kernel] = ("query", "key_value")


def best(problem: Problem, direction: Direction) -> tuple[Tiling | GradientTilings, float]:
    """The cheapest configuration of a pass, of one shape for each size, and its estimated seconds."""
    gpu = gpu_of(problem.device)
    if direction == "forward":
        found, tiling = ranked(problem, "forward", 1, False)[0]
        return tiling, pass_seconds(problem, direction, kernel_seconds(gpu, found.cycles, 1))
    (query, own), (key_value, other) = (ranked(problem, kernel, 1, False)[0] for kernel in _GRADIENTS)
    apart = backward_seconds(gpu, query, key_value, False), own, other, False
    kernels, own, other, together = min([apart, *_together(problem, 1, False)], key=itemgetter(0))
    return GradientTilings(own, other, together), pass_seconds(problem, direction, kernels)


@overload
def tilings(problem: Problem, direction: Literal["forward"]) -> Sequence[Tiling]: ...
@overload
def tilings(problem: Problem, direction: Literal["backward"]) -> Sequence[GradientTilings]: ...
@overload
def tilings(problem: Problem, direction: Direction) -> Sequence[Tiling] | Sequence[GradientTilings]: ...


def tilings(problem: Problem, direction: Direction) -> Sequence[Tiling] | Sequence[GradientTilings]:
    """Valid configurations of a pass: the best, then those worth measuring, the cheapest of each kind first.

    Of several shapes for each size of the short list, and of all sizes that there are: a table may say that a kernel
    more is worth it.
    """
    first: Any = best(problem, direction)[0]
    few, every = (_passes(problem, direction, *kind) for kind in ((SHAPES, False), (1, True)))
    return list(dict.fromkeys([first, *few[:LISTED], *every[:LISTED]]))


def _passes(problem: Problem, direction: Direction, shapes: int, free: bool) -> list[Any]:
    """`free`: of all sizes, not of the short list."""
    if direction == "forward":
        return [tiling for _, tiling in ranked(problem, "forward", shapes, free)]
    cheapest = sorted(_pairs(problem, shapes, free), key=itemgetter(0))[:LISTED]
    return [GradientTilings(query, key_value, together) for _, query, key_value, together in cheapest]


def is_valid(problem: Problem, direction: Direction, config: Tiling | GradientTilings) -> bool:
    """Whether a configuration, of another problem perhaps, is one that could be listed for this one."""
    if isinstance(config, Tiling):
        return direction == "forward" and _is_one(problem, "forward", config)
    both = _is_one(problem, "query", config.query) and _is_one(problem, "key_value", config.key_value)
    return direction == "backward" and both


def _is_one(problem: Problem, kernel: Kernel, tiling: Tiling) -> bool:
    axis, rows, columns = tiling.unfolded, prod(tiling.tile), prod(tiling.step)
    rank = problem.rank if axis is None else problem.rank + 1
    if {len(tiling.tile), len(tiling.step)} != {rank} or axis not in (None, _unfolded_axis(problem)):
        return False
    if axis is not None and tiling.tile[axis + 1] * tiling.step[axis + 1] == 1:
        return False
    if tiling.of_classes and not have_classes(problem, tiling, kernel):
        return False
    if tiling.abreast > 1 and not (tiling.of_classes and kernel == "query"):
        return False
    powers = all(n > 0 and n & (n - 1) == 0 for n in (*tiling.tile, *tiling.step))
    if not powers or columns not in STEPS or tiling.stages not in STAGES[problem.rank]:
        return False
    return tiling.warps in WARPS.get(rows, ()) and fits(problem, kernel, tiling)


def fits(problem: Problem, kernel: Kernel, tiling: Tiling, found: Estimate | None = None) -> bool:
    """Whether a program has the registers and the shared memory it needs, and is compiled well."""
    gpu = gpu_of(problem.device)
    one = program_of(problem, kernel, tiling) if found is None else found.program
    enough = one.registers <= most_registers(gpu) and one.shared <= gpu.architecture.shared
    return enough and not is_compiled_badly(problem, kernel == "key_value", tiling)


@lru_cache(maxsize=1024)
def ranked(problem: Problem, kernel: Kernel, shapes: int, free: bool) -> tuple[tuple[Estimate, Tiling], ...]:
    """Tilings of a kernel that fit, of so many shapes for each size, the cheapest first; `free`: of all sizes.

    If none should fit, the one with the fewest registers.
    """
    gpu = gpu_of(problem.device)
    shared = gpu.architecture.shared

    def costed(listed: Iterable[Tiling]) -> list[tuple[Estimate, Tiling]]:
        return [(estimate(problem, kernel, tiling), tiling) for tiling in listed]

    others: list[tuple[Estimate, Tiling]] = []
    of_classes = costed(candidates_of_classes(problem, kernel, of_classes_sizes(problem, kernel), shapes))
    found = [each for each in of_classes if fits(problem, kernel, each[1], each[0])]
    for sizes in (every_size,) if free else (shortlist, every_size):
        if not (problem.has_rpb and found):  # else scores would look their biases up
            others = costed(candidates(problem, kernel, sizes(problem, kernel, gpu), shapes))
            found += [each for each in others if fits(problem, kernel, each[1], each[0])]
        if found:
            found.sort(key=lambda each: each[0].cycles)
            return tuple(found[:LISTED])
    return (min(others, key=lambda each: (each[0].program.shared > shared, each[0].program.registers)),)


def _pairs(problem: Problem, shapes: int, free: bool) -> list[tuple[float, Tiling, Tiling, bool]]:
    """Seconds of the backward pass, tilings of its kernels, and whether they are launched together."""
    gpu = gpu_of(problem.device)
    queries, keys = (ranked(problem, kernel, shapes, free) for kernel in _GRADIENTS)
    apart = [
        (backward_seconds(gpu, query, key_value, False), own, other, False)
        for query, own in queries
        for key_value, other in keys
    ]
    return apart + list(_together(problem, shapes, free))


def _together(problem: Problem, shapes: int, free: bool) -> Iterator[tuple[float, Tiling, Tiling, bool]]:
    """Those whose kernels are launched together."""
    gpu = gpu_of(problem.device)
    queries, keys = (ranked(problem, kernel, shapes, free) for kernel in _GRADIENTS)
    for query, own in queries:
        for key_value, other in keys:
            if query.programs + key_value.programs <= FILLED * gpu.processors and can_be_together(own, other):
                yield backward_seconds(gpu, query, key_value, True), own, other, True


def candidates(problem: Problem, kernel: Kernel, sizes: Sequence[Size], most: int) -> Sequence[Tiling]:
    """Tilings of these sizes, of each the best few shapes."""
    inverse, axis = kernel == "key_value", _unfolded_axis(problem)
    beside = None
    if axis is not None and any(size.unfolded for size in sizes):
        beside = axis, kind_of(unfolded(problem, axis), inverse)
    return _of_kind(kind_of(problem, inverse), beside, tuple(sizes), most)


@lru_cache(maxsize=4096)
def _of_kind(kind: Kind, beside: tuple[int, Kind] | None, sizes: tuple[Size, ...], most: int) -> tuple[Tiling, ...]:
    """The same of a kind of problems, one for any lengths; `beside`: an axis seen as two, and the kind then."""
    found, most_stages = [], max(STAGES[len(kind[0][1])])
    for size in sizes:
        if size.unfolded and beside is None:
            continue
        axis, own = beside if size.unfolded and beside is not None else (None, kind)
        stages = min(size.stages, most_stages)
        for tile, step in shapes_of_kind(own, size.rows, size.columns, TRIED, most):
            if axis is None or tile[axis + 1] * step[axis + 1] > 1:
                found.append(Tiling(tile, step, size.warps, stages, axis))
            elif size._replace(unfolded=False) not in sizes:  # of one group each after all
                tile, step = (shape[: axis + 1] + shape[axis + 2 :] for shape in (tile, step))
                found.append(Tiling(tile, step, size.warps, stages))
    return tuple(found)


def candidates_of_classes(problem: Problem, kernel: Kernel, sizes: Sequence[Size], most: int) -> Iterator[Tiling]:
    """Tilings of these sizes whose tiles are of few classes, of each the best few shapes."""
    inverse = kernel == "key_value"
    for size in sizes if may_have_classes(problem) else ():
        step = (*(1,) * (problem.rank - 1), size.columns)
        for _, tile in tile_shapes(kind_of(problem, inverse), size.rows, 1)[:most]:
            tiling = Tiling(tile, step, size.warps, size.stages, None, True, size.registers, size.abreast)
            if have_classes(problem, tiling, kernel):
                yield tiling


def _unfolded_axis(problem: Problem) -> int | None:
    """The axis whose dilation groups tiles may hold several of: the last one that can be seen as two."""
    if problem.per_head or max(problem.neighborhood.dilation) == 1:
        return None
    return next((a for a in reversed(range(problem.rank)) if can_unfold(problem.neighborhood, a)), None)
