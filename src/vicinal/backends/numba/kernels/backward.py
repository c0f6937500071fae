"""The backward pass: weights again from the log-sum-exp, then five products per tile of 16 queries and chunk of keys.

A task has the gradients of its keys and values to itself: no two threads add to one. Where a score is -inf, which it
is for a query that does not attend, weight and gradient are 0 whatever the rest is. Products for gradients that nobody
needs are left out.

Source: FlashAttention (arXiv 2205.14135, algorithm 4), with the gradient of the log-sum-exp.
"""

from __future__ import annotations

from numba import njit

from vicinal.backends.numba.kernels import call as c
from vicinal.backends.numba.kernels.call import get, row_of, stride_of
from vicinal.backends.numba.kernels.products import ROWS_OF_KEYS, masked, scores, sum_keys, sum_queries
from vicinal.backends.numba.kernels.vectors import (
    LANES,
    add_atomically,
    convert,
    exp,
    fma,
    itemsize,
    load,
    load_number,
    multiply,
    splat,
    store,
    store_int,
    subtract,
    transpose,
    unless_masked,
)
from vicinal.backends.numba.kernels.walk import begin, chunk, find_bits, find_rows, keys_of, tile_of


@njit(error_model="numpy")
def backward(call, zero):
    """Take tasks while there are any; several threads may. `zero`: a number of the tensors' dtype."""
    thread = add_atomically(call + 8 * c.NEXT_THREAD, 1)
    scratch = get(call, c.SCRATCH) + thread * get(call, c.SCRATCH_BYTES)
    group, parts = get(call, c.GROUP), get(call, c.PARTS)
    kv_heads = get(call, c.HEADS) // group
    count0 = get(call, c.AXIS + c.TILE_COUNT)
    count1 = get(call, c.AXIS + c.AXIS_FIELDS + c.TILE_COUNT)
    count2 = get(call, c.AXIS + 2 * c.AXIS_FIELDS + c.TILE_COUNT)
    spans, span = get(call, c.SPANS), get(call, c.SPAN)
    strips = count0 * count1 * spans
    while True:
        task = add_atomically(call + 8 * c.NEXT_TASK, 1)
        if task >= get(call, c.TASKS):
            break
        rest, kv_head = task // kv_heads, task % kv_heads
        batch, part = rest // parts, rest % parts
        for i in range(4):
            if get(call, c.WANTED) & (c.WANT_KEY if i % 2 == 0 else c.WANT_VALUE):
                _clear(call, i, batch, kv_head, part, zero)
        for strip in range(strips * part // parts, strips * (part + 1) // parts):
            rest, first2 = strip // spans, strip % spans * span
            tile0, tile1 = tile_of(call, 0, rest // count1), tile_of(call, 1, rest % count1)
            find_bits(call, scratch, 0, tile0)
            find_bits(call, scratch, 1, tile1)
            for index2 in range(first2, min(first2 + span, count2)):
                tile2 = tile_of(call, 2, index2)
                find_bits(call, scratch, 2, tile2)
                for head in range(kv_head * group, (kv_head + 1) * group):
                    _tile(call, scratch, batch, head, kv_head, part, tile0, tile1, tile2, zero)


@njit(error_model="numpy")
def _clear(call, which, batch, kv_head, part, zero):
    """Set one of a task's gradients to zero: of keys, values, additional keys or additional values."""
    tensor = c.GRAD_KEY + which
    vectors = get(call, c.CHANNELS if which % 2 == 0 else c.VALUE_CHANNELS)
    lengths = c.LENGTHS if which < 2 else c.LENGTHS + 3
    first = row_of(call, tensor, batch, kv_head) + part * get(call, c.PART + which)
    count1, count2 = (get(call, c.LENGTHS + 1), get(call, c.LENGTHS + 2)) if which < 2 else (1, 1)
    for x0 in range(get(call, lengths)):
        for x1 in range(count1):
            row = first + x0 * stride_of(call, tensor, 0) + x1 * stride_of(call, tensor, 1)
            for _ in range(count2):
                for i in range(vectors):
                    store(row + i * LANES * itemsize(zero), splat(zero))
                row += stride_of(call, tensor, 2)


@njit(error_model="numpy")
def _tile(call, scratch, batch, head, kv_head, part, tile0, tile1, tile2, zero):
    used = find_rows(call, scratch, c.QUERY, batch, head, tile0, tile1, tile2, 0)
    unread = scratch + get(call, c.UNREAD)
    if get(call, c.WANTED) & c.WANT_QUERY:
        find_rows(call, scratch, c.GRAD_QUERY, batch, head, tile0, tile1, tile2, unread)
    find_rows(call, scratch, c.OUTPUT, batch, head, tile0, tile1, tile2, 0)
    find_rows(call, scratch, c.GRAD_OUTPUT, batch, head, tile0, tile1, tile2, 0)
    find_rows(call, scratch, c.LSE, batch, head, tile0, tile1, tile2, 0)
    if get(call, c.HAS_GRAD_LSE):
        find_rows(call, scratch, c.GRAD_LSE, batch, head, tile0, tile1, tile2, 0)
    _columns(call, scratch, zero)
    keys = keys_of(call, tile0, tile1, tile2)
    chunks = -(-keys // get(call, c.CHUNK))
    size = -(-keys // chunks)
    begin(call, scratch)
    first = True
    while True:
        count = chunk(call, scratch, batch, kv_head, tile0, tile1, tile2, size, part)
        if count == 0:
            break
        for i in range(count, count + ROWS_OF_KEYS - 1):
            store_int(scratch + get(call, c.GRAD_KEYS) + 8 * i, unread)
            store_int(scratch + get(call, c.GRAD_VALUES) + 8 * i, unread)
        _add(call, scratch, count, used, first, zero)
        first = False


@njit(error_model="numpy")
def _columns(call, scratch, zero):
    """Queries and gradients of outputs as columns; what is subtracted from scores (0 for -inf), and from gradients."""
    rows = scratch + get(call, c.ROWS)
    vector = LANES * itemsize(zero)
    scale = convert(load_number(call + 8 * c.SCALE, 0.0), zero)
    queries = scratch + get(call, c.QUERY_COLUMNS)
    for i in range(get(call, c.CHANNELS)):
        transpose(rows + 8 * LANES * c.QUERY, i * vector, scale, queries + i * LANES * vector)
    at_lse, at_delta = scratch + get(call, c.HIGHEST), scratch + get(call, c.TOTAL)
    if get(call, c.WANTED) & (c.WANT_QUERY | c.WANT_KEY):
        store(at_delta, _delta(call, scratch, zero))
    for lane in range(LANES):
        store(at_lse + lane * itemsize(zero), load_number(get(rows + 8 * LANES * c.LSE, lane), zero))
    lse = load(at_lse, zero)
    store(at_lse, unless_masked(lse, lse))


@njit(error_model="numpy")
def _delta(call, scratch, zero):
    """Gradients of outputs as columns; what is subtracted from gradients of scores."""
    rows = scratch + get(call, c.ROWS)
    vector = LANES * itemsize(zero)
    above, outputs = scratch + get(call, c.GRAD_OUTPUT_COLUMNS), scratch + get(call, c.OUTPUT_ROWS)
    one = convert(1.0, zero)
    delta = splat(zero)
    for i in range(get(call, c.VALUE_CHANNELS)):
        transpose(rows + 8 * LANES * c.GRAD_OUTPUT, i * vector, one, above + i * LANES * vector)
        transpose(rows + 8 * LANES * c.OUTPUT, i * vector, one, outputs)
        for j in range(LANES):
            delta = fma(load(above + (i * LANES + j) * vector, zero), load(outputs + j * vector, zero), delta)
    if get(call, c.HAS_GRAD_LSE):
        at_lse = scratch + get(call, c.HIGHEST)
        for lane in range(LANES):
            number = load_number(get(rows + 8 * LANES * c.GRAD_LSE, lane), zero)
            store(at_lse + lane * itemsize(zero), number)
        delta = subtract(delta, load(at_lse, zero))
    return delta


@njit(error_model="numpy")
def _add(call, scratch, count, used, first, zero):
    """Add a chunk of keys to the gradients of the tile's queries, and the tile to those of the chunk's keys."""
    rows, vector = scratch + get(call, c.ROWS), LANES * itemsize(zero)
    keys, values, bits = (scratch + get(call, c.KEYS), scratch + get(call, c.VALUES), scratch + get(call, c.KEY_BITS))
    weights, grads = scratch + get(call, c.SCORES), scratch + get(call, c.GRAD_SCORES)
    channels, value_channels = get(call, c.CHANNELS), get(call, c.VALUE_CHANNELS)
    queries, above = scratch + get(call, c.QUERY_COLUMNS), scratch + get(call, c.GRAD_OUTPUT_COLUMNS)
    wanted = get(call, c.WANTED)
    scores(keys, bits, count, LANES * channels, queries, weights, masked(zero))
    lse, delta = load(scratch + get(call, c.HIGHEST), zero), load(scratch + get(call, c.TOTAL), zero)
    if wanted & (c.WANT_QUERY | c.WANT_KEY):
        scores(values, bits, count, LANES * value_channels, above, grads, masked(zero))
        scale = splat(convert(load_number(call + 8 * c.SCALE, 0.0), zero))
        for i in range(count):
            score = load(weights + i * vector, zero)
            weight = unless_masked(score, exp(subtract(score, lse)))
            store(weights + i * vector, weight)
            grad = multiply(multiply(weight, scale), subtract(load(grads + i * vector, zero), delta))
            store(grads + i * vector, unless_masked(score, grad))
    else:
        for i in range(count):
            score = load(weights + i * vector, zero)
            store(weights + i * vector, unless_masked(score, exp(subtract(score, lse))))
    if wanted & c.WANT_VALUE:
        rows_above, into = rows + 8 * LANES * c.GRAD_OUTPUT, scratch + get(call, c.GRAD_VALUES)
        sum_queries(weights, rows_above, used, into, count, value_channels, zero)
    if wanted & c.WANT_KEY:
        rows_query, into = rows + 8 * LANES * c.QUERY, scratch + get(call, c.GRAD_KEYS)
        sum_queries(grads, rows_query, used, into, count, channels, zero)
    if wanted & c.WANT_QUERY:
        sum_keys(grads, keys, count, rows + 8 * LANES * c.GRAD_QUERY, used, channels, not first, zero)
