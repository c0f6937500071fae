"""Backward pass for Hopper in two deterministic passes, after one that prepares: dK and dV, then dQ.

`prepare` writes, per query head, the log-sum-exp (here in base 2) and `delta = sum(output * grad_output) - grad_lse`,
both laid out `[rows, X0, X1, X2]` so that TMA can move tiles of them; a row is a (batch element, dilation group, head).

`backward_keys`: two consumer warpgroups of 64 keys each; a producer walks the box of queries that attend to them
(the inverse window rule), through rings of Q, dO, log-sum-exp and delta. Scores are transposed, so that P^T and dS^T
are already the register operands of dV += P^T dO and dK += dS^T Q. Query heads that share a key head are summed in
registers.
With `shared`, for head dims of which one warpgroup cannot hold both sums, both work on the same 64 keys: the first
makes dV, the second dK (and the scores are computed twice).
`backward_queries`: two consumer warpgroups of 64 queries; the forward's walk, with dQ += dS K.

Nothing is added in memory, so the same inputs give the same bits. Seven matrix products per score instead of five.
Source: FlashAttention-2 (arXiv 2307.08691, algorithm 2) for the mathematics; the schedule is this project's.
"""

from typing import Any, NamedTuple

from vicinal.backends.hopper.kernels.additional import (
    cut_off,
    first_group,
    own_place,
    own_rows,
    queries_of,
    share_of_queries,
    tiles_of,
    write_sums,
)
from vicinal.backends.hopper.kernels.chain import await_previous, let_next_start
from vicinal.backends.hopper.kernels.compat import (
    fence_async_shared,
    gl,
    gluon,
    mbarrier,
    tma_load,
    tma_store_wait,
    warpgroup_mma_wait,
)
from vicinal.backends.hopper.kernels.pieces import (
    accumulator,
    add_product,
    finished,
    hidden_zero,
    left_operand,
    load_head,
    only,
    scores_of,
    store_head,
    write_pieces,
    zeros,
)
from vicinal.backends.hopper.kernels.ring import Ring, await_ready, barriers, claim, free, pass_over_tiles, start_slot
from vicinal.backends.hopper.kernels.softmax import LOG2E, masked_exponents
from vicinal.backends.hopper.kernels.steps import (
    MASKED,
    all_kept,
    bits_at,
    clean,
    clean_queries,
    entry_at,
    fill_listed,
    hidden,
    listed_of,
    on_list,
    without_masked,
)
from vicinal.backends.hopper.kernels.walk import (
    Share,
    beside,
    fill,
    first_of,
    head_axes,
    in_order,
    locate,
    on_line,
    rows_inside,
    rows_of,
    share_of,
    sides,
    tokens_at,
    union,
    walk_order,
    work_of,
)


