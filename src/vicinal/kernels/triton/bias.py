"""The gradient of the relative positional bias: for each head and offset, the sum of the scores' gradients.

Programs of a head share its query tiles over the whole batch in a fixed order and sum into tables of their own, which
are summed afterwards: no atomics, the same bits every run. Within a pair of tiles the sum runs along diagonals: the
scores' gradients are gathered from key columns into offset columns, then summed over queries.
"""

import triton
import triton.language as tl

from vicinal.kernels.triton.boxes import box_of, intervals_of, neighborhood_of, tile_coverage, within
from vicinal.kernels.triton.memory import load_rows, rows_within, tile_at, token_rows
from vicinal.kernels.triton.softmax import LOG2E, bias_strides, biased
from vicinal.kernels.triton.window import decode_tile, group_length, linear, next_tile, tile_positions

RUN_TIME = (
    "scale heads group_size batch programs L0 L1 L2 K0 K1 K2 S0 S1 S2 E0 E1 E2 M0 M1 M2 "
    "qb q0 q1 q2 qh kb k0 k1 k2 kh vb v0 v1 v2 vh"
).split()


@triton.jit(do_not_specialize=RUN_TIME)
def bias_gradient_kernel(
    query, key, value, rpb, table, lse, grad_output, delta,
    partial,  # zeros [H, shares, 2*K0-1, ...], added to
    scale, heads, group_size, batch, programs,
    L0, L1, L2, K0, K1, K2, S0, S1, S2, E0, E1, E2, M0, M1, M2,
    qb, q0, q1, q2, qh, kb, k0, k1, k2, kh, vb, v0, v1, v2, vh,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr,
    T0: tl.constexpr, T1: tl.constexpr, T2: tl.constexpr,  # query tile
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr,  # key tile
    RANK: tl.constexpr, VECTOR: tl.constexpr, WIDE: tl.constexpr,
    STRIDED: tl.constexpr, DILATED: tl.constexpr, MODED: tl.constexpr, PER_HEAD: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    share = tl.program_id(0)
    shares = tl.num_programs(0)
    h = tl.program_id(1)
    kv_head = (h // group_size).to(tl.int64)
    if PER_HEAD:
        K0, K1, K2, S0, S1, S2, E0, E1, E2, M0, M1, M2 = neighborhood_of(table, h)
    r0, r1, middle, size = bias_strides(K0, K1, K2, RANK)
    rpb += h * size
    partial += (h.to(tl.int64) * shares + share) * size
    t0, t1, t2 = tile_positions(T0, T1, T2)
    j0, j1, j2 = tile_positions(N0, N1, N2)
    k_rows = rows_within(j0, j1, j2, E0, E1, E2, k0, k1, k2, VECTOR, RANK, WIDE)
    v_rows = rows_within(j0, j1, j2, E0, E1, E2, v0, v1, v2, VECTOR, RANK, WIDE)

    # Offsets between a query and a key of a pair of tiles, from the least one; their number padded to powers of two.
    O0: tl.constexpr = 1 if T0 * N0 == 1 else 2 * max(T0, N0)
    O1: tl.constexpr = 1 if T1 * N1 == 1 else 2 * max(T1, N1)
    O2: tl.constexpr = 1 if T2 * N2 == 1 else 2 * max(T2, N2)
    o0, o1, o2 = tile_positions(O0, O1, O2)
    # The key column of each (query, offset), if there is one.
    from2 = o2[None, :] + t2[:, None] - (T2 - 1)
    from1 = o1[None, :] + t1[:, None] - (T1 - 1)
    from0 = o0[None, :] + t0[:, None] - (T0 - 1)
    has_key = (from2 >= 0) & (from2 < N2) & (from1 >= 0) & (from1 < N1) & (from0 >= 0) & (from0 < N0)
    column = tl.where(has_key, (from0 * N1 + from1) * N2 + from2, 0)

    for item in range(share, programs * batch, shares):
        b = (item // programs).to(tl.int64)
        g0, g1, g2, f0, f1, f2 = decode_tile(item % programs, L0, L1, L2, E0, E1, E2, T0, T1, T2, RANK, DILATED)
        G0 = group_length(L0, E0, g0, DILATED)
        G1 = group_length(L1, E1, g1, DILATED)
        G2 = group_length(L2, E2, g2, DILATED)
        count, begin0, begin1, begin2, end1, end2, low0, low1, low2, high0, high1, high2 = box_of(
            f0, f1, f2, G0, G1, G2, K0, K1, K2, S0, S1, S2, M0, M1, M2,
            T0, T1, T2, N0, N1, N2, RANK, STRIDED, MODED, False,
        )  # fmt: skip
        if (f0 >= G0) | (f1 >= G1) | (f2 >= G2):
            count = count * 0
        inside, w0, w1, w2, n0, n1, n2 = intervals_of(
            f0 + t0, f1 + t1, f2 + t2, G0, G1, G2, K0, K1, K2, S0, S1, S2, M0, M1, M2,
            RANK, STRIDED, MODED, False,
        )  # fmt: skip
        rows = token_rows(b, g0 + (f0 + t0) * E0, g1 + (f1 + t1) * E1, g2 + (f2 + t2) * E2, L0, L1, L2, heads, h, RANK)
        do = load_rows(grad_output, rows * DV, inside, DV, DVP, True)
        difference = tl.load(delta + rows, mask=inside, other=0.0)
        log2_total = tl.load(lse + rows, mask=inside, other=0.0) * LOG2E
        q_tile = query + (b * qb + h.to(tl.int64) * qh) * VECTOR
        q_tile += tile_at(g0 + f0 * E0, g1 + f1 * E1, g2 + f2 * E2, q0, q1, q2, VECTOR, RANK)
        q_rows = rows_within(t0, t1, t2, E0, E1, E2, q0, q1, q2, VECTOR, RANK, WIDE)
        q = load_rows(q_tile, q_rows, inside, D, DP, True)
        k_batch = key + (b * kb + kv_head * kh) * VECTOR
        v_batch = value + (b * vb + kv_head * vh) * VECTOR
        query_part = linear(f0 + t0, f1 + t1, f2 + t2, r0, r1, 1, RANK) - middle
        c0 = begin0
        c1 = begin1
        c2 = begin2
        for _ in range(count):
            x0 = g0 + c0 * E0
            x1 = g1 + c1 * E1
            x2 = g2 + c2 * E2
            there, _full = tile_coverage(
                j0, j1, j2, c0, c1, c2, G0, G1, G2, low0, low1, low2, high0, high1, high2, N0, N1, N2, RANK
            )
            k = load_rows(k_batch + tile_at(x0, x1, x2, k0, k1, k2, VECTOR, RANK), k_rows, there, D, DP, True)
            v = load_rows(v_batch + tile_at(x0, x1, x2, v0, v1, v2, VECTOR, RANK), v_rows, there, DV, DVP, True)
            mask = within(j0, j1, j2, w0 - c0, w1 - c1, w2 - c2, n0, n1, n2, RANK) & inside[:, None]
            key_part = linear(c0 + j0, c1 + j1, c2 + j2, r0, r1, 1, RANK)
            scores = tl.dot(q, k.T, input_precision=PRECISION)
            scores = biased(scores, mask, rpb, key_part[None, :], query_part[:, None], scale)
            p = tl.exp2(scores - log2_total[:, None])
            ds = p * (tl.dot(do, v.T, input_precision=PRECISION) - difference[:, None])
            sums = tl.sum(tl.where(has_key, tl.gather(ds, column, 1), 0.0), 0)

            # Offsets of the whole table; those past it got no scores.
            d0 = c0 - f0 + o0 - (T0 - 1)
            d1 = c1 - f1 + o1 - (T1 - 1)
            d2 = c2 - f2 + o2 - (T2 - 1)
            listed = (d2 > -K2) & (d2 < K2)
            if RANK >= 2:
                listed = listed & (d1 > -K1) & (d1 < K1)
            if RANK == 3:
                listed = listed & (d0 > -K0) & (d0 < K0)
            at = partial + linear(d0, d1, d2, r0, r1, 1, RANK) + middle
            tl.store(at, tl.load(at, mask=listed, other=0.0) + sums, mask=listed)
            tl.debug_barrier()  # another thread may add to the same entry in the next step
            c0, c1, c2 = next_tile(c0, c1, c2, begin1, begin2, end1, end2, N0, N1, N2, RANK)
