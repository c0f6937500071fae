"""The walk of a tile of queries through its box of keys, chunk by chunk. The rules of windows are in tables.

A tile is up to 16 queries of one dilation group, a lane each. Along each axis, a table says which keys each query's
window covers; from it comes, for each key along the axis, the set of queries that attend to it: 16 bits. A key is
attended where it is along every axis, so its bits are the axes' and-ed. Keys without any are left out.
"""

from __future__ import annotations

from numba import njit

from vicinal.backends.numba.kernels import call as c
from vicinal.backends.numba.kernels.call import get, row_of, stride_of
from vicinal.backends.numba.kernels.products import FEWEST_SCORES
from vicinal.backends.numba.kernels.vectors import LANES, load_bits, load_int, store_bits, store_int


@njit(error_model="numpy")
def tile_of(call, axis, index):
    """Address of an axis' tile."""
    return get(call, c.AXIS + c.AXIS_FIELDS * axis + c.TILES) + 8 * c.TILE_FIELDS * index


@njit(error_model="numpy")
def find_bits(call, scratch, axis, tile):
    """Which queries attend to each key of the tile's box, along one axis."""
    bits = scratch + get(call, c.AXIS_BITS + axis)
    keys = get(tile, c.KEY_COUNT)
    for i in range(keys + 1):
        store_bits(bits + 2 * i, 0)
    windows = get(call, c.AXIS + c.AXIS_FIELDS * axis + c.WINDOWS) + 16 * get(tile, c.FIRST_WINDOW)
    lanes = get(call, c.LANE_BITS) + 8 * LANES * axis
    for i in range(get(tile, c.QUERY_COUNT)):  # change at both ends of every window ...
        own = get(lanes, i)
        for end in range(2):
            place = bits + 2 * get(windows, 2 * i + end)
            store_bits(place, load_bits(place) ^ own)
    now = 0
    for i in range(keys):  # ... and between, stay
        now ^= load_bits(bits + 2 * i)
        store_bits(bits + 2 * i, now)


@njit(error_model="numpy")
def find_rows(call, scratch, tensor, batch, head, tile0, tile1, tile2, unread):
    """Addresses of the tile's 16 rows of a tensor; one past the last lane that has a query.

    Lanes without a query get the tile's first row, or `unread` where that is not 0.
    """
    rows = scratch + get(call, c.ROWS) + 8 * LANES * tensor
    first = row_of(call, tensor, batch, head)
    step0 = stride_of(call, tensor, 0)
    step1 = stride_of(call, tensor, 1)
    step2 = stride_of(call, tensor, 2)
    first += get(tile0, c.FIRST_QUERY) * step0 + get(tile1, c.FIRST_QUERY) * step1 + get(tile2, c.FIRST_QUERY) * step2
    step0 *= get(call, c.AXIS + c.DILATION)
    step1 *= get(call, c.AXIS + c.AXIS_FIELDS + c.DILATION)
    step2 *= get(call, c.AXIS + 2 * c.AXIS_FIELDS + c.DILATION)
    count0, count1, count2 = get(tile0, c.QUERY_COUNT), get(tile1, c.QUERY_COUNT), get(tile2, c.QUERY_COUNT)
    places = get(call, c.LANE_PLACES)
    used = 0
    for lane in range(LANES):
        place0, place1, place2 = get(places, lane), get(places, LANES + lane), get(places, 2 * LANES + lane)
        if place0 < count0 and place1 < count1 and place2 < count2:
            store_int(rows + 8 * lane, first + place0 * step0 + place1 * step1 + place2 * step2)
            used = lane + 1
        else:
            store_int(rows + 8 * lane, first if unread == 0 else unread)
    return used


@njit(error_model="numpy")
def begin(call, scratch):
    """Set the walk to the start of the box."""
    for place in range(4):
        store_int(scratch + get(call, c.POSITION) + 8 * place, 0)


@njit(error_model="numpy")
def keys_of(call, tile0, tile1, tile2):
    """How many keys the walk meets at most."""
    return get(tile0, c.KEY_COUNT) * get(tile1, c.KEY_COUNT) * get(tile2, c.KEY_COUNT) + get(call, c.ADDITIONAL)


@njit(error_model="numpy")
def chunk(call, scratch, batch, head, tile0, tile1, tile2, size, part):
    """The next `size` keys that have any query, or the last: addresses and bits. How many; 0 at the end.

    Additional keys come first, then the box.
    `part`: also the addresses of their gradients, in that part; none if negative.
    """
    found = _collect(call, scratch, batch, head, tile0, tile1, tile2, size, part)
    keys, values = scratch + get(call, c.KEYS), scratch + get(call, c.VALUES)
    bits = scratch + get(call, c.KEY_BITS)
    if found > 0:
        for i in range(found, FEWEST_SCORES):  # computed, for no query
            store_int(keys + 8 * i, load_int(keys))
            store_int(values + 8 * i, load_int(values))
            store_bits(bits + 2 * i, 0)
    return found


