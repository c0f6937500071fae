"""The gradient of the bias table: its launch and scratch.

See `vicinal.backends.triton.kernels.bias_gradient`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from operator import mul
from typing import NamedTuple

import torch
from torch import Tensor

from vicinal.backends.gpu.arguments import precision_of
from vicinal.backends.gpu.launch import Launch, options_of
from vicinal.backends.gpu.run import Run
from vicinal.backends.gpu.strides import empty
from vicinal.backends.triton.config import Tiling
from vicinal.backends.triton.estimate import LONG_ROW, row_bytes
from vicinal.backends.triton.kernels.bias_gradient import bias_gradient_kernel, bias_gradient_of_classes_kernel
from vicinal.backends.triton.kernels.starts import Classes
from vicinal.backends.triton.launch import Prepared, tiles_of
from vicinal.backends.triton.parts import Call
from vicinal.geometry.tiles import alike, key_interval
from vicinal.problem import Problem

TILES = {1: (32,), 2: (4, 8), 3: (2, 4, 4)}  # of queries and of keys: what a sum along diagonals has room for
OF_LONG_ROWS = {1: (16,), 2: (4, 4), 3: (2, 2, 4)}
SCRATCH = 2**28  # bytes of partial gradients, at most (but one table per head); of scores' gradients, at most as many
ENOUGH_PROGRAMS = 1024  # fill a GPU, with 4 warps each
ENOUGH_OF_CLASSES = 1024  # likewise, where they only sum, many tiles at a time; more were slower on an H200
MOST_ROWS = 1 << 14  # of work that is listed


class BiasGradient:
    """The gradient of the bias table by a kernel of its own, pair by pair."""

    def __init__(self, prepared: Prepared) -> None:
        problem = prepared.problem
        tile = (OF_LONG_ROWS if row_bytes(problem) > LONG_ROW else TILES)[problem.rank]
        config = Tiling(tile, tile, warps=4, stages=1)
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
        self._heads = prepared.table
        self._launch = Launch(bias_gradient_kernel, grid, arguments, options)

    def __call__(self, run: Run, call: Call) -> dict[str, Tensor | None]:
        (query, key, value, _, _, rpb, *masks), (_, lse, grad_output, _), delta = call
        assert rpb is not None
        partial = rpb.new_zeros((rpb.shape[0], self._launch.grid[0], *rpb.shape[1:]), dtype=torch.float32)
        run.launch(self._launch, query, key, value, rpb, *masks, self._heads, lse, grad_output, delta, partial)
        return {"rpb": partial.sum(1).to(rpb.dtype)}


class SumOfClasses:
    """The bias gradient of some batch entries from their scores' gradients, where tiles are of classes.

    Attributes:
        count: of the elements of the scores' gradients.
        programs: how many there are of a head; each has a partial gradient.
    """

    def __init__(self, prepared: Prepared, config: Tiling, classes: Classes, batch: int) -> None:
        """Of tiles of queries, and `batch` entries."""
        problem = prepared.problem
        entries = batch // config.abreast
        self._work, self._device = _work(problem, config, classes, entries), prepared.device
        self._table: Tensor | None = None  # made by the first call
        self._step = prod(config.tile) * prod(config.step)
        self.programs = sum([own.programs for own in self._work])
        self._key = ("triton bias", problem.neighborhood, problem.lengths, batch, problem.heads, config, self.programs)
        programs = tiles_of(problem, config)
        self.count = entries * problem.heads * programs * classes.steps * self._step
        axes = prepared.arguments()[0]
        numbers = problem.heads, programs
        tiled = config.tile, config.step, config.warps, prepared.flags(config), config.abreast
        arguments = (*numbers, classes, axes, *tiled)
        grid = (self.programs, problem.heads, 1)
        self._launch = Launch(bias_gradient_of_classes_kernel, grid, arguments, options_of(4, 1, prepared.chained))

    def __call__(self, run: Run, grad_scores: Tensor, partial: Tensor) -> None:
        """Write the programs' partial gradients, `[programs, H, 2*K0-1, ...]`."""
        table = self._table
        if table is None:
            table = self._table = run.table(self._key, self._device, lambda: _rows(self._work))
        run.in_use(table)
        sums = empty(partial, (self._launch.grid[0] * self._launch.grid[1] * self._step,))
        run.launch(self._launch, grad_scores, table, sums, partial)


