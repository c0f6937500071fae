"""The naive kernels: one thread group (a program of one warp) per query or key and head, no tensor cores.

What "Faster Neighborhood Attention" (arXiv 2403.04690) improves on: dot products of one query with its neighbors, a
block of slots at a time. Gradients of keys gather over the queries that attend to a key (inverse neighborhood), so
that no kernel needs atomics. One source for every rank.
"""

import triton
import triton.language as tl

from vicinal.backends.gpu.kernels.boxes import intervals_of
from vicinal.backends.gpu.kernels.memory import head_at, rows_within, tile_at
from vicinal.backends.gpu.kernels.window import bias_strides, linear, product, shifted, tokens_at, unravelled
from vicinal.backends.unfused.kernels.slots import RUN_TIME, load_columns, slot_strides, tokens_numbered


@triton.jit(do_not_specialize=RUN_TIME)
def pn(
    query, key,
    bias,  # None where there is none
    attn,  # written
    scale,
    fill,  # of absent slots
    heads, group_size,
    programs,  # tokens of a batch entry
    axes, query_strides, key_strides,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
    VECTOR: tl.constexpr, FLAGS: tl.constexpr,
    ACC: tl.constexpr,  # dtype of the sums
):  # fmt: skip
    """`attn[query, slot] = scale * query . key (+ bias)`, `fill` in absent slots."""
    n, h, b = _program_of(programs, heads)
    token = tokens_numbered(n, axes, FLAGS, False)
    slots = product(axes.windows)
    query += head_at(b, h, query_strides, VECTOR) + tile_at(token.places, query_strides.tokens, VECTOR)
    key += head_at(b, h // group_size, key_strides, VECTOR)
    key += tile_at(tokens_at(token.starts, token.group, axes.dilations), key_strides.tokens, VECTOR)
    attn += ((b * programs + n) * heads + h) * slots
    if bias is not None:
        bias_steps, middle, size = bias_strides(axes.windows)
        bias += h.to(tl.int64) * size + middle + linear(token.starts, bias_steps) - linear(token.positions, bias_steps)
    for first in range(0, slots, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        slot, present = _slots_at(s, slots, axes, token, FLAGS)
        rows = rows_within(slot, axes.dilations, key_strides.tokens, VECTOR, FLAGS.wide)
        score = tl.zeros([BLOCK_S], ACC)
        for column in range(0, D, BLOCK_D):
            d = column + tl.arange(0, BLOCK_D)
            q = tl.load(query + d, mask=d < D, other=0.0).to(ACC)
            k = load_columns(key, rows, present, column, D, BLOCK_D)
            score += tl.sum(k.to(ACC) * q[None, :], 1)
        score *= scale
        if bias is not None:
            score += tl.load(bias + linear(slot, bias_steps), mask=present, other=0.0).to(ACC)
        if FLAGS.moded:
            score = tl.where(present, score, fill)
        tl.store(attn + s, score.to(attn.dtype.element_ty), mask=s < slots)


@triton.jit(do_not_specialize=RUN_TIME)
def nn(
    attn, value,
    output,  # written
    scale, heads, group_size, programs,
    axes, attn_strides, value_strides,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
    VECTOR: tl.constexpr, FLAGS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """`output[query] = scale * sum over slots of attn[query, slot] * value[key]`."""
    n, h, b = _program_of(programs, heads)
    token = tokens_numbered(n, axes, FLAGS, False)
    slots = product(axes.windows)
    attn += head_at(b, h, attn_strides, 1) + tile_at(token.places, attn_strides.tokens, 1)
    value += head_at(b, h // group_size, value_strides, VECTOR)
    value += tile_at(tokens_at(token.starts, token.group, axes.dilations), value_strides.tokens, VECTOR)
    output += ((b * programs + n) * heads + h) * D
    for column in range(0, D, BLOCK_D):
        d = column + tl.arange(0, BLOCK_D)
        total = tl.zeros([BLOCK_D], ACC)
        for first in range(0, slots, BLOCK_S):
            s = first + tl.arange(0, BLOCK_S)
            slot, present = _slots_at(s, slots, axes, token, FLAGS)
            a = tl.load(attn + s, mask=present, other=0.0).to(ACC)
            rows = rows_within(slot, axes.dilations, value_strides.tokens, VECTOR, FLAGS.wide)
            v = load_columns(value, rows, present, column, D, BLOCK_D)
            total += tl.sum(v.to(ACC) * a[:, None], 0)
        tl.store(output + d, (total * scale).to(output.dtype.element_ty), mask=d < D)


@triton.jit(do_not_specialize=RUN_TIME)
def inverse(
    attn, query,
    output,  # written
    scale,
    heads,  # of keys; each gathers from its `group_size` query heads
    group_size, programs,
    axes, attn_strides, query_strides,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
    VECTOR: tl.constexpr, FLAGS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """`output[key] = scale * sum over the queries that attend to key of attn[query, key's slot] * query`."""
    n, h, b = _program_of(programs, heads)
    token = tokens_numbered(n, axes, FLAGS, True)
    steps = slot_strides(axes.windows, FLAGS.wide)
    own = linear(token.positions, steps)
    count = product(token.sizes)
    first_query = tokens_at(token.starts, token.group, axes.dilations)
    attn += tile_at(first_query, attn_strides.tokens, 1)
    query += tile_at(first_query, query_strides.tokens, VECTOR)
    output += ((b * programs + n) * heads + h) * D
    for column in range(0, D, BLOCK_D):
        d = column + tl.arange(0, BLOCK_D)
        total = tl.zeros([BLOCK_D], ACC)
        for member in range(0, group_size):
            attn_head = attn + head_at(b, h * group_size + member, attn_strides, 1)
            query_head = query + head_at(b, h * group_size + member, query_strides, VECTOR)
            for first in range(0, count, BLOCK_S):
                c = first + tl.arange(0, BLOCK_S)
                offset = unravelled(c, token.sizes)
                starts, _sizes = intervals_of(shifted(offset, token.starts), token.lengths, axes, FLAGS, False)
                rows = rows_within(offset, axes.dilations, attn_strides.tokens, 1, FLAGS.wide)
                a = tl.load(attn_head + rows + (own - linear(starts, steps)), mask=c < count, other=0.0).to(ACC)
                rows = rows_within(offset, axes.dilations, query_strides.tokens, VECTOR, FLAGS.wide)
                q = load_columns(query_head, rows, c < count, column, D, BLOCK_D)
                total += tl.sum(q.to(ACC) * a[:, None], 0)
        tl.store(output + d, (total * scale).to(output.dtype.element_ty), mask=d < D)


@triton.jit
def _program_of(programs, heads):
    """The token, head and batch entry (64-bit) of this program: heads next to each other."""
    pid = tl.program_id(0)
    token = pid // heads
    return token % programs, pid % heads, (token // programs).to(tl.int64)


@triton.jit
def _slots_at(number, slots, axes, token, FLAGS: tl.constexpr):
    """Of slots by their numbers: the place in the window along each axis, and whether `token` has a key there."""
    place = unravelled(number, axes.windows)
    present = number < slots
    if FLAGS.moded:
        for axis in tl.static_range(len(place)):
            present &= place[axis] < token.sizes[axis]
    return place, present