@njit(error_model="numpy")
def _collect(call, scratch, batch, head, tile0, tile1, tile2, size, part):
    position = scratch + get(call, c.POSITION)
    keys, values = scratch + get(call, c.KEYS), scratch + get(call, c.VALUES)
    grad_keys, grad_values = scratch + get(call, c.GRAD_KEYS), scratch + get(call, c.GRAD_VALUES)
    key_bits = scratch + get(call, c.KEY_BITS)
    bits0 = scratch + get(call, c.AXIS_BITS)
    bits1 = scratch + get(call, c.AXIS_BITS + 1)
    bits2 = scratch + get(call, c.AXIS_BITS + 2)
    count0, count1, count2 = get(tile0, c.KEY_COUNT), get(tile1, c.KEY_COUNT), get(tile2, c.KEY_COUNT)
    dilation0 = get(call, c.AXIS + c.DILATION)
    dilation1 = get(call, c.AXIS + c.AXIS_FIELDS + c.DILATION)
    dilation2 = get(call, c.AXIS + 2 * c.AXIS_FIELDS + c.DILATION)
    i0, i1, i2 = load_int(position), load_int(position + 8), load_int(position + 16)
    found = 0
    done = load_int(position + 24)
    while done < get(call, c.ADDITIONAL) and found < size:
        store_bits(key_bits + 2 * found, _lanes_of(call, tile0, tile1, tile2))
        store_int(keys + 8 * found, _additional(call, c.ADDITIONAL_KEY, batch, head, done))
        store_int(values + 8 * found, _additional(call, c.ADDITIONAL_VALUE, batch, head, done))
        if part >= 0:
            key, value = part * get(call, c.PART + 2), part * get(call, c.PART + 3)
            store_int(grad_keys + 8 * found, key + _additional(call, c.GRAD_ADDITIONAL_KEY, batch, head, done))
            store_int(grad_values + 8 * found, value + _additional(call, c.GRAD_ADDITIONAL_VALUE, batch, head, done))
        found += 1
        done += 1
        store_int(position + 24, done)
    while i0 < count0:
        of0 = load_bits(bits0 + 2 * i0)
        x0 = get(tile0, c.FIRST_KEY) + i0 * dilation0
        while i1 < count1:
            of1 = of0 & load_bits(bits1 + 2 * i1)
            if of1 != 0:
                x1 = get(tile1, c.FIRST_KEY) + i1 * dilation1
                x2 = get(tile2, c.FIRST_KEY) + i2 * dilation2
                key, key_step = _run(call, c.KEY, batch, head, x0, x1, x2, dilation2)
                value, value_step = _run(call, c.VALUE, batch, head, x0, x1, x2, dilation2)
                start, begun = i2, found
                while i2 < count2 and found < size:
                    bits = of1 & load_bits(bits2 + 2 * i2)
                    store_bits(key_bits + 2 * found, bits)
                    store_int(keys + 8 * found, key)
                    store_int(values + 8 * found, value)
                    key += key_step
                    value += value_step
                    i2 += 1
                    found += 1 if bits != 0 else 0
                if part >= 0:
                    key, key_step = _run(call, c.GRAD_KEY, batch, head, x0, x1, x2, dilation2)
                    value, value_step = _run(call, c.GRAD_VALUE, batch, head, x0, x1, x2, dilation2)
                    key += part * get(call, c.PART)
                    value += part * get(call, c.PART + 1)
                    for i in range(start, i2):
                        store_int(grad_keys + 8 * begun, key)
                        store_int(grad_values + 8 * begun, value)
                        key += key_step
                        value += value_step
                        begun += 1 if of1 & load_bits(bits2 + 2 * i) != 0 else 0
                if i2 < count2:
                    _stop(position, i0, i1, i2)
                    return found
            i1 += 1
            i2 = 0
        i0 += 1
        i1 = 0
    _stop(position, i0, i1, i2)
    return found


@njit(error_model="numpy")
def _lanes_of(call, tile0, tile1, tile2):
    """The lanes that have a query."""
    found = -1
    for axis, tile in ((0, tile0), (1, tile1), (2, tile2)):
        own = 0
        for place in range(get(tile, c.QUERY_COUNT)):
            own |= get(get(call, c.LANE_BITS) + 8 * LANES * axis, place)
        found &= own
    return found


@njit(error_model="numpy")
def _additional(call, tensor, batch, head, index):
    return row_of(call, tensor, batch, head) + index * stride_of(call, tensor, 0)


@njit(error_model="numpy")
def _run(call, tensor, batch, head, x0, x1, x2, dilation2):
    """Address of a row, and how far it is to the next along the last axis."""
    step = stride_of(call, tensor, 2)
    row = row_of(call, tensor, batch, head) + x0 * stride_of(call, tensor, 0) + x1 * stride_of(call, tensor, 1)
    return row + x2 * step, dilation2 * step


@njit(error_model="numpy")
def _stop(position, i0, i1, i2):
    store_int(position, i0)
    store_int(position + 8, i1)
    store_int(position + 16, i2)
