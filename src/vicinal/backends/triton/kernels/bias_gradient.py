"""The gradient of the relative positional bias: for each head and offset, the sum of the scores' gradients.

Programs of a head share its pairs of a query tile and a step over the whole batch, in a fixed order, and sum into
tables of their own, which are summed afterwards: no atomics, the same bits every run. Within a pair the sum runs along
diagonals: the scores' gradients are gathered from key columns into offset columns, then summed over queries.

`bias_gradient_of_classes_kernel`: where tiles are of few classes (`vicinal.backends.triton.kernels.starts`) the query
gradient's kernel writes the scores' gradients. A program reads those of one class and step, many tiles at a time, and
sums them as they are; along diagonals once, at the end.
`bias_gradient_kernel`: elsewhere, pair by pair.
"""

import triton
import triton.language as tl

from vicinal.backends.gpu.kernels.boxes import (
    box_of,
    load_axes,
    rows_of,
    rules_of_head,
    sized_intervals,
    step_of_keys,
    with_inside,
    with_intervals,
    within,
)
from vicinal.backends.gpu.kernels.memory import (
    await_previous,
    load_rows,
    load_step,
    load_tile,
    mask_rows,
    own_rows,
    rows_within,
    tokens_of,
)
from vicinal.backends.gpu.kernels.window import (
    Axes,
    Tile,
    bias_strides,
    group_length,
    linear,
    next_tile,
    positions_in,
    shifted,
    size_of,
    tile_of,
)
from vicinal.backends.triton.kernels.bias import biased
from vicinal.backends.triton.kernels.softmax import in_base_2
from vicinal.backends.triton.kernels.starts import as_scores, whole_box

ENTRIES = tl.constexpr(128)  # of a bias table, at once
ROWS = tl.constexpr(16)  # of a tile, likewise
IN_FLIGHT = tl.constexpr(4096)  # scores' gradients that a program loads at once


