"""Classes of tiles, and what the scores of their steps start from.

Away from borders all tiles are alike: the same keys, the same windows, the same biases. So tiles are of few classes,
and for each class and step a start tile holds what is added to the products of queries and keys: the relative
positional bias, in units of a score before it is scaled, and -inf outside the window. `starts_kernel` lays them out, in
the order of the matrix instructions' registers: the products' accumulators are loaded with them, and neither mask nor
bias costs an instruction a score.

Without a bias, masks may stand for start tiles (`masks_kernel`): of each token of a step 16 numbers, which times those
of a tile's own tokens are 0 or -inf. That is one product more and an eighth of the bytes, or less.

A tile's box is walked token by token, in order, not in tiles of its own: only its last step is not full. Under a key
mask only tokens that are there are walked (`vicinal.backends.triton.kernels.kept`), each with its own masks.

Tiles of packed maps, whose last tiles differ, are of classes by how far they are from both ends of an axis: the same
for maps of any size.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from vicinal.backends.gpu.kernels.boxes import box_of, intervals_of, rows_of, within
from vicinal.backends.gpu.kernels.memory import await_previous, let_next_start
from vicinal.backends.gpu.kernels.window import (
    Tile,
    bias_strides,
    group_length,
    linear,
    positions_in,
    shifted,
    size_of,
    tile_of,
)

DIVIDED = tl.constexpr(1 << 20)  # by a box's extents: then products take the place of divisions by them


class Classes(NamedTuple):
    """The classes of tiles, at run time; a tuple per axis, but the last two.

    Along an axis each of the tiles `before` and `after` is of its own class, and those between are of one; where the
    dilation groups are of two lengths, each length has its own classes.

    Of packed maps those `before` are of as many classes as there are tokens from a tile's first one to the axis' end,
    and so are all others; from `after` tokens on they are of one.
    """

    before: Any
    after: Any
    counts: Any  # of classes
    steps: Any  # of a tile, at most
    by_head: Any  # 1 if every head has start tiles of its own, 0 if all share them


@triton.jit(do_not_specialize=("heads", "combinations", "unit"))
def starts_kernel(
    rpb,  # None where there is no bias
    starts,  # written: [H, classes, steps, entries], entries as `_spread` says
    combinations,  # of the axes' classes
    unit,  # what a bias of 1 is in `starts`
    classes, axes,
    TILE: tl.constexpr, STEP: tl.constexpr, WARPS: tl.constexpr, FLAGS: tl.constexpr,
    INVERSE: tl.constexpr,  # tiles hold keys, steps queries
):  # fmt: skip
    pid = tl.program_id(0)
    step = pid % classes.steps
    combination = pid // classes.steps % combinations
    h = pid // classes.steps // combinations
    if axes.parts is None:
        tile, exists = _representative(combination, classes, axes, TILE, FLAGS)
    else:
        index, exists = _representative_around(combination, classes, axes, TILE)
        tile = tile_of(index, axes, TILE, FLAGS, INVERSE)
    if not exists:
        return
    box = whole_box(tile, axes, TILE, FLAGS, INVERSE)
    rows = rows_of(tile, axes, TILE, FLAGS, INVERSE)
    columns = places_of(lines_of(step, box, size_of(STEP)), box)
    there = step * size_of(STEP) + tl.arange(0, size_of(STEP)) < box.count
    mask = within(columns, box.begin, rows) & rows.inside[:, None] & there[None, :]
    await_previous(FLAGS.chained)
    if rpb is None:
        start = tl.where(mask, 0.0, float("-inf"))
    else:
        bias_steps, middle, size = bias_strides(axes.windows)
        others = linear(shifted(columns, box.begin), bias_steps)[None, :]
        own = linear(rows.positions, bias_steps)[:, None]
        entry = middle + (own - others if INVERSE else others - own)
        bias = tl.load(rpb + h.to(tl.int64) * size + entry, mask=mask, other=0.0).to(tl.float32)
        start = tl.where(mask, bias * unit, float("-inf"))
    let_next_start(FLAGS.chained)
    put(starts + pid.to(tl.int64) * start.numel, start, TILE, STEP, WARPS)


MOST = tl.constexpr(2.0**127)  # its square is infinite in float32, times 0 it is 0
ALONG = tl.constexpr(16)  # what a matrix instruction sums over: a tile's extents together are at most that


@triton.jit(do_not_specialize=("combinations",))
def masks_kernel(
    masks,  # written: [classes, steps, tokens of a step, ALONG], bfloat16
    combinations,  # of the axes' classes
    classes, axes,
    TILE: tl.constexpr, STEP: tl.constexpr, FLAGS: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """Of each token of a step, and each place of a tile along each axis: 0 if it is within the window there, or -MOST.

    Times `own_places` of a token of the tile: 0, or minus infinity where the window does not hold the other token.
    """
    pid = tl.program_id(0)
    step = pid % classes.steps
    if FLAGS.packed:
        tile = _representative_of_maps(pid // classes.steps, classes, axes, TILE)
    else:
        tile, exists = _representative(pid // classes.steps, classes, axes, TILE, FLAGS)
        if not exists:
            return
    BN: tl.constexpr = size_of(STEP)
    box = whole_box(tile, axes, TILE, FLAGS, INVERSE)
    columns = shifted(places_of(lines_of(step, box, BN), box), box.begin)
    there = step * BN + tl.arange(0, BN) < box.count
    entry = tl.arange(0, ALONG)
    outside = ~there[:, None] & (entry < ALONG)[None, :]
    firsts = ()
    before = 0
    for axis in tl.static_range(len(TILE)):
        firsts = firsts + (tile.first[axis] + entry - before,)
        before += TILE[axis]
    starts, sizes = intervals_of(firsts, tile.lengths, axes, FLAGS, INVERSE)
    before = 0
    for axis in tl.static_range(len(TILE)):
        own = (entry >= before) & (entry < before + TILE[axis])
        beyond = (columns[axis][:, None] - starts[axis][None, :]).to(tl.uint32) >= sizes[axis][None, :].to(tl.uint32)
        outside = outside | (own[None, :] & beyond)
        before += TILE[axis]
    await_previous(FLAGS.chained)
    at = pid.to(tl.int64) * (BN * ALONG) + (tl.arange(0, BN)[:, None] * ALONG + entry[None, :])
    let_next_start(FLAGS.chained)
    tl.store(masks + at, tl.where(outside, -MOST, 0.0).to(masks.dtype.element_ty))


@triton.jit
def own_places(TILE: tl.constexpr, DTYPE: tl.constexpr):
    """`[tokens of a tile, ALONG]`: MOST at a token's place along each axis, 0 elsewhere."""
    places = positions_in(TILE)
    entry = tl.arange(0, ALONG)[None, :]
    found = (entry < 0) & (places[0][:, None] < 0)
    before = 0
    for axis in tl.static_range(len(TILE)):
        found = found | (entry == places[axis][:, None] + before)
        before += TILE[axis]
    return tl.where(found, MOST, 0.0).to(DTYPE)


