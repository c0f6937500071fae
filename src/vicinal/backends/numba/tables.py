"""Tables that kernels read: the tiles of an axis and their windows, and where a tile's queries are among the lanes.

Tiles of an axis are not listed: away from borders they repeat (`vicinal.geometry.count.runs`), so a table holds a
period of each run of them, however long the axis is.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vicinal.backends.numba.kernels import call as c
from vicinal.backends.numba.kernels.vectors import LANES
from vicinal.caching import Cache
from vicinal.geometry.count import period, runs
from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.tiles import alike
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
    kinds, turn = alike(axis, length), period(axis, size)
    table: list[int] = []
    tiles: list[int] = []  # of every pattern, and the length of its group
    lengths: list[int] = []
    starts = []
    for kind in kinds:
        starts.append(len(table))
        for first, beyond in runs(axis, kind.length, size):
            table += (first, len(tiles), turn, *_steps(axis, kind.length, size, (first, beyond)))
            own = range(first, min(first + turn, beyond))
            tiles += own
            lengths += [kind.length] * len(own)
        table += (length, 0, 0, 0, 0)  # beyond all tiles
    patterns = _patterns(axis, size, np.array(tiles, np.int64), np.array(lengths, np.int64))
    per_group = [-(-kind.length // size) for kind in kinds]
    reach = min(axis.window, kinds[0].length) - 1
    fields = {
        c.TILE_COUNT: sum(kind.count * tiles for kind, tiles in zip(kinds, per_group)),
        c.TILE_SIZE: size,
        c.DILATION: axis.dilation,
        c.LONG_TILES: per_group[0],
        c.LONG_RUNS: starts[0],
        c.FIRST_SHORT: kinds[0].count * per_group[0],
        c.FIRST_SHORT_GROUP: kinds[-1].first,
        c.SHORT_TILES: per_group[-1],
        c.SHORT_RUNS: starts[-1],
        c.PATTERNS: len(table),
        c.WINDOW: axis.window,
        c.REACH: reach,
        c.OFFSETS: 2 * reach + size,
    }
    whole = np.concatenate([np.array(table, np.int64), patterns])
    return AxisTable(tuple(fields[i] for i in range(c.AXIS_FIELDS)), whole)


def _steps(axis: Axis, length: int, size: int, tiles: tuple[int, int]) -> tuple[int, int]:
    """How much further on keys start, and stop, a period of tiles later in a run of them."""
    first, later = tiles[0] * size, (tiles[0] + period(axis, size)) * size
    if later >= tiles[1] * size:
        return 0, 0
    ends = min(first + size, length) - 1, min(later + size, length) - 1
    low = window_start(axis, length, later) - window_start(axis, length, first)
    return low, window_stop(axis, length, ends[1]) - window_stop(axis, length, ends[0])


def _patterns(axis: Axis, size: int, tiles: Any, lengths: Any) -> Ints:
    """Those of tiles, each in a group of its length, one after the other."""
    lengths = lengths[:, None]
    first = tiles[:, None] * size
    last = np.minimum(first + size, lengths) - 1
    queries: Any = np.minimum(first + np.arange(size), last)
    starts, stops = (np.asarray(rule(axis, lengths, queries)) for rule in (window_start, window_stop))
    low, high = starts[:, :1], stops[:, -1:]
    windows = np.stack([starts - low, high - stops], -1).reshape(len(tiles), -1)
    return np.concatenate([last + 1 - first, low, high, windows], 1).ravel()


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
