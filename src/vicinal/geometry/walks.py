"""About how much the tiles along one axis walk, by a few operations: what tilings are compared by.

`vicinal.geometry.count` counts exactly, at fifty times the price. Here an axis is a middle, where all tiles walk alike,
and borders, where windows that shift rest, and others are cut; what lies across the ends of the borders counts as the
middle, and a border that cuts counts by its mean. `longest` is never less than the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
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


class Walks:
    """Of one axis, tiles of queries and the keys that they walk; `inverse`: tiles of keys and their queries."""

    def __init__(self, axis: Axis, length: int, inverse: bool) -> None:
        assert axis.window is not None, "resolve the axis first"
        span, whole, own, other = axis.span, length, length, length
        if span is not None:
            whole = span.length
            own, other = (stop - start for start, stop in (span.own(inverse), span.other(inverse)))
        self.dilation = min(axis.dilation, own)
        self.length, self._walked = -(-own // axis.dilation), -(-other // axis.dilation)  # of the longest group
        self.stride, self.inverse, self._mode = axis.stride, inverse, mode(axis)
        self._fewest = other // axis.dilation  # of the shortest group
        self._window = min(axis.window, -(-whole // axis.dilation))
        self._ahead = leader_offset(axis) - left_reach(axis)  # of a block's first query, where its window starts
        if self._mode == CAUSAL:  # windows may be longer than the axis, and blocks of queries with them
            self.stride = min(self.stride, self._window)
        self._is_part = span is not None
        self._borders = (0, self.length) if self._is_part else self._rests()  # a part is of the middle
        self._kept: dict[tuple[int, int], Walk] = {}

    def tiles(self, tile: int) -> int:
        """Of all groups."""
        return self.dilation * -(-self.length // tile)

    def reach(self, tile: int) -> int:
        """Tokens that a tile of the middle walks, the most that its place in a block of `stride` queries allows.

        `tile`: one of `TILES`.
        """
        return self._reaches[tile.bit_length() - 1]

    def works(self, most: int, more: int) -> list[int]:
        """Scores along the axis, of all tiles of 1, 2, 4, ... up to `most` tokens.

        As if they were of the middle, `more` of each for its last step.
        """
        found = [tokens * (reach + more) for tokens, reach in zip(self._tokens, self._reaches)]
        return found[: most.bit_length()]

    @cached_property
    def _reaches(self) -> list[int]:
        """`reach` of every tile in `TILES`."""
        if self.stride == 1:
            n, more = self._walked, self._window - 1
            return [min(n, more + tile) for tile in TILES]
        return [self._extents(tile)[1] for tile in TILES]

    @cached_property
    def _tokens(self) -> list[int]:
        """Of all tiles of each size in `TILES`, full ones."""
        n, dilation = self.length, self.dilation
        return [dilation * -(-n // tile) * tile for tile in TILES]

    def walk(self, tile: int, step: int) -> Walk:
        """Of tiles of `tile` tokens, `step` at a time."""
        found = self._kept.get((tile, step))
        if found is None:
            found = self._kept[tile, step] = self._walk(tile, step)
        return found

    def aligned(self, tile: int, steps: Sequence[int], unit: int) -> list[float]:
        """How many steps of each size a tile takes on average, of walks that begin at multiples of `unit`.

        Or at multiples of a step, where it is smaller. All are powers of two.
        """
        less, more, share = self._extents(tile)
        if self.stride > 1:  # walks begin where blocks of queries do, more or less
            first, moved = 0, self.stride
        else:
            first, moved = (1 - self._ahead - self._window if self.inverse else self._ahead), tile
        taken = self._from_multiples(less, steps, unit, first, moved)
        if share:
            longer = self._from_multiples(more, steps, unit, first, moved)
            taken = [share * a + (1 - share) * b for a, b in zip(longer, taken)]
        return [self._beside_borders(tile, *each) for each in zip(steps, taken)]

    def _from_multiples(self, tokens: int, steps: Sequence[int], unit: int, first: int, moved: int) -> list[float]:
        """How many steps of each size so many tokens take, from the last multiple of `unit` before them, on average.

        Of walks that would begin at `first`, and anywhere a multiple of `moved` further on.
        """
        if tokens >= self._walked:
            return [-(-tokens // step) for step in steps]
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
        None: as many as the other one does. Tiles are of queries, and one of `TILES`.
        """
        place = tile.bit_length()
        own, both = self._reaches[place - 1 : place + 1]
        walked, aside = -(-both // step), both - own
        last, first = walked - -(-own // step), aside // step
        most = min(last, first) if passes is None else passes
        return self._beside_borders(2 * tile, step, walked - (min(last, most) + min(first, most)) / 2)

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
        n, window, stride = self._walked, self._window, self.stride
        less, more, share = self._extents(tile)
        longest, steps = -(-self._most(tile) // step), float(-(-less // step))
        if share:
            steps = (1 - share) * steps + share * -(-more // step)
        full = 1.0
        if window < n or self._mode == CAUSAL:
            moved = (tile - 1) // stride * stride
            whole = window // step - -(-moved // step)
            full = whole / max(1.0, steps) if whole > 0 else 0.0
        return Walk(self.tiles(tile), self._beside_borders(tile, step, steps), longest, full)

    def _beside_borders(self, tile: int, step: int, steps: float) -> float:
        """Steps of a tile on average, where those of the middle take `steps`."""
        if self._mode == SHIFT and not self._is_part:
            if self.inverse:  # two windows of keys, whose queries are half a window fewer to more
                share = self._share
                if not share:
                    return steps
                mean = (min(self._walked, self._window + tile / 2) + (step - 1) / 2) / step
                return share * mean + (1 - share) * steps
            tiles, (first, last) = -(-self.length // tile), self._borders
            resting = min(tiles, first // tile + max(0, tiles - -(-last // tile)))
            return (resting * -(-self._window // step) + (tiles - resting) * steps) / tiles if resting else steps
        if self._is_part:
            if not self.inverse:
                return steps
            # Its keys reach beyond its queries: there, they have fewer and fewer.
            mean = self._walked * (self._window + tile - 1) / max(1, self.length)
            return min(steps, (min(self._walked, mean) + (step - 1) / 2) / step)
        tiles, (first, last) = -(-self.length // tile), self._borders
        cut = min(tiles, (first + self.length - last) / tile)  # tiles, which walk what is there
        mean = max(1.0, steps / 2 if self._mode == CAUSAL else 0.75 * steps)
        return (cut * min(steps, mean) + (tiles - cut) * steps) / tiles

    @cached_property
    def _share(self) -> float:
        """Of the keys of an axis whose windows shift, those whose queries borders make others."""
        keys = self.length - self._borders[1] + self._borders[0]
        return 0.0 if self._window >= self._walked else min(1.0, keys / self.length)

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


@lru_cache(maxsize=4096)
def walks(axis: Axis, length: int, inverse: bool = False) -> Walks:
    """The `Walks` of an axis (resolved) of `length` tokens."""
    return Walks(axis, length, inverse)
