"""Fused neighborhood attention, forward: one program computes one tile of queries of one head.

It walks the key tiles of the box that the tile's windows cover, laid from the box's first key, then the additional
keys; attention weights stay on the chip. One source for every rank, window, stride, dilation, mode, head dim and
dtype; only the constexprs below compile anew.
"""

import triton
import triton.language as tl

from vicinal.backends.gpu.kernels.boxes import (
    box_of,
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
    with_intervals,
    within,
)
from vicinal.backends.gpu.kernels.memory import (
    await_previous,
    let_next_start,
    load_step,
    load_tile,
    mask_rows,
    own_rows,
    padded,
    rows_within,
    store_rows,
    tokens_of,
)
from vicinal.backends.gpu.kernels.window import (
    Axes,
    bias_strides,
    linear,
    next_tile,
    positions_in,
    shifted,
    size_of,
    tile_of,
)
from vicinal.backends.triton.kernels.additional import attend_additional
from vicinal.backends.triton.kernels.bias import biased
from vicinal.backends.triton.kernels.softmax import LOWEST, attend, finished

# Never specialised on; nor are the tuples, by how they are launched: neither a new window nor a new length compiles.
RUN_TIME = ("scale", "heads", "group_size", "additional", "programs", "room")


@triton.jit(do_not_specialize=RUN_TIME)
def forward_kernel(
    query, key, value,
    extra_keys, extra_values, rpb, key_mask, window_sizes,  # None where there is none
    table,  # likewise; each head's neighborhood
    steps,  # likewise; with a mask, which steps to take: `boxes.steps_of`
    output, lse,  # written
    scale,  # times log2(e)
    heads, group_size, additional,
    programs,  # tiles of one head
    room,  # entries of a list of steps
    axes, strides,  # `Axes`, `InputStrides`
    D: tl.constexpr, DV: tl.constexpr,
    TILE: tl.constexpr, KEY_TILE: tl.constexpr,
    VECTOR: tl.constexpr, FLAGS: tl.constexpr,
    SCALED: tl.constexpr,  # scores are scaled before their maximum is taken (a scale that is not positive)
    PRECISION: tl.constexpr,
):  # fmt: skip
    BM: tl.constexpr = size_of(TILE)
    BN: tl.constexpr = size_of(KEY_TILE)
    HAS_RPB: tl.constexpr = rpb is not None
    MASKED: tl.constexpr = key_mask is not None
    RANK: tl.constexpr = len(TILE)
    index, h, b = program_of(tl.program_id(0), programs, heads)
    kv_head = h // group_size
    if table is not None:
        await_previous(FLAGS.chained)
        if FLAGS.packed:
            b, index, rules = map_of(table, index, len(TILE))
            axes = Axes(*rules, axes.parts)
            strides = strides_of_map(strides, axes.lengths)
            output += b * heads * DV
            lse += b * heads
        else:
            axes = Axes(axes.lengths, *rules_of_head(table, h, len(TILE)), axes.parts)
    tile = tile_of(index, axes, TILE, FLAGS)
    if tile.beyond:
        return

    rows = rows_of(tile, axes, TILE, FLAGS, False)
    if window_sizes is not None:
        await_previous(FLAGS.chained)
        own_sizes = tl.load(window_sizes + own_rows(b, tile, rows, axes, heads, h), mask=rows.inside, other=1)
        box = sized_box(tile, axes, own_sizes, rows, TILE, KEY_TILE, FLAGS)
        starts, sizes = sized_intervals(rows.positions, tile.lengths, axes, own_sizes, FLAGS)
        rows = with_intervals(rows, starts, sizes)
    else:
        box = box_of(tile, axes, TILE, KEY_TILE, FLAGS, False)
    query = tokens_of(query, b, h, axes, strides.query, False, VECTOR)
    await_previous(FLAGS.chained)
    q = load_tile(query, tile, rows, axes.dilations, strides.query.tokens, D, VECTOR, FLAGS.wide)

    columns = positions_in(KEY_TILE)
    k_rows = rows_within(columns, axes.dilations, strides.key.tokens, VECTOR, FLAGS.wide)
    v_rows = rows_within(columns, axes.dilations, strides.value.tokens, VECTOR, FLAGS.wide)
    key = tokens_of(key, b, kv_head, axes, strides.key, True, VECTOR)
    value = tokens_of(value, b, kv_head, axes, strides.value, True, VECTOR)
    if HAS_RPB:
        bias_steps, middle, size = bias_strides(axes.windows)
        rpb += h.to(tl.int64) * size
        query_part = linear(rows.positions, bias_steps) - middle
    if MASKED and axes.parts is None:  # read early: nothing waits for it in the end
        own_there = tl.load(key_mask + own_rows(b, tile, rows, axes, 1, 0), mask=rows.inside, other=1)
    m_rows = mask_rows(columns, axes, FLAGS.wide) if MASKED else None

    maximum = tl.full([BM], LOWEST, tl.float32)
    total = tl.zeros([BM], tl.float32)
    accumulated = tl.zeros([BM, padded(DV)], tl.float32)
    at = box.begin
    count = box.count
    if MASKED:
        number = b * programs + index if table is None else tl.program_id(0)
        listed, count, mixed = steps_of(steps, number, room, RANK)
        entry = 0
    # With a mask twice: steps whose keys are all there, as if there were no mask, then those with some that are not.
    for MIXED in tl.static_range(2 if MASKED else 1):
        if MASKED:
            at = load_axes(listed + entry, RANK)
        for _ in range(count):
            step, full = step_of_keys(at, tile, box, columns, key_mask, m_rows, b, axes, KEY_TILE, FLAGS, MIXED)
            k = load_step(key, k_rows, step, axes, strides.key.tokens, D, FLAGS.checked or MIXED, VECTOR, FLAGS, True)
            scores = tl.dot(q, k.T, input_precision=PRECISION)
            if HAS_RPB:
                mask = within(columns, at, rows) & rows.inside[:, None]
                if MIXED:
                    mask = mask & step.there[None, :]
                key_part = linear(shifted(columns, at), bias_steps)
                scores = biased(scores, mask, rpb, key_part[None, :], query_part[:, None], scale)
            else:
                if SCALED:
                    scores *= scale
                if MIXED:
                    scores = tl.where(step.there[None, :], scores, float("-inf"))
                if not full:
                    scores = tl.where(within(columns, at, rows), scores, float("-inf"))
            v = load_step(
                value, v_rows, step, axes, strides.value.tokens, DV, FLAGS.checked or MIXED, VECTOR, FLAGS, True
            )
            maximum, total, accumulated = attend(
                scores, v, maximum, total, accumulated, scale, SCALED or HAS_RPB, PRECISION
            )
            if MASKED:
                entry += -RANK if MIXED else RANK
                at = load_axes(listed + entry, RANK)
            else:
                at = next_tile(at, box.begin, box.end, KEY_TILE)
        if MASKED:
            count = mixed
            entry = (room - 1) * RANK

    if extra_keys is not None:
        maximum, total, accumulated = attend_additional(
            q, extra_keys, extra_values, b, kv_head, additional, strides,
            maximum, total, accumulated, scale, D, DV, BN, VECTOR, SCALED or HAS_RPB, PRECISION,
        )  # fmt: skip

    let_next_start(FLAGS.chained)
    outputs, lses = finished(maximum, total, accumulated, scale, SCALED or HAS_RPB, value.dtype.element_ty)
    written = own_rows(0 * b if FLAGS.packed else b, tile, rows, axes, heads, h)
    if MASKED and axes.parts is None:  # a masked token's query may be no number
        silent = (own_there == 0) & ~(lses < float("inf"))
        outputs = tl.where(silent[:, None], 0.0, outputs)
        lses = tl.where(silent, float("-inf"), lses)
    store_rows(output, written * DV, rows.inside, outputs, DV)
    tl.store(lse + written, lses, mask=rows.inside)
