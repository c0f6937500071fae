"""Fused neighborhood attention, backward: two kernels, or one, no atomics, the same bits every run.

`query_gradient_kernel`: one program per tile of queries, walking the box of keys, as forward does. It also computes
delta (the row sums of output times its gradient) for the kernels that follow.
`key_value_gradient_kernel`: one program per tile of keys, walking the box of queries that reach it, and the heads of
its group in order. A key's queries along an axis are an interval too, so its mask costs what the forward's does.
`gradients_kernel`: both at once, for problems that do not fill the GPU; delta is computed by whoever needs it.
`delta_kernel`: delta alone, where nobody needs the query's gradient.

Source: FlashAttention-2 (arXiv 2307.08691, algorithm 2), its one loop with atomic sums of dQ split in two.
"""

import triton
import triton.language as tl

from vicinal.backends.gpu.kernels.boxes import (
    box_of,
    coverage,
    load_axes,
    map_of,
    program_of,
    rows_of,
    rules_of_head,
    sized_box,
    sized_intervals,
    step_of_keys,
    steps_of,
    strides_of_map,
    with_inside,
    with_intervals,
    within,
    within_sized,
)
from vicinal.backends.gpu.kernels.memory import (
    Step,
    all_of,
    any_of,
    around,
    await_previous,
    keys_there,
    let_next_start,
    load_rows,
    load_step,
    load_tile,
    mask_rows,
    own_rows,
    padded,
    rows_around,
    rows_at,
    rows_within,
    store_rows,
    token_strides,
    tokens_of,
)
from vicinal.backends.gpu.kernels.window import (
    Axes,
    bias_strides,
    chosen,
    lengths_of,
    linear,
    next_tile,
    positions_in,
    shifted,
    size_of,
    tile_of,
    tokens_at,
)
from vicinal.backends.triton.kernels.additional import add_from_additional
from vicinal.backends.triton.kernels.bias import biased
from vicinal.backends.triton.kernels.forward import RUN_TIME
from vicinal.backends.triton.kernels.softmax import LN2, in_base_2


