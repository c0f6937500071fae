"""dQ, dK and dV for Hopper in one pass: five matrix products per score, where two passes take seven.

A work item is two tiles of 64 keys side by side, one per consumer warpgroup, with the queries that attend to them,
which it walks as `backward.backward_keys` does: scores are transposed, so that P^T and dS^T are register operands of dV
+= P^T dO and dK += dS^T Q. The dS^T of both tiles also go to shared memory. From there comes what these keys give to dQ
= dS K, one step late, when the other's dS^T has long arrived: the two need not go in step, so that one multiplies while
the other is at its exponentials. Where none of a step's queries attend to its own keys, a warpgroup shares zeros.
Accumulators begin with what is subtracted from their products (`prepare` has negated it), which takes no registers and
no instructions later.

A step's products are issued as S, dP, dV, dQ (of the step before), dK: dP runs under the exponentials, dV under dS, and
what leaves by shared memory, dS^T and dQ, is written under dK. The warps of a warpgroup meet twice a step at most.

dQ is added up in a float32 buffer in global memory. A warp has 16 queries of a step, a block. Walks begin at multiples
of a block along each axis, so that blocks are the same for all keys: of each, the buffer holds side by side what a
thread has (see `finish.finish`), so that shared memory and the cache see whole lines.

Shared memory is what bounds it at head dim 128: 64 queries by 64 keys a product read as many bytes as they take cycles
of the tensor cores. Each warpgroup makes half of the columns of an addend there, which the copy engine adds. At head
dim 64 (`narrow`) registers are left: own keys and values are held in them, the warpgroups make whole addends by turns
and add them from registers, and programs take one item after the other, from a counter in memory: the next one's keys
come while the last one's sums leave.

Addends are added in any order: dQ differs by rounding from run to run.
Source: FlashAttention-2 (arXiv 2307.08691, algorithm 2) for the mathematics; the schedule is this project's.
"""

from typing import Any, NamedTuple

