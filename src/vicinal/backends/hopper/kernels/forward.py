"""Forward pass for Hopper: TMA moves, wgmma multiplies, warps specialise.

One program has a producer warp and two consumer warpgroups. Each warpgroup owns 64 queries: a box of tokens
(`Constants.tile`); the two boxes lie side by side along axis `split`. The producer walks the box of keys that the union
of their windows covers, from its first key, in tiles (`Constants.step`), into rings of key and value tiles. A
warpgroup passes over the tiles that only the other one needs (at most `stages - 1` in a row). `split` is the fastest
axis of the walk, so that while one passes over the end of a line the other passes over the start of the next.

A warpgroup issues QK of its next tile, then PV of its last one, then does the softmax of the next while PV runs. From
value dim 128 on, sums are only rescaled where a maximum has grown (`vicinal.backends.hopper.kernels.rescale`).
Only tiles that are not wholly inside every window of the warpgroup are masked: one scalar test per tile.
Source of the schedule: FlashAttention-3 (arXiv 2407.08608, section 3); of the walk: this project's design.

With `paired`, a key tile is two chunks of 64 keys that need not touch: the walk is over chunks, so that its waste is a
chunk's. The chunks that one warpgroup needs alone come first, a tile of the one and a tile of the other in turn, then
those that both need.

With `heads` above 1, rows are that many query heads of one key head for each token of a smaller tile: small windows
waste less then. Queries and outputs are described as `[X0, X1, X2, heads, columns]`, and the batch is in the columns.

Additional keys are tiles that follow the walk (`vicinal.backends.hopper.kernels.additional`).

Head dims that are no power of two are moved and multiplied in pieces (`vicinal.backends.hopper.kernels.pieces`).
"""

from typing import Any, NamedTuple

from vicinal.backends.hopper.kernels.additional import cut_off, first_group, tiles_of
from vicinal.backends.hopper.kernels.chain import await_previous, let_next_start
from vicinal.backends.hopper.kernels.compat import (
    fence_async_shared,
    gl,
    gluon,
    mbarrier,
    reinterpret,
    tma_load,
    tma_store_wait,
    warpgroup_mma_wait,
)
from vicinal.backends.hopper.kernels.pieces import (
    accumulator,
    add_product,
    finished,
    left_operand,
    load_pieces,
    only,
    scaled,
    scores_of,
    store_pieces,
    write_pieces,
    zeros,
)
from vicinal.backends.hopper.kernels.rescale import followed, rescaled
from vicinal.backends.hopper.kernels.ring import Ring, await_ready, barriers, claim, free, pass_over_tiles, start_slot
from vicinal.backends.hopper.kernels.softmax import masked
from vicinal.backends.hopper.kernels.steps import (
    MASKED,
    bits_at,
    clean,
    entry_at,
    fill_listed,
    hidden,
    kept_of,
    listed_of,
    on_list,
)
from vicinal.backends.hopper.kernels.walk import (
    beside,
    fill,
    head_axes,
    in_order,
    locate,
    next_chunk,
    on_line,
    paired_counts,
    place,
    rows_inside,
    rows_of,
    share_of,
    union,
    walk_order,
    work_of,
)

LN2 = gl.constexpr(0.6931471805599453)


class Rings(NamedTuple):
    """Shared memory: two slots, one per warpgroup, of queries and outputs; `stages` of keys and values."""

    query: Ring
    key: Ring
    value: Ring  # (a field `values` would be hidden by Triton's own)
    output: Any  # a buffer, or the queries' own


