"""Where a work item is and which boxes it walks: scalars only, shared by the forward and the backward kernels.

Three axes always: problems of fewer have leading axes of length 1. `axes` is the tuple of run-time integers
(L0, L1, L2, K0, K1, K2, S0, S1, S2, M0, M1, M2): lengths, windows, strides, and the modes of
`vicinal.kernels.triton.window`. With `PER_HEAD` the windows, strides and modes come from a table `[H, 9]` instead.
The window rule itself is `vicinal.kernels.triton.window`'s.
"""

from vicinal.kernels.gluon.compat import gl, gluon, import_triton
from vicinal.kernels.triton import window as rule

window_start = import_triton(rule.window_start)
window_stop = import_triton(rule.window_stop)
first_query_starting_at = import_triton(rule.first_query_starting_at)
first_query_stopping_after = import_triton(rule.first_query_stopping_after)


@gluon.jit
def head_axes(axes, table, head, PER_HEAD: gl.constexpr):
    """`axes` for one head."""
    if PER_HEAD:
        row = table + head * 9
        return (axes[0], axes[1], axes[2],
                gl.load(row), gl.load(row + 1), gl.load(row + 2), gl.load(row + 3), gl.load(row + 4),
                gl.load(row + 5), gl.load(row + 6), gl.load(row + 7), gl.load(row + 8))  # fmt: skip
    else:
        return axes


@gluon.jit
def key_bounds(i, axes, A: gl.constexpr, STRIDED: gl.constexpr, MODED: gl.constexpr):
    """The window `[start, stop)` along axis `A` of queries at `i` (past the end: of the last query)."""
    i = gl.minimum(i, axes[A] - 1)
    start = window_start(i, axes[A], axes[3 + A], axes[6 + A], axes[9 + A], STRIDED, MODED)
    stop = window_stop(i, axes[A], axes[3 + A], axes[6 + A], axes[9 + A], STRIDED, MODED)
    return start, stop


@gluon.jit
def query_bounds(j, axes, A: gl.constexpr, STRIDED: gl.constexpr, MODED: gl.constexpr):
    """The interval `[first, last)` along axis `A` of the queries that attend to keys at `j`; empty past the end."""
    first = first_query_stopping_after(j, axes[A], axes[3 + A], axes[6 + A], axes[9 + A], STRIDED, MODED)
    last = first_query_starting_at(j + 1, axes[A], axes[3 + A], axes[6 + A], axes[9 + A], STRIDED, MODED)
    inside = j < axes[A]
    return gl.where(inside, first, axes[A]), gl.where(inside, gl.maximum(last, first), axes[A])


@gluon.jit
def bounds(x, axes, A: gl.constexpr, INVERSE: gl.constexpr, STRIDED: gl.constexpr, MODED: gl.constexpr):
    """`key_bounds` of queries at `x`, or with `INVERSE` the `query_bounds` of keys at `x`."""
    if INVERSE:
        return query_bounds(x, axes, A, STRIDED, MODED)
    else:
        return key_bounds(x, axes, A, STRIDED, MODED)


@gluon.jit
def box(x, T, axes, A: gl.constexpr, INVERSE: gl.constexpr, STRIDED: gl.constexpr, MODED: gl.constexpr):
    """Of the tile `[x, x + T)` of axis `A`: its box `[start, stop)`, and the part `[low, high)` common to all of it."""
    first = gl.minimum(x, axes[A] - 1)
    last = gl.minimum(x + T, axes[A]) - 1
    start, high = bounds(first, axes, A, INVERSE, STRIDED, MODED)
    low, stop = bounds(gl.maximum(first, last), axes, A, INVERSE, STRIDED, MODED)
    return start, stop, low, high


@gluon.jit
def locate(item, tiles, heads, groups):
    """Work item -> (outer index, group of the last axis, head, tile along each axis): neighbors share keys."""
    t2 = item % tiles[2]
    rest = item // tiles[2]
    t1 = rest % tiles[1]
    rest = rest // tiles[1]
    t0 = rest % tiles[0]
    rest = rest // tiles[0]
    head = rest % heads
    rest = rest // heads
    return rest // groups, rest % groups, head, (t0, t1, t2)


@gluon.jit
def in_order(a, b, w, SPLIT: gl.constexpr):
    """Three values in walk order (outer axis, inner axis, the axis that is split) -> by axis."""
    if SPLIT == 0:
        return (w, a, b)
    elif SPLIT == 1:
        return (a, w, b)
    else:
        return (a, b, w)


@gluon.jit
def row_position(row, A: gl.constexpr, T1: gl.constexpr, T2: gl.constexpr):
    """The position along axis `A`, within its tile, of token `row` of a row-major tile `[T0, T1, T2]`."""
    if A == 0:
        return row // (T1 * T2)
    elif A == 1:
        return row // T2 % T1
    else:
        return row % T2
