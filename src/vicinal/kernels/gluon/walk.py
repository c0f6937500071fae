"""Where a work item is and which boxes it walks: scalars only, shared by the forward and the backward kernels.

Three axes always: problems of fewer have leading axes of length 1. `axes` is the tuple of run-time integers
(L0, L1, L2, K0, K1, K2, S0, S1, S2, M0, M1, M2): lengths, windows, strides, and the modes of
`vicinal.kernels.triton.window`. With `PER_HEAD` the windows, strides and modes come from a table `[H, 9]` instead.
The window rule itself is `vicinal.kernels.triton.window`'s.
"""

from vicinal.kernels.gluon.compat import gl, gluon, import_triton
from vicinal.kernels.triton import window as rule

# Arguments of which Triton need not know whether 16 divides them: one compiled kernel serves every window and length.
AXES = ("L0", "L1", "L2", "K0", "K1", "K2", "S0", "S1", "S2", "M0", "M1", "M2")
GROUPS = ("g0", "g1", "g2")  # nor whether they are 1: launches of one dilated problem share a kernel
TILES = ("n0", "n1", "n2", "heads", "group", "g0", "g1", "g2", "X1", "X2")

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
def locate(item, tiles, heads, groups, GROUPED: gl.constexpr):
    """Work item -> (batch element, it and its dilation group as one number, the group's first token, head, tile).

    `groups` are the dilation groups along each axis, and the tokens of the whole problem along the last two; tiles are
    along each axis. Neighboring items share keys. Without `GROUPED` there is one group.
    """
    t2 = item % tiles[2]
    rest = item // tiles[2]
    t1 = rest % tiles[1]
    rest = rest // tiles[1]
    t0 = rest % tiles[0]
    rest = rest // tiles[0]
    head = rest % heads
    rest = rest // heads
    if GROUPED:
        j2 = rest % groups[2]
        left = rest // groups[2]
        j1 = left % groups[1]
        left = left // groups[1]
        j0 = left % groups[0]
        return left // groups[0], rest, (j0 * groups[3] + j1) * groups[4] + j2, head, (t0, t1, t2)
    else:
        return rest, rest, 0, head, (t0, t1, t2)


@gluon.jit
def first_of(tile, T: gl.constexpr, SPLIT: gl.constexpr, SIDES: gl.constexpr = 2):
    """The first token along each axis of a program's `SIDES` tiles, which lie side by side along `SPLIT`."""
    x0 = tile[0] * (T[0] * SIDES if SPLIT == 0 else T[0])
    x1 = tile[1] * (T[1] * SIDES if SPLIT == 1 else T[1])
    x2 = tile[2] * (T[2] * SIDES if SPLIT == 2 else T[2])
    return x0, x1, x2


@gluon.jit
def beside(x, W: gl.constexpr, T: gl.constexpr, SPLIT: gl.constexpr):
    """The first token along each axis of warpgroup `W`'s tile, of a program whose first token is `x`."""
    x0 = x[0] + (W * T[0] if SPLIT == 0 else 0)
    x1 = x[1] + (W * T[1] if SPLIT == 1 else 0)
    x2 = x[2] + (W * T[2] if SPLIT == 2 else 0)
    return x0, x1, x2


@gluon.jit
def union(
    tile, axes, T: gl.constexpr, SPLIT: gl.constexpr, INVERSE: gl.constexpr, STRIDED: gl.constexpr, MODED: gl.constexpr,
    SIDES: gl.constexpr = 2,
):  # fmt: skip
    """A program's first token along each axis, and the box that both its warpgroups need, in walk order."""
    OUTER: gl.constexpr = 1 if SPLIT == 0 else 0
    INNER: gl.constexpr = 1 if SPLIT == 2 else 2
    x = first_of(tile, T, SPLIT, SIDES)
    sa, ea, _, _ = box(x[OUTER], T[OUTER], axes, OUTER, INVERSE, STRIDED, MODED)
    sb, eb, _, _ = box(x[INNER], T[INNER], axes, INNER, INVERSE, STRIDED, MODED)
    sw, ew, _, _ = box(x[SPLIT], SIDES * T[SPLIT], axes, SPLIT, INVERSE, STRIDED, MODED)
    if INVERSE:  # TMA takes the log-sum-exp along the last axis from multiples of 16 bytes only
        if SPLIT == 2:
            sw = sw // 4 * 4
        else:
            sb = sb // 4 * 4
    return x[0], x[1], x[2], sa, ea, sb, eb, sw, ew


