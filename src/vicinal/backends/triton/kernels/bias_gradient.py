"""The gradient of the relative positional bias: for each head and offset, the sum of the scores' gradients.

Programs of a head share its pairs of a query tile and a step over the whole batch, in a fixed order, and sum into
tables of their own, which are summed afterwards: no atomics, the same bits every run. Within a pair the sum runs along
diagonals: the scores' gradients are gathered from key columns into offset columns, then summed over queries.

`bias_gradient_of_classes_kernel`: where tiles are of few classes (`vicinal.backends.triton.kernels.bias`) a program has
pairs of one class and step only. They have the same biases, made once, and the same diagonals: the scores' gradients
are summed as they are, and along diagonals once, at the end.
`bias_gradient_kernel`: wherever tiles are, pair by pair.
"""

import triton
import triton.language as tl

from vicinal.backends.gpu.kernels.boxes import (
    box_of,
    coverage,
    load_axes,
    rows_of,
    rules_of_head,
    sized_intervals,
    step_at,
    with_inside,
    with_intervals,
    within,
)
from vicinal.backends.gpu.kernels.memory import (
    Step,
    around,
    head_at,
    keys_there,
    load_rows,
    load_step,
    load_tile,
    mask_rows,
    own_rows,
    rows_within,
    tile_at,
    token_rows,
    token_strides,
    tokens_of,
    walked_mask_rows,
)
from vicinal.backends.gpu.kernels.window import (
    Axes,
    Tile,
    bias_strides,
    group_length,
    linear,
    next_tile,
    positions_in,
    product,
    shifted,
    size_of,
    tile_of,
    tokens_at,
)
from vicinal.backends.triton.kernels.bias import biased, in_window
from vicinal.backends.triton.kernels.softmax import in_base_2


