"""About how much the tiles along one axis walk, by a few operations: what tilings are compared by.

`vicinal.geometry.count` counts exactly, at fifty times the price. Here an axis is a middle, where all tiles walk alike,
and borders, where windows that shift rest, and others are cut; what lies across the ends of the borders counts as the
middle, and a border that cuts counts by its mean. `longest` is never less than the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import gcd
from typing import NamedTuple

from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.window import CAUSAL, SHIFT, leader_offset, left_reach, mode

TILES = tuple(1 << i for i in range(9))  # tokens along an axis of tiles, and of two of them side by side


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


class _Tiles(NamedTuple):
    """Of the tiles of one size, what all their walks depend on.

    Attributes:
        less, more, share: tokens that tiles of the middle walk: one number or the other, and the share of the other.
        number: of tiles, in a dilation group.
        changed: how many of these borders change: those whose windows rest there, or are cut.
        walked: tokens, on average, of tiles of keys that borders change, or that are a part's.
    """

    less: int
    more: int
    share: float
    number: int
    changed: float
    walked: float


class Walks:
    """Of one axis, tiles of queries and the keys that they walk; `inverse`: tiles of keys and their queries.

    What is asked for is kept: comparing tilings, the same few tiles and steps are met again and again.
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
        self._tiles: dict[int, _Tiles] = {}
        self._works: dict[int, list[int]] = {}
        self._middle: dict[tuple[int, int], list[int]] = {}
        self._walks: dict[tuple[int, int], Walk] = {}
        self._pairs: dict[tuple[int, int, int | None], float] = {}
        self._aligned: dict[tuple[int, Sequence[int], int], list[float]] = {}

    def tiles(self, tile: int) -> int:
        """Of all groups."""
        return self.dilation * -(-self.length // tile)

    def reach(self, tile: int) -> int:
        """Tokens that a tile of the middle walks, the most that its place in a block of `stride` queries allows."""
        return min(self._walked, self._window + tile - 1) if self.stride == 1 else self._of(tile).more

    def works(self, most: int, more: int) -> list[int]:
        """Scores along the axis, of all tiles of 1, 2, 4, ... up to `most` tokens.

        As if they were of the middle, `more` of each for its last step.
        """
        found = self._works.get(more)
        if found is None:
            found = self._works[more] = [self.tiles(tile) * tile * (self.reach(tile) + more) for tile in TILES]
        return found[: most.bit_length()]

    def middle(self, tile: int, most: int) -> list[int]:
        """Steps that a tile of the middle takes, of 1, 2, 4, ... up to `most` tokens."""
        found = self._middle.get((tile, most))
        if found is None:
            last = self.reach(tile) - 1
            found = self._middle[tile, most] = [(last >> i) + 1 for i in range(most.bit_length())]
        return found

    def walk(self, tile: int, step: int) -> Walk:
        """Of tiles of `tile` tokens, `step` at a time."""
        found = self._walks.get((tile, step))
        if found is None:
            found = self._walks[tile, step] = self._walk(tile, step)
        return found

    def aligned(self, tile: int, steps: tuple[int, ...], unit: int) -> list[float]:
        """How many steps of each size a tile takes on average, of walks that begin at multiples of `unit`.

        Or at multiples of a step, where it is smaller. All are powers of two.
        """
        key = tile, steps, unit
        found = self._aligned.get(key)
        if found is None:
            own = self._of(tile)
            taken = self._from_multiples(tile, own.less, steps, unit)
            if own.share:
                longer = self._from_multiples(tile, own.more, steps, unit)
                taken = [own.share * a + (1 - own.share) * b for a, b in zip(longer, taken)]
            found = self._aligned[key] = [self._beside_borders(own, step, n) for step, n in zip(steps, taken)]
        return found

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

    def may_pass_end(self, tile: int, step: int) -> bool:
        """Whether the steps over some box may be longer, together, than its dilation group."""
        return self.walk(tile, step).longest * step > self._fewest

    def pair(self, tile: int, step: int, passes: int | None) -> float:
        """Steps of each of two tiles side by side, on average, which walk the keys of both and pass over some.

        The first needs none of the last steps, the second none of the first ones. Each may pass over `passes` of them;
        None: as many as the other one does. Tiles are of queries.
        """
        key = tile, step, passes
        found = self._pairs.get(key)
        if found is None:
            own, both = self.reach(tile), self.reach(2 * tile)
            walked, aside = -(-both // step), both - own
            last, first = walked - -(-own // step), aside // step
            most = min(last, first) if passes is None else passes
            steps = walked - (min(last, most) + min(first, most)) / 2
            found = self._pairs[key] = self._beside_borders(self._of(2 * tile), step, steps)
        return found

    def _of(self, tile: int) -> _Tiles:
        """Tiles of so many tokens."""
        found = self._tiles.get(tile)
        if found is None:
            number, changed, walked = -(-self.length // tile), 0.0, 0.0
            first, last = self._borders
            if self._is_part:  # its keys reach beyond its queries: there, they have fewer and fewer
                walked = min(self._walked, self._walked * (self._window + tile - 1) / max(1, self.length))
            elif self._mode != SHIFT:
                changed = min(number, (first + self.length - last) / tile)
            elif self.inverse:  # two windows of keys, whose queries are half a window fewer to more
                walked = min(self._walked, self._window + tile / 2)
            else:
                changed = min(number, first // tile + max(0, number - -(-last // tile)))
            found = self._tiles[tile] = _Tiles(*self._extents(tile), number, changed, walked)
        return found

    def _extents(self, tile: int) -> tuple[int, int, float]:
        """Tokens that tiles of the middle walk: one number or the other, and the share of the other.

        Tiles start at multiples of `unit` in blocks of `stride` queries.
        """
        n, window, stride = self._walked, self._window, self.stride
        together = window + tile - 1
        if stride == 1:
            reach = min(n, together)
            return reach, reach, 0.0
        unit = gcd(tile, stride)
        if self._mode == CAUSAL:  # from where the first query's block starts; of keys, to where a block stops
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

    def _most(self, tile: int) -> int:
        """Tokens that some tile walks, at most: one of the middle, wherever it starts, or one beside a border."""
        beside = 0 if self.stride == 1 else self.stride
        if self.inverse and self._mode == SHIFT:  # a key beside a border has half a window's queries more
            if self._walked < 2 * self._window + tile:  # beside both
                return self._walked
            beside += self._window - self._window // 2
        return min(self._walked, self._window + tile - 1 + beside)

    def _walk(self, tile: int, step: int) -> Walk:
        window, own = self._window, self._of(tile)
        longest, steps = -(-self._most(tile) // step), float(-(-own.less // step))
        if own.share:
            steps = (1 - own.share) * steps + own.share * -(-own.more // step)
        full = 1.0
        if window < self._walked or self._mode == CAUSAL:
            moved = (tile - 1) // self.stride * self.stride
            whole = window // step - -(-moved // step)
            full = whole / max(1.0, steps) if whole > 0 else 0.0
        return Walk(self.dilation * own.number, self._beside_borders(own, step, steps), longest, full)

    def _beside_borders(self, tiles: _Tiles, step: int, steps: float) -> float:
        """Steps of a tile on average, where those of the middle take `steps`."""
        if self._is_part:
            return min(steps, (tiles.walked + (step - 1) / 2) / step) if self.inverse else steps
        if self._mode == SHIFT and self.inverse:
            share = self._share
            return share * ((tiles.walked + (step - 1) / 2) / step) + (1 - share) * steps if share else steps
        number, changed = tiles.number, tiles.changed
        if self._mode == SHIFT:
            return (changed * -(-self._window // step) + (number - changed) * steps) / number if changed else steps
        mean = max(1.0, steps / 2 if self._mode == CAUSAL else 0.75 * steps)
        return (changed * min(steps, mean) + (number - changed) * steps) / number

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