def entries_at_once(problem: Problem, config: Tiling, classes: Classes) -> int:
    """How many batch entries' gradients of scores there is room for."""
    scores = classes.steps * prod(config.tile) * prod(config.step) * problem.heads * tiles_of(problem, config)
    most = max(1, SCRATCH // (scores * problem.dtype.itemsize))
    entries = problem.batch // config.abreast
    return -(-entries // -(-entries // most)) * config.abreast


class _Along(NamedTuple):
    """Tiles of one class along an axis: the first of them and how many, the groups, and how long the box of each is."""

    first: int
    tiles: int
    group: int
    groups: int
    extent: int


class _Dimension(NamedTuple):
    """So many tiles that are equally far apart in memory, counted in tiles."""

    length: int
    apart: int


class _Work(NamedTuple):
    """What programs of a head do with the tiles of one class: each a step of their boxes, and some of the tiles.

    Attributes:
        steps: of a box.
        begin: the number of the first tile, of those of all batch entries and heads; for the first head.
        line: the longest of the dimensions along which the tiles lie, batch entries among them: walked innermost.
        rest: the other dimensions, two for each axis: tiles and dilation groups.
        lines: how many there are.
        own: of a program: lines, and tiles of a line (all, or a part of one line's); the last one's may be fewer.
        first: the class's first tile along each axis, and its first dilation group.
    """

    steps: int
    begin: int
    line: _Dimension
    rest: list[_Dimension]
    lines: int
    own: tuple[int, int]
    first: list[int]

    @property
    def programs(self) -> int:
        """How many there are."""
        own_lines, own_tiles = self.own
        return self.steps * -(-self.lines // own_lines) * -(-self.line.length // own_tiles)

    def shares(self) -> Iterator[tuple[int, int, Sequence[int], Sequence[int]]]:
        """Programs of a step, those of as many lines and tiles together: how many, then where lines and tiles begin.

        Each begins at one of the former and one of the latter.
        """
        own_lines, own_tiles = self.own
        for lines, first_lines in _cut(self.lines, own_lines):
            for tiles, firsts in _cut(self.line.length, own_tiles):
                yield lines, tiles, first_lines, firsts


def _cut(length: int, size: int) -> Iterator[tuple[int, Sequence[int]]]:
    """Parts of `size`, and a smaller one: how long they are, and where each begins."""
    rest = length % size
    if rest < length:
        yield size, range(0, length - rest, size)
    if rest:
        yield rest, (length - rest,)


def _work(problem: Problem, config: Tiling, classes: Classes, entries: int) -> list[_Work]:
    """About as many programs of a head as are enough; more where there are more classes and steps.

    `entries`: how many tiles' scores' gradients there are of a tile; each is a mean over the batch entries abreast.
    """
    axes = list(zip(problem.neighborhood.axes, problem.lengths, config.tile))
    tiles = [max(-(-kind.length // tile) for kind in alike(axis, length)) for axis, length, tile in axes]
    apart: list[int] = []  # of neighbors along each axis, then of dilation groups
    programs = 1
    for count in (*reversed(tiles), *(axis.dilation for axis, _, _ in reversed(axes))):
        apart.insert(0, programs)
        programs *= count
    apart = apart[len(axes) :] + apart[: len(axes)]
    each = [
        list(_along(problem, config, axis, before, after))
        for axis, (before, after) in enumerate(zip(classes.before, classes.after))
    ]
    found = []
    total, step, apart_of_groups = 0, prod(config.step), apart[len(axes) :]
    of_entries = _Dimension(entries, problem.heads * programs)
    for chosen in product(*each):
        firsts, counts, group, groups, extents = zip(*chosen)
        dimensions = [of_entries, *map(_Dimension, counts, apart), *map(_Dimension, groups, apart_of_groups)]
        line = max(dimensions)
        dimensions.remove(line)
        steps, lines = -(-prod(extents) // step), prod([d.length for d in dimensions])
        begin = sum(map(mul, firsts, apart)) + sum(map(mul, group, apart_of_groups))
        found.append(_Work(steps, begin, line, dimensions, lines, (lines, line.length), [*firsts, *group]))
        total += steps * lines * line.length
    most = min(MOST_ROWS, SCRATCH // _table_bytes(problem))
    share = max(1, -(-total // min(most, -(-ENOUGH_OF_CLASSES // problem.heads))))
    return [one._replace(own=_own(one, share)) for one in found]


def _own(work: _Work, share: int) -> tuple[int, int]:
    """Of a program, so many tiles at most: lines, and tiles of a line."""
    length = work.line.length
    if share < length:
        return 1, -(-length // -(-length // share))
    most = share // length
    return -(-work.lines // -(-work.lines // most)), length


def _rows(work: Sequence[_Work]) -> Tensor:
    """`[programs, 6 + 6 * rank]`, the longest first, what a program does.

    Its step; the number of its first tile; its first line, how many lines; tiles of a line and how far apart these
    are; the lengths of the other dimensions, how far apart those are; the class's first tile and dilation group.

    Thousands of rows, put together as bytes: torch's operations on so few numbers may wait for busy cores.
    """
    by_count: dict[int, array[int]] = {}
    for own in work:
        apart = own.line.apart
        shared = [apart, *[d.length for d in own.rest], *[d.apart for d in own.rest], *own.first]
        for lines, tiles, first_lines, firsts in own.shares():
            begins = array("i", [own.begin + first * apart for first in firsts]) * len(first_lines)
            of_lines = array("i", [first_line for first_line in first_lines for _ in firsts])
            row = [0, 0, 0, lines, tiles, *shared]
            block = array("i", row) * (len(begins) * own.steps)  # its first three columns follow
            for step in range(own.steps):
                place, turn = step * len(row), own.steps * len(row)  # of a begin's rows one after the other
                block[place::turn] = array("i", [step]) * len(begins)
                block[place + 1 :: turn] = begins
                block[place + 2 :: turn] = of_lines
            by_count.setdefault(lines * tiles, array("i")).extend(block)
    rows = array("i")
    for _, each in sorted(by_count.items(), reverse=True):
        rows.extend(each)
    return torch.frombuffer(rows, dtype=torch.int32).view(-1, 6 + 3 * len(work[0].first))


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


def _table_bytes(problem: Problem) -> int:
    (window,) = {n.window for n in problem.neighborhoods}
    return 4 * problem.heads * prod(2 * k - 1 for k in window if k is not None)
