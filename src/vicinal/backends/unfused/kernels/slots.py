"""Slots of attention weights in Triton, shared by the naive and the GEMM kernels. The rule: `vicinal.geometry.slots`.

A window's slots are numbered row-major: the strides of `token_strides(windows)` turn a key's place in its window into
its slot. Weights `[B, *X, H, slots]` and inputs are read at any strides but a contiguous last dimension; what is
written is contiguous.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from vicinal.backends.gpu.kernels.boxes import intervals_of, within
from vicinal.backends.gpu.kernels.memory import head_at, tile_at, token_strides
from vicinal.backends.gpu.kernels.window import group_length, linear, unravelled

# Never specialised on; nor are the tuples, by how they are launched: neither a new window nor a new length compiles.
RUN_TIME = ("scale", "fill", "heads", "group_size", "programs")


class Tokens(NamedTuple):
    """Tokens anywhere on the axes, each with its interval as of `boxes.Rows`; a tuple per axis."""

    places: Any  # along the axes
    group: Any  # the dilation group
    positions: Any  # within it
    lengths: Any  # of the group
    starts: Any  # of the token's interval
    sizes: Any


@triton.jit
def tokens_numbered(number, axes, FLAGS: tl.constexpr, INVERSE: tl.constexpr):
    """Row-major numbers of tokens -> the `Tokens`, with their keys or, if `INVERSE`, their queries."""
    places = unravelled(number, axes.lengths)
    group = ()
    positions = ()
    lengths = ()
    for axis in tl.static_range(len(places)):
        member = places[axis] * 0
        position = places[axis]
        if FLAGS.dilated:
            member = places[axis] % axes.dilations[axis]
            position = places[axis] // axes.dilations[axis]
        group = group + (member,)
        positions = positions + (position,)
        lengths = lengths + (group_length(axes.lengths[axis], axes.dilations[axis], member, FLAGS.dilated),)
    starts, sizes = intervals_of(positions, lengths, axes, FLAGS, INVERSE)
    return Tokens(places, group, positions, lengths, starts, sizes)


@triton.jit
def slot_strides(windows, WIDE: tl.constexpr):
    """Of the slots of a window, per axis: 64-bit if `WIDE`, where positions times these may need more than 31 bits."""
    strides = token_strides(windows)
    if WIDE:
        wide = ()
        for axis in tl.static_range(len(windows)):
            wide = wide + (tl.cast(strides[axis], tl.int64),)
        strides = wide
    return strides


@triton.jit
def load_columns(pointer, rows, inside, first, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """`BLOCK_D` columns from `first` of the rows at `pointer + rows`; zeros where not `inside`, and past `D`."""
    d = first + tl.arange(0, BLOCK_D)
    mask = inside[:, None]
    if D % BLOCK_D != 0:
        mask = mask & (d < D)[None, :]
    return tl.load(pointer + rows[:, None] + d[None, :], mask=mask, other=0.0)


@triton.jit
def store_columns(pointer, rows, inside, tile, first, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write `tile` to `BLOCK_D` columns from `first` of the rows at `pointer + rows` where `inside`, up to `D`."""
    d = first + tl.arange(0, BLOCK_D)
    mask = inside[:, None]
    if D % BLOCK_D != 0:
        mask = mask & (d < D)[None, :]
    tl.store(pointer + rows[:, None] + d[None, :], tile.to(pointer.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=[*RUN_TIME, "batch_programs", "chunk"])
def bias_sum(
    grad,
    partial,  # written
    heads,
    programs,  # tokens of a batch entry
    batch_programs,  # and of all
    chunk, axes, strides,
    FLAGS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Part `program_id(2)` of the sums by relative position `[H, 2*K-1, ...]` of gradients `[B, *X, H, slots]`.

    A program sums a block of relative positions of one head over `chunk` tokens: no atomics. Relative positions next
    to each other are slots next to each other, so loads are in rows.
    """
    h = tl.program_id(1)
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    table, size = _table_of(axes.windows)
    relative = unravelled(r, table)
    steps = slot_strides(axes.windows, FLAGS.wide)
    relative_part = linear(relative, steps)
    total = tl.zeros([BLOCK_R], tl.float32)
    begin = tl.program_id(2) * chunk
    end = tl.minimum(begin + chunk, batch_programs)
    for first in range(begin, end, BLOCK_N):
        number = first + tl.arange(0, BLOCK_N)
        tokens = tokens_numbered(number % programs, axes, FLAGS, False)
        reach = _first_reach(tokens.positions, axes.windows)
        mask = within(relative, reach, tokens) & (number < end)[:, None] & (r < size)[None, :]
        row = head_at((number // programs).to(tl.int64), h, strides, 1) + tile_at(tokens.places, strides.tokens, 1)
        row += linear(reach, steps) - linear(tokens.starts, steps)
        each = tl.load(grad + row[:, None] + relative_part[None, :], mask=mask, other=0.0)
        total += tl.sum(each.to(tl.float32), 0)
    tl.store(partial + (tl.program_id(2).to(tl.int64) * heads + h) * size + r, total, mask=r < size)


@triton.jit
def _table_of(windows):
    """The shape of a head's bias table, `2*K-1` along each axis, and its size."""
    shape = ()
    size = 1
    for axis in tl.static_range(len(windows)):
        shape = shape + (2 * windows[axis] - 1,)
        size = size * (2 * windows[axis] - 1)
    return shape, size


@triton.jit
def _first_reach(positions, windows):
    """The furthest positions before queries that a window reaches: relative positions are counted from there."""
    reach = ()
    for axis in tl.static_range(len(windows)):
        reach = reach + (positions[axis] - windows[axis] + 1,)
    return reach
