"""About how much the tiles along one axis walk, by a few operations: what tilings are compared by.

`vicinal.geometry.count` counts exactly, at fifty times the price. Here an axis is a middle, where all tiles walk alike,
and borders, where windows that shift rest, and others are cut; what lies across the ends of the borders counts as the
middle, and a border that cuts counts by its mean. `longest` is never less than the truth.

What is asked hundreds of times for a problem compares by conditions: Python's `min` and `max` take ten times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import gcd
from typing import NamedTuple, TypeVar

from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.window import CAUSAL, SHIFT, leader_offset, left_reach, mode

TILES = tuple(1 << i for i in range(9))  # tokens along an axis of tiles, and of two of them side by side

Key = TypeVar("Key")
Value = TypeVar("Value")


class Walk(NamedTuple):
    """Of the tiles of an axis, all dilation groups together, each taken to be as long as the longest one.

    Attributes:
        tiles: how many there are.
        steps: of a tile, on average.
        longest: of a tile, at most.
        full: of the steps of a tile of the middle, the share that needs no mask.
    """

    tiles: int
    steps: float
    longest: int
    full: float


class Tiles(NamedTuple):
    """Of the tiles of one size, what all their walks depend on.

    Attributes:
        number: of tiles, of all dilation groups.
        reach: tokens that a tile of the middle walks, the most that its place in a block of `stride` queries allows.
        less, share: others of the middle walk so many; the share of those that walk `reach`.
        most: tokens that some tile walks, at most.
        moved: how far windows of a tile's queries are apart.
        each: how many tiles a dilation group has.
        changed: how many of these borders change: those whose windows rest there, or are cut.
        walked: tokens, on average, of tiles of keys that borders change, or that are a part's.
    """

    number: int
    reach: int
    less: int
    share: float
    most: int
    moved: int
    each: int
    changed: float
    walked: float


class _Kept(dict[Key, Value]):
    """What is made of a key, when it is first asked for."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[Key], Value]) -> None:
        self._make = make

    def __missing__(self, key: Key) -> Value:
        made = self[key] = self._make(key)
        return made