from vicinal.backends.hopper.kernels.additional import own_place, own_rows, queries_of, write_sums
from vicinal.backends.hopper.kernels.arguments import block_of, is_narrow, parts_of
from vicinal.backends.hopper.kernels.backward import load_queries
from vicinal.backends.hopper.kernels.chain import await_previous, let_next_start
from vicinal.backends.hopper.kernels.compat import (
    fence_async_shared,
    gl,
    gluon,
    mbarrier,
    reinterpret,
    thread_barrier,
    tma_add,
    tma_store_wait,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from vicinal.backends.hopper.kernels.pieces import (
    accumulator,
    add_product,
    hidden_zero,
    left_operand,
    load_head,
    store_head,
    write_pieces,
    zeros,
)
from vicinal.backends.hopper.kernels.queue import announce, announced, announcement, counted
from vicinal.backends.hopper.kernels.ring import (
    Ring,
    arrive_alone,
    await_ready,
    barriers,
    free_multiplied,
    start_slot,
)
from vicinal.backends.hopper.kernels.softmax import LOG2E, masked
from vicinal.backends.hopper.kernels.steps import (
    MASKED,
    all_kept,
    clean,
    clean_queries,
    entry_at,
    fill_listed,
    listed_of,
    without_masked,
)
from vicinal.backends.hopper.kernels.walk import (
    Share,
    beside,
    beyond_masked,
    box,
    fill,
    first_of,
    head_axes,
    in_order,
    locate,
    on_line,
    ordered,
    query_length,
    row_position,
    whole,
    work_of,
)

EXCHANGED = gl.constexpr(2)  # slots of dS^T
ROWS = gl.constexpr(16)  # queries of a block
narrow = gluon.constexpr_function(is_narrow)
block = gluon.constexpr_function(block_of)
parts = gluon.constexpr_function(parts_of)


class Own(NamedTuple):
    """The keys and values of an item, one tile for each warpgroup, and where their sums leave from."""

    tiles: Any  # keys, values
    sums: Any  # dK of both warpgroups, dV of both
    number: Any  # of the item
    ready: Any  # barrier: they have arrived
    empty: Any  # barrier: both warpgroups have read them


class Exchange(NamedTuple):
    """The dS^T of both warpgroups in shared memory.

    A warpgroup waits for the other's barriers only: where it would wait for what it arrives at itself, Triton would put
    a barrier of all its warps between.
    """

    tiles: Any  # of slot `i`, warpgroup `W`'s is number `2 * i + W`
    ready: Any  # barriers, of each warpgroup: it has written


class Addends(NamedTuple):
    """Where addends of dQ go: lines of 32 float32."""

    ptr: Any
    desc: Any
    blocks: Any  # where they leave from; of slot `i`, warpgroup `W`'s are number `2 * i + W`


@gluon.jit(do_not_specialize=["groups"], do_not_specialize_on_alignment=["scalars", "more"])
def backward(
    q_desc, do_desc,  # over `[batch, X0, X1, X2, columns]`, as are those of keys and values
    lse_desc, delta_desc,  # over `[rows, X0, X1, X2]`
    k_desc, v_desc,
    dk_desc, dv_desc,  # written; with `C.cut` pointers to float32
    addends_ptr, addends_desc,  # added to: both the same memory, `[lines, 32]`, see `finish`
    counter_ptr,  # 0: items that programs have taken, their first ones apart
    table,
    scalars, groups, more,  # `Scalars` with `KeysStrides`; `Groups`; with `C.cut` `More`, else None
    C: gl.constexpr,  # `Constants`
):  # fmt: skip
    """dK and dV of the own tiles of work items, and what they give to dQ."""
    NARROW: gl.constexpr = narrow(C)
    STAGES: gl.constexpr = C.stages
    BM: gl.constexpr = C.tile[0] * C.tile[1] * C.tile[2]
    BN: gl.constexpr = C.step[0] * C.step[1] * C.step[2]
    k_s = gl.allocate_shared_memory(k_desc.dtype, [2] + k_desc.block_shape, k_desc.layout)
    v_s = gl.allocate_shared_memory(v_desc.dtype, [2] + v_desc.block_shape, v_desc.layout)
    q_s = gl.allocate_shared_memory(q_desc.dtype, [STAGES] + q_desc.block_shape, q_desc.layout)
    do_s = gl.allocate_shared_memory(do_desc.dtype, [STAGES] + do_desc.block_shape, do_desc.layout)
    lse_s = gl.allocate_shared_memory(gl.float32, [STAGES] + lse_desc.block_shape, lse_desc.layout)
    delta_s = gl.allocate_shared_memory(gl.float32, [STAGES] + delta_desc.block_shape, delta_desc.layout)
    ds_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BM, BN], k_desc.dtype)
    ds_s = gl.allocate_shared_memory(k_desc.dtype, [2 * EXCHANGED, BM, BN], ds_layout)
    if NARROW:
        sums = gl.allocate_shared_memory(k_desc.dtype, [4] + k_desc.block_shape, k_desc.layout)
        addends = Addends(addends_ptr, addends_desc, None)
    else:
        leaving = gl.allocate_shared_memory(
            gl.float32, [2 * EXCHANGED, 4 * addends_desc.block_shape[0], 32], addends_desc.layout
        )  # fmt: skip
        sums = reinterpret(leaving, [4] + k_desc.block_shape, k_desc.layout, k_desc.dtype)
        addends = Addends(addends_ptr, addends_desc, leaving)
    own = Own((k_s, v_s), sums, announcement(), barriers(1), barriers(1))
    walked = Ring((q_s, do_s, lse_s, delta_s), barriers(STAGES), barriers(STAGES))
    exchange = Exchange(ds_s, (barriers(EXCHANGED), barriers(EXCHANGED)))
    start_slot(own, 0, 2)
    for i in gl.static_range(STAGES):
        start_slot(walked, i, 2)
    for w in gl.static_range(2):
        for i in gl.static_range(EXCHANGED):
            mbarrier.init(exchange.ready[w].index(i), count=1)
    fence_async_shared()
    thread_barrier()  # else Triton puts one before what first meets these barriers, within a loop
    work = work_of(scalars, groups, table, more)
    descs = (q_desc, do_desc, lse_desc, delta_desc)
    gl.warp_specialize([
        (_consumer, (dk_desc, dv_desc, addends, own, walked, exchange, work, C, gl.constexpr(0))),
        (_consumer, (dk_desc, dv_desc, addends, own, walked, exchange, work, C, gl.constexpr(1))),
        (_producer, (descs, k_desc, v_desc, counter_ptr, own, walked, work, C)),
    ], [4, 1], [240, 24])  # fmt: skip


