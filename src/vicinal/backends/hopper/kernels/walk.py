"""Where a work item is and which boxes it walks: scalars only, shared by the forward and the backward kernels.

Three axes always: problems of fewer have leading axes of length 1. With `Constants.per_head` windows, strides and
modes come from a table `[H, 9]`, not from the arguments. The window rule is `vicinal.backends.gpu.kernels.window`'s.

Triton's key of a kernel in its cache does not see the fields of the named tuples below: who reorders them, clears it.
"""

from typing import Any, NamedTuple

from vicinal.backends.gpu.kernels import window as rule
from vicinal.backends.hopper.kernels import arguments
from vicinal.backends.hopper.kernels.arguments import Grid, GroupAxes, Groups
from vicinal.backends.hopper.kernels.chain import await_previous
from vicinal.backends.hopper.kernels.compat import gl, gluon, import_triton
from vicinal.backends.hopper.kernels.ring import pass_over_tiles

block_of = gluon.constexpr_function(arguments.block_of)
window_start = import_triton(rule.window_start)
window_stop = import_triton(rule.window_stop)
first_query_starting_at = import_triton(rule.first_query_starting_at)
first_query_stopping_after = import_triton(rule.first_query_stopping_after)
unravelled = import_triton(rule.unravelled)


class Work(NamedTuple):
    """All that a launch is told at run time, but its tensors: `Scalars`, and what is passed beside them."""

    axes: GroupAxes
    grid: Grid
    strides: Any  # the kernel's own
    scale: Any
    groups: Groups
    table: Any  # pointer to `[H, 9]`, with `Constants.per_head`
    more: Any  # `More`, where there are additional keys


@gluon.jit
def work_of(scalars, groups, table, more):
    """A launch's `Work`."""
    if more is None:
        more = ()
    return Work(scalars.axes, scalars.grid, scalars.strides, scalars.scale, groups, table, more)


class Item(NamedTuple):
    """Which part of the problem a program works on."""

    batch: Any
    place: Any  # batch element and dilation group as one number
    token: Any  # the dilation group's first
    head: Any
    tile: Any  # along each axis


class Walk(NamedTuple):
    """The box that both warpgroups of a program need, as intervals `(start, stop)` of the nest of loops over it."""

    first: Any  # token along each axis of the program's own tiles
    outer: Any
    inner: Any
    split: Any  # the fastest: along `Constants.split`


class Share(NamedTuple):
    """A warpgroup's share of every line of a walk along `Constants.split`."""

    first: Any
    stop: Any
    skip: Any  # tiles that it passes over in every line
    before: Any  # how many of them come first in a line
    count: Any  # tiles that it needs, in all lines


class OwnRows(NamedTuple):
    """A warpgroup's rows; what they need of the other side. Each field has one value per axis."""

    positions: Any
    starts: Any  # of each row's interval
    widths: Any
    low: Any  # `[low, high)` is in every row's interval
    high: Any


# --- the window rule: one axis -----------------------------------------------------------------------------


@gluon.jit
def own_length(axes, A: gl.constexpr, C: gl.constexpr):
    """How many tokens there are, along axis `A`, of which own tiles are."""
    if C.parts:
        return axes.lengths[(12 if C.inverse else 6) + A]
    else:
        return axes.lengths[A]


@gluon.jit
def query_length(axes, A: gl.constexpr, C: gl.constexpr):
    """How many queries there are along axis `A`."""
    if C.parts:
        return axes.lengths[6 + A]
    else:
        return axes.lengths[A]


@gluon.jit
def key_bounds(i, axes, A: gl.constexpr, C: gl.constexpr):
    """The window `[start, stop)` along axis `A` of queries at `i` (past the end: of the last query)."""
    length = axes.lengths[A]
    i = gl.minimum(i, own_length(axes, A, C) - 1)
    if C.parts:
        i += axes.lengths[3 + A]
    start = window_start(i, length, axes.windows[A], axes.strides[A], axes.modes[A], C.strided, C.moded)
    stop = window_stop(i, length, axes.windows[A], axes.strides[A], axes.modes[A], C.strided, C.moded)
    if C.parts:
        start -= axes.lengths[9 + A]
        stop -= axes.lengths[9 + A]
    return start, stop


