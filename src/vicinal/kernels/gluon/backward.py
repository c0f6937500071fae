"""Backward pass for Hopper in two deterministic passes, after one that prepares: dK and dV, then dQ.

`prepare` writes, per query head, the log-sum-exp in base 2 and `delta = sum(output * grad_output) - grad_lse`,
both laid out `[rows, X0, X1, X2]` so that TMA can move tiles of them; a row is a (batch element, dilation group, head).

`backward_keys`: two consumer warpgroups of 64 keys each; a producer walks the box of queries that attend to them
(the inverse window rule), through rings of Q, dO, log-sum-exp and delta. Scores are transposed, so that P^T and dS^T
are already the register operands of dV += P^T dO and dK += dS^T Q. Query heads that share a key head are summed in
registers.
With `SHARED`, for head dims of which one warpgroup cannot hold both sums, both work on the same 64 keys: the first
makes dV, the second dK (and the scores are computed twice).
`backward_queries`: two consumer warpgroups of 64 queries; the forward's walk, with dQ += dS K.

Nothing is added in memory, so the same inputs give the same bits. Seven matrix products per score instead of five.
Source: FlashAttention-2 (arXiv 2307.08691, algorithm 2) for the mathematics; the schedule is this project's.
"""

# ruff: noqa: B007, RUF059 (Gluon compiles this: it takes no starred lists, and tuples come whole)

from vicinal.kernels.gluon.compat import (
    fence_async_shared,
    gl,
    gluon,
    mbarrier,
    tma_load,
    tma_store_wait,
    warpgroup_mma_wait,
)
from vicinal.kernels.gluon.pieces import (
    add_product,
    finished,
    load_pieces,
    scores_of,
    store_pieces,
    write_pieces,
    zeros,
)
from vicinal.kernels.gluon.softmax import masked
from vicinal.kernels.gluon.walk import (
    AXES,
    GROUPS,
    TILES,
    beside,
    first_of,
    head_axes,
    in_order,
    locate,
    own_line,
    rows_of,
    union,
)

LOG2E = gl.constexpr(1.4426950408889634)