# --- items -------------------------------------------------------------------------------------------------


@gluon.jit
def _producer(descs, k_desc, v_desc, counter_ptr, own, walked, work, C: gl.constexpr):
    number = gl.program_id(0)
    turn = gl.to_tensor(0)
    t = gl.to_tensor(0)
    await_previous(C.chained)
    if narrow(C):
        while number < work.grid.items:
            _announce(own, number, turn)
            t = _load_item(number, descs, k_desc, v_desc, own, walked, work, t, C)
            turn += 1
            number = gl.num_programs(0) + counted(counter_ptr)
        _announce(own, number, turn)  # that there is none left
        mbarrier.arrive(own.ready.index(0), count=1)
    else:
        _load_item(number, descs, k_desc, v_desc, own, walked, work, t, C)
    let_next_start(C.chained)


@gluon.jit
def _load_item(number, descs, k_desc, v_desc, own, walked, work, t, C: gl.constexpr):
    """Load an item's keys and values, and the queries that attend to them from tile `t` on: the number after theirs."""
    item = locate(ordered(number, work.grid, C), work.grid.tiles, work.grid.kv_heads, work.groups, C)
    x = first_of(item.tile, C)
    k_s, v_s = own.tiles
    bar = own.ready.index(0)
    mbarrier.expect(bar, 2 * (k_desc.block_type.nbytes + v_desc.block_type.nbytes))
    for i in gl.static_range(2):
        at = own_place(beside(x, i, C), C)
        load_head(k_desc, item, item.head, work.strides.key, at, bar, k_s, i, C.head_dim, C)
        load_head(v_desc, item, item.head, work.strides.value, at, bar, v_s, i, C.value_dim, C)
    for member in range(work.grid.group):
        head = item.head * work.grid.group + member
        walk = queries_of(item.tile, head_axes(work, head, C), work, C)
        arguments = (descs, walked, work.strides, item, head, item.place * work.grid.heads + head)
        if C.masked:
            t = fill_listed(load_queries, arguments, listed_of(work, item, 0, 0, C), t, C)
        else:
            t = fill(load_queries, arguments, walk, t, C)
    return t


@gluon.jit
def _announce(own, number, turn):
    """Tell consumers the number of the next item, when they have read the keys and values of the one before."""
    mbarrier.wait(own.empty.index(0), (turn & 1) ^ 1)
    announce(own.number, number)


@gluon.jit
def _awaited(own, turn):
    """The number of the next item, when its keys and values have arrived."""
    mbarrier.wait(own.ready.index(0), turn & 1)
    return announced(own.number)


@gluon.jit
def _consumer(dk_desc, dv_desc, addends, own, walked, exchange, work, C: gl.constexpr, W: gl.constexpr):
    t = gl.to_tensor(0)
    if C.masked:
        await_previous(C.chained)
    if narrow(C):
        turn = gl.to_tensor(0)
        number = _awaited(own, turn)
        while number < work.grid.items:
            t = _item(number, t, dk_desc, dv_desc, addends, own, walked, exchange, work, C, W)
            turn += 1
            number = _awaited(own, turn)
    else:
        mbarrier.wait(own.ready.index(0), 0)
        _item(gl.program_id(0), t, dk_desc, dv_desc, addends, own, walked, exchange, work, C, W)
    tma_store_wait(0)


