"""Tables that kernels read: the tiles of an axis and their windows, and where a tile's queries are among the lanes.

Tiles of an axis are not listed: away from borders they repeat (`vicinal.geometry.count.runs`), so a table holds a
period of each run of them, however long the axis is.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from vicinal.backends.numba.kernels import call as c
from vicinal.backends.numba.kernels.vectors import LANES
from vicinal.caching import Cache
from vicinal.geometry.count import count, period, runs
from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.tiles import alike, key_interval
from vicinal.geometry.window import window_start, window_stop

AXES = 3
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class AxisTable:
    """What kernels are told of an axis.

    Attributes:
        fields: see `vicinal.backends.numba.kernels.call`, with places in `table` where addresses belong.
        table: runs of tiles, then patterns.
    """

    fields: tuple[int, ...]
    table: Ints

    @property
    def nbytes(self) -> int:
        return self.table.nbytes

    def addressed(self) -> list[int]:
        """The fields with addresses; they are valid while this is kept."""
        fields, start = list(self.fields), self.table.ctypes.data
        for place in (c.LONG_RUNS, c.SHORT_RUNS, c.PATTERNS):
            fields[place] = start + 8 * fields[place]
        return fields


AXIS_TABLES: Cache[AxisTable] = Cache(size=16 << 20, size_of=lambda table: table.nbytes)


@AXIS_TABLES.memoize
def axis_table(axis: Axis, length: int, size: int) -> AxisTable:
    """Tiles of `size` queries, of all dilation groups."""
    assert axis.window is not None
    kinds = alike(axis, length)
    table: list[int] = []
    patterns: list[int] = []
    starts = []
    for kind in kinds:
        starts.append(len(table))
        for first, beyond in runs(axis, kind.length, size):
            table += _run(axis, kind.length, size, (first, beyond), len(patterns) // (c.PATTERN_FIELDS + 2 * size))
            for tile in range(first, min(first + period(axis, size), beyond)):
                patterns += _pattern(axis, kind.length, size, tile)
        table += (length, 0, 0, 0, 0)  # beyond all tiles
    per_group = [-(-kind.length // size) for kind in kinds]
    first_short = kinds[0].count * per_group[0]
    reach = min(axis.window, kinds[0].length) - 1
    fields = {
        c.TILE_COUNT: count(axis, length, size, 1).tiles,
        c.TILE_SIZE: size,
        c.DILATION: axis.dilation,
        c.LONG_TILES: per_group[0],
        c.LONG_RUNS: starts[0],
        c.FIRST_SHORT: first_short,
        c.FIRST_SHORT_GROUP: kinds[-1].first,
        c.SHORT_TILES: per_group[-1],
        c.SHORT_RUNS: starts[-1],
        c.PATTERNS: len(table),
        c.WINDOW: axis.window,
        c.REACH: reach,
        c.OFFSETS: 2 * reach + size,
    }
    return AxisTable(tuple(fields[i] for i in range(c.AXIS_FIELDS)), np.array(table + patterns, np.int64))


def _run(axis: Axis, length: int, size: int, tiles: tuple[int, int], pattern: int) -> tuple[int, int, int, int, int]:
    first, beyond = tiles
    every, low_step, high_step = period(axis, size), 0, 0
    if beyond - first > every:
        (low, high), (next_low, next_high) = (
            key_interval(axis, length, (tile * size, min((tile + 1) * size, length))) for tile in (first, first + every)
        )
        low_step, high_step = next_low - low, next_high - high
    return first, pattern, every, low_step, high_step


def _pattern(axis: Axis, length: int, size: int, tile: int) -> list[int]:
    queries = range(tile * size, min((tile + 1) * size, length))
    starts = [window_start(axis, length, i) for i in queries]
    stops = [window_stop(axis, length, i) for i in queries]
    low, high = starts[0], stops[-1]
    found = [len(queries), low, high]
    for start, stop in zip(starts, stops):
        found += (start - low, high - stop)
    return found + [0] * (2 * (size - len(queries)))


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