@gluon.jit(do_not_specialize=GROUPS)
def prepare(
    o_ptr, do_ptr, lse_ptr, grad_lse_ptr, lse_out, delta_out,
    L0, L1, L2, heads, g0, g1, g2, X1, X2, o_outer, o_token, o0, o1, o2, l_outer, l_token, l0, l1, l2,
    r_row, r0, r1, tokens,
    D: gl.constexpr, WIDTH: gl.constexpr, BT: gl.constexpr, GROUPED: gl.constexpr,
    HAS_GRAD_LSE: gl.constexpr,
):  # fmt: skip
    """One program per `BT` tokens of a row. `o*` are the strides of both outputs, `l*` of both log-sum-exps, `r*` of
    both results, in elements; a head is D, 1 and `r_row` elements further on. `WIDTH` is D rounded up to a power of
    two."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32 // (WIDTH // 8), WIDTH // 8], [4, 1], [1, 0])
    blocks = gl.cdiv(tokens, BT)
    row = gl.program_id(0) // blocks
    outer, place, token, head, tile = locate(row, (1, 1, 1), heads, (g0, g1, g2, X1, X2), GROUPED)
    t = gl.program_id(0) % blocks * BT + gl.arange(0, BT, layout=gl.SliceLayout(1, layout))
    column = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, layout))
    inside = t < tokens
    x2 = t % L2
    x1 = t // L2 % L1
    x0 = t // L2 // L1
    at = (outer.to(gl.int64) * o_outer + token * o_token + head * D + x0.to(gl.int64) * o0 + x1.to(gl.int64) * o1
          + x2.to(gl.int64) * o2)  # fmt: skip
    mask = inside[:, None] & (column < D)[None, :]
    o = gl.load(o_ptr + at[:, None] + column[None, :], mask=mask, other=0.0).to(gl.float32)
    do = gl.load(do_ptr + at[:, None] + column[None, :], mask=mask, other=0.0).to(gl.float32)
    delta = gl.sum(o * do, 1)
    at = (outer.to(gl.int64) * l_outer + token * l_token + head + x0.to(gl.int64) * l0 + x1.to(gl.int64) * l1
          + x2.to(gl.int64) * l2)  # fmt: skip
    lse = gl.load(lse_ptr + at, mask=inside, other=0.0)
    if HAS_GRAD_LSE:
        delta -= gl.load(grad_lse_ptr + at, mask=inside, other=0.0)
    to = row.to(gl.int64) * r_row + x0 * r0 + x1 * r1 + x2
    gl.store(lse_out + to, lse * LOG2E, mask=inside)
    gl.store(delta_out + to, delta, mask=inside)


# --- dK and dV ---------------------------------------------------------------------------------------------


@gluon.jit(
    do_not_specialize=GROUPS,
    do_not_specialize_on_alignment=[
        *AXES, *TILES, "kv_heads", "q_column", "do_column", "k_column", "v_column", "dk_column", "dv_column",
    ],
)  # fmt: skip
def backward_keys(
    q_desc, do_desc, lse_desc, delta_desc, k_desc, v_desc, dk_desc, dv_desc, table,
    L0, L1, L2, K0, K1, K2, S0, S1, S2, M0, M1, M2,
    n0, n1, n2, heads, kv_heads, group, g0, g1, g2, X1, X2,
    q_column, do_column, k_column, v_column, dk_column, dv_column, scale,
    D: gl.constexpr, DV: gl.constexpr, T: gl.constexpr, N: gl.constexpr, SPLIT: gl.constexpr, STAGES: gl.constexpr,
    RANK: gl.constexpr, STRIDED: gl.constexpr, MODED: gl.constexpr, PER_HEAD: gl.constexpr, GROUPED: gl.constexpr,
    SHARED: gl.constexpr,
):  # fmt: skip
    """dK and dV of one pair of key tiles `T` (with `SHARED`, of one), over query tiles `N`; `scale` is natural."""
    axes = (L0, L1, L2, K0, K1, K2, S0, S1, S2, M0, M1, M2)
    tiles = (n0, n1, n2)
    columns = (q_column, do_column, k_column, v_column, dk_column, dv_column)
    SIDES: gl.constexpr = 1 if SHARED else 2
    QP: gl.constexpr = D // k_desc.block_shape[4]
    VP: gl.constexpr = DV // v_desc.block_shape[4]
    k_s = gl.allocate_shared_memory(k_desc.dtype, [SIDES * QP] + k_desc.block_shape, k_desc.layout)
    v_s = gl.allocate_shared_memory(v_desc.dtype, [SIDES * VP] + v_desc.block_shape, v_desc.layout)
    q_s = gl.allocate_shared_memory(q_desc.dtype, [STAGES * QP] + q_desc.block_shape, q_desc.layout)
    do_s = gl.allocate_shared_memory(do_desc.dtype, [STAGES * VP] + do_desc.block_shape, do_desc.layout)
    lse_s = gl.allocate_shared_memory(gl.float32, [STAGES] + lse_desc.block_shape, lse_desc.layout)
    delta_s = gl.allocate_shared_memory(gl.float32, [STAGES] + delta_desc.block_shape, delta_desc.layout)
    kv_ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    read = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    mbarrier.init(read.index(0), count=2)
    for i in gl.static_range(2):
        mbarrier.init(kv_ready.index(i), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    fence_async_shared()
    bars = (kv_ready, read, ready, empty)
    work = (heads, kv_heads, group, (g0, g1, g2, X1, X2))
    buffers = (q_s, do_s, lse_s, delta_s, k_s, v_s)
    gl.warp_specialize([
        (_keys_consumer, (dk_desc, dv_desc, buffers, bars, table, axes, tiles, work, columns, scale,
            D, DV, T, N, SPLIT, STAGES, RANK, STRIDED, MODED, PER_HEAD, GROUPED, SHARED, gl.constexpr(0))),
        (_keys_consumer, (dk_desc, dv_desc, buffers, bars, table, axes, tiles, work, columns, scale,
            D, DV, T, N, SPLIT, STAGES, RANK, STRIDED, MODED, PER_HEAD, GROUPED, SHARED, gl.constexpr(1))),
        (_keys_producer, (q_desc, do_desc, lse_desc, delta_desc, k_desc, v_desc, buffers, bars, table, axes, tiles,
            work, columns, D, DV, T, N, SPLIT, STAGES, STRIDED, MODED, PER_HEAD, GROUPED, SHARED)),
    ], [4, 1], [240, 24])  # fmt: skip


@gluon.jit
def _keys_producer(
    q_desc, do_desc, lse_desc, delta_desc, k_desc, v_desc, buffers, bars, table, axes, tiles, work, columns,
    D: gl.constexpr, DV: gl.constexpr, T: gl.constexpr, N: gl.constexpr, SPLIT: gl.constexpr, STAGES: gl.constexpr,
    STRIDED: gl.constexpr, MODED: gl.constexpr, PER_HEAD: gl.constexpr, GROUPED: gl.constexpr,
    SHARED: gl.constexpr,
):  # fmt: skip
    q_s, do_s, lse_s, delta_s, k_s, v_s = buffers
    kv_ready, read, ready, empty = bars
    heads, kv_heads, group, groups = work
    OUTER: gl.constexpr = 1 if SPLIT == 0 else 0
    INNER: gl.constexpr = 1 if SPLIT == 2 else 2
    SIDES: gl.constexpr = 1 if SHARED else 2
    QP: gl.constexpr = D // k_desc.block_shape[4]
    VP: gl.constexpr = DV // v_desc.block_shape[4]
    TILES: gl.constexpr = q_desc.block_type.nbytes * QP + do_desc.block_type.nbytes * VP
    BYTES: gl.constexpr = TILES + lse_desc.block_type.nbytes + delta_desc.block_type.nbytes
    outer, place, token, kv_head, tile = locate(gl.program_id(0), tiles, kv_heads, groups, GROUPED)
    t = 0
    for member in range(group):
        head = kv_head * group + member
        own = head_axes(axes, table, head, PER_HEAD)
        x0, x1, x2, sa, ea, sb, eb, sw, ew = union(tile, own, T, SPLIT, True, STRIDED, MODED, SIDES)
        if member == 0:
            for i in gl.static_range(SIDES):
                bar = kv_ready.index(i)
                mbarrier.expect(bar, k_desc.block_type.nbytes * QP + v_desc.block_type.nbytes * VP)
                y = beside((x0, x1, x2), i, T, SPLIT)
                at = (outer, y[0], y[1], y[2])
                load_pieces(k_desc, at, columns[2] * token + kv_head * D, bar, k_s, i, QP)
                load_pieces(v_desc, at, columns[3] * token + kv_head * DV, bar, v_s, i, VP)
        row = place * heads + head
        for a in range(sa, ea, N[OUTER]):
            for b in range(sb, eb, N[INNER]):
                for w in range(sw, ew, N[SPLIT]):
                    c = in_order(a, b, w, SPLIT)
                    slot = t % STAGES
                    mbarrier.wait(empty.index(slot), ((t // STAGES) & 1) ^ 1)
                    bar = ready.index(slot)
                    mbarrier.expect(bar, BYTES)
                    at = (outer, c[0], c[1], c[2])
                    load_pieces(q_desc, at, columns[0] * token + head * D, bar, q_s, slot, QP)
                    tma_load(lse_desc, [row, c[0], c[1], c[2]], bar, lse_s.index(slot))
                    load_pieces(do_desc, at, columns[1] * token + head * DV, bar, do_s, slot, VP)
                    tma_load(delta_desc, [row, c[0], c[1], c[2]], bar, delta_s.index(slot))
                    t += 1


@gluon.jit
def _keys_consumer(
    dk_desc, dv_desc, buffers, bars, table, axes, tiles, work, columns, scale,
    D: gl.constexpr, DV: gl.constexpr, T: gl.constexpr, N: gl.constexpr, SPLIT: gl.constexpr, STAGES: gl.constexpr,
    RANK: gl.constexpr, STRIDED: gl.constexpr, MODED: gl.constexpr, PER_HEAD: gl.constexpr, GROUPED: gl.constexpr,
    SHARED: gl.constexpr, W: gl.constexpr,
):  # fmt: skip
    q_s, do_s, lse_s, delta_s, k_s, v_s = buffers
    kv_ready, read, ready, empty = bars
    heads, kv_heads, group, groups = work
    OUTER: gl.constexpr = 1 if SPLIT == 0 else 0
    INNER: gl.constexpr = 1 if SPLIT == 2 else 2
    BM: gl.constexpr = T[0] * T[1] * T[2]
    BN: gl.constexpr = N[0] * N[1] * N[2]
    QD: gl.constexpr = k_s.shape[5]
    VD: gl.constexpr = v_s.shape[5]
    QP: gl.constexpr = D // QD
    VP: gl.constexpr = DV // VD
    SIDES: gl.constexpr = 1 if SHARED else 2
    SIDE: gl.constexpr = 0 if SHARED else W
    MAKES_DV: gl.constexpr = not SHARED or W == 0
    MAKES_DK: gl.constexpr = not SHARED or W == 1
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    dk_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, QD, 16])
    dv_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, VD, 16])
    ds_layout: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=dk_layout, k_width=2)
    p_layout: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=dv_layout, k_width=2)
    row_layout: gl.constexpr = gl.SliceLayout(1, s_layout)
    column_layout: gl.constexpr = gl.SliceLayout(0, s_layout)
    zero = gl.zeros([BM, BN], gl.float32, layout=s_layout)
    dk = zeros(BM, QD, QP, dk_layout)
    dv = zeros(BM, VD, VP, dv_layout)
    outer, place, token, kv_head, tile = locate(gl.program_id(0), tiles, kv_heads, groups, GROUPED)
    x = beside(first_of(tile, T, SPLIT, SIDES), SIDE, T, SPLIT)
    mbarrier.wait(kv_ready.index(SIDE), 0)
    t = 0
    for member in range(group):
        own = head_axes(axes, table, kv_head * group + member, PER_HEAD)
        _, _, _, sa, ea, sb, eb, sw, ew = union(tile, own, T, SPLIT, True, STRIDED, MODED, SIDES)
        _, starts, widths, low, high = rows_of(x, own, T, 1, True, STRIDED, MODED, row_layout)
        line, skip, before = own_line(x[SPLIT], sw, ew, T, N, own, SPLIT, W, STAGES, True, STRIDED, MODED, SIDES)
        fw = sw + before * N[SPLIT]
        lw = fw + (line - skip) * N[SPLIT]
        count = gl.cdiv(ea - sa, N[OUTER]) * gl.cdiv(eb - sb, N[INNER]) * (line - skip)
        a = sa
        b = sb
        w = fw
        for passed in range(before):
            _pass_over(t, ready, empty, STAGES)
            t += 1
        for step in range(count):
            if w >= lw:
                w = fw
                for passed in range(skip):
                    _pass_over(t, ready, empty, STAGES)
                    t += 1
                b += N[INNER]
                if b >= eb:
                    b = sb
                    a += N[OUTER]
            slot = t % STAGES
            mbarrier.wait(ready.index(slot), (t // STAGES) & 1)
            scoring = scores_of(k_s, SIDE, q_s, slot, zero, QP)
            lse = lse_s.index(slot).reshape([BN]).load(column_layout)
            if MAKES_DK:
                rising = scores_of(v_s, SIDE, do_s, slot, zero, VP)
                delta = delta_s.index(slot).reshape([BN]).load(column_layout)
                s = warpgroup_mma_wait(VP, deps=[scoring])
            else:
                s = warpgroup_mma_wait(0, deps=[scoring])
            c = in_order(a, b, w, SPLIT)
            s = masked(s, c, low, high, starts, widths, N, RANK, -1, s_layout)
            p = gl.exp2(s * (scale * LOG2E) - lse[None, :])
            if MAKES_DV:
                pb = gl.convert_layout(p.to(dv_desc.dtype), p_layout)
                dv = add_product(pb, do_s, slot, dv, VP)
            if MAKES_DK:
                dp = warpgroup_mma_wait(VP if MAKES_DV else 0, deps=[rising])
                ds = p * (dp - delta[None, :])
                dsb = gl.convert_layout(ds.to(dk_desc.dtype), ds_layout)
                dk = add_product(dsb, q_s, slot, dk, QP)
            if MAKES_DV:
                dv, pb = finished(dv, pb, VP)
            if MAKES_DK:
                dk, dsb = finished(dk, dsb, QP)
            mbarrier.arrive(empty.index(slot), count=1)
            t += 1
            w += N[SPLIT]
        for passed in range(skip - before):
            _pass_over(t, ready, empty, STAGES)
            t += 1
    if SHARED:  # the sums go where keys and values are: not before both have read them
        mbarrier.arrive(read.index(0), count=1)
        mbarrier.wait(read.index(0), 0)
    if MAKES_DK:
        write_pieces(dk, scale, k_s, SIDE, dk_desc.dtype, QP)
    if MAKES_DV:
        write_pieces(dv, 1.0, v_s, SIDE, dv_desc.dtype, VP)
    fence_async_shared()
    at = (outer, x[0], x[1], x[2])
    if MAKES_DK:
        store_pieces(dk_desc, at, columns[4] * token + kv_head * D, k_s, SIDE, QP)
    if MAKES_DV:
        store_pieces(dv_desc, at, columns[5] * token + kv_head * DV, v_s, SIDE, VP)
    tma_store_wait(0)


@gluon.jit
def _pass_over(t, ready, empty, STAGES: gl.constexpr):
    """Let tile `t` of the ring go unread."""
    mbarrier.wait(ready.index(t % STAGES), (t // STAGES) & 1)
    mbarrier.arrive(empty.index(t % STAGES), count=1)


# --- dQ ----------------------------------------------------------------------------------------------------


@gluon.jit(
    do_not_specialize=GROUPS,
    do_not_specialize_on_alignment=[
        *AXES, *TILES, "q_column", "do_column", "k_column", "v_column", "dq_column", "r_row", "r0", "r1",
    ],
)  # fmt: skip
def backward_queries(
    q_desc, do_desc, lse_ptr, delta_ptr, k_desc, v_desc, dq_desc, table,
    L0, L1, L2, K0, K1, K2, S0, S1, S2, M0, M1, M2,
    n0, n1, n2, heads, group, g0, g1, g2, X1, X2,
    q_column, do_column, k_column, v_column, dq_column, r_row, r0, r1, scale,
    D: gl.constexpr, DV: gl.constexpr, T: gl.constexpr, N: gl.constexpr, SPLIT: gl.constexpr, STAGES: gl.constexpr,
    RANK: gl.constexpr, STRIDED: gl.constexpr, MODED: gl.constexpr, PER_HEAD: gl.constexpr, GROUPED: gl.constexpr,
):  # fmt: skip
    """dQ of one pair of query tiles `T`, over key tiles `N`; `r*` are `prepare`'s strides."""
    axes = (L0, L1, L2, K0, K1, K2, S0, S1, S2, M0, M1, M2)
    tiles = (n0, n1, n2)
    columns = (q_column, do_column, k_column, v_column, dq_column)
    rows = (r_row, r0, r1)
    QP: gl.constexpr = D // k_desc.block_shape[4]
    VP: gl.constexpr = DV // v_desc.block_shape[4]
    q_s = gl.allocate_shared_memory(q_desc.dtype, [2 * QP] + q_desc.block_shape, q_desc.layout)
    do_s = gl.allocate_shared_memory(do_desc.dtype, [2 * VP] + do_desc.block_shape, do_desc.layout)
    k_s = gl.allocate_shared_memory(k_desc.dtype, [STAGES * QP] + k_desc.block_shape, k_desc.layout)
    v_s = gl.allocate_shared_memory(v_desc.dtype, [STAGES * VP] + v_desc.block_shape, v_desc.layout)
    q_ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(q_ready.index(i), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    fence_async_shared()
    bars = (q_ready, ready, empty)
    work = (heads, group, (g0, g1, g2, X1, X2))
    buffers = (q_s, do_s, k_s, v_s)
    gl.warp_specialize([
        (_queries_consumer, (dq_desc, lse_ptr, delta_ptr, rows, buffers, bars, table, axes, tiles, work, columns, scale,
            D, DV, T, N, SPLIT, STAGES, RANK, STRIDED, MODED, PER_HEAD, GROUPED, gl.constexpr(0))),
        (_queries_consumer, (dq_desc, lse_ptr, delta_ptr, rows, buffers, bars, table, axes, tiles, work, columns, scale,
            D, DV, T, N, SPLIT, STAGES, RANK, STRIDED, MODED, PER_HEAD, GROUPED, gl.constexpr(1))),
        (_queries_producer, (q_desc, do_desc, k_desc, v_desc, buffers, bars, table, axes, tiles, work, columns,
            D, DV, T, N, SPLIT, STAGES, STRIDED, MODED, PER_HEAD, GROUPED)),
    ], [4, 1], [240, 24])  # fmt: skip


@gluon.jit
def _queries_producer(
    q_desc, do_desc, k_desc, v_desc, buffers, bars, table, axes, tiles, work, columns,
    D: gl.constexpr, DV: gl.constexpr, T: gl.constexpr, N: gl.constexpr, SPLIT: gl.constexpr, STAGES: gl.constexpr,
    STRIDED: gl.constexpr, MODED: gl.constexpr, PER_HEAD: gl.constexpr, GROUPED: gl.constexpr,
):  # fmt: skip
    q_s, do_s, k_s, v_s = buffers
    q_ready, ready, empty = bars
    heads, group, groups = work
    OUTER: gl.constexpr = 1 if SPLIT == 0 else 0
    INNER: gl.constexpr = 1 if SPLIT == 2 else 2
    QP: gl.constexpr = D // k_desc.block_shape[4]
    VP: gl.constexpr = DV // v_desc.block_shape[4]
    outer, place, token, head, tile = locate(gl.program_id(0), tiles, heads, groups, GROUPED)
    own = head_axes(axes, table, head, PER_HEAD)
    x0, x1, x2, sa, ea, sb, eb, sw, ew = union(tile, own, T, SPLIT, False, STRIDED, MODED)
    for i in gl.static_range(2):
        bar = q_ready.index(i)
        mbarrier.expect(bar, q_desc.block_type.nbytes * QP + do_desc.block_type.nbytes * VP)
        y = beside((x0, x1, x2), i, T, SPLIT)
        at = (outer, y[0], y[1], y[2])
        load_pieces(q_desc, at, columns[0] * token + head * D, bar, q_s, i, QP)
        load_pieces(do_desc, at, columns[1] * token + head * DV, bar, do_s, i, VP)
    k_first = columns[2] * token + (head // group) * D
    v_first = columns[3] * token + (head // group) * DV
    t = 0
    for a in range(sa, ea, N[OUTER]):
        for b in range(sb, eb, N[INNER]):
            for w in range(sw, ew, N[SPLIT]):
                c = in_order(a, b, w, SPLIT)
                slot = t % STAGES
                mbarrier.wait(empty.index(slot), ((t // STAGES) & 1) ^ 1)
                bar = ready.index(slot)
                mbarrier.expect(bar, k_desc.block_type.nbytes * QP + v_desc.block_type.nbytes * VP)
                at = (outer, c[0], c[1], c[2])
                load_pieces(k_desc, at, k_first, bar, k_s, slot, QP)
                load_pieces(v_desc, at, v_first, bar, v_s, slot, VP)
                t += 1


@gluon.jit
def _queries_consumer(
    dq_desc, lse_ptr, delta_ptr, rows, buffers, bars, table, axes, tiles, work, columns, scale,
    D: gl.constexpr, DV: gl.constexpr, T: gl.constexpr, N: gl.constexpr, SPLIT: gl.constexpr, STAGES: gl.constexpr,
    RANK: gl.constexpr, STRIDED: gl.constexpr, MODED: gl.constexpr, PER_HEAD: gl.constexpr, GROUPED: gl.constexpr,
    W: gl.constexpr,
):  # fmt: skip
    q_s, do_s, k_s, v_s = buffers
    q_ready, ready, empty = bars
    heads, group, groups = work
    OUTER: gl.constexpr = 1 if SPLIT == 0 else 0
    INNER: gl.constexpr = 1 if SPLIT == 2 else 2
    BM: gl.constexpr = T[0] * T[1] * T[2]
    BN: gl.constexpr = N[0] * N[1] * N[2]
    WIDE: gl.constexpr = k_s.shape[5]
    QP: gl.constexpr = D // WIDE
    VP: gl.constexpr = DV // v_s.shape[5]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    sum_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDE, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=sum_layout, k_width=2)
    row_layout: gl.constexpr = gl.SliceLayout(1, s_layout)
    zero = gl.zeros([BM, BN], gl.float32, layout=s_layout)
    dq = zeros(BM, WIDE, QP, sum_layout)
    outer, place, token, head, tile = locate(gl.program_id(0), tiles, heads, groups, GROUPED)
    own = head_axes(axes, table, head, PER_HEAD)
    x0, x1, x2, sa, ea, sb, eb, sw, ew = union(tile, own, T, SPLIT, False, STRIDED, MODED)
    x = beside((x0, x1, x2), W, T, SPLIT)
    y, starts, widths, low, high = rows_of(x, own, T, 1, False, STRIDED, MODED, row_layout)
    line, skip, before = own_line(x[SPLIT], sw, ew, T, N, own, SPLIT, W, STAGES, False, STRIDED, MODED)
    fw = sw + before * N[SPLIT]
    lw = fw + (line - skip) * N[SPLIT]
    count = gl.cdiv(ea - sa, N[OUTER]) * gl.cdiv(eb - sb, N[INNER]) * (line - skip)
    inside = (y[0] < axes[0]) & (y[1] < axes[1]) & (y[2] < axes[2])
    at = (place * heads + head).to(gl.int64) * rows[0] + y[0] * rows[1] + y[1] * rows[2] + y[2]
    lse = gl.load(lse_ptr + at, mask=inside, other=0.0)
    delta = gl.load(delta_ptr + at, mask=inside, other=0.0)
    mbarrier.wait(q_ready.index(W), 0)
    a = sa
    b = sb
    w = fw
    t = 0
    for passed in range(before):
        _pass_over(t, ready, empty, STAGES)
        t += 1
    for step in range(count):
        if w >= lw:
            w = fw
            for passed in range(skip):
                _pass_over(t, ready, empty, STAGES)
                t += 1
            b += N[INNER]
            if b >= eb:
                b = sb
                a += N[OUTER]
        slot = t % STAGES
        mbarrier.wait(ready.index(slot), (t // STAGES) & 1)
        scoring = scores_of(q_s, W, k_s, slot, zero, QP)
        rising = scores_of(do_s, W, v_s, slot, zero, VP)
        s = warpgroup_mma_wait(VP, deps=[scoring])
        c = in_order(a, b, w, SPLIT)
        s = masked(s, c, low, high, starts, widths, N, RANK, -1, s_layout)
        p = gl.exp2(s * (scale * LOG2E) - lse[:, None])
        dp = warpgroup_mma_wait(0, deps=[rising])
        ds = p * (dp - delta[:, None])
        dsb = gl.convert_layout(ds.to(dq_desc.dtype), p_layout)
        dq, dsb = finished(add_product(dsb, k_s, slot, dq, QP), dsb, QP)
        mbarrier.arrive(empty.index(slot), count=1)
        t += 1
        w += N[SPLIT]
    write_pieces(dq, scale, q_s, W, dq_desc.dtype, QP)
    fence_async_shared()
    store_pieces(dq_desc, (outer, x[0], x[1], x[2]), columns[4] * token + head * D, q_s, W, QP)
    tma_store_wait(0)
