"""Additional keys and values: every query attends to them, so there is no neighborhood here.

A tile of queries walks them after its box. Their own gradients: one program per tile of additional keys and slice of
the queries; slices are summed afterwards, in order.
"""

import triton
import triton.language as tl

from vicinal.backends.gpu.kernels.memory import head_at, load_rows, padded, store_rows, tile_at
from vicinal.backends.gpu.kernels.window import product, unravelled
from vicinal.backends.triton.kernels.softmax import LN2, attend, in_base_2


@triton.jit(do_not_specialize=("scale", "heads", "group_size", "additional", "tiles", "slice_size"))
def additional_gradient_kernel(
    query, extra_keys, extra_values, lse, grad_output, delta,
    grad_keys, grad_values,  # written: [slices, B, M, Hkv, D] and [..., Dv]; None where nobody needs it
    scale, heads, group_size, additional,
    tiles,  # tiles of additional keys
    slice_size,  # queries per slice
    axes, strides,
    D: tl.constexpr, DV: tl.constexpr,
    BM: tl.constexpr,  # additional keys per tile
    BN: tl.constexpr,  # queries per step
    VECTOR: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    kv_heads = heads // group_size
    pid = tl.program_id(0)
    first_key = pid % tiles * BM
    kv_head = pid // tiles % kv_heads
    b = (pid // tiles // kv_heads).to(tl.int64)
    batch = (tl.num_programs(0) // tiles // kv_heads).to(tl.int64)
    part = tl.program_id(1)
    start = part * slice_size
    tokens = product(axes.lengths)
    stop = tl.minimum(start + slice_size, tokens)

    m = first_key + tl.arange(0, BM)
    inside = m < additional
    extra_keys += head_at(b, kv_head, strides.extra_keys, VECTOR)
    extra_values += head_at(b, kv_head, strides.extra_values, VECTOR)
    k = load_rows(extra_keys, tile_at((m,), strides.extra_keys.tokens, VECTOR), inside, D, True)
    if grad_keys is not None:
        v = load_rows(extra_values, tile_at((m,), strides.extra_values.tokens, VECTOR), inside, DV, True)
        dk = tl.zeros([BM, padded(D)], tl.float32)
    if grad_values is not None:
        dv = tl.zeros([BM, padded(DV)], tl.float32)
    for turn in range(group_size):
        h = kv_head * group_size + turn
        for first in range(start, stop, BN):
            token = first + tl.arange(0, BN)
            there = token < stop
            rows = (b * tokens + token) * heads + h
            q_rows = tile_at(unravelled(token, axes.lengths), strides.query.tokens, VECTOR)
            q_rows += head_at(b, h, strides.query, VECTOR)
            own_lse = tl.load(lse + rows, mask=there, other=0.0)
            log2_total = in_base_2(own_lse, MASKED)
            if MASKED:
                there = there & (own_lse != float("-inf"))
            q = load_rows(query, q_rows, there, D, True)
            do = load_rows(grad_output, rows * DV, there, DV, True)
            scores = tl.dot(k, q.T, input_precision=PRECISION)
            p = tl.where(there[None, :], tl.exp2(scores * scale - log2_total[None, :]), 0.0)
            if grad_values is not None:
                dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
            if grad_keys is not None:
                difference = tl.load(delta + rows, mask=there, other=0.0)
                weights_gradient = tl.dot(v, do.T, input_precision=PRECISION)
                ds = p * (weights_gradient - difference[None, :])
                dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)

    rows = (((part * batch + b) * additional + m) * kv_heads + kv_head).to(tl.int64)
    if grad_keys is not None:
        store_rows(grad_keys, rows * D, inside, dk * (scale * LN2), D)
    if grad_values is not None:
        store_rows(grad_values, rows * DV, inside, dv, DV)


@triton.jit
def _step(first, pointer, additional, strides, SIZE: tl.constexpr, BN: tl.constexpr, VECTOR: tl.constexpr):
    """Which of the `BN` additional tokens from `first` on there are, and their rows of the head at `pointer`."""
    m = first + tl.arange(0, BN)
    there = m < additional
    return there, load_rows(pointer, tile_at((m,), strides.tokens, VECTOR), there, SIZE, True)


@triton.jit
def attend_additional(
    q, extra_keys, extra_values, batch, kv_head, additional, strides,
    maximum, total, accumulated, scale,
    D: tl.constexpr, DV: tl.constexpr, BN: tl.constexpr, VECTOR: tl.constexpr,
    SCALED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The online softmax (`attend`) over the additional keys, `BN` at a time."""
    extra_keys += head_at(batch, kv_head, strides.extra_keys, VECTOR)
    extra_values += head_at(batch, kv_head, strides.extra_values, VECTOR)
    for first in range(0, additional, BN):
        there, k = _step(first, extra_keys, additional, strides.extra_keys, D, BN, VECTOR)
        scores = tl.dot(q, k.T, input_precision=PRECISION)
        if SCALED:
            scores *= scale
        scores = tl.where(there[None, :], scores, float("-inf"))
        _, v = _step(first, extra_values, additional, strides.extra_values, DV, BN, VECTOR)
        maximum, total, accumulated = attend(scores, v, maximum, total, accumulated, scale, SCALED, PRECISION)
    return maximum, total, accumulated


@triton.jit
def add_from_additional(
    q, do, extra_keys, extra_values, batch, kv_head, additional, strides,
    log2_total, difference, accumulated, scale,
    D: tl.constexpr, DV: tl.constexpr, BN: tl.constexpr, VECTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What the additional keys add to the gradient of queries, `BN` at a time."""
    extra_keys += head_at(batch, kv_head, strides.extra_keys, VECTOR)
    extra_values += head_at(batch, kv_head, strides.extra_values, VECTOR)
    for first in range(0, additional, BN):
        there, k = _step(first, extra_keys, additional, strides.extra_keys, D, BN, VECTOR)
        _, v = _step(first, extra_values, additional, strides.extra_values, DV, BN, VECTOR)
        scores = tl.dot(q, k.T, input_precision=PRECISION)
        weights_gradient = tl.dot(do, v.T, input_precision=PRECISION)
        p = tl.where(there[None, :], tl.exp2(scores * scale - log2_total[:, None]), 0.0)
        ds = p * (weights_gradient - difference[:, None])
        accumulated = tl.dot(ds.to(k.dtype), k, accumulated, input_precision=PRECISION)
    return accumulated