@triton.jit(do_not_specialize=RUN_TIME)
def query_gradient_kernel(
    query, key, value, extra_keys, extra_values, rpb, key_mask, window_sizes, table, steps,
    output, lse, grad_output,
    grad_lse,  # None for zeros
    delta, grad_query,  # written
    scale, heads, group_size, additional, programs, room,
    axes, strides,
    D: tl.constexpr, DV: tl.constexpr,
    TILE: tl.constexpr, KEY_TILE: tl.constexpr,
    VECTOR: tl.constexpr, FLAGS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    _query_gradient(
        tl.program_id(0), query, key, value, extra_keys, extra_values, rpb, key_mask, window_sizes, table, steps,
        output, lse, grad_output, grad_lse, delta, grad_query,
        scale, heads, group_size, additional, programs, room, axes, strides,
        D, DV, TILE, KEY_TILE, VECTOR, FLAGS, PRECISION,
    )  # fmt: skip


@triton.jit(do_not_specialize=("scale", "heads", "group_size", "programs", "room"))
def key_value_gradient_kernel(
    query, key, value, rpb, key_mask, window_sizes, table,
    steps,  # with a mask: of queries, those that are whole being answered all
    lse, grad_output,
    delta,  # None where no gradient of keys is wanted
    grad_key, grad_value,  # written; None where nobody needs it
    scale, heads, group_size, programs, room,
    axes, strides,
    D: tl.constexpr, DV: tl.constexpr,
    TILE: tl.constexpr, QUERY_TILE: tl.constexpr,
    VECTOR: tl.constexpr, FLAGS: tl.constexpr,
    GROUPED: tl.constexpr,  # a program sums over the query heads of its key head
    PER_QUERY_HEAD: tl.constexpr,  # gradients have one entry per query head, to be summed over each group later
    PRECISION: tl.constexpr,
):  # fmt: skip
    _key_value_gradient(
        tl.program_id(0), query, key, value, rpb, key_mask, window_sizes, table, steps,
        None, lse, grad_output, None, delta, grad_key, grad_value,
        scale, heads, group_size, programs, room, axes, strides,
        D, DV, TILE, QUERY_TILE, VECTOR, FLAGS, GROUPED, PER_QUERY_HEAD, PRECISION,
    )  # fmt: skip


@triton.jit(do_not_specialize=(*RUN_TIME, "key_programs", "key_room", "key_total"))
def gradients_kernel(
    query, key, value, extra_keys, extra_values, rpb, key_mask, window_sizes, table, steps,
    key_steps,  # of the key and value gradients
    output, lse, grad_output,
    grad_lse,  # None for zeros
    delta, grad_query,  # written
    grad_key, grad_value,  # written; one of them is None where nobody needs it
    scale, heads, group_size, additional, programs, room,
    key_programs,  # tiles of keys of one head
    key_room,
    key_total,  # programs with keys, which come first: they take longer
    axes, strides,
    D: tl.constexpr, DV: tl.constexpr,
    TILE: tl.constexpr, KEY_TILE: tl.constexpr,  # of the query gradient
    OWN_KEYS: tl.constexpr, QUERY_TILE: tl.constexpr,  # of the key and value gradients
    VECTOR: tl.constexpr, FLAGS: tl.constexpr, INVERSE_FLAGS: tl.constexpr,
    GROUPED: tl.constexpr, PER_QUERY_HEAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    if pid < key_total:
        _key_value_gradient(
            pid, query, key, value, rpb, key_mask, window_sizes, table, key_steps,
            output, lse, grad_output, grad_lse, None, grad_key, grad_value,
            scale, heads, group_size, key_programs, key_room, axes, strides,
            D, DV, OWN_KEYS, QUERY_TILE, VECTOR, INVERSE_FLAGS, GROUPED, PER_QUERY_HEAD, PRECISION,
        )  # fmt: skip
    else:
        _query_gradient(
            pid - key_total, query, key, value, extra_keys, extra_values, rpb, key_mask, window_sizes, table, steps,
            output, lse, grad_output, grad_lse, delta, grad_query,
            scale, heads, group_size, additional, programs, room, axes, strides,
            D, DV, TILE, KEY_TILE, VECTOR, FLAGS, PRECISION,
        )  # fmt: skip


@triton.jit(do_not_specialize=("rows",))
def delta_kernel(
    output, grad_output,
    grad_lse,  # None for zeros
    delta,  # written
    rows,
    DV: tl.constexpr, BLOCK: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    await_previous(CHAINED)
    o = load_rows(output, row * DV, inside, DV, True)
    do = load_rows(grad_output, row * DV, inside, DV, True)
    difference = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    if grad_lse is not None:
        difference -= tl.load(grad_lse + row, mask=inside, other=0.0)
    let_next_start(CHAINED)
    tl.store(delta + row, difference, mask=inside)


@triton.jit
def _query_gradient(
    pid, query, key, value, extra_keys, extra_values, rpb, key_mask, window_sizes, table, steps,
    output, lse, grad_output, grad_lse, delta, grad_query,
    scale, heads, group_size, additional, programs, room, axes, strides,
    D: tl.constexpr, DV: tl.constexpr, TILE: tl.constexpr, KEY_TILE: tl.constexpr,
    VECTOR: tl.constexpr, FLAGS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    BN: tl.constexpr = size_of(KEY_TILE)
    MASKED: tl.constexpr = key_mask is not None
    RANK: tl.constexpr = len(TILE)
    index, h, b = program_of(pid, programs, heads)
    kv_head = h // group_size
    if table is not None:
        await_previous(FLAGS.chained)
        if FLAGS.packed:
            b, index, rules = map_of(table, index, len(TILE))
            axes = Axes(*rules, axes.parts)
            strides = strides_of_map(strides, axes.lengths)
            row_heads = b * heads
            output += row_heads * DV
            grad_output += row_heads * DV
            grad_query += row_heads * D
            lse += row_heads
            delta += row_heads
            if grad_lse is not None:
                grad_lse += row_heads
        else:
            axes = Axes(axes.lengths, *rules_of_head(table, h, len(TILE)), axes.parts)
    tile = tile_of(index, axes, TILE, FLAGS)
    if tile.beyond:
        return

    rows = rows_of(tile, axes, TILE, FLAGS, False)
    written = own_rows(0 * b if FLAGS.packed else b, tile, rows, axes, heads, h)
    if window_sizes is not None:
        await_previous(FLAGS.chained)
        own_sizes = tl.load(window_sizes + written, mask=rows.inside, other=1)
        box = sized_box(tile, axes, own_sizes, rows, TILE, KEY_TILE, FLAGS)
        starts, sizes = sized_intervals(rows.positions, tile.lengths, axes, own_sizes, FLAGS)
        rows = with_intervals(rows, starts, sizes)
    else:
        box = box_of(tile, axes, TILE, KEY_TILE, FLAGS, False)
    query = tokens_of(query, b, h, axes, strides.query, False, VECTOR)
    await_previous(FLAGS.chained)
    own_lse = tl.load(lse + written, mask=rows.inside, other=0.0)
    log2_total = in_base_2(own_lse, MASKED)
    read = rows
    if MASKED:
        read = with_inside(rows, rows.inside & (own_lse != float("-inf")))
    do = load_rows(grad_output, written * DV, read.inside, DV, True)
    o = load_rows(output, written * DV, read.inside, DV, True)
    q = load_tile(query, tile, read, axes.dilations, strides.query.tokens, D, VECTOR, FLAGS.wide)
    # All that is read once is on its way before the first sum, and its barrier, waits for some of it.
    difference = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    if grad_lse is not None:
        difference -= tl.load(grad_lse + written, mask=read.inside, other=0.0)
    tl.store(delta + written, difference, mask=rows.inside)

    columns = positions_in(KEY_TILE)
    k_rows = rows_within(columns, axes.dilations, strides.key.tokens, VECTOR, FLAGS.wide)
    v_rows = rows_within(columns, axes.dilations, strides.value.tokens, VECTOR, FLAGS.wide)
    key = tokens_of(key, b, kv_head, axes, strides.key, True, VECTOR)
    value = tokens_of(value, b, kv_head, axes, strides.value, True, VECTOR)
    if rpb is not None:
        bias_steps, middle, size = bias_strides(axes.windows)
        rpb += h.to(tl.int64) * size
        query_part = linear(rows.positions, bias_steps) - middle
    m_rows = mask_rows(columns, axes, FLAGS.wide) if MASKED else None

    accumulated = tl.zeros([size_of(TILE), padded(D)], tl.float32)
    at = box.begin
    count = box.count
    if MASKED:
        number = b * programs + index if table is None else pid
        listed, count, mixed = steps_of(steps, number, room, RANK)
        entry = 0
    for MIXED in tl.static_range(2 if MASKED else 1):  # as the forward pass does
        if MASKED:
            at = load_axes(listed + entry, RANK)
        for _ in range(count):
            step, full = step_of_keys(at, tile, box, columns, key_mask, m_rows, b, axes, KEY_TILE, FLAGS, MIXED)
            k = load_step(key, k_rows, step, axes, strides.key.tokens, D, FLAGS.checked or MIXED, VECTOR, FLAGS, True)
            v = load_step(
                value, v_rows, step, axes, strides.value.tokens, DV, FLAGS.checked or MIXED, VECTOR, FLAGS, True
            )
            scores = tl.dot(q, k.T, input_precision=PRECISION)
            weights_gradient = tl.dot(do, v.T, input_precision=PRECISION)
            if rpb is not None:
                mask = within(columns, at, rows) & rows.inside[:, None]
                if MIXED:
                    mask = mask & step.there[None, :]
                key_part = linear(shifted(columns, at), bias_steps)
                scores = biased(scores, mask, rpb, key_part[None, :], query_part[:, None], scale)
                p = tl.exp2(scores - log2_total[:, None])
            else:
                p = tl.exp2(scores * scale - log2_total[:, None])
                if MIXED:
                    p = tl.where(step.there[None, :], p, 0.0)
                if not full:
                    p = tl.where(within(columns, at, rows), p, 0.0)
            ds = p * (weights_gradient - difference[:, None])
            accumulated = tl.dot(ds.to(k.dtype), k, accumulated, input_precision=PRECISION)
            if MASKED:
                entry += -RANK if MIXED else RANK
                at = load_axes(listed + entry, RANK)
            else:
                at = next_tile(at, box.begin, box.end, KEY_TILE)
        if MASKED:
            count = mixed
            entry = (room - 1) * RANK

    if extra_keys is not None:
        accumulated = add_from_additional(
            q, do, extra_keys, extra_values, b, kv_head, additional, strides,
            log2_total, difference, accumulated, scale, D, DV, BN, VECTOR, PRECISION,
        )  # fmt: skip

    let_next_start(FLAGS.chained)
    store_rows(grad_query, written * D, rows.inside, accumulated * (scale * LN2), D)


@triton.jit
def _key_value_gradient(
    pid, query, key, value, rpb, key_mask, window_sizes, table, steps,
    output,  # if there is no delta
    lse, grad_output,
    grad_lse,  # likewise; None for zeros
    delta, grad_key, grad_value,
    scale, heads, group_size, programs, room, axes, strides,
    D: tl.constexpr, DV: tl.constexpr, TILE: tl.constexpr, QUERY_TILE: tl.constexpr,
    VECTOR: tl.constexpr, FLAGS: tl.constexpr, GROUPED: tl.constexpr, PER_QUERY_HEAD: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    MASKED: tl.constexpr = key_mask is not None
    RANK: tl.constexpr = len(TILE)
    out_heads = heads if PER_QUERY_HEAD else heads // group_size
    index, out_head, b = program_of(pid, programs, out_heads)
    first_head = out_head if PER_QUERY_HEAD else out_head * group_size
    turns = group_size if GROUPED else 1
    kv_head = first_head // group_size
    if table is not None:
        await_previous(FLAGS.chained)
        if FLAGS.packed:
            b, index, rules = map_of(table, index, len(TILE))
            axes = Axes(*rules, axes.parts)
            strides = strides_of_map(strides, axes.lengths)
            grad_output += b * heads * DV
            lse += b * heads
            if delta is not None:
                delta += b * heads
            if grad_key is not None:
                grad_key += b * out_heads * D
            if grad_value is not None:
                grad_value += b * out_heads * DV
        else:
            axes = Axes(axes.lengths, *rules_of_head(table, first_head, len(TILE)), axes.parts)
    tile = tile_of(index, axes, TILE, FLAGS, True)
    if tile.beyond:
        return

    box = box_of(tile, axes, TILE, QUERY_TILE, FLAGS, True)
    rows = rows_of(tile, axes, TILE, FLAGS, True)
    key = tokens_of(key, b, kv_head, axes, strides.key, True, VECTOR)
    value = tokens_of(value, b, kv_head, axes, strides.value, True, VECTOR)
    await_previous(FLAGS.chained)
    read = rows
    count = box.count
    if MASKED:
        own = tokens_at(tile.first, tile.group, axes.dilations)
        m_rows = mask_rows(rows.offsets, axes, FLAGS.wide)
        kept = keys_there(key_mask, b, own, m_rows, axes, rows.inside)
        read = with_inside(rows, kept)
        unmasked = all_of(kept | ~rows.inside)
        number = b * programs + index if table is None else pid
        listed, count, mixed = steps_of(steps, number, room, RANK)
        some = any_of(kept)
        count = tl.where(some, count, 0)
        mixed = tl.where(some, mixed, 0)
        first_entry = 0
    k = load_tile(key, tile, read, axes.dilations, strides.key.tokens, D, VECTOR, FLAGS.wide)
    if grad_key is not None:
        v = load_tile(value, tile, read, axes.dilations, strides.value.tokens, DV, VECTOR, FLAGS.wide)

    columns = positions_in(QUERY_TILE)
    q_rows = rows_within(columns, axes.dilations, strides.query.tokens, VECTOR, FLAGS.wide)
    all_rows = rows_within(columns, axes.dilations, token_strides(lengths_of(axes, False)), 1, FLAGS.wide) * heads
    o_strides = token_strides(lengths_of(axes, False), heads)
    query = tokens_of(query, b, first_head, axes, strides.query, False, VECTOR)
    if rpb is not None:
        bias_steps, middle, size = bias_strides(axes.windows)
        key_part = linear(rows.positions, bias_steps) + middle

    if grad_key is not None:
        dk = tl.zeros([size_of(TILE), padded(D)], tl.float32)
    if grad_value is not None:
        dv = tl.zeros([size_of(TILE), padded(DV)], tl.float32)
    at = box.begin
    for MIXED in tl.static_range(2 if MASKED else 1):  # as the forward pass does: queries that are all answered first
        h = first_head
        q_head = query
        left = count
        if MASKED:
            entry = first_entry
            at = load_axes(listed + entry, RANK)
        for _ in range(count * turns):
            token = around(tokens_at(at, tile.group, axes.dilations), axes, FLAGS, False)
            there, full = coverage(columns, at, tile, box, QUERY_TILE)
            row = rows_at(0 * b if FLAGS.packed else b, token, axes, heads, h, False)
            o_rows = rows_around(all_rows, token, columns, axes, o_strides, 1, FLAGS, False)
            own_lse = _load_each(lse + row + o_rows, there, FLAGS.checked)
            log2_total = in_base_2(own_lse, MIXED)
            if MIXED:
                there = there & (own_lse != float("-inf"))
            if MASKED:
                full = full & unmasked
            step = Step(token, columns, there)
            q = load_step(
                q_head, q_rows, step, axes, strides.query.tokens, D, FLAGS.checked or MIXED, VECTOR, FLAGS, False
            )
            do = load_rows(grad_output + row * DV, o_rows * DV, there, DV, FLAGS.checked or MIXED)
            if grad_key is not None:
                if delta is not None:
                    difference = _load_each(delta + row + o_rows, there, FLAGS.checked or MIXED)
                else:
                    o = load_rows(output + row * DV, o_rows * DV, there, DV, FLAGS.checked or MIXED)
                    difference = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
                    if grad_lse is not None:
                        difference -= _load_each(grad_lse + row + o_rows, there, FLAGS.checked or MIXED)
            scores = tl.dot(k, q.T, input_precision=PRECISION)
            if window_sizes is not None:
                own_sizes = _load_each(window_sizes + row + o_rows, there, FLAGS.checked or MIXED)
                starts, sizes = sized_intervals(shifted(columns, at), tile.lengths, axes, own_sizes, FLAGS)
                reached = within_sized(rows.positions, starts, sizes)
                full = False
            if rpb is not None:
                mask = within(columns, at, rows) if window_sizes is None else reached
                mask = mask & read.inside[:, None]
                query_part = linear(shifted(columns, at), bias_steps)
                scores = biased(
                    scores, mask, rpb + h.to(tl.int64) * size, key_part[:, None], query_part[None, :], scale
                )
                p = tl.exp2(scores - log2_total[None, :])
            else:
                p = tl.exp2(scores * scale - log2_total[None, :])
                if not full:
                    mask = within(columns, at, rows) if window_sizes is None else reached
                    if MASKED:
                        mask = mask & read.inside[:, None]
                    p = tl.where(mask, p, 0.0)
            if grad_value is not None:
                dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
            if grad_key is not None:
                weights_gradient = tl.dot(v, do.T, input_precision=PRECISION)
                ds = p * (weights_gradient - difference[None, :])
                dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
            if MASKED:
                entry += -RANK if MIXED else RANK
            else:
                at = next_tile(at, box.begin, box.end, QUERY_TILE)
            if GROUPED:  # the group's next head, once the box is walked
                left -= 1
                walked = left == 0
                left = tl.where(walked, count, left)
                if MASKED:
                    entry = tl.where(walked, first_entry, entry)
                else:
                    at = chosen(walked, box.begin, at)
                h = tl.where(walked, h + 1, h)
                q_head += tl.where(walked, strides.query.head, 0).to(tl.int64) * VECTOR
            if MASKED:
                at = load_axes(listed + entry, RANK)
        if MASKED:
            count = mixed
            first_entry = (room - 1) * RANK

    let_next_start(FLAGS.chained)
    written = own_rows(0 * b if FLAGS.packed else b, tile, rows, axes, out_heads, out_head, True)
    if grad_key is not None:
        store_rows(grad_key, written * D, rows.inside, dk * (scale * LN2), D)
    if grad_value is not None:
        store_rows(grad_value, written * DV, rows.inside, dv, DV)


@triton.jit
def _load_each(pointers, inside, CHECKED: tl.constexpr):
    if CHECKED:
        return tl.load(pointers, mask=inside, other=0.0)
    else:
        return tl.load(pointers)
