"""A tile's box and its rows' intervals over all axes, for both directions of the window rule.

Forward (`INVERSE` false) a tile holds queries, and its box and intervals hold keys; backward (`INVERSE`) a tile holds
keys, and its box and intervals hold the queries that attend to them. Axes that a rank does not have get zeros that
are never read.
"""

import triton
import triton.language as tl

from vicinal.kernels.triton.window import (
    first_query_starting_at,
    first_query_stopping_after,
    key_box,
    query_box,
    window_start,
    window_stop,
)


@triton.jit
def box_of(
    f0, f1, f2, G0, G1, G2, K0, K1, K2, S0, S1, S2, M0, M1, M2,
    T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr,
    RANK: tl.constexpr, STRIDED: tl.constexpr, MODED: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """The box of the tile at (f0, f1, f2), laid out in tiles of N.

    Returns the number of its tiles, where it begins and ends, and the low and high ends of what needs no mask.
    """
    begin2, end2, low2, high2 = _axis_box(f2, G2, K2, S2, M2, T2, N2, STRIDED, MODED, INVERSE)
    count = (end2 - begin2) // N2
    begin0 = f2 * 0
    end0 = begin0
    low0 = begin0
    high0 = begin0
    begin1 = begin0
    end1 = begin0
    low1 = begin0
    high1 = begin0
    if RANK >= 2:
        begin1, end1, low1, high1 = _axis_box(f1, G1, K1, S1, M1, T1, N1, STRIDED, MODED, INVERSE)
        count *= (end1 - begin1) // N1
    if RANK == 3:
        begin0, end0, low0, high0 = _axis_box(f0, G0, K0, S0, M0, T0, N0, STRIDED, MODED, INVERSE)
        count *= (end0 - begin0) // N0
    return count, begin0, begin1, begin2, end1, end2, low0, low1, low2, high0, high1, high2


@triton.jit
def intervals_of(
    i0, i1, i2, G0, G1, G2, K0, K1, K2, S0, S1, S2, M0, M1, M2,
    RANK: tl.constexpr, STRIDED: tl.constexpr, MODED: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """For each token of a tile: whether it exists, and the start and size of its interval along each axis."""
    inside = i2 < G2
    w2, n2 = _axis_interval(i2, G2, K2, S2, M2, STRIDED, MODED, INVERSE)
    w0 = w2
    n0 = n2
    w1 = w2
    n1 = n2
    if RANK >= 2:
        inside = inside & (i1 < G1)
        w1, n1 = _axis_interval(i1, G1, K1, S1, M1, STRIDED, MODED, INVERSE)
    if RANK == 3:
        inside = inside & (i0 < G0)
        w0, n0 = _axis_interval(i0, G0, K0, S0, M0, STRIDED, MODED, INVERSE)
    return inside, w0, w1, w2, n0, n1, n2


@triton.jit
def tile_coverage(
    j0, j1, j2, c0, c1, c2, G0, G1, G2, low0, low1, low2, high0, high1, high2,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """Of the box's tile at (c0, c1, c2): which of its tokens exist, and whether it needs no mask."""
    there = j2 + c2 < G2
    full = (c2 >= low2) & (c2 + N2 <= high2)
    if RANK >= 2:
        there = there & (j1 + c1 < G1)
        full = full & (c1 >= low1) & (c1 + N1 <= high1)
    if RANK == 3:
        there = there & (j0 + c0 < G0)
        full = full & (c0 >= low0) & (c0 + N0 <= high0)
    return there, full


@triton.jit
def within(j0, j1, j2, r0, r1, r2, n0, n1, n2, RANK: tl.constexpr):
    """`[rows, columns]`: whether column position j lies in the row's interval `[r, r + n)` along every axis.

    Unsigned, so that one comparison tests both ends.
    """
    mask = (j2[None, :] - r2[:, None]).to(tl.uint32) < n2[:, None].to(tl.uint32)
    if RANK >= 2:
        mask = mask & ((j1[None, :] - r1[:, None]).to(tl.uint32) < n1[:, None].to(tl.uint32))
    if RANK == 3:
        mask = mask & ((j0[None, :] - r0[:, None]).to(tl.uint32) < n0[:, None].to(tl.uint32))
    return mask


@triton.jit
def neighborhood_of(table, head):
    """A head's row of the `[H, 4, 3]` table: windows, strides, dilations, modes."""
    row = table + head * 12
    return (
        tl.load(row), tl.load(row + 1), tl.load(row + 2),
        tl.load(row + 3), tl.load(row + 4), tl.load(row + 5),
        tl.load(row + 6), tl.load(row + 7), tl.load(row + 8),
        tl.load(row + 9), tl.load(row + 10), tl.load(row + 11),
    )  # fmt: skip


@triton.jit
def _axis_box(
    first, length, window, stride, mode, TILE: tl.constexpr, BOX_TILE: tl.constexpr,
    STRIDED: tl.constexpr, MODED: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    if INVERSE:
        return query_box(first, length, window, stride, mode, TILE, BOX_TILE, STRIDED, MODED)
    else:
        return key_box(first, length, window, stride, mode, TILE, BOX_TILE, STRIDED, MODED)


@triton.jit
def _axis_interval(i, length, window, stride, mode, STRIDED: tl.constexpr, MODED: tl.constexpr, INVERSE: tl.constexpr):
    if INVERSE:
        start = first_query_stopping_after(i, length, window, stride, mode, STRIDED, MODED)
        stop = first_query_starting_at(i + 1, length, window, stride, mode, STRIDED, MODED)
    else:
        start = window_start(i, length, window, stride, mode, STRIDED, MODED)
        stop = window_stop(i, length, window, stride, mode, STRIDED, MODED)
    return start, stop - start