@gluon.jit(do_not_specialize=["groups", "zeros"])
def prepare(
    o_ptr, do_ptr, lse_ptr, grad_lse_ptr,
    lse_out, delta_out,  # written
    zeros_ptr,  # written: `zeros` times `C.cleared` float32
    lengths, tokens,  # along each axis, and in all, of a dilation group
    heads, groups, strides,  # `Groups`, `PrepareStrides`; heads of outputs are adjacent
    unit,  # of log-sum-exps
    zeros,
    C: gl.constexpr,  # `RowConstants`
):  # fmt: skip
    """One program per `C.tokens` tokens of a row; all heads of them together, which lie side by side in memory."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32 // (C.width // 8), C.width // 8], [4, 1], [1, 0])
    blocks = gl.cdiv(tokens, C.tokens)
    place, row = of_row(blocks, heads)
    item = locate(row, (1, 1, 1), heads, groups, C)
    t = place * C.tokens + gl.arange(0, C.tokens, layout=gl.SliceLayout(1, layout))
    column = gl.arange(0, C.width, layout=gl.SliceLayout(0, layout))
    inside = t < tokens
    x2 = t % lengths[2]
    x1 = t // lengths[2] % lengths[1]
    x0 = t // lengths[2] // lengths[1]
    at = tokens_at(item, C.columns, (x0, x1, x2), strides.output)
    mask = inside[:, None] & (column < C.columns)[None, :]
    await_previous(C.chained)
    o = gl.load(o_ptr + at[:, None] + column[None, :], mask=mask, other=0.0).to(gl.float32)
    do = gl.load(do_ptr + at[:, None] + column[None, :], mask=mask, other=0.0).to(gl.float32)
    delta = gl.sum(o * do, 1)
    at = tokens_at(item, 1, (x0, x1, x2), strides.lse)
    lse = gl.load(lse_ptr + at, mask=inside, other=0.0)
    if C.has_grad_lse:
        delta -= gl.load(grad_lse_ptr + at, mask=inside, other=0.0)
    if C.masked:
        delta = gl.where(lse == float("-inf"), 0.0, delta)
    if C.cleared:
        SIZE: gl.constexpr = C.cleared
        flat: gl.constexpr = gl.BlockedLayout([4], [32], [4], [0])
        nothing = gl.zeros([SIZE], gl.float32, layout=flat)
        own = gl.arange(0, SIZE, layout=flat)
        for i in range(gl.program_id(0), zeros, gl.num_programs(0)):
            gl.store(zeros_ptr + i.to(gl.int64) * SIZE + own, nothing)
    let_next_start(C.chained)
    result = strides.result
    to = row.to(gl.int64) * result.row + x0 * result.axes[0] + x1 * result.axes[1] + x2
    # A row without a finite score has no exponentials: subtracting infinity makes them 0, whatever the score.
    lse = gl.where(lse == float("-inf"), float("inf"), lse * unit)
    if C.negated:
        lse = -lse
        delta = -delta
    gl.store(lse_out + to, lse, mask=inside)
    gl.store(delta_out + to, delta, mask=inside)


@gluon.jit
def of_row(programs, heads):
    """What a program has to do, where a row takes so many: its place in the row, and the row; heads by turns."""
    rest = gl.program_id(0) // heads
    return rest % programs, rest // programs * heads + gl.program_id(0) % heads


# --- dK and dV ---------------------------------------------------------------------------------------------


class KeysRings(NamedTuple):
    """Shared memory of `backward_keys`."""

    own: Any  # `sides(C)` tiles of keys and of values
    own_ready: Any  # barriers: they have arrived
    own_read: Any  # barrier, with `C.shared`: both warpgroups have read them
    walked: Ring  # of queries, output gradients, log-sum-exps and deltas


@gluon.jit(do_not_specialize=["groups"], do_not_specialize_on_alignment=["scalars", "more"])
def backward_keys(
    q_desc, do_desc,  # over `[batch, X0, X1, X2, columns]`, as are those of keys and values
    lse_desc, delta_desc,  # over `[rows, X0, X1, X2]`
    k_desc, v_desc,
    dk_desc, dv_desc,  # written; with `C.cut` pointers to float32
    table,
    scalars, groups, more,  # `Scalars` with `KeysStrides`; `Groups`; with `C.cut` `More`, else None
    C: gl.constexpr,  # `Constants`
):  # fmt: skip
    """dK and dV of the own tiles of one work item."""
    SIDES: gl.constexpr = sides(C)
    STAGES: gl.constexpr = C.stages
    QP: gl.constexpr = C.head_dim // k_desc.block_shape[4]
    VP: gl.constexpr = C.value_dim // v_desc.block_shape[4]
    k_s = gl.allocate_shared_memory(k_desc.dtype, [SIDES * QP] + k_desc.block_shape, k_desc.layout)
    v_s = gl.allocate_shared_memory(v_desc.dtype, [SIDES * VP] + v_desc.block_shape, v_desc.layout)
    q_s = gl.allocate_shared_memory(q_desc.dtype, [STAGES * QP] + q_desc.block_shape, q_desc.layout)
    do_s = gl.allocate_shared_memory(do_desc.dtype, [STAGES * VP] + do_desc.block_shape, do_desc.layout)
    lse_s = gl.allocate_shared_memory(gl.float32, [STAGES] + lse_desc.block_shape, lse_desc.layout)
    delta_s = gl.allocate_shared_memory(gl.float32, [STAGES] + delta_desc.block_shape, delta_desc.layout)
    own_ready = barriers(2)
    walked = Ring((q_s, do_s, lse_s, delta_s), barriers(STAGES), barriers(STAGES))
    own_read = barriers(1)
    mbarrier.init(own_read.index(0), count=2)
    for i in gl.static_range(2):
        mbarrier.init(own_ready.index(i), count=1)
    for i in gl.static_range(STAGES):
        start_slot(walked, i, 2)
    fence_async_shared()
    rings = KeysRings((k_s, v_s), own_ready, own_read, walked)
    work = work_of(scalars, groups, table, more)
    gl.warp_specialize([
        (_keys_consumer, (dk_desc, dv_desc, rings, work, C, gl.constexpr(0))),
        (_keys_consumer, (dk_desc, dv_desc, rings, work, C, gl.constexpr(1))),
        (keys_producer, (q_desc, do_desc, lse_desc, delta_desc, k_desc, v_desc, rings, work, C)),
    ], [4, 1], [240, 24])  # fmt: skip


@gluon.jit
def keys_producer(q_desc, do_desc, lse_desc, delta_desc, k_desc, v_desc, rings, work, C: gl.constexpr):
    own, own_ready, _, walked = rings
    strides = work.strides
    QP: gl.constexpr = C.head_dim // k_desc.block_shape[4]
    VP: gl.constexpr = C.value_dim // v_desc.block_shape[4]
    OWN_BYTES: gl.constexpr = k_desc.block_type.nbytes * QP + v_desc.block_type.nbytes * VP
    item = locate(gl.program_id(0), work.grid.tiles, work.grid.kv_heads, work.groups, C)
    t = 0
    for member in range(work.grid.group):
        head = item.head * work.grid.group + member
        axes = head_axes(work, head, C)
        walk = queries_of(item.tile, axes, work, C)
        if member == 0:
            await_previous(C.chained)
            for i in gl.static_range(sides(C)):
                bar = own_ready.index(i)
                mbarrier.expect(bar, OWN_BYTES)
                x = own_place(beside(walk.first, i, C), C)
                load_head(k_desc, item, item.head, strides.key, x, bar, own[0], i, C.head_dim, C)
                load_head(v_desc, item, item.head, strides.value, x, bar, own[1], i, C.value_dim, C)
        descs = (q_desc, do_desc, lse_desc, delta_desc)
        arguments = (descs, walked, strides, item, head, item.place * work.grid.heads + head)
        if C.masked:
            t = fill_listed(load_queries, arguments, listed_of(work, item, 0, 0, C), t, C)
        else:
            t = fill(load_queries, arguments, walk, t, C)
    let_next_start(C.chained)


@gluon.jit
def load_queries(arguments, c, t, C: gl.constexpr):
    """Tile `t`: of queries, output gradients, log-sum-exps and deltas at `c`."""
    descs, walked, strides, item, head, row = arguments
    q_desc, do_desc, lse_desc, delta_desc = descs
    q_s, do_s, lse_s, delta_s = walked.tiles
    QP: gl.constexpr = C.head_dim // q_desc.block_shape[4]
    VP: gl.constexpr = C.value_dim // do_desc.block_shape[4]
    TILES: gl.constexpr = q_desc.block_type.nbytes * QP + do_desc.block_type.nbytes * VP
    BYTES: gl.constexpr = TILES + lse_desc.block_type.nbytes + delta_desc.block_type.nbytes
    slot = t % C.stages
    bar = claim(walked, t, BYTES, C)
    load_head(q_desc, item, head, strides.query, c, bar, q_s, slot, C.head_dim, C)
    tma_load(lse_desc, [row, c[0], c[1], c[2]], bar, lse_s.index(slot))
    load_head(do_desc, item, head, strides.grad_output, c, bar, do_s, slot, C.value_dim, C)
    tma_load(delta_desc, [row, c[0], c[1], c[2]], bar, delta_s.index(slot))


@gluon.jit
def _keys_consumer(dk_desc, dv_desc, rings, work, C: gl.constexpr, W: gl.constexpr):
    own, own_ready, own_read, walked = rings
    k_s, v_s = own
    scale = work.scale
    STEP: gl.constexpr = walk_order(C.step, C)
    BM: gl.constexpr = C.tile[0] * C.tile[1] * C.tile[2]
    BN: gl.constexpr = C.step[0] * C.step[1] * C.step[2]
    QD: gl.constexpr = k_s.shape[5]
    VD: gl.constexpr = v_s.shape[5]
    QP: gl.constexpr = C.head_dim // QD
    VP: gl.constexpr = C.value_dim // VD
    SIDE: gl.constexpr = 0 if C.shared else W
    MAKES_DV: gl.constexpr = makes_dv(C, W)
    MAKES_DK: gl.constexpr = makes_dk(C, W)
    row_layout: gl.constexpr = gl.SliceLayout(1, accumulator(BN))
    dk = zeros(BM, QD, QP, accumulator(QD))
    dv = zeros(BM, VD, VP, accumulator(VD))
    item = locate(gl.program_id(0), work.grid.tiles, work.grid.kv_heads, work.groups, C)
    x = beside(first_of(item.tile, C), SIDE, C)
    if C.masked:
        await_previous(C.chained)
        listed = listed_of(work, item, 1 + W, SIDE, C)
    mbarrier.wait(own_ready.index(SIDE), 0)
    if C.masked:
        if not all_kept(listed.own):
            clean(k_s, SIDE * QP, listed.own, QP, BM)
            clean(v_s, SIDE * VP, listed.own, VP, BM)
    t = 0
    for member in range(work.grid.group):
        axes = head_axes(work, item.head * work.grid.group + member, C)
        walk = queries_of(item.tile, axes, work, C)
        rows = own_rows(x, axes, work, row_layout, C)
        share = share_of_queries(x, walk, axes, W, C)
        if C.masked:
            rows = without_masked(rows, listed.own, row_layout)
            share = Share(walk.split[0], walk.split[1], listed.after, 0, listed.count)
            coming = entry_at(listed, 0)
        a = walk.outer[0]
        b = walk.inner[0]
        w = share.first
        t = pass_over_tiles((walked,), t, share.before, C)
        for step in range(share.count):
            if C.masked:
                a, b, w, t, info, coming = on_list(coming, listed, step, t, (walked,), C)
            else:
                a, b, w, t = on_line((a, b, w), t, (walked,), walk, share, C)
            await_ready(walked, t, C)
            if C.masked:
                if info >= MASKED:
                    clean_queries(walked, t, QP, VP, C)
            if MAKES_DV or MAKES_DK:
                dk, dv = _add_queries(dk, dv, own, walked, t, in_order(a, b, w, C), rows, scale, C, W)
                fence_async_shared()  # before copies overwrite what ordinary loads have read
            free(walked, t, C)
            t += 1
            w += STEP[2]
        t = pass_over_tiles((walked,), t, share.skip - share.before, C)
    if C.cut >= 0:
        if MAKES_DK:
            write_sums(dk_desc, dk, scale, item, x, work, QP, C)
        if MAKES_DV:
            write_sums(dv_desc, dv, 1.0, item, x, work, VP, C)
    else:
        if C.shared:  # the sums go where keys and values are: not before both have read them
            mbarrier.arrive(own_read.index(0), count=1)
            mbarrier.wait(own_read.index(0), 0)
        if MAKES_DK:
            write_pieces(dk, scale, k_s, SIDE, dk_desc.dtype, QP)
        if MAKES_DV:
            write_pieces(dv, 1.0, v_s, SIDE, dv_desc.dtype, VP)
        fence_async_shared()
        if MAKES_DK:
            store_head(dk_desc, item, item.head, work.strides.grad_key, x, k_s, SIDE, C.head_dim, C)
        if MAKES_DV:
            store_head(dv_desc, item, item.head, work.strides.grad_value, x, v_s, SIDE, C.value_dim, C)
        tma_store_wait(0)


@gluon.jit
def _add_queries(dk, dv, own, walked, t, c, rows, scale, C: gl.constexpr, W: gl.constexpr):
    """dK and dV of warpgroup `W`, plus what the queries of tile `t`, at `c`, add to them."""
    k_s, v_s = own
    q_s, do_s, lse_s, delta_s = walked.tiles
    BM: gl.constexpr = C.tile[0] * C.tile[1] * C.tile[2]
    BN: gl.constexpr = C.step[0] * C.step[1] * C.step[2]
    QD: gl.constexpr = k_s.shape[5]
    VD: gl.constexpr = v_s.shape[5]
    QP: gl.constexpr = C.head_dim // QD
    VP: gl.constexpr = C.value_dim // VD
    SIDE: gl.constexpr = 0 if C.shared else W
    MAKES_DV: gl.constexpr = makes_dv(C, W)
    MAKES_DK: gl.constexpr = makes_dk(C, W)
    s_layout: gl.constexpr = accumulator(BN)
    column_layout: gl.constexpr = gl.SliceLayout(0, s_layout)
    zero = gl.zeros([BM, BN], gl.float32, layout=s_layout)
    slot = t % C.stages
    side = SIDE + hidden_zero()
    scoring = scores_of(k_s, side, q_s, slot, zero, QP)
    lse = lse_s.index(slot).reshape([BN]).load(column_layout)
    if MAKES_DK:
        rising = scores_of(v_s, side, do_s, slot, zero, VP)
        delta = delta_s.index(slot).reshape([BN]).load(column_layout)
        s = warpgroup_mma_wait(VP, deps=[scoring])
    else:
        s = warpgroup_mma_wait(0, deps=[scoring])
    p = gl.exp2(masked_exponents(s, c, rows, scale, s_layout, C) - lse[None, :])
    if MAKES_DV:
        pb = gl.convert_layout(p.to(v_s.dtype), left_operand(VD))
        dv = add_product(pb, do_s, slot, dv, VP)
    if MAKES_DK:
        dp = warpgroup_mma_wait(VP if MAKES_DV else 0, deps=[rising])
        ds = p * (dp - delta[None, :])
        dsb = gl.convert_layout(ds.to(k_s.dtype), left_operand(QD))
        dk = add_product(dsb, q_s, slot, dk, QP)
    if MAKES_DV:
        dv, pb = finished(dv, pb, VP)
    if MAKES_DK:
        dk, dsb = finished(dk, dsb, QP)
    return dk, dv


@gluon.constexpr_function
def makes_dk(C, W):
    """Whether warpgroup `W` of `backward_keys` makes dK."""
    return C.makes_dk and (not C.shared or W == 1)


@gluon.constexpr_function
def makes_dv(C, W):
    """Whether warpgroup `W` of `backward_keys` makes dV."""
    return C.makes_dv and (not C.shared or W == 0)


# --- dQ ----------------------------------------------------------------------------------------------------


class QueriesRings(NamedTuple):
    """Shared memory of `backward_queries`."""

    own: Any  # two tiles of queries and of output gradients
    own_ready: Any  # barriers: they have arrived
    walked: Ring  # of keys and values


@gluon.jit(do_not_specialize=["groups"], do_not_specialize_on_alignment=["scalars", "more"])
def backward_queries(
    q_desc, do_desc,  # over `[batch, X0, X1, X2, columns]`, as are those of keys and values
    lse_ptr, delta_ptr,
    k_desc, v_desc,
    dq_desc,  # written
    table,
    more_k_desc, more_v_desc,  # over `[batch, tiles, *step, columns]`; None without additional keys
    scalars, groups, more,  # `Scalars` with `QueriesStrides`; `Groups`; `More` or None
    C: gl.constexpr,  # `Constants`
):  # fmt: skip
    """dQ of the own tiles of one work item."""
    STAGES: gl.constexpr = C.stages
    QP: gl.constexpr = C.head_dim // k_desc.block_shape[4]
    VP: gl.constexpr = C.value_dim // v_desc.block_shape[4]
    q_s = gl.allocate_shared_memory(q_desc.dtype, [2 * QP] + q_desc.block_shape, q_desc.layout)
    do_s = gl.allocate_shared_memory(do_desc.dtype, [2 * VP] + do_desc.block_shape, do_desc.layout)
    k_s = gl.allocate_shared_memory(k_desc.dtype, [STAGES * QP] + k_desc.block_shape, k_desc.layout)
    v_s = gl.allocate_shared_memory(v_desc.dtype, [STAGES * VP] + v_desc.block_shape, v_desc.layout)
    own_ready = barriers(2)
    walked = Ring((k_s, v_s), barriers(STAGES), barriers(STAGES))
    for i in gl.static_range(2):
        mbarrier.init(own_ready.index(i), count=1)
    for i in gl.static_range(STAGES):
        start_slot(walked, i, 2)
    fence_async_shared()
    rings = QueriesRings((q_s, do_s), own_ready, walked)
    work = work_of(scalars, groups, table, more)
    descs = (k_desc, v_desc, more_k_desc, more_v_desc) if C.additional else (k_desc, v_desc)
    gl.warp_specialize([
        (_queries_consumer, (dq_desc, lse_ptr, delta_ptr, rings, work, C, gl.constexpr(0))),
        (_queries_consumer, (dq_desc, lse_ptr, delta_ptr, rings, work, C, gl.constexpr(1))),
        (_queries_producer, (q_desc, do_desc, descs, rings, work, C)),
    ], [4, 1], [240, 24])  # fmt: skip


@gluon.jit
def _queries_producer(q_desc, do_desc, descs, rings, work, C: gl.constexpr):
    own, own_ready, walked = rings
    strides = work.strides
    QP: gl.constexpr = C.head_dim // q_desc.block_shape[4]
    VP: gl.constexpr = C.value_dim // do_desc.block_shape[4]
    OWN_BYTES: gl.constexpr = q_desc.block_type.nbytes * QP + do_desc.block_type.nbytes * VP
    item = locate(gl.program_id(0), work.grid.tiles, work.grid.heads, work.groups, C)
    head = item.head
    walk = union(item.tile, head_axes(work, head, C), C)
    await_previous(C.chained)
    for i in gl.static_range(2):
        bar = own_ready.index(i)
        mbarrier.expect(bar, OWN_BYTES)
        x = beside(walk.first, i, C)
        load_head(q_desc, item, head, strides.query, x, bar, own[0], i, C.head_dim, C)
        load_head(do_desc, item, head, strides.grad_output, x, bar, own[1], i, C.value_dim, C)
    kv = head // work.grid.group
    arguments = ((descs[0], descs[1]), walked, (strides.key, strides.value), item, kv)
    t = gl.to_tensor(0)
    if C.masked:
        t = fill_listed(_load_keys, arguments, listed_of(work, item, 0, 0, C), t, C)
    else:
        t = fill(_load_keys, arguments, walk, t, C)
    if C.additional:
        arguments = ((descs[2], descs[3]), walked, (work.more.key, work.more.value), first_group(item), kv)
        for i in range(tiles_of(work, C.step[0] * C.step[1] * C.step[2], C)):
            _load_keys(arguments, (i * C.step[0], 0, 0), t, C)
            t += 1
    let_next_start(C.chained)


@gluon.jit
def _load_keys(arguments, c, t, C: gl.constexpr):
    """Tile `t`: of keys and values at `c`."""
    descs, walked, strides, item, head = arguments
    k_desc, v_desc = descs
    k_s, v_s = walked.tiles
    QP: gl.constexpr = C.head_dim // k_desc.block_shape[4]
    VP: gl.constexpr = C.value_dim // v_desc.block_shape[4]
    BYTES: gl.constexpr = k_desc.block_type.nbytes * QP + v_desc.block_type.nbytes * VP
    slot = t % C.stages
    bar = claim(walked, t, BYTES, C)
    load_head(k_desc, item, head, strides[0], c, bar, k_s, slot, C.head_dim, C)
    load_head(v_desc, item, head, strides[1], c, bar, v_s, slot, C.value_dim, C)


@gluon.jit
def _queries_consumer(dq_desc, lse_ptr, delta_ptr, rings, work, C: gl.constexpr, W: gl.constexpr):
    own, own_ready, walked = rings
    q_s, do_s = own
    k_s, v_s = walked.tiles
    scale = work.scale
    STEP: gl.constexpr = walk_order(C.step, C)
    BM: gl.constexpr = C.tile[0] * C.tile[1] * C.tile[2]
    BN: gl.constexpr = C.step[0] * C.step[1] * C.step[2]
    WIDE: gl.constexpr = k_s.shape[5]
    QP: gl.constexpr = C.head_dim // WIDE
    VP: gl.constexpr = C.value_dim // v_s.shape[5]
    s_layout: gl.constexpr = accumulator(BN)
    row_layout: gl.constexpr = gl.SliceLayout(1, s_layout)
    zero = gl.zeros([BM, BN], gl.float32, layout=s_layout)
    dq = zeros(BM, WIDE, QP, accumulator(WIDE))
    item = locate(gl.program_id(0), work.grid.tiles, work.grid.heads, work.groups, C)
    axes = head_axes(work, item.head, C)
    walk = union(item.tile, axes, C)
    x = beside(walk.first, W, C)
    rows = rows_of(x, axes, row_layout, C)
    share = share_of(x[C.split], walk, axes, W, C)
    if C.masked:
        await_previous(C.chained)
        listed = listed_of(work, item, 1 + W, W, C)
        coming = entry_at(listed, 0)
        share = Share(walk.split[0], walk.split[1], 0, 0, listed.count)
    inside = rows_inside(rows, work.axes, C)
    at = _prepared_rows(item.place * work.grid.heads + item.head, rows.positions, work.strides.prepared)
    await_previous(C.chained)
    lse = gl.load(lse_ptr + at, mask=inside, other=0.0)
    delta = gl.load(delta_ptr + at, mask=inside, other=0.0)
    mbarrier.wait(own_ready.index(W), 0)
    a = walk.outer[0]
    b = walk.inner[0]
    w = share.first
    t = pass_over_tiles((walked,), gl.to_tensor(0), share.before, C)
    for step in range(share.count + tiles_of(work, BN, C)):
        if C.additional:
            if step < share.count:
                a, b, w, t = on_line((a, b, w), t, (walked,), walk, share, C)
            elif step == share.count:
                t = pass_over_tiles((walked,), t, share.skip - share.before, C)
        elif C.masked:
            a, b, w, t, info, coming = on_list(coming, listed, step, t, (walked,), C)
        else:
            a, b, w, t = on_line((a, b, w), t, (walked,), walk, share, C)
        slot = t % C.stages
        await_ready(walked, t, C)
        if C.masked:
            if info >= MASKED:
                clean(k_s, slot * QP, bits_at(listed, step, BN), QP, BN)
                clean(v_s, slot * VP, bits_at(listed, step, BN), VP, BN)
        scoring = scores_of(q_s, W, k_s, slot, zero, QP)
        rising = scores_of(do_s, W, v_s, slot, zero, VP)
        s = warpgroup_mma_wait(VP, deps=[scoring])
        if C.additional:
            if step < share.count:
                s = masked_exponents(s, in_order(a, b, w, C), rows, scale, s_layout, C)
            else:
                s = cut_off(s * (scale * LOG2E), work.more.count - (step - share.count) * BN, s_layout)
        else:
            s = masked_exponents(s, in_order(a, b, w, C), rows, scale, s_layout, C)
        if C.masked:
            s = hidden(s, listed, step, info, s_layout)
        p = gl.exp2(s - lse[:, None])
        dp = warpgroup_mma_wait(0, deps=[rising])
        ds = p * (dp - delta[:, None])
        dsb = gl.convert_layout(ds.to(dq_desc.dtype), left_operand(WIDE))
        dq, dsb = finished(add_product(dsb, k_s, slot, dq, QP), dsb, QP)
        free(walked, t, C)
        t += 1
        w += STEP[2]
    if C.masked:  # what has no answer may be no number
        answered = gl.convert_layout(lse < float("inf"), gl.SliceLayout(1, accumulator(WIDE)))
        dq = only(dq, answered, QP)
    write_pieces(dq, scale, q_s, W, dq_desc.dtype, QP)
    fence_async_shared()
    store_head(dq_desc, item, item.head, work.strides.grad_query, x, q_s, W, C.head_dim, C)
    tma_store_wait(0)


@gluon.jit
def _prepared_rows(row, x, strides):
    """Where `prepare` wrote of tokens at `x` of a row."""
    return row.to(gl.int64) * strides.row + x[0] * strides.axes[0] + x[1] * strides.axes[1] + x[2]