@triton.jit(do_not_specialize=("scale", "heads", "group_size", "batch", "along"))
def bias_gradient_of_classes_kernel(
    query, key, value, rpb,
    work,  # `[programs, 3 + 4 * rank]`, see `vicinal.backends.triton.bias_gradient`
    lse, grad_output, delta,
    partial,  # zeros [H, programs, 2*K0-1, ...], written
    scale, heads, group_size, batch,
    along,  # what the inner loop goes along: an axis, or the batch if -1
    axes, strides,
    D: tl.constexpr, DV: tl.constexpr,
    TILE: tl.constexpr, KEY_TILE: tl.constexpr,
    VECTOR: tl.constexpr, FLAGS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    RANK: tl.constexpr = len(TILE)
    share = tl.program_id(0)
    h = tl.program_id(1)
    kv_head = h // group_size
    work += share * (3 + 4 * RANK)
    step = tl.load(work)
    first = tl.load(work + 1)
    pairs = tl.load(work + 2)
    firsts = load_axes(work + 3, RANK)  # of the class: its first tile, how many there are,
    counts = load_axes(work + 3 + RANK, RANK)
    groups = load_axes(work + 3 + 2 * RANK, RANK)  # the first of its dilation groups, how many there are
    abreast = load_axes(work + 3 + 3 * RANK, RANK)
    tile = _first_of_class(firsts, groups, axes, TILE, FLAGS)
    box = box_of(tile, axes, TILE, KEY_TILE, FLAGS, False)
    rows = rows_of(tile, axes, TILE, FLAGS, False)
    at = step_at(step, box, KEY_TILE)
    columns = positions_in(KEY_TILE)
    there, _full = coverage(columns, at, tile, box, KEY_TILE)
    bias_steps, middle, size = bias_strides(axes.windows)
    entry = linear(shifted(columns, at), bias_steps)[None, :] - linear(rows.positions, bias_steps)[:, None] + middle
    bias = in_window(rpb + h.to(tl.int64) * size + entry, within(columns, at, rows) & rows.inside[:, None])

    own = positions_in(TILE)
    q_rows = rows_within(own, axes.dilations, strides.query.tokens, VECTOR, FLAGS.wide)
    o_rows = rows_within(own, axes.dilations, token_strides(axes.lengths), 1, FLAGS.wide) * heads
    k_rows = rows_within(columns, axes.dilations, strides.key.tokens, VECTOR, FLAGS.wide)
    v_rows = rows_within(columns, axes.dilations, strides.value.tokens, VECTOR, FLAGS.wide)
    tokens = product(axes.lengths)
    q_apart = _apart(strides.query.batch, strides.query.tokens, axes.dilations, along, TILE) * VECTOR
    k_apart = _apart(strides.key.batch, strides.key.tokens, axes.dilations, along, TILE) * VECTOR
    v_apart = _apart(strides.value.batch, strides.value.tokens, axes.dilations, along, TILE) * VECTOR
    row_apart = _apart(tokens, token_strides(axes.lengths), axes.dilations, along, TILE) * heads
    inner = batch
    for axis in tl.static_range(RANK):
        inner = tl.where(along == axis, counts[axis], inner)
    sums = tl.zeros([size_of(TILE), size_of(KEY_TILE)], tl.float32)
    for outer in range(first // inner, (first + pairs - 1) // inner + 1):
        places, left = _last_fastest(outer, counts, along)
        beside, left = _last_fastest(left, abreast, -1)
        b = left.to(tl.int64)
        group = shifted(beside, groups)
        token = tokens_at(_moved(tile.first, places, TILE), group, axes.dilations)
        key_token = tokens_at(_moved(at, places, TILE), group, axes.dilations)
        q_head = query + head_at(b, h, strides.query, VECTOR) + tile_at(token, strides.query.tokens, VECTOR)
        k_head = key + head_at(b, kv_head, strides.key, VECTOR) + tile_at(key_token, strides.key.tokens, VECTOR)
        v_head = value + head_at(b, kv_head, strides.value, VECTOR) + tile_at(key_token, strides.value.tokens, VECTOR)
        row = token_rows(b, token, axes.lengths, heads, h)
        for i in range(tl.maximum(first - outer * inner, 0), tl.minimum(first + pairs - outer * inner, inner)):
            at_row = row + i * row_apart
            q = load_rows(q_head + i * q_apart, q_rows, rows.inside, D, True)
            k = load_rows(k_head + i * k_apart, k_rows, there, D, FLAGS.checked)
            do = load_rows(grad_output + at_row * DV, o_rows * DV, rows.inside, DV, True)
            v = load_rows(v_head + i * v_apart, v_rows, there, DV, FLAGS.checked)
            log2_total = in_base_2(tl.load(lse + at_row + o_rows, mask=rows.inside, other=0.0), False)
            difference = tl.load(delta + at_row + o_rows, mask=rows.inside, other=0.0)
            scores = tl.dot(q, k.T, input_precision=PRECISION)
            weights_gradient = tl.dot(do, v.T, input_precision=PRECISION)
            p = tl.exp2(scores * scale + bias - log2_total[:, None])
            sums += p * (weights_gradient - difference[:, None])

    OFFSETS: tl.constexpr = _offsets_of(TILE, KEY_TILE)
    offsets = positions_in(OFFSETS)
    has_key, column = _columns_of(offsets, own, TILE, KEY_TILE)
    diagonals = tl.sum(tl.where(has_key, tl.gather(sums, column, 1), 0.0), 0)
    entry, listed = _entries(offsets, at, tile.first, axes.windows, bias_steps, TILE)
    partial += (h.to(tl.int64) * tl.num_programs(0) + share) * size
    tl.store(partial + entry + middle, diagonals, mask=listed)


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
        rules = rules_of_head(table, h, len(axes.lengths))
        axes = Axes(axes.lengths, rules[0], rules[1], rules[2], rules[3], axes.parts)
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
            token = around(tokens_at(at, tile.group, axes.dilations), axes, FLAGS, True)
            there, _full = coverage(columns, at, tile, box, KEY_TILE)
            if MASKED:
                there = keys_there(
                    key_mask, b, token, walked_mask_rows(m_rows, token, columns, axes, FLAGS), axes, there
                )
            step = Step(token, columns, there)
            k = load_step(k_head, k_rows, step, axes, strides.key.tokens, D, True, VECTOR, FLAGS, True)
            v = load_step(v_head, v_rows, step, axes, strides.value.tokens, DV, True, VECTOR, FLAGS, True)
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


@triton.jit
def _moved(positions, tiles, TILE: tl.constexpr):
    """`positions`, so many tiles further along each axis."""
    moved = ()
    for axis in tl.static_range(len(TILE)):
        moved = moved + (positions[axis] + tiles[axis] * TILE[axis],)
    return moved


@triton.jit
def _last_fastest(number, counts, without):
    """A row-major number among `counts` -> the place along each axis, 0 along one, and what is left of the number."""
    places = ()
    for axis in tl.static_range(len(counts) - 1, -1, -1):
        count = tl.where(without == axis, 1, counts[axis])
        places = (number % count,) + places
        number = number // count
    return places, number


@triton.jit
def _apart(batch, tokens, dilations, along, TILE: tl.constexpr):
    """How far apart two tiles are that follow each other `along` an axis or the batch, by the strides of both."""
    apart = batch.to(tl.int64)
    for axis in tl.static_range(len(TILE)):
        apart = tl.where(along == axis, tokens[axis].to(tl.int64) * (dilations[axis] * TILE[axis]), apart)
    return apart


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