@triton.jit
def started(starts, step, own, TILE: tl.constexpr, STEP: tl.constexpr, WARPS: tl.constexpr):
    """What the scores of a step start from."""
    BN: tl.constexpr = size_of(STEP)
    if own is None:
        return taken(starts + step * (size_of(TILE) * BN), TILE, STEP, WARPS)
    else:
        return started_of(starts + step * (BN * ALONG), tl.arange(0, BN), own)


@triton.jit
def started_of(masks, tokens, own):
    """What scores of tokens, of those of a class by their numbers, start from, as masks say."""
    rows = tokens[:, None] * ALONG + tl.arange(0, ALONG)[None, :]
    return tl.dot(own, tl.load(masks + rows).T)


@triton.jit
def whole_box(tile, axes, TILE: tl.constexpr, FLAGS: tl.constexpr, INVERSE: tl.constexpr):
    """The `Box` of a tile, token by token."""
    ONES: tl.constexpr = (1,) * len(TILE)
    return box_of(tile, axes, TILE, ONES, FLAGS, INVERSE)


@triton.jit
def lines_of(step, box, SIZE: tl.constexpr):
    """Of the tokens of a box, in order, those of a step, as `lines_at`; beyond the last one, it."""
    return lines_at(tl.minimum(step * SIZE + tl.arange(0, SIZE), box.count - 1), box)