class Walks:
    """Of one axis, tiles of queries and the keys that they walk; `inverse`: tiles of keys and their queries.

    What is asked for is kept: comparing tilings, the same few tiles and steps are met again and again.

    Attributes:
        tiles: by their tokens, `Tiles`.
        walk: by tokens of a tile and of a step, `Walk`.
        middle: by tokens of a tile, and `most`: steps that a tile of the middle takes, of 1, 2, 4, ... up to `most`
            tokens.
        aligned: see `_aligned`.
        pair: see `_pair`.
    """

    def __init__(self, axis: Axis, length: int, inverse: bool) -> None:
        assert axis.window is not None, "resolve the axis first"
        span, whole, own, other = axis.span, length, length, length
        if span is not None:
            whole = span.length
            own, other = (stop - start for start, stop in (span.own(inverse), span.other(inverse)))
        dilation = axis.dilation
        self.dilation = min(dilation, own)
        self.length, self._walked = -(-own // dilation), -(-other // dilation)  # of the longest group
        self.stride, self.inverse, self._mode = axis.stride, inverse, mode(axis)
        self._fewest = other // dilation  # of the shortest group
        self._window = min(axis.window, -(-whole // dilation))
        self._ahead = leader_offset(axis) - left_reach(axis)  # of a block's first query, where its window starts
        if self._mode == CAUSAL:  # windows may be longer than the axis, and blocks of queries with them
            self.stride = min(self.stride, self._window)
        self._is_part = span is not None
        self._borders = (0, self.length) if self._is_part else self._rests()  # a part is of the middle
        # Of the keys of an axis whose windows shift, those whose queries borders make others.
        keys = self.length - self._borders[1] + self._borders[0]
        self._share = 0.0 if self._window >= self._walked else min(1.0, keys / max(1, self.length))
        # Tokens that some tile walks, at most, less its own: one of the middle, wherever it starts, or one beside a
        # border, where a key has half a window's queries more; and what is too short for keys beside one border only.
        shifts = inverse and self._mode == SHIFT
        self._most = self._window - 1 + (self.stride > 1) * self.stride + shifts * (-(-self._window // 2))
        self._short = shifts * 2 * self._window
        self.tiles: Mapping[int, Tiles] = _Kept(self._of)
        self.walk: Mapping[tuple[int, int], Walk] = _Kept(self._walk)
        self.middle: Mapping[tuple[int, int], list[int]] = _Kept(self._middle)
        self.aligned: Mapping[tuple[int, tuple[int, ...], int], list[float]] = _Kept(self._aligned)
        self.pair: Mapping[tuple[int, int, int | None], float] = _Kept(self._pair)
        self._works: Mapping[int, list[int]] = _Kept(self._works_of)

    def works(self, most: int, more: int) -> list[int]:
        """Scores along the axis, of all tiles of 1, 2, 4, ... up to `most` tokens.

        As if they were of the middle, `more` of each for its last step.
        """
        return self._works[more][: most.bit_length()]

    def may_pass_end(self, tile: int, step: int) -> bool:
        """Whether the steps over some box may be longer, together, than its dilation group."""
        return self.walk[tile, step].longest * step > self._fewest

    def _works_of(self, more: int) -> list[int]:
        dilation, length = self.dilation, self.length
        return [dilation * -(-length // tile) * tile * (self._reach(tile) + more) for tile in TILES]

    def _middle(self, of: tuple[int, int]) -> list[int]:
        tile, most = of
        last = self._reach(tile) - 1
        return [(last >> i) + 1 for i in range(most.bit_length())]

    def _aligned(self, of: tuple[int, tuple[int, ...], int]) -> list[float]:
        """How many steps of each size a tile takes on average, of walks that begin at multiples of `unit`.

        Or at multiples of a step, where it is smaller. All are powers of two. Of a tile, steps, and a unit.
        """
        tile, steps, unit = of
        own = self.tiles[tile]
        taken = self._from_multiples(tile, own.less, steps, unit)
        if own.share:
            longer = self._from_multiples(tile, own.reach, steps, unit)
            taken = [own.share * a + (1 - own.share) * b for a, b in zip(longer, taken)]
        return [self._beside_borders(own, step, n) for step, n in zip(steps, taken)]

    def _from_multiples(self, tile: int, tokens: int, steps: Sequence[int], unit: int) -> Sequence[float]:
        """How many steps of each size `tokens` of a tile's walk take, from the last multiple of `unit` before them.

        On average, of tiles of the middle.
        """
        if tokens >= self._walked:
            return [-(-tokens // step) for step in steps]
        if self.stride > 1:  # walks begin where blocks of queries do, more or less
            first, moved = 0, self.stride
        else:
            first, moved = (1 - self._ahead - self._window if self.inverse else self._ahead), tile
        found: list[float] = []
        for step in steps:
            own = min(unit, step)
            every = gcd(moved, own)
            begin, places = first % every, own // every  # beyond a multiple, of `places` places `every` tokens apart
            taken = -(-(begin + tokens) // step)
            rest = taken * step - tokens - begin  # up to so many tokens further on it is as many steps, then one more
            found.append(taken if places == 1 else taken + max(0, places - 1 - rest // every) / places)
        return found

    def _pair(self, of: tuple[int, int, int | None]) -> float:
        """Steps of each of two tiles side by side, on average, which walk the keys of both and pass over some.

        The first needs none of the last steps, the second none of the first ones. Each may pass over `passes` of them;
        None: as many as the other one does. Tiles are of queries. Of a tile, a step, and `passes`.
        """
        tile, step, passes = of
        two = self.tiles[2 * tile]
        own, both = self._reach(tile), two.reach
        walked, aside = -(-both // step), both - own
        last, first = walked - -(-own // step), aside // step
        most = passes
        if most is None:
            most = first if first < last else last
        passed = (last if last < most else most) + (first if first < most else most)
        return self._beside_borders(two, step, walked - passed / 2)

    def _reach(self, tile: int) -> int:
        """See `Tiles`: without what else there is to a tile, where that is simple."""
        if self.stride > 1:
            return self.tiles[tile].reach
        reach = self._window + tile - 1
        return reach if reach < self._walked else self._walked

    def _of(self, tile: int) -> Tiles:
        each, changed, walked = -(-self.length // tile), 0.0, 0.0
        first, last = self._borders
        if self._is_part:  # its keys reach beyond its queries: there, they have fewer and fewer
            walked = min(self._walked, self._walked * (self._window + tile - 1) / max(1, self.length))
        elif self._mode != SHIFT:
            changed = min(each, (first + self.length - last) / tile)
        elif self.inverse:  # two windows of keys, whose queries are half a window fewer to more
            walked = min(self._walked, self._window + tile / 2)
        else:
            beyond = each - -(-last // tile)
            changed = first // tile + (beyond if beyond > 0 else 0)
            changed = changed if changed < each else each
        n, most = self._walked, self._most + tile
        most = n if n < self._short + tile or n < most else most
        if self.stride == 1:
            reach = self._reach(tile)
            return Tiles(self.dilation * each, reach, reach, 0.0, most, tile - 1, each, changed, walked)
        less, reach, share = self._extents(tile)
        moved = (tile - 1) // self.stride * self.stride
        return Tiles(self.dilation * each, reach, less, share, most, moved, each, changed, walked)

    def _extents(self, tile: int) -> tuple[int, int, float]:
        """Tokens that tiles of the middle walk, of a stride above 1: one number or the other, and its share.

        Tiles start at multiples of `unit` in blocks of `stride` queries.
        """
        n, window, stride = self._walked, self._window, self.stride
        unit = gcd(tile, stride)
        if self._mode == CAUSAL:  # from where the first query's block starts; of keys, to where a block stops
            together = window + tile - 1
            more = together - together % unit if self.inverse else together + 1 - unit
            return min(n, more + unit - stride), min(n, more), 0.5
        if self.inverse:  # whole blocks
            first, last = -self._ahead - window, tile - 1 - self._ahead
            blocks = (last // unit - first // unit) * unit / stride
            less = int(blocks)
            return min(n, less * stride), min(n, -int(-blocks // 1) * stride), blocks - less
        moved = (tile - 1) // stride * stride
        into = (tile - 1) % stride // unit  # of `stride // unit` places, those from which a tile reaches another block
        return min(n, window + moved), min(n, window + moved + stride * (into > 0)), into * unit / stride

    def _walk(self, of: tuple[int, int]) -> Walk:
        tile, step = of
        window, own = self._window, self.tiles[tile]
        steps = float(-(-own.less // step))
        if own.share:
            steps = (1 - own.share) * steps + own.share * -(-own.reach // step)
        full = 1.0
        if window < self._walked or self._mode == CAUSAL:
            whole = window // step - -(-own.moved // step)
            full = whole / (steps if steps > 1.0 else 1.0) if whole > 0 else 0.0
        return Walk(own.number, self._beside_borders(own, step, steps), -(-own.most // step), full)

    def _beside_borders(self, tiles: Tiles, step: int, steps: float) -> float:
        """Steps of a tile on average, where those of the middle take `steps`."""
        if self._is_part:
            return min(steps, (tiles.walked + (step - 1) / 2) / step) if self.inverse else steps
        if self._mode == SHIFT and self.inverse:
            share = self._share
            return share * ((tiles.walked + (step - 1) / 2) / step) + (1 - share) * steps if share else steps
        each, changed = tiles.each, tiles.changed
        if self._mode == SHIFT:
            return (changed * -(-self._window // step) + (each - changed) * steps) / each if changed else steps
        mean = max(1.0, steps / 2 if self._mode == CAUSAL else 0.75 * steps)
        return (changed * min(steps, mean) + (each - changed) * steps) / each

    def _rests(self) -> tuple[int, int]:
        """Up to which token windows are at the first border, and from which on at the last one."""
        n, window, stride = self.length, self._window, self.stride
        if self._mode == CAUSAL:
            return (0, max(0, n - window)) if self.inverse else (min(n, window), n)
        if self._mode == SHIFT and self.inverse:
            return min(n, window), max(0, n - window)
        ahead = max(0, -self._ahead)
        if self._mode != SHIFT:
            return min(n, ahead), max(0, n - window + ahead)
        first = (ahead // stride + 1) * stride
        last = -(-(n - window + ahead) // stride) * stride
        return min(n, first), min(n, max(0, last))


@lru_cache(maxsize=1024)
def walks(axis: Axis, length: int, inverse: bool = False) -> Walks:
    """The `Walks` of an axis (resolved) of `length` tokens."""
    return Walks(axis, length, inverse)
