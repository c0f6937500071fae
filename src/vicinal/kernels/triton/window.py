"""The window rule of `vicinal.geometry.window` in Triton, and the tile bookkeeping that every kernel shares.

All of it speaks of positions within one dilation group. Lengths, windows, strides, dilations and modes are
run-time integers, so that neither a new window nor a new length compiles a new kernel; two constexprs keep
the common case cheap: `STRIDED` (some stride exceeds 1) and `MODED` (some axis is not `SHIFT`). Arguments may be
scalars or blocks. Integers are divided only where they are not negative: Triton's truncation is a floor there.
"""

import triton
import triton.language as tl

from vicinal.geometry import window as definition

SHIFT = tl.constexpr(definition.SHIFT)  # at a border the window moves inward
CLIP = tl.constexpr(definition.CLIP)  # at a border the window is cut
CAUSAL = tl.constexpr(definition.CAUSAL)  # the window ends at the query


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
def box_start(start, stop, length, TILE: tl.constexpr):
    """Where tiles that cover `[start, stop)` begin: at `start`, or before it where they would pass the end.

    So every tile lies within the axis, and needs no bounds check, unless the axis is shorter than them all.
    """
    covered = (stop - start + TILE - 1) // TILE * TILE
    return tl.maximum(tl.minimum(start, length - covered), 0)


# --- tiles: all axes ---------------------------------------------------------------------------------------


@triton.jit
def decode_tile(
    index, L0, L1, L2, E0, E1, E2,
    TILE0: tl.constexpr, TILE1: tl.constexpr, TILE2: tl.constexpr, RANK: tl.constexpr, DILATED: tl.constexpr,
):  # fmt: skip
    """A program's number -> its tile: the dilation group and the first position along each axis.

    Three axes always; fewer are the last ones, and the leading lengths are 1. Groups vary slowest, so that
    programs that run together share keys. Returns (group0, group1, group2, first0, first1, first2); a first
    position may lie past the end of its group, and does for a number past the last tile: nothing to do then.
    """
    t0 = 0
    t1 = 0
    n2 = tiles_along(L2, E2, TILE2, DILATED)
    t2 = index % n2
    g = index // n2
    if RANK >= 2:
        n1 = tiles_along(L1, E1, TILE1, DILATED)
        t1 = g % n1
        g = g // n1
    if RANK == 3:
        n0 = tiles_along(L0, E0, TILE0, DILATED)
        t0 = g % n0
        g = g // n0
    g0 = 0
    g1 = 0
    g2 = g % E2
    slower = g // E2
    if RANK >= 2:
        g1 = slower % E1
        slower = slower // E1
    if RANK == 3:
        g0 = slower % E0
        slower = slower // E0
    return g0, g1, g2, t0 * TILE0, t1 * TILE1, tl.where(slower > 0, L2, t2 * TILE2)


@triton.jit
def tile_positions(TILE0: tl.constexpr, TILE1: tl.constexpr, TILE2: tl.constexpr):
    """The positions within a tile of its `TILE0 * TILE1 * TILE2` tokens, row-major: one block per axis."""
    token = tl.arange(0, TILE0 * TILE1 * TILE2)
    return token // (TILE1 * TILE2), token // TILE2 % TILE1, token % TILE2


@triton.jit
def linear(x0, x1, x2, s0, s1, s2, RANK: tl.constexpr):
    """`x0 * s0 + x1 * s1 + x2 * s2` over the last `RANK` axes; 64-bit where an operand is."""
    offset = x2 * s2
    if RANK >= 2:
        offset = offset + x1 * s1
    if RANK == 3:
        offset = offset + x0 * s0
    return offset


@triton.jit
def key_box(
    first, length, window, stride, mode,
    QUERY_TILE: tl.constexpr, KEY_TILE: tl.constexpr, STRIDED: tl.constexpr, MODED: tl.constexpr,
):  # fmt: skip
    """The key tiles of the query tile at `first`, along one axis.

    Returns (begin, end) of the tiles laid, and (low, high), the keys that every query of the tile attends to.
    """
    last = tl.minimum(first + QUERY_TILE, length) - 1
    start = window_start(first, length, window, stride, mode, STRIDED, MODED)
    stop = window_stop(last, length, window, stride, mode, STRIDED, MODED)
    low = window_start(last, length, window, stride, mode, STRIDED, MODED)
    high = window_stop(first, length, window, stride, mode, STRIDED, MODED)
    begin = box_start(start, stop, length, KEY_TILE)
    return begin, begin + (stop - start + KEY_TILE - 1) // KEY_TILE * KEY_TILE, low, high


@triton.jit
def query_box(
    first, length, window, stride, mode,
    KEY_TILE: tl.constexpr, QUERY_TILE: tl.constexpr, STRIDED: tl.constexpr, MODED: tl.constexpr,
):  # fmt: skip
    """The query tiles that reach the key tile at `first`, along one axis; `begin == end` where none does.

    Returns (begin, end) of the tiles laid, and (low, high), the queries that attend to every key of the tile.
    """
    last = tl.minimum(first + KEY_TILE, length) - 1
    start = first_query_stopping_after(first, length, window, stride, mode, STRIDED, MODED)
    stop = first_query_starting_at(last + 1, length, window, stride, mode, STRIDED, MODED)
    low = first_query_stopping_after(last, length, window, stride, mode, STRIDED, MODED)
    high = first_query_starting_at(first + 1, length, window, stride, mode, STRIDED, MODED)
    stop = tl.maximum(start, stop)
    begin = box_start(start, stop, length, QUERY_TILE)
    return begin, begin + (stop - start + QUERY_TILE - 1) // QUERY_TILE * QUERY_TILE, low, high


@triton.jit
def next_tile(
    c0, c1, c2, begin1, begin2, end1, end2,
    TILE0: tl.constexpr, TILE1: tl.constexpr, TILE2: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """The tile after the one at (c0, c1, c2), the last axis fastest."""
    c2 += TILE2
    if RANK >= 2:
        wrap = c2 >= end2
        c2 = tl.where(wrap, begin2, c2)
        c1 = tl.where(wrap, c1 + TILE1, c1)
    if RANK == 3:
        wrap = c1 >= end1
        c1 = tl.where(wrap, begin1, c1)
        c0 = tl.where(wrap, c0 + TILE0, c0)
    return c0, c1, c2
