"""Plans of the numba backend: tables of tiles and windows, and what a kernel is told besides addresses.

The 64-bit integers of a call are described in `vicinal.backends.numba.kernels.call`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, gcd, prod

import numpy as np
from numpy.typing import NDArray

from vicinal.backends.numba.kernels import call as c
from vicinal.backends.protocol import Direction
from vicinal.caching import Cache
from vicinal.geometry.neighborhood import Axis
from vicinal.geometry.tiles import alike, groups, key_interval, tiles
from vicinal.geometry.window import window_start, window_stop
from vicinal.problem import Problem, Wanted, lse_dtype

LANES = 16
CHUNK = 384  # keys whose scores are held at a time
SPARE = 16  # rows that kernels may compute in vain after a chunk's
SPAN = 8  # tiles of the last axis per task
AXES = 3
Ints = NDArray[np.int64]
CACHED_BYTES = 16 << 20  # of tables, and as much of plans


@dataclass(frozen=True, eq=False)
class AxisTiles:
    """The tiles of all dilation groups of an axis.

    Attributes:
        tiles: `[tiles, 5]`, see `vicinal.backends.numba.kernels.call`.
        windows: `[queries, 2]` in the tiles' order: each query's keys, from and to, counted from its tile's first key.
    """

    tiles: Ints
    windows: Ints

    @property
    def nbytes(self) -> int:
        return self.tiles.nbytes + self.windows.nbytes


TABLES: Cache[AxisTiles] = Cache(size=CACHED_BYTES, size_of=lambda tiles: tiles.nbytes)


@TABLES.memoize
def axis_tiles(axis: Axis, length: int, size: int) -> AxisTiles:
    """Tiles of `size` queries."""
    table: list[tuple[int, int, int, int, int]] = []
    windows: list[tuple[int, int]] = []
    step = axis.dilation
    for group in groups(axis, length):
        for start, stop in tiles(group.length, size):
            low, high = key_interval(axis, group.length, (start, stop))
            first_query, first_key = group.offset + start * step, group.offset + low * step
            table.append((first_query, stop - start, first_key, high - low, len(windows)))
            for query in range(start, stop):
                own = window_start(axis, group.length, query), window_stop(axis, group.length, query)
                windows.append((own[0] - low, own[1] - low))
    return AxisTiles(np.array(table, np.int64), np.array(windows, np.int64))


_KEYS_OF_TILES: Cache[tuple[int, int, int]] = Cache(entries=1024)


@_KEYS_OF_TILES.memoize
def _keys_of_tiles(axis: Axis, length: int, size: int) -> tuple[int, int, int]:
    """Of all tiles of an axis: their number, their keys, the most keys of one."""
    number, total, most = 0, 0, 0
    for kind in alike(axis, length):
        intervals = [key_interval(axis, kind.length, tile) for tile in tiles(kind.length, size)]
        keys = [high - low for low, high in intervals]
        number, total, most = number + kind.count * len(keys), total + kind.count * sum(keys), max(most, *keys)
    return number, total, most


@dataclass(frozen=True)
class Tiling:
    """A shape of tiles: `tile` queries and at most `box` keys along each axis; `cost` in key rows."""

    cost: float
    tile: tuple[int, ...]
    box: tuple[int, ...]


TILE_COST = 24  # of a tile, besides its keys, in rows of 16 scores


TILINGS: Cache[tuple[Tiling, ...]] = Cache(entries=1024)


@TILINGS.memoize
def tilings(axes: tuple[Axis, ...], lengths: tuple[int, ...]) -> tuple[Tiling, ...]:
    """Shapes of at most 16 queries that could not be longer along any axis, by what they cost."""
    longest = [alike(a, n)[0].length for a, n in zip(axes, lengths)]
    shapes = [s for s in product(*(range(1, min(LANES, n) + 1) for n in longest)) if prod(s) <= LANES]
    fits = set(shapes)
    found = []
    for shape in shapes:
        longer = (tuple(n + (i == j) for j, n in enumerate(shape)) for i in range(len(shape)))
        if any(s in fits for s in longer):
            continue
        numbers, keys, most = zip(*(_keys_of_tiles(*a) for a in zip(axes, lengths, shape)))
        found.append(Tiling(prod(keys) + TILE_COST * prod(numbers), shape, most))
    return tuple(sorted(found, key=lambda t: t.cost))


@dataclass(frozen=True, eq=False)
class CallPlan:
    """All of a call but its tensors' addresses and scratch memory.

    Attributes:
        numbers: the call's integers, with 0 for these.
        kept: tables that `numbers` hold addresses of.
        threads: as many as are worth their start.
        scratch: bytes per thread.
        parts: of the gradients of keys and values, which are to be added up.
        computed: which gradients come out: with those that are wanted, others that are part of the same sums.
    """

    numbers: Ints
    kept: tuple[Ints, ...]
    threads: int
    scratch: int
    parts: int
    computed: Wanted

    @property
    def nbytes(self) -> int:
        return self.numbers.nbytes + sum(table.nbytes for table in self.kept)


START_NS = 10_000  # what another thread must take over
ROW_NS = {"forward": 0.6, "backward": 1.5}  # of 16 scores, per channel
MOST_PARTS = 8

Layout = tuple[int, ...]
PLANS: Cache[CallPlan] = Cache(size=CACHED_BYTES, size_of=lambda plan: plan.nbytes)


@PLANS.memoize
def call_plan(
    problem: Problem,
    direction: Direction,
    tile: tuple[int, ...],
    layouts: tuple[Layout | None, ...],
    wanted: Wanted,
    threads: int,
) -> CallPlan:
    """The plan for given tensors of these layouts, in the call's order; None where there is none.

    A layout is a tensor's strides, all dimensions, and the length of the last. Results are contiguous, their rows of
    channels filled up to whole vectors.

    Raises:
        AssertionError: a tensor's rows are not such as kernels read.
    """
    lead = AXES - problem.rank
    axes, lengths = (Axis(1),) * lead + problem.neighborhood.axes, (1,) * lead + problem.lengths
    tile = (1,) * lead + tile
    size = lse_dtype(problem.dtype).itemsize
    numbers = np.zeros(c.LENGTH, np.int64)
    channels, value_channels = (ceil(n / LANES) for n in (problem.head_dim, problem.value_dim))
    results = _results(problem, direction, LANES * channels, LANES * value_channels)
    contiguous = {place: tuple(prod(shape[i + 1 :]) for i in range(len(shape))) for place, shape in results.items()}
    _check_rows(layouts, LANES * channels, LANES * value_channels)
    strides = {place: layout[:-1] for place, layout in enumerate(layouts) if layout is not None}
    for place, own in (strides | contiguous).items():
        at = c.STRIDE + c.STRIDES * place
        numbers[at : at + c.STRIDES] = [size * s for s in _five(own, problem.rank, place in c.OF_ADDITIONAL)]
    kept: list[Ints] = []

    def address(table: Ints) -> int:
        kept.append(table)
        return table.ctypes.data

    counts, keys, most_keys = zip(*(_keys_of_tiles(*a) for a in zip(axes, lengths, tile)))
    for i, own_tiles in enumerate(axis_tiles(*a) for a in zip(axes, lengths, tile)):
        at = c.AXIS + c.AXIS_FIELDS * i
        numbers[at + c.TILES] = address(own_tiles.tiles)
        numbers[at + c.TILE_COUNT] = counts[i]
        numbers[at + c.WINDOWS] = address(own_tiles.windows)
        numbers[at + c.DILATION] = axes[i].dilation
    places, bits = _lanes(tile)
    numbers[c.LANE_PLACES], numbers[c.LANE_BITS] = address(places), address(bits)

    rows = (prod(keys) + prod(counts) * problem.additional) * problem.batch * problem.heads
    threads = max(1, min(threads, int(rows * ROW_NS[direction] * LANES * (channels + value_channels) / START_NS)))
    spans = ceil(counts[2] / SPAN)
    strips = counts[0] * counts[1] * spans
    parts = 1
    if direction == "forward":
        tasks = problem.batch * problem.heads * strips
    else:
        units = problem.batch * problem.kv_heads
        if units < 4 * threads:
            parts = min(threads // gcd(units, threads), strips, MOST_PARTS)
        tasks = units * parts
    scratch = _place_scratch(numbers, size, channels, value_channels, most_keys)
    numbers[c.HEADS], numbers[c.GROUP] = problem.heads, problem.group_size
    numbers[c.CHANNELS], numbers[c.VALUE_CHANNELS] = channels, value_channels
    numbers[c.CHUNK], numbers[c.SPAN], numbers[c.SPANS], numbers[c.TASKS] = CHUNK, SPAN, spans, tasks
    (numbers[c.SCALE],) = struct.unpack("q", struct.pack("d", problem.scale))
    numbers[c.PARTS] = parts
    for i, place in enumerate((c.GRAD_KEY, c.GRAD_VALUE, c.GRAD_ADDITIONAL_KEY, c.GRAD_ADDITIONAL_VALUE)):
        numbers[c.PART + i] = size * prod(results.get(place, (0,)))
    numbers[c.LENGTHS : c.LENGTHS + AXES] = lengths
    numbers[c.ADDITIONAL] = problem.additional
    numbers[c.HAS_GRAD_LSE] = c.GRAD_LSE in strides
    computed = _computed(wanted)
    numbers[c.WANTED] = computed.query * c.WANT_QUERY + computed.key * c.WANT_KEY + computed.value * c.WANT_VALUE
    numbers[c.SCRATCH_BYTES] = scratch
    return CallPlan(numbers, tuple(kept), min(threads, tasks), scratch, parts, computed)


def _check_rows(layouts: Sequence[Layout | None], width: int, value_width: int) -> None:
    """Kernels read whole vectors of channels side by side: no tensor comes to them that has others."""
    of_values = (c.VALUE, c.ADDITIONAL_VALUE, c.OUTPUT, c.GRAD_OUTPUT)
    for place, layout in enumerate(layouts):
        if layout is not None and place not in (c.LSE, c.GRAD_LSE):
            wanted = value_width if place in of_values else width
            assert layout[-2:] == (1, wanted), f"tensor {place}: rows of {layout[-1]} at stride {layout[-2]}"


def _computed(wanted: Wanted) -> Wanted:
    """Keys and additional keys are summed in one go, and so are values."""
    key, value = wanted.key or wanted.additional_keys, wanted.value or wanted.additional_values
    return Wanted(wanted.query, key, value, key, value, False)


def _results(problem: Problem, direction: Direction, width: int, value_width: int) -> dict[int, tuple[int, ...]]:
    """Shapes of what is computed."""
    queries = problem.batch, *problem.lengths, problem.heads
    if direction == "forward":
        return {c.OUTPUT: (*queries, value_width), c.LSE: (*queries, 1)}
    keys = problem.batch, *problem.lengths, problem.kv_heads
    additional = problem.batch, problem.additional, problem.kv_heads
    return {
        c.GRAD_QUERY: (*queries, width),
        c.GRAD_KEY: (*keys, width),
        c.GRAD_VALUE: (*keys, value_width),
        c.GRAD_ADDITIONAL_KEY: (*additional, width),
        c.GRAD_ADDITIONAL_VALUE: (*additional, value_width),
    }


def _five(strides: tuple[int, ...], rank: int, additional: bool) -> tuple[int, ...]:
    """Strides of batch, three axes and heads."""
    if additional:
        batch, token, head = strides[:3]
        return batch, token, 0, 0, head
    batch, *spatial, head = strides[: rank + 2]
    return batch, *(0,) * (AXES - rank), *spatial, head


def _lanes(tile: tuple[int, ...]) -> tuple[Ints, Ints]:
    """Each lane's place along each axis, out of any tile for lanes beyond it; the lanes at each place."""
    places = np.full((AXES, LANES), LANES, np.int64)
    bits = np.zeros((AXES, LANES), np.int64)
    for lane, place in enumerate(product(*map(range, tile))):
        places[:, lane] = place
        for axis, at in enumerate(place):
            bits[axis, at] |= 1 << lane
    return places, bits


