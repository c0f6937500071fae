"""Tables that kernels read: the tiles of an axis and their windows, and where a tile's queries are among the lanes.

Tiles of an axis are not listed: away from borders they repeat (`vicinal.geometry.count.runs`), so a table holds a
period of each run of them, however long the axis is.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vicinal.backends.numba.kernels import call as c
from vicinal.backends.numba.kernels.vectors import LANES
from vicinal.caching import Cache
from vicinal.geometry.count import period, runs
from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.tiles import Alike, alike
from vicinal.geometry.window import window, window_start, window_stop

AXES = 3
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class AxisTable:
    """What kernels are told of an axis.

    Attributes:
        fields: see `vicinal.backends.numba.kernels.call`, with places in `table` where addresses belong.
        table: kinds of groups, runs of tiles, then patterns.
        covered: keys of all tiles' boxes.
        widest: keys of one box, at most.
    """

    fields: tuple[int, ...]
    table: Ints
    covered: int
    widest: int

    @property
    def tiles(self) -> int:
        return self.fields[c.TILE_COUNT]

    @property
    def nbytes(self) -> int:
        return self.table.nbytes

    def addressed(self) -> list[int]:
        """The fields with addresses; they are valid while this is kept."""
        fields, start = list(self.fields), self.table.ctypes.data
        for place in (c.KINDS, c.RUNS, c.PATTERNS):
            fields[place] = start + 8 * fields[place]
        return fields


AXIS_TABLES: Cache[AxisTable] = Cache(size=16 << 20, size_of=lambda table: table.nbytes)


@AXIS_TABLES.memoize
def axis_table(axis: Axis, length: int, size: int) -> AxisTable:
    """Tiles of `size` queries, of all dilation groups."""
    assert axis.window is not None
    turn = period(axis, size)
    kinds: list[int] = []
    runs_of: list[int] = []
    # Of every pattern its first query, where its group's stop, how long that is; then how many groups have it, how
    # often each, and how many keys it gains a period later.
    tiles: list[list[int]] = [[] for _ in range(6)]
    firsts, ends, lengths, groups, often, growth = tiles
    first_tile = longest = 0
    for kind in alike(axis, length):
        begin, end = kind.own
        count = -(-(end - begin) // size)
        kinds += (first_tile, count, kind.first, len(runs_of), begin)
        first_tile += kind.count * count
        longest = max(longest, kind.length)
        for first, beyond in runs(axis, kind, size):
            low, high = _steps(axis, kind, size, (first, beyond))
            runs_of += (first, len(firsts), turn, low, high)
            own = min(turn, beyond - first)
            whole, more = divmod(beyond - first, turn)
            firsts += range(begin + first * size, begin + (first + own) * size, size)
            often += [whole + 1] * more + [whole] * (own - more)
            for column, value in ((ends, end), (lengths, kind.length), (groups, kind.count), (growth, high - low)):
                column += [value] * own
        runs_of += (count, 0, 0, 0, 0)  # beyond all tiles
    kinds += (first_tile, 0, 0, 0, 0)  # beyond all kinds
    reach = min(axis.window, longest) - 1
    fields = {
        c.TILE_COUNT: first_tile,
        c.TILE_SIZE: size,
        c.DILATION: axis.dilation,
        c.KINDS: 0,
        c.RUNS: len(kinds),
        c.PATTERNS: len(kinds) + len(runs_of),
        c.WINDOW: axis.window,
        c.REACH: reach,
        c.OFFSETS: 2 * reach + size,
    }
    numbers = np.array(tiles, np.int64)
    patterns = _patterns(axis, size, *numbers[:3, :, None])
    boxes, (count_of, times, gained) = patterns[:, c.PATTERN_HIGH] - patterns[:, c.PATTERN_LOW], numbers[3:]
    covered = count_of * times * (2 * boxes + gained * (times - 1)) // 2
    widest = boxes + np.maximum(gained, 0) * (times - 1)
    table = np.concatenate([np.array(kinds + runs_of, np.int64), patterns.ravel()])
    return AxisTable(tuple([fields[i] for i in range(c.AXIS_FIELDS)]), table, int(covered.sum()), int(widest.max()))


def _steps(axis: Axis, kind: Alike, size: int, tiles: tuple[int, int]) -> tuple[int, int]:
    """How much further on keys start, and stop, a period of tiles later in a run of them."""
    begin, end = kind.own
    first, later = (begin + place * size for place in (tiles[0], tiles[0] + period(axis, size)))
    if later >= begin + tiles[1] * size:
        return 0, 0
    ends = min(first + size, end) - 1, min(later + size, end) - 1
    low = window_start(axis, kind.length, later) - window_start(axis, kind.length, first)
    return low, window_stop(axis, kind.length, ends[1]) - window_stop(axis, kind.length, ends[0])


def _patterns(axis: Axis, size: int, first: Any, ends: Any, lengths: Any) -> Ints:
    """Those of tiles that begin at query `first` of groups of these lengths, a row each."""
    last = np.minimum(first + size, ends) - 1
    queries: Any = np.minimum(first + np.arange(size), last)
    starts, stops = cast(Any, window)(axis, lengths, queries)
    low, high = starts[:, :1], stops[:, -1:]
    found = np.empty((len(first), c.PATTERN_FIELDS + 2 * size), np.int64)
    found[:, :1], found[:, 1:2], found[:, 2:3] = last + 1 - first, low, high
    found[:, 3::2], found[:, 4::2] = starts - low, high - stops
    return found


LANE_TABLES: Cache[Ints] = Cache(entries=256)


@LANE_TABLES.memoize
def lane_table(tile: tuple[int, ...]) -> Ints:
    """Each lane's place along each of three axes, out of any tile for lanes beyond it; the lanes at each place."""
    places = [[LANES] * LANES for _ in range(AXES)]
    bits = [[0] * LANES for _ in range(AXES)]
    for lane, place in enumerate(product(*map(range, tile))):
        for axis, at in enumerate(place):
            places[axis][lane] = at
            bits[axis][at] |= 1 << lane
    return np.array([places, bits], np.int64)