@gluon.jit
def own_line(
    x, sw, ew, T: gl.constexpr, N: gl.constexpr, axes, SPLIT: gl.constexpr, W: gl.constexpr, STAGES: gl.constexpr,
    INVERSE: gl.constexpr, STRIDED: gl.constexpr, MODED: gl.constexpr, SIDES: gl.constexpr = 2,
):  # fmt: skip
    """Of a line of tiles along `SPLIT`: how many, how many warpgroup `W` passes over, and how many of those come first.

    `x` is the warpgroup's first token along `SPLIT`. At most `STAGES - 1` are passed over, so that the ring, which
    may hold one tile that the warpgroup still reads, never runs dry.
    """
    mine, mine_stop, _, _ = box(x, T[SPLIT], axes, SPLIT, INVERSE, STRIDED, MODED)
    line = gl.cdiv(ew - sw, N[SPLIT])
    if SIDES == 1:
        return line, 0, 0
    skip = line - gl.cdiv(mine_stop - sw, N[SPLIT]) if W == 0 else (mine - sw) // N[SPLIT]
    skip = gl.minimum(skip, STAGES - 1)
    before = 0 if W == 0 else skip
    return line, skip, before


@gluon.jit
def rows_of(
    x, axes, T: gl.constexpr, HEADS: gl.constexpr, INVERSE: gl.constexpr, STRIDED: gl.constexpr, MODED: gl.constexpr,
    layout: gl.constexpr,
):  # fmt: skip
    """Of a warpgroup's tile at `x`: its rows' positions, their intervals' starts and widths, and what is common.

    A token is `HEADS` rows.
    """
    row = gl.arange(0, T[0] * T[1] * T[2] * HEADS, layout=layout) // HEADS
    y0 = x[0] + row_position(row, 0, T[1], T[2])
    y1 = x[1] + row_position(row, 1, T[1], T[2])
    y2 = x[2] + row_position(row, 2, T[1], T[2])
    s0, e0 = bounds(y0, axes, 0, INVERSE, STRIDED, MODED)
    s1, e1 = bounds(y1, axes, 1, INVERSE, STRIDED, MODED)
    s2, e2 = bounds(y2, axes, 2, INVERSE, STRIDED, MODED)
    _, _, lo0, hi0 = box(x[0], T[0], axes, 0, INVERSE, STRIDED, MODED)
    _, _, lo1, hi1 = box(x[1], T[1], axes, 1, INVERSE, STRIDED, MODED)
    _, _, lo2, hi2 = box(x[2], T[2], axes, 2, INVERSE, STRIDED, MODED)
    return (y0, y1, y2), (s0, s1, s2), (e0 - s0, e1 - s1, e2 - s2), (lo0, lo1, lo2), (hi0, hi1, hi2)


@gluon.jit
def next_chunk(
    at, ea, sb, eb, ew, w_first, w_stop, OUTER_STEP: gl.constexpr, INNER_STEP: gl.constexpr, STEP: gl.constexpr
):
    """The chunk after `at = (a, b, w)` in walk order, of lines `[w_first, w_stop)`.

    After the last chunk `w` is `ew` or more: a chunk that is in no window, along an axis that is always masked.
    """
    a, b, w = at
    w += STEP
    wrap = w >= w_stop
    w = gl.where(wrap, w_first, w)
    b += gl.where(wrap, INNER_STEP, 0)
    wrap = b >= eb
    b = gl.where(wrap, sb, b)
    a += gl.where(wrap, OUTER_STEP, 0)
    return a, b, gl.where(a >= ea, ew, w)


@gluon.jit
def paired_counts(
    x, sa, ea, sb, eb, sw, ew, T: gl.constexpr, N: gl.constexpr, axes, SPLIT: gl.constexpr, STRIDED: gl.constexpr,
    MODED: gl.constexpr,
):  # fmt: skip
    """A walk in pairs of chunks: lines along `SPLIT` in all, lines of one warpgroup only, and tiles of either kind.

    The first `alone` lines are the first warpgroup's only, the last `alone` the second's; both walk the rest. `x` is
    the program's first query along `SPLIT`.
    """
    OUTER: gl.constexpr = 1 if SPLIT == 0 else 0
    INNER: gl.constexpr = 1 if SPLIT == 2 else 2
    _, stop, _, _ = box(x, T[SPLIT], axes, SPLIT, False, STRIDED, MODED)
    start, _, _, _ = box(x + T[SPLIT], T[SPLIT], axes, SPLIT, False, STRIDED, MODED)
    line = gl.cdiv(ew - sw, N[SPLIT])
    alone = gl.minimum((start - sw) // N[SPLIT], line - gl.cdiv(stop - sw, N[SPLIT]))
    lines = gl.cdiv(ea - sa, N[OUTER]) * gl.cdiv(eb - sb, N[INNER])
    return line, alone, gl.cdiv(alone * lines, 2), gl.cdiv((line - 2 * alone) * lines, 2)


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
