"""Plans of the numba backend: what a kernel is told besides addresses, how many threads, how much memory.

The 64-bit integers of a call are described in `vicinal.backends.numba.kernels.call`.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, gcd, prod

import numpy as np

from vicinal.backends.gpu.strides import contiguous_strides
from vicinal.backends.numba.config import head_sets
from vicinal.backends.numba.kernels import call as c
from vicinal.backends.numba.kernels.vectors import LANES
from vicinal.backends.numba.tables import AXES, AxisTable, Ints, axis_table, lane_table
from vicinal.backends.protocol import Direction
from vicinal.caching import Cache
from vicinal.geometry.neighborhood import Axis, Neighborhood
from vicinal.problem import Problem, Wanted, lse_dtype

CHUNK = 384  # keys whose scores are held at a time
MASK_BYTES = 2  # of a key in the mask
CUT_BYTES = 2 * 2 * AXES  # of a query's own window
SPARE = 16  # rows that kernels may compute in vain after a chunk's
SPAN = 8  # tiles of the last axis per task
START_NS = 10_000  # what another thread must take over
ROW_NS = {"forward": 0.6, "backward": 1.5}  # of 16 scores, per channel
MOST_PARTS = 8
LEADING = Axis(1)  # of fewer than three
SMALL_BIAS = 1 << 16  # numbers by lanes that one thread makes

Layout = tuple[int, ...]
Numbers = list[int]


@dataclass(frozen=True, eq=False)
class KernelCall:
    """All of a call but its tensors' addresses and scratch memory.

    Attributes:
        numbers: the call's integers, of tensors' addresses only how far from a first token that is given to the axis'.
        kept: tables that `numbers` hold addresses of.
        threads: as many as are worth their start.
        scratch: bytes per thread.
        parts: of the gradients of keys and values, which are to be added up.
        slots: of the gradients of biases by lanes.
        lane_biases: how many numbers the biases by lanes are.
        computed: which gradients come out: with those that are wanted, others that are part of the same sums.
    """

    numbers: array[int]
    kept: tuple[Ints, ...]
    threads: int
    scratch: int
    parts: int
    slots: int
    lane_biases: int
    computed: Wanted

    @property
    def nbytes(self) -> int:
        return self.numbers.itemsize * len(self.numbers) + sum(table.nbytes for table in self.kept)

    @property
    def bias_threads(self) -> int:
        """Threads for what is done to biases alone."""
        return 1 if self.lane_biases <= SMALL_BIAS else self.threads


@dataclass(frozen=True, eq=False)
class HeadSet:
    """Heads that share a neighborhood, and their tiles; with leading axes of length 1, three axes.

    Attributes:
        heads: in ascending order.
        tile: queries along each axis.
        tables: of each axis.
    """

    heads: tuple[int, ...]
    tile: tuple[int, ...]
    tables: tuple[AxisTable, ...]

    @classmethod
    def of(
        cls, neighborhood: Neighborhood, heads: tuple[int, ...], lengths: tuple[int, ...], tile: tuple[int, ...]
    ) -> HeadSet:
        """The set of `heads`, of tokens of `lengths`."""
        lead = AXES - len(lengths)
        axes, lengths, tile = (LEADING,) * lead + neighborhood.axes, (1,) * lead + lengths, (1,) * lead + tile
        return cls(heads, tile, tuple([axis_table(*own) for own in zip(axes, lengths, tile)]))

    @property
    def spans(self) -> int:
        """Of tiles, along the last axis."""
        return ceil(self.tables[2].tiles / SPAN)

    @property
    def strips(self) -> int:
        return self.tables[0].tiles * self.tables[1].tiles * self.spans

    @property
    def offsets(self) -> tuple[int, ...]:
        """Distances from a tile's first query to a key, along each axis."""
        return tuple([table.fields[c.OFFSETS] for table in self.tables])

    def rows(self, additional: int) -> int:
        """Of 16 scores, of one batch element."""
        keys, tiles = prod([own.covered for own in self.tables]), prod([own.tiles for own in self.tables])
        return len(self.heads) * (keys + tiles * additional)


