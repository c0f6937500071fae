"""Fused neighborhood attention, backward: two kernels, no atomics, the same bits every run.

`query_gradient_kernel`: one program per tile of queries, walking the box of keys, as forward does. It also computes
delta (the row sums of output times its gradient) for the kernels that follow.
`key_value_gradient_kernel`: one program per tile of keys, walking the box of queries that reach it, and the heads of
its group in order. A key's queries along an axis are an interval too, so its mask costs what the forward's does.

Source: FlashAttention-2 (arXiv 2307.08691, algorithm 2), its one loop with atomic sums of dQ split in two.
"""

import triton
import triton.language as tl

from vicinal.kernels.triton.boxes import box_of, intervals_of, neighborhood_of, tile_coverage, within
from vicinal.kernels.triton.memory import load_rows, rows_within, store_rows, tile_at, token_rows
from vicinal.kernels.triton.softmax import LN2, LOG2E, bias_strides, biased
from vicinal.kernels.triton.window import decode_tile, group_length, linear, next_tile, tile_positions

RUN_TIME = (
    "scale heads group_size additional programs L0 L1 L2 K0 K1 K2 S0 S1 S2 E0 E1 E2 M0 M1 M2 "
    "qb q0 q1 q2 qh kb k0 k1 k2 kh vb v0 v1 v2 vh ekb ekm ekh evb evm evh"
).split()