@gluon.jit(do_not_specialize=["groups"], do_not_specialize_on_alignment=["scalars", "more"])
def forward(
    q_desc, k_desc, v_desc, o_desc,  # over `[batch, X0, X1, X2, columns]`
    lse_ptr,
    table,
    more_k_desc, more_v_desc,  # over `[batch, tiles, *step, columns]`; None without additional keys
    scalars, groups, more,  # `Scalars` with `ForwardStrides`; `Groups`; `More` or None
    C: gl.constexpr,  # `Constants`
):  # fmt: skip
    """Output and log-sum-exp of work items `program, program + programs, ...`."""
    QP: gl.constexpr = C.head_dim // q_desc.block_shape[4]  # pieces of a query or key tile
    VP: gl.constexpr = C.value_dim // o_desc.block_shape[4]
    KEYS: gl.constexpr = C.step[0] * C.step[1] * C.step[2]
    STAGES: gl.constexpr = C.stages
    q_s = gl.allocate_shared_memory(q_desc.dtype, [2 * QP] + q_desc.block_shape, q_desc.layout)
    if C.paired:
        whole: gl.constexpr = gl.NVMMASharedLayout.get_default_for([2 * KEYS, C.head_dim], k_desc.dtype)
        k_s = gl.allocate_shared_memory(k_desc.dtype, [STAGES, 2 * KEYS, C.head_dim], whole)
        v_s = gl.allocate_shared_memory(v_desc.dtype, [STAGES, 2 * KEYS, C.head_dim], whole)
    else:
        k_s = gl.allocate_shared_memory(k_desc.dtype, [STAGES * QP] + k_desc.block_shape, k_desc.layout)
        v_s = gl.allocate_shared_memory(v_desc.dtype, [STAGES * VP] + v_desc.block_shape, v_desc.layout)
    if C.own_output:
        o_s = gl.allocate_shared_memory(o_desc.dtype, [2 * VP] + o_desc.block_shape, o_desc.layout)
    else:
        o_s = q_s
    queries = Ring(q_s, barriers(2), barriers(2))
    keys = Ring(k_s, barriers(STAGES), barriers(STAGES))
    values = Ring(v_s, barriers(STAGES), barriers(STAGES))
    for w in gl.static_range(2):
        start_slot(queries, w, 1)
    for i in gl.static_range(STAGES):
        start_slot(keys, i, 2)
        start_slot(values, i, 2)
    fence_async_shared()
    rings = Rings(queries, keys, values, o_s)
    work = work_of(scalars, groups, table, more)
    descs = (k_desc, v_desc, more_k_desc, more_v_desc) if C.additional else (k_desc, v_desc)
    gl.warp_specialize([
        (_consumer, (o_desc, lse_ptr, rings, work, C, gl.constexpr(0))),
        (_consumer, (o_desc, lse_ptr, rings, work, C, gl.constexpr(1))),
        (_producer, (q_desc, descs, rings, work, C)),
    ], [4, 1], [240, 24])  # fmt: skip


