"""Forward pass for Hopper: TMA moves, wgmma multiplies, warps specialise.

One program has a producer warp and two consumer warpgroups. Each warpgroup owns 64 queries: a box of tokens
`[T0, T1, T2]`; the two boxes lie side by side along axis `SPLIT`. The producer walks the box of keys that the union of
their windows covers, from its first key, in tiles `[N0, N1, N2]`, into rings of `STAGES` key and value tiles. A
warpgroup passes over the tiles that only the other one needs (at most `STAGES - 1` in a row). `SPLIT` is the fastest
axis of the walk, so that while one passes over the end of a line the other passes over the start of the next.

A warpgroup issues QK of its next tile, then PV of its last one, then does the softmax of the next while PV runs. From
value dim 128 on, sums are only rescaled where a maximum has grown (`vicinal.kernels.gluon.rescale`).
Only tiles that are not wholly inside every window of the warpgroup are masked: one scalar test per tile.
Source of the schedule: FlashAttention-3 (arXiv 2407.08608, section 3); of the walk: this project's design.

With `PAIRED`, a key tile is two chunks `[N0, N1, N2]` of 64 keys that need not touch: the walk is over chunks, so that
its waste is a chunk's. The chunks that one warpgroup needs alone come first, a tile of the one and a tile of the other
in turn, then those that both need.

With `HEADS` above 1, rows are that many query heads of one key head for each token of a smaller tile: small windows
waste less then. Queries and outputs are described as `[X0, X1, X2, heads, columns]`, and the batch is in the columns.

Head dims that are no power of two are moved and multiplied in pieces (`vicinal.kernels.gluon.pieces`).
"""

# ruff: noqa: B007, RUF059 (Gluon compiles this: it takes no starred lists, and tuples come whole)

from vicinal.kernels.gluon.compat import (
    fence_async_shared,
    gl,
    gluon,
    mbarrier,
    reinterpret,
    tma_load,
    tma_store_wait,
    warpgroup_mma_wait,
)
from vicinal.kernels.gluon.pieces import (
    add_product,
    finished,
    load_pieces,
    scaled,
    scores_of,
    store_pieces,
    write_pieces,
    zeros,
)
from vicinal.kernels.gluon.rescale import followed, rescaled
from vicinal.kernels.gluon.softmax import masked
from vicinal.kernels.gluon.walk import (
    AXES,
    GROUPS,
    TILES,
    beside,
    head_axes,
    in_order,
    locate,
    next_chunk,
    own_line,
    paired_counts,
    rows_of,
    union,
)

LN2 = gl.constexpr(0.6931471805599453)