@gluon.jit
def query_bounds(j, axes, A: gl.constexpr, C: gl.constexpr):
    """The interval `[first, last)` along axis `A` of the queries that attend to keys at `j`; empty past the end."""
    length = axes.lengths[A]
    window = axes.windows[A]
    key = j
    if C.parts:
        key = j + axes.lengths[9 + A]
    first = first_query_stopping_after(key, length, window, axes.strides[A], axes.modes[A], C.strided, C.moded)
    last = first_query_starting_at(key + 1, length, window, axes.strides[A], axes.modes[A], C.strided, C.moded)
    inside = j < own_length(axes, A, C)
    if C.parts:  # of those that are given
        length = axes.lengths[6 + A]
        first = gl.minimum(gl.maximum(first - axes.lengths[3 + A], 0), length)
        last = gl.minimum(last - axes.lengths[3 + A], length)
    return gl.where(inside, first, length), gl.where(inside, gl.maximum(last, first), length)


@gluon.jit
def bounds(x, axes, A: gl.constexpr, C: gl.constexpr):
    """What tokens at `x` of an own tile need: `key_bounds`, or of keys `query_bounds`."""
    if C.inverse:
        return query_bounds(x, axes, A, C)
    else:
        return key_bounds(x, axes, A, C)


@gluon.jit
def box(x, SIZE: gl.constexpr, axes, A: gl.constexpr, C: gl.constexpr):
    """Of tokens `[x, x + SIZE)` of axis `A`: their box `[start, stop)`, and the part `[low, high)` common to all."""
    first = gl.minimum(x, own_length(axes, A, C) - 1)
    last = gl.minimum(x + SIZE, own_length(axes, A, C)) - 1
    start, high = bounds(first, axes, A, C)
    low, stop = bounds(gl.maximum(first, last), axes, A, C)
    return start, stop, low, high


# --- work items and their tiles ----------------------------------------------------------------------------


@gluon.jit
def head_axes(work, head, C: gl.constexpr):
    """The axes of one query head."""
    if C.per_head:
        await_previous(C.chained)
        row = work.table + head * 9
        return GroupAxes(
            work.axes.lengths,
            (gl.load(row), gl.load(row + 1), gl.load(row + 2)),
            (gl.load(row + 3), gl.load(row + 4), gl.load(row + 5)),
            (gl.load(row + 6), gl.load(row + 7), gl.load(row + 8)),
        )
    else:
        return work.axes


