"""What a kernel is told: 64-bit integers at one address, by place. `vicinal.backends.numba.plan` fills them in.

All lengths of memory are in bytes. A tensor has five strides: batch, three spatial axes, head. Problems of one or two
axes have leading axes of length 1.
"""

from __future__ import annotations

from numba import njit

from vicinal.backends.numba.kernels.vectors import load_int

# Counters that threads share; each in a cache line of its own.
NEXT_TASK = 0
NEXT_THREAD = 8

# Tensors: address and strides. Additional keys and values have one axis, the first.
ADDRESS = 16
QUERY, KEY, VALUE, ADDITIONAL_KEY, ADDITIONAL_VALUE, OUTPUT, LSE, GRAD_OUTPUT, GRAD_LSE = range(9)
GRAD_QUERY, GRAD_KEY, GRAD_VALUE, GRAD_ADDITIONAL_KEY, GRAD_ADDITIONAL_VALUE = range(9, 14)
OF_ADDITIONAL = (ADDITIONAL_KEY, ADDITIONAL_VALUE, GRAD_ADDITIONAL_KEY, GRAD_ADDITIONAL_VALUE)
TENSORS = 14
STRIDE = ADDRESS + TENSORS
STRIDES = 5
HEAD = 4  # place among a tensor's strides; the batch's is 0, an axis' is 1 + axis

# Sizes.
HEADS = STRIDE + TENSORS * STRIDES
GROUP = HEADS + 1  # query heads per key head
CHANNELS = HEADS + 2  # of queries and keys, in 16ths
VALUE_CHANNELS = HEADS + 3
LENGTHS = HEADS + 4  # of three axes, then the number of additional keys
ADDITIONAL = LENGTHS + 3
CHUNK = HEADS + 8  # most keys whose scores are held at a time
SPAN = HEADS + 9  # tiles of the last axis per task
SPANS = HEADS + 10
TASKS = HEADS + 11
SCALE = HEADS + 12  # the bits of a float64
PARTS = HEADS + 13  # backward: tasks per batch element and key head
PART = HEADS + 14  # backward: from one part to the next, of the gradients of keys, values, additional keys and values
HAS_GRAD_LSE = HEADS + 18
WANTED = HEADS + 19  # backward: whose gradients, of additional keys and values with the others
WANT_QUERY, WANT_KEY, WANT_VALUE = 1, 2, 4

# Axes: for each of three, the address and number of tiles, the address of windows, the distance of neighbors.
AXIS = HEADS + 20
AXIS_FIELDS = 4
TILES, TILE_COUNT, WINDOWS, DILATION = range(AXIS_FIELDS)
# A tile: first query and first key (coordinates), how many of each, place of its first query's window.
TILE_FIELDS = 5
FIRST_QUERY, QUERY_COUNT, FIRST_KEY, KEY_COUNT, FIRST_WINDOW = range(TILE_FIELDS)

# Lanes: for each axis and lane, the lane's place along the axis; for each axis and place, the lanes that are there.
LANE_PLACES = AXIS + 3 * AXIS_FIELDS
LANE_BITS = LANE_PLACES + 1

# Scratch memory: address, bytes per thread, and where in a thread's is what.
SCRATCH = LANE_BITS + 1
SCRATCH_BYTES = SCRATCH + 1
PLACES = SCRATCH + 2
(
    QUERY_COLUMNS,  # [channels, 16], scaled
    GRAD_OUTPUT_COLUMNS,  # [value channels, 16]
    OUTPUT_ROWS,  # [16, value channels]; in the backward pass [value channels, 16]
    SCORES,  # [chunk, 16]
    GRAD_SCORES,  # [chunk, 16]
    HIGHEST,  # [16] each
    TOTAL,
    UNREAD,  # one row of channels, for what is computed in vain
    ROWS,  # addresses of the tile's 16 rows of each tensor, then of `OUTPUT_ROWS`
    KEYS,  # addresses of a chunk's keys, of its values and of their gradients
    VALUES,
    GRAD_KEYS,
    GRAD_VALUES,
    KEY_BITS,  # which queries attend to each
    AXIS_BITS,  # which queries attend to each key of the tile's box, along one axis; for each axis
    _,
    _,
    POSITION,  # where the walk through the box is, along each axis
) = range(PLACES, PLACES + 18)
LENGTH = POSITION + 1  # of the array


@njit(error_model="numpy")
def get(call, place):
    return load_int(call + 8 * place)


@njit(error_model="numpy")
def row_of(call, tensor, batch, head):
    """Address of a tensor's first token."""
    stride = STRIDE + STRIDES * tensor
    return get(call, ADDRESS + tensor) + batch * get(call, stride) + head * get(call, stride + HEAD)


@njit(error_model="numpy")
def stride_of(call, tensor, axis):
    return get(call, STRIDE + STRIDES * tensor + 1 + axis)
