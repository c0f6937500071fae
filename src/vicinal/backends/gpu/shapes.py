"""How the tokens of a tile, and of a step, are spread over the axes: what computes the least.

Each shape is a kernel of its own. So what is chosen does not depend on the lengths of axes that are long, and of short
ones only roughly: images of any size share kernels.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from itertools import product
from math import ceil, inf
from operator import add, itemgetter, mul

from vicinal.geometry.neighborhood import Axis, Boundary, Neighborhood
from vicinal.geometry.walks import Walks, walks
from vicinal.problem import Problem

Shape = tuple[int, ...]
Kind = tuple[tuple[int, tuple[Walks, ...]], ...]  # numbers of heads, and their axes
TRIED = 2  # shapes of tiles
LISTED = 8
SHORT = 20  # tokens of an axis: from so many on, and twice the window, all are alike
LONG = 1 << 20
ROUNDED = 4  # shorter axes are alike in fours
ALIKE = 1.12  # ratio of two costs that may come in another order, borders counted
NEAR = 5  # of these, at most
MASKED = 0.2  # of a step, what its mask costs, about


@lru_cache(maxsize=4096)
def shapes(
    kind: Kind, rows: int, columns: int, tried: int = TRIED, most: int = LISTED
) -> tuple[tuple[Shape, Shape], ...]:
    """Shapes of a tile of `rows` tokens and of its steps of `columns`, the best guess first; so many, at `most`.

    `tried`: how many shapes of tiles are looked at, those that compute the least.
    """
    axes = kind[0][1]
    if len(axes) == 1:
        return (((rows,), (columns,)),)
    every = every_shape(columns, len(axes))
    tiles = [tile for _, tile in tile_shapes(kind, rows, columns)[:tried]]
    costs = [every.costs(_steps(kind, tile, columns)) for tile in tiles]
    lowest = [min(own) for own in costs]
    alike = ALIKE * min(lowest)
    limit = alike if most == 1 else inf  # the first one is among these
    found = [
        (n, tile, step)
        for tile, own, least in zip(tiles, costs, lowest)
        if least <= limit
        for n, step in zip(own, every.shapes)
        if n <= limit
    ]
    found.sort(key=_COST)
    near = min(NEAR, bisect_right(found, alike, key=_COST))
    if near > 1:  # borders tell
        found[:near] = sorted(found[:near], key=lambda each: _walked(axes, each[1], each[2]))
    return tuple([(tile, step) for _, tile, step in found[:most]])


def _walked(axes: Sequence[Walks], tile: Shape, step: Shape) -> float:
    """Steps of all tiles, those that need a mask counted as more."""
    steps = full = 1.0
    for axis, n, taken in zip(axes, tile, step):
        tiles, each, _, own_full = axis.walk[n, taken]
        steps, full = steps * tiles * each, full * own_full
    return steps * (1 + MASKED * (1 - full))


def tile_shapes(kind: Kind, rows: int, columns: int) -> list[tuple[int, Shape]]:
    """All shapes of a tile by the scores that all tiles compute in cubic steps of `columns`, the fewest first."""
    return _tile_shapes(kind, rows, int(columns ** (1 / len(kind[0][1]))) // 2)  # half of a step is in vain


@lru_cache(maxsize=1024)
def _tile_shapes(kind: Kind, rows: int, more: int) -> list[tuple[int, Shape]]:
    return cheapest(rows, [(heads, [w.works(rows, more) for w in axes]) for heads, axes in kind])


def _steps(kind: Kind, tile: Shape, columns: int) -> list[tuple[int, list[list[int]]]]:
    """The steps of all tiles, a table for each set of heads (`cheapest`)."""
    tables = []
    for heads, axes in kind:
        costs = []
        for axis, size in zip(axes, tile):
            heads *= axis.tiles[size].number
            costs.append(axis.middle[size, columns])
        tables.append((heads, costs))
    return tables


def cheapest(size: int, tables: Sequence[tuple[int, Sequence[Sequence[int]]]]) -> list[tuple[int, Shape]]:
    """Shapes of `size` tokens, the cheapest first: by products of costs, one for each axis and side 1, 2, 4, ...

    Sums of products, where there are several tables: `(factor, costs)`.
    """
    own = every_shape(size, len(tables[0][1]))
    return sorted(zip(own.costs(tables), own.shapes), key=_COST)


_COST = itemgetter(0)


class Shapes:
    """All shapes of `rank` powers of two whose product is `size`, at least `least` along the last axis; cubes first."""

    def __init__(self, size: int, rank: int, least: int) -> None:
        total = size.bit_length() - 1
        every = [(*own, total - sum(own)) for own in product(range(total + 1), repeat=rank - 1) if sum(own) <= total]
        exponents = [own for own in sorted(every, key=max) if 1 << own[-1] >= least]
        self.shapes = [tuple([1 << e for e in own]) for own in exponents]
        self._pick = [_picker([own[a] for own in exponents]) for a in range(rank)]

    def costs(self, tables: Sequence[tuple[int, Sequence[Sequence[int]]]]) -> list[int]:
        """Of each shape, see `cheapest`."""
        sums: list[int] = []
        for factor, (first, *rest) in tables:
            own = self.products([[factor * n for n in first], *rest])
            sums = list(map(add, sums, own)) if sums else own
        return sums

    def products(self, costs: Sequence[Sequence[int]]) -> list[int]:
        """Of each shape, of the costs of its sides."""
        return _products([pick(own) for pick, own in zip(self._pick, costs)])

    def the_cheapest(self, costs: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> list[tuple[int, Shape]]:
        """For each axis the first of the cheapest shapes, where costs along it are those of `others`."""
        each, found = [pick(own) for pick, own in zip(self._pick, costs)], []
        for axis, (pick, own) in enumerate(zip(self._pick, others)):
            products = _products([pick(own), *each[:axis], *each[axis + 1 :]])
            lowest = min(products)
            found.append((lowest, self.shapes[products.index(lowest)]))
        return found


def _products(columns: Sequence[Sequence[int]]) -> list[int]:
    """Of their elements, one of each."""
    found: Iterable[int] = columns[0]
    for column in columns[1:]:
        found = map(mul, found, column)
    return list(found)


def _picker(places: Sequence[int]) -> Callable[[Sequence[int]], Sequence[int]]:
    """Of a list the elements at these places."""
    one = itemgetter(*places)
    return one if len(places) > 1 else lambda values: [one(values)]


@cache
def every_shape(size: int, rank: int, least: int = 1) -> Shapes:
    """The `Shapes` of so many tokens, made once."""
    return Shapes(size, rank, least)


def shapes_of(size: int, rank: int) -> list[Shape]:
    """All shapes of `rank` powers of two whose product is `size`; cubes first."""
    return every_shape(size, rank).shapes


@lru_cache(maxsize=1024)
def kind_of(problem: Problem, inverse: bool) -> Kind:
    """What shapes are chosen by: the same for problems whose axes are alike (`_alike`), so that they share kernels."""
    found = sampled(problem)
    lengths = problem.key_lengths if inverse else problem.lengths
    return tuple(
        [
            (heads if len(found) > 1 else 1, tuple([_alike(a, n, inverse) for a, n in zip(own.axes, lengths)]))
            for own, heads in found
        ]
    )


def _alike(axis: Axis, length: int, inverse: bool) -> Walks:
    """Of an axis that stands for others of about that length: a long one, or one of a few short ones.

    Of a dilated axis a group; of a part all of it, as if it were a whole axis.
    """
    assert axis.window is not None
    group = -(-length // axis.dilation)
    window = min(axis.window, group)
    group = LONG if group >= max(SHORT, 2 * window) else -(-group // ROUNDED) * ROUNDED
    return _standing_for(window, min(axis.stride, window), axis.causal, axis.boundary, group, inverse)


@lru_cache(maxsize=4096)
def _standing_for(window: int, stride: int, causal: bool, boundary: Boundary, length: int, inverse: bool) -> Walks:
    """One object for all that are alike: kinds are told apart by it."""
    return Walks(Axis(window, stride, 1, causal, boundary), length, inverse)


@lru_cache(maxsize=1024)
def sampled_walks(problem: Problem, inverse: bool) -> Kind:
    """Of the neighborhoods that stand for all: their heads, and what their axes walk."""
    lengths = problem.lengths
    return tuple(
        [(heads, tuple([walks(a, n, inverse) for a, n in zip(own.axes, lengths)])) for own, heads in sampled(problem)]
    )


def sampled(problem: Problem) -> list[tuple[Neighborhood, int]]:
    """The problem's distinct neighborhoods with their numbers of heads; of many, an evenly spaced few."""
    if not problem.per_head:
        return [(problem.neighborhood, problem.heads)]
    distinct = list(dict.fromkeys(problem.neighborhoods))
    few = distinct[:: ceil(len(distinct) / 4)]
    return [(n, ceil(problem.heads / len(few))) for n in few]
