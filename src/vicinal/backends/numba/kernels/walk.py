"""The walk of a tile of queries through its box of keys, chunk by chunk. The rules of windows are in tables.

A tile is up to 16 queries of one dilation group, a lane each. Along each axis, a table says which keys each query's
window covers; from it comes, for each key along the axis, the set of queries that attend to it: 16 bits. A key is
attended where it is along every axis, so its bits are the axes' and-ed. Keys without any are left out.
"""

from __future__ import annotations

from numba import njit

from vicinal.backends.numba.kernels import call as c
from vicinal.backends.numba.kernels.call import axis_of, get, put, row_of, rows_of, stride_of, tile_of
from vicinal.backends.numba.kernels.products import FEWEST_SCORES
from vicinal.backends.numba.kernels.vectors import LANES, load_bits, store_bits


@njit(error_model="numpy")
def find_tile(call, scratch, axis, index):
    """Set the tile along one axis: what it is, and which queries attend to each key of its box."""
    own = axis_of(get(scratch, c.OWN), axis)
    kind = get(own, c.KINDS)
    while get(kind, c.KIND_FIELDS + c.KIND_FIRST) <= index:  # a last kind without tiles ends them
        kind += 8 * c.KIND_FIELDS
    place, tiles = index - get(kind, c.KIND_FIRST), get(kind, c.KIND_TILES)
    group, number = get(kind, c.KIND_GROUP) + place // tiles, place % tiles
    run = get(own, c.RUNS) + 8 * get(kind, c.KIND_RUNS)
    while get(run, c.RUN_FIELDS + c.RUN_FIRST) <= number:  # a last run without tiles ends them
        run += 8 * c.RUN_FIELDS
    size, dilation = get(own, c.TILE_SIZE), get(own, c.DILATION)
    within, period = number - get(run, c.RUN_FIRST), get(run, c.PERIOD)
    turn = within // period
    fields = c.PATTERN_FIELDS + 2 * size
    pattern = get(own, c.PATTERNS) + 8 * fields * (get(run, c.RUN_PATTERN) + within % period)
    low = get(pattern, c.PATTERN_LOW) + turn * get(run, c.LOW_STEP)
    high = get(pattern, c.PATTERN_HIGH) + turn * get(run, c.HIGH_STEP)
    tile = tile_of(scratch, axis)
    query = get(kind, c.KIND_QUERY) + number * size
    put(tile, c.FIRST_QUERY, group + query * dilation)
    put(tile, c.QUERY_COUNT, get(pattern, c.PATTERN_QUERIES))
    put(tile, c.FIRST_KEY, group + low * dilation)
    put(tile, c.KEY_COUNT, high - low)
    put(tile, c.WINDOWS, pattern + 8 * c.PATTERN_FIELDS)
    put(tile, c.FIRST_OFFSET, low - query + get(own, c.REACH))
    _find_bits(call, scratch, axis)


@njit(error_model="numpy")
def _find_bits(call, scratch, axis):
    tile = tile_of(scratch, axis)
    bits = scratch + get(call, c.AXIS_BITS + axis)
    keys, windows = get(tile, c.KEY_COUNT), get(tile, c.WINDOWS)
    for i in range(keys + 1):
        store_bits(bits + 2 * i, 0)
    lanes = get(get(scratch, c.OWN), c.LANE_BITS) + 8 * LANES * axis
    for i in range(get(tile, c.QUERY_COUNT)):
        own = get(lanes, i)
        start, stop = bits + 2 * get(windows, 2 * i), bits + 2 * (keys - get(windows, 2 * i + 1))
        store_bits(start, load_bits(start) ^ own)
        store_bits(stop, load_bits(stop) ^ own)
    _between(bits, keys)


