"""Masks of score tiles, shared by the forward and the backward kernels."""

from vicinal.backends.hopper.kernels.compat import gl, gluon
from vicinal.backends.hopper.kernels.walk import row_position

LOG2E = gl.constexpr(1.4426950408889634)


@gluon.jit
def masked(s, c, rows, HALF: gl.constexpr, layout: gl.constexpr, C: gl.constexpr):
    """Scores `s` plus minus infinity where the tile at `c` is not in the interval of one of `rows`.

    Only along axes that cut the tile: one scalar test each. Few of an axis's terms differ within a thread, and each
    score costs an addition, which runs at twice the rate of the selections and predicates of a mask.
    With `HALF` 0 or 1 the tile at `c` is that half of the columns, and the other half is left alone; -1: all columns.
    """
    if not ((c[2] >= rows.low[2]) & (c[2] + C.step[2] <= rows.high[2])):
        s = _masked_along(s, c, rows, 2, HALF, layout, C)
    if C.rank >= 2:
        if not ((c[1] >= rows.low[1]) & (c[1] + C.step[1] <= rows.high[1])):
            s = _masked_along(s, c, rows, 1, HALF, layout, C)
    if C.rank == 3:
        if not ((c[0] >= rows.low[0]) & (c[0] + C.step[0] <= rows.high[0])):
            s = _masked_along(s, c, rows, 0, HALF, layout, C)
    return s


@gluon.jit
def masked_exponents(s, c, rows, scale, layout: gl.constexpr, C: gl.constexpr):
    """`masked` scores, scaled, for exponentials in base 2."""
    if C.scaled:
        return masked(s * (scale * LOG2E), c, rows, -1, layout, C)
    else:
        return masked(s, c, rows, -1, layout, C) * (scale * LOG2E)


@gluon.jit
def _masked_along(s, c, rows, A: gl.constexpr, HALF: gl.constexpr, layout: gl.constexpr, C: gl.constexpr):
    STEP: gl.constexpr = C.step
    SIZE: gl.constexpr = STEP[0] * STEP[1] * STEP[2]
    column = gl.arange(0, SIZE if HALF < 0 else 2 * SIZE, layout=gl.SliceLayout(0, layout))
    inside = _within(c[A] - rows.starts[A], rows.widths[A], row_position(column % SIZE, A, STEP))
    lowered = s + gl.where(inside, 0.0, float("-inf"))
    if HALF >= 0:  # known for every register when compiling: the other half costs nothing
        lowered = gl.where((column // SIZE == HALF)[None, :], lowered, s)
    return lowered


@gluon.jit
def _within(offset, width, position):
    distance = offset[:, None] + position[None, :]
    return distance.to(gl.uint32) < width.to(gl.uint32)[:, None]