@gluon.jit
def _item(number, t, dk_desc, dv_desc, addends, own, walked, exchange, work, C: gl.constexpr, W: gl.constexpr):
    """dK and dV of an item, whose first tile of queries is `t`: the number after its last one."""
    BM: gl.constexpr = C.tile[0] * C.tile[1] * C.tile[2]
    BN: gl.constexpr = C.step[0] * C.step[1] * C.step[2]
    STEP: gl.constexpr = C.step[C.split]
    dk = zeros(BM, C.head_dim, 1, accumulator(C.head_dim))
    dv = zeros(BM, C.value_dim, 1, accumulator(C.value_dim))
    item = locate(ordered(number, work.grid, C), work.grid.tiles, work.grid.kv_heads, work.groups, C)
    x = beside(first_of(item.tile, C), W, C)
    k_s, v_s = own.tiles
    if C.masked:
        listed = listed_of(work, item, 0, W, C)
        if not all_kept(listed.own):
            clean(k_s, W, listed.own, 1, BM)
            clean(v_s, W, listed.own, 1, BM)
    if narrow(C):
        k = k_s.index(W).reshape([BM, C.head_dim]).load(left_operand(BN))
        v = v_s.index(W).reshape([BM, C.value_dim]).load(left_operand(BN))
        held = (k, v)
    else:
        held = None
    first_row = item.place * work.grid.heads + item.head * work.grid.group
    done = gl.to_tensor(0)  # steps
    before = (first_row, x[0], x[1], x[2])  # where the addend of the step before goes
    for member in range(work.grid.group):
        axes = head_axes(work, item.head * work.grid.group + member, C)
        walk = queries_of(item.tile, axes, work, C)
        rows = own_rows(x, axes, work, gl.SliceLayout(1, accumulator(BN)), C)
        if C.ragged:  # what keys that are not there make of a small log-sum-exp is infinite, and times 0 no number
            rows = beyond_masked(rows, x, axes, C)
        share = whole(walk, C)
        if C.masked:
            rows = without_masked(rows, listed.own, gl.SliceLayout(1, accumulator(BN)))
            share = Share(walk.split[0], walk.split[1], 0, 0, listed.count)
            coming = entry_at(listed, 0)
        if C.cut < 0:
            start, stop, _, _ = box(x[C.split], C.tile[C.split], axes, C.split, C)
        a = walk.outer[0]
        b = walk.inner[0]
        w = share.first
        for step in range(share.count):
            if C.masked:
                a, b, w, info = coming
                coming = entry_at(listed, step + 1)
            else:
                a, b, w, t = on_line((a, b, w), t, (walked,), walk, share, C)
            c = in_order(a, b, w, C)
            await_ready(walked, t, C)
            if C.masked:
                if info >= MASKED:
                    clean_queries(walked, t, 1, 1, C)
            if C.cut >= 0:
                dk, dv = _step(dk, dv, held, own, walked, exchange, addends, t, c, rows, before, done, work, C, W)
            elif (w < stop) & (w + STEP > start):
                dk, dv = _step(dk, dv, held, own, walked, exchange, addends, t, c, rows, before, done, work, C, W)
            else:
                none = gl.zeros([BM, BN], k_s.dtype, layout=accumulator(BN))
                if (done > 0) & _makes(t - 1, C, W):
                    _await_shared(exchange, t - 1, W)
                    dq = warpgroup_mma_wait(0, deps=[_addend(own, exchange, t - 1, C, W)])
                    _share_and_add(none, dq, exchange, addends, t, before, work, C, W)
                else:
                    _share(none, exchange, t, W)
                free_multiplied(walked, t, C)  # unread, but all warps have seen that it was there
            before = (first_row + member, c[0], c[1], c[2])
            done += 1
            t += 1
            w += STEP
    if (done > 0) & _makes(t - 1, C, W):
        _await_shared(exchange, t - 1, W)
        dq = warpgroup_mma_wait(0, deps=[_addend(own, exchange, t - 1, C, W)])
        if narrow(C):
            arrive_alone(own.empty.index(0))
        _leave(addends, dq, t, C, W)
        _add(addends, dq, t, before, work, C, W)
    elif narrow(C):
        thread_barrier()
        arrive_alone(own.empty.index(0))
    if C.cut >= 0:
        write_sums(dk_desc, dk, work.scale, item, x, work, 1, C)
        write_sums(dv_desc, dv, 1.0, item, x, work, 1, C)
    else:
        tma_store_wait(0)  # the last item's, or addends, have left
        thread_barrier()
        write_pieces(dk, work.scale, own.sums, W, dk_desc.dtype, 1)
        write_pieces(dv, 1.0, own.sums, 2 + W, dv_desc.dtype, 1)
        fence_async_shared()
        store_head(dk_desc, item, item.head, work.strides.grad_key, x, own.sums, W, C.head_dim, C)
        store_head(dv_desc, item, item.head, work.strides.grad_value, x, own.sums, 2 + W, C.value_dim, C)
    return t


