"""dQ, dK and dV for Hopper in one pass: five matrix products per score, where two passes take seven.

A program owns two tiles of 64 keys side by side, one per consumer warpgroup, and walks the queries that attend to them,
as `backward.backward_keys` does: scores are transposed, so that P^T and dS^T are register operands of dV += P^T dO and
dK += dS^T Q. The dS^T of both tiles also go to shared memory. From there each warpgroup takes both, for half of the
columns of what these keys give to dQ = dS K; the copy engine adds it to a float32 buffer in global memory, laid out
`[rows, X0, X1, X2, columns]` as `prepare` lays out its results. `finish` scales and converts that buffer.

A warpgroup makes its half of an addend one step late, when the other's dS^T has long arrived: the two need not go in
step, so that one multiplies while the other is at its exponentials. Accumulators begin with what is subtracted from
their products (`prepare` has negated it), which takes no registers and no instructions later.

Addends are added in any order: dQ differs by rounding from run to run.
Source: FlashAttention-2 (arXiv 2307.08691, algorithm 2) for the mathematics; the schedule is this project's.
"""

# ruff: noqa: B007 (Gluon compiles this: it takes no starred lists)

from typing import Any, NamedTuple

from vicinal.backends.hopper.kernels.additional import own_rows, queries_of, write_sums
from vicinal.backends.hopper.kernels.backward import KeysRings, keys_producer, tokens_at
from vicinal.backends.hopper.kernels.chain import await_previous, let_next_start
from vicinal.backends.hopper.kernels.compat import (
    fence_async_shared,
    gl,
    gluon,
    mbarrier,
    thread_barrier,
    tma_add,
    tma_store_wait,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from vicinal.backends.hopper.kernels.pieces import (
    accumulator,
    add_product,
    left_operand,
    store_head,
    write_pieces,
    zeros,
)
from vicinal.backends.hopper.kernels.ring import Ring, await_ready, barriers, free, start_slot
from vicinal.backends.hopper.kernels.softmax import LOG2E, masked
from vicinal.backends.hopper.kernels.walk import (
    beside,
    beyond_masked,
    first_of,
    head_axes,
    in_order,
    locate,
    on_line,
    whole,
    work_of,
)

EXCHANGED = gl.constexpr(2)  # slots of dS^T, and of addends of dQ


class Exchange(NamedTuple):
    """The dS^T of both warpgroups in shared memory, and where addends of dQ leave from."""

    tiles: Any  # of slot `i`, warpgroup `W`'s is number `2 * i + W`
    ready: Any  # barriers: both have written
    empty: Any  # both have read
    addends: Any  # of dQ, float32, on their way to global memory; numbered as `tiles`


@gluon.jit(do_not_specialize=["groups"], do_not_specialize_on_alignment=["scalars", "more"])
def backward(
    q_desc, do_desc,  # over `[batch, X0, X1, X2, columns]`, as are those of keys and values
    lse_desc, delta_desc,  # over `[rows, X0, X1, X2]`
    k_desc, v_desc,
    dk_desc, dv_desc,  # written; with `C.cut` pointers to float32
    dq_desc,  # over `[rows, X0, X1, X2, columns]`, added to
    table,
    scalars, groups, more,  # `Scalars` with `KeysStrides`; `Groups`; with `C.cut` `More`, else None
    C: gl.constexpr,  # `Constants`
):  # fmt: skip
    """dK and dV of the own tiles of one work item, and what they give to dQ."""
    STAGES: gl.constexpr = C.stages
    k_s = gl.allocate_shared_memory(k_desc.dtype, [2] + k_desc.block_shape, k_desc.layout)
    v_s = gl.allocate_shared_memory(v_desc.dtype, [2] + v_desc.block_shape, v_desc.layout)
    q_s = gl.allocate_shared_memory(q_desc.dtype, [STAGES] + q_desc.block_shape, q_desc.layout)
    do_s = gl.allocate_shared_memory(do_desc.dtype, [STAGES] + do_desc.block_shape, do_desc.layout)
    lse_s = gl.allocate_shared_memory(gl.float32, [STAGES] + lse_desc.block_shape, lse_desc.layout)
    delta_s = gl.allocate_shared_memory(gl.float32, [STAGES] + delta_desc.block_shape, delta_desc.layout)
    dq_s = gl.allocate_shared_memory(gl.float32, [2 * EXCHANGED] + dq_desc.block_shape, dq_desc.layout)
    BM: gl.constexpr = C.tile[0] * C.tile[1] * C.tile[2]
    BN: gl.constexpr = C.step[0] * C.step[1] * C.step[2]
    ds_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BM, BN], k_desc.dtype)
    ds_s = gl.allocate_shared_memory(k_desc.dtype, [2 * EXCHANGED, BM, BN], ds_layout)
    own_ready = barriers(2)
    walked = Ring((q_s, do_s, lse_s, delta_s), barriers(STAGES), barriers(STAGES))
    exchange = Exchange(ds_s, barriers(EXCHANGED), barriers(EXCHANGED), dq_s)
    for i in gl.static_range(2):
        mbarrier.init(own_ready.index(i), count=1)
    for i in gl.static_range(STAGES):
        start_slot(walked, i, 2)
    for i in gl.static_range(EXCHANGED):
        mbarrier.init(exchange.ready.index(i), count=2)
        mbarrier.init(exchange.empty.index(i), count=2)
    fence_async_shared()
    rings = KeysRings((k_s, v_s), own_ready, own_ready, walked)
    work = work_of(scalars, groups, table, more)
    gl.warp_specialize([
        (_consumer, (dk_desc, dv_desc, dq_desc, rings, exchange, work, C, gl.constexpr(0))),
        (_consumer, (dk_desc, dv_desc, dq_desc, rings, exchange, work, C, gl.constexpr(1))),
        (keys_producer, (q_desc, do_desc, lse_desc, delta_desc, k_desc, v_desc, rings, work, C)),
    ], [4, 1], [240, 24])  # fmt: skip