@triton.jit(do_not_specialize=RUN_TIME)
def query_gradient_kernel(
    query, key, value, extra_keys, extra_values, rpb, table, output, lse, grad_output, grad_lse,
    delta, grad_query,  # written
    scale, heads, group_size, additional, programs,
    L0, L1, L2, K0, K1, K2, S0, S1, S2, E0, E1, E2, M0, M1, M2,
    qb, q0, q1, q2, qh, kb, k0, k1, k2, kh, vb, v0, v1, v2, vh,
    ekb, ekm, ekh, evb, evm, evh,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr,
    T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr,  # query tile
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr,  # key tile
    RANK: tl.constexpr, VECTOR: tl.constexpr, WIDE: tl.constexpr,
    STRIDED: tl.constexpr, DILATED: tl.constexpr, MODED: tl.constexpr, PER_HEAD: tl.constexpr,
    CHECKED: tl.constexpr, HAS_RPB: tl.constexpr, HAS_EXTRA: tl.constexpr, HAS_GRAD_LSE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    BN: tl.constexpr = N0 * N1 * N2
    pid = tl.program_id(0)
    h = pid // programs % heads
    b = (pid // programs // heads).to(tl.int64)
    kv_head = (h // group_size).to(tl.int64)
    if PER_HEAD:
        K0, K1, K2, S0, S1, S2, E0, E1, E2, M0, M1, M2 = neighborhood_of(table, h)
    g0, g1, g2, f0, f1, f2 = decode_tile(pid % programs, L0, L1, L2, E0, E1, E2, T0, T1, T2, RANK, DILATED)
    G0 = group_length(L0, E0, g0, DILATED)
    G1 = group_length(L1, E1, g1, DILATED)
    G2 = group_length(L2, E2, g2, DILATED)
    if (f0 >= G0) | (f1 >= G1) | (f2 >= G2):
        return

    count, begin0, begin1, begin2, end1, end2, low0, low1, low2, high0, high1, high2 = box_of(
        f0, f1, f2, G0, G1, G2, K0, K1, K2, S0, S1, S2, M0, M1, M2,
        T0, T1, T2, N0, N1, N2, RANK, STRIDED, MODED, False,
    )  # fmt: skip
    t0, t1, t2 = tile_positions(T0, T1, T2)
    inside, w0, w1, w2, n0, n1, n2 = intervals_of(
        f0 + t0, f1 + t1, f2 + t2, G0, G1, G2, K0, K1, K2, S0, S1, S2, M0, M1, M2, RANK, STRIDED, MODED, False
    )
    rows = token_rows(b, g0 + (f0 + t0) * E0, g1 + (f1 + t1) * E1, g2 + (f2 + t2) * E2, L0, L1, L2, heads, h, RANK)
    do = load_rows(grad_output, rows * DV, inside, DV, DVP, True)
    o = load_rows(output, rows * DV, inside, DV, DVP, True)
    difference = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    if HAS_GRAD_LSE:
        difference -= tl.load(grad_lse + rows, mask=inside, other=0.0)
    tl.store(delta + rows, difference, mask=inside)
    log2_total = tl.load(lse + rows, mask=inside, other=0.0) * LOG2E
    query += (b * qb + h.to(tl.int64) * qh) * VECTOR
    query += tile_at(g0 + f0 * E0, g1 + f1 * E1, g2 + f2 * E2, q0, q1, q2, VECTOR, RANK)
    q = load_rows(query, rows_within(t0, t1, t2, E0, E1, E2, q0, q1, q2, VECTOR, RANK, WIDE), inside, D, DP, True)

    j0, j1, j2 = tile_positions(N0, N1, N2)
    k_rows = rows_within(j0, j1, j2, E0, E1, E2, k0, k1, k2, VECTOR, RANK, WIDE)
    v_rows = rows_within(j0, j1, j2, E0, E1, E2, v0, v1, v2, VECTOR, RANK, WIDE)
    key += (b * kb + kv_head * kh) * VECTOR
    value += (b * vb + kv_head * vh) * VECTOR
    if HAS_RPB:
        r0, r1, middle, size = bias_strides(K0, K1, K2, RANK)
        rpb += h * size
        query_part = linear(f0 + t0, f1 + t1, f2 + t2, r0, r1, 1, RANK) - middle

    accumulated = tl.zeros([T0 * T1 * T2, DP], tl.float32)
    c0 = begin0
    c1 = begin1
    c2 = begin2
    for _ in range(count):
        x0 = g0 + c0 * E0
        x1 = g1 + c1 * E1
        x2 = g2 + c2 * E2
        there, full = tile_coverage(
            j0, j1, j2, c0, c1, c2, G0, G1, G2, low0, low1, low2, high0, high1, high2, N0, N1, N2, RANK
        )
        k = load_rows(key + tile_at(x0, x1, x2, k0, k1, k2, VECTOR, RANK), k_rows, there, D, DP, CHECKED)
        v = load_rows(value + tile_at(x0, x1, x2, v0, v1, v2, VECTOR, RANK), v_rows, there, DV, DVP, CHECKED)
        scores = tl.dot(q, k.T, input_precision=PRECISION)
        weights_gradient = tl.dot(do, v.T, input_precision=PRECISION)
        if HAS_RPB:
            mask = within(j0, j1, j2, w0 - c0, w1 - c1, w2 - c2, n0, n1, n2, RANK) & inside[:, None]
            key_part = linear(c0 + j0, c1 + j1, c2 + j2, r0, r1, 1, RANK)
            scores = biased(scores, mask, rpb, key_part[None, :], query_part[:, None], scale)
            p = tl.exp2(scores - log2_total[:, None])
        else:
            p = tl.exp2(scores * scale - log2_total[:, None])
            if not full:
                mask = within(j0, j1, j2, w0 - c0, w1 - c1, w2 - c2, n0, n1, n2, RANK)
                p = tl.where(mask, p, 0.0)
        ds = p * (weights_gradient - difference[:, None])
        accumulated = tl.dot(ds.to(k.dtype), k, accumulated, input_precision=PRECISION)
        c0, c1, c2 = next_tile(c0, c1, c2, begin1, begin2, end1, end2, N0, N1, N2, RANK)

    if HAS_EXTRA:
        extra_keys += (b * ekb + kv_head * ekh) * VECTOR
        extra_values += (b * evb + kv_head * evh) * VECTOR
        for first in range(0, additional, BN):
            m = first + tl.arange(0, BN)
            there = m < additional
            k = load_rows(extra_keys, m.to(tl.int64) * ekm * VECTOR, there, D, DP, True)
            v = load_rows(extra_values, m.to(tl.int64) * evm * VECTOR, there, DV, DVP, True)
            scores = tl.dot(q, k.T, input_precision=PRECISION)
            weights_gradient = tl.dot(do, v.T, input_precision=PRECISION)
            p = tl.where(there[None, :], tl.exp2(scores * scale - log2_total[:, None]), 0.0)
            ds = p * (weights_gradient - difference[:, None])
            accumulated = tl.dot(ds.to(k.dtype), k, accumulated, input_precision=PRECISION)

    store_rows(grad_query, rows * D, inside, accumulated * (scale * LN2), D, DP)


@triton.jit(do_not_specialize=RUN_TIME)
def key_value_gradient_kernel(
    query, key, value, rpb, table, lse, grad_output, delta,
    grad_key, grad_value,  # written
    scale, heads, group_size, programs,
    L0, L1, L2, K0, K1, K2, S0, S1, S2, E0, E1, E2, M0, M1, M2,
    qb, q0, q1, q2, qh, kb, k0, k1, k2, kh, vb, v0, v1, v2, vh,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr,
    T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr,  # key tile
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr,  # query tile
    RANK: tl.constexpr, VECTOR: tl.constexpr, WIDE: tl.constexpr,
    STRIDED: tl.constexpr, DILATED: tl.constexpr, MODED: tl.constexpr, PER_HEAD: tl.constexpr,
    CHECKED: tl.constexpr, HAS_RPB: tl.constexpr,
    GROUPED: tl.constexpr,  # a program sums over the query heads of its key head
    PER_QUERY_HEAD: tl.constexpr,  # gradients have one entry per query head, to be summed over each group later
    PRECISION: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    out_heads = heads if PER_QUERY_HEAD else heads // group_size
    out_head = pid // programs % out_heads
    b = (pid // programs // out_heads).to(tl.int64)
    first_head = out_head if PER_QUERY_HEAD else out_head * group_size
    turns = group_size if GROUPED else 1
    kv_head = (first_head // group_size).to(tl.int64)
    if PER_HEAD:
        K0, K1, K2, S0, S1, S2, E0, E1, E2, M0, M1, M2 = neighborhood_of(table, first_head)
    g0, g1, g2, f0, f1, f2 = decode_tile(pid % programs, L0, L1, L2, E0, E1, E2, T0, T1, T2, RANK, DILATED)
    G0 = group_length(L0, E0, g0, DILATED)
    G1 = group_length(L1, E1, g1, DILATED)
    G2 = group_length(L2, E2, g2, DILATED)
    if (f0 >= G0) | (f1 >= G1) | (f2 >= G2):
        return

    count, begin0, begin1, begin2, end1, end2, low0, low1, low2, high0, high1, high2 = box_of(
        f0, f1, f2, G0, G1, G2, K0, K1, K2, S0, S1, S2, M0, M1, M2,
        T0, T1, T2, N0, N1, N2, RANK, STRIDED, MODED, True,
    )  # fmt: skip
    t0, t1, t2 = tile_positions(T0, T1, T2)
    inside, w0, w1, w2, n0, n1, n2 = intervals_of(
        f0 + t0, f1 + t1, f2 + t2, G0, G1, G2, K0, K1, K2, S0, S1, S2, M0, M1, M2, RANK, STRIDED, MODED, True
    )
    key += (b * kb + kv_head * kh) * VECTOR
    key += tile_at(g0 + f0 * E0, g1 + f1 * E1, g2 + f2 * E2, k0, k1, k2, VECTOR, RANK)
    value += (b * vb + kv_head * vh) * VECTOR
    value += tile_at(g0 + f0 * E0, g1 + f1 * E1, g2 + f2 * E2, v0, v1, v2, VECTOR, RANK)
    k = load_rows(key, rows_within(t0, t1, t2, E0, E1, E2, k0, k1, k2, VECTOR, RANK, WIDE), inside, D, DP, True)
    v = load_rows(value, rows_within(t0, t1, t2, E0, E1, E2, v0, v1, v2, VECTOR, RANK, WIDE), inside, DV, DVP, True)

    j0, j1, j2 = tile_positions(N0, N1, N2)
    q_rows = rows_within(j0, j1, j2, E0, E1, E2, q0, q1, q2, VECTOR, RANK, WIDE)
    o_rows = rows_within(j0, j1, j2, E0, E1, E2, L1 * L2, L2, 1, 1, RANK, WIDE) * heads
    query += (b * qb + first_head.to(tl.int64) * qh) * VECTOR
    if HAS_RPB:
        r0, r1, middle, size = bias_strides(K0, K1, K2, RANK)
        key_part = linear(f0 + t0, f1 + t1, f2 + t2, r0, r1, 1, RANK) + middle

    dk = tl.zeros([T0 * T1 * T2, DP], tl.float32)
    dv = tl.zeros([T0 * T1 * T2, DVP], tl.float32)
    h = first_head
    c0 = begin0
    c1 = begin1
    c2 = begin2
    left = count
    for _ in range(count * turns):
        x0 = g0 + c0 * E0
        x1 = g1 + c1 * E1
        x2 = g2 + c2 * E2
        there, full = tile_coverage(
            j0, j1, j2, c0, c1, c2, G0, G1, G2, low0, low1, low2, high0, high1, high2, N0, N1, N2, RANK
        )
        row = token_rows(b, x0, x1, x2, L0, L1, L2, heads, h, RANK)
        q = load_rows(query + tile_at(x0, x1, x2, q0, q1, q2, VECTOR, RANK), q_rows, there, D, DP, CHECKED)
        do = load_rows(grad_output + row * DV, o_rows * DV, there, DV, DVP, CHECKED)
        if CHECKED:
            log2_total = tl.load(lse + row + o_rows, mask=there, other=0.0) * LOG2E
            difference = tl.load(delta + row + o_rows, mask=there, other=0.0)
        else:
            log2_total = tl.load(lse + row + o_rows) * LOG2E
            difference = tl.load(delta + row + o_rows)
        scores = tl.dot(k, q.T, input_precision=PRECISION)
        if HAS_RPB:
            mask = within(j0, j1, j2, w0 - c0, w1 - c1, w2 - c2, n0, n1, n2, RANK) & inside[:, None]
            query_part = linear(c0 + j0, c1 + j1, c2 + j2, r0, r1, 1, RANK)
            scores = biased(scores, mask, rpb + h * size, key_part[:, None], query_part[None, :], scale)
            p = tl.exp2(scores - log2_total[None, :])
        else:
            p = tl.exp2(scores * scale - log2_total[None, :])
            if not full:
                mask = within(j0, j1, j2, w0 - c0, w1 - c1, w2 - c2, n0, n1, n2, RANK)
                p = tl.where(mask, p, 0.0)
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
        weights_gradient = tl.dot(v, do.T, input_precision=PRECISION)
        ds = p * (weights_gradient - difference[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
        c0, c1, c2 = next_tile(c0, c1, c2, begin1, begin2, end1, end2, N0, N1, N2, RANK)
        if GROUPED:  # the group's next head, once the box is walked
            left -= 1
            walked = left == 0
            left = tl.where(walked, count, left)
            c0 = tl.where(walked, begin0, c0)
            c1 = tl.where(walked, begin1, c1)
            c2 = tl.where(walked, begin2, c2)
            h = tl.where(walked, h + 1, h)
            query += tl.where(walked, qh, 0).to(tl.int64) * VECTOR

    rows = token_rows(
        b, g0 + (f0 + t0) * E0, g1 + (f1 + t1) * E1, g2 + (f2 + t2) * E2, L0, L1, L2, out_heads, out_head, RANK
    )
    store_rows(grad_key, rows * D, inside, dk * (scale * LN2), D, DP)
    store_rows(grad_value, rows * DV, inside, dv, DV, DVP)
