"""The forward pass: softmax attention of tiles of 16 queries to their boxes of keys, online over chunks of keys.

A key that a query does not attend to has the score -inf there, whatever its product; a query all of whose scores are
-inf gets the output 0 and the log-sum-exp -inf.

Source: the online softmax of FlashAttention (arXiv 2205.14135, algorithm 1).
"""

from __future__ import annotations

from numba import njit

from vicinal.backends.numba.kernels import call as c
from vicinal.backends.numba.kernels.call import get
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
    store_int,
    subtract,
    transpose,
    unless_masked,
)
from vicinal.backends.numba.kernels.walk import begin, chunk, find_bits, find_rows, keys_of, tile_of


@njit(error_model="numpy")
def forward(call, zero):
    """Take tasks while there are any; several threads may. `zero`: a number of the tensors' dtype."""
    thread = add_atomically(call + 8 * c.NEXT_THREAD, 1)
    scratch = get(call, c.SCRATCH) + thread * get(call, c.SCRATCH_BYTES)
    rows = scratch + get(call, c.ROWS) + 8 * LANES * c.TENSORS
    width = get(call, c.VALUE_CHANNELS) * LANES * itemsize(zero)
    for lane in range(LANES):
        store_int(rows + 8 * lane, scratch + get(call, c.OUTPUT_ROWS) + lane * width)
    heads, spans, span = get(call, c.HEADS), get(call, c.SPANS), get(call, c.SPAN)
    count1 = get(call, c.AXIS + c.AXIS_FIELDS + c.TILE_COUNT)
    count0 = get(call, c.AXIS + c.TILE_COUNT)
    count2 = get(call, c.AXIS + 2 * c.AXIS_FIELDS + c.TILE_COUNT)
    while True:
        task = add_atomically(call + 8 * c.NEXT_TASK, 1)
        if task >= get(call, c.TASKS):
            break
        # Heads first: they are next to each other in memory.
        rest, head = task // heads, task % heads
        rest, first2 = rest // spans, rest % spans * span
        rest, index1 = rest // count1, rest % count1
        batch, index0 = rest // count0, rest % count0
        tile0, tile1 = tile_of(call, 0, index0), tile_of(call, 1, index1)
        find_bits(call, scratch, 0, tile0)
        find_bits(call, scratch, 1, tile1)
        for index2 in range(first2, min(first2 + span, count2)):
            _tile(call, scratch, batch, head, tile0, tile1, tile_of(call, 2, index2), zero)


@njit(error_model="numpy")
def _tile(call, scratch, batch, head, tile0, tile1, tile2, zero):
    find_bits(call, scratch, 2, tile2)
    used = find_rows(call, scratch, c.QUERY, batch, head, tile0, tile1, tile2, 0)
    rows = scratch + get(call, c.ROWS)
    vector = LANES * itemsize(zero)
    queries = scratch + get(call, c.QUERY_COLUMNS)
    scale = convert(load_number(call + 8 * c.SCALE, 0.0), zero)
    for i in range(get(call, c.CHANNELS)):
        transpose(rows + 8 * LANES * c.QUERY, i * vector, scale, queries + i * LANES * vector)
    store(scratch + get(call, c.HIGHEST), masked(zero))
    store(scratch + get(call, c.TOTAL), splat(zero))
    keys = keys_of(call, tile0, tile1, tile2)
    chunks = -(-keys // get(call, c.CHUNK))
    size = -(-keys // chunks)
    begin(call, scratch)
    first = True
    while True:
        count = chunk(call, scratch, batch, head // get(call, c.GROUP), tile0, tile1, tile2, size, -1)
        if count == 0:
            break
        _attend(call, scratch, count, used, first, zero)
        first = False
    _finish(call, scratch, batch, head, tile0, tile1, tile2, used, zero)


@njit(error_model="numpy")
def _attend(call, scratch, count, used, first, zero):
    """Add a chunk of keys to the tile's outputs, which are not yet divided by their sums of weights."""
    at_scores, at_highest = scratch + get(call, c.SCORES), scratch + get(call, c.HIGHEST)
    at_total, at_output = scratch + get(call, c.TOTAL), scratch + get(call, c.OUTPUT_ROWS)
    output_rows = scratch + get(call, c.ROWS) + 8 * LANES * c.TENSORS
    vectors, vector = get(call, c.VALUE_CHANNELS), LANES * itemsize(zero)
    before = load(at_highest, zero)
    highest = scores(
        scratch + get(call, c.KEYS), scratch + get(call, c.KEY_BITS), count, LANES * get(call, c.CHANNELS),
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
def _finish(call, scratch, batch, head, tile0, tile1, tile2, used, zero):
    """Write the tile's outputs and log-sum-exps."""
    find_rows(call, scratch, c.OUTPUT, batch, head, tile0, tile1, tile2, -1)
    find_rows(call, scratch, c.LSE, batch, head, tile0, tile1, tile2, -1)
    rows = scratch + get(call, c.ROWS)
    vectors, vector = get(call, c.VALUE_CHANNELS), LANES * itemsize(zero)
    at_lse, at_factor = scratch + get(call, c.HIGHEST), scratch + get(call, c.TOTAL)
    total = load(at_factor, zero)
    highest = load(at_lse, zero)
    store(at_lse, add(highest, logarithm(total)))
    store(at_factor, unless_masked(highest, divide(splat(convert(1.0, zero)), total)))
    for lane in range(used):
        into = get(rows + 8 * LANES * c.OUTPUT, lane)
        if into == -1:
            continue
        row = scratch + get(call, c.OUTPUT_ROWS) + lane * vectors * vector
        factor = splat(load_number(at_factor + lane * itemsize(zero), zero))
        for i in range(vectors):
            store(into + i * vector, multiply(load(row + i * vector, zero), factor))
        store(get(rows + 8 * LANES * c.LSE, lane), load_number(at_lse + lane * itemsize(zero), zero))
