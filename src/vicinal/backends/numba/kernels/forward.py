"""The forward pass: softmax attention of tiles of 16 queries to their boxes of keys, online over chunks of keys.

A key that a query does not attend to has the score -inf there, whatever its product; a query all of whose scores are
-inf gets the output 0 and the log-sum-exp -inf.

Source: the online softmax of FlashAttention (arXiv 2205.14135, algorithm 1).
"""

from __future__ import annotations

from numba import njit

from vicinal.backends.numba.kernels import call as c
from vicinal.backends.numba.kernels.call import axis_of, get, head_set, put, rows_of
from vicinal.backends.numba.kernels.products import masked, scores, sum_keys
from vicinal.backends.numba.kernels.vectors import (
    LANES,
    add,
    add_atomically,
    convert,
    divide,
    exp,
    itemsize,
    load,
    load_number,
    logarithm,
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
def forward(call, biased, zero):
    """Take tasks while there are any; several threads may.

    `biased`: None, or anything for scores with a bias. `zero`: a number of the tensors' dtype.
    """
    thread = add_atomically(call + 8 * c.NEXT_THREAD, 1)
    scratch = get(call, c.SCRATCH) + thread * get(call, c.SCRATCH_BYTES)
    width = get(call, c.VALUE_CHANNELS) * LANES * itemsize(zero)
    for lane in range(LANES):
        put(rows_of(call, scratch, c.TENSORS), lane, scratch + get(call, c.OUTPUT_ROWS) + lane * width)
    store(scratch + get(call, c.ZEROS), splat(zero))
    put(scratch, c.NOW_PART, -1)
    number = 0
    while True:
        task = add_atomically(call + 8 * c.NEXT_TASK, 1)
        if task >= get(call, c.TASKS):
            break
        while number + 1 < get(call, c.SETS) and task >= get(head_set(call, number + 1), c.FIRST_TASK):
            number += 1  # tasks only grow
        _strip(call, scratch, head_set(call, number), task, biased, zero)


@njit(error_model="numpy")
def _strip(call, scratch, own, task, biased, zero):
    """Some tiles along the last axis, of one head."""
    count1, count2 = get(axis_of(own, 1), c.TILE_COUNT), get(axis_of(own, 2), c.TILE_COUNT)
    heads, spans, span = get(own, c.HEAD_COUNT), get(own, c.SPANS), get(call, c.SPAN)
    rest = task - get(own, c.FIRST_TASK)
    rest, index = rest // heads, rest % heads  # heads first: they are next to each other in memory
    rest, first2 = rest // spans, rest % spans * span
    batch, strip = rest // (get(own, c.STRIPS) // spans), rest % (get(own, c.STRIPS) // spans)
    head = get(get(own, c.OWN_HEADS), index)
    put(scratch, c.OWN, own)
    put(scratch, c.NOW_BATCH, batch)
    put(scratch, c.NOW_HEAD, head)
    put(scratch, c.NOW_KEY_HEAD, head // get(call, c.GROUP))
    put(scratch, c.NOW_BIAS, get(call, c.LANE_BIAS) + get(own, c.BIAS_FIRST) + index * get(own, c.BIAS_HEAD))
    find_tile(call, scratch, 0, strip // count1)
    find_tile(call, scratch, 1, strip % count1)
    for index2 in range(first2, min(first2 + span, count2)):
        find_tile(call, scratch, 2, index2)
        _tile(call, scratch, biased, zero)


@njit(error_model="numpy")
def _tile(call, scratch, biased, zero):
    used = find_rows(call, scratch, c.QUERY, 0)
    rows = rows_of(call, scratch, c.QUERY)
    vector = LANES * itemsize(zero)
    queries = scratch + get(call, c.QUERY_COLUMNS)
    scale = convert(load_number(call + 8 * c.SCALE, 0.0), zero)
    for i in range(get(call, c.CHANNELS)):
        transpose(rows, i * vector, scale, queries + i * LANES * vector)
    store(scratch + get(call, c.HIGHEST), masked(zero))
    store(scratch + get(call, c.TOTAL), splat(zero))
    size = begin(call, scratch)
    first = True
    while True:
        count = chunk(call, scratch, size, biased)
        if count == 0:
            break
        _attend(call, scratch, count, used, first, biased, zero)
        first = False
    if first:  # all keys are masked
        for i in range(used * get(call, c.VALUE_CHANNELS)):
            store(scratch + get(call, c.OUTPUT_ROWS) + i * vector, splat(zero))
    _finish(call, scratch, used, zero)


@njit(error_model="numpy")
def _attend(call, scratch, count, used, first, biased, zero):
    """Add a chunk of keys to the tile's outputs, which are not yet divided by their sums of weights."""
    at_scores, at_highest = scratch + get(call, c.SCORES), scratch + get(call, c.HIGHEST)
    at_total, at_output = scratch + get(call, c.TOTAL), scratch + get(call, c.OUTPUT_ROWS)
    output_rows = rows_of(call, scratch, c.TENSORS)
    vectors, vector = get(call, c.VALUE_CHANNELS), LANES * itemsize(zero)
    before = load(at_highest, zero)
    biases = where_given(biased, scratch + get(call, c.BIASES))
    highest = scores(
        scratch + get(call, c.KEYS), scratch + get(call, c.KEY_BITS), biases, count, LANES * get(call, c.CHANNELS),
        scratch + get(call, c.QUERY_COLUMNS), at_scores, before,
    )  # fmt: skip
    total = load(at_total, zero)
    reference = unless_masked(highest, highest)  # any finite number where all scores are -inf
    if not first:
        factors = exp(subtract(before, reference))
        total = multiply(total, factors)
        store(at_highest, factors)
        for lane in range(used):
            factor = splat(load_number(at_highest + lane * itemsize(zero), zero))
            row = at_output + lane * vectors * vector
            for i in range(vectors):
                store(row + i * vector, multiply(load(row + i * vector, zero), factor))
    store(at_highest, highest)
    for i in range(count):
        weight = exp(subtract(load(at_scores + i * vector, zero), reference))
        store(at_scores + i * vector, weight)
        total = add(total, weight)
    store(at_total, total)
    sum_keys(at_scores, scratch + get(call, c.VALUES), count, output_rows, used, vectors, not first, zero)


@njit(error_model="numpy")
def _finish(call, scratch, used, zero):
    """Write the tile's outputs and log-sum-exps."""
    find_rows(call, scratch, c.OUTPUT, -1)
    find_rows(call, scratch, c.LSE, -1)
    output_rows, lse_rows = rows_of(call, scratch, c.OUTPUT), rows_of(call, scratch, c.LSE)
    vectors, vector = get(call, c.VALUE_CHANNELS), LANES * itemsize(zero)
    at_lse, at_factor = scratch + get(call, c.HIGHEST), scratch + get(call, c.TOTAL)
    total = load(at_factor, zero)
    highest = load(at_lse, zero)
    store(at_lse, add(highest, logarithm(total)))
    store(at_factor, unless_masked(highest, divide(splat(convert(1.0, zero)), total)))
    for lane in range(used):
        into = get(output_rows, lane)
        if into == -1:
            continue
        row = scratch + get(call, c.OUTPUT_ROWS) + lane * vectors * vector
        factor = splat(load_number(at_factor + lane * itemsize(zero), zero))
        for i in range(vectors):
            store(into + i * vector, multiply(load(row + i * vector, zero), factor))
        store(get(lse_rows, lane), load_number(at_lse + lane * itemsize(zero), zero))
