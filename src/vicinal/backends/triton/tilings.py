"""Tilings of the Triton kernels: candidates, and those that fit, ranked by their estimated time. No device work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from math import ceil, prod
from typing import Literal, overload

from vicinal.backends.gpu.hardware import gpu_of
from vicinal.backends.protocol import Direction
from vicinal.backends.triton.compiler import STAGES, is_compiled_badly
from vicinal.backends.triton.config import GradientTilings, Tiling, can_be_together
from vicinal.backends.triton.estimate import (
    Estimate,
    Kernel,
    backward_seconds,
    estimate,
    most_registers,
    sampled,
    unfolded,
)
from vicinal.backends.triton.shortlist import Size, every_size, shortlist
from vicinal.geometry.unfold import can_unfold
from vicinal.geometry.work import computed_scores
from vicinal.problem import Problem

SHORT = 64  # tokens of a dilation group, below which tiles may hold several groups
LISTED = 12  # tilings returned, at most


@overload
def tilings(problem: Problem, direction: Literal["forward"]) -> Sequence[Tiling]: ...
@overload
def tilings(problem: Problem, direction: Literal["backward"]) -> Sequence[GradientTilings]: ...
@overload
def tilings(problem: Problem, direction: Direction) -> Sequence[Tiling] | Sequence[GradientTilings]: ...


def tilings(problem: Problem, direction: Direction) -> Sequence[Tiling] | Sequence[GradientTilings]:
    """Valid configurations of a pass, the cheapest first, never empty."""
    if direction == "forward":
        return [tiling for _, tiling in ranked(problem, "forward")]
    return _backward(problem)


@lru_cache(maxsize=1024)
def ranked(problem: Problem, kernel: Kernel) -> tuple[tuple[Estimate, Tiling], ...]:
    """Tilings of a kernel that fit, the cheapest first; if none should fit, the one with the fewest registers."""
    gpu = gpu_of(problem.device)
    shared, registers = gpu.architecture.shared, most_registers(gpu)
    costed: list[tuple[Estimate, Tiling]] = []
    for sizes in (shortlist(problem, kernel, gpu), every_size(problem.rank)):
        costed = [(estimate(problem, kernel, tiling), tiling) for tiling in candidates(problem, sizes)]
        fitting = [
            (e, tiling)
            for e, tiling in costed
            if e.program.registers <= registers
            and e.program.shared <= shared
            and not is_compiled_badly(problem, kernel == "key_value", tiling)
        ]
        if fitting:
            fitting.sort(key=lambda each: each[0].cycles)
            return tuple(fitting[:LISTED])
    return (min(costed, key=lambda each: (each[0].program.shared > shared, each[0].program.registers)),)


@lru_cache(maxsize=1024)
def _backward(problem: Problem) -> tuple[GradientTilings, ...]:
    """Tilings of the backward pass, in two launches and in one, the cheapest first."""
    gpu = gpu_of(problem.device)
    found = []
    for query, own in ranked(problem, "query"):
        for key_value, other in ranked(problem, "key_value"):
            for together in (False, True)[: 1 + can_be_together(own, other)]:
                seconds = backward_seconds(gpu, query, key_value, together)
                found.append((seconds, GradientTilings(own, other, together)))
    found.sort(key=lambda each: each[0])
    return tuple(config for _, config in found[:LISTED])


def candidates(problem: Problem, sizes: Sequence[Size]) -> Iterator[Tiling]:
    """Tilings of these sizes, in the shapes that compute the least; with short dilation groups side by side, too."""
    yield from _folded(problem, sizes)
    for axis, (length, dilation) in enumerate(zip(problem.lengths, problem.neighborhoods[0].dilation)):
        if ceil(length / dilation) < SHORT and not problem.per_head and can_unfold(problem.neighborhood, axis):
            for tiling in _folded(unfolded(problem, axis), sizes):
                if tiling.tile[axis + 1] > 1:
                    yield replace(tiling, unfolded=axis)


def _folded(problem: Problem, sizes: Sequence[Size]) -> Iterator[Tiling]:
    for rows, columns, warps, stages in sizes:
        for tile in _best_shapes(problem, rows, None):
            for step in _best_shapes(problem, columns, tile):
                yield Tiling(tile, step, warps, min(stages, max(STAGES[problem.rank])))


@lru_cache(maxsize=4096)
def _best_shapes(problem: Problem, size: int, tile: tuple[int, ...] | None) -> tuple[tuple[int, ...], ...]:
    """The few shapes of `size` tokens that compute the least, as tiles or as steps of `tile`."""
    samples = sampled(problem)

    def computed(shape: tuple[int, ...]) -> int:
        pair = (shape, (1,) * problem.rank) if tile is None else (tile, shape)
        return sum(heads * computed_scores(n, problem.lengths, *pair) for n, heads in samples)

    longest = [max(-(-length // n.axes[a].dilation) for n, _ in samples) for a, length in enumerate(problem.lengths)]
    shapes = [s for s in _shapes(size, problem.rank) if all(t < 2 * n for t, n in zip(s, longest))]
    if not shapes:  # larger than the whole group: one tile, as long as need be along the last axis
        caps = [1 << (n - 1).bit_length() for n in longest[:-1]]
        shapes = [(*caps, max(1, size // prod(caps)))] if prod(caps) <= size else list(_shapes(size, problem.rank))
    shapes.sort(key=computed)
    return tuple(shapes[: 3 if tile is None else 2])


@cache
def _shapes(size: int, rank: int) -> tuple[tuple[int, ...], ...]:
    """All shapes of `rank` powers of two whose product is `size`."""
    if rank == 1:
        return ((size,),)
    return tuple(
        (first, *rest)
        for first in (1 << i for i in range(size.bit_length()))
        for rest in _shapes(size // first, rank - 1)
    )