@gluon.jit
def ordered(number, grid, C: gl.constexpr):
    """The item that is the `number`-th to start.

    Along one axis, of the last head, what takes longest comes first, so that all programs end at about the same time:
    tiles from both ends inwards, but those next to the ends, which are `grid.short`, last.
    """
    if C.rank > 1:
        return number
    else:
        tiles = grid.tiles[2]
        before = grid.items - tiles
        i = number - before
        inwards = gl.where(i + grid.short < tiles, i + grid.short, tiles - 1 - i)
        tile = gl.where(inwards % 2 == 0, inwards // 2, tiles - 1 - inwards // 2)
        return gl.where((i >= 0) & (grid.short > 0), before + tile, number)


@gluon.jit
def locate(item, tiles, heads, groups, C: gl.constexpr):
    """Number of a work item -> `Item`, where there are `tiles` along each axis of each of `heads`.

    Neighboring items share keys.
    """
    rest, head, t0, t1, t2 = unravelled(item, (1, heads, tiles[0], tiles[1], tiles[2]))
    if C.grouped:
        counts = groups.counts
        batch, j0, j1, j2 = unravelled(rest, (1, counts[0], counts[1], counts[2]))
        token = (j0 * groups.spread[0] + j1) * groups.spread[1] + j2
        return Item(batch, rest, token, head, (t0, t1, t2))
    else:
        return Item(rest, rest, 0, head, (t0, t1, t2))


@gluon.jit
def place(item, head, strides, COLUMNS: gl.constexpr, C: gl.constexpr):
    """Where a head is in the descriptor of a tensor with `COLUMNS` per head: first coordinate, and first column."""
    if C.padded:
        return item.batch * strides.batch + item.token * strides.token + head * strides.head, 0
    else:
        return item.batch, strides * item.token + head * COLUMNS


@gluon.jit
def tokens_at(item, COLUMNS: gl.constexpr, x, strides):
    """Where tokens at `x` of a head are, of a tensor with `COLUMNS` per head: 64-bit."""
    at = item.batch.to(gl.int64) * strides.batch + item.token * strides.token + item.head * COLUMNS
    return (at + x[0].to(gl.int64) * strides.axes[0] + x[1].to(gl.int64) * strides.axes[1]
            + x[2].to(gl.int64) * strides.axes[2])  # fmt: skip


@gluon.constexpr_function
def sides(C):
    """How many own tiles a program has."""
    return 1 if C.shared else 2


@gluon.constexpr_function
def walk_order(values, C):
    """One value per axis -> in the order of the walk's loops: outer, inner, the axis that is split."""
    others = [value for axis, value in enumerate(values) if axis != C.split]
    return (*others, values[C.split])


@gluon.jit
def in_order(a, b, w, C: gl.constexpr):
    """Three values in the order of the walk's loops -> by axis."""
    if C.split == 0:
        return (w, a, b)
    elif C.split == 1:
        return (a, w, b)
    else:
        return (a, b, w)


@gluon.jit
def first_of(tile, C: gl.constexpr):
    """The first token along each axis of a program's own tiles."""
    SIDES: gl.constexpr = sides(C)
    x0 = tile[0] * (C.tile[0] * SIDES if C.split == 0 else C.tile[0])
    x1 = tile[1] * (C.tile[1] * SIDES if C.split == 1 else C.tile[1])
    x2 = tile[2] * (C.tile[2] * SIDES if C.split == 2 else C.tile[2])
    return x0, x1, x2


@gluon.jit
def beside(x, W: gl.constexpr, C: gl.constexpr):
    """The first token along each axis of warpgroup `W`'s tile, of a program whose first token is `x`."""
    x0 = x[0] + (W * C.tile[0] if C.split == 0 else 0)
    x1 = x[1] + (W * C.tile[1] if C.split == 1 else 0)
    x2 = x[2] + (W * C.tile[2] if C.split == 2 else 0)
    return x0, x1, x2


@gluon.jit
def row_position(row, A: gl.constexpr, TILE: gl.constexpr):
    """The position along axis `A`, within its tile, of token `row` of a row-major tile."""
    if A == 0:
        return row // (TILE[1] * TILE[2])
    elif A == 1:
        return row // TILE[2] % TILE[1]
    else:
        return row % TILE[2]


@gluon.jit
def rows_of(x, axes, layout: gl.constexpr, C: gl.constexpr):
    """The `OwnRows` of a warpgroup's tile at `x`; a token is `Constants.heads` of them."""
    TILE: gl.constexpr = C.tile
    row = gl.arange(0, TILE[0] * TILE[1] * TILE[2] * C.heads, layout=layout) // C.heads
    y0 = x[0] + row_position(row, 0, TILE)
    y1 = x[1] + row_position(row, 1, TILE)
    y2 = x[2] + row_position(row, 2, TILE)
    s0, e0 = bounds(y0, axes, 0, C)
    s1, e1 = bounds(y1, axes, 1, C)
    s2, e2 = bounds(y2, axes, 2, C)
    _, _, lo0, hi0 = box(x[0], TILE[0], axes, 0, C)
    _, _, lo1, hi1 = box(x[1], TILE[1], axes, 1, C)
    _, _, lo2, hi2 = box(x[2], TILE[2], axes, 2, C)
    return OwnRows((y0, y1, y2), (s0, s1, s2), (e0 - s0, e1 - s1, e2 - s2), (lo0, lo1, lo2), (hi0, hi1, hi2))


@gluon.jit
def beyond_masked(rows, x, axes, C: gl.constexpr):
    """The `OwnRows` of a tile at `x`; where some are beyond an axis' end, no step is in the interval of all."""
    h0 = _high(rows, x, axes, 0, C)
    h1 = _high(rows, x, axes, 1, C)
    h2 = _high(rows, x, axes, 2, C)
    return OwnRows(rows.positions, rows.starts, rows.widths, rows.low, (h0, h1, h2))


@gluon.jit
def _high(rows, x, axes, A: gl.constexpr, C: gl.constexpr):
    if C.tile[A] > 1 or C.split == A:
        return gl.where(x[A] + C.tile[A] <= own_length(axes, A, C), rows.high[A], rows.low[A])
    else:
        return rows.high[A]  # there is a row


@gluon.jit
def rows_inside(rows, axes, C: gl.constexpr):
    """Whether each row's token exists."""
    y = rows.positions
    return (y[0] < own_length(axes, 0, C)) & (y[1] < own_length(axes, 1, C)) & (y[2] < own_length(axes, 2, C))


# --- walks -------------------------------------------------------------------------------------------------


@gluon.jit
def union(tile, axes, C: gl.constexpr):
    """The `Walk` of a program's own tiles; with `C.aligned`, from a multiple of a block along each axis."""
    AXIS: gl.constexpr = walk_order((0, 1, 2), C)
    x = first_of(tile, C)
    sa, ea, _, _ = box(x[AXIS[0]], C.tile[AXIS[0]], axes, AXIS[0], C)
    sb, eb, _, _ = box(x[AXIS[1]], C.tile[AXIS[1]], axes, AXIS[1], C)
    sw, ew, _, _ = box(x[AXIS[2]], sides(C) * C.tile[AXIS[2]], axes, AXIS[2], C)
    if C.inverse:  # TMA takes the log-sum-exp along the last axis from multiples of 16 bytes only
        if C.split == 2:
            sw = sw // 4 * 4
        else:
            sb = sb // 4 * 4
    if C.aligned:
        BLOCK: gl.constexpr = walk_order(block_of(C.step), C)
        sa, sb, sw = sa // BLOCK[0] * BLOCK[0], sb // BLOCK[1] * BLOCK[1], sw // BLOCK[2] * BLOCK[2]
    return Walk(x, (sa, ea), (sb, eb), (sw, ew))


@gluon.jit
def share_of(x, walk, axes, W: gl.constexpr, C: gl.constexpr):
    """The `Share` of warpgroup `W`, whose first token along `Constants.split` is `x`.

    At most `stages - 1` tiles in a row are passed over, so that the ring, which may hold one tile that the warpgroup
    still reads, never runs dry. Of keys of a span that none of the given queries attend to, neighbors in a tile may
    have queries: then a tile of every line is read in vain, since only who reads a line passes over the rest of it.
    Where there are no lines, there is nothing to pass over.
    """
    STEP: gl.constexpr = walk_order(C.step, C)
    start, stop = walk.split
    if C.shared:
        line = gl.cdiv(stop - start, STEP[2])
        skip = 0
        before = 0
    else:
        own_start, own_stop, _, _ = box(x, C.tile[C.split], axes, C.split, C)
        line = gl.cdiv(stop - start, STEP[2])
        skip = line - gl.cdiv(own_stop - start, STEP[2]) if W == 0 else (own_start - start) // STEP[2]
        skip = gl.minimum(skip, C.stages - 1)
        if C.parts and C.inverse:
            skip = gl.maximum(gl.minimum(skip, line - 1), 0)
            skip = gl.where((walk.outer[0] < walk.outer[1]) & (walk.inner[0] < walk.inner[1]), skip, 0)
        before = 0 if W == 0 else skip
    first = start + before * STEP[2]
    stop = first + (line - skip) * STEP[2]
    lines = gl.cdiv(walk.outer[1] - walk.outer[0], STEP[0]) * gl.cdiv(walk.inner[1] - walk.inner[0], STEP[1])
    return Share(first, stop, skip, before, lines * (line - skip))


@gluon.jit
def whole(walk, C: gl.constexpr):
    """All of a walk as a `Share` of it."""
    STEP: gl.constexpr = walk_order(C.step, C)
    line = gl.cdiv(walk.split[1] - walk.split[0], STEP[2])
    lines = gl.cdiv(walk.outer[1] - walk.outer[0], STEP[0]) * gl.cdiv(walk.inner[1] - walk.inner[0], STEP[1])
    return Share(walk.split[0], walk.split[1], 0, 0, lines * line)


@gluon.jit
def on_line(at, t, rings, walk, share, C: gl.constexpr):
    """Where a warpgroup's next tile is, and its number in `rings`: at `at = (a, b, w)`, unless its line has ended.

    Then it is the first of its share of the next line, after the tiles that it passes over.
    """
    STEP: gl.constexpr = walk_order(C.step, C)
    a, b, w = at
    if w >= share.stop:
        w = share.first
        t = pass_over_tiles(rings, t, share.skip, C)
        b += STEP[1]
        if b >= walk.inner[1]:
            b = walk.inner[0]
            a += STEP[0]
    return a, b, w, t


@gluon.jit
def fill(load: gl.constexpr, arguments, walk, t, C: gl.constexpr):
    """A producer's walk: `load(arguments, at, t, C)` of every tile at `at`, by axis; the number after the last's."""
    STEP: gl.constexpr = walk_order(C.step, C)
    for a in range(walk.outer[0], walk.outer[1], STEP[0]):
        for b in range(walk.inner[0], walk.inner[1], STEP[1]):
            for w in range(walk.split[0], walk.split[1], STEP[2]):
                load(arguments, in_order(a, b, w, C), t, C)
                t += 1
    return t


@gluon.jit
def next_chunk(at, walk, first, stop, C: gl.constexpr):
    """The chunk after `at = (a, b, w)` in walk order, of the part `[first, stop)` of every line.

    After the last chunk `w` is past the walk's end or at it: a chunk that is in no window, along an axis that is
    always masked.
    """
    STEP: gl.constexpr = walk_order(C.step, C)
    a, b, w = at
    w += STEP[2]
    wrap = w >= stop
    w = gl.where(wrap, first, w)
    b += gl.where(wrap, STEP[1], 0)
    wrap = b >= walk.inner[1]
    b = gl.where(wrap, walk.inner[0], b)
    a += gl.where(wrap, STEP[0], 0)
    return a, b, gl.where(a >= walk.outer[1], walk.split[1], w)


@gluon.jit
def paired_counts(walk, axes, C: gl.constexpr):
    """A walk in pairs of chunks: lines along `split` in all, lines of one warpgroup only, and tiles of either kind.

    The first `alone` lines are the first warpgroup's only, the last `alone` the second's; both walk the rest.
    """
    STEP: gl.constexpr = walk_order(C.step, C)
    x = walk.first[C.split]
    first, last = walk.split
    _, stop, _, _ = box(x, C.tile[C.split], axes, C.split, C)
    start, _, _, _ = box(x + C.tile[C.split], C.tile[C.split], axes, C.split, C)
    line = gl.cdiv(last - first, STEP[2])
    alone = gl.minimum((start - first) // STEP[2], line - gl.cdiv(stop - first, STEP[2]))
    lines = gl.cdiv(walk.outer[1] - walk.outer[0], STEP[0]) * gl.cdiv(walk.inner[1] - walk.inner[0], STEP[1])
    return line, alone, gl.cdiv(alone * lines, 2), gl.cdiv((line - 2 * alone) * lines, 2)
