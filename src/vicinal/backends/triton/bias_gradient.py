"""The gradient of the bias table: its launch and scratch.

See `vicinal.backends.triton.kernels.bias_gradient`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from vicinal.backends.gpu.arguments import precision_of
from vicinal.backends.gpu.hardware import gpu_of
from vicinal.backends.gpu.launch import Launch, options_of
from vicinal.backends.gpu.tables import in_use, table_of
from vicinal.backends.triton.bias import classes_of
from vicinal.backends.triton.config import Tiling
from vicinal.backends.triton.estimate import ISSUES, estimate
from vicinal.backends.triton.kernels.bias import Classes
from vicinal.backends.triton.kernels.bias_gradient import bias_gradient_kernel, bias_gradient_of_classes_kernel
from vicinal.backends.triton.launch import Prepared, like, tiles_of
from vicinal.backends.triton.shortlist import Size
from vicinal.backends.triton.tilings import candidates
from vicinal.compiling import Job
from vicinal.geometry.tiles import alike, key_interval
from vicinal.problem import Inputs, Problem

TILES = {1: (32,), 2: (4, 8), 3: (2, 4, 4)}  # of queries and of keys: what a sum along diagonals has room for
SCRATCH = 2**28  # bytes of partial gradients, at most (but one table per head)
ENOUGH_PROGRAMS = 1024  # fill a GPU, with 4 warps each
ENOUGH_OF_CLASSES = 6144  # likewise, with one warp each and work of one class
MOST_ROWS = 1 << 14  # of work that is listed
SIZES = [Size(16, 16, 1, 2), Size(16, 32, 1, 2), Size(32, 16, 1, 2), Size(64, 16, 4, 2), Size(64, 32, 4, 2)]
# Against the query gradient's, of a step: a warp's instructions, and those per score.
MORE_INSTRUCTIONS = 70.0
FEWER_PER_SCORE = 2.6


class BiasGradient:
    """The launch of one problem; `config`: for tiles of classes, instead of the one that is estimated to be best."""

    def __init__(self, prepared: Prepared, config: Tiling | None = None) -> None:
        found = _of_classes(prepared, config or _tiling(prepared.problem))
        self._work: Tensor | None = None
        if found is None:
            self._launch = _pair_by_pair(prepared)
        else:
            self._launch, self._work = found

    def __call__(self, inputs: Inputs, above: tuple[Tensor | None, ...], table: Tensor | None, aligned: bool) -> Tensor:
        """Of a contiguous table; `above`: log-sum-exp, gradient of the output, delta."""
        rpb = inputs.rpb
        assert rpb is not None
        if self._work is not None:
            in_use(self._work)
        sums = rpb.new_zeros((rpb.shape[0], self._launch.grid[0], *rpb.shape[1:]), dtype=torch.float32)
        self._launch((*self._read(inputs, table), *above, sums), aligned)
        return sums.sum(1).to(rpb.dtype)

    def compiled(self, inputs: Inputs, above: tuple[Tensor | None, ...], table: Tensor | None) -> Job:
        """What compiles it."""
        return partial(self._launch.compile, (*self._read(inputs, table), *above, like(inputs.query, torch.float32)))

    def _read(self, inputs: Inputs, table: Tensor | None) -> tuple[Tensor | None, ...]:
        read = inputs.query, inputs.key, inputs.value, inputs.rpb
        return (*read, inputs.key_mask, inputs.window_sizes, table) if self._work is None else (*read, self._work)


@lru_cache(maxsize=1024)
def _tiling(problem: Problem) -> Tiling:
    """For tiles of classes, the cheapest of a few sizes.

    Estimated as the query gradient is, with a step's instructions counted in what ptxas made of this kernel.
    """
    gpu = gpu_of(problem.device)

    def cycles(tiling: Tiling) -> float:
        walked = estimate(problem, "query", tiling)
        one = walked.program
        per_thread = prod(tiling.tile) * prod(tiling.step) / (gpu.architecture.warp * tiling.warps)
        issue = one.issue + tiling.warps * (MORE_INSTRUCTIONS - FEWER_PER_SCORE * per_thread) / ISSUES
        parts = one.products, issue, one.exponentials, one.loads
        return walked.programs * walked.steps * (max(parts) + one.overlap * (sum(parts) - max(parts)))

    return min(candidates(problem, "query", SIZES, 2), key=cycles)


class _Along(NamedTuple):
    """Tiles of one class along an axis: the first of them and how many, the groups, and the steps of each."""

    first: int
    tiles: int
    group: int
    groups: int
    steps: int


def _of_classes(prepared: Prepared, config: Tiling) -> tuple[Launch, Tensor] | None:
    """The launch and its list of work, a row a program; None where tiles are not of classes, or of too many.

    A row: the step; the first pair of a tile and a batch entry, counted with what `_inner` says fastest, and how many
    pairs; per axis the class's first tile, how many tiles, its first dilation group, how many groups.
    """
    problem = prepared.problem
    classes = classes_of(problem, config, inverse=False)
    if classes is None:
        return None
    most = min(MOST_ROWS, SCRATCH // _table_bytes(problem))
    pairs = problem.batch * tiles_of(problem, config) * classes.steps
    if prod(classes.counts) * classes.steps > most or pairs >= 2**31:
        return None
    rows = _work(problem, config, classes, min(most, -(-ENOUGH_OF_CLASSES // problem.heads)))
    if len(rows) > most:
        return None
    key = (
        "triton bias",
        problem.neighborhoods,
        problem.lengths,
        problem.batch,
        problem.heads,
        config.tile,
        config.step,
    )
    work = table_of(key, prepared.device, lambda: rows)
    arguments = (
        prepared.scale,
        problem.heads,
        problem.group_size,
        problem.batch,
        _inner(problem, config),
        *prepared.arguments(),
        config.tile,
        config.step,
        prepared.vector,
        prepared.flags(config),
        precision_of(problem.dtype),
    )
    grid = (len(rows), problem.heads, 1)
    return Launch(bias_gradient_of_classes_kernel, grid, arguments, options_of(config.warps, config.stages)), work


def _work(problem: Problem, config: Tiling, classes: Classes, programs: int) -> list[list[int]]:
    """About so many rows; more where there are more classes and steps."""
    each = [
        list(_along(problem, config, axis, before, after))
        for axis, (before, after) in enumerate(zip(classes.before, classes.after))
    ]
    combinations = [(chosen, problem.batch * prod(c.tiles * c.groups for c in chosen)) for chosen in product(*each)]
    total = sum(pairs * prod(c.steps for c in chosen) for chosen, pairs in combinations)
    share = max(1, -(-total // programs))
    rows = []
    for chosen, pairs in combinations:
        columns = [value for column in list(zip(*chosen))[:4] for value in column]
        shares = -(-pairs // share)
        own = -(-pairs // shares)
        for step in range(prod(c.steps for c in chosen)):
            rows += [[step, first, min(own, pairs - first), *columns] for first in range(0, pairs, own)]
    rows.sort(key=lambda row: -row[2])  # the longest first
    return rows


def _inner(problem: Problem, config: Tiling) -> int:
    """What has the most tiles side by side: an axis; or the batch, -1."""
    tiles = [-(-n // a.dilation // t) for n, a, t in zip(problem.lengths, problem.neighborhood.axes, config.tile)]
    return -1 if problem.batch >= max(tiles) else tiles.index(max(tiles))


def _along(problem: Problem, config: Tiling, i: int, before: int, after: int) -> Iterator[_Along]:
    axis, length, tile, step = problem.neighborhood.axes[i], problem.lengths[i], config.tile[i], config.step[i]
    for kind in alike(axis, length):
        tiles = -(-kind.length // tile)
        last = max(before, tiles - after)  # the first of those after
        for first, end in [*((n, n + 1) for n in range(min(before, tiles))), (before, last)] + [
            (n, n + 1) for n in range(last, tiles)
        ]:
            if first < end:
                queries = (first * tile, min((first + 1) * tile, kind.length))
                start, stop = key_interval(axis, kind.length, queries)
                yield _Along(first, end - first, kind.first, kind.count, -(-(stop - start) // step))


def _pair_by_pair(prepared: Prepared) -> Launch:
    problem = prepared.problem
    config = Tiling(TILES[problem.rank], TILES[problem.rank], warps=4, stages=1)
    programs = tiles_of(problem, config)
    shares = min(
        programs * problem.batch,
        max(1, SCRATCH // _table_bytes(problem)),
        -(-ENOUGH_PROGRAMS // problem.heads),
    )
    arguments = (
        prepared.scale,
        problem.heads,
        problem.group_size,
        problem.batch,
        programs,
        *prepared.arguments(),
        config.query_tile,
        config.key_tile,
        prepared.vector,
        prepared.flags(config),
        precision_of(problem.dtype),
    )
    return Launch(bias_gradient_kernel, (shares, problem.heads, 1), arguments, options_of(config.warps, config.stages))


def _table_bytes(problem: Problem) -> int:
    (window,) = {n.window for n in problem.neighborhoods}
    return 4 * problem.heads * prod(2 * k - 1 for k in window if k is not None)