# --- steps -------------------------------------------------------------------------------------------------


@gluon.jit
def _step(
    dk, dv, held, own, walked, exchange, addends, t, c, rows, before, done, work, C: gl.constexpr, W: gl.constexpr
):  # fmt: skip
    """dK and dV plus what the queries of tile `t`, at `c`, give; its dS^T is shared, and the addend before is added.

    What is shared and what is added are written while the last product, of dK, goes on.
    """
    q_s, do_s, _, _ = walked.tiles
    slot = t % C.stages
    p, rising = _exponentials(held, own, walked, slot, c, rows, work.scale, C, W)
    pb = gl.convert_layout(p.to(do_s.dtype), left_operand(C.value_dim))
    more_dv = add_product(pb, do_s, slot, dv, 1)
    dp = warpgroup_mma_wait(1, deps=[rising])
    ds = (p * dp).to(q_s.dtype)
    dsb = gl.convert_layout(ds, left_operand(C.head_dim))
    if (done > 0) & _makes(t - 1, C, W):
        _await_shared(exchange, t - 1, W)
        dq = _addend(own, exchange, t - 1, C, W)
        issued = (add_product(dsb, q_s, slot, dk, 1), more_dv, pb, dsb)
        dq = warpgroup_mma_wait(1, deps=[dq])
        _share_and_add(ds, dq, exchange, addends, t, before, work, C, W)
        dk, dv = _settled(issued)
    else:
        issued = (add_product(dsb, q_s, slot, dk, 1), more_dv, pb, dsb)
        _share(ds, exchange, t, W)
        dk, dv = _settled(issued)
    free_multiplied(walked, t, C)
    return dk, dv


@gluon.jit
def _settled(issued):
    """Wait for dK and dV, with what fed them."""
    dk, dv, pb, dsb = issued
    dk, dv, pb, dsb = warpgroup_mma_wait(0, deps=[dk[0], dv[0], pb, dsb])
    return (dk,), (dv,)


@gluon.jit
def _exponentials(held, own, walked, slot, c, rows, scale, C: gl.constexpr, W: gl.constexpr):
    """P^T of the queries at `c`; dP^T less delta, still to come."""
    k_s, v_s = own.tiles
    q_s, do_s, lse_s, delta_s = walked.tiles
    BM: gl.constexpr = C.tile[0] * C.tile[1] * C.tile[2]
    BN: gl.constexpr = C.step[0] * C.step[1] * C.step[2]
    s_layout: gl.constexpr = accumulator(BN)
    lse = _row(lse_s, slot, BM, BN, s_layout)
    delta = _row(delta_s, slot, BM, BN, s_layout)
    if narrow(C):
        k, v = held
    else:
        side = W + hidden_zero()
        k = k_s.index(side).reshape([BM, C.head_dim])
        v = v_s.index(side).reshape([BM, C.value_dim])
    scoring = _product(lse, k, q_s, slot)
    rising = _product(delta, v, do_s, slot)
    s = warpgroup_mma_wait(1, deps=[scoring])
    return gl.exp2(masked(s, c, rows, -1, s_layout, C) * (scale * LOG2E)), rising


