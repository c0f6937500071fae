"""Reading and writing tiles of tokens in place: any strides but a contiguous last dimension, 64-bit where needed.

Strides come in units of `VECTOR` elements, a power of two that divides every stride: multiplying by a constant tells
the compiler that rows are aligned, which a run-time stride would hide from it, and so loads are 16 bytes wide.
Offsets within a tile are 32-bit unless `WIDE`; the offset of a tile is always 64-bit.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from vicinal.backends.gpu.kernels.window import lengths_of, part_of, tokens_at


class Strides(NamedTuple):
    """Of a `[B, *X, H, D]` tensor, in units of `VECTOR` elements."""

    batch: Any
    tokens: Any  # per axis
    head: Any


class InputStrides(NamedTuple):
    """Of all inputs; additional keys and values have one axis."""

    query: Strides
    key: Strides
    value: Strides
    extra_keys: Strides | None = None
    extra_values: Strides | None = None


@triton.jit
def await_previous(CHAINED: tl.constexpr):
    """To be called before memory is read or written, by kernels that are launched before the one ahead has ended.

    So launches, and what is computed before this call, are hidden (CUDA's programmatic dependent launch).
    """
    if CHAINED:
        gdc_wait()


@triton.jit
def let_next_start(CHAINED: tl.constexpr):
    """To be called when little is left to do: once all programs have called it, those of the next kernel may start.

    Where they do they stay: started earlier, they would gather on the multiprocessors that are free first.
    """
    if CHAINED:
        gdc_launch_dependents()


@triton.jit
def rows_within(positions, dilations, strides, VECTOR: tl.constexpr, WIDE: tl.constexpr):
    """The offsets, in elements, of a tile's tokens from its first one: positions times dilation times stride."""
    LAST: tl.constexpr = len(positions) - 1
    offset = _scaled(positions[LAST], dilations[LAST], strides[LAST], WIDE)
    for axis in tl.static_range(LAST - 1, -1, -1):
        offset = offset + _scaled(positions[axis], dilations[axis], strides[axis], WIDE)
    return offset * VECTOR


@triton.jit
def tile_at(tokens, strides, VECTOR: tl.constexpr):
    """The offset, in elements, of the token at `tokens`: 64-bit."""
    LAST: tl.constexpr = len(tokens) - 1
    offset = tokens[LAST].to(tl.int64) * strides[LAST]
    for axis in tl.static_range(LAST - 1, -1, -1):
        offset += tokens[axis].to(tl.int64) * strides[axis]
    return offset * VECTOR


@triton.jit
def head_at(batch, head, strides, VECTOR: tl.constexpr):
    """The offset, in elements, of a head of a batch entry: 64-bit."""
    return (batch * strides.batch + head.to(tl.int64) * strides.head) * VECTOR


@triton.jit
def tokens_of(pointer, batch, head, axes, strides, KEYS: tl.constexpr, VECTOR: tl.constexpr):
    """Where the axes' first token is, of a head of a batch entry; or would be, where only a part of them is given."""
    pointer += head_at(batch, head, strides, VECTOR)
    if axes.parts is not None:
        pointer -= tile_at(part_of(axes, KEYS)[0], strides.tokens, VECTOR)
    return pointer


@triton.jit
def around(tokens, axes, FLAGS: tl.constexpr, KEYS: tl.constexpr):
    """Of tokens before or beyond a circular axis those that they are."""
    if FLAGS.circles == 0:
        return tokens
    else:
        starts, lengths = part_of(axes, KEYS)
        found = ()
        for axis in tl.static_range(len(tokens)):
            token = tokens[axis]
            if FLAGS.circles >> axis & 1:
                token = tl.where(token < starts[axis], token + lengths[axis], token)
                token = tl.where(token >= starts[axis] + lengths[axis], token - lengths[axis], token)
            found = found + (token,)
        return found


@triton.jit
def rows_around(rows, tokens, columns, axes, strides, VECTOR: tl.constexpr, FLAGS: tl.constexpr, KEYS: tl.constexpr):
    """The offsets `rows_within` of a tile's tokens from the one at `tokens`, where some are beyond a circular axis."""
    TURNS: tl.constexpr = FLAGS.turns
    if FLAGS.circles != 0:
        starts, lengths = part_of(axes, KEYS)
        for axis in tl.static_range(len(tokens)):
            if FLAGS.circles >> axis & 1:
                end = starts[axis] - tokens[axis]
                for _ in tl.static_range(TURNS):
                    end += lengths[axis]
                    beyond = columns[axis] * axes.dilations[axis] >= end
                    rows = tl.where(beyond, rows - lengths[axis] * strides[axis] * VECTOR, rows)
    return rows


@triton.jit
def load_tile(pointer, tile, rows, dilations, strides, SIZE: tl.constexpr, VECTOR: tl.constexpr, WIDE: tl.constexpr):
    """A program's own tile of the head at `pointer`, zeros for tokens that do not exist."""
    pointer += tile_at(tokens_at(tile.first, tile.group, dilations), strides, VECTOR)
    return load_rows(pointer, rows_within(rows.offsets, dilations, strides, VECTOR, WIDE), rows.inside, SIZE, True)


class Step(NamedTuple):
    """Tokens that a program walks at a time."""

    first: Any  # per axis, along it: of `around`
    columns: Any  # per axis a block: positions from there on
    there: Any  # whether they are read


@triton.jit
def load_step(
    pointer, rows, step, axes, strides,
    SIZE: tl.constexpr, CHECKED: tl.constexpr, VECTOR: tl.constexpr, FLAGS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The tile of a `Step` of the head at `pointer`; `rows`: `rows_within` it."""
    pointer += tile_at(step.first, strides, VECTOR)
    rows = rows_around(rows, step.first, step.columns, axes, strides, VECTOR, FLAGS, KEYS)
    return load_rows(pointer, rows, step.there, SIZE, CHECKED)


@triton.constexpr_function
def padded(SIZE):
    """A head dim as it is computed: a power of two, at least what a matrix instruction takes."""
    return max(16, triton.next_power_of_2(SIZE))


@triton.jit
def load_rows(pointer, rows, inside, SIZE: tl.constexpr, CHECKED: tl.constexpr):
    """A `[rows, padded(SIZE)]` tile: rows at `pointer + rows`.

    Zeros are past `SIZE` and, if `CHECKED`, where not `inside`.
    """
    PADDED: tl.constexpr = padded(SIZE)
    d = tl.arange(0, PADDED)
    pointers = pointer + rows[:, None] + d[None, :]
    if CHECKED:
        if SIZE == PADDED:
            return tl.load(pointers, mask=inside[:, None], other=0.0)
        else:
            return tl.load(pointers, mask=inside[:, None] & (d < SIZE)[None, :], other=0.0)
    else:
        if SIZE == PADDED:
            return tl.load(pointers)
        else:
            return tl.load(pointers, mask=(d < SIZE)[None, :], other=0.0)


@triton.jit
def store_rows(pointer, rows, inside, tile, SIZE: tl.constexpr):
    """Write a `[rows, padded(SIZE)]` tile where `inside`, its first `SIZE` columns, in the pointer's dtype."""
    PADDED: tl.constexpr = padded(SIZE)
    d = tl.arange(0, PADDED)
    mask = inside[:, None]
    if SIZE != PADDED:
        mask = mask & (d < SIZE)[None, :]
    tl.store(pointer + rows[:, None] + d[None, :], tile.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def token_rows(batch, tokens, lengths, heads, head):
    """The numbers of rows of a contiguous `[B, *X, H, ...]` tensor: 64-bit, as `batch` is."""
    row = batch
    for axis in tl.static_range(len(lengths)):
        row = row * lengths[axis] + tokens[axis]
    return row * heads + head


@triton.jit
def rows_at(batch, tokens, axes, heads, head, KEYS: tl.constexpr):
    """`token_rows` of a tensor of queries (or keys), of tokens along the whole axes."""
    return token_rows(batch, among_given(tokens, axes, KEYS), lengths_of(axes, KEYS), heads, head)


@triton.jit
def among_given(tokens, axes, KEYS: tl.constexpr):
    """Tokens along the whole axes as places among the queries (or keys) that are given."""
    if axes.parts is None:
        return tokens
    else:
        starts = part_of(axes, KEYS)[0]
        given = ()
        for axis in tl.static_range(len(tokens)):
            given = given + (tokens[axis] - starts[axis],)
        return given


@triton.jit
def own_rows(batch, tile, rows, axes, heads, head, KEYS: tl.constexpr = False):
    """`rows_at` of a program's own tile."""
    return rows_at(batch, tokens_at(rows.positions, tile.group, axes.dilations), axes, heads, head, KEYS)


@triton.jit
def mask_rows(positions, axes, WIDE: tl.constexpr):
    """The offsets of keys in a contiguous `[B, *X]` mask, from the first of a tile."""
    return rows_within(positions, axes.dilations, token_strides(lengths_of(axes, True)), 1, WIDE)


@triton.jit
def walked_mask_rows(rows, tokens, columns, axes, FLAGS: tl.constexpr):
    """`mask_rows` of a tile of keys that is walked, at `tokens`."""
    return rows_around(rows, tokens, columns, axes, token_strides(lengths_of(axes, True)), 1, FLAGS, True)


@triton.jit
def keys_there(key_mask, batch, tokens, offsets, axes, inside):
    """Of the keys at `offsets` (`mask_rows`) from the one at `tokens`, those `inside` that are not masked."""
    kept = tl.load(key_mask + rows_at(batch, tokens, axes, 1, 0, True) + offsets, mask=inside, other=0)
    return kept != 0


@triton.jit
def any_of(block):
    return tl.max(block.to(tl.int32), 0) != 0


@triton.jit
def all_of(block):
    return tl.min(block.to(tl.int32), 0) != 0


@triton.jit
def token_strides(lengths, heads=1):
    """Of a contiguous `[*X, heads]` tensor."""
    strides = ()
    step = heads
    for axis in tl.static_range(len(lengths) - 1, -1, -1):
        strides = (step,) + strides
        step = step * lengths[axis]
    return strides


@triton.jit
def _scaled(positions, dilation, stride, WIDE: tl.constexpr):
    if WIDE:
        return positions.to(tl.int64) * dilation * stride
    else:
        return positions * (dilation * stride)