@triton.jit(do_not_specialize=("heads", "programs"))
def bias_gradient_of_classes_kernel(
    grad_scores,  # see `vicinal.backends.triton.kernels.classes`
    work,  # see `vicinal.backends.triton.bias_gradient`
    sums,  # scratch: a step for each program
    partial,  # written `[programs, H, 2*K0-1, ...]`
    heads,
    programs,  # tiles of one head
    classes, axes,
    TILE: tl.constexpr, STEP: tl.constexpr, WARPS: tl.constexpr, FLAGS: tl.constexpr,
    ABREAST: tl.constexpr,  # batch entries whose mean each score's gradient is
):  # fmt: skip
    RANK: tl.constexpr = len(TILE)
    BM: tl.constexpr = size_of(TILE)
    BN: tl.constexpr = size_of(STEP)
    TOGETHER: tl.constexpr = max(1, IN_FLIGHT.value // (BM * BN))
    share = tl.program_id(0)
    h = tl.program_id(1)
    await_previous(FLAGS.chained)
    work += share * (6 + 6 * RANK)
    step = tl.load(work)
    begin = tl.load(work + 1) + h * programs
    first = tl.load(work + 2)
    lines = tl.load(work + 3)
    length = tl.load(work + 4)
    apart_in_line = tl.load(work + 5)
    lengths = load_axes(work + 6, 2 * RANK)
    apart = load_axes(work + 6 + 2 * RANK, 2 * RANK)
    firsts = load_axes(work + 6 + 4 * RANK, RANK)
    groups = load_axes(work + 6 + 5 * RANK, RANK)
    size_of_tile = classes.steps.to(tl.int64) * (BM * BN)
    scores = step * (BM * BN) + tl.arange(0, BM * BN)
    found = tl.zeros([TOGETHER, BM * BN], tl.float32)
    for line in range(first, first + lines):
        at = begin
        left = line
        for axis in tl.static_range(2 * RANK):
            at += left % lengths[axis] * apart[axis]
            left = left // lengths[axis]
        for i in range(0, length, TOGETHER):
            place = i + tl.arange(0, TOGETHER)
            tiles = (at + place * apart_in_line).to(tl.int64) * size_of_tile
            mask = (place < length)[:, None] & (scores >= 0)[None, :]
            found += tl.load(grad_scores + (tiles[:, None] + scores[None, :]), mask=mask, other=0.0).to(tl.float32)

    sums += (h.to(tl.int64) * tl.num_programs(0) + share) * (BM * BN)
    BITS: tl.constexpr = grad_scores.dtype.element_ty.primitive_bitwidth
    place = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
    tl.store(sums + place, as_scores(tl.sum(found, 0) * ABREAST, TILE, STEP, WARPS, BITS))
    tl.debug_barrier()  # along diagonals a thread reads what others have written
    tile = _first_of_class(firsts, groups, axes, TILE, FLAGS)
    box = whole_box(tile, axes, TILE, FLAGS, False)
    _steps, _middle, size = bias_strides(axes.windows)
    partial += (share.to(tl.int64) * heads + h) * size
    for first_entry in range(0, size, ENTRIES):
        entry = first_entry + tl.arange(0, ENTRIES)
        left = entry
        away = ()  # of a query's key at an offset, from the box's first, less where the query is in its tile
        for axis in tl.static_range(RANK - 1, -1, -1):
            span = 2 * axes.windows[axis] - 1
            away = (left % span - axes.windows[axis] + 1 + tile.first[axis] - box.begin[axis],) + away
            left = left // span
        total = tl.zeros([ENTRIES], tl.float32)
        for first_row in range(0, BM, ROWS):
            m = first_row + tl.arange(0, ROWS)
            column = m[:, None] * 0 + entry[None, :] * 0
            there = (left == 0)[None, :] & (m < BM)[:, None]
            for axis in tl.static_range(RANK):
                key_place = away[axis][None, :] + (m // size_of(TILE, axis + 1) % TILE[axis])[:, None]
                extent = box.end[axis] - box.begin[axis]
                there = there & (key_place >= 0) & (key_place < extent)
                column = column * extent + key_place
            column -= step * BN
            there = there & (column >= 0) & (column < BN)
            total += tl.sum(tl.load(sums + (m[:, None] * BN + column), mask=there, other=0.0), 0)
        tl.store(partial + entry, total, mask=entry < size)


@triton.jit(do_not_specialize=("scale", "heads", "group_size", "batch", "programs"))
def bias_gradient_kernel(
    query, key, value, rpb, key_mask, window_sizes, table, lse, grad_output, delta,
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
        axes = Axes(axes.lengths, *rules_of_head(table, h, len(TILE)), axes.parts)
    bias_steps, middle, size = bias_strides(axes.windows)
    rpb += h.to(tl.int64) * size
    partial += (h.to(tl.int64) * shares + share) * size
    own = positions_in(TILE)
    columns = positions_in(KEY_TILE)
    k_rows = rows_within(columns, axes.dilations, strides.key.tokens, VECTOR, FLAGS.wide)
    v_rows = rows_within(columns, axes.dilations, strides.value.tokens, VECTOR, FLAGS.wide)
    m_rows = mask_rows(columns, axes, FLAGS.wide) if MASKED else None
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
        if window_sizes is not None:
            own_sizes = tl.load(window_sizes + read, mask=rows.inside, other=1)
            starts, sizes = sized_intervals(rows.positions, tile.lengths, axes, own_sizes, FLAGS)
            rows = with_intervals(rows, starts, sizes)
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
            step, _full = step_of_keys(at, tile, box, columns, key_mask, m_rows, b, axes, KEY_TILE, FLAGS, MASKED)
            k = load_step(k_head, k_rows, step, axes, strides.key.tokens, D, True, VECTOR, FLAGS, True)
            v = load_step(v_head, v_rows, step, axes, strides.value.tokens, DV, True, VECTOR, FLAGS, True)
            mask = within(columns, at, rows) & rows.inside[:, None]
            if MASKED:
                mask = mask & step.there[None, :]
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


@triton.jit
def _first_of_class(places, groups, axes, TILE: tl.constexpr, FLAGS: tl.constexpr):
    """The `Tile` at `places` among the tiles of dilation groups `groups`."""
    firsts = ()
    lengths = ()
    starts = ()
    for axis in tl.static_range(len(TILE)):
        starts = starts + (0,)
        firsts = firsts + (places[axis] * TILE[axis],)
        lengths = lengths + (group_length(axes.lengths[axis], axes.dilations[axis], groups[axis], FLAGS.dilated),)
    return Tile(groups, firsts, lengths, False, lengths, starts, lengths)


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
