"""The GEMM-based kernels: tiles of 64 queries and 64 keys on tensor cores, scattered to and gathered from slots.

The three operators of "Faster Neighborhood Attention" (arXiv 2403.04690, section 3.1): pointwise-neighborhood (QK, dP),
neighborhood-neighborhood (PV, dQ) and inverse-neighborhood (dK, dV), each a batched GEMM over spatial tiles: a tile is
64, 8x8 or 4x4x4 tokens of one dilation group, against the box of tokens that its windows cover. The paper has 1-D and
2-D; here one source has every rank, and strides, and tiles hold several dilation groups where these are shorter.
"""

import triton
import triton.language as tl

from vicinal.backends.gpu.kernels.boxes import box_of, coverage, intervals_of, program_of, rows_of, within
from vicinal.backends.gpu.kernels.memory import head_at, own_rows, rows_within, tile_at
from vicinal.backends.gpu.kernels.window import (
    bias_strides,
    linear,
    next_tile,
    product,
    shifted,
    size_of,
    tile_of,
    tokens_at,
)
from vicinal.backends.unfused.kernels.slots import RUN_TIME, load_columns, slot_strides, store_columns


@triton.jit(do_not_specialize=RUN_TIME)
def pn(
    query, key,
    bias,  # None where there is none
    attn,  # written
    scale,
    heads, group_size,
    programs,  # tiles of a head
    axes, query_strides, key_strides,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,  # of queries and of keys
    VECTOR: tl.constexpr, FLAGS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`attn[query, slot] = scale * query . key (+ bias)`; absent slots are left alone."""
    tile, h, b, box, rows = _program(programs, heads, axes, TILE, FLAGS, False)
    if tile.beyond:
        return

    columns = rows.offsets
    query += head_at(b, h, query_strides, VECTOR)
    query += tile_at(tokens_at(tile.first, tile.group, axes.dilations), query_strides.tokens, VECTOR)
    q_rows = rows_within(columns, axes.dilations, query_strides.tokens, VECTOR, FLAGS.wide)
    q = load_columns(query, q_rows, rows.inside, 0, D, BLOCK_D)
    key += head_at(b, h // group_size, key_strides, VECTOR)
    k_rows = rows_within(columns, axes.dilations, key_strides.tokens, VECTOR, FLAGS.wide)
    steps = slot_strides(axes.windows, FLAGS.wide)
    written = own_rows(b, tile, rows, axes, heads, h) * product(axes.windows) - linear(rows.starts, steps)
    if bias is not None:
        bias_steps, middle, size = bias_strides(axes.windows)
        bias += h.to(tl.int64) * size
        query_part = linear(rows.positions, bias_steps) - middle

    at = box.begin
    for _ in range(box.count):
        token = tokens_at(at, tile.group, axes.dilations)
        there, _full = coverage(columns, at, tile, box, TILE)
        k_tile = key + tile_at(token, key_strides.tokens, VECTOR)
        k = load_columns(k_tile, k_rows, there, 0, D, BLOCK_D)
        scores = tl.dot(q, k.T, input_precision=PRECISION)
        for first in range(BLOCK_D, D, BLOCK_D):
            more = load_columns(query, q_rows, rows.inside, first, D, BLOCK_D)
            k = load_columns(k_tile, k_rows, there, first, D, BLOCK_D)
            scores = tl.dot(more, k.T, scores, input_precision=PRECISION)
        scores *= scale
        present = within(columns, at, rows) & rows.inside[:, None]
        positions = shifted(columns, at)
        if bias is not None:
            place = linear(positions, bias_steps)[None, :] - query_part[:, None]
            scores += tl.load(bias + place, mask=present, other=0.0).to(tl.float32)
        slots = attn + written[:, None] + linear(positions, steps)[None, :]
        tl.store(slots, scores.to(attn.dtype.element_ty), mask=present)
        at = next_tile(at, box.begin, box.end, TILE)


@triton.jit(do_not_specialize=RUN_TIME)
def nn(
    attn, value,
    output,  # written
    scale, heads, group_size, programs,
    axes, attn_strides, value_strides,
    D: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr,
    VECTOR: tl.constexpr, FLAGS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`output[query] = scale * sum over slots of attn[query, slot] * value[key]`, `BLOCK_D` columns of it."""
    tile, h, b, box, rows = _program(programs, heads, axes, TILE, FLAGS, False)
    if tile.beyond:
        return

    column = tl.program_id(1) * BLOCK_D
    columns = rows.offsets
    steps = slot_strides(axes.windows, FLAGS.wide)
    attn += head_at(b, h, attn_strides, 1)
    attn += tile_at(tokens_at(tile.first, tile.group, axes.dilations), attn_strides.tokens, 1)
    a_rows = rows_within(columns, axes.dilations, attn_strides.tokens, 1, FLAGS.wide) - linear(rows.starts, steps)
    value += head_at(b, h // group_size, value_strides, VECTOR)
    v_rows = rows_within(columns, axes.dilations, value_strides.tokens, VECTOR, FLAGS.wide)

    total = tl.zeros([size_of(TILE), BLOCK_D], tl.float32)
    at = box.begin
    for _ in range(box.count):
        token = tokens_at(at, tile.group, axes.dilations)
        there, _full = coverage(columns, at, tile, box, TILE)
        present = within(columns, at, rows) & rows.inside[:, None]
        slots = a_rows[:, None] + linear(shifted(columns, at), steps)[None, :]
        a = tl.load(attn + slots, mask=present, other=0.0)
        v = load_columns(value + tile_at(token, value_strides.tokens, VECTOR), v_rows, there, column, D, BLOCK_D)
        total = tl.dot(a.to(v.dtype), v, total, input_precision=PRECISION)
        at = next_tile(at, box.begin, box.end, TILE)
    written = own_rows(b, tile, rows, axes, heads, h) * D
    store_columns(output, written, rows.inside, total * scale, column, D, BLOCK_D)


@triton.jit(do_not_specialize=RUN_TIME)
def inverse(
    attn, query,
    output,  # written
    scale,
    heads,  # of keys; each gathers from its `group_size` query heads
    group_size, programs,
    axes, attn_strides, query_strides,
    D: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr,
    VECTOR: tl.constexpr, FLAGS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`output[key] = scale * sum over the queries that attend to key of attn[query, key's slot] * query`.

    A tile of keys against the box of queries that reach it.
    """
    tile, h, b, box, rows = _program(programs, heads, axes, TILE, FLAGS, True)
    if tile.beyond:
        return

    column = tl.program_id(1) * BLOCK_D
    columns = rows.offsets
    steps = slot_strides(axes.windows, FLAGS.wide)
    key_part = linear(rows.positions, steps)
    a_rows = rows_within(columns, axes.dilations, attn_strides.tokens, 1, FLAGS.wide)
    q_rows = rows_within(columns, axes.dilations, query_strides.tokens, VECTOR, FLAGS.wide)

    total = tl.zeros([size_of(TILE), BLOCK_D], tl.float32)
    for member in range(group_size):
        attn_head = attn + head_at(b, h * group_size + member, attn_strides, 1)
        query_head = query + head_at(b, h * group_size + member, query_strides, VECTOR)
        at = box.begin
        for _ in range(box.count):
            token = tokens_at(at, tile.group, axes.dilations)
            there, _full = coverage(columns, at, tile, box, TILE)
            present = within(columns, at, rows) & rows.inside[:, None]
            starts, _sizes = intervals_of(shifted(columns, at), tile.lengths, axes, FLAGS, False)
            slots = key_part[:, None] + (a_rows - linear(starts, steps))[None, :]
            a = tl.load(attn_head + tile_at(token, attn_strides.tokens, 1) + slots, mask=present, other=0.0)
            q_tile = query_head + tile_at(token, query_strides.tokens, VECTOR)
            q = load_columns(q_tile, q_rows, there, column, D, BLOCK_D)
            total = tl.dot(a.to(q.dtype), q, total, input_precision=PRECISION)
            at = next_tile(at, box.begin, box.end, TILE)
    written = own_rows(b, tile, rows, axes, heads, h) * D
    store_columns(output, written, rows.inside, total * scale, column, D, BLOCK_D)


@triton.jit
def _program(programs, heads, axes, TILE: tl.constexpr, FLAGS: tl.constexpr, INVERSE: tl.constexpr):
    """This program's tile, head and batch entry (64-bit), and the box and rows of the tile, that may be beyond."""
    index, h, b = program_of(tl.program_id(0), programs, heads)
    tile = tile_of(index, axes, TILE, FLAGS)
    return tile, h, b, box_of(tile, axes, TILE, TILE, FLAGS, INVERSE), rows_of(tile, axes, TILE, FLAGS, INVERSE)
