"""The relative positional bias of scores: taken from a head's table score by score, or from tiles laid out beforehand.

Away from borders all tiles of queries are alike: the same keys, the same windows, the same biases. So tiles are of few
classes, and a bias tile of each class and step holds all that is added to its scores: the bias, in base 2, and -inf
outside the window. `bias_tiles_kernel` lays them out; the attention kernels load them instead of computing a mask and
gathering from the table, for every batch entry and tile of the class.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from vicinal.backends.gpu.kernels.boxes import box_of, rows_of, step_at, within
from vicinal.backends.gpu.kernels.memory import await_previous, let_next_start
from vicinal.backends.gpu.kernels.window import (
    Tile,
    bias_strides,
    group_length,
    linear,
    positions_in,
    shifted,
    size_of,
)
from vicinal.backends.triton.kernels.softmax import LOG2E

WIDTH = tl.constexpr(8)  # columns of a bias tile that lie side by side: as matrix instructions spread them over a warp


class Classes(NamedTuple):
    """The classes of tiles, at run time; a tuple per axis, but `steps`.

    Along an axis each of the tiles `before` and `after` is of its own class, and those between are of one; where the
    dilation groups are of two lengths, each length has its own classes.
    """

    before: Any
    after: Any
    counts: Any  # of classes
    steps: Any  # of a tile, at most


@triton.jit(do_not_specialize=("heads", "combinations"))
def bias_tiles_kernel(
    rpb, tiles,  # written: [H, classes, steps, columns / WIDTH, rows, WIDTH]
    combinations,  # of the axes' classes
    classes, axes,
    TILE: tl.constexpr, STEP: tl.constexpr, FLAGS: tl.constexpr,
    INVERSE: tl.constexpr,  # tiles hold keys, steps queries
):  # fmt: skip
    pid = tl.program_id(0)
    step = pid % classes.steps
    combination = pid // classes.steps % combinations
    h = pid // classes.steps // combinations
    tile, exists = _representative(combination, classes, axes, TILE, FLAGS)
    if not exists:
        return
    box = box_of(tile, axes, TILE, STEP, FLAGS, INVERSE)
    if step >= box.count:
        return
    rows = rows_of(tile, axes, TILE, FLAGS, INVERSE)
    columns = positions_in(STEP)
    at = step_at(step, box, STEP)
    mask = within(columns, at, rows) & rows.inside[:, None]
    bias_steps, middle, size = bias_strides(axes.windows)
    others = linear(shifted(columns, at), bias_steps)[None, :]
    own = linear(rows.positions, bias_steps)[:, None]
    entry = middle + (own - others if INVERSE else others - own)
    await_previous(FLAGS.chained)
    bias = in_window(rpb + h.to(tl.int64) * size + entry, mask)
    let_next_start(FLAGS.chained)
    tl.store(tiles + pid.to(tl.int64) * bias.numel + _places(TILE, STEP), bias)


@triton.jit
def in_window(pointers, mask):
    """Biases in base 2 where `mask`, `-inf` elsewhere."""
    return tl.where(mask, tl.load(pointers, mask=mask, other=0.0).to(tl.float32) * LOG2E, float("-inf"))


@triton.jit
def biased(scores, mask, rpb, key_part, query_part, scale):
    """Scaled scores plus the relative positional bias at `key_part - query_part`, where `mask`; `-inf` elsewhere."""
    bias = tl.load(rpb + (key_part - query_part), mask=mask, other=0.0).to(tl.float32)
    return tl.where(mask, scores * scale + bias * LOG2E, float("-inf"))


@triton.jit
def first_bias_tile(tile, axes, classes, head, TILE: tl.constexpr, STEP: tl.constexpr, FLAGS: tl.constexpr):
    """Where the bias tile of a tile's first step begins, and how far apart those of the heads are, in elements."""
    combination = 0
    combinations = 1
    for axis in tl.static_range(len(TILE)):
        place = tile.first[axis] // TILE[axis]
        place_from_end = (tile.lengths[axis] - 1) // TILE[axis] - place
        before = classes.before[axis]
        after = classes.after[axis]
        own = tl.where(place_from_end < after, before + 1 + place_from_end, before)
        own = tl.where(place < before, place, own)
        if FLAGS.dilated:
            longest = group_length(axes.lengths[axis], axes.dilations[axis], 0, True)
            own = tl.where(tile.lengths[axis] < longest, before + 1 + after + own, own)
        combination = combination * classes.counts[axis] + own
        combinations = combinations * classes.counts[axis]
    of_class = classes.steps.to(tl.int64) * (size_of(TILE) * size_of(STEP))
    apart = combinations * of_class
    return combination * of_class + head * apart, apart


@triton.jit
def bias_tile(pointer, TILE: tl.constexpr, STEP: tl.constexpr):
    """The bias tile that begins at `pointer`."""
    return tl.load(pointer + _places(TILE, STEP))


@triton.jit
def _places(TILE: tl.constexpr, STEP: tl.constexpr):
    """Of a bias tile's entries `[rows, columns]` in memory: what a warp loads at once lies side by side."""
    row = tl.arange(0, size_of(TILE))[:, None]
    column = tl.arange(0, size_of(STEP))[None, :]
    return column // WIDTH * (WIDTH * size_of(TILE)) + row * WIDTH + column % WIDTH


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
