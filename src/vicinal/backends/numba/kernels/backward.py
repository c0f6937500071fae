"""The backward pass: weights again from the log-sum-exp, then five products per tile of 16 queries and chunk of keys.

A task has the gradients of its keys and values to itself: no two threads add to one. Where a score is -inf, which it
is for a query that does not attend, weight and gradient are 0 whatever the rest is. Products for gradients that nobody
needs are left out.

Source: FlashAttention (arXiv 2205.14135, algorithm 4), with the gradient of the log-sum-exp.
"""

from __future__ import annotations

from numba import njit

from vicinal.backends.numba.kernels import call as c
from vicinal.backends.numba.kernels.call import axis_of, get, head_set, put, row_of, rows_of, stride_of
from vicinal.backends.numba.kernels.products import ROWS_OF_KEYS, masked, scores, sum_keys, sum_queries
from vicinal.backends.numba.kernels.vectors import (
    LANES,
    add,
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
    subtract,
    transpose,
    unless_masked,
    where_given,
)
from vicinal.backends.numba.kernels.walk import begin, chunk, find_rows, find_tile


@njit(error_model="numpy")
def backward(call, biased, zero):
    """Take tasks while there are any; several threads may.

    `biased`: None, or anything for scores with a bias. `zero`: a number of the tensors' dtype.
    """
    thread = add_atomically(call + 8 * c.NEXT_THREAD, 1)
    scratch = get(call, c.SCRATCH) + thread * get(call, c.SCRATCH_BYTES)
    store(scratch + get(call, c.ZEROS), splat(zero))
    kv_heads = get(call, c.HEADS) // get(call, c.GROUP)
    parts, batches, batch = get(call, c.PARTS), get(call, c.BATCHES), get(call, c.BATCH)
    while True:
        task = add_atomically(call + 8 * c.NEXT_TASK, 1)
        if task >= get(call, c.TASKS):
            break
        slot, kv_head = task // kv_heads, task % kv_heads
        interval, part = slot // parts, slot % parts
        put(scratch, c.NOW_KEY_HEAD, kv_head)
        put(scratch, c.NOW_PART, part)
        if biased is not None:
            _clear_biases(call, kv_head, slot, zero)
        for now in range(batch * interval // batches, batch * (interval + 1) // batches):
            put(scratch, c.NOW_BATCH, now)
            for which in range(4):
                if get(call, c.WANTED) & (c.WANT_KEY if which % 2 == 0 else c.WANT_VALUE):
                    _clear(call, scratch, which, zero)
            for number in range(get(call, c.SETS)):
                put(scratch, c.OWN, head_set(call, number))
                _strips(call, scratch, slot, biased, zero)


@njit(error_model="numpy")
def _strips(call, scratch, slot, biased, zero):
    """A part of the strips of tiles of a head set, for those of its heads that share the key head."""
    own, kv_head, part = get(scratch, c.OWN), get(scratch, c.NOW_KEY_HEAD), get(scratch, c.NOW_PART)
    count1, count2 = get(axis_of(own, 1), c.TILE_COUNT), get(axis_of(own, 2), c.TILE_COUNT)
    spans, span = get(own, c.SPANS), get(call, c.SPAN)
    strips, parts = get(own, c.STRIPS), get(call, c.PARTS)
    first_head, beyond = get(get(own, c.GROUP_HEADS), kv_head), get(get(own, c.GROUP_HEADS), kv_head + 1)
    if first_head == beyond:
        return
    for strip in range(strips * part // parts, strips * (part + 1) // parts):
        rest, first2 = strip // spans, strip % spans * span
        find_tile(call, scratch, 0, rest // count1)
        find_tile(call, scratch, 1, rest % count1)
        for index2 in range(first2, min(first2 + span, count2)):
            find_tile(call, scratch, 2, index2)
            for index in range(first_head, beyond):
                put(scratch, c.NOW_HEAD, get(get(own, c.OWN_HEADS), index))
                place = get(own, c.BIAS_FIRST) + index * get(own, c.BIAS_HEAD)
                put(scratch, c.NOW_BIAS, get(call, c.LANE_BIAS) + place)
                put(scratch, c.NOW_GRAD_BIAS, get(call, c.GRAD_LANE_BIAS) + slot * get(call, c.SLOT) + place)
                _tile(call, scratch, biased, zero)


@njit(error_model="numpy")
def _clear(call, scratch, which, zero):
    """Set one of a task's gradients to zero: of keys, values, additional keys or additional values."""
    tensor = c.GRAD_KEY + which
    vectors = get(call, c.CHANNELS if which % 2 == 0 else c.VALUE_CHANNELS)
    lengths = c.LENGTHS if which < 2 else c.ADDITIONAL
    first = row_of(call, tensor, get(scratch, c.NOW_BATCH), get(scratch, c.NOW_KEY_HEAD))
    first += get(scratch, c.NOW_PART) * get(call, c.PART_BYTES + which)
    if which < 2:
        for axis in range(3):
            first += get(call, c.KEY_STARTS + axis) * stride_of(call, tensor, axis)
    count1, count2 = (get(call, c.LENGTHS + 1), get(call, c.LENGTHS + 2)) if which < 2 else (1, 1)
    for x0 in range(get(call, lengths)):
        for x1 in range(count1):
            row = first + x0 * stride_of(call, tensor, 0) + x1 * stride_of(call, tensor, 1)
            for _ in range(count2):
                for i in range(vectors):
                    store(row + i * LANES * itemsize(zero), splat(zero))
                row += stride_of(call, tensor, 2)


@njit(error_model="numpy")
def _clear_biases(call, kv_head, slot, zero):
    """Set the gradients of the biases by lanes to zero, of a task's heads."""
    if not get(call, c.WANTED) & c.WANT_BIAS:
        return
    for number in range(get(call, c.SETS)):
        own = head_set(call, number)
        for index in range(get(get(own, c.GROUP_HEADS), kv_head), get(get(own, c.GROUP_HEADS), kv_head + 1)):
            into = get(call, c.GRAD_LANE_BIAS) + slot * get(call, c.SLOT)
            into += get(own, c.BIAS_FIRST) + index * get(own, c.BIAS_HEAD)
            for i in range(get(own, c.BIAS_HEAD) // (LANES * itemsize(zero))):
                store(into + i * LANES * itemsize(zero), splat(zero))


@njit(error_model="numpy")
def _tile(call, scratch, biased, zero):
    used = find_rows(call, scratch, c.QUERY, 0)
    unread = scratch + get(call, c.UNREAD)
    if get(call, c.WANTED) & c.WANT_QUERY:
        find_rows(call, scratch, c.GRAD_QUERY, unread)
    find_rows(call, scratch, c.OUTPUT, 0)
    find_rows(call, scratch, c.GRAD_OUTPUT, 0)
    find_rows(call, scratch, c.LSE, 0)
    if get(call, c.HAS_GRAD_LSE):
        find_rows(call, scratch, c.GRAD_LSE, 0)
    _columns(call, scratch, zero)
    size = begin(call, scratch)
    first = True
    while True:
        count = chunk(call, scratch, size, biased)
        if count == 0:
            break
        for i in range(count, count + ROWS_OF_KEYS - 1):
            put(scratch + get(call, c.GRAD_KEYS), i, unread)
            put(scratch + get(call, c.GRAD_VALUES), i, unread)
        _weigh(call, scratch, count, biased, zero)
        _add(call, scratch, count, used, first, zero)
        first = False
    if first:  # all keys are masked
        _clear_queries(call, scratch, used, zero)


@njit(error_model="numpy")
def _clear_queries(call, scratch, used, zero):
    """Set the gradients of the tile's queries to zero."""
    if get(call, c.WANTED) & c.WANT_QUERY:
        for lane in range(used):
            row = get(rows_of(call, scratch, c.GRAD_QUERY), lane)
            for i in range(get(call, c.CHANNELS)):
                store(row + i * LANES * itemsize(zero), splat(zero))


@njit(error_model="numpy")
def _columns(call, scratch, zero):
    """Queries and gradients of outputs as columns; what is subtracted from scores (0 for -inf), and from gradients."""
    vector = LANES * itemsize(zero)
    scale = convert(load_number(call + 8 * c.SCALE, 0.0), zero)
    queries = scratch + get(call, c.QUERY_COLUMNS)
    for i in range(get(call, c.CHANNELS)):
        transpose(rows_of(call, scratch, c.QUERY), i * vector, scale, queries + i * LANES * vector)
    at_lse, at_delta = scratch + get(call, c.HIGHEST), scratch + get(call, c.TOTAL)
    if get(call, c.WANTED) & (c.WANT_QUERY | c.WANT_KEY | c.WANT_BIAS):
        store(at_delta, _delta(call, scratch, zero))
    lse = _numbers(call, scratch, c.LSE, at_lse, zero)
    store(at_lse, unless_masked(lse, lse))


@njit(error_model="numpy")
def _delta(call, scratch, zero):
    """Gradients of outputs as columns; what is subtracted from gradients of scores."""
    vector = LANES * itemsize(zero)
    above, outputs = scratch + get(call, c.GRAD_OUTPUT_COLUMNS), scratch + get(call, c.OUTPUT_ROWS)
    one = convert(1.0, zero)
    delta = splat(zero)
    for i in range(get(call, c.VALUE_CHANNELS)):
        transpose(rows_of(call, scratch, c.GRAD_OUTPUT), i * vector, one, above + i * LANES * vector)
        transpose(rows_of(call, scratch, c.OUTPUT), i * vector, one, outputs)
        for j in range(LANES):
            delta = fma(load(above + (i * LANES + j) * vector, zero), load(outputs + j * vector, zero), delta)
    if get(call, c.HAS_GRAD_LSE):
        delta = subtract(delta, _numbers(call, scratch, c.GRAD_LSE, scratch + get(call, c.HIGHEST), zero))
    return delta


@njit(error_model="numpy")
def _numbers(call, scratch, tensor, at, zero):
    """The numbers of the tile's queries, by way of the memory `at`."""
    rows = rows_of(call, scratch, tensor)
    for lane in range(LANES):
        store(at + lane * itemsize(zero), load_number(get(rows, lane), zero))
    return load(at, zero)


@njit(error_model="numpy")
def _weigh(call, scratch, count, biased, zero):
    """The weights of a chunk of keys and the gradients of their scores."""
    keys, values, bits = scratch + get(call, c.KEYS), scratch + get(call, c.VALUES), scratch + get(call, c.KEY_BITS)
    weights, grads = scratch + get(call, c.SCORES), scratch + get(call, c.GRAD_SCORES)
    channels, value_channels = LANES * get(call, c.CHANNELS), LANES * get(call, c.VALUE_CHANNELS)
    queries, above = scratch + get(call, c.QUERY_COLUMNS), scratch + get(call, c.GRAD_OUTPUT_COLUMNS)
    wanted, vector = get(call, c.WANTED), LANES * itemsize(zero)
    biases = where_given(biased, scratch + get(call, c.BIASES))
    scores(keys, bits, biases, count, channels, queries, weights, masked(zero))
    lse, delta = load(scratch + get(call, c.HIGHEST), zero), load(scratch + get(call, c.TOTAL), zero)
    if not wanted & (c.WANT_QUERY | c.WANT_KEY | c.WANT_BIAS):
        for i in range(count):
            score = load(weights + i * vector, zero)
            store(weights + i * vector, unless_masked(score, exp(subtract(score, lse))))
        return
    scores(values, bits, None, count, value_channels, above, grads, masked(zero))
    scale = splat(convert(load_number(call + 8 * c.SCALE, 0.0), zero))
    for i in range(count):
        score = load(weights + i * vector, zero)
        weight = unless_masked(score, exp(subtract(score, lse)))
        store(weights + i * vector, weight)
        grad = multiply(weight, subtract(load(grads + i * vector, zero), delta))
        grad = unless_masked(score, grad)
        if biased is not None:
            if wanted & c.WANT_BIAS:
                into = get(scratch + get(call, c.GRAD_BIASES), i)
                store(into, add(load(into, zero), grad))
        store(grads + i * vector, multiply(grad, scale))


@njit(error_model="numpy")
def _add(call, scratch, count, used, first, zero):
    """Add a chunk of keys to the gradients of the tile's queries, and the tile to those of the chunk's keys."""
    weights, grads = scratch + get(call, c.SCORES), scratch + get(call, c.GRAD_SCORES)
    channels, value_channels = get(call, c.CHANNELS), get(call, c.VALUE_CHANNELS)
    wanted = get(call, c.WANTED)
    if wanted & c.WANT_VALUE:
        rows, into = rows_of(call, scratch, c.GRAD_OUTPUT), scratch + get(call, c.GRAD_VALUES)
        sum_queries(weights, rows, used, into, count, value_channels, zero)
    if wanted & c.WANT_KEY:
        rows, into = rows_of(call, scratch, c.QUERY), scratch + get(call, c.GRAD_KEYS)
        sum_queries(grads, rows, used, into, count, channels, zero)
    if wanted & c.WANT_QUERY:
        keys, into = scratch + get(call, c.KEYS), rows_of(call, scratch, c.GRAD_QUERY)
        sum_keys(grads, keys, count, into, used, channels, not first, zero)
