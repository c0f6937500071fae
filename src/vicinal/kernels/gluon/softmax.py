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
def exp2_shared(x, QUARTERS: gl.constexpr, layout: gl.constexpr):
    """`2 ** x` of `[rows, columns]`: `QUARTERS` of the columns by a polynomial, the rest by the special-function unit.

    That unit takes four times as long as anything else here. `x = n + f` with `n` an integer and `f` in [-1/2, 1/2]:
    a polynomial for `2 ** f`, relative error below 8e-5 (coefficients by Remez's algorithm), then `n` is added to the
    exponent. FlashAttention-4 shares the work like this on Blackwell.
    """
    if QUARTERS == 0:
        return gl.exp2(x)
    else:
        column = gl.arange(0, x.shape[1], layout=gl.SliceLayout(0, layout))
        low = gl.maximum(x, -127.0)
        shifted = low + 12582912.0  # 1.5 * 2**23: what is left of the sum are n's bits
        f = low - (shifted - 12582912.0)
        y = ((0.05517167 * f + 0.24261112) * f + 0.69326099) * f + 0.99992807
        bits = y.to(gl.int32, bitcast=True) + (shifted.to(gl.int32, bitcast=True) << 23)
        return gl.where((column // 8 % 4 < QUARTERS)[None, :], bits.to(gl.float32, bitcast=True), gl.exp2(x))


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