@njit(error_model="numpy")
def _find_own_bits(call, scratch):
    """Which queries attend to each key of the box, along each axis, where every query has a window of its own."""
    find_rows(call, scratch, c.CUTS, -1)
    rows, places = rows_of(call, scratch, c.CUTS), get(get(scratch, c.OWN), c.LANE_PLACES)
    for axis in range(3):
        tile = tile_of(scratch, axis)
        bits = scratch + get(call, c.AXIS_BITS + axis)
        keys, windows = get(tile, c.KEY_COUNT), get(tile, c.WINDOWS)
        for i in range(keys + 1):
            store_bits(bits + 2 * i, 0)
        for lane in range(LANES):
            cuts = get(rows, lane)
            if cuts == -1:
                continue
            place = get(places, axis * LANES + lane)
            start = get(windows, 2 * place) + load_bits(cuts + 4 * axis)
            stop = keys - get(windows, 2 * place + 1) - load_bits(cuts + 4 * axis + 2)
            for end in (bits + 2 * start, bits + 2 * stop):
                store_bits(end, load_bits(end) ^ (1 << lane))
        _between(bits, keys)


@njit(error_model="numpy")
def _between(bits, keys):
    """Of bits that change at both ends of every window, those of the windows."""
    now = 0
    for i in range(keys):
        now ^= load_bits(bits + 2 * i)
        store_bits(bits + 2 * i, now)


@njit(error_model="numpy")
def find_rows(call, scratch, tensor, unread):
    """Addresses of the tile's 16 rows of a tensor; one past the last lane that has a query.

    Lanes without a query get the tile's first row, or `unread` where that is not 0.
    """
    own, rows = get(scratch, c.OWN), rows_of(call, scratch, tensor)
    tile0, tile1, tile2 = tile_of(scratch, 0), tile_of(scratch, 1), tile_of(scratch, 2)
    first = row_of(call, tensor, get(scratch, c.NOW_BATCH), get(scratch, c.NOW_HEAD))
    step0 = stride_of(call, tensor, 0)
    step1 = stride_of(call, tensor, 1)
    step2 = stride_of(call, tensor, 2)
    first += get(tile0, c.FIRST_QUERY) * step0 + get(tile1, c.FIRST_QUERY) * step1 + get(tile2, c.FIRST_QUERY) * step2
    step0 *= get(axis_of(own, 0), c.DILATION)
    step1 *= get(axis_of(own, 1), c.DILATION)
    step2 *= get(axis_of(own, 2), c.DILATION)
    count0, count1, count2 = get(tile0, c.QUERY_COUNT), get(tile1, c.QUERY_COUNT), get(tile2, c.QUERY_COUNT)
    places = get(own, c.LANE_PLACES)
    used = 0
    for lane in range(LANES):
        place0, place1, place2 = get(places, lane), get(places, LANES + lane), get(places, 2 * LANES + lane)
        if place0 < count0 and place1 < count1 and place2 < count2:
            put(rows, lane, first + place0 * step0 + place1 * step1 + place2 * step2)
            used = lane + 1
        else:
            put(rows, lane, first if unread == 0 else unread)
    return used


