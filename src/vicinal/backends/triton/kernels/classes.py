"""Fused neighborhood attention where tiles are of few classes (`vicinal.backends.triton.kernels.starts`).

A program walks its tile's box token by token, in steps whose scores start from tiles laid out beforehand; the rest is
as in `vicinal.backends.triton.kernels.forward` and `.backward`. The forward pass takes several batch entries one after
the other where steps are few: where the tile, its box and its start tiles are is computed once. Of packed maps it takes
several heads, and of a batch entry that is alone on three axes, where they are neighbors in memory. The query gradient
may take several batch entries side by side: what scores start from is read once, and scores' gradients, whose sum over
the batch is the bias gradient's, are written once for all of them. Under a key mask programs walk those tokens of their
boxes alone that are there (`vicinal.backends.triton.kernels.kept`).
"""

from typing import NamedTuple

import triton
import triton.language as tl

from vicinal.backends.gpu.kernels.boxes import map_of, program_of, rows_of, strides_of_map
from vicinal.backends.gpu.kernels.memory import (
    among_given,
    any_of,
    around,
    await_previous,
    head_at,
    let_next_start,
    load_rows,
    mask_rows,
    own_rows,
    padded,
    rows_around,
    rows_at,
    rows_within,
    store_rows,
    tile_at,
    token_strides,
)
from vicinal.backends.gpu.kernels.window import Axes, lengths_of, positions_in, product, size_of, tile_of, tokens_at
from vicinal.backends.triton.kernels.additional import add_from_additional, attend_additional
from vicinal.backends.triton.kernels.kept import careful_of, kept_at, kept_steps, masks_of, token_of
from vicinal.backends.triton.kernels.softmax import LN2, LOWEST, attend, finished, in_base_2, weigh
from vicinal.backends.triton.kernels.starts import (
    first_start,
    lines_at,
    lines_of,
    own_places,
    places_of,
    put,
    started,
    started_of,
    whole_box,
)


class Alike(NamedTuple):
    """Which tokens lie in memory as others do, so that where they are is computed once."""

    keys: bool  # as values
    queries: bool  # as outputs


@triton.jit
def own_queries(
    tile, axes, strides, starts, classes, heads, h,
    D: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, VECTOR: tl.constexpr, FLAGS: tl.constexpr,
    MASKS: tl.constexpr, ALIKE: tl.constexpr,
):  # fmt: skip
    """Of a tile of queries: its box, `Rows`, where its queries and its outputs are within a head's, its start tiles."""
    box = whole_box(tile, axes, TILE, FLAGS, False)
    rows = rows_of(tile, axes, TILE, FLAGS, False)
    own = positions_in(TILE)
    o_rows = rows_within(own, axes.dilations, token_strides(lengths_of(axes, False)), 1, FLAGS.wide) * heads
    q_rows = o_rows * D
    if not ALIKE.queries:
        q_rows = rows_within(own, axes.dilations, strides.query.tokens, VECTOR, FLAGS.wide)
    at, _ = first_start(tile, axes, classes, h, TILE, STEP, FLAGS, MASKS)
    return box, rows, q_rows, o_rows, starts + at