@gluon.jit(
    do_not_specialize=GROUPS,
    do_not_specialize_on_alignment=[
        *AXES, *TILES, "items", "q_column", "k_column", "v_column", "o_column", "q_outer", "o_outer",
        "e0", "e1", "e2", "e_outer", "e_token",
    ],
)  # fmt: skip
def forward(
    q_desc, k_desc, v_desc, o_desc, lse_ptr, table,
    L0, L1, L2, K0, K1, K2, S0, S1, S2, M0, M1, M2,
    n0, n1, n2, heads, group, g0, g1, g2, X1, X2, items,
    q_column, k_column, v_column, o_column, q_outer, o_outer, e0, e1, e2, e_outer, e_token, scale,
    D: gl.constexpr, DV: gl.constexpr, T: gl.constexpr, N: gl.constexpr, SPLIT: gl.constexpr, STAGES: gl.constexpr,
    RANK: gl.constexpr, STRIDED: gl.constexpr, MODED: gl.constexpr, PER_HEAD: gl.constexpr, GROUPED: gl.constexpr,
    OWN_OUTPUT: gl.constexpr, PAIRED: gl.constexpr, HEADS: gl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of work items `program, program + programs, ...` below `items`.

    Descriptors are over `[batch, X0, X1, X2, columns]`; `*_column` is the distance in columns between neighboring
    tokens (which start dilation groups), `*_outer` between batch elements, `heads` the tiles of heads, `e*` the strides
    of the log-sum-exp in elements; `scale` includes log2(e).
    """
    axes = (L0, L1, L2, K0, K1, K2, S0, S1, S2, M0, M1, M2)
    tiles = (n0, n1, n2)
    columns = (q_column, k_column, v_column, o_column, q_outer, o_outer)
    lse_strides = (e_outer, e_token, e0, e1, e2)
    QP: gl.constexpr = D // q_desc.block_shape[4]  # pieces of a query or key tile
    VP: gl.constexpr = DV // o_desc.block_shape[4]
    q_s = gl.allocate_shared_memory(q_desc.dtype, [2 * QP] + q_desc.block_shape, q_desc.layout)
    if PAIRED:
        whole: gl.constexpr = gl.NVMMASharedLayout.get_default_for([2 * N[0] * N[1] * N[2], D], k_desc.dtype)
        k_s = gl.allocate_shared_memory(k_desc.dtype, [STAGES, 2 * N[0] * N[1] * N[2], D], whole)
        v_s = gl.allocate_shared_memory(v_desc.dtype, [STAGES, 2 * N[0] * N[1] * N[2], D], whole)
    else:
        k_s = gl.allocate_shared_memory(k_desc.dtype, [STAGES * QP] + k_desc.block_shape, k_desc.layout)
        v_s = gl.allocate_shared_memory(v_desc.dtype, [STAGES * VP] + v_desc.block_shape, v_desc.layout)
    if OWN_OUTPUT:
        o_s = gl.allocate_shared_memory(o_desc.dtype, [2 * VP] + o_desc.block_shape, o_desc.layout)
    else:
        o_s = q_s
    q_ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for w in gl.static_range(2):
        mbarrier.init(q_ready.index(w), count=1)
        mbarrier.init(q_empty.index(w), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=2)
        mbarrier.init(v_ready.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=2)
    fence_async_shared()
    bars = (q_ready, q_empty, k_ready, k_empty, v_ready, v_empty)
    work = (items, heads, group, (g0, g1, g2, X1, X2))
    gl.warp_specialize([
        (_consumer, (o_desc, q_s, k_s, v_s, o_s, bars, lse_ptr, table, axes, tiles, work, columns, lse_strides, scale,
            D, DV, T, N, SPLIT, STAGES, RANK, STRIDED, MODED, PER_HEAD, GROUPED, OWN_OUTPUT,
            PAIRED, HEADS, gl.constexpr(0))),
        (_consumer, (o_desc, q_s, k_s, v_s, o_s, bars, lse_ptr, table, axes, tiles, work, columns, lse_strides, scale,
            D, DV, T, N, SPLIT, STAGES, RANK, STRIDED, MODED, PER_HEAD, GROUPED, OWN_OUTPUT,
            PAIRED, HEADS, gl.constexpr(1))),
        (_producer, (q_desc, k_desc, v_desc, q_s, k_s, v_s, bars, table, axes, tiles, work, columns,
            D, DV, T, N, SPLIT, STAGES, STRIDED, MODED, PER_HEAD, GROUPED, PAIRED, HEADS)),
    ], [4, 1], [240, 24])  # fmt: skip


@gluon.jit
def _producer(
    q_desc, k_desc, v_desc, q_s, k_s, v_s, bars, table, axes, tiles, work, columns,
    D: gl.constexpr, DV: gl.constexpr, T: gl.constexpr, N: gl.constexpr, SPLIT: gl.constexpr, STAGES: gl.constexpr,
    STRIDED: gl.constexpr, MODED: gl.constexpr, PER_HEAD: gl.constexpr, GROUPED: gl.constexpr,
    PAIRED: gl.constexpr, HEADS: gl.constexpr,
):  # fmt: skip
    q_ready, q_empty, k_ready, k_empty, v_ready, v_empty = bars
    items, heads, group, groups = work
    OUTER: gl.constexpr = 1 if SPLIT == 0 else 0
    INNER: gl.constexpr = 1 if SPLIT == 2 else 2
    QD: gl.constexpr = q_desc.block_shape[4]
    VD: gl.constexpr = v_desc.block_shape[4]
    QP: gl.constexpr = D // QD
    VP: gl.constexpr = DV // VD
    t = 0
    done = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        outer, place, token, head, tile = locate(item, tiles, heads, groups, GROUPED)
        head *= HEADS
        own = head_axes(axes, table, head, PER_HEAD)
        x0, x1, x2, sa, ea, sb, eb, sw, ew = union(tile, own, T, SPLIT, False, STRIDED, MODED)
        for i in gl.static_range(2):
            mbarrier.wait(q_empty.index(i), (done & 1) ^ 1)
            mbarrier.expect(q_ready.index(i), q_desc.block_type.nbytes * QP)
            y = beside((x0, x1, x2), i, T, SPLIT)
            at, column = _rows_at(outer, y, head, columns[0] * token, columns[4], D, HEADS)
            load_pieces(q_desc, at, column, q_ready.index(i), q_s, i, QP)
        k_first = columns[1] * token + (head // group) * D
        v_first = columns[2] * token + (head // group) * DV
        if PAIRED:
            x = (x0, x1, x2)[SPLIT]
            line, alone, turns, common = paired_counts(x, sa, ea, sb, eb, sw, ew, T, N, own, SPLIT, STRIDED, MODED)
            a = sa
            b = sb
            w = sw
            first = sw
            stop = sw + alone * N[SPLIT]
            for i in range(2 * turns + common):
                if i == 2 * turns:  # from here on, both warpgroups
                    a = sa
                    b = sb
                    first = sw + alone * N[SPLIT]
                    stop = sw + (line - alone) * N[SPLIT]
                    w = first
                its_end = (i >= 2 * turns) | (i % 2 == 1)
                shift = gl.where((i < 2 * turns) & (i % 2 == 1), (line - alone) * N[SPLIT], 0)
                a1, b1, w1 = next_chunk((a, b, w), ea, sb, eb, ew, first, stop, N[OUTER], N[INNER], N[SPLIT])
                c = in_order(a, b, w + shift, SPLIT)
                d = in_order(a1, b1, w1 + shift, SPLIT)
                slot = t % STAGES
                phase = ((t // STAGES) & 1) ^ 1
                mbarrier.wait(k_empty.index(slot), phase)
                mbarrier.expect(k_ready.index(slot), k_desc.block_type.nbytes * (2 * D // k_desc.block_shape[4]))
                _load_pair(k_desc, outer, c, d, k_first, k_ready.index(slot), k_s, slot, STAGES, D)
                mbarrier.wait(v_empty.index(slot), phase)
                mbarrier.expect(v_ready.index(slot), v_desc.block_type.nbytes * (2 * D // v_desc.block_shape[4]))
                _load_pair(v_desc, outer, c, d, v_first, v_ready.index(slot), v_s, slot, STAGES, D)
                t += 1
                a2, b2, w2 = next_chunk((a1, b1, w1), ea, sb, eb, ew, first, stop, N[OUTER], N[INNER], N[SPLIT])
                a = gl.where(its_end, a2, a)
                b = gl.where(its_end, b2, b)
                w = gl.where(its_end, w2, w)
        else:
            for a in range(sa, ea, N[OUTER]):
                for b in range(sb, eb, N[INNER]):
                    for w in range(sw, ew, N[SPLIT]):
                        c = in_order(a, b, w, SPLIT)
                        slot = t % STAGES
                        phase = ((t // STAGES) & 1) ^ 1
                        mbarrier.wait(k_empty.index(slot), phase)
                        mbarrier.expect(k_ready.index(slot), k_desc.block_type.nbytes * QP)
                        at = (outer, c[0], c[1], c[2])
                        load_pieces(k_desc, at, k_first, k_ready.index(slot), k_s, slot, QP)
                        mbarrier.wait(v_empty.index(slot), phase)
                        mbarrier.expect(v_ready.index(slot), v_desc.block_type.nbytes * VP)
                        load_pieces(v_desc, at, v_first, v_ready.index(slot), v_s, slot, VP)
                        t += 1
        done += 1


@gluon.jit
def _consumer(
    o_desc, q_s, k_s, v_s, o_s, bars, lse_ptr, table, axes, tiles, work, columns, lse_strides, scale,
    D: gl.constexpr, DV: gl.constexpr, T: gl.constexpr, N: gl.constexpr, SPLIT: gl.constexpr, STAGES: gl.constexpr,
    RANK: gl.constexpr, STRIDED: gl.constexpr, MODED: gl.constexpr, PER_HEAD: gl.constexpr, GROUPED: gl.constexpr,
    OWN_OUTPUT: gl.constexpr, PAIRED: gl.constexpr, HEADS: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    q_ready, q_empty, k_ready, k_empty, v_ready, v_empty = bars
    items, heads, group, groups = work
    OUTER: gl.constexpr = 1 if SPLIT == 0 else 0
    INNER: gl.constexpr = 1 if SPLIT == 2 else 2
    BM: gl.constexpr = T[0] * T[1] * T[2] * HEADS
    BN: gl.constexpr = N[0] * N[1] * N[2] * (2 if PAIRED else 1)
    VD: gl.constexpr = o_desc.block_shape[4]
    VP: gl.constexpr = DV // VD
    QP: gl.constexpr = D // q_s.shape[5]
    LAZY: gl.constexpr = DV >= 128  # below, exponentials are what is waited for, and skipping products costs 1 to 3%
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, VD, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=o_layout, k_width=2)
    row_layout: gl.constexpr = gl.SliceLayout(1, s_layout)
    zero = gl.zeros([BM, BN], gl.float32, layout=s_layout)

    t = 0  # tiles that the ring has seen
    done = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        outer, place, token, head, tile = locate(item, tiles, heads, groups, GROUPED)
        head *= HEADS
        own = head_axes(axes, table, head, PER_HEAD)
        x0, x1, x2, sa, ea, sb, eb, sw, ew = union(tile, own, T, SPLIT, False, STRIDED, MODED)
        r = beside((x0, x1, x2), W, T, SPLIT)
        y, starts, widths, low, high = rows_of(r, own, T, HEADS, False, STRIDED, MODED, row_layout)
        if PAIRED:
            x = (x0, x1, x2)[SPLIT]
            line, alone, turns, common = paired_counts(x, sa, ea, sb, eb, sw, ew, T, N, own, SPLIT, STRIDED, MODED)
            count = turns + common
            before = gl.minimum(turns, 1) if W == 1 else 0
            after = 1 if (W == 0) & (common == 0) else 0
            fw = sw + ((line - alone) * N[SPLIT] if W == 1 else 0)
            lw = fw + alone * N[SPLIT]
            if turns == 0:
                fw = sw
                lw = sw + line * N[SPLIT]
        else:
            # of the walk's lines along SPLIT, the part [fw, lw) that this warpgroup needs
            line, skip, before = own_line(r[SPLIT], sw, ew, T, N, own, SPLIT, W, STAGES, False, STRIDED, MODED)
            fw = sw + before * N[SPLIT]
            lw = fw + (line - skip) * N[SPLIT]
            count = gl.cdiv(ea - sa, N[OUTER]) * gl.cdiv(eb - sb, N[INNER]) * (line - skip)
            after = skip - before

        a = sa
        b = sb
        w = fw
        for passed in range(before):
            _pass_over(t, bars, STAGES)
            t += 1
        mbarrier.wait(q_ready.index(W), done & 1)
        mbarrier.wait(k_ready.index(t % STAGES), (t // STAGES) & 1)
        s = warpgroup_mma_wait(0, deps=[scores_of(q_s, W, k_s, t % STAGES, zero, QP)])
        mbarrier.arrive(k_empty.index(t % STAGES), count=1)
        a1 = a
        b1 = b
        w1 = w
        if PAIRED:
            a1, b1, w1 = next_chunk((a, b, w), ea, sb, eb, ew, fw, lw, N[OUTER], N[INNER], N[SPLIT])
        c = in_order(a, b, w, SPLIT)
        d = in_order(a1, b1, w1, SPLIT)
        s = _mask(s, c, d, low, high, starts, widths, N, RANK, PAIRED, s_layout)
        m = gl.max(s, 1) * scale
        p = gl.exp2(s * scale - _finite(m)[:, None])
        l = _in_thread_sums(p, BM, BN)
        l_layout: gl.constexpr = gl.SliceLayout(1, l.type.layout)
        pb = gl.convert_layout(p.to(o_desc.dtype), p_layout)
        out = zeros(BM, VD, VP, o_layout)
        for step in range(1, count):
            last = t
            t += 1
            if PAIRED:
                if step == turns:  # from here on, both warpgroups
                    if W == 0:
                        _pass_over(t, bars, STAGES)
                        t += 1
                    a = sa
                    b = sb
                    fw = sw + alone * N[SPLIT]
                    lw = sw + (line - alone) * N[SPLIT]
                    w = fw
                else:
                    if step < turns:
                        _pass_over(t, bars, STAGES)
                        t += 1
                    a, b, w = next_chunk((a1, b1, w1), ea, sb, eb, ew, fw, lw, N[OUTER], N[INNER], N[SPLIT])
                a1, b1, w1 = next_chunk((a, b, w), ea, sb, eb, ew, fw, lw, N[OUTER], N[INNER], N[SPLIT])
            else:
                w += N[SPLIT]
                if w >= lw:
                    w = fw
                    for passed in range(skip):
                        _pass_over(t, bars, STAGES)
                        t += 1
                    b += N[INNER]
                    if b >= eb:
                        b = sb
                        a += N[OUTER]
            mbarrier.wait(k_ready.index(t % STAGES), (t // STAGES) & 1)
            scoring = scores_of(q_s, W, k_s, t % STAGES, zero, QP)
            mbarrier.wait(v_ready.index(last % STAGES), (last // STAGES) & 1)
            out = add_product(pb, v_s, last % STAGES, out, VP)
            s = warpgroup_mma_wait(VP, deps=[scoring])
            mbarrier.arrive(k_empty.index(t % STAGES), count=1)
            c = in_order(a, b, w, SPLIT)
            d = in_order(a1, b1, w1, SPLIT)
            s = _mask(s, c, d, low, high, starts, widths, N, RANK, PAIRED, s_layout)
            top = gl.max(s, 1) * scale
            m_new = followed(m, top) if LAZY else gl.maximum(m, top)
            finite = _finite(m_new)
            alpha = gl.exp2(m - finite)
            p = gl.exp2(s * scale - finite[:, None])
            l = l * gl.convert_layout(alpha, l_layout)[:, None] + _in_thread_sums(p, BM, BN)
            m = m_new
            factor = gl.convert_layout(alpha, gl.SliceLayout(1, o_layout))
            if LAZY and not PAIRED:
                # Passed long ago. Its branch keeps ptxas from moving the wait for PV up to before the softmax.
                mbarrier.wait(v_ready.index(last % STAGES), (last // STAGES) & 1)
            out, pb = finished(out, pb, VP)
            mbarrier.arrive(v_empty.index(last % STAGES), count=1)
            out = rescaled(out, factor, VP) if LAZY else scaled(out, factor[:, None], VP)
            pb = gl.convert_layout(p.to(o_desc.dtype), p_layout)
        if OWN_OUTPUT:
            mbarrier.arrive(q_empty.index(W), count=1)
        mbarrier.wait(v_ready.index(t % STAGES), (t // STAGES) & 1)
        out, pb = finished(add_product(pb, v_s, t % STAGES, out, VP), pb, VP)
        mbarrier.arrive(v_empty.index(t % STAGES), count=1)
        t += 1
        for passed in range(after):
            _pass_over(t, bars, STAGES)
            t += 1

        l = gl.convert_layout(gl.sum(l, 1), row_layout)
        inverse = gl.convert_layout(1.0 / l, gl.SliceLayout(1, o_layout))[:, None]
        tma_store_wait(0)  # of the last item: the buffer is about to be written
        write_pieces(out, inverse, o_s, W, o_desc.dtype, VP)
        fence_async_shared()
        place_at, column = _rows_at(outer, r, head, columns[3] * token, columns[5], DV, HEADS)
        store_pieces(o_desc, place_at, column, o_s, W, VP)
        lse = (m + gl.log2(l)) * LN2
        at = outer.to(gl.int64) * lse_strides[0] + token * lse_strides[1] + head
        inside = (y[0] < axes[0]) & (y[1] < axes[1]) & (y[2] < axes[2])
        offset = y[0].to(gl.int64) * lse_strides[2] + y[1].to(gl.int64) * lse_strides[3] + y[2] * lse_strides[4]
        if HEADS > 1:
            offset += gl.arange(0, BM, layout=row_layout) % HEADS
        gl.store(lse_ptr + at + offset, lse, mask=inside)
        if not OWN_OUTPUT:
            tma_store_wait(0)
            mbarrier.arrive(q_empty.index(W), count=1)
        done += 1
    tma_store_wait(0)


@gluon.jit
def _rows_at(outer, x, head, first, outer_stride, D: gl.constexpr, HEADS: gl.constexpr):
    """Where a tile of queries or outputs at `x` is in its descriptor: four coordinates, and the first column."""
    if HEADS == 1:
        return (outer, x[0], x[1], x[2]), first + head * D
    else:
        return (x[0], x[1], x[2], head), first + outer * outer_stride


@gluon.jit
def _load_pair(desc, outer, c, d, column, bar, buffer, slot, STAGES: gl.constexpr, D: gl.constexpr):
    """Load the chunks at `c` and `d` as the two halves of a tile: rows of at most 128 bytes lie densely in it."""
    WIDE: gl.constexpr = desc.block_shape[4]
    PIECES: gl.constexpr = D // WIDE
    view = reinterpret(buffer, [STAGES * PIECES * 2] + desc.block_shape, desc.layout)
    for j in gl.static_range(PIECES):
        at = (slot * PIECES + j) * 2
        tma_load(desc, [outer, c[0], c[1], c[2], column + j * WIDE], bar, view.index(at))
        tma_load(desc, [outer, d[0], d[1], d[2], column + j * WIDE], bar, view.index(at + 1))


@gluon.jit
def _pass_over(t, bars, STAGES: gl.constexpr):
    """Let tile `t` of the ring go unread. Waiting for it first keeps the phases in step."""
    q_ready, q_empty, k_ready, k_empty, v_ready, v_empty = bars
    slot = t % STAGES
    phase = (t // STAGES) & 1
    mbarrier.wait(k_ready.index(slot), phase)
    mbarrier.arrive(k_empty.index(slot), count=1)
    mbarrier.wait(v_ready.index(slot), phase)
    mbarrier.arrive(v_empty.index(slot), count=1)


@gluon.jit
def _mask(
    s, c, d, low, high, starts, widths, N: gl.constexpr, RANK: gl.constexpr,
    PAIRED: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    if PAIRED:
        s = masked(s, c, low, high, starts, widths, N, RANK, 0, layout)
        s = masked(s, d, low, high, starts, widths, N, RANK, 1, layout)
    else:
        s = masked(s, c, low, high, starts, widths, N, RANK, -1, layout)
    return s


@gluon.jit
def _in_thread_sums(p, BM: gl.constexpr, BN: gl.constexpr):
    """`[BM, 8]`: sums over every eighth column, which are one thread's; threads are added up once, at the end."""
    return gl.sum(p.reshape([BM, BN // 8, 8]), 1)


@gluon.jit
def _finite(m):
    """The maximum to subtract: 0 for a row that has met no neighbor yet."""
    return gl.where(m == float("-inf"), 0.0, m)
