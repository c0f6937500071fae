"""Counting: what the tiles along one axis walk, in closed form: a million tokens take as long as a thousand.

A tile walks its box (`vicinal.geometry.tiles`) in steps. Along a dilation group both ends of a window rest at the
borders and move with the query between them, so tiles are of few kinds. Where both ends rest, or both move, tiles are
alike, up to their place in a block of `stride` queries: one period of tiles stands for all. Where one end moves alone,
as the far one does at the first tokens of a causal axis, boxes grow evenly from a tile to the one a period of tiles and
steps later: the first and the last of those stand for the rest, which lie on the line between them.

`tests/geometry/test_count.py` counts tile by tile.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from math import lcm
from typing import NamedTuple

from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.span import Interval
from vicinal.geometry.tiles import Alike, alike, key_interval, query_interval
from vicinal.geometry.window import (
    first_query_starting_at,
    first_query_stopping_after,
    window_start,
    window_stop,
)


class Count(NamedTuple):
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
    for group in alike(axis, length, inverse):
        extents = _extents(axis, group, tile, inverse)
        longest = max(e.longest for e in extents)
        tiles += group.count * -(-_size(group.own) // tile)
        steps += group.count * sum(e.steps(step) for e in extents)
        covered += group.count * sum(e.total for e in extents)
        widest = max(widest, longest)
        passes_end = passes_end or -(-longest // step) * step > _size(group.other)
    return Count(tiles, steps, -(-widest // step), covered, widest, passes_end)


@lru_cache(maxsize=4096)
def widest(axis: Axis, length: int, tile: int, inverse: bool = False) -> int:
    """`Count.widest` of a whole axis whose windows move with every query (a stride of 1), from three tiles of a group.

    Boxes grow from tile to tile until their starts begin to move, are alike then, and shrink once their stops rest.
    """
    interval, most = query_interval if inverse else key_interval, 0
    for group in alike(axis, length):
        n = group.length
        if inverse:
            moves, rests = window_stop(axis, n, 0), window_start(axis, n, n - 1)
        else:
            moves, rests = first_query_starting_at(axis, n, 1), first_query_stopping_after(axis, n, n - 1)
        before = (moves - 1) // tile
        for first in {before * tile, min(before + 1, (n - 1) // tile) * tile, rests // tile * tile}:
            start, stop = interval(axis, n, (first, min(first + tile, n)))
            most = max(most, stop - start)
    return most


def _start(axis: Axis, group: Alike, token: int, inverse: bool) -> int:
    """Where the interval of a token starts: of a query its keys, of a key those of its queries that are given."""
    if not inverse:
        return window_start(axis, group.length, token)
    return _within(first_query_stopping_after(axis, group.length, token), group.other)


def _stop(axis: Axis, group: Alike, token: int, inverse: bool) -> int:
    """Where it stops."""
    if not inverse:
        return window_stop(axis, group.length, token)
    return _within(first_query_starting_at(axis, group.length, token + 1), group.other)


def _within(position: int, interval: Interval) -> int:
    return min(max(position, interval[0]), interval[1])


def _size(interval: Interval) -> int:
    return interval[1] - interval[0]


def period(axis: Axis, tile: int) -> int:
    """After how many tiles they are at the same place in a block of `stride` queries."""
    return lcm(tile, axis.stride) // tile


@lru_cache(maxsize=4096)
def runs(axis: Axis, group: Alike, tile: int, inverse: bool = False) -> tuple[Interval, ...]:
    """Intervals of the tiles of a dilation group, in each of which tiles repeat.

    A tile is as the one a `period` before it, but that its keys start, and stop, further on: each by as much all
    along the interval.
    """
    size = _size(group.own)
    cuts = {0, size // tile, -(-size // tile)}  # a last tile that is shorter is by itself
    for token in _turns(axis, group, inverse):
        place = _within(token, group.own) - group.own[0]
        cuts |= {place // tile, -(-place // tile)}  # so is one within which an end of the intervals starts or rests
    return tuple(pairwise(sorted(cuts)))


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


def _extents(axis: Axis, group: Alike, tile: int, inverse: bool) -> tuple[_Extents, ...]:
    """The lengths of the boxes of all tiles of a group."""

    def extent_of(first: int) -> int:
        last = min(first + tile, group.own[1]) - 1
        return _stop(axis, group, last, inverse) - _start(axis, group, first, inverse)

    every, found = period(axis, tile), []
    for first, beyond in runs(axis, group, tile, inverse):
        for place in range(first, min(first + every, beyond)):
            one, many = group.own[0] + place * tile, (beyond - 1 - place) // every + 1
            extent = extent_of(one)
            growth = extent_of(one + every * tile) - extent if many > 1 else 0
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


@lru_cache(maxsize=4096)
def _turns(axis: Axis, group: Alike, inverse: bool) -> tuple[int, ...]:
    """The first tokens whose interval starts, or stops, beyond the first token's, and where the last token's does."""
    n, (first, beyond) = group.length, group.own
    if not inverse:
        return (
            first_query_starting_at(axis, n, window_start(axis, n, first) + 1),
            first_query_starting_at(axis, n, window_start(axis, n, beyond - 1)),
            first_query_stopping_after(axis, n, window_stop(axis, n, first)),
            first_query_stopping_after(axis, n, window_stop(axis, n, beyond - 1) - 1),
        )
    # A key's queries start beyond query i where i's window stops, and stop beyond it where it starts.
    each = (
        (window_stop, _start(axis, group, first, True)),
        (window_stop, _start(axis, group, beyond - 1, True) - 1),
        (window_start, _stop(axis, group, first, True)),
        (window_start, _stop(axis, group, beyond - 1, True) - 1),
    )
    return tuple(rule(axis, n, query) if group.other[0] <= query < group.other[1] else beyond for rule, query in each)
