"""Masks of score tiles, shared by the forward and the backward kernels."""

from vicinal.kernels.gluon.compat import gl, gluon
from vicinal.kernels.gluon.walk import row_position


@gluon.jit
def masked(
    s, c, low, high, starts, widths, N: gl.constexpr, RANK: gl.constexpr,
    HALF: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    """Scores `s` plus minus infinity where the tile at `c` is not in a row's window.

    Only along axes that cut the tile: one scalar test each. Few of an axis's terms differ within a thread, and each
    score costs an addition, which runs at twice the rate of the selections and predicates of a mask.
    With `HALF` 0 or 1 the tile at `c` is that half of the columns, and the other half is left alone; -1: all columns.
    """
    if not ((c[2] >= low[2]) & (c[2] + N[2] <= high[2])):
        s = _masked_along(s, c, starts, widths, 2, N, HALF, layout)
    if RANK >= 2:
        if not ((c[1] >= low[1]) & (c[1] + N[1] <= high[1])):
            s = _masked_along(s, c, starts, widths, 1, N, HALF, layout)
    if RANK == 3:
        if not ((c[0] >= low[0]) & (c[0] + N[0] <= high[0])):
            s = _masked_along(s, c, starts, widths, 0, N, HALF, layout)
    return s


@gluon.jit
def _masked_along(
    s, c, starts, widths, A: gl.constexpr, N: gl.constexpr, HALF: gl.constexpr,
    layout: gl.constexpr,
):  # fmt: skip
    SIZE: gl.constexpr = N[0] * N[1] * N[2]
    column = gl.arange(0, SIZE if HALF < 0 else 2 * SIZE, layout=gl.SliceLayout(0, layout))
    inside = _within(c[A] - starts[A], widths[A], row_position(column % SIZE, A, N[1], N[2]))
    lowered = s + gl.where(inside, 0.0, float("-inf"))
    if HALF >= 0:  # known for every register when compiling: the other half costs nothing
        lowered = gl.where((column // SIZE == HALF)[None, :], lowered, s)
    return lowered


@gluon.jit
def _within(offset, width, position):
    distance = offset[:, None] + position[None, :]
    return distance.to(gl.uint32) < width.to(gl.uint32)[:, None]
