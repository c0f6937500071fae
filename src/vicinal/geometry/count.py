"""Counting: what the tiles along one axis walk, in closed form: a million tokens take as long as a thousand.

A tile walks its box (`vicinal.geometry.tiles`) in steps. Along a dilation group both ends of a window rest at the
borders and move with the query between them, so tiles are of few kinds. Where both ends rest, or both move, tiles are
alike, up to their place in a block of `stride` queries: one period of tiles stands for all. Where one end moves alone,
as the far one does at the first tokens of a causal axis, boxes grow evenly from a tile to the one a period of tiles and
steps later: the first and the last of those stand for the rest, which lie on the line between them.

`tests/geometry/test_count.py` counts tile by tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import lcm
from typing import NamedTuple

from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.tiles import Interval, alike
from vicinal.geometry.window import (
    first_query_starting_at,
    first_query_stopping_after,
    window_start,
    window_stop,
)

Rule = Callable[[Axis, int, int], int]


@dataclass(frozen=True)
class Count:
    """What the tiles of an axis walk, all dilation groups together.

    Attributes:
        tiles: how many there are.
        steps: of all tiles.
        longest: the steps of one tile, at most.
        covered: tokens of all boxes.
        widest: tokens of one box, at most.
        passes_end: whether the steps over some box are longer, together, than its dilation group.
    """

    tiles: int
    steps: int
    longest: int
    covered: int
    widest: int
    passes_end: bool


@lru_cache(maxsize=16384)
def count(axis: Axis, length: int, tile: int, step: int, inverse: bool = False) -> Count:
    """Counts tiles of `tile` queries that walk their keys `step` at a time; `inverse`: tiles of keys, their queries."""
    tiles = steps = covered = widest = 0
    passes_end = False
    for group in alike(axis, length):
        extents = _extents(axis, group.length, tile, inverse)
        longest = max(e.longest for e in extents)
        tiles += group.count * -(-group.length // tile)
        steps += group.count * sum(e.steps(step) for e in extents)
        covered += group.count * sum(e.total for e in extents)
        widest = max(widest, longest)
        passes_end = passes_end or -(-longest // step) * step > group.length
    return Count(tiles, steps, -(-widest // step), covered, widest, passes_end)


@lru_cache(maxsize=16384)
def full_steps(axis: Axis, length: int, tile: int, step: int, inverse: bool = False) -> int:
    """Of the steps that `count` counts, laid from the first token of each box, those that need no mask."""
    start, stop = _INVERSE if inverse else _FORWARD
    full = 0
    for group in alike(axis, length):
        n, halves_full = group.length, 0
        for first, halves in _representatives(axis, n, tile, step, inverse):
            begin = start(axis, n, first)
            low, high = start(axis, n, min(first + tile, n) - 1) - begin, stop(axis, n, first) - begin
            halves_full += halves * max(high // step - -(-low // step), 0)
        full += group.count * halves_full // 2
    return full


@dataclass(frozen=True)
class PairCount:
    """What pairs of query tiles, side by side along an axis, walk; all dilation groups together.

    Attributes:
        pairs: how many there are.
        steps: of all tiles, two a pair, less those passed over.
        full: steps that need no mask.
    """

    pairs: int
    steps: int
    full: int


@lru_cache(maxsize=16384)
def count_pairs(axis: Axis, length: int, tile: int, step: int, passes: int | None) -> PairCount:
    """Counts pairs of tiles that walk the keys of both, of which each may pass over some.

    The first of a pair needs none of the last steps, the second none of the first ones.

    Args:
        tile: queries of one of the two.
        passes: how many steps each may pass over; None: as many as the other one passes over, too.
    """
    pairs = steps = full = 0
    for group in alike(axis, length):
        n, group_steps, group_full = group.length, 0, 0
        for first, halves in _representatives(axis, n, 2 * tile, step, False):
            begin, end = window_start(axis, n, first), window_stop(axis, n, min(first + 2 * tile, n) - 1)
            ends = min(first + tile, n) - 1, min(first + 2 * tile, n) - 1
            starts = first, min(first + tile, n - 1)  # past the end there may be no second tile: the last query's
            walked = -(-(end - begin) // step)
            passed = walked - -(-(window_stop(axis, n, ends[0]) - begin) // step)
            ahead = (window_start(axis, n, starts[1]) - begin) // step
            most = min(passed, ahead) if passes is None else passes
            group_steps += halves * (2 * walked - min(passed, most) - min(ahead, most))
            for one, other in zip(starts, ends):
                low, high = window_start(axis, n, other) - begin, window_stop(axis, n, one) - begin
                group_full += halves * max(high // step - -(-low // step), 0)
        pairs += group.count * -(-n // (2 * tile))
        steps += group.count * group_steps // 2
        full += group.count * group_full // 2
    return PairCount(pairs, steps, full)


def _past_queries(axis: Axis, n: int, key: int) -> int:
    return first_query_starting_at(axis, n, key + 1)


# The interval of each token: a query's keys, a key's queries.
_FORWARD: tuple[Rule, Rule] = window_start, window_stop
_INVERSE: tuple[Rule, Rule] = first_query_stopping_after, _past_queries


def period(axis: Axis, tile: int) -> int:
    """After how many tiles they are at the same place in a block of `stride` queries."""
    return lcm(tile, axis.stride) // tile


def runs(axis: Axis, n: int, tile: int, inverse: bool = False) -> list[Interval]:
    """Intervals of the tiles of a group of `n` tokens, in each of which tiles repeat.

    A tile is as the one a `period` before it, but that its keys start, and stop, further on: each by as much all
    along the interval.
    """
    cuts = {0, n // tile, -(-n // tile)}  # a last tile that is shorter is by itself
    for token in _turns(axis, n, inverse):
        cuts |= {token // tile, -(-token // tile)}  # so is one within which an end of the intervals starts or rests
    return list(pairwise(sorted(cuts)))


class _Extents(NamedTuple):
    """The lengths of the boxes of `tiles` tiles: an arithmetic series."""

    first: int
    growth: int
    tiles: int

    @property
    def longest(self) -> int:
        return self.first + max(self.growth, 0) * (self.tiles - 1)

    @property
    def total(self) -> int:
        return self.tiles * self.first + self.growth * (self.tiles * (self.tiles - 1) // 2)

    def steps(self, step: int) -> int:
        """How many steps all the boxes are."""
        if not self.growth:
            return self.tiles * -(-self.first // step)
        least = self.first + min(self.growth, 0) * (self.tiles - 1)
        return _floor_sum(self.tiles, abs(self.growth), least + step - 1, step)


@lru_cache(maxsize=4096)
def _extents(axis: Axis, n: int, tile: int, inverse: bool) -> tuple[_Extents, ...]:
    """The lengths of the boxes of all tiles of a group of `n` tokens."""
    start, stop = _INVERSE if inverse else _FORWARD
    every, found = period(axis, tile), []
    for first, beyond in runs(axis, n, tile, inverse):
        for place in range(first, min(first + every, beyond)):
            one, many = place * tile, (beyond - 1 - place) // every + 1
            extent = stop(axis, n, min(one + tile, n) - 1) - start(axis, n, one)
            growth = 0
            if many > 1:
                other = one + every * tile
                growth = stop(axis, n, other + tile - 1) - start(axis, n, other) - extent
            found.append(_Extents(extent, growth, many))
    return tuple(found)


def _floor_sum(count: int, slope: int, offset: int, divisor: int) -> int:
    """The sum of `(slope * i + offset) // divisor` over `i` below `count`; none of them negative."""
    total = 0
    while True:
        total += count * (count - 1) // 2 * (slope // divisor) + count * (offset // divisor)
        slope, offset = slope % divisor, offset % divisor
        top = slope * count + offset
        if top < divisor:
            return total
        # The points below the line, counted along the other axis: slope and divisor change places (Euclid's algorithm).
        count, offset, slope, divisor = top // divisor, top % divisor, divisor, slope


def _representatives(axis: Axis, n: int, tile: int, step: int, inverse: bool) -> Iterator[tuple[int, int]]:
    """The first tokens of tiles that stand for all tiles of a group of `n` tokens, and for how many halves of tiles.

    Halves, since the first and the last of an arithmetic series stand for half of it each.
    """
    start, stop = _INVERSE if inverse else _FORWARD
    alone = period(axis, tile)
    for first, beyond in runs(axis, n, tile, inverse):
        every, grows = alone, False
        if beyond - first > alone:
            one, other = first * tile, (first + alone) * tile
            grows = start(axis, n, other) - start(axis, n, one) != stop(axis, n, other) - stop(axis, n, one)
            every = lcm(alone * tile, step) // tile if grows else alone
        for place in range(first, min(first + every, beyond)):
            more = (beyond - 1 - place) // every
            if grows and more:
                yield place * tile, more
                yield (place + (more - 1) * every) * tile, more
                yield (place + more * every) * tile, 2  # beside a border there may be no room for a full step
            else:
                yield place * tile, 2 * (more + 1)


@lru_cache(maxsize=16384)
def _turns(axis: Axis, n: int, inverse: bool) -> tuple[int, ...]:
    """The first tokens whose interval starts, or stops, beyond the first token's, and where the last token's does."""
    if not inverse:
        return (
            first_query_starting_at(axis, n, 1),
            first_query_starting_at(axis, n, window_start(axis, n, n - 1)),
            first_query_stopping_after(axis, n, window_stop(axis, n, 0)),
            first_query_stopping_after(axis, n, window_stop(axis, n, n - 1) - 1),
        )
    # A key's queries start beyond query i where i's window stops, and stop beyond it where it starts.
    each = (
        (window_stop, 0),
        (window_stop, first_query_stopping_after(axis, n, n - 1) - 1),
        (window_start, first_query_starting_at(axis, n, 1)),
        (window_start, first_query_starting_at(axis, n, n) - 1),
    )
    return tuple(rule(axis, n, query) if 0 <= query < n else n for rule, query in each)
