"""Gradients of additional keys and values: every query attends to them, so there is no neighborhood here.

One program per tile of additional keys and slice of the queries; slices are summed afterwards, in order.
"""

import triton
import triton.language as tl

from vicinal.kernels.triton.memory import load_rows, store_rows
from vicinal.kernels.triton.softmax import LN2, LOG2E
from vicinal.kernels.triton.window import linear

RUN_TIME = "scale heads group_size additional tiles slice_size L0 L1 L2 qb q0 q1 q2 qh ekb ekm ekh evb evm evh".split()


@triton.jit(do_not_specialize=RUN_TIME)
def additional_gradient_kernel(
    query, extra_keys, extra_values, lse, grad_output, delta,
    grad_keys, grad_values,  # written: [slices, B, M, Hkv, D] and [..., Dv]
    scale, heads, group_size, additional,
    tiles,  # tiles of additional keys
    slice_size,  # queries per slice
    L0, L1, L2, qb, q0, q1, q2, qh, ekb, ekm, ekh, evb, evm, evh,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr,
    BM: tl.constexpr,  # additional keys per tile
    BN: tl.constexpr,  # queries per step
    RANK: tl.constexpr, VECTOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    kv_heads = heads // group_size
    pid = tl.program_id(0)
    first_key = pid % tiles * BM
    kv_head = pid // tiles % kv_heads
    b = (pid // tiles // kv_heads).to(tl.int64)
    batch = (tl.num_programs(0) // tiles // kv_heads).to(tl.int64)
    part = tl.program_id(1)
    start = part * slice_size
    stop = tl.minimum(start + slice_size, L0 * L1 * L2)

    m = first_key + tl.arange(0, BM)
    inside = m < additional
    extra_keys += (b * ekb + kv_head.to(tl.int64) * ekh) * VECTOR
    extra_values += (b * evb + kv_head.to(tl.int64) * evh) * VECTOR
    k = load_rows(extra_keys, m.to(tl.int64) * ekm * VECTOR, inside, D, DP, True)
    v = load_rows(extra_values, m.to(tl.int64) * evm * VECTOR, inside, DV, DVP, True)
    dk = tl.zeros([BM, DP], tl.float32)
    dv = tl.zeros([BM, DVP], tl.float32)
    for turn in range(group_size):
        h = kv_head * group_size + turn
        for first in range(start, stop, BN):
            token = first + tl.arange(0, BN)
            there = token < stop
            rows = (b * L0 * L1 * L2 + token) * heads + h
            x2 = (token % L2).to(tl.int64)
            x1 = (token // L2 % L1).to(tl.int64)
            x0 = (token // L2 // L1).to(tl.int64)
            q_rows = (linear(x0, x1, x2, q0, q1, q2, RANK) + b * qb + h.to(tl.int64) * qh) * VECTOR
            q = load_rows(query, q_rows, there, D, DP, True)
            do = load_rows(grad_output, rows * DV, there, DV, DVP, True)
            log2_total = tl.load(lse + rows, mask=there, other=0.0) * LOG2E
            difference = tl.load(delta + rows, mask=there, other=0.0)
            scores = tl.dot(k, q.T, input_precision=PRECISION)
            p = tl.where(there[None, :], tl.exp2(scores * scale - log2_total[None, :]), 0.0)
            dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
            weights_gradient = tl.dot(v, do.T, input_precision=PRECISION)
            ds = p * (weights_gradient - difference[None, :])
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)

    rows = (((part * batch + b) * additional + m) * kv_heads + kv_head).to(tl.int64)
    store_rows(grad_keys, rows * D, inside, dk * (scale * LN2), D, DP)
    store_rows(grad_values, rows * DV, inside, dv, DV, DVP)