@gluon.jit
def _share(ds, exchange, t, W: gl.constexpr):
    """Share the dS^T of step `t`.

    Its slot is free: `_await_shared` of the step before has seen what the other warpgroup shared after it had read this
    slot. (Who does not make that step's addend is the one who has read this slot.) So nobody may share a step, be it
    zeros, before its addend of the step before has been made.
    """
    i = t % EXCHANGED
    exchange.tiles.index(2 * i + W).store(ds)
    fence_async_shared()  # also before copies overwrite what ordinary loads have read
    thread_barrier()
    arrive_alone(exchange.ready[W].index(i))


@gluon.jit
def _await_shared(exchange, t, W: gl.constexpr):
    """Wait for what the warpgroup other than `W` shares of step `t`."""
    mbarrier.wait(exchange.ready[1 - W].index(t % EXCHANGED), (t // EXCHANGED) & 1)


@gluon.jit
def _row(rows_s, slot, BM: gl.constexpr, BN: gl.constexpr, layout: gl.constexpr):
    """A slot's numbers, one per query, the same for every key: what accumulators begin with.

    Each in a register of its own: were they copied where a product is issued, ptxas would wait for the one before.
    """
    row = rows_s.index(slot).reshape([BN]).load(gl.SliceLayout(0, layout))
    _, wide = gl.broadcast(gl.zeros([BM, BN], gl.float32, layout=layout), row[None, :])
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=f,f", [wide], dtype=gl.float32, is_pure=False, pack=1)


@gluon.jit
def _product(start, a, walked_s, slot):
    """Issue `start + a @ B^T`; the caller waits."""
    b = walked_s.index(slot).reshape([start.shape[1], walked_s.shape[5]]).permute((1, 0))
    return warpgroup_mma(a, b, start, is_async=True)


# --- dQ ----------------------------------------------------------------------------------------------------


@gluon.jit
def _makes(t, C: gl.constexpr, W: gl.constexpr):
    """Whether warpgroup `W` has a part in the addend of step `t`."""
    if narrow(C):
        return t % 2 == W
    else:
        return t >= 0


@gluon.jit
def _addend(own, exchange, t, C: gl.constexpr, W: gl.constexpr):
    """Issue warpgroup `W`'s part of the columns of `dS K` of step `t`, of both tiles of keys; the caller waits.

    Both are there: see `_await_shared`.
    """
    k_s, _ = own.tiles
    BM: gl.constexpr = C.tile[0] * C.tile[1] * C.tile[2]
    BN: gl.constexpr = C.step[0] * C.step[1] * C.step[2]
    PARTS: gl.constexpr = parts(C.head_dim)
    WIDE: gl.constexpr = C.head_dim // PARTS
    FIRST: gl.constexpr = W % PARTS * WIDE
    i = t % EXCHANGED
    side = hidden_zero()
    zero = gl.zeros([BN, WIDE], gl.float32, layout=accumulator(WIDE))
    ds = exchange.tiles.index(2 * i).permute((1, 0))
    k = k_s.index(side).reshape([BM, C.head_dim]).slice(FIRST, WIDE, dim=1)
    dq = warpgroup_mma(ds, k, zero, use_acc=False, is_async=True)
    ds = exchange.tiles.index(2 * i + 1).permute((1, 0))
    k = k_s.index(side + 1).reshape([BM, C.head_dim]).slice(FIRST, WIDE, dim=1)
    return warpgroup_mma(ds, k, dq, is_async=True)


@gluon.jit
def _share_and_add(ds, dq, exchange, addends, t, at, work, C: gl.constexpr, W: gl.constexpr):
    """`_share`, and add the addend of the step before, at `at`: one barrier of all warps is behind what both write."""
    _leave(addends, dq, t, C, W)
    _share(ds, exchange, t, W)
    _add(addends, dq, t, at, work, C, W)


@gluon.jit
def _leave(addends, dq, t, C: gl.constexpr, W: gl.constexpr):
    """Write warpgroup `W`'s part of an addend to where the copy engine takes it from; a barrier must follow."""
    if not narrow(C):
        PARTS: gl.constexpr = parts(C.head_dim)
        WIDE: gl.constexpr = C.head_dim // PARTS
        tma_store_wait(4 * (EXCHANGED - 1))  # those of the slot have left
        thread_barrier()
        each = dq.reshape([4, 2, 8, WIDE // 8, 4, 2]).permute((0, 3, 2, 4, 1, 5)).reshape([ROWS * WIDE // 8, 32])
        addends.blocks.index(t % EXCHANGED * 2 + W).store(each)
        fence_async_shared()


@gluon.jit
def _add(addends, dq, t, at, work, C: gl.constexpr, W: gl.constexpr):
    """Add warpgroup `W`'s part of an addend of dQ to what there is of the tile of queries at `at`: a block a warp."""
    BN: gl.constexpr = C.step[0] * C.step[1] * C.step[2]
    PARTS: gl.constexpr = parts(C.head_dim)
    WIDE: gl.constexpr = C.head_dim // PARTS
    LINES: gl.constexpr = ROWS * WIDE // 32  # of a block
    if narrow(C):
        row = gl.arange(0, BN, layout=gl.SliceLayout(1, dq.type.layout))
        column = gl.arange(0, WIDE, layout=gl.SliceLayout(0, dq.type.layout))
        number = _block_number(at, row // ROWS * ROWS, work.axes, C)
        lane = (row % 8 * 4)[:, None] + (column // 2 % 4)[None, :]
        to = addends.ptr + (number.to(gl.int64) * (ROWS * C.head_dim))[:, None] + lane * 4
        COUNT: gl.constexpr = BN * WIDE // 128  # elements of a thread
        gl.inline_asm_elementwise(
            _adds(COUNT), _operands(COUNT), [dq, to.to(gl.int64)], dtype=gl.int32, is_pure=False, pack=COUNT
        )  # fmt: skip
    else:
        leaving = addends.blocks.index(t % EXCHANGED * 2 + W)
        for i in gl.static_range(4):
            line = _block_number(at, i * ROWS, work.axes, C) * (LINES * PARTS) + W % PARTS * LINES
            tma_add(addends.desc, [line, 0], leaving.slice(i * LINES, LINES, dim=0))


@gluon.jit
def _block_number(at, first, axes, C: gl.constexpr):
    """The number of the block of 16 queries whose first is row `first` of the tile at `at = (row, x0, x1, x2)`.

    Of one that is beyond an axis' end, of another: its addends are 0.
    """
    STEP: gl.constexpr = C.step
    BLOCK: gl.constexpr = block(STEP)
    n0 = gl.cdiv(query_length(axes, 0, C), BLOCK[0])
    n1 = gl.cdiv(query_length(axes, 1, C), BLOCK[1])
    n2 = gl.cdiv(query_length(axes, 2, C), BLOCK[2])
    b0 = gl.minimum((at[1] + row_position(first, 0, STEP)) // BLOCK[0], n0 - 1)
    b1 = gl.minimum((at[2] + row_position(first, 1, STEP)) // BLOCK[1], n1 - 1)
    b2 = gl.minimum((at[3] + row_position(first, 2, STEP)) // BLOCK[2], n2 - 1)
    return ((at[0] * n0 + b0) * n1 + b1) * n2 + b2


@gluon.constexpr_function
def _adds(count):
    """PTX: adds a thread's elements in fours, a warp's side by side; of results (unused), elements, addresses."""
    lines = []
    for i in range(0, count, 4):
        four = ", ".join(f"${count + i + j}" for j in range(4))
        lines.append(f"red.relaxed.gpu.global.add.v4.f32 [${2 * count} + {32 * 4 * i}], {{{four}}}; ")
    return "".join(lines)


@gluon.constexpr_function
def _operands(count):
    """LLVM's constraints for `_adds`."""
    return ",".join(["=r"] * count + ["f"] * count + ["l"] * count)
