"""The gradient of the bias table: its launch and scratch.

See `vicinal.backends.triton.kernels.bias_gradient`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from vicinal.backends.gpu.arguments import precision_of
from vicinal.backends.gpu.launch import Launch, options_of
from vicinal.backends.gpu.tables import in_use, table_of
from vicinal.backends.triton.config import Tiling
from vicinal.backends.triton.kernels.bias_gradient import bias_gradient_kernel, bias_gradient_of_classes_kernel
from vicinal.backends.triton.kernels.starts import Classes
from vicinal.backends.triton.launch import Prepared, like, stand_in, tiles_of
from vicinal.compiling import Job
from vicinal.geometry.tiles import alike, key_interval
from vicinal.problem import Inputs, Problem

TILES = {1: (32,), 2: (4, 8), 3: (2, 4, 4)}  # of queries and of keys: what a sum along diagonals has room for
SCRATCH = 2**28  # bytes of partial gradients, at most (but one table per head); of scores' gradients, at most as many
ENOUGH_PROGRAMS = 1024  # fill a GPU, with 4 warps each
ENOUGH_OF_CLASSES = 8192  # likewise, where they only sum
MOST_ROWS = 1 << 14  # of work that is listed


class BiasGradient:
    """The launch of one problem, pair by pair."""

    def __init__(self, prepared: Prepared) -> None:
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
        grid, options = (shares, problem.heads, 1), options_of(config.warps, config.stages)
        self._launch = Launch(bias_gradient_kernel, grid, arguments, options)

    def __call__(self, inputs: Inputs, above: tuple[Tensor | None, ...], table: Tensor | None, aligned: bool) -> Tensor:
        """Of a contiguous table; `above`: log-sum-exp, gradient of the output, delta."""
        rpb = inputs.rpb
        assert rpb is not None
        partial = rpb.new_zeros((rpb.shape[0], self._launch.grid[0], *rpb.shape[1:]), dtype=torch.float32)
        self._launch((*_read(inputs, table), *above, partial), aligned)
        return partial.sum(1).to(rpb.dtype)

    def compiled(self, inputs: Inputs, above: tuple[Tensor | None, ...], table: Tensor | None) -> Job:
        """What compiles it."""
        return partial(self._launch.compile, (*_read(inputs, table), *above, like(inputs.query, torch.float32)))


class SumOfClasses:
    """The bias gradient of some batch entries from their scores' gradients, where tiles are of classes.

    Attributes:
        count: of the elements of the scores' gradients.
        programs: how many there are of a head; each has a partial gradient.
    """

    def __init__(self, prepared: Prepared, config: Tiling, classes: Classes, batch: int) -> None:
        """Of tiles of queries, and `batch` entries."""
        problem = prepared.problem
        self._work, self._device = _work(problem, config, classes, batch), prepared.device
        self._table: Tensor | None = None  # made by the first call: what only compiles needs none
        self._key = ("triton bias", problem.neighborhood, problem.lengths, batch, problem.heads, config)
        self._dtype = problem.dtype
        self._step = prod(config.tile) * prod(config.step)
        self.programs = sum(own.steps * own.shares for own in self._work)
        programs = tiles_of(problem, config)
        self.count = batch * problem.heads * programs * classes.steps * self._step
        axes = prepared.arguments()[0]
        numbers = problem.heads, batch, programs
        arguments = (*numbers, classes, axes, config.tile, config.step, config.warps, prepared.flags(config))
        grid = (self.programs, problem.heads, 1)
        self._launch = Launch(bias_gradient_of_classes_kernel, grid, arguments, options_of(4, 1, prepared.chained))

    def __call__(self, grad_scores: Tensor, partial: Tensor, aligned: bool) -> None:
        """Write the programs' partial gradients, `[programs, H, 2*K0-1, ...]`."""
        table = self._table
        if table is None:
            table = self._table = table_of(self._key, self._device, lambda: _rows(self._work))
        in_use(table)
        sums = partial.new_empty(self._launch.grid[0] * self._launch.grid[1] * self._step)
        self._launch((grad_scores, table, sums, partial), aligned)

    def compiled(self) -> Job:
        """What compiles it."""
        sums = stand_in(torch.float32)
        return partial(self._launch.compile, (stand_in(self._dtype), stand_in(torch.int32), sums, sums))


