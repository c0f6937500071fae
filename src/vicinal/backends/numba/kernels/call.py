"""What a kernel is told: 64-bit integers at one address, by place. `vicinal.backends.numba.plan` fills them in.

All lengths of memory are in bytes. A tensor has five strides: batch, three spatial axes, head. Problems of one or two
axes have leading axes of length 1. Tokens are numbered from the axis' first, also where queries or keys are a part of
the axis that begins later: addresses are those that the first token would have. After the call's own integers come
those of its head sets: heads that share a neighborhood, with their tiles.
"""

from __future__ import annotations

from numba import njit

from vicinal.backends.numba.kernels.vectors import LANES, load_int, store_int

# Counters that threads share; each in a cache line of its own.
NEXT_TASK = 0
NEXT_THREAD = 8

# Tensors: address and strides. Additional keys and values have one axis, the first.
ADDRESS = 16
QUERY, KEY, VALUE, ADDITIONAL_KEY, ADDITIONAL_VALUE, OUTPUT, LSE, GRAD_OUTPUT, GRAD_LSE = range(9)
GRAD_QUERY, GRAD_KEY, GRAD_VALUE, GRAD_ADDITIONAL_KEY, GRAD_ADDITIONAL_VALUE = range(9, 14)
KEY_MASK = 14  # 16 bits for each key, all 1, or 0 where it is masked; without a mask one for all keys
# Of each query, how much its own window is shorter than the neighborhood's at its start and its end along three axes,
# 16 bits each (`vicinal.backends.numba.cuts`); the address is 0 without windows per token.
CUTS = 15
OF_ADDITIONAL = (ADDITIONAL_KEY, ADDITIONAL_VALUE, GRAD_ADDITIONAL_KEY, GRAD_ADDITIONAL_VALUE)
TENSORS = 16
STRIDE = ADDRESS + TENSORS
STRIDES = 5
HEAD_STRIDE = 4  # place among a tensor's strides; the batch's is 0, an axis' is 1 + axis

# The relative positional bias, and the same by lanes (`vicinal.backends.numba.kernels.bias`); contiguous.
BIAS = STRIDE + TENSORS * STRIDES
LANE_BIAS = BIAS + 1
GRAD_BIAS = BIAS + 2
GRAD_LANE_BIAS = BIAS + 3  # one after the other for every slot
SLOT = BIAS + 4  # from one to the next

# Sizes.
HEADS = BIAS + 5
GROUP = HEADS + 1  # query heads per key head
CHANNELS = HEADS + 2  # of queries and keys, in 16ths
VALUE_CHANNELS = HEADS + 3
LENGTHS = HEADS + 4  # of the keys along three axes, then the number of additional keys
ADDITIONAL = LENGTHS + 3
CHUNK = HEADS + 8  # most keys whose scores are held at a time
SPAN = HEADS + 9  # tiles of the last axis per task
TASKS = HEADS + 10
SCALE = HEADS + 11  # the bits of a float64
SETS = HEADS + 12  # how many
# Backward: a task is a key head, some batch elements, and a part of their strips of tiles.
BATCH = HEADS + 13
BATCHES = HEADS + 14  # intervals of the batch
PARTS = HEADS + 15
PART_BYTES = HEADS + 16  # from one part to the next, of the gradients of keys, values, additional keys and values
HAS_GRAD_LSE = HEADS + 20
WANTED = HEADS + 21  # whose gradients, of additional keys and values with the others
WANT_QUERY, WANT_KEY, WANT_VALUE, WANT_BIAS = 1, 2, 4, 8
KEY_STARTS = HEADS + 22  # the first key along three axes

# Scratch memory: address, bytes per thread, and where in a thread's is what, after its `STATE_LENGTH` integers.
SCRATCH = HEADS + 25
SCRATCH_BYTES = SCRATCH + 1
(
    QUERY_COLUMNS,  # [channels, 16], scaled
    GRAD_OUTPUT_COLUMNS,  # [value channels, 16]
    OUTPUT_ROWS,  # [16, value channels]; in the backward pass [value channels, 16]
    SCORES,  # [chunk, 16]
    GRAD_SCORES,  # [chunk, 16]
    HIGHEST,  # [16] each
    TOTAL,
    ZEROS,  # the bias of additional keys
    UNREAD,  # one row of channels, for what is computed in vain
    ROWS,  # addresses of the tile's 16 rows of each tensor, then of `OUTPUT_ROWS`
    KEYS,  # of a chunk's keys the addresses: of their rows, of their values', of their gradients'
    VALUES,
    GRAD_KEYS,
    GRAD_VALUES,
    BIASES,  # and of the biases by lanes
    GRAD_BIASES,
    KEY_BITS,  # which queries attend to each
    AXIS_BITS,  # which queries attend to each key of the tile's box, along one axis; for each axis
    _,
    _,
) = range(SCRATCH + 2, SCRATCH + 22)
LENGTH = SCRATCH + 22  # then the head sets

