"""Masks of score tiles, shared by the forward and the backward kernels."""

from vicinal.kernels.gluon.compat import gl, gluon
from vicinal.kernels.gluon.walk import row_position


@gluon.jit
def inside_all(c, low, high, N0: gl.constexpr, N1: gl.constexpr, N2: gl.constexpr, RANK: gl.constexpr):
    """Whether the tile of columns at `c` lies in every row's interval along every axis: one scalar."""
    full = (c[2] >= low[2]) & (c[2] + N2 <= high[2])
    if RANK >= 2:
        full = full & (c[1] >= low[1]) & (c[1] + N1 <= high[1])
    if RANK == 3:
        full = full & (c[0] >= low[0]) & (c[0] + N0 <= high[0])
    return full


@gluon.jit
def neighbors(
    c, starts, widths, N0: gl.constexpr, N1: gl.constexpr, N2: gl.constexpr, RANK: gl.constexpr, layout: gl.constexpr
):
    """`[rows, N0*N1*N2]`: the columns of the tile at `c` that each row attends to.

    One unsigned comparison per axis: `start <= x < start + width` is `x - start < width` without a sign.
    """
    column = gl.arange(0, N0 * N1 * N2, layout=gl.SliceLayout(0, layout))
    mask = _within(c[2] - starts[2], widths[2], row_position(column, 2, N1, N2))
    if RANK >= 2:
        mask = mask & _within(c[1] - starts[1], widths[1], row_position(column, 1, N1, N2))
    if RANK == 3:
        mask = mask & _within(c[0] - starts[0], widths[0], row_position(column, 0, N1, N2))
    return mask


@gluon.jit
def paired_neighbors(
    c, d, starts, widths, N0: gl.constexpr, N1: gl.constexpr, N2: gl.constexpr, RANK: gl.constexpr, layout: gl.constexpr
):
    """`neighbors` of a tile whose first half is the chunk at `c` and whose second half is the chunk at `d`."""
    column = gl.arange(0, 2 * N0 * N1 * N2, layout=gl.SliceLayout(0, layout))
    second = column >= N0 * N1 * N2
    token = column % (N0 * N1 * N2)
    mask = _within(-starts[2], widths[2], gl.where(second, d[2], c[2]) + row_position(token, 2, N1, N2))
    if RANK >= 2:
        mask = mask & _within(-starts[1], widths[1], gl.where(second, d[1], c[1]) + row_position(token, 1, N1, N2))
    if RANK == 3:
        mask = mask & _within(-starts[0], widths[0], gl.where(second, d[0], c[0]) + row_position(token, 0, N1, N2))
    return mask


@gluon.jit
def _within(offset, width, position):
    distance = offset[:, None] + position[None, :]
    return distance.to(gl.uint32) < width.to(gl.uint32)[:, None]