@gluon.jit
def _producer(q_desc, descs, rings, work, C: gl.constexpr):
    queries, keys, values, _ = rings
    strides = work.strides
    QP: gl.constexpr = C.head_dim // q_desc.block_shape[4]
    t = 0
    done = 0
    for number in range(gl.program_id(0), work.grid.items, gl.num_programs(0)):
        item = locate(number, work.grid.tiles, work.grid.heads, work.groups, C)
        head = item.head * C.heads
        axes = head_axes(work, head, C)
        walk = union(item.tile, axes, C)
        await_previous(C.chained)
        for i in gl.static_range(2):
            mbarrier.wait(queries.empty.index(i), (done & 1) ^ 1)
            mbarrier.expect(queries.ready.index(i), q_desc.block_type.nbytes * QP)
            x = beside(walk.first, i, C)
            at, column = _rows_at(item, x, head, strides.query, strides.query_batch, C.head_dim, C)
            load_pieces(q_desc, at, column, queries.ready.index(i), queries.tiles, i, QP)
        k_place = place(item, head // work.grid.group, strides.key, C.head_dim, C)
        v_place = place(item, head // work.grid.group, strides.value, C.value_dim, C)
        arguments = ((descs[0], descs[1]), (keys, values), (k_place, v_place))
        if C.masked:
            t = fill_listed(_load, arguments, listed_of(work, item, 0, 0, C), t, C)
        elif C.paired:
            t = _fill_pairs(arguments, walk, axes, t, C)
        else:
            t = fill(_load, arguments, walk, t, C)
        if C.additional:
            t = _fill_more(descs, (keys, values), item, work, t, C)
        done += 1
    let_next_start(C.chained)


@gluon.jit
def _fill_more(descs, rings, item, work, t, C: gl.constexpr):
    """Tiles of additional keys and values, from number `t` on."""
    KEYS: gl.constexpr = keys_of_step(C)
    item = first_group(item)
    head = item.head * C.heads // work.grid.group
    k_place = place(item, head, work.more.key, C.head_dim, C)
    v_place = place(item, head, work.more.value, C.value_dim, C)
    places = (k_place, v_place)
    for i in range(tiles_of(work, KEYS, C)):
        if C.paired:
            pair = ((2 * i * C.step[0], 0, 0), ((2 * i + 1) * C.step[0], 0, 0))
            for side in gl.static_range(2):
                _load_pair(descs[2 + side], places[side], pair, rings[side], t, C)
        else:
            _load(((descs[2], descs[3]), rings, places), (i * C.step[0], 0, 0), t, C)
        t += 1
    return t


@gluon.constexpr_function
def keys_of_step(C):
    """Keys of a tile: a step, or two."""
    return C.step[0] * C.step[1] * C.step[2] * (2 if C.paired else 1)


@gluon.jit
def _load(arguments, c, t, C: gl.constexpr):
    """Tile `t`: of keys and values at `c`."""
    descs, rings, places = arguments
    k_desc, v_desc = descs
    keys, values = rings
    k_first, k_column = places[0]
    v_first, v_column = places[1]
    QP: gl.constexpr = C.head_dim // k_desc.block_shape[4]
    VP: gl.constexpr = C.value_dim // v_desc.block_shape[4]
    slot = t % C.stages
    bar = claim(keys, t, k_desc.block_type.nbytes * QP, C)
    load_pieces(k_desc, (k_first, c[0], c[1], c[2]), k_column, bar, keys.tiles, slot, QP)
    bar = claim(values, t, v_desc.block_type.nbytes * VP, C)
    load_pieces(v_desc, (v_first, c[0], c[1], c[2]), v_column, bar, values.tiles, slot, VP)


@gluon.jit
def _fill_pairs(arguments, walk, axes, t, C: gl.constexpr):
    """The walk in pairs of chunks: those of the one warpgroup and of the other in turn, then those of both."""
    descs, rings, places = arguments
    STEP: gl.constexpr = walk_order(C.step, C)
    line, alone, turns, common = paired_counts(walk, axes, C)
    a = walk.outer[0]
    b = walk.inner[0]
    w = walk.split[0]
    first = w
    stop = w + alone * STEP[2]
    for i in range(2 * turns + common):
        if i == 2 * turns:  # from here on, both warpgroups
            a = walk.outer[0]
            b = walk.inner[0]
            first = walk.split[0] + alone * STEP[2]
            stop = walk.split[0] + (line - alone) * STEP[2]
            w = first
        its_end = (i >= 2 * turns) | (i % 2 == 1)
        shift = gl.where((i < 2 * turns) & (i % 2 == 1), (line - alone) * STEP[2], 0)
        a1, b1, w1 = next_chunk((a, b, w), walk, first, stop, C)
        pair = (in_order(a, b, w + shift, C), in_order(a1, b1, w1 + shift, C))
        for side in gl.static_range(2):
            _load_pair(descs[side], places[side], pair, rings[side], t, C)
        t += 1
        a2, b2, w2 = next_chunk((a1, b1, w1), walk, first, stop, C)
        a = gl.where(its_end, a2, a)
        b = gl.where(its_end, b2, b)
        w = gl.where(its_end, w2, w)
    return t


class Course(NamedTuple):
    """A warpgroup's walk: of every line `[first, stop)`, in `count` tiles."""

    first: Any
    stop: Any
    before: Any  # tiles of the ring that it passes over ahead of its first
    after: Any  # and behind its last
    count: Any
    skip: Any  # tiles that it passes over at a line's end
    turns: Any  # with `Constants.paired`: tiles ahead of those that both warpgroups need,
    common: Any  # whose part of a line is `[common[0], common[1])`


@gluon.jit
def _consumer(o_desc, lse_ptr, rings, work, C: gl.constexpr, W: gl.constexpr):
    queries, keys, values, o_s = rings
    scale = 1.0 if C.scaled else work.scale
    STEP: gl.constexpr = walk_order(C.step, C)
    BM: gl.constexpr = C.tile[0] * C.tile[1] * C.tile[2] * C.heads
    BN: gl.constexpr = keys_of_step(C)
    VD: gl.constexpr = o_desc.block_shape[4]
    VP: gl.constexpr = C.value_dim // VD
    QP: gl.constexpr = C.head_dim // queries.tiles.shape[5]
    LAZY: gl.constexpr = C.value_dim >= 128  # below, exponentials are what is waited for: skipping costs 1 to 3%
    s_layout: gl.constexpr = accumulator(BN)
    o_layout: gl.constexpr = accumulator(VD)
    p_layout: gl.constexpr = left_operand(VD)
    zero = gl.zeros([BM, BN], gl.float32, layout=s_layout)
    if C.masked:
        await_previous(C.chained)

    t = 0  # tiles that the rings of keys and values have seen
    done = 0
    for number in range(gl.program_id(0), work.grid.items, gl.num_programs(0)):
        item = locate(number, work.grid.tiles, work.grid.heads, work.groups, C)
        axes = head_axes(work, item.head * C.heads, C)
        walk = union(item.tile, axes, C)
        x = beside(walk.first, W, C)
        rows = rows_of(x, axes, gl.SliceLayout(1, s_layout), C)
        if C.masked:
            listed = listed_of(work, item, 1 + W, W, C)
            a, b, w, info = entry_at(listed, 0)
            course = Course(w, w, info % MASKED, listed.after, listed.count, 0, 0, (0, 0))
        else:
            listed = ()
            info = 0
            course = _course(x, walk, axes, C, W)
            a = walk.outer[0]
            b = walk.inner[0]
            w = course.first
        first = course.first
        stop = course.stop
        t = pass_over_tiles((keys, values), t, course.before, C)
        mbarrier.wait(queries.ready.index(W), done & 1)
        await_ready(keys, t, C)
        s = warpgroup_mma_wait(0, deps=[scores_of(queries.tiles, W, keys.tiles, t % C.stages, zero, QP)])
        free(keys, t, C)
        a1 = a
        b1 = b
        w1 = w
        if C.paired:
            a1, b1, w1 = next_chunk((a, b, w), walk, first, stop, C)
        s = _mask(s, in_order(a, b, w, C), in_order(a1, b1, w1, C), rows, -1, work, s_layout, C)
        if C.masked:
            s = hidden(s, listed, 0, info, s_layout)
            coming = entry_at(listed, 1)
        m = gl.max(s, 1) * scale
        p = gl.exp2(s * scale - _finite(m)[:, None])
        l = _in_thread_sums(p)
        pb = gl.convert_layout(p.to(o_desc.dtype), p_layout)
        out = zeros(BM, VD, VP, o_layout)
        for step in range(1, course.count + tiles_of(work, BN, C)):
            last = t
            t += 1
            if C.masked:
                if info >= MASKED:
                    await_ready(values, last, C)
                    clean(values.tiles, last % C.stages * VP, bits_at(listed, step - 1, BN), VP, BN)
                a, b, w, t, info, coming = on_list(coming, listed, step, t, (keys, values), C)
            elif C.paired:
                if step == course.turns:  # from here on, both warpgroups
                    t = pass_over_tiles((keys, values), t, 1 - W, C)
                    a = walk.outer[0]
                    b = walk.inner[0]
                    first = course.common[0]
                    stop = course.common[1]
                    w = first
                else:
                    if step < course.turns:
                        t = pass_over_tiles((keys, values), t, 1, C)
                    a, b, w = next_chunk((a1, b1, w1), walk, first, stop, C)
                a1, b1, w1 = next_chunk((a, b, w), walk, first, stop, C)
            elif C.additional:
                if step < course.count:
                    a, b, w, t = on_line((a, b, w + STEP[2]), t, (keys, values), walk, course, C)
                elif step == course.count:
                    t = pass_over_tiles((keys, values), t, course.after, C)
            else:
                a, b, w, t = on_line((a, b, w + STEP[2]), t, (keys, values), walk, course, C)
            await_ready(keys, t, C)
            scoring = scores_of(queries.tiles, W, keys.tiles, t % C.stages, zero, QP)
            await_ready(values, last, C)
            out = add_product(pb, values.tiles, last % C.stages, out, VP)
            s = warpgroup_mma_wait(VP, deps=[scoring])
            free(keys, t, C)
            n = step - course.count if C.additional else -1
            s = _mask(s, in_order(a, b, w, C), in_order(a1, b1, w1, C), rows, n, work, s_layout, C)
            if C.masked:
                s = hidden(s, listed, step, info, s_layout)
            p, m, l, alpha = _exponentials(s, m, l, scale, LAZY)
            factor = gl.convert_layout(alpha, gl.SliceLayout(1, o_layout))
            if LAZY and not C.paired:
                # Passed long ago. Its branch keeps ptxas from moving the wait for PV up to before the softmax.
                await_ready(values, last, C)
            out, pb = finished(out, pb, VP)
            free(values, last, C)
            out = rescaled(out, factor, VP) if LAZY else scaled(out, factor[:, None], VP)
            pb = gl.convert_layout(p.to(o_desc.dtype), p_layout)
        if C.own_output:
            mbarrier.arrive(queries.empty.index(W), count=1)
        await_ready(values, t, C)
        if C.masked:
            if info >= MASKED:
                clean(values.tiles, t % C.stages * VP, bits_at(listed, course.count - 1, BN), VP, BN)
        out, pb = finished(add_product(pb, values.tiles, t % C.stages, out, VP), pb, VP)
        free(values, t, C)
        t = pass_over_tiles((keys, values), t + 1, 0 if C.additional else course.after, C)
        _write(o_desc, lse_ptr, o_s, out, m, l, item, x, rows, listed, work, C, W)
        if not C.own_output:
            tma_store_wait(0)
            mbarrier.arrive(queries.empty.index(W), count=1)
        done += 1
    tma_store_wait(0)


@gluon.jit
def _course(x, walk, axes, C: gl.constexpr, W: gl.constexpr):
    """The `Course` of warpgroup `W`, whose tile is at `x`."""
    STEP: gl.constexpr = walk_order(C.step, C)
    if C.paired:
        line, alone, turns, common = paired_counts(walk, axes, C)
        before = gl.minimum(turns, 1) if W == 1 else 0
        after = 1 if (W == 0) & (common == 0) else 0
        first = walk.split[0] + ((line - alone) * STEP[2] if W == 1 else 0)
        stop = first + alone * STEP[2]
        if turns == 0:
            first = walk.split[0]
            stop = walk.split[0] + line * STEP[2]
        both = (walk.split[0] + alone * STEP[2], walk.split[0] + (line - alone) * STEP[2])
        return Course(first, stop, before, after, turns + common, 0, turns, both)
    else:
        share = share_of(x[C.split], walk, axes, W, C)
        return Course(
            share.first, share.stop, share.before, share.skip - share.before, share.count, share.skip, 0, (0, 0)
        )


@gluon.jit
def _exponentials(s, m, l, scale, LAZY: gl.constexpr):
    """Of scores `s`: exponentials; maxima and sums with them; the factor of what was summed before."""
    top = gl.max(s, 1) * scale
    m_new = followed(m, top) if LAZY else gl.maximum(m, top)
    finite = _finite(m_new)
    alpha = gl.exp2(m - finite)
    p = gl.exp2(s * scale - finite[:, None])
    l = l * gl.convert_layout(alpha, gl.SliceLayout(1, l.type.layout))[:, None] + _in_thread_sums(p)
    return p, m_new, l, alpha


@gluon.jit
def _write(o_desc, lse_ptr, o_s, out, m, l, item, x, rows, listed, work, C: gl.constexpr, W: gl.constexpr):
    """Divide what was summed, start to store it, and write the log-sum-exps."""
    VD: gl.constexpr = o_desc.block_shape[4]
    VP: gl.constexpr = C.value_dim // VD
    head = item.head * C.heads
    l = gl.convert_layout(gl.sum(l, 1), m.type.layout)
    inverse = gl.where(l == 0.0, 0.0, 1.0 / l)  # no score was more than minus infinity: the output is 0
    if C.masked:  # a masked token's query may be no number
        row_layout: gl.constexpr = l.type.layout
        answered = kept_of(listed.own, l.shape[0], row_layout) | (l == l)
        out = only(out, gl.convert_layout(answered, gl.SliceLayout(1, accumulator(VD))), VP)
        inverse = gl.where(answered, inverse, 0.0)
        l = gl.where(answered, l, 0.0)
        m = gl.where(answered, m, float("-inf"))
    inverse = gl.convert_layout(inverse, gl.SliceLayout(1, accumulator(VD)))[:, None]
    tma_store_wait(0)  # of the last item: the buffer is about to be written
    write_pieces(out, inverse, o_s, W, o_desc.dtype, VP)
    fence_async_shared()
    strides = work.strides
    at, column = _rows_at(item, x, head, strides.output, strides.output_batch, C.value_dim, C)
    store_pieces(o_desc, at, column, o_s, W, VP)
    lse = (m + gl.log2(l)) * LN2
    _store_rows(lse_ptr, lse, item, head, rows, work, C)


@gluon.jit
def _rows_at(item, x, head, token_stride, batch_stride, COLUMNS: gl.constexpr, C: gl.constexpr):
    """Where a tile of queries or outputs at `x` is in its descriptor: four coordinates, and the first column."""
    if C.heads == 1:
        first, column = place(item, head, token_stride, COLUMNS, C)
        return (first, x[0], x[1], x[2]), column
    else:
        return (x[0], x[1], x[2], head), token_stride * item.token + item.batch * batch_stride


@gluon.jit
def _store_rows(lse_ptr, lse, item, head, rows, work, C: gl.constexpr):
    """Write the log-sum-exps of a warpgroup's rows."""
    strides = work.strides.lse
    x = rows.positions
    at = item.batch.to(gl.int64) * strides.batch + item.token * strides.token + head
    inside = rows_inside(rows, work.axes, C)
    offset = x[0].to(gl.int64) * strides.axes[0] + x[1].to(gl.int64) * strides.axes[1] + x[2] * strides.axes[2]
    if C.heads > 1:
        offset += gl.arange(0, lse.shape[0], layout=lse.type.layout) % C.heads
    gl.store(lse_ptr + at + offset, lse, mask=inside)


@gluon.jit
def _load_pair(desc, place, pair, ring, t, C: gl.constexpr):
    """Load two chunks as the halves of tile `t`: rows of at most 128 bytes lie densely in it."""
    first, column = place
    WIDE: gl.constexpr = desc.block_shape[4]
    PIECES: gl.constexpr = C.head_dim // WIDE
    c, d = pair
    bar = claim(ring, t, desc.block_type.nbytes * (2 * PIECES), C)
    view = reinterpret(ring.tiles, [C.stages * PIECES * 2] + desc.block_shape, desc.layout)
    for j in gl.static_range(PIECES):
        at = (t % C.stages * PIECES + j) * 2
        tma_load(desc, [first, c[0], c[1], c[2], column + j * WIDE], bar, view.index(at))
        tma_load(desc, [first, d[0], d[1], d[2], column + j * WIDE], bar, view.index(at + 1))


@gluon.jit
def _mask(s, c, d, rows, n, work, layout: gl.constexpr, C: gl.constexpr):
    """Masked scores of a tile, its chunks at `c` and `d`; or of tile `n` of additional keys, if that is at least 0."""
    if C.scaled:
        s = s * work.scale
    if C.additional:
        if n >= 0:
            s = cut_off(s, work.more.count - n * s.shape[1], layout)
        else:
            s = _mask_window(s, c, d, rows, layout, C)
    else:
        s = _mask_window(s, c, d, rows, layout, C)
    return s


@gluon.jit
def _mask_window(s, c, d, rows, layout: gl.constexpr, C: gl.constexpr):
    if C.paired:
        s = masked(s, c, rows, 0, layout, C)
        s = masked(s, d, rows, 1, layout, C)
    else:
        s = masked(s, c, rows, -1, layout, C)
    return s


@gluon.jit
def _in_thread_sums(p):
    """`[rows, 8]`: sums over every eighth column, which are one thread's; threads are added up once, at the end."""
    return gl.sum(p.reshape([p.shape[0], p.shape[1] // 8, 8]), 1)


@gluon.jit
def _finite(m):
    """The maximum to subtract: 0 for a row that has met no neighbor yet."""
    return gl.where(m == float("-inf"), 0.0, m)