def _place_scratch(numbers: Ints, size: int, channels: int, value_channels: int, most_keys: Sequence[int]) -> int:
    """Sets where in a thread's scratch memory what is; how many bytes it is."""
    keys = CHUNK + SPARE
    row, widest = LANES * size, max(channels, value_channels)
    wanted = {
        c.QUERY_COLUMNS: LANES * channels * row,
        c.GRAD_OUTPUT_COLUMNS: LANES * value_channels * row,
        c.OUTPUT_ROWS: LANES * value_channels * row,
        c.SCORES: keys * row,
        c.GRAD_SCORES: keys * row,
        c.HIGHEST: row,
        c.TOTAL: row,
        c.UNREAD: widest * row,
        c.ROWS: 8 * LANES * (c.TENSORS + 1),
        c.KEYS: 8 * keys,
        c.VALUES: 8 * keys,
        c.GRAD_KEYS: 8 * keys,
        c.GRAD_VALUES: 8 * keys,
        c.KEY_BITS: 2 * keys,
        **{c.AXIS_BITS + axis: 2 * (most + 1) for axis, most in enumerate(most_keys)},
        c.POSITION: 8 * (AXES + 1),
    }
    total = 0
    for place, needed in wanted.items():
        numbers[place] = total
        total += needed + -needed % 64
    return total + 64  # no two threads in one cache line, whatever the address
