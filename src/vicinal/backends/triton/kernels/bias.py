"""The gradient of the relative positional bias: for each head and offset, the sum of the scores' gradients.

Programs of a head share its query tiles over the whole batch in a fixed order and sum into tables of their own, which
are summed afterwards: no atomics, the same bits every run. Within a pair of tiles the sum runs along diagonals: the
scores' gradients are gathered from key columns into offset columns, then summed over queries.
"""

import triton
import triton.language as tl

from vicinal.backends.gpu.kernels.boxes import axes_of_head, box_of, coverage, rows_of, with_inside, within
from vicinal.backends.gpu.kernels.memory import (
    keys_there,
    load_rows,
    load_tile,
    mask_rows,
    own_rows,
    rows_within,
    tile_at,
    tokens_of,
)
from vicinal.backends.gpu.kernels.window import (
    bias_strides,
    linear,
    next_tile,
    positions_in,
    shifted,
    tile_of,
    tokens_at,
)
from vicinal.backends.triton.kernels.softmax import biased, in_base_2


@triton.jit(do_not_specialize=("scale", "heads", "group_size", "batch", "programs"))
def bias_gradient_kernel(
    query, key, value, rpb, key_mask, table, lse, grad_output, delta,
    partial,  # zeros [H, shares, 2*K0-1, ...], added to
    scale, heads, group_size, batch, programs,
    axes, strides,
    D: tl.constexpr, DV: tl.constexpr,
    TILE: tl.constexpr, KEY_TILE: tl.constexpr,
    VECTOR: tl.constexpr, FLAGS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    MASKED: tl.constexpr = key_mask is not None
    share = tl.program_id(0)
    shares = tl.num_programs(0)
    h = tl.program_id(1)
    kv_head = h // group_size
    if table is not None:
        axes = axes_of_head(axes, table, h)
    bias_steps, middle, size = bias_strides(axes.windows)
    rpb += h.to(tl.int64) * size
    partial += (h.to(tl.int64) * shares + share) * size
    own = positions_in(TILE)
    columns = positions_in(KEY_TILE)
    k_rows = rows_within(columns, axes.dilations, strides.key.tokens, VECTOR, FLAGS.wide)
    v_rows = rows_within(columns, axes.dilations, strides.value.tokens, VECTOR, FLAGS.wide)
    if MASKED:
        m_rows = mask_rows(columns, axes, FLAGS.wide)
    OFFSETS: tl.constexpr = _offsets_of(TILE, KEY_TILE)
    offsets = positions_in(OFFSETS)
    has_key, column = _columns_of(offsets, own, TILE, KEY_TILE)

    for item in range(share, programs * batch, shares):
        b = (item // programs).to(tl.int64)
        tile = tile_of(item % programs, axes, TILE, FLAGS)
        box = box_of(tile, axes, TILE, KEY_TILE, FLAGS, False)
        count = tl.where(tile.beyond, 0, box.count)
        rows = rows_of(tile, axes, TILE, FLAGS, False)
        read = own_rows(b, tile, rows, axes, heads, h)
        own_lse = tl.load(lse + read, mask=rows.inside, other=0.0)
        log2_total = in_base_2(own_lse, MASKED)
        if MASKED:
            rows = with_inside(rows, rows.inside & (own_lse != float("-inf")))
        do = load_rows(grad_output, read * DV, rows.inside, DV, True)
        difference = tl.load(delta + read, mask=rows.inside, other=0.0)
        q_head = tokens_of(query, b, h, axes, strides.query, False, VECTOR)
        q = load_tile(q_head, tile, rows, axes.dilations, strides.query.tokens, D, VECTOR, FLAGS.wide)
        k_head = tokens_of(key, b, kv_head, axes, strides.key, True, VECTOR)
        v_head = tokens_of(value, b, kv_head, axes, strides.value, True, VECTOR)
        query_part = linear(rows.positions, bias_steps) - middle
        at = box.begin
        for _ in range(count):
            token = tokens_at(at, tile.group, axes.dilations)
            there, _full = coverage(columns, at, tile, box, KEY_TILE)
            if MASKED:
                there = keys_there(key_mask, b, token, m_rows, axes, there)
            k = load_rows(k_head + tile_at(token, strides.key.tokens, VECTOR), k_rows, there, D, True)
            v = load_rows(v_head + tile_at(token, strides.value.tokens, VECTOR), v_rows, there, DV, True)
            mask = within(columns, at, rows) & rows.inside[:, None]
            if MASKED:
                mask = mask & there[None, :]
            key_part = linear(shifted(columns, at), bias_steps)
            scores = tl.dot(q, k.T, input_precision=PRECISION)
            scores = biased(scores, mask, rpb, key_part[None, :], query_part[:, None], scale)
            p = tl.exp2(scores - log2_total[:, None])
            ds = p * (tl.dot(do, v.T, input_precision=PRECISION) - difference[:, None])
            sums = tl.sum(tl.where(has_key, tl.gather(ds, column, 1), 0.0), 0)
            entry, listed = _entries(offsets, at, tile.first, axes.windows, bias_steps, TILE)
            entries = partial + entry + middle
            tl.store(entries, tl.load(entries, mask=listed, other=0.0) + sums, mask=listed)
            tl.debug_barrier()  # another thread may add to the same entry in the next step
            at = next_tile(at, box.begin, box.end, KEY_TILE)


@triton.constexpr_function
def _offsets_of(TILE, KEY_TILE):
    """How many offsets there are between a query and a key of two tiles, per axis, padded to powers of two."""
    return tuple([1 if t * n == 1 else 2 * max(t, n) for t, n in zip(TILE, KEY_TILE)])


@triton.jit
def _columns_of(offsets, own, TILE: tl.constexpr, KEY_TILE: tl.constexpr):
    """`[queries, offsets]`: whether there is a key at an offset (from the least one), and its column."""
    column = 0
    has_key = True
    for axis in tl.static_range(len(TILE)):
        key = offsets[axis][None, :] + own[axis][:, None] - (TILE[axis] - 1)
        has_key = (key >= 0) & (key < KEY_TILE[axis]) & has_key
        column = column * KEY_TILE[axis] + key
    return has_key, tl.where(has_key, column, 0)


@triton.jit
def _entries(offsets, at, first, windows, bias_steps, TILE: tl.constexpr):
    """Where a pair of tiles' offsets are in a head's table, from offset 0; those past the table got no scores."""
    LAST: tl.constexpr = len(TILE) - 1
    offset = at[LAST] - first[LAST] + offsets[LAST] - (TILE[LAST] - 1)
    listed = (offset > -windows[LAST]) & (offset < windows[LAST])
    entry = offset * bias_steps[LAST]
    for axis in tl.static_range(LAST - 1, -1, -1):
        offset = at[axis] - first[axis] + offsets[axis] - (TILE[axis] - 1)
        listed = listed & (offset > -windows[axis]) & (offset < windows[axis])
        entry = entry + offset * bias_steps[axis]
    return entry, listed