def entries_at_once(problem: Problem, config: Tiling, classes: Classes) -> int:
    """How many batch entries' gradients of scores there is room for."""
    scores = classes.steps * prod(config.tile) * prod(config.step) * problem.heads * tiles_of(problem, config)
    most = max(1, SCRATCH // (scores * problem.dtype.itemsize))
    return -(-problem.batch // -(-problem.batch // most))


class _Along(NamedTuple):
    """Tiles of one class along an axis: the first of them and how many, the groups, and how long the box of each is."""

    first: int
    tiles: int
    group: int
    groups: int
    extent: int


class _Work(NamedTuple):
    """What programs of a head do with the tiles of one class: each a step of their boxes, and some of the pairs.

    Attributes:
        steps: of a box.
        pairs: of a tile and a batch entry, the latter counted fastest.
        own: pairs of a program, the last one's may be fewer.
        shares: programs of a step.
        columns: per axis the class's first tile, how many tiles, its first dilation group, how many groups.
    """

    steps: int
    pairs: int
    own: int
    shares: int
    columns: list[int]


def _work(problem: Problem, config: Tiling, classes: Classes, batch: int) -> list[_Work]:
    """About as many programs of a head as are enough; more where there are more classes and steps."""
    each = [
        list(_along(problem, config, axis, before, after))
        for axis, (before, after) in enumerate(zip(classes.before, classes.after))
    ]
    combinations = []
    for chosen in product(*each):
        pairs = batch * prod(c.tiles * c.groups for c in chosen)
        combinations.append((chosen, pairs, -(-prod(c.extent for c in chosen) // prod(config.step))))
    total = sum(pairs * steps for _, pairs, steps in combinations)
    most = min(MOST_ROWS, SCRATCH // _table_bytes(problem))
    share = max(1, -(-total // min(most, -(-ENOUGH_OF_CLASSES // problem.heads))))
    found = []
    for chosen, pairs, steps in combinations:
        own = -(-pairs // -(-pairs // share))
        columns = [value for column in list(zip(*chosen))[:4] for value in column]
        found.append(_Work(steps, pairs, own, -(-pairs // own), columns))
    return found


def _rows(work: Sequence[_Work]) -> Tensor:
    """`[programs, 3 + 4 * rank]`, the longest first: a program's step, its first pair, how many pairs, the columns.

    Thousands of rows, put together as bytes: torch's operations on so few numbers may wait for busy cores.
    """
    by_count: dict[int, array[int]] = {}
    width = 3 + len(work[0].columns)
    for own in work:
        whole = own.pairs // own.own * own.own
        for firsts in (range(0, whole, own.own), range(whole, own.pairs, own.own)):
            if firsts:
                count = min(own.own, own.pairs - firsts[0])
                block = array("i")
                for step in range(own.steps):
                    block.extend(array("i", (step, 0, count, *own.columns)) * len(firsts))
                block[1::width] = array("i", firsts) * own.steps
                by_count.setdefault(count, array("i")).extend(block)
    rows = array("i")
    for _, each in sorted(by_count.items(), reverse=True):
        rows.extend(each)
    return torch.frombuffer(rows, dtype=torch.int32).view(-1, width)


def _along(problem: Problem, config: Tiling, i: int, before: int, after: int) -> Iterator[_Along]:
    axis, length, tile = problem.neighborhood.axes[i], problem.lengths[i], config.tile[i]
    for kind in alike(axis, length):
        tiles = -(-kind.length // tile)
        last = max(before, tiles - after)  # the first of those after
        for first, end in [*((n, n + 1) for n in range(min(before, tiles))), (before, last)] + [
            (n, n + 1) for n in range(last, tiles)
        ]:
            if first < end:
                queries = (first * tile, min((first + 1) * tile, kind.length))
                start, stop = key_interval(axis, kind.length, queries)
                yield _Along(first, end - first, kind.first, kind.count, stop - start)


def _read(inputs: Inputs, table: Tensor | None) -> tuple[Tensor | None, ...]:
    return inputs.query, inputs.key, inputs.value, inputs.rpb, inputs.key_mask, inputs.window_sizes, table


def _table_bytes(problem: Problem) -> int:
    (window,) = {n.window for n in problem.neighborhoods}
    return 4 * problem.heads * prod(2 * k - 1 for k in window if k is not None)