@njit(error_model="numpy")
def begin(call, scratch):
    """Set the walk to the start of the box; how many keys to ask for at a time."""
    if get(call, c.ADDRESS + c.CUTS) != 0:
        _find_own_bits(call, scratch)
    for place in range(4):
        put(scratch, c.POSITION + place, 0)
    keys = get(call, c.ADDITIONAL)
    keys += (
        get(tile_of(scratch, 0), c.KEY_COUNT)
        * get(tile_of(scratch, 1), c.KEY_COUNT)
        * get(tile_of(scratch, 2), c.KEY_COUNT)
    )
    chunks = -(-keys // get(call, c.CHUNK))
    return -(-keys // chunks)


@njit(error_model="numpy")
def chunk(call, scratch, size, biased):
    """The next `size` keys that have any query, or the last: addresses and bits. How many; 0 at the end.

    Additional keys come first, then the box. In a backward pass also the addresses of their gradients. `biased`: None,
    or anything for the addresses of their biases.
    """
    found = _additional_keys(call, scratch, size, biased)
    found = _box(call, scratch, found, size, biased)
    keys, values = scratch + get(call, c.KEYS), scratch + get(call, c.VALUES)
    bits = scratch + get(call, c.KEY_BITS)
    if found > 0:
        for i in range(found, FEWEST_SCORES):  # computed, for no query
            put(keys, i, get(keys, 0))
            put(values, i, get(values, 0))
            if biased is not None:
                put(scratch + get(call, c.BIASES), i, scratch + get(call, c.ZEROS))
            store_bits(bits + 2 * i, 0)
    return found


@njit(error_model="numpy")
def _additional_keys(call, scratch, size, biased):
    done, found = get(scratch, c.POSITION + 3), 0
    if done == get(call, c.ADDITIONAL):
        return found
    batch, head, part = get(scratch, c.NOW_BATCH), get(scratch, c.NOW_KEY_HEAD), get(scratch, c.NOW_PART)
    lanes = _lanes(scratch)
    while done < get(call, c.ADDITIONAL) and found < size:
        store_bits(scratch + get(call, c.KEY_BITS) + 2 * found, lanes)
        put(scratch + get(call, c.KEYS), found, _additional(call, c.ADDITIONAL_KEY, batch, head, done))
        put(scratch + get(call, c.VALUES), found, _additional(call, c.ADDITIONAL_VALUE, batch, head, done))
        if part >= 0:
            key, value = part * get(call, c.PART_BYTES + 2), part * get(call, c.PART_BYTES + 3)
            key += _additional(call, c.GRAD_ADDITIONAL_KEY, batch, head, done)
            value += _additional(call, c.GRAD_ADDITIONAL_VALUE, batch, head, done)
            put(scratch + get(call, c.GRAD_KEYS), found, key)
            put(scratch + get(call, c.GRAD_VALUES), found, value)
        if biased is not None:
            put(scratch + get(call, c.BIASES), found, scratch + get(call, c.ZEROS))
            put(scratch + get(call, c.GRAD_BIASES), found, scratch + get(call, c.UNREAD))
        found += 1
        done += 1
    put(scratch, c.POSITION + 3, done)
    return found


@njit(error_model="numpy")
def _box(call, scratch, found, size, biased):
    """Those of the box after the `found` first ones; how many with these."""
    own, part = get(scratch, c.OWN), get(scratch, c.NOW_PART)
    tile0, tile1, tile2 = tile_of(scratch, 0), tile_of(scratch, 1), tile_of(scratch, 2)
    keys, values = scratch + get(call, c.KEYS), scratch + get(call, c.VALUES)
    key_bits = scratch + get(call, c.KEY_BITS)
    bits0 = scratch + get(call, c.AXIS_BITS)
    bits1 = scratch + get(call, c.AXIS_BITS + 1)
    bits2 = scratch + get(call, c.AXIS_BITS + 2)
    count0, count1, count2 = get(tile0, c.KEY_COUNT), get(tile1, c.KEY_COUNT), get(tile2, c.KEY_COUNT)
    dilation0 = get(axis_of(own, 0), c.DILATION)
    dilation1 = get(axis_of(own, 1), c.DILATION)
    dilation2 = get(axis_of(own, 2), c.DILATION)
    i0, i1, i2 = get(scratch, c.POSITION), get(scratch, c.POSITION + 1), get(scratch, c.POSITION + 2)
    while i0 < count0:
        of0 = load_bits(bits0 + 2 * i0)
        x0 = get(tile0, c.FIRST_KEY) + i0 * dilation0
        while i1 < count1:
            of1 = of0 & load_bits(bits1 + 2 * i1)
            if of1 != 0:
                x1 = get(tile1, c.FIRST_KEY) + i1 * dilation1
                x2 = get(tile2, c.FIRST_KEY) + i2 * dilation2
                key, key_step = _line(call, scratch, c.KEY, x0, x1, x2, dilation2)
                value, value_step = _line(call, scratch, c.VALUE, x0, x1, x2, dilation2)
                there, there_step = first_there = _line(call, scratch, c.KEY_MASK, x0, x1, x2, dilation2)
                start, begun = i2, found
                while i2 < count2 and found < size:
                    bits = of1 & load_bits(bits2 + 2 * i2) & load_bits(there)
                    store_bits(key_bits + 2 * found, bits)
                    put(keys, found, key)
                    put(values, found, value)
                    key += key_step
                    value += value_step
                    there += there_step
                    i2 += 1
                    found += 1 if bits != 0 else 0
                if biased is not None:
                    tables = scratch + get(call, c.BIASES), scratch + get(call, c.GRAD_BIASES)
                    offset, step = _bias_line(scratch, i0, i1, start)
                    bias = get(scratch, c.NOW_BIAS) + offset, step
                    grad_bias = get(scratch, c.NOW_GRAD_BIAS) + offset, step
                    _fill(tables, bias, grad_bias, begun, bits2, of1, first_there, start, i2)
                if part >= 0:
                    tables = scratch + get(call, c.GRAD_KEYS), scratch + get(call, c.GRAD_VALUES)
                    key, step = _line(call, scratch, c.GRAD_KEY, x0, x1, x2, dilation2)
                    grad_key = key + part * get(call, c.PART_BYTES), step
                    value, step = _line(call, scratch, c.GRAD_VALUE, x0, x1, x2, dilation2)
                    grad_value = value + part * get(call, c.PART_BYTES + 1), step
                    _fill(tables, grad_key, grad_value, begun, bits2, of1, first_there, start, i2)
                if i2 < count2:
                    _stop(scratch, i0, i1, i2)
                    return found
            i1 += 1
            i2 = 0
        i0 += 1
        i1 = 0
    _stop(scratch, i0, i1, i2)
    return found


@njit(error_model="numpy")
def _fill(tables, one, other, found, bits, of_others, there, start, stop):
    """Into two tables of a chunk the addresses of those keys from `start` to `stop` of a line that have any query.

    `one`, `other`: of each table the line's first address there, and the step to the next; `there`: of the key mask.
    """
    first, second = tables
    address, step = one
    other_address, other_step = other
    at_mask, mask_step = there
    for i in range(start, stop):
        put(first, found, address)
        put(second, found, other_address)
        address += step
        other_address += other_step
        found += 1 if of_others & load_bits(bits + 2 * i) & load_bits(at_mask) != 0 else 0
        at_mask += mask_step


@njit(error_model="numpy")
def _lanes(scratch):
    """The lanes that have a query."""
    lane_bits = get(get(scratch, c.OWN), c.LANE_BITS)
    found = -1
    for axis in range(3):
        own = 0
        for place in range(get(tile_of(scratch, axis), c.QUERY_COUNT)):
            own |= get(lane_bits + 8 * LANES * axis, place)
        found &= own
    return found


@njit(error_model="numpy")
def _additional(call, tensor, batch, head, index):
    return row_of(call, tensor, batch, head) + index * stride_of(call, tensor, 0)


@njit(error_model="numpy")
def _line(call, scratch, tensor, x0, x1, x2, dilation2):
    """Address of a row, and how far it is to the next along the last axis."""
    step = stride_of(call, tensor, 2)
    row = row_of(call, tensor, get(scratch, c.NOW_BATCH), get(scratch, c.NOW_KEY_HEAD))
    row += x0 * stride_of(call, tensor, 0) + x1 * stride_of(call, tensor, 1)
    return row + x2 * step, dilation2 * step


@njit(error_model="numpy")
def _bias_line(scratch, i0, i1, i2):
    """How far a box key's biases by lanes are from the head's first, and how far it is to the next key's."""
    steps = get(scratch, c.OWN) + 8 * c.BIAS_STEP
    offset = (get(tile_of(scratch, 0), c.FIRST_OFFSET) + i0) * get(steps, 0)
    offset += (get(tile_of(scratch, 1), c.FIRST_OFFSET) + i1) * get(steps, 1)
    return offset + (get(tile_of(scratch, 2), c.FIRST_OFFSET) + i2) * get(steps, 2), get(steps, 2)


@njit(error_model="numpy")
def _stop(scratch, i0, i1, i2):
    put(scratch, c.POSITION, i0)
    put(scratch, c.POSITION + 1, i1)
    put(scratch, c.POSITION + 2, i2)