# A head set: its heads, and where among them a key head's are; its tasks (forward), or strips of tiles; its lanes.
FIRST_TASK = 0
OWN_HEADS = 1  # address
HEAD_COUNT = 2
GROUP_HEADS = 3  # address of the first of each key head's, and of the end
SPANS = 4  # of tiles, along the last axis
STRIPS = 5
LANE_PLACES = 6  # address: for each axis and lane, the lane's place along the axis
LANE_BITS = 7  # address: for each axis and place, the lanes that are there
BIAS_FIRST = 8  # bytes from `LANE_BIAS` to the set's first head
BIAS_HEAD = 9  # from a head to the next
BIAS_STEP = 10  # along each axis
AXIS = 13
# For each of three axes: its tiles (`vicinal.backends.numba.tables`).
AXIS_FIELDS = 9
(
    TILE_COUNT,
    TILE_SIZE,
    DILATION,
    KINDS,  # address
    RUNS,  # address
    PATTERNS,  # address
    WINDOW,
    REACH,  # a key may be so far before the first query of a tile
    OFFSETS,  # distances from the first query of a tile to a key, how many
) = range(AXIS_FIELDS)
SET_FIELDS = AXIS + 3 * AXIS_FIELDS
# A kind of dilation groups that are alike: its first tile, tiles of each group, the first group, where in the tables
# their runs begin (in integers), the position of each group's first query.
KIND_FIELDS = 5
KIND_FIRST, KIND_TILES, KIND_GROUP, KIND_RUNS, KIND_QUERY = range(KIND_FIELDS)
# A run of tiles of a group, that repeat a period of patterns: from which tile on, the number of its first pattern, how
# many there are in a period, how far from a period to the next the tile's keys start, and stop, later.
RUN_FIELDS = 5
RUN_FIRST, RUN_PATTERN, PERIOD, LOW_STEP, HIGH_STEP = range(RUN_FIELDS)
# A pattern of a tile: how many queries, where its keys start and stop in the first period, and for each query how far
# its window starts after that, and stops before that.
PATTERN_FIELDS = 3
PATTERN_QUERIES, PATTERN_LOW, PATTERN_HIGH = range(PATTERN_FIELDS)

# The state of a thread, at the start of its scratch memory: what it works at; where the walk through the box is, along
# each axis and in the additional keys; for each axis the tile.
OWN, NOW_BATCH, NOW_HEAD, NOW_KEY_HEAD, NOW_PART = range(5)  # OWN: address of the head set; NOW_PART: -1 forward
NOW_BIAS, NOW_GRAD_BIAS = 5, 6  # addresses of the head's
POSITION = 7
TILE = 11
TILE_FIELDS = 6
(
    FIRST_QUERY,  # coordinate
    QUERY_COUNT,
    FIRST_KEY,
    KEY_COUNT,
    WINDOWS,  # address of the pattern's
    FIRST_OFFSET,  # from the first query to the first key, counted from `REACH` before it
) = range(TILE_FIELDS)
STATE_LENGTH = TILE + 3 * TILE_FIELDS


@njit(error_model="numpy")
def get(integers, place):
    return load_int(integers + 8 * place)


@njit(error_model="numpy")
def put(integers, place, value):
    store_int(integers + 8 * place, value)


@njit(error_model="numpy")
def head_set(call, index):
    """Address of a head set."""
    return call + 8 * (LENGTH + SET_FIELDS * index)


@njit(error_model="numpy")
def axis_of(own, axis):
    """Address of an axis of a head set."""
    return own + 8 * (AXIS + AXIS_FIELDS * axis)


@njit(error_model="numpy")
def tile_of(scratch, axis):
    """Address of the tile's part along an axis."""
    return scratch + 8 * (TILE + TILE_FIELDS * axis)


@njit(error_model="numpy")
def row_of(call, tensor, batch, head):
    """Address of a tensor's first token."""
    stride = STRIDE + STRIDES * tensor
    return get(call, ADDRESS + tensor) + batch * get(call, stride) + head * get(call, stride + HEAD_STRIDE)


@njit(error_model="numpy")
def stride_of(call, tensor, axis):
    return get(call, STRIDE + STRIDES * tensor + 1 + axis)


@njit(error_model="numpy")
def rows_of(call, scratch, tensor):
    """The tile's table of addresses of a tensor."""
    return scratch + get(call, ROWS) + 8 * LANES * tensor