@dataclass(frozen=True, eq=False)
class Shared:
    """What calls of both passes of a problem have in common.

    Attributes:
        sets: of heads.
        numbers: a call's integers, but those of tensors and tasks.
        kept: see `KernelCall`, as are `scratch` and `lane_biases`.
        rows: of 16 scores, of all batch elements.
    """

    sets: tuple[HeadSet, ...]
    numbers: Numbers
    kept: tuple[Ints, ...]
    scratch: int
    lane_biases: int
    rows: int


SHARED: Cache[Shared] = Cache(entries=256)


@SHARED.memoize
def shared(problem: Problem, tiles: tuple[tuple[int, ...], ...]) -> Shared:
    """`tiles` are a `NumbaConfig`'s."""
    size = lse_dtype(problem.dtype).itemsize
    channels, value_channels = (ceil(n / LANES) for n in (problem.head_dim, problem.value_dim))
    each = zip(head_sets(problem).items(), tiles)
    sets = tuple([HeadSet.of(neighborhood, heads, problem.lengths, tile) for (neighborhood, heads), tile in each])
    numbers = [0] * (c.LENGTH + c.SET_FIELDS * len(sets))
    kept, lane_biases = _place_sets(numbers, problem, sets, size)
    widest = [max([own.tables[axis].widest for own in sets]) for axis in range(AXES)]
    scratch = _place_scratch(numbers, size, channels, value_channels, widest)
    one_each = {
        c.SLOT: size * lane_biases,
        c.HEADS: problem.heads,
        c.GROUP: problem.group_size,
        c.CHANNELS: channels,
        c.VALUE_CHANNELS: value_channels,
        c.ADDITIONAL: problem.additional,
        c.CHUNK: CHUNK,
        c.SPAN: SPAN,
        c.SCALE: struct.unpack("q", struct.pack("d", problem.scale))[0],
        c.SETS: len(sets),
        c.BATCH: problem.batch,
        c.SCRATCH_BYTES: scratch,
    }
    for place, number in one_each.items():
        numbers[place] = number
    numbers[c.LENGTHS : c.LENGTHS + AXES] = (1,) * (AXES - problem.rank) + problem.key_lengths
    numbers[c.KEY_STARTS : c.KEY_STARTS + AXES] = _starts(problem)[1]
    rows = problem.batch * sum([own.rows(problem.additional) for own in sets])
    return Shared(sets, numbers, kept, scratch, lane_biases, rows)


CALLS: Cache[KernelCall] = Cache(size=16 << 20, size_of=lambda call: call.nbytes)


@CALLS.memoize
def kernel_call(
    problem: Problem,
    direction: Direction,
    tiles: tuple[tuple[int, ...], ...],
    layouts: tuple[Layout | None, ...],
    wanted: Wanted,
    threads: int,
) -> KernelCall:
    """The call for given tensors of these layouts, in the call's order; None where there is none.

    `tiles` are a `NumbaConfig`'s. A layout is a tensor's strides, all dimensions, and the length of the last. Results
    are contiguous, their rows of channels filled up to whole vectors.

    Raises:
        AssertionError: a tensor's rows are not such as kernels read.
    """
    both = shared(problem, tiles)
    numbers = both.numbers.copy()
    channels, value_channels = numbers[c.CHANNELS], numbers[c.VALUE_CHANNELS]
    _check_rows(layouts, LANES * channels, LANES * value_channels)
    _place_tensors(numbers, problem, direction, layouts)
    threads = max(1, min(threads, int(both.rows * ROW_NS[direction] * LANES * (channels + value_channels) / START_NS)))
    computed = _computed(wanted)
    parts = batches = 1
    if direction == "backward":
        parts, batches = _division(problem, max([own.strips for own in both.sets]), threads, computed.rpb)
        tasks = problem.kv_heads * batches * parts
    else:
        tasks = problem.batch * sum([len(own.heads) * own.strips for own in both.sets])
    numbers[c.TASKS], numbers[c.BATCHES], numbers[c.PARTS] = tasks, batches, parts
    numbers[c.HAS_GRAD_LSE] = len(layouts) > c.GRAD_LSE and layouts[c.GRAD_LSE] is not None
    numbers[c.WANTED] = (
        computed.query * c.WANT_QUERY
        + computed.key * c.WANT_KEY
        + computed.value * c.WANT_VALUE
        + computed.rpb * c.WANT_BIAS
    )
    return KernelCall(
        array("q", numbers),
        both.kept,
        max(1, min(threads, tasks)),
        both.scratch,
        parts,
        parts * batches,
        both.lane_biases,
        computed,
    )


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
    return Wanted(wanted.query, key, value, key, value, wanted.rpb)