@gluon.jit
def _consumer(dk_desc, dv_desc, dq_desc, rings, exchange, work, C: gl.constexpr, W: gl.constexpr):
    own, own_ready, _, walked = rings
    BM: gl.constexpr = C.tile[0] * C.tile[1] * C.tile[2]
    BN: gl.constexpr = C.step[0] * C.step[1] * C.step[2]
    dk = zeros(BM, C.head_dim, 1, accumulator(C.head_dim))
    dv = zeros(BM, C.value_dim, 1, accumulator(C.value_dim))
    item = locate(gl.program_id(0), work.grid.tiles, work.grid.kv_heads, work.groups, C)
    x = beside(first_of(item.tile, C), W, C)
    first_row = item.place * work.grid.heads + item.head * work.grid.group
    mbarrier.wait(own_ready.index(W), 0)
    t = 0
    before = (first_row, x[0], x[1], x[2])  # where the addend of the step before goes
    for member in range(work.grid.group):
        axes = head_axes(work, item.head * work.grid.group + member, C)
        walk = queries_of(item.tile, axes, work, C)
        rows = own_rows(x, axes, work, gl.SliceLayout(1, accumulator(BN)), C)
        if C.ragged:  # what keys that are not there make of a small log-sum-exp is infinite, and times 0 no number
            rows = beyond_masked(rows, x, axes, C)
        share = whole(walk, C)
        a = walk.outer[0]
        b = walk.inner[0]
        w = share.first
        for step in range(share.count):
            a, b, w, t = on_line((a, b, w), t, (walked,), walk, share, C)
            c = in_order(a, b, w, C)
            await_ready(walked, t, C)
            issued = _issue(dk, dv, own, walked, exchange, t, c, rows, work.scale, C, W)
            if t > 0:
                dq = _addend(own[0], exchange, t - 1, C, W)
                dk, dv = _settled(issued, 2)
                free(walked, t, C)
                dq = warpgroup_mma_wait(0, deps=[dq])
                mbarrier.arrive(exchange.empty.index((t - 1) % EXCHANGED), count=1)
                _add(dq_desc, exchange.addends, dq, before, t, C, W)
            else:
                dk, dv = _settled(issued, 0)
                free(walked, t, C)
            before = (first_row + member, c[0], c[1], c[2])
            t += 1
            w += walk_step(C)
    if t > 0:
        dq = warpgroup_mma_wait(0, deps=[_addend(own[0], exchange, t - 1, C, W)])
        _add(dq_desc, exchange.addends, dq, before, t, C, W)
        # The sums go where keys and values are: not before both warpgroups have read the keys.
        last = exchange.empty.index((t - 1) % EXCHANGED)
        mbarrier.arrive(last, count=1)
        mbarrier.wait(last, ((t - 1) // EXCHANGED) & 1)
    if C.cut >= 0:
        write_sums(dk_desc, dk, work.scale, item, x, work, 1, C)
        write_sums(dv_desc, dv, 1.0, item, x, work, 1, C)
    else:
        k_s, v_s = own
        write_pieces(dk, work.scale, k_s, W, dk_desc.dtype, 1)
        write_pieces(dv, 1.0, v_s, W, dv_desc.dtype, 1)
        fence_async_shared()
        store_head(dk_desc, item, item.head, work.strides.grad_key, x, k_s, W, C.head_dim, C)
        store_head(dv_desc, item, item.head, work.strides.grad_value, x, v_s, W, C.value_dim, C)
    tma_store_wait(0)


@gluon.constexpr_function
def walk_step(C):
    """Tokens of a step along the axis that is split."""
    return C.step[C.split]


@gluon.jit
def _issue(dk, dv, own, walked, exchange, t, c, rows, scale, C: gl.constexpr, W: gl.constexpr):
    """Step `t`, at `c`, but for its addend of dQ: dS^T is shared; dK and dV, and what feeds them, are still to come."""
    k_s, v_s = own
    q_s, do_s, lse_s, delta_s = walked.tiles
    BM: gl.constexpr = C.tile[0] * C.tile[1] * C.tile[2]
    BN: gl.constexpr = C.step[0] * C.step[1] * C.step[2]
    s_layout: gl.constexpr = accumulator(BN)
    slot = t % C.stages
    lse = _row(lse_s, slot, BM, BN, s_layout)
    delta = _row(delta_s, slot, BM, BN, s_layout)
    scoring = _product(lse, k_s, W, q_s, slot)
    rising = _product(delta, v_s, W, do_s, slot)
    s = warpgroup_mma_wait(1, deps=[scoring])
    p = gl.exp2(masked(s, c, rows, -1, s_layout, C) * (scale * LOG2E))
    pb = gl.convert_layout(p.to(v_s.dtype), left_operand(C.value_dim))
    dv = add_product(pb, do_s, slot, dv, 1)
    dp = warpgroup_mma_wait(1, deps=[rising])
    ds = (p * dp).to(k_s.dtype)
    i = t % EXCHANGED
    mbarrier.wait(exchange.empty.index(i), ((t // EXCHANGED) & 1) ^ 1)
    exchange.tiles.index(2 * i + W).store(ds)
    fence_async_shared()  # also before copies overwrite what ordinary loads have read
    mbarrier.arrive(exchange.ready.index(i), count=1)
    dsb = gl.convert_layout(ds, left_operand(C.head_dim))
    dk = add_product(dsb, q_s, slot, dk, 1)
    return dk, dv, pb, dsb


@gluon.jit
def _row(rows_s, slot, BM: gl.constexpr, BN: gl.constexpr, layout: gl.constexpr):
    """A slot's numbers, one per query, the same for every key: what accumulators begin with.

    Each in a register of its own: were they copied where a product is issued, ptxas would wait for the one before.
    """
    row = rows_s.index(slot).reshape([BN]).load(gl.SliceLayout(0, layout))
    _, wide = gl.broadcast(gl.zeros([BM, BN], gl.float32, layout=layout), row[None, :])
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=f,f", [wide], dtype=gl.float32, is_pure=False, pack=1)


@gluon.jit
def _product(start, own_s, W: gl.constexpr, walked_s, slot):
    """Issue `start + A @ B^T`; the caller waits."""
    WIDE: gl.constexpr = own_s.shape[5]
    a = own_s.index(W).reshape([start.shape[0], WIDE])
    b = walked_s.index(slot).reshape([start.shape[1], WIDE]).permute((1, 0))
    return warpgroup_mma(a, b, start, is_async=True)


@gluon.jit
def _settled(issued, LATER: gl.constexpr):
    """Wait for dK and dV, with what fed them, while `LATER` products go on."""
    dk, dv, pb, dsb = issued
    dk, dv, pb, dsb = warpgroup_mma_wait(LATER, deps=[dk[0], dv[0], pb, dsb])
    return (dk,), (dv,)


@gluon.jit
def _addend(k_s, exchange, t, C: gl.constexpr, W: gl.constexpr):
    """Issue half `W` of the columns of `dS K` of step `t`, summed over both tiles of keys; the caller waits."""
    BM: gl.constexpr = C.tile[0] * C.tile[1] * C.tile[2]
    BN: gl.constexpr = C.step[0] * C.step[1] * C.step[2]
    HALF: gl.constexpr = C.head_dim // 2
    i = t % EXCHANGED
    mbarrier.wait(exchange.ready.index(i), (t // EXCHANGED) & 1)
    zero = gl.zeros([BN, HALF], gl.float32, layout=accumulator(HALF))
    ds = exchange.tiles.index(2 * i).permute((1, 0))
    k = k_s.index(0).reshape([BM, C.head_dim]).slice(W * HALF, HALF, dim=1)
    dq = warpgroup_mma(ds, k, zero, use_acc=False, is_async=True)
    ds = exchange.tiles.index(2 * i + 1).permute((1, 0))
    k = k_s.index(1).reshape([BM, C.head_dim]).slice(W * HALF, HALF, dim=1)
    return warpgroup_mma(ds, k, dq, is_async=True)


@gluon.jit
def _add(dq_desc, addends, dq, at, t, C: gl.constexpr, W: gl.constexpr):
    """Add half `W` of the columns of an addend of dQ to the row and place `at`."""
    tma_store_wait(EXCHANGED - 1)  # the slot's last addend has left
    thread_barrier()
    i = (t % EXCHANGED) * 2 + W
    addends.index(i).reshape(dq.shape).store(dq)
    fence_async_shared()
    tma_add(dq_desc, [at[0], at[1], at[2], at[3], W * (C.head_dim // 2)], addends.index(i))


@gluon.jit(do_not_specialize=["groups"])
def finish(
    addends_ptr,
    dq_ptr,  # written
    lengths, tokens,  # along each axis, and in all, of a dilation group
    heads, groups, strides,  # `Groups`, `TokenStrides` of dQ, whose heads are adjacent
    scale,
    C: gl.constexpr,  # `RowConstants`
):  # fmt: skip
    """dQ from the sum of its addends: one program per `C.tokens` tokens of a row."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32 // (C.width // 8), C.width // 8], [4, 1], [1, 0])
    blocks = gl.cdiv(tokens, C.tokens)
    row = gl.program_id(0) // blocks
    item = locate(row, (1, 1, 1), heads, groups, C)
    t = gl.program_id(0) % blocks * C.tokens + gl.arange(0, C.tokens, layout=gl.SliceLayout(1, layout))
    column = gl.arange(0, C.width, layout=gl.SliceLayout(0, layout))
    mask = (t < tokens)[:, None] & (column < C.columns)[None, :]
    x = (t // lengths[2] // lengths[1], t // lengths[2] % lengths[1], t % lengths[2])
    at = tokens_at(item, C.columns, x, strides)
    sums = (row.to(gl.int64) * tokens + t) * C.columns
    await_previous(C.chained)
    dq = gl.load(addends_ptr + sums[:, None] + column[None, :], mask=mask, other=0.0)
    let_next_start(C.chained)
    gl.store(dq_ptr + at[:, None] + column[None, :], (dq * scale).to(dq_ptr.dtype.element_ty), mask=mask)
