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
def bias(
    c, starts, widths, N0: gl.constexpr, N1: gl.constexpr, N2: gl.constexpr, RANK: gl.constexpr, HALF: gl.constexpr,
    layout: gl.constexpr,
):  # fmt: skip
    """What to add to the scores of the tile at `c`: nothing where `neighbors`, minus infinity elsewhere.

    A sum of one term per axis, so that few of the terms differ within a thread, and each score costs additions, which
    run at twice the rate of the selections and predicates of a mask. "Nothing" is -0.0: adding it is no instruction.
    With `HALF` 0 or 1 the tile at `c` is that half of the columns, and the other half gets nothing; -1: all columns.
    """
    SIZE: gl.constexpr = N0 * N1 * N2
    column = gl.arange(0, SIZE if HALF < 0 else 2 * SIZE, layout=gl.SliceLayout(0, layout))
    token = column % SIZE
    total = _zero_or_minus_infinity(_within(c[2] - starts[2], widths[2], row_position(token, 2, N1, N2)))
    if RANK >= 2:
        outer = _zero_or_minus_infinity(_within(c[1] - starts[1], widths[1], row_position(token, 1, N1, N2)))
        if RANK == 3:
            first = _within(c[0] - starts[0], widths[0], row_position(token, 0, N1, N2))
            outer = outer + _zero_or_minus_infinity(first)
        total = outer + total
    if HALF >= 0:
        total = gl.where((column // SIZE == HALF)[None, :], total, -0.0)
    return total


@gluon.jit
def _zero_or_minus_infinity(mask):
    return gl.where(mask, -0.0, float("-inf"))


@gluon.jit
def _within(offset, width, position):
    distance = offset[:, None] + position[None, :]
    return distance.to(gl.uint32) < width.to(gl.uint32)[:, None]