@triton.jit
def first_rows(
    query, key, value, batch, h, kv_head, tile, box, axes, strides,
    VECTOR: tl.constexpr, FLAGS: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """The first query, key and value of a tile and its box; which tokens these two begin with.

    `INVERSE`: the tile is of keys, its box of queries.
    """
    token = tokens_at(tile.first, tile.group, axes.dilations)
    walked = around(tokens_at(box.begin, tile.group, axes.dilations), axes, FLAGS, not INVERSE)
    queries = among_given(walked if INVERSE else token, axes, False)
    keys = among_given(token if INVERSE else walked, axes, True)
    query += head_at(batch, h, strides.query, VECTOR) + tile_at(queries, strides.query.tokens, VECTOR)
    key += head_at(batch, kv_head, strides.key, VECTOR) + tile_at(keys, strides.key.tokens, VECTOR)
    value += head_at(batch, kv_head, strides.value, VECTOR) + tile_at(keys, strides.value.tokens, VECTOR)
    return query, key, value, token, walked


@triton.jit
def first_row(batch, tokens, axes, heads, head, FLAGS: tl.constexpr, KEYS: tl.constexpr):
    """`rows_at`; of packed maps `batch` is a map's first token."""
    if FLAGS.packed:
        return rows_at(0 * batch, tokens, axes, heads, head, KEYS) + batch * heads
    else:
        return rows_at(batch, tokens, axes, heads, head, KEYS)


@triton.jit
def key_head(head, group_size, GROUPED: tl.constexpr):
    """Of a query head; without groups no division, which costs some 30 instructions."""
    return head // group_size if GROUPED else head


@triton.jit
def walked_rows(
    lines, box, tokens, axes, strides, VECTOR: tl.constexpr, FLAGS: tl.constexpr, KEYS: tl.constexpr
):  # fmt: skip
    """The offsets of tokens of a box, given as `lines_of`, from the first one, which is the one at `tokens`."""
    if FLAGS.circles != 0:
        places = places_of(lines, box)
        rows = rows_within(places, axes.dilations, strides, VECTOR, FLAGS.wide)
        return rows_around(rows, tokens, places, axes, strides, VECTOR, FLAGS, KEYS)
    else:  # a place is a number less its whole lines: what these take away is taken from a line's own stride
        LAST: tl.constexpr = len(box.begin) - 1
        apart = _apart(axes.dilations[LAST], strides[LAST], VECTOR, FLAGS.wide)
        rows = lines[LAST] * apart
        for axis in tl.static_range(LAST - 1, -1, -1):
            line = apart * (box.end[axis + 1] - box.begin[axis + 1])
            apart = _apart(axes.dilations[axis], strides[axis], VECTOR, FLAGS.wide)
            rows = rows + lines[axis] * (apart - line)
        return rows


@triton.jit
def _apart(dilation, stride, VECTOR: tl.constexpr, WIDE: tl.constexpr):
    if WIDE:
        return tl.cast(dilation, tl.int64) * stride * VECTOR
    else:
        return dilation * (stride * VECTOR)


@triton.jit(do_not_specialize=("scale", "heads", "group_size", "additional", "programs", "batch", "turns"))
def forward_of_classes_kernel(
    query, key, value,
    extra_keys, extra_values,  # None where there are none
    starts,
    key_mask, kept,  # None where there is no mask; the keys that are there, with `MASKS`
    table,  # of packed maps: `boxes.map_of`
    output, lse,  # written
    scale,  # positive, times log2(e)
    heads, group_size, additional,
    programs,  # tiles of one head
    batch,  # of packed maps as many as heads
    turns,  # batch entries of a program; heads, of packed maps and with `HEADS`
    classes, axes, strides,  # `Classes`, `Axes`, `InputStrides`
    D: tl.constexpr, DV: tl.constexpr,
    TILE: tl.constexpr, STEP: tl.constexpr,
    WARPS: tl.constexpr, VECTOR: tl.constexpr, FLAGS: tl.constexpr,
    MASKS: tl.constexpr,  # scores start from masks, not from start tiles
    GROUPED: tl.constexpr,  # several query heads of a key head
    ALIKE: tl.constexpr,  # `Alike`
    HEADS: tl.constexpr,  # a program takes several heads, `batch` is of both; without a bias, a mask, additional keys
    AHEAD: tl.constexpr,  # scores are computed a step ahead; not under a mask
    PRECISION: tl.constexpr,
):  # fmt: skip
    BM: tl.constexpr = size_of(TILE)
    BN: tl.constexpr = size_of(STEP)
    own_place = own_places(TILE, starts.dtype.element_ty) if MASKS else None
    index, h, share = program_of(tl.program_id(0), programs, 1 if FLAGS.packed or HEADS else heads)
    first = share * turns
    entry = first
    if HEADS:
        entry = first // heads
        h = (first % heads).to(tl.int32)
    if FLAGS.packed:
        await_previous(FLAGS.chained)
        h = first.to(tl.int32)
        entry, index, rules = map_of(table, index, len(TILE))
        axes = Axes(rules[0], *axes[1:])
        strides = strides_of_map(strides, axes.lengths)
    kv_head = key_head(h, group_size, GROUPED)
    tile = tile_of(index, axes, TILE, FLAGS)
    if tile.beyond:
        return
    box, rows, q_rows, o_rows, starts = own_queries(
        tile, axes, strides, starts, classes, heads, h, D, TILE, STEP, VECTOR, FLAGS, MASKS, ALIKE
    )
    query, key, value, token, walked = first_rows(
        query, key, value, entry, h, kv_head, tile, box, axes, strides, VECTOR, FLAGS, False
    )
    row = first_row(entry, token, axes, heads, h, FLAGS, False)
    steps = (box.count + BN - 1) // BN
    await_previous(FLAGS.chained)
    if kept is not None:
        listed = kept_at(kept, first * programs + index, classes.steps, BN)
        keys = tl.load(listed + tl.arange(0, BN))
        own_mask = key_mask + rows_at(first, token, axes, 1, 0, True)
        m_rows = mask_rows(positions_in(TILE), axes, FLAGS.wide)
    for b in range(first, tl.minimum(first + turns, batch)):
        q = load_rows(query, q_rows, rows.inside, D, True)
        maximum = tl.full([BM], LOWEST, tl.float32)
        total = tl.zeros([BM], tl.float32)
        accumulated = tl.zeros([BM, padded(DV)], tl.float32)
        if kept is not None:
            # Not carried from entry to entry: nothing but a loop's bound, of which Triton 3.6 keeps the first value.
            steps = kept_steps(listed, BN)
            own_there = tl.load(own_mask + m_rows, mask=rows.inside, other=1)  # early: nothing waits for it in the end
        if AHEAD:  # what a step needs is on its way while the weights of the one before are computed
            k_rows = walked_rows(lines_of(0, box, BN), box, walked, axes, strides.key.tokens, VECTOR, FLAGS, True)
            k = load_rows(key, k_rows, None, D, False)
            start = started(starts, 0, own_place, TILE, STEP, WARPS)
            scores = tl.dot(q, k.T, start, input_precision=PRECISION)
            for i in range(steps):
                p = tl.zeros([BM, BN], value.dtype.element_ty)
                if i < classes.steps:  # always so, but over no branch does ptxas move the wait for what is on its way
                    p, maximum, total, accumulated = weigh(
                        scores, maximum, total, accumulated, scale, False, value.dtype.element_ty
                    )
                v_rows = k_rows
                if not ALIKE.keys:
                    lines = lines_of(i, box, BN)
                    v_rows = walked_rows(lines, box, walked, axes, strides.value.tokens, VECTOR, FLAGS, True)
                v = load_rows(value, v_rows, None, DV, False)
                accumulated = tl.dot(p, v, accumulated, input_precision=PRECISION)
                lines = lines_of(
                    i + 1, box, BN
                )  # after the last step its last token: cheaper than a loop that ends before
                k_rows = walked_rows(lines, box, walked, axes, strides.key.tokens, VECTOR, FLAGS, True)
                k = load_rows(key, k_rows, None, D, False)
                start = started(starts, tl.minimum(i + 1, steps - 1), own_place, TILE, STEP, WARPS)
                scores = tl.dot(q, k.T, start, input_precision=PRECISION)
        else:
            for i in range(steps):
                lines = lines_of(i, box, BN) if kept is None else lines_at(token_of(keys), box)
                k_rows = walked_rows(lines, box, walked, axes, strides.key.tokens, VECTOR, FLAGS, True)
                v_rows = k_rows
                if not ALIKE.keys:
                    v_rows = walked_rows(lines, box, walked, axes, strides.value.tokens, VECTOR, FLAGS, True)
                k = load_rows(key, k_rows, None, D, False)
                if kept is None:
                    start = started(starts, i, own_place, TILE, STEP, WARPS)
                else:
                    start = started_of(starts, masks_of(keys), own_place)
                    keys = tl.load(listed + (i + 1) * BN + tl.arange(0, BN))  # ahead
                scores = tl.dot(q, k.T, start, input_precision=PRECISION)
                v = load_rows(value, v_rows, None, DV, False)
                maximum, total, accumulated = attend(scores, v, maximum, total, accumulated, scale, False, PRECISION)
        if extra_keys is not None:
            maximum, total, accumulated = attend_additional(
                q, extra_keys, extra_values, b, kv_head, additional, strides,
                maximum, total, accumulated, scale, D, DV, BN, VECTOR, False, PRECISION,
            )  # fmt: skip
        if kept is not None:  # the next entry's, ahead
            listed = kept_at(kept, tl.minimum(b + 1, batch - 1) * programs + index, classes.steps, BN)
            keys = tl.load(listed + tl.arange(0, BN))
        outputs, lses = finished(maximum, total, accumulated, scale, False, value.dtype.element_ty)
        if kept is not None:  # a masked token's query may be no number
            silent = (own_there == 0) & ~(lses < float("inf"))
            outputs = tl.where(silent[:, None], 0.0, outputs)
            lses = tl.where(silent, float("-inf"), lses)
            own_mask += product(lengths_of(axes, True)).to(tl.int64)
        store_rows(output + row * DV, o_rows * DV, rows.inside, outputs, DV)
        tl.store(lse + row + o_rows, lses, mask=rows.inside)
        if FLAGS.packed or HEADS:
            h += 1
            others = tl.where(h % group_size == 0, VECTOR, 0)  # the next key head's
            query += strides.query.head.to(tl.int64) * VECTOR
            key += strides.key.head.to(tl.int64) * others
            value += strides.value.head.to(tl.int64) * others
            row += 1
        else:
            query += strides.query.batch.to(tl.int64) * VECTOR
            key += strides.key.batch.to(tl.int64) * VECTOR
            value += strides.value.batch.to(tl.int64) * VECTOR
            row += product(lengths_of(axes, False)).to(tl.int64) * heads
    let_next_start(FLAGS.chained)


@triton.jit(do_not_specialize=("scale", "heads", "group_size", "additional", "programs", "first"))
def query_gradient_of_classes_kernel(
    query, key, value,
    extra_keys, extra_values,  # None where there are none
    starts,
    kept,  # None where there is no mask; the keys that are there, with `MASKS` and one batch entry
    table,  # of packed maps: `boxes.map_of`
    output, lse, grad_output,
    grad_lse,  # None for zeros
    delta, grad_query,  # written
    grad_scores,  # written: means over the batch entries abreast (whose sum may overflow 16 bits), of each head, tile,
    # and step, in the order of start tiles; None if not wanted
    scale, heads, group_size, additional, programs,
    first,  # batch entry
    classes, axes, strides,
    D: tl.constexpr, DV: tl.constexpr,
    TILE: tl.constexpr, STEP: tl.constexpr,
    WARPS: tl.constexpr, VECTOR: tl.constexpr, FLAGS: tl.constexpr, MASKS: tl.constexpr, GROUPED: tl.constexpr,
    ALIKE: tl.constexpr,
    ABREAST: tl.constexpr,  # batch entries that a program computes side by side
    PRECISION: tl.constexpr,
):  # fmt: skip
    BM: tl.constexpr = size_of(TILE)
    BN: tl.constexpr = size_of(STEP)
    own_place = own_places(TILE, starts.dtype.element_ty) if MASKS else None
    index, h, entry = program_of(tl.program_id(0), programs, heads)
    kv_head = key_head(h, group_size, GROUPED)
    b = first + entry * ABREAST
    if FLAGS.packed:
        await_previous(FLAGS.chained)
        b, index, rules = map_of(table, index, len(TILE))
        axes = Axes(rules[0], *axes[1:])
        strides = strides_of_map(strides, axes.lengths)
    tile = tile_of(index, axes, TILE, FLAGS)
    if tile.beyond:
        return
    box, rows, q_rows, o_rows, starts = own_queries(
        tile, axes, strides, starts, classes, heads, h, D, TILE, STEP, VECTOR, FLAGS, MASKS, ALIKE
    )
    steps = (box.count + BN - 1) // BN
    if grad_scores is not None:
        grad_scores += ((entry * heads + h) * programs + index) * classes.steps * (BM * BN)
    await_previous(FLAGS.chained)
    queries = ()
    keys = ()
    values = ()
    written = ()
    lses = ()
    outputs = ()
    upstreams = ()
    # All that is read once is on its way before the first sum, and its barrier, waits for some of it.
    for e in tl.static_range(ABREAST):
        query_at, key_at, value_at, token, walked = first_rows(
            query, key, value, b + e, h, kv_head, tile, box, axes, strides, VECTOR, FLAGS, False
        )
        row = first_row(b + e, token, axes, heads, h, FLAGS, False)
        keys = keys + (key_at,)
        values = values + (value_at,)
        written = written + (row,)
        lses = lses + (tl.load(lse + row + o_rows, mask=rows.inside, other=0.0),)
        upstreams = upstreams + (load_rows(grad_output + row * DV, o_rows * DV, rows.inside, DV, True),)
        outputs = outputs + (load_rows(output + row * DV, o_rows * DV, rows.inside, DV, True),)
        queries = queries + (load_rows(query_at, q_rows, rows.inside, D, True),)
    log2_totals = ()
    differences = ()
    sums = ()
    if kept is not None:
        listed = kept_at(kept, b * programs + index, classes.steps, BN)
        steps = kept_steps(listed, BN)
        numbers = tl.load(listed + tl.arange(0, BN))
        answered = lses[0] != float("-inf")  # what a query without an answer reads may be no number
        queries = (tl.where(answered[:, None], queries[0], 0.0),)
        outputs = (tl.where(answered[:, None], outputs[0], 0.0),)
        upstreams = (tl.where(answered[:, None], upstreams[0], 0.0),)
    for e in tl.static_range(ABREAST):
        log2_totals = log2_totals + (in_base_2(lses[e], kept is not None),)
        difference = tl.sum(outputs[e].to(tl.float32) * upstreams[e].to(tl.float32), 1)
        if grad_lse is not None:
            difference -= tl.load(grad_lse + written[e] + o_rows, mask=rows.inside, other=0.0)
        if kept is not None:
            difference = tl.where(answered, difference, 0.0)
        tl.store(delta + written[e] + o_rows, difference, mask=rows.inside)
        differences = differences + (difference,)
        sums = sums + (tl.zeros([BM, padded(D)], tl.float32),)
    for i in range(steps):
        lines = lines_of(i, box, BN) if kept is None else lines_at(token_of(numbers), box)
        k_rows = walked_rows(lines, box, walked, axes, strides.key.tokens, VECTOR, FLAGS, True)
        v_rows = k_rows
        if not ALIKE.keys:
            v_rows = walked_rows(lines, box, walked, axes, strides.value.tokens, VECTOR, FLAGS, True)
        if kept is None:
            start = started(starts, i, own_place, TILE, STEP, WARPS)
        else:
            start = started_of(starts, masks_of(numbers), own_place)
            numbers = tl.load(listed + (i + 1) * BN + tl.arange(0, BN))  # ahead
        old = sums
        sums = ()
        for e in tl.static_range(ABREAST):
            k = load_rows(keys[e], k_rows, None, D, False)
            v = load_rows(values[e], v_rows, None, DV, False)
            scores = tl.dot(queries[e], k.T, start, input_precision=PRECISION)
            weights_gradient = tl.dot(upstreams[e], v.T, input_precision=PRECISION)
            p = tl.exp2(scores * scale - log2_totals[e][:, None])
            ds = p * (weights_gradient - differences[e][:, None])
            sums = sums + (tl.dot(ds.to(k.dtype), k, old[e], input_precision=PRECISION),)
            if grad_scores is not None:
                if e == 0:
                    found = ds * (1.0 / ABREAST)
                else:
                    found += ds * (1.0 / ABREAST)
        if grad_scores is not None:
            put(grad_scores + i * (BM * BN), found.to(grad_scores.dtype.element_ty), TILE, STEP, WARPS)
    for e in tl.static_range(ABREAST):
        accumulated = sums[e]
        if extra_keys is not None:
            accumulated = add_from_additional(
                queries[e], upstreams[e], extra_keys, extra_values, b + e, kv_head, additional, strides,
                log2_totals[e], differences[e], accumulated, scale, D, DV, BN, VECTOR, PRECISION,
            )  # fmt: skip
        store_rows(grad_query + written[e] * D, o_rows * D, rows.inside, accumulated * (scale * LN2), D)
    let_next_start(FLAGS.chained)


@triton.jit(do_not_specialize=("scale", "heads", "group_size", "programs"))
def key_value_gradient_of_classes_kernel(
    query, key, value, starts,
    key_mask, kept,  # None where there is no mask; the queries that are answered, with `MASKS`
    table,  # of packed maps: `boxes.map_of`
    lse, grad_output,
    delta,  # None where no gradient of keys is wanted
    grad_key, grad_value,  # written; None where nobody needs it
    scale, heads, group_size, programs,
    classes, axes, strides,
    D: tl.constexpr, DV: tl.constexpr,
    TILE: tl.constexpr, STEP: tl.constexpr,
    WARPS: tl.constexpr, VECTOR: tl.constexpr, FLAGS: tl.constexpr, MASKS: tl.constexpr,
    GROUPED: tl.constexpr,  # several query heads of a key head
    ALIKE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    BM: tl.constexpr = size_of(TILE)
    BN: tl.constexpr = size_of(STEP)
    own_place = own_places(TILE, starts.dtype.element_ty) if MASKS else None
    kv_heads = key_head(heads, group_size, GROUPED)
    index, kv_head, b = program_of(tl.program_id(0), programs, kv_heads)
    h = kv_head * group_size
    if FLAGS.packed:
        await_previous(FLAGS.chained)
        b, index, rules = map_of(table, index, len(TILE))
        axes = Axes(rules[0], *axes[1:])
        strides = strides_of_map(strides, axes.lengths)
    tile = tile_of(index, axes, TILE, FLAGS, True)
    if tile.beyond:
        return
    box = whole_box(tile, axes, TILE, FLAGS, True)
    rows = rows_of(tile, axes, TILE, FLAGS, True)
    own = positions_in(TILE)
    places_apart = token_strides(lengths_of(axes, False))
    keys_apart = token_strides(lengths_of(axes, True))
    k_rows = rows_within(own, axes.dilations, strides.key.tokens, VECTOR, FLAGS.wide)
    v_rows = rows_within(own, axes.dilations, strides.value.tokens, VECTOR, FLAGS.wide)
    w_rows = rows_within(own, axes.dilations, keys_apart, 1, FLAGS.wide) * kv_heads
    at, apart = first_start(tile, axes, classes, h, TILE, STEP, FLAGS, MASKS)
    starts += at
    query, key, value, token, walked = first_rows(
        query, key, value, b, h, kv_head, tile, box, axes, strides, VECTOR, FLAGS, True
    )
    row = first_row(b, walked, axes, heads, h, FLAGS, False)
    written = first_row(b, token, axes, kv_heads, kv_head, FLAGS, True)
    steps = (box.count + BN - 1) // BN
    await_previous(FLAGS.chained)
    if kept is not None:
        # Rows of keys do not meet: what comes out for those that are masked, which may be no numbers, is not written.
        there = tl.load(key_mask + own_rows(b, tile, rows, axes, 1, 0, True), mask=rows.inside, other=0) != 0
        listed = kept_at(kept, b * programs + index, classes.steps, BN)
        steps = tl.where(any_of(there), kept_steps(listed, BN), 0)
    k = load_rows(key, k_rows, rows.inside, D, True)
    if grad_key is not None:
        v = load_rows(value, v_rows, rows.inside, DV, True)
        dk = tl.zeros([BM, padded(D)], tl.float32)
    if grad_value is not None:
        dv = tl.zeros([BM, padded(DV)], tl.float32)
    for CAREFUL in tl.static_range(1 if kept is None else 2):  # last, queries that only some heads have answered
        if CAREFUL:
            steps, last = careful_of(listed, classes.steps, BN)
            steps = tl.where(any_of(there), steps, 0)
        elif kept is not None:
            numbers = tl.load(listed + tl.arange(0, BN))
        # Those seldom are: nothing of their loop is done ahead of it.
        turns = steps * group_size if GROUPED else steps
        for n in tl.range(0, turns, num_stages=1 if CAREFUL else None, disable_licm=CAREFUL):
            i = n
            own_query = query
            own_row = row
            own_starts = starts
            if GROUPED:
                i = n % steps
                turn = n // steps
                own_query += turn.to(tl.int64) * strides.query.head * VECTOR
                own_row += turn
                own_starts += turn * apart
            if CAREFUL:
                numbers = tl.load(listed + last - i * BN - tl.arange(0, BN))
            lines = lines_of(i, box, BN) if kept is None else lines_at(token_of(numbers), box)
            o_rows = walked_rows(lines, box, walked, axes, places_apart, 1, FLAGS, False) * heads
            q_rows = o_rows * D
            if not ALIKE.queries:
                q_rows = walked_rows(lines, box, walked, axes, strides.query.tokens, VECTOR, FLAGS, False)
            own_lse = tl.load(lse + own_row + o_rows)
            log2_total = in_base_2(own_lse, CAREFUL)
            answered = own_lse != float("-inf") if CAREFUL else None  # else what it reads may be no number
            q = load_rows(own_query, q_rows, answered, D, CAREFUL)
            do = load_rows(grad_output + own_row * DV, o_rows * DV, answered, DV, CAREFUL)
            if kept is None:
                start = started(own_starts, i, own_place, TILE, STEP, WARPS)
            else:
                start = started_of(own_starts, masks_of(numbers), own_place)
                if not CAREFUL:  # ahead
                    following = (n + 1) % steps if GROUPED else n + 1
                    numbers = tl.load(listed + following * BN + tl.arange(0, BN))
            scores = tl.dot(k, q.T, start, input_precision=PRECISION)
            p = tl.exp2(scores * scale - log2_total[None, :])
            if grad_value is not None:
                dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
            if grad_key is not None:
                difference = tl.load(delta + own_row + o_rows)
                if CAREFUL:
                    difference = tl.where(answered, difference, 0.0)
                weights_gradient = tl.dot(v, do.T, input_precision=PRECISION)
                ds = p * (weights_gradient - difference[None, :])
                dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    if kept is not None:
        if grad_key is not None:
            dk = tl.where(there[:, None], dk, 0.0)
        if grad_value is not None:
            dv = tl.where(there[:, None], dv, 0.0)
    if grad_key is not None:
        store_rows(grad_key + written * D, w_rows * D, rows.inside, dk * (scale * LN2), D)
    if grad_value is not None:
        store_rows(grad_value + written * DV, w_rows * DV, rows.inside, dv, DV)
    let_next_start(FLAGS.chained)
