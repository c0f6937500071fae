"""The GEMM-based kernels: tiles of 64 queries and 64 keys on tensor cores, scattered to and gathered from slots.

The three operators of "Faster Neighborhood Attention" (arXiv 2403.04690, section 3.1): pointwise-neighborhood (QK, dP),
neighborhood-neighborhood (PV, dQ) and inverse-neighborhood (dK, dV), each a batched GEMM over spatial tiles: a tile is
64, 8x8 or 4x4x4 tokens of one dilation group, against the box of tokens that its windows cover. The paper has 1-D and
2-D; here one source has 3-D too, and strides.
"""

import triton
import triton.language as tl

from vicinal.kernels.triton.slots import GEOMETRY, mixed, unmixed, window
from vicinal.kernels.triton.window import (
    decode_tile,
    first_query_starting_at,
    first_query_stopping_after,
    group_length,
    tile_positions,
    window_start,
    window_stop,
)


@triton.jit(do_not_specialize=GEOMETRY)
def pn(
    Q, K, Bias, A, q_b, q_n, q_h, k_b, k_n, k_h, a_b, a_n, a_h,
    heads, group, tokens, D, scale, fill,
    L0, L1, L2, W0, W1, W2, S0, S1, S2, E0, E1, E2, M0, M1, M2,
    RANK: tl.constexpr, STRIDED: tl.constexpr, MODED: tl.constexpr, DILATED: tl.constexpr,
    HAS_BIAS: tl.constexpr, WHOLE_D: tl.constexpr, PRECISION: tl.constexpr,
    T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`A[query, slot] = scale * Q[query] . K[key] (+ bias)`; absent slots are left alone (`fill` is not used)."""
    g0, g1, g2, f0, f1, f2 = decode_tile(tl.program_id(0), L0, L1, L2, E0, E1, E2, T0, T1, T2, RANK, DILATED)
    h = tl.program_id(1) % heads
    b = (tl.program_id(1) // heads).to(tl.int64)
    n0 = group_length(L0, E0, g0, DILATED)
    n1 = group_length(L1, E1, g1, DILATED)
    n2 = group_length(L2, E2, g2, DILATED)
    if (f0 < n0) & (f1 < n1) & (f2 < n2):
        p0, p1, p2 = tile_positions(T0, T1, T2)
        i0 = f0 + p0
        i1 = f1 + p1
        i2 = f2 + p2
        is_query = (i0 < n0) & (i1 < n1) & (i2 < n2)
        i0 = tl.minimum(i0, n0 - 1)
        i1 = tl.minimum(i1, n1 - 1)
        i2 = tl.minimum(i2, n2 - 1)
        row = mixed(i0 * E0 + g0, i1 * E1 + g1, i2 * E2 + g2, L1, L2, RANK).to(tl.int64)
        start0, stop0 = window(i0, n0, W0, S0, M0, STRIDED, MODED)
        start1, stop1 = window(i1, n1, W1, S1, M1, STRIDED, MODED)
        start2, stop2 = window(i2, n2, W2, S2, M2, STRIDED, MODED)
        low0, high0 = _key_interval(f0, T0, n0, W0, S0, M0, STRIDED, MODED)
        low1, high1 = _key_interval(f1, T1, n1, W1, S1, M1, STRIDED, MODED)
        low2, high2 = _key_interval(f2, T2, n2, W2, S2, M2, STRIDED, MODED)
        count1 = tl.cdiv(high1 - low1, T1)
        count2 = tl.cdiv(high2 - low2, T2)
        q_rows = Q + b * q_b + h * q_h + row * q_n
        k_head = K + b * k_b + (h // group) * k_h
        a_rows = A + b * a_b + h * a_h + row * a_n
        d = tl.arange(0, BLOCK_D)
        q = tl.load(q_rows[:, None] + d[None, :], mask=is_query[:, None] & (d < D)[None, :], other=0.0)
        for t in range(0, tl.cdiv(high0 - low0, T0) * count1 * count2):
            t0, t1, t2 = unmixed(t, count1, count2, RANK)
            j0 = low0 + t0 * T0 + p0
            j1 = low1 + t1 * T1 + p1
            j2 = low2 + t2 * T2 + p2
            is_key = (j0 < high0) & (j1 < high1) & (j2 < high2)
            token = mixed(j0 * E0 + g0, j1 * E1 + g1, j2 * E2 + g2, L1, L2, RANK).to(tl.int64)
            k_rows = k_head + token * k_n
            k = tl.load(k_rows[None, :] + d[:, None], mask=is_key[None, :] & (d < D)[:, None], other=0.0)
            score = tl.dot(q, k, input_precision=PRECISION)
            if not WHOLE_D:
                for first in range(BLOCK_D, D, BLOCK_D):
                    e = first + d
                    more = tl.load(q_rows[:, None] + e[None, :], mask=is_query[:, None] & (e < D)[None, :], other=0.0)
                    k = tl.load(k_rows[None, :] + e[:, None], mask=is_key[None, :] & (e < D)[:, None], other=0.0)
                    score = tl.dot(more, k, score, input_precision=PRECISION)
            score *= scale
            present = is_query[:, None] & is_key[None, :]
            present &= (start2[:, None] <= j2[None, :]) & (j2[None, :] < stop2[:, None])
            s2 = j2[None, :] - start2[:, None]
            s1 = s2 * 0
            s0 = s2 * 0
            if RANK >= 2:
                present &= (start1[:, None] <= j1[None, :]) & (j1[None, :] < stop1[:, None])
                s1 = j1[None, :] - start1[:, None]
            if RANK == 3:
                present &= (start0[:, None] <= j0[None, :]) & (j0[None, :] < stop0[:, None])
                s0 = j0[None, :] - start0[:, None]
            if HAS_BIAS:
                r2 = j2[None, :] - i2[:, None] + W2 - 1
                r1 = j1[None, :] - i1[:, None] + W1 - 1
                r0 = j0[None, :] - i0[:, None] + W0 - 1
                size = (2 * W0 - 1) * (2 * W1 - 1) * (2 * W2 - 1)
                bias = Bias + h * size + mixed(r0, r1, r2, 2 * W1 - 1, 2 * W2 - 1, RANK)
                score += tl.load(bias, mask=present, other=0.0).to(tl.float32)
            slot = mixed(s0, s1, s2, W1, W2, RANK)
            tl.store(a_rows[:, None] + slot, score.to(A.dtype.element_ty), mask=present)


@triton.jit(do_not_specialize=GEOMETRY)
def nn(
    A, V, O, a_b, a_n, a_h, v_b, v_n, v_h, o_b, o_n, o_h,
    heads, group, tokens, D, scale,
    L0, L1, L2, W0, W1, W2, S0, S1, S2, E0, E1, E2, M0, M1, M2,
    RANK: tl.constexpr, STRIDED: tl.constexpr, MODED: tl.constexpr, DILATED: tl.constexpr,
    T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`O[query] = scale * sum over slots of A[query, slot] * V[key]`, `BLOCK_D` columns of it."""
    TILE: tl.constexpr = T0 * T1 * T2
    g0, g1, g2, f0, f1, f2 = decode_tile(tl.program_id(0), L0, L1, L2, E0, E1, E2, T0, T1, T2, RANK, DILATED)
    h = tl.program_id(1) % heads
    b = (tl.program_id(1) // heads).to(tl.int64)
    n0 = group_length(L0, E0, g0, DILATED)
    n1 = group_length(L1, E1, g1, DILATED)
    n2 = group_length(L2, E2, g2, DILATED)
    if (f0 < n0) & (f1 < n1) & (f2 < n2):
        p0, p1, p2 = tile_positions(T0, T1, T2)
        i0 = f0 + p0
        i1 = f1 + p1
        i2 = f2 + p2
        is_query = (i0 < n0) & (i1 < n1) & (i2 < n2)
        i0 = tl.minimum(i0, n0 - 1)
        i1 = tl.minimum(i1, n1 - 1)
        i2 = tl.minimum(i2, n2 - 1)
        row = mixed(i0 * E0 + g0, i1 * E1 + g1, i2 * E2 + g2, L1, L2, RANK).to(tl.int64)
        start0, stop0 = window(i0, n0, W0, S0, M0, STRIDED, MODED)
        start1, stop1 = window(i1, n1, W1, S1, M1, STRIDED, MODED)
        start2, stop2 = window(i2, n2, W2, S2, M2, STRIDED, MODED)
        low0, high0 = _key_interval(f0, T0, n0, W0, S0, M0, STRIDED, MODED)
        low1, high1 = _key_interval(f1, T1, n1, W1, S1, M1, STRIDED, MODED)
        low2, high2 = _key_interval(f2, T2, n2, W2, S2, M2, STRIDED, MODED)
        count1 = tl.cdiv(high1 - low1, T1)
        count2 = tl.cdiv(high2 - low2, T2)
        a_rows = A + b * a_b + h * a_h + row * a_n
        v_head = V + b * v_b + (h // group) * v_h
        d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
        total = tl.zeros((TILE, BLOCK_D), dtype=tl.float32)
        for t in range(0, tl.cdiv(high0 - low0, T0) * count1 * count2):
            t0, t1, t2 = unmixed(t, count1, count2, RANK)
            j0 = low0 + t0 * T0 + p0
            j1 = low1 + t1 * T1 + p1
            j2 = low2 + t2 * T2 + p2
            is_key = (j0 < high0) & (j1 < high1) & (j2 < high2)
            token = mixed(j0 * E0 + g0, j1 * E1 + g1, j2 * E2 + g2, L1, L2, RANK).to(tl.int64)
            present = is_query[:, None] & is_key[None, :]
            present &= (start2[:, None] <= j2[None, :]) & (j2[None, :] < stop2[:, None])
            s2 = j2[None, :] - start2[:, None]
            s1 = s2 * 0
            s0 = s2 * 0
            if RANK >= 2:
                present &= (start1[:, None] <= j1[None, :]) & (j1[None, :] < stop1[:, None])
                s1 = j1[None, :] - start1[:, None]
            if RANK == 3:
                present &= (start0[:, None] <= j0[None, :]) & (j0[None, :] < stop0[:, None])
                s0 = j0[None, :] - start0[:, None]
            a = tl.load(a_rows[:, None] + mixed(s0, s1, s2, W1, W2, RANK), mask=present, other=0.0)
            v = tl.load(
                v_head + (token * v_n)[:, None] + d[None, :], mask=is_key[:, None] & (d < D)[None, :], other=0.0
            )
            total = tl.dot(a.to(v.dtype), v, total, input_precision=PRECISION)
        o = O + b * o_b + h * o_h + (row * o_n)[:, None] + d[None, :]
        tl.store(o, (total * scale).to(O.dtype.element_ty), mask=is_query[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=GEOMETRY)
def inverse(
    A, Q, O, a_b, a_n, a_h, q_b, q_n, q_h, o_b, o_n, o_h,
    heads, group, tokens, D, scale,
    L0, L1, L2, W0, W1, W2, S0, S1, S2, E0, E1, E2, M0, M1, M2,
    RANK: tl.constexpr, STRIDED: tl.constexpr, MODED: tl.constexpr, DILATED: tl.constexpr,
    T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`O[key] = scale * sum over the queries that attend to key of A[query, key's slot] * Q[query]`.

    A tile of keys against the box of queries that reach it. `heads` are the keys' heads; each gathers from its
    `group` query heads.
    """
    TILE: tl.constexpr = T0 * T1 * T2
    g0, g1, g2, f0, f1, f2 = decode_tile(tl.program_id(0), L0, L1, L2, E0, E1, E2, T0, T1, T2, RANK, DILATED)
    h = tl.program_id(1) % heads
    b = (tl.program_id(1) // heads).to(tl.int64)
    n0 = group_length(L0, E0, g0, DILATED)
    n1 = group_length(L1, E1, g1, DILATED)
    n2 = group_length(L2, E2, g2, DILATED)
    if (f0 < n0) & (f1 < n1) & (f2 < n2):
        p0, p1, p2 = tile_positions(T0, T1, T2)
        j0 = f0 + p0
        j1 = f1 + p1
        j2 = f2 + p2
        is_key = (j0 < n0) & (j1 < n1) & (j2 < n2)
        low0, high0 = _query_interval(f0, T0, n0, W0, S0, M0, STRIDED, MODED)
        low1, high1 = _query_interval(f1, T1, n1, W1, S1, M1, STRIDED, MODED)
        low2, high2 = _query_interval(f2, T2, n2, W2, S2, M2, STRIDED, MODED)
        count1 = tl.cdiv(high1 - low1, T1)
        count2 = tl.cdiv(high2 - low2, T2)
        count = tl.cdiv(high0 - low0, T0) * count1 * count2
        d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
        total = tl.zeros((TILE, BLOCK_D), dtype=tl.float32)
        for step in range(0, count * group):
            member = step // count
            t0, t1, t2 = unmixed(step % count, count1, count2, RANK)
            i0 = low0 + t0 * T0 + p0
            i1 = low1 + t1 * T1 + p1
            i2 = low2 + t2 * T2 + p2
            is_query = (i0 < high0) & (i1 < high1) & (i2 < high2)
            token = mixed(i0 * E0 + g0, i1 * E1 + g1, i2 * E2 + g2, L1, L2, RANK).to(tl.int64)
            present = is_key[:, None] & is_query[None, :]
            start2, stop2 = window(i2, n2, W2, S2, M2, STRIDED, MODED)
            present &= (start2[None, :] <= j2[:, None]) & (j2[:, None] < stop2[None, :])
            s2 = j2[:, None] - start2[None, :]
            s1 = s2 * 0
            s0 = s2 * 0
            if RANK >= 2:
                start1, stop1 = window(i1, n1, W1, S1, M1, STRIDED, MODED)
                present &= (start1[None, :] <= j1[:, None]) & (j1[:, None] < stop1[None, :])
                s1 = j1[:, None] - start1[None, :]
            if RANK == 3:
                start0, stop0 = window(i0, n0, W0, S0, M0, STRIDED, MODED)
                present &= (start0[None, :] <= j0[:, None]) & (j0[:, None] < stop0[None, :])
                s0 = j0[:, None] - start0[None, :]
            head = h * group + member
            a_head = A + b * a_b + head * a_h
            a = tl.load(a_head + (token * a_n)[None, :] + mixed(s0, s1, s2, W1, W2, RANK), mask=present, other=0.0)
            q_head = Q + b * q_b + head * q_h
            q = tl.load(
                q_head + (token * q_n)[:, None] + d[None, :], mask=is_query[:, None] & (d < D)[None, :], other=0.0
            )
            total = tl.dot(a.to(q.dtype), q, total, input_precision=PRECISION)
        row = mixed(j0 * E0 + g0, j1 * E1 + g1, j2 * E2 + g2, L1, L2, RANK).to(tl.int64)
        o = O + b * o_b + h * o_h + (row * o_n)[:, None] + d[None, :]
        tl.store(o, (total * scale).to(O.dtype.element_ty), mask=is_key[:, None] & (d < D)[None, :])


@triton.jit
def _key_interval(first, TILE: tl.constexpr, length, size, stride, mode, STRIDED: tl.constexpr, MODED: tl.constexpr):
    """The keys that the windows of a tile of queries cover."""
    last = tl.minimum(first + TILE, length) - 1
    low = window_start(first, length, size, stride, mode, STRIDED, MODED)
    return low, window_stop(last, length, size, stride, mode, STRIDED, MODED)


@triton.jit
def _query_interval(first, TILE: tl.constexpr, length, size, stride, mode, STRIDED: tl.constexpr, MODED: tl.constexpr):
    """The queries that attend to a key of a tile."""
    end = tl.minimum(first + TILE, length)
    low = first_query_stopping_after(first, length, size, stride, mode, STRIDED, MODED)
    return low, tl.maximum(low, first_query_starting_at(end, length, size, stride, mode, STRIDED, MODED))