@triton.jit
def lines_at(left, box):
    """Of the tokens of a box with these numbers, in order: for each axis how many whole lines along the later axes come
    before a token, for the last one how many tokens.
    """
    lines = (left,)
    for axis in tl.static_range(len(box.begin) - 1, 0, -1):
        extent = box.end[axis] - box.begin[axis]
        left = left * ((extent - 1 + DIVIDED) // extent) >> 20  # left // extent
        lines = (left,) + lines
    return lines


@triton.jit
def places_of(lines, box):
    """The places of tokens from a box's first one."""
    places = (lines[0],)
    for axis in tl.static_range(1, len(box.begin)):
        places = places + (lines[axis] - lines[axis - 1] * (box.end[axis] - box.begin[axis]),)
    return places


@triton.jit
def first_start(
    tile, axes, classes, head, TILE: tl.constexpr, STEP: tl.constexpr, FLAGS: tl.constexpr, MASKS: tl.constexpr
):
    """Where the bias tile of a tile's first step begins, and how far apart those of the heads are, in elements."""
    combination = 0
    combinations = 1
    for axis in tl.static_range(len(TILE)):
        first = tile.first[axis]
        length = tile.lengths[axis]
        if axes.parts is not None:  # around circles
            first -= axes.parts.query_starts[axis]
            length = axes.parts.query_lengths[axis]
        place = first // TILE[axis]
        place_from_end = (length - 1) // TILE[axis] - place
        before = classes.before[axis]
        after = classes.after[axis]
        if FLAGS.packed:
            own = tl.minimum(place, before) * after + tl.minimum(length - first, after) - 1
        else:
            own = tl.where(place_from_end < after, before + 1 + place_from_end, before)
            own = tl.where(place < before, place, own)
        if FLAGS.dilated:
            longest = group_length(axes.lengths[axis], axes.dilations[axis], 0, True)
            own = tl.where(tile.lengths[axis] < longest, before + 1 + after + own, own)
        combination = combination * classes.counts[axis] + own
        combinations = combinations * classes.counts[axis]
    EACH: tl.constexpr = ALONG if MASKS else size_of(TILE)
    of_class = classes.steps.to(tl.int64) * (EACH * size_of(STEP))
    apart = combinations * of_class
    return combination * of_class + head * classes.by_head * apart, classes.by_head * apart


@triton.jit
def taken(pointer, TILE: tl.constexpr, STEP: tl.constexpr, WARPS: tl.constexpr):
    """What was `put` there: an entry for each score of a step."""
    BITS: tl.constexpr = pointer.dtype.element_ty.primitive_bitwidth
    entries = tl.load(pointer + _vectors(size_of(TILE) * size_of(STEP), BITS))
    return as_scores(entries, TILE, STEP, WARPS, BITS)


@triton.jit
def put(pointer, scores, TILE: tl.constexpr, STEP: tl.constexpr, WARPS: tl.constexpr):
    """Write an entry for each score of a step such that, in memory, those of a thread lie side by side."""
    BITS: tl.constexpr = scores.dtype.primitive_bitwidth
    S: tl.constexpr = _spread(size_of(TILE), size_of(STEP), WARPS, BITS)
    entries = tl.reshape(scores, (S[0], S[1], 2, 8, S[2], S[3], S[4], 4, 2))
    entries = tl.permute(entries, (0, 4, 1, 6, 3, 7, 5, 2, 8))
    VECTOR: tl.constexpr = 128 // BITS
    entries = tl.reshape(entries, (size_of(TILE) * size_of(STEP) // VECTOR, VECTOR))
    tl.store(pointer + _vectors(size_of(TILE) * size_of(STEP), BITS), entries)


@triton.jit
def _vectors(SIZE: tl.constexpr, BITS: tl.constexpr):
    """`0` to `SIZE`, in rows of 16 bytes: what a thread has at once, whatever else is loaded and stored."""
    VECTOR: tl.constexpr = 128 // BITS
    return tl.arange(0, SIZE // VECTOR)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]


@triton.jit
def as_scores(entries, TILE: tl.constexpr, STEP: tl.constexpr, WARPS: tl.constexpr, BITS: tl.constexpr):
    """Entries as they lie in memory, those of `BITS` bits, as scores `[queries, keys]`."""
    S: tl.constexpr = _spread(size_of(TILE), size_of(STEP), WARPS, BITS)
    entries = tl.reshape(entries, (S[0], S[2], S[1], S[4], 8, 4, S[3], 2, 2))
    entries = tl.permute(entries, (0, 2, 7, 4, 1, 6, 3, 5, 8))
    return tl.reshape(entries, (size_of(TILE), size_of(STEP)))


@triton.constexpr_function
def _spread(M, N, WARPS, BITS):
    """How scores `[M, N]` are spread over the threads of a program by the instructions that multiply matrices.

    Those make 16 rows and 8 columns: a thread has two neighbors of a row, and of the row 8 below. Warps are along the
    rows, or the columns if those are more. Returns the factors of M, of warps' tiles and of warps, and of N: of tiles,
    of tiles that fill 16 bytes of memory, of warps.
    """
    down = max(1, min(WARPS, M // 16)) if M >= N else 1
    along = 1 if M >= N else max(1, min(WARPS, N // 8))
    tiles = N // (8 * along)
    beside = 2 if BITS == 16 and tiles % 2 == 0 else 1
    return M // (16 * down), down, tiles // beside, beside, along


@triton.jit
def _representative(combination, classes, axes, TILE: tl.constexpr, FLAGS: tl.constexpr):
    """A tile of a combination of classes, and whether there is any."""
    exists = True
    groups = ()
    firsts = ()
    lengths = ()
    starts = ()
    for axis in tl.static_range(len(TILE) - 1, -1, -1):
        own = combination % classes.counts[axis]
        combination = combination // classes.counts[axis]
        before = classes.before[axis]
        kinds = before + 1 + classes.after[axis]
        group = tl.where(own < kinds, 0, axes.dilations[axis] - 1)
        own = own % kinds
        length = group_length(axes.lengths[axis], axes.dilations[axis], group, FLAGS.dilated)
        count = (length + TILE[axis] - 1) // TILE[axis]
        place = tl.where(own <= before, own, count + before - own)
        exists = exists & (place >= 0) & (place < count)
        groups = (group,) + groups
        firsts = (place * TILE[axis],) + firsts
        lengths = (length,) + lengths
        starts = (0,) + starts
    return Tile(groups, firsts, lengths, False, lengths, starts, lengths), exists


@triton.jit
def _representative_of_maps(combination, classes, axes, TILE: tl.constexpr):
    """Of packed maps: a tile of a combination of classes, in the smallest map that has such a one."""
    zeros = ()
    firsts = ()
    lengths = ()
    for axis in tl.static_range(len(TILE) - 1, -1, -1):
        own = combination % classes.counts[axis]
        combination = combination // classes.counts[axis]
        first = own // classes.after[axis] * TILE[axis]
        zeros = (0,) + zeros
        firsts = (first,) + firsts
        lengths = (tl.maximum(first + own % classes.after[axis] + 1, axes.windows[axis]),) + lengths
    return Tile(zeros, firsts, lengths, False, lengths, zeros, lengths)


@triton.jit
def _representative_around(combination, classes, axes, TILE: tl.constexpr):
    """Of circles, and of other axes beside them: its number, and whether there is any."""
    exists = True
    index = 0
    apart = 1
    for axis in tl.static_range(len(TILE) - 1, -1, -1):
        own = combination % classes.counts[axis]
        combination = combination // classes.counts[axis]
        count = (axes.parts.query_lengths[axis] + TILE[axis] - 1) // TILE[axis]
        place = tl.where(own <= classes.before[axis], own, count + classes.before[axis] - own)
        exists = exists & (place >= 0) & (place < count)
        index += place * apart
        apart *= count
    return index, exists