def _division(problem: Problem, strips: int, threads: int, folds_biases: bool) -> tuple[int, int]:
    """Of a backward pass: parts of strips, and intervals of the batch, so that there are tasks for all threads.

    Gradients of biases, added up over the batch, have a slot for each interval and part: no more than are needed.
    """
    units = problem.batch * problem.kv_heads
    if units < 4 * threads:
        return min(threads // gcd(units, threads), strips, MOST_PARTS), problem.batch
    enough = 1 if threads == 1 else ceil(4 * threads / problem.kv_heads)
    return 1, min(enough, problem.batch) if folds_biases else problem.batch


def _place_tensors(
    numbers: list[int], problem: Problem, direction: Direction, layouts: tuple[Layout | None, ...]
) -> None:
    """Sets strides, addresses as far as positions say them, and sizes of gradients' parts."""
    size = lse_dtype(problem.dtype).itemsize
    results, starts = _results(problem, direction), _starts(problem)
    strides = {place: layout[:-1] for place, layout in enumerate(layouts) if layout is not None}
    for place, shape in results.items():
        strides[place] = contiguous_strides(shape)
    for place, own in strides.items():
        at = c.STRIDE + c.STRIDES * place
        numbers[at : at + c.STRIDES] = five = [size * s for s in _five(own, problem.rank, place in c.OF_ADDITIONAL)]
        if problem.is_part and place not in c.OF_ADDITIONAL:
            before = starts[place in (c.KEY, c.VALUE, c.GRAD_KEY, c.GRAD_VALUE)]
            numbers[c.ADDRESS + place] = -sum(start * stride for start, stride in zip(before, five[1:]))
    for i, place in enumerate((c.GRAD_KEY, c.GRAD_VALUE, c.GRAD_ADDITIONAL_KEY, c.GRAD_ADDITIONAL_VALUE)):
        numbers[c.PART_BYTES + i] = size * prod(results.get(place, (0,)))
    if problem.has_key_mask:
        _place_by_token(numbers, c.KEY_MASK, (problem.batch, *problem.key_lengths, 1), MASK_BYTES, starts[1])
        numbers[c.STRIDE + c.STRIDES * c.KEY_MASK + c.HEAD_STRIDE] = 0  # one for all heads
    if problem.has_window_sizes:
        _place_by_token(numbers, c.CUTS, (problem.batch, *problem.lengths, problem.heads), CUT_BYTES, starts[0])


def _place_by_token(numbers: list[int], place: int, shape: Layout, size: int, starts: Numbers) -> None:
    """Sets the strides of a contiguous `[B, *X, H]` tensor of so many bytes each, from the whole axes' start."""
    at = c.STRIDE + c.STRIDES * place
    numbers[at : at + c.STRIDES] = five = [size * s for s in _five(contiguous_strides(shape), len(shape) - 2, False)]
    numbers[c.ADDRESS + place] = -sum(start * stride for start, stride in zip(starts, five[1:]))


def _starts(problem: Problem) -> tuple[Numbers, Numbers]:
    """The first query and the first key along each of three axes."""
    spans = [None] * (AXES - problem.rank) + list(problem.neighborhoods[0].spans)
    return [0 if s is None else s.queries[0] for s in spans], [0 if s is None else s.keys[0] for s in spans]


def _results(problem: Problem, direction: Direction) -> dict[int, tuple[int, ...]]:
    """Shapes of what is computed."""
    width, value_width = (n + -n % LANES for n in (problem.head_dim, problem.value_dim))
    queries = problem.batch, *problem.lengths, problem.heads
    if direction == "forward":
        return {c.OUTPUT: (*queries, value_width), c.LSE: (*queries, 1)}
    keys = problem.batch, *problem.key_lengths, problem.kv_heads
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


def _place_sets(numbers: Numbers, problem: Problem, sets: Sequence[HeadSet], size: int) -> tuple[tuple[Ints, ...], int]:
    """Sets the head sets; the tables that they hold addresses of, and how many numbers their biases by lanes are."""
    kept: list[Ints] = []
    first_task = lane_biases = 0
    for number, own in enumerate(sets):
        group = problem.group_size
        firsts = [bisect_left(own.heads, kv * group) for kv in range(problem.kv_heads + 1)]
        heads, lanes = np.array([*own.heads, *firsts], np.int64), lane_table(own.tile)
        kept += [heads, lanes, *(table.table for table in own.tables)]
        step2 = size * LANES
        step1 = step2 * own.offsets[2]
        step0 = step1 * own.offsets[1]
        fields = {
            c.FIRST_TASK: first_task,
            c.OWN_HEADS: heads.ctypes.data,
            c.HEAD_COUNT: len(own.heads),
            c.GROUP_HEADS: heads.ctypes.data + 8 * len(own.heads),
            c.SPANS: own.spans,
            c.STRIPS: own.strips,
            c.LANE_PLACES: lanes.ctypes.data,
            c.LANE_BITS: lanes.ctypes.data + lanes.nbytes // 2,
            c.BIAS_FIRST: size * lane_biases,
            c.BIAS_HEAD: step0 * own.offsets[0],
        }
        values = [*(fields[i] for i in range(c.BIAS_STEP)), step0, step1, step2]
        for table in own.tables:
            values += table.addressed()
        at = c.LENGTH + c.SET_FIELDS * number
        numbers[at : at + c.SET_FIELDS] = values
        first_task += problem.batch * own.strips * len(own.heads)
        lane_biases += len(own.heads) * prod(own.offsets) * LANES if problem.has_rpb else 0
    return tuple(kept), lane_biases


def _place_scratch(numbers: Numbers, size: int, channels: int, value_channels: int, widest: Sequence[int]) -> int:
    """Sets where in a thread's scratch memory what is; how many bytes it is."""
    keys = CHUNK + SPARE
    row, most_channels = LANES * size, max(channels, value_channels)
    wanted = {
        c.QUERY_COLUMNS: LANES * channels * row,
        c.GRAD_OUTPUT_COLUMNS: LANES * value_channels * row,
        c.OUTPUT_ROWS: LANES * value_channels * row,
        c.SCORES: keys * row,
        c.GRAD_SCORES: keys * row,
        c.HIGHEST: row,
        c.TOTAL: row,
        c.ZEROS: row,
        c.UNREAD: most_channels * row,
        c.ROWS: 8 * LANES * (c.TENSORS + 1),
        **dict.fromkeys((c.KEYS, c.VALUES, c.GRAD_KEYS, c.GRAD_VALUES, c.BIASES, c.GRAD_BIASES), 8 * keys),
        c.KEY_BITS: 2 * keys,
        **{c.AXIS_BITS + axis: 2 * (most + 1) for axis, most in enumerate(widest)},
    }
    total = 8 * c.STATE_LENGTH
    for place, needed in wanted.items():
        total += -total % 64
        numbers[place] = total
        total += needed
    return total + -total % 64 + 64  # no two threads in one cache line, whatever the address
