"""A tile's box and its rows' intervals over all axes, for both directions of the window rule.

Forward (`INVERSE` false) a tile holds queries, and its box and intervals hold keys; backward (`INVERSE`) a tile holds
keys, and its box and intervals hold the queries that attend to them.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from vicinal.backends.gpu.kernels.memory import Step, Strides, around, keys_there, token_strides, walked_mask_rows
from vicinal.backends.gpu.kernels.window import (
    Axes,
    first_query_starting_at,
    first_query_stopping_after,
    key_box,
    positions_in,
    query_box,
    shifted,
    tokens_at,
    window_start,
    window_stop,
)


class Box(NamedTuple):
    """What a tile's windows cover, laid out in tiles of its own; a tuple per axis, but `count`."""

    count: Any  # of its tiles
    begin: Any
    end: Any
    low: Any  # from `low` to `high` no mask is needed
    high: Any


class Rows(NamedTuple):
    """The tokens of a tile, in blocks with an entry for each."""

    inside: Any  # whether the token exists
    offsets: Any  # per axis: within the tile
    positions: Any  # within the dilation group
    starts: Any  # of the token's interval
    sizes: Any


@triton.jit
def program_of(pid, programs, heads):
    """The number of program `pid` among the `programs` of a head, its head, and its batch entry (64-bit)."""
    return pid % programs, pid // programs % heads, (pid // programs // heads).to(tl.int64)


@triton.jit
def rules_of_head(table, head, RANK: tl.constexpr):
    """A head's row of the `[H, 4, rank]` table: windows, strides, dilations, modes, of `Axes`.

    Kernels make the `Axes` themselves: what a function of Triton returns may hold no None.
    """
    row = table + head * (4 * RANK)
    return (
        load_axes(row, RANK),
        load_axes(row + RANK, RANK),
        load_axes(row + 2 * RANK, RANK),
        load_axes(row + 3 * RANK, RANK),
    )


class MapStrides(NamedTuple):
    """Of the inputs of packed maps, seen from one of them."""

    query: Any
    key: Any
    value: Any


@triton.jit
def map_of(table, index, RANK: tl.constexpr):
    """Of packed maps that of a program: its first token, the number of the tile in the map, and its rules.

    `table`: for each program of a head `[2 + 5 * rank]`: these two, then lengths, windows, strides, dilations, modes,
    of `Axes`. Rules are there for every tile, so that no load waits for another; what a kernel
    does not use costs nothing.
    """
    row = table + index * (2 + 5 * RANK)
    first = tl.load(row).to(tl.int64)
    number = tl.load(row + 1)
    rules = ()
    for part in tl.static_range(5):
        rules = rules + (load_axes(row + 2 + part * RANK, RANK),)
    return first, number, rules


@triton.jit
def strides_of_map(strides, lengths):
    """The strides of a map; those given have one axis, that of all tokens."""
    steps = token_strides(lengths)
    return MapStrides(_of_map(strides.query, steps), _of_map(strides.key, steps), _of_map(strides.value, steps))


@triton.jit
def _of_map(strides, steps):
    """Of a map's tokens; the first of them counts like a batch entry."""
    tokens = ()
    for axis in tl.static_range(len(steps)):
        tokens = tokens + (steps[axis] * strides.tokens[0],)
    return Strides(strides.tokens[0], tokens, strides.head)


@triton.jit
def load_axes(pointer, RANK: tl.constexpr):
    """An integer per axis, side by side in memory."""
    values = ()
    for axis in tl.static_range(RANK):
        values = values + (tl.load(pointer + axis),)
    return values


