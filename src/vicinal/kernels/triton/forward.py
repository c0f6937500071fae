"""Fused neighborhood attention, forward: one program computes one tile of queries of one head.

It walks the key tiles of the box that the tile's windows cover, laid from the box's first key, then the additional
keys; attention weights stay on the chip. One source for every rank, window, stride, dilation, mode, head dim and
dtype; only the constexprs below compile anew.
"""

import triton
import triton.language as tl

from vicinal.kernels.triton.boxes import box_of, intervals_of, neighborhood_of, tile_coverage, within
from vicinal.kernels.triton.memory import load_rows, rows_within, store_rows, tile_at, token_rows
from vicinal.kernels.triton.softmax import LN2, LOWEST, attend, bias_strides, biased
from vicinal.kernels.triton.window import decode_tile, group_length, linear, next_tile, tile_positions

RUN_TIME = (  # never specialised on: neither a new window nor a new length compiles a new kernel
    "scale heads group_size additional programs L0 L1 L2 K0 K1 K2 S0 S1 S2 E0 E1 E2 M0 M1 M2 "
    "qb q0 q1 q2 qh kb k0 k1 k2 kh vb v0 v1 v2 vh ekb ekm ekh evb evm evh"
).split()


@triton.jit(do_not_specialize=RUN_TIME)
def forward_kernel(
    query, key, value, extra_keys, extra_values, rpb, table, output, lse,
    scale,  # times log2(e)
    heads, group_size, additional, programs,  # programs: tiles of one head
    L0, L1, L2, K0, K1, K2, S0, S1, S2, E0, E1, E2, M0, M1, M2,  # length, window, stride, dilation, mode
    qb, q0, q1, q2, qh, kb, k0, k1, k2, kh, vb, v0, v1, v2, vh,  # strides, in units of VECTOR elements
    ekb, ekm, ekh, evb, evm, evh,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr,  # sizes, and padded to powers of two
    T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr,  # query tile
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr,  # key tile
    RANK: tl.constexpr, VECTOR: tl.constexpr, WIDE: tl.constexpr,
    STRIDED: tl.constexpr, DILATED: tl.constexpr, MODED: tl.constexpr,
    PER_HEAD: tl.constexpr,  # neighborhoods come from the table
    CHECKED: tl.constexpr,  # key tiles may pass the end of an axis
    SCALED: tl.constexpr,  # scores are scaled before their maximum is taken (a scale that is not positive)
    HAS_RPB: tl.constexpr, HAS_EXTRA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    BM: tl.constexpr = T0 * T1 * T2
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

    maximum = tl.full([BM], LOWEST, tl.float32)
    total = tl.zeros([BM], tl.float32)
    accumulated = tl.zeros([BM, DVP], tl.float32)
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
        scores = tl.dot(q, k.T, input_precision=PRECISION)
        if HAS_RPB:
            mask = within(j0, j1, j2, w0 - c0, w1 - c1, w2 - c2, n0, n1, n2, RANK) & inside[:, None]
            key_part = linear(c0 + j0, c1 + j1, c2 + j2, r0, r1, 1, RANK)
            scores = biased(scores, mask, rpb, key_part[None, :], query_part[:, None], scale)
        else:
            if SCALED:
                scores *= scale
            if not full:
                mask = within(j0, j1, j2, w0 - c0, w1 - c1, w2 - c2, n0, n1, n2, RANK)
                scores = tl.where(mask, scores, float("-inf"))
        v = load_rows(value + tile_at(x0, x1, x2, v0, v1, v2, VECTOR, RANK), v_rows, there, DV, DVP, CHECKED)
        maximum, total, accumulated = attend(
            scores, v, maximum, total, accumulated, scale, SCALED or HAS_RPB, PRECISION
        )
        c0, c1, c2 = next_tile(c0, c1, c2, begin1, begin2, end1, end2, N0, N1, N2, RANK)

    if HAS_EXTRA:
        extra_keys += (b * ekb + kv_head * ekh) * VECTOR
        extra_values += (b * evb + kv_head * evh) * VECTOR
        for first in range(0, additional, BN):
            m = first + tl.arange(0, BN)
            there = m < additional
            k = load_rows(extra_keys, m.to(tl.int64) * ekm * VECTOR, there, D, DP, True)
            scores = tl.dot(q, k.T, input_precision=PRECISION)
            if SCALED or HAS_RPB:
                scores *= scale
            scores = tl.where(there[None, :], scores, float("-inf"))
            v = load_rows(extra_values, m.to(tl.int64) * evm * VECTOR, there, DV, DVP, True)
            maximum, total, accumulated = attend(
                scores, v, maximum, total, accumulated, scale, SCALED or HAS_RPB, PRECISION
            )

    accumulated = accumulated * (1.0 / total)[:, None]  # one division a row, not one an element
    rows = token_rows(b, g0 + (f0 + t0) * E0, g1 + (f1 + t1) * E1, g2 + (f2 + t2) * E2, L0, L1, L2, heads, h, RANK)
    store_rows(output, rows * DV, inside, accumulated, DV, DVP)
    tl.store(lse + rows, (maximum + tl.log2(total)) * LN2, mask=inside)
