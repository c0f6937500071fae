"""The relative positional bias by lanes: for a key, the biases of a tile's 16 queries side by side.

The bias of a pair depends on the distance from query to key only, so that of a tile's lanes and a key depends on the
distance from the tile's first query to the key only, along each axis. A table holds these vectors for every such
distance, `[heads of a set, distances 0, distances 1, distances 2, 16]`; scores start from them, and their gradients
are added up in a table of this kind, lane by lane, which `gather` folds into the bias's.
"""

from __future__ import annotations

from numba import njit

from vicinal.backends.numba.kernels import call as c
from vicinal.backends.numba.kernels.call import axis_of, get, head_set
from vicinal.backends.numba.kernels.vectors import LANES, add_atomically, itemsize, load_number, splat, store


@njit(error_model="numpy")
def spread(call, zero):
    """Make the tables by lanes of all heads, 0 where a distance is in no window. Several threads may."""
    while True:
        task = add_atomically(call + 8 * c.NEXT_TASK, 1)
        if task >= get(call, c.HEADS):
            break
        own, head, place = _head(call, task)
        table = get(call, c.LANE_BIAS) + place
        for i in range(get(own, c.BIAS_HEAD) // (LANES * itemsize(zero))):
            store(table + i * LANES * itemsize(zero), splat(zero))
        _each(call, own, get(call, c.BIAS) + head * _size(own) * itemsize(zero), table, False, zero)


@njit(error_model="numpy")
def gather(call, zero):
    """The gradient of the bias from those by lanes, of all slots in turn. Several threads may."""
    while True:
        task = add_atomically(call + 8 * c.NEXT_TASK, 1)
        if task >= get(call, c.HEADS):
            break
        own, head, place = _head(call, task)
        into = get(call, c.GRAD_BIAS) + head * _size(own) * itemsize(zero)
        for i in range(_size(own)):
            store(into + i * itemsize(zero), zero)
        for slot in range(get(call, c.BATCHES) * get(call, c.PARTS)):
            _each(call, own, into, get(call, c.GRAD_LANE_BIAS) + slot * get(call, c.SLOT) + place, True, zero)


@njit(error_model="numpy")
def _head(call, index):
    """Of the head that is `index`th in the sets' order: its set, the head, bytes from the first table to its own."""
    number = 0
    while index >= get(head_set(call, number), c.HEAD_COUNT):
        index -= get(head_set(call, number), c.HEAD_COUNT)
        number += 1
    own = head_set(call, number)
    return own, get(get(own, c.OWN_HEADS), index), get(own, c.BIAS_FIRST) + index * get(own, c.BIAS_HEAD)


@njit(error_model="numpy")
def _size(own):
    """Biases of a head."""
    size = 1
    for axis in range(3):
        size *= 2 * get(axis_of(own, axis), c.WINDOW) - 1
    return size


@njit(error_model="numpy")
def _each(call, own, biases, table, folds, zero):
    """Copy every bias to where it is in a table by lanes; where it `folds`, add to every bias what is there."""
    size = itemsize(zero)
    places = get(own, c.LANE_PLACES)
    axis0, axis1, axis2 = axis_of(own, 0), axis_of(own, 1), axis_of(own, 2)
    width1, width2 = 2 * get(axis1, c.WINDOW) - 1, 2 * get(axis2, c.WINDOW) - 1
    for lane in range(LANES):
        if get(places, lane) == LANES:  # no tile has a query there
            continue
        # A distance from the first query less the lane's place is that from the lane's query.
        shift0, first0, beyond0 = _distances(axis0, get(places, lane))
        shift1, first1, beyond1 = _distances(axis1, get(places, LANES + lane))
        shift2, first2, beyond2 = _distances(axis2, get(places, 2 * LANES + lane))
        for i0 in range(first0, beyond0):
            for i1 in range(first1, beyond1):
                bias = biases + size * (((i0 - shift0) * width1 + i1 - shift1) * width2 - shift2)
                vector = table + i0 * get(own, c.BIAS_STEP) + i1 * get(own, c.BIAS_STEP + 1) + size * lane
                step = get(own, c.BIAS_STEP + 2)
                for i2 in range(first2, beyond2):
                    if folds:
                        number = load_number(bias + size * i2, zero) + load_number(vector + step * i2, zero)
                        store(bias + size * i2, number)
                    else:
                        store(vector + step * i2, load_number(bias + size * i2, zero))


@njit(error_model="numpy")
def _distances(axis, place):
    """From a place in the table to one among the biases, for the lane at `place`; the places that have a bias."""
    window = get(axis, c.WINDOW)
    shift = get(axis, c.REACH) + place - (window - 1)
    return shift, max(shift, 0), min(shift + 2 * window - 1, get(axis, c.OFFSETS))
