"""The window rule of `vicinal.geometry.window` in Triton, and the tile bookkeeping that every kernel shares.

All of it speaks of positions within one dilation group. Lengths, windows, strides, dilations and modes are
run-time integers, so that neither a new window nor a new length compiles a new kernel; two constexprs keep
the common case cheap: `STRIDED` (some stride exceeds 1) and `MODED` (some axis is not `SHIFT`). Arguments may be
scalars or blocks. Integers are divided only where they are not negative: Triton's truncation is a floor there.

What there is one of per axis comes in tuples, as long as the problem has axes: one source serves every rank.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from vicinal.geometry import window as definition

SHIFT = tl.constexpr(definition.SHIFT)  # at a border the window moves inward
CLIP = tl.constexpr(definition.CLIP)  # at a border the window is cut
CAUSAL = tl.constexpr(definition.CAUSAL)  # the window ends at the query
# `WRAP`, around a circle, is none of these: the window goes on, before and beyond the axis, where the keys given are.


class Parts(NamedTuple):
    """What of the axes is given (`vicinal.geometry.span`): one integer per axis."""

    query_starts: Any
    query_lengths: Any
    key_starts: Any
    key_lengths: Any
    reaches: Any  # how far what tiles walk goes on around a circular axis, at both ends; 0 where it does not


class Axes(NamedTuple):
    """A problem's axes, at run time: each field has one integer per axis, but the last, which is None for whole axes.

    An axis that is of the dilation groups of the one before it has 1 for length, window, stride and dilation: its
    tokens are counted by the length of that one.
    """

    lengths: Any
    windows: Any
    strides: Any
    dilations: Any
    modes: Any
    parts: Parts | None = None


class Flags(NamedTuple):
    """What kernels are compiled for, to keep the common case cheap."""

    strided: bool  # some stride exceeds 1
    dilated: bool  # some dilation exceeds 1
    moded: bool  # some axis is not `SHIFT`
    wide: bool  # offsets within a tile may need more than 31 bits
    checked: bool  # tiles of a box may pass the end of an axis
    chained: bool = False  # launched while the kernel before may still run: `memory.await_previous`
    packed: bool = False  # maps of different sizes: `boxes.map_of`
    circles: int = 0  # the axes around which tokens are walked, a bit for each
    turns: int = 0  # how often a step may pass the end of such an axis
    unfolded: int = -1  # the axis that is of the dilation groups of the axis before it (`vicinal.geometry.unfold`)


class Tile(NamedTuple):
    """The tile of one program, in its dilation group; a tuple per axis, but `beyond`."""

    group: Any
    first: Any  # position within the group
    lengths: Any  # of the group
    beyond: Any  # past the end of the group: there is nothing to do
    ends: Any  # of the group, or of its tokens that are given, that tiles are of
    box_starts: Any  # where the tokens that tiles walk start and end within the group
    box_ends: Any


# --- the rule: one axis ------------------------------------------------------------------------------------


@triton.jit
def window_start(query, length, window, stride, mode, STRIDED: tl.constexpr, MODED: tl.constexpr):
    """The first key of `query`."""
    start = tl.maximum(_leader(query, length, stride, mode, STRIDED, MODED) - _left_reach(window, mode, MODED), 0)
    inward = tl.minimum(start, length - window)
    if MODED:
        start = tl.where(mode == SHIFT, inward, start)
    else:
        start = inward
    return start


@triton.jit
def window_stop(query, length, window, stride, mode, STRIDED: tl.constexpr, MODED: tl.constexpr):
    """One past the last key of `query`."""
    stop = window_start(query, length, window, stride, mode, STRIDED, MODED) + window
    if MODED:
        clipped = _leader(query, length, stride, mode, STRIDED, MODED) - window // 2 + window
        stop = tl.where(mode == CLIP, tl.minimum(clipped, length), stop)
        stop = tl.where(mode == CAUSAL, query + 1, stop)
    return stop


@triton.jit
def first_query_starting_at(key, length, window, stride, mode, STRIDED: tl.constexpr, MODED: tl.constexpr):
    """The first query whose window starts at `key` or later; `length` if none does."""
    first = _first_query_led_from(key + _left_reach(window, mode, MODED), length, stride, mode, STRIDED, MODED)
    beyond = key > length - window
    if MODED:
        beyond = beyond & (mode == SHIFT)
    return tl.where(key <= 0, 0, tl.where(beyond, length, first))


@triton.jit
def first_query_stopping_after(key, length, window, stride, mode, STRIDED: tl.constexpr, MODED: tl.constexpr):
    """The first query whose window includes `key` or goes beyond it; `length` if none does."""
    first = first_query_starting_at(key - window + 1, length, window, stride, mode, STRIDED, MODED)
    if MODED:
        clipped = _first_query_led_from(key + 1 - window + window // 2, length, stride, mode, STRIDED, MODED)
        clipped = tl.where(key >= length, length, clipped)
        first = tl.where(mode == CLIP, clipped, first)
        first = tl.where(mode == CAUSAL, tl.minimum(tl.maximum(key, 0), length), first)
    return first


@triton.jit
def _left_reach(window, mode, MODED: tl.constexpr):
    reach = window // 2
    if MODED:
        reach = tl.where(mode == CAUSAL, window - 1, reach)
    return reach


@triton.jit
def _leader_offset(stride, mode, MODED: tl.constexpr):
    offset = stride // 2
    if MODED:
        offset = tl.where(mode == CAUSAL, stride - 1, offset)
    return offset


@triton.jit
def _leader(query, length, stride, mode, STRIDED: tl.constexpr, MODED: tl.constexpr):
    leader = query
    if STRIDED:
        leader = query // stride * stride + _leader_offset(stride, mode, MODED)
    return tl.minimum(leader, length - 1)


@triton.jit
def _first_query_led_from(position, length, stride, mode, STRIDED: tl.constexpr, MODED: tl.constexpr):
    first = tl.maximum(position, 0)
    if STRIDED:
        ahead = tl.maximum(position - _leader_offset(stride, mode, MODED), 0)
        first = (ahead + stride - 1) // stride * stride
    return tl.where(position > length - 1, length, tl.minimum(first, length))


# --- tiles: one axis ---------------------------------------------------------------------------------------


@triton.jit
def group_length(length, dilation, group, DILATED: tl.constexpr):
    """How many tokens of an axis are in dilation group `group`."""
    if DILATED:
        length = (length - group + dilation - 1) // dilation
    return length


@triton.jit
def tiles_along(length, dilation, TILE: tl.constexpr, DILATED: tl.constexpr):
    """Tiles of the longest dilation group of an axis."""
    return (group_length(length, dilation, 0, DILATED) + TILE - 1) // TILE


@triton.jit
def box_start(start, stop, first, end, TILE: tl.constexpr):
    """Where tiles that cover `[start, stop)` begin: at `start`, or before it where they would pass the end.

    So every tile lies within the tokens there are, `[first, end)`, and needs no bounds check, unless they are fewer
    than its own.
    """
    covered = (stop - start + TILE - 1) // TILE * TILE
    return tl.maximum(tl.minimum(start, end - covered), first)


@triton.jit
def key_box(
    first, length, end, box_first, box_end, window, stride, mode,
    QUERY_TILE: tl.constexpr, KEY_TILE: tl.constexpr, STRIDED: tl.constexpr, MODED: tl.constexpr,
):  # fmt: skip
    """The key tiles of the query tile at `first`, along one axis: queries to `end`, keys from `box_first` to `box_end`.

    Returns (begin, end) of the tiles laid, and (low, high), the keys that every query of the tile attends to.
    """
    last = tl.minimum(first + QUERY_TILE, end) - 1
    start = window_start(first, length, window, stride, mode, STRIDED, MODED)
    stop = window_stop(last, length, window, stride, mode, STRIDED, MODED)
    low = window_start(last, length, window, stride, mode, STRIDED, MODED)
    high = window_stop(first, length, window, stride, mode, STRIDED, MODED)
    begin = box_start(start, stop, box_first, box_end, KEY_TILE)
    return begin, begin + (stop - start + KEY_TILE - 1) // KEY_TILE * KEY_TILE, low, high


@triton.jit
def query_box(
    first, length, end, box_first, box_end, window, stride, mode,
    KEY_TILE: tl.constexpr, QUERY_TILE: tl.constexpr, STRIDED: tl.constexpr, MODED: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """The query tiles that reach the key tile at `first`, along one axis; `begin == end` where none does.

    Keys to `end`, queries from `box_first` to `box_end`, which are all there may be unless `PART`.

    Returns (begin, end) of the tiles laid, and (low, high), the queries that attend to every key of the tile.
    """
    last = tl.minimum(first + KEY_TILE, end) - 1
    start = first_query_stopping_after(first, length, window, stride, mode, STRIDED, MODED)
    stop = first_query_starting_at(last + 1, length, window, stride, mode, STRIDED, MODED)
    low = first_query_stopping_after(last, length, window, stride, mode, STRIDED, MODED)
    high = first_query_starting_at(first + 1, length, window, stride, mode, STRIDED, MODED)
    if PART:
        start = tl.minimum(tl.maximum(start, box_first), box_end)
        stop = tl.minimum(stop, box_end)
        high = tl.minimum(high, box_end)
    stop = tl.maximum(start, stop)
    begin = box_start(start, stop, box_first, box_end, QUERY_TILE)
    return begin, begin + (stop - start + QUERY_TILE - 1) // QUERY_TILE * QUERY_TILE, low, high


# --- tiles: all axes ---------------------------------------------------------------------------------------


@triton.jit
def tile_of(index, axes, TILE: tl.constexpr, FLAGS: tl.constexpr, INVERSE: tl.constexpr = False):
    """A program's number -> its `Tile`, of queries, or of keys if `INVERSE`.

    Groups vary slowest, so that programs that run together share keys. A number past the last tile is `beyond`.
    """
    if axes.parts is not None:
        return _tile_of_part(index, axes, TILE, FLAGS, INVERSE)
    else:
        return _tile_of_whole(index, axes, TILE, FLAGS)


@triton.jit
def _tile_of_whole(index, axes, TILE: tl.constexpr, FLAGS: tl.constexpr):
    group, first, left = _group_and_first(index, axes.lengths, axes.dilations, TILE, FLAGS)
    beyond = left > 0
    lengths = ()
    starts = ()
    for axis in tl.static_range(len(TILE)):
        if axis == FLAGS.unfolded:
            longer, shorter = _groups_beside(axes.lengths[axis - 1], axes.dilations[axis - 1])
            length = tl.where(group[axis] == 0, longer, shorter)
        elif axis + 1 == FLAGS.unfolded:
            length = group_length(axes.lengths[axis], axes.dilations[axis], group[axis + 1], True)
        else:
            length = group_length(axes.lengths[axis], axes.dilations[axis], group[axis], FLAGS.dilated)
        beyond = beyond | (first[axis] >= length)
        lengths = lengths + (length,)
        starts = starts + (0,)
    return Tile(group, first, lengths, beyond, lengths, starts, lengths)


@triton.jit
def _tile_of_part(index, axes, TILE: tl.constexpr, FLAGS: tl.constexpr, INVERSE: tl.constexpr):
    """Tokens that are given are of dilation groups by their place along the whole axis, and so are positions."""
    own_starts, own_lengths = part_of(axes, INVERSE)
    other_starts, other_lengths = part_of(axes, not INVERSE)
    places = ()
    for axis in tl.static_range(len(TILE) - 1, -1, -1):
        count = tiles_along(own_lengths[axis], axes.dilations[axis], TILE[axis], FLAGS.dilated)
        places = (index % count,) + places
        index = index // count
    group = ()
    first = ()
    lengths = ()
    ends = ()
    box_starts = ()
    box_ends = ()
    beyond = index < 0
    for axis in tl.static_range(len(TILE) - 1, -1, -1):
        dilation = axes.dilations[axis]
        token = own_starts[axis]
        g = token * 0
        if FLAGS.dilated:
            abreast = tl.minimum(dilation, own_lengths[axis])
            token += index % abreast
            index = index // abreast
            g = token % dilation
            token = token // dilation
        position = token + places[axis] * TILE[axis]
        end = group_length(own_starts[axis] + own_lengths[axis], dilation, g, FLAGS.dilated)
        beyond = beyond | (position >= end)
        group = (g,) + group
        first = (position,) + first
        lengths = (group_length(axes.lengths[axis], dilation, g, FLAGS.dilated),) + lengths
        ends = (end,) + ends
        other_start = other_starts[axis] - axes.parts.reaches[axis]
        other_end = other_starts[axis] + other_lengths[axis] + axes.parts.reaches[axis]
        box_starts = (group_length(other_start, dilation, g, FLAGS.dilated),) + box_starts
        box_ends = (group_length(other_end, dilation, g, FLAGS.dilated),) + box_ends
    return Tile(group, first, lengths, beyond | (index > 0), ends, box_starts, box_ends)


@triton.jit
def part_of(axes, KEYS: tl.constexpr):
    """Where the queries (or keys) that are given start along each axis, and how many they are."""
    if KEYS:
        return axes.parts.key_starts, axes.parts.key_lengths
    else:
        return axes.parts.query_starts, axes.parts.query_lengths


@triton.jit
def lengths_of(axes, KEYS: tl.constexpr):
    """The lengths of the tensors of queries (or keys)."""
    if axes.parts is None:
        return axes.lengths
    else:
        return part_of(axes, KEYS)[1]


@triton.jit
def positions_in(TILE: tl.constexpr):
    """The positions within a tile of its tokens, row-major: one block per axis."""
    token = tl.arange(0, size_of(TILE))
    positions = ()
    for axis in tl.static_range(len(TILE)):
        positions = positions + (token // size_of(TILE, axis + 1) % TILE[axis],)
    return positions


@triton.constexpr_function
def size_of(TILE, FIRST=0):
    """How many tokens a tile has, or its axes from `FIRST` on."""
    size = 1
    for tokens in TILE[FIRST:]:
        size *= tokens
    return size


@triton.jit
def shifted(positions, first):
    """`positions + first` along each axis."""
    sums = ()
    for axis in tl.static_range(len(first)):
        sums = sums + (first[axis] + positions[axis],)
    return sums


@triton.jit
def tokens_at(positions, group, dilations):
    """Positions within a dilation group -> positions along the axes."""
    tokens = ()
    for axis in tl.static_range(len(group)):
        tokens = tokens + (group[axis] + positions[axis] * dilations[axis],)
    return tokens


@triton.jit
def linear(positions, strides):
    """The sum of `positions` times `strides`; 64-bit where an operand is."""
    offset = positions[len(positions) - 1] * strides[len(positions) - 1]
    for axis in tl.static_range(len(positions) - 2, -1, -1):
        offset = offset + positions[axis] * strides[axis]
    return offset


@triton.jit
def unravelled(number, sizes):
    """A row-major number in an array of `sizes` -> the place along each axis."""
    places = ()
    for axis in tl.static_range(len(sizes) - 1, 0, -1):
        places = (number % sizes[axis],) + places
        number = number // sizes[axis]
    return (number,) + places


@triton.jit
def product(sizes):
    """How many elements an array of `sizes` has."""
    count = sizes[0]
    for axis in tl.static_range(1, len(sizes)):
        count = count * sizes[axis]
    return count


@triton.jit
def next_tile(at, begin, end, TILE: tl.constexpr):
    """The tile after the one at `at` of a box from `begin` to `end`, the last axis fastest."""
    moved = ()
    x = at[len(TILE) - 1] + TILE[len(TILE) - 1]
    for axis in tl.static_range(len(TILE) - 1, 0, -1):
        wrap = x >= end[axis]
        moved = (tl.where(wrap, begin[axis], x),) + moved
        x = tl.where(wrap, at[axis - 1] + TILE[axis - 1], at[axis - 1])
    return (x,) + moved


@triton.jit
def chosen(condition, these, others):
    """`tl.where` along each axis."""
    picked = ()
    for axis in tl.static_range(len(these)):
        picked = picked + (tl.where(condition, these[axis], others[axis]),)
    return picked


@triton.jit
def _group_and_first(index, lengths, dilations, TILE: tl.constexpr, FLAGS: tl.constexpr):
    """Of a program's tile: its group, its first position, and what is left of the number, 0 but past the last."""
    LAST: tl.constexpr = len(TILE) - 1
    first = ()
    for axis in tl.static_range(LAST, -1, -1):
        if axis == FLAGS.unfolded:  # tiles of the longer groups, then of the shorter ones
            longer, shorter = _groups_beside(lengths[axis - 1], dilations[axis - 1])
            longer_tiles = (longer + TILE[axis] - 1) // TILE[axis]
            count = longer_tiles + (shorter + TILE[axis] - 1) // TILE[axis]
            place = index % count
            is_longer = place < longer_tiles
            first = (tl.where(is_longer, place, place - longer_tiles) * TILE[axis],) + first
            beside = tl.where(is_longer, 0, longer)
        else:
            count = tiles_along(lengths[axis], dilations[axis], TILE[axis], FLAGS.dilated)
            first = (index % count * TILE[axis],) + first
        index = index // count
    group = ()
    for axis in tl.static_range(LAST, -1, -1):
        if axis == FLAGS.unfolded:
            group = (beside,) + group
        elif axis + 1 == FLAGS.unfolded or not FLAGS.dilated:  # a division costs some 30 instructions
            group = (0,) + group
        else:
            group = (index % dilations[axis],) + group
            index = index // dilations[axis]
    return group, first, index


@triton.jit
def _groups_beside(length, dilation):
    """How many dilation groups of an axis are of the longest ones, and how many are a token shorter."""
    longer = (length - 1) % dilation + 1
    return longer, tl.minimum(dilation, length) - longer


@triton.jit
def bias_strides(windows):
    """Of a head's bias table `[2*K-1, ...]`: its strides per axis, the place of offset 0, and its size."""
    strides = ()
    middle = 0
    size = 1
    for axis in tl.static_range(len(windows) - 1, -1, -1):
        strides = (size,) + strides
        middle += (windows[axis] - 1) * size
        size *= 2 * windows[axis] - 1
    return strides, middle, size