@triton.jit
def box_of(tile, axes, TILE: tl.constexpr, BOX_TILE: tl.constexpr, FLAGS: tl.constexpr, INVERSE: tl.constexpr):
    """The `Box` of a tile, laid out in tiles of `BOX_TILE`."""
    count = 1
    begins = ()
    ends = ()
    lows = ()
    highs = ()
    for axis in tl.static_range(len(TILE) - 1, -1, -1):
        begin, end, low, high = _axis_box(
            tile.first[axis], tile.lengths[axis], tile.ends[axis], tile.box_starts[axis], tile.box_ends[axis],
            axes.windows[axis], axes.strides[axis], axes.modes[axis],
            TILE[axis], BOX_TILE[axis], FLAGS.strided, FLAGS.moded, INVERSE, axes.parts is not None,
        )  # fmt: skip
        count = count * ((end - begin) // BOX_TILE[axis])
        begins = (begin,) + begins
        ends = (end,) + ends
        lows = (low,) + lows
        highs = (high,) + highs
    return Box(count, begins, ends, lows, highs)


@triton.jit
def rows_of(tile, axes, TILE: tl.constexpr, FLAGS: tl.constexpr, INVERSE: tl.constexpr):
    """The `Rows` of a tile."""
    LAST: tl.constexpr = len(TILE) - 1
    offsets = positions_in(TILE)
    positions = shifted(offsets, tile.first)
    inside = positions[LAST] < tile.ends[LAST]
    for axis in tl.static_range(LAST - 1, -1, -1):
        inside = inside & (positions[axis] < tile.ends[axis])
    starts, sizes = intervals_of(positions, tile.lengths, axes, FLAGS, INVERSE)
    return Rows(inside, offsets, positions, starts, sizes)


@triton.jit
def with_inside(rows, inside):
    """Of rows only some: those `inside`."""
    return Rows(inside, rows.offsets, rows.positions, rows.starts, rows.sizes)


@triton.jit
def with_intervals(rows, starts, sizes):
    """Rows with other intervals."""
    return Rows(rows.inside, rows.offsets, rows.positions, starts, sizes)


@triton.jit
def intervals_of(positions, lengths, axes, FLAGS: tl.constexpr, INVERSE: tl.constexpr):
    """The starts and sizes of the intervals of tokens at `positions` in groups of `lengths`, per axis."""
    starts = ()
    sizes = ()
    for axis in tl.static_range(len(positions) - 1, -1, -1):
        start, size = _axis_interval(
            positions[axis], lengths[axis], axes.windows[axis], axes.strides[axis], axes.modes[axis],
            FLAGS.strided, FLAGS.moded, INVERSE,
        )  # fmt: skip
        starts = (start,) + starts
        sizes = (size,) + sizes
    return starts, sizes


@triton.jit
def sized_box(tile, axes, sizes, rows, TILE: tl.constexpr, BOX_TILE: tl.constexpr, FLAGS: tl.constexpr):
    """The `Box` of a tile of queries with windows of their own: it holds the largest, and all attend to its middle."""
    most = tl.max(tl.where(rows.inside, sizes, 1), 0)
    least = tl.min(tl.where(rows.inside, sizes, most), 0)
    large = sized_windows(axes.windows, most)
    small = sized_windows(axes.windows, least)
    outer = box_of(tile, Axes(axes.lengths, large, *axes[2:]), TILE, BOX_TILE, FLAGS, False)
    inner = box_of(tile, Axes(axes.lengths, small, *axes[2:]), TILE, BOX_TILE, FLAGS, False)
    return Box(outer.count, outer.begin, outer.end, inner.low, inner.high)


@triton.jit
def sized_intervals(positions, lengths, axes, sizes, FLAGS: tl.constexpr):
    """`intervals_of` queries whose windows are of their own `sizes`."""
    windows = sized_windows(axes.windows, sizes)
    return intervals_of(positions, lengths, Axes(axes.lengths, windows, *axes[2:]), FLAGS, False)


@triton.jit
def sized_windows(windows, sizes):
    """Along each axis `sizes`, but at most the neighborhood's windows."""
    own = ()
    for axis in tl.static_range(len(windows)):
        own = own + (tl.minimum(sizes, windows[axis]),)
    return own


@triton.jit
def coverage(columns, at, tile, box, BOX_TILE: tl.constexpr):
    """Of the box's tile at `at`: which of its tokens, at `columns` within it, exist, and whether it needs no mask."""
    LAST: tl.constexpr = len(BOX_TILE) - 1
    there = columns[LAST] + at[LAST] < tile.box_ends[LAST]
    full = (at[LAST] >= box.low[LAST]) & (at[LAST] + BOX_TILE[LAST] <= box.high[LAST])
    for axis in tl.static_range(LAST - 1, -1, -1):
        there = there & (columns[axis] + at[axis] < tile.box_ends[axis])
        full = full & (at[axis] >= box.low[axis]) & (at[axis] + BOX_TILE[axis] <= box.high[axis])
    return there, full


@triton.jit
def step_of_keys(
    at, tile, box, columns, key_mask, mask_at, batch, axes,
    BOX_TILE: tl.constexpr, FLAGS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The `Step` of the box's tile of keys at `at`, and whether it needs no mask of windows.

    With `MASKED` it is of the keys alone that the mask has, whose `mask_rows` are `mask_at`.
    """
    token = around(tokens_at(at, tile.group, axes.dilations), axes, FLAGS, True)
    there, full = coverage(columns, at, tile, box, BOX_TILE)
    if MASKED:
        there = keys_there(key_mask, batch, token, walked_mask_rows(mask_at, token, columns, axes, FLAGS), axes, there)
    return Step(token, columns, there), full


@triton.jit
def steps_of(steps, number, room, RANK: tl.constexpr):
    """Of the lists that `vicinal.backends.triton.kernels.steps` writes a program's: `(listed, whole, mixed)`.

    `listed`: where the first entry is, an integer per axis: of `whole` steps from there on, then of `mixed` ones from
    the last of `room` entries backwards.
    """
    row = steps + number.to(tl.int64) * (2 + RANK * room)
    return row + 2, tl.load(row), tl.load(row + 1)


@triton.jit
def step_at(step, box, BOX_TILE: tl.constexpr):
    """Where a box's steps of these numbers begin, along each axis."""
    at = ()
    for axis in tl.static_range(len(BOX_TILE) - 1, 0, -1):
        count = (box.end[axis] - box.begin[axis]) // BOX_TILE[axis]
        at = (box.begin[axis] + step % count * BOX_TILE[axis],) + at
        step = step // count
    return (box.begin[0] + step * BOX_TILE[0],) + at


@triton.jit
def within(columns, at, rows):
    """`[rows, columns]`: whether a column of the tile at `at` lies in the row's interval along every axis.

    Unsigned, so that one comparison tests both ends.
    """
    LAST: tl.constexpr = len(columns) - 1
    mask = _axis_within(columns[LAST], rows.starts[LAST] - at[LAST], rows.sizes[LAST])
    for axis in tl.static_range(LAST - 1, -1, -1):
        mask = mask & _axis_within(columns[axis], rows.starts[axis] - at[axis], rows.sizes[axis])
    return mask


@triton.jit
def within_sized(positions, starts, sizes):
    """`[rows, columns]`: whether a row's position lies in the column's interval along every axis."""
    LAST: tl.constexpr = len(positions) - 1
    mask = _row_within(positions[LAST], starts[LAST], sizes[LAST])
    for axis in tl.static_range(LAST - 1, -1, -1):
        mask = mask & _row_within(positions[axis], starts[axis], sizes[axis])
    return mask


@triton.jit
def _row_within(row, start, size):
    return (row[:, None] - start[None, :]).to(tl.uint32) < size[None, :].to(tl.uint32)


@triton.jit
def _axis_within(column, start, size):
    return (column[None, :] - start[:, None]).to(tl.uint32) < size[:, None].to(tl.uint32)


@triton.jit
def _axis_box(
    first, length, end, box_first, box_end, window, stride, mode, TILE: tl.constexpr, BOX_TILE: tl.constexpr,
    STRIDED: tl.constexpr, MODED: tl.constexpr, INVERSE: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    if INVERSE:
        return query_box(
            first, length, end, box_first, box_end, window, stride, mode, TILE, BOX_TILE, STRIDED, MODED, PART
        )
    else:
        return key_box(first, length, end, box_first, box_end, window, stride, mode, TILE, BOX_TILE, STRIDED, MODED)


@triton.jit
def _axis_interval(i, length, window, stride, mode, STRIDED: tl.constexpr, MODED: tl.constexpr, INVERSE: tl.constexpr):
    if INVERSE:
        start = first_query_stopping_after(i, length, window, stride, mode, STRIDED, MODED)
        stop = first_query_starting_at(i + 1, length, window, stride, mode, STRIDED, MODED)
    else:
        start = window_start(i, length, window, stride, mode, STRIDED, MODED)
        stop = window_stop(i, length, window, stride, mode, STRIDED, MODED)
    return start, stop - start
