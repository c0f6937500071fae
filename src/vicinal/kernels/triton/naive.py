"""The naive kernels: one thread group (a program of one warp) per query or key and head, no tensor cores.

What "Faster Neighborhood Attention" (arXiv 2403.04690) improves on: dot products of one query with its neighbors, a
block of slots at a time. Gradients of keys gather over the queries that attend to a key (inverse neighborhood), so
that no kernel needs atomics. One source for 1-D, 2-D and 3-D.
"""

import triton
import triton.language as tl

from vicinal.kernels.triton.slots import GEOMETRY, coordinates, in_group, mixed, unmixed, window
from vicinal.kernels.triton.window import first_query_starting_at, first_query_stopping_after


@triton.jit(do_not_specialize=GEOMETRY)
def pn(
    Q, K, Bias, A, q_b, q_n, q_h, k_b, k_n, k_h, a_b, a_n, a_h,
    heads, group, tokens, D, scale, fill,
    L0, L1, L2, W0, W1, W2, S0, S1, S2, E0, E1, E2, M0, M1, M2,
    RANK: tl.constexpr, STRIDED: tl.constexpr, MODED: tl.constexpr, DILATED: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACC: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`A[query, slot] = scale * Q[query] . K[key] (+ bias)`, `fill` in absent slots."""
    h, n, b = _program(heads, tokens)
    x0, x1, x2 = coordinates(n, L1, L2, RANK)
    g0, i0, n0 = in_group(x0, L0, E0, DILATED)
    g1, i1, n1 = in_group(x1, L1, E1, DILATED)
    g2, i2, n2 = in_group(x2, L2, E2, DILATED)
    start0, stop0 = window(i0, n0, W0, S0, M0, STRIDED, MODED)
    start1, stop1 = window(i1, n1, W1, S1, M1, STRIDED, MODED)
    start2, stop2 = window(i2, n2, W2, S2, M2, STRIDED, MODED)
    q_row = Q + b * q_b + n.to(tl.int64) * q_n + h * q_h
    k_head = K + b * k_b + (h // group) * k_h
    a_row = A + b * a_b + n.to(tl.int64) * a_n + h * a_h
    slots = W0 * W1 * W2
    for first in range(0, slots, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        s0, s1, s2 = unmixed(s, W1, W2, RANK)
        j0 = start0 + s0
        j1 = start1 + s1
        j2 = start2 + s2
        present = s < slots
        if MODED:
            present &= (j0 < stop0) & (j1 < stop1) & (j2 < stop2)
        token = mixed(j0 * E0 + g0, j1 * E1 + g1, j2 * E2 + g2, L1, L2, RANK).to(tl.int64)
        score = tl.zeros((BLOCK_S,), dtype=ACC)
        for d_first in range(0, D, BLOCK_D):
            d = d_first + tl.arange(0, BLOCK_D)
            q = tl.load(q_row + d, mask=d < D, other=0.0).to(ACC)
            k = tl.load(
                k_head + (token * k_n)[:, None] + d[None, :], mask=present[:, None] & (d < D)[None, :], other=0.0
            )
            score += tl.sum(k.to(ACC) * q[None, :], 1)
        score *= scale
        if HAS_BIAS:
            r = mixed(j0 - i0 + W0 - 1, j1 - i1 + W1 - 1, j2 - i2 + W2 - 1, 2 * W1 - 1, 2 * W2 - 1, RANK)
            size = (2 * W0 - 1) * (2 * W1 - 1) * (2 * W2 - 1)
            score += tl.load(Bias + h * size + r, mask=present, other=0.0).to(ACC)
        if MODED:
            score = tl.where(present, score, fill)
        tl.store(a_row + s, score.to(A.dtype.element_ty), mask=s < slots)


@triton.jit(do_not_specialize=GEOMETRY)
def nn(
    A, V, O, a_b, a_n, a_h, v_b, v_n, v_h, o_b, o_n, o_h,
    heads, group, tokens, D, scale,
    L0, L1, L2, W0, W1, W2, S0, S1, S2, E0, E1, E2, M0, M1, M2,
    RANK: tl.constexpr, STRIDED: tl.constexpr, MODED: tl.constexpr, DILATED: tl.constexpr,
    ACC: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`O[query] = scale * sum over slots of A[query, slot] * V[key]`."""
    h, n, b = _program(heads, tokens)
    x0, x1, x2 = coordinates(n, L1, L2, RANK)
    g0, i0, n0 = in_group(x0, L0, E0, DILATED)
    g1, i1, n1 = in_group(x1, L1, E1, DILATED)
    g2, i2, n2 = in_group(x2, L2, E2, DILATED)
    start0, stop0 = window(i0, n0, W0, S0, M0, STRIDED, MODED)
    start1, stop1 = window(i1, n1, W1, S1, M1, STRIDED, MODED)
    start2, stop2 = window(i2, n2, W2, S2, M2, STRIDED, MODED)
    a_row = A + b * a_b + n.to(tl.int64) * a_n + h * a_h
    v_head = V + b * v_b + (h // group) * v_h
    o_row = O + b * o_b + n.to(tl.int64) * o_n + h * o_h
    slots = W0 * W1 * W2
    for d_first in range(0, D, BLOCK_D):
        d = d_first + tl.arange(0, BLOCK_D)
        total = tl.zeros((BLOCK_D,), dtype=ACC)
        for first in range(0, slots, BLOCK_S):
            s = first + tl.arange(0, BLOCK_S)
            s0, s1, s2 = unmixed(s, W1, W2, RANK)
            j0 = start0 + s0
            j1 = start1 + s1
            j2 = start2 + s2
            present = s < slots
            if MODED:
                present &= (j0 < stop0) & (j1 < stop1) & (j2 < stop2)
            token = mixed(j0 * E0 + g0, j1 * E1 + g1, j2 * E2 + g2, L1, L2, RANK).to(tl.int64)
            a = tl.load(a_row + s, mask=present, other=0.0).to(ACC)
            v = tl.load(
                v_head + (token * v_n)[:, None] + d[None, :], mask=present[:, None] & (d < D)[None, :], other=0.0
            )
            total += tl.sum(v.to(ACC) * a[:, None], 0)
        tl.store(o_row + d, (total * scale).to(O.dtype.element_ty), mask=d < D)


@triton.jit(do_not_specialize=GEOMETRY)
def inverse(
    A, Q, O, a_b, a_n, a_h, q_b, q_n, q_h, o_b, o_n, o_h,
    heads, group, tokens, D, scale,
    L0, L1, L2, W0, W1, W2, S0, S1, S2, E0, E1, E2, M0, M1, M2,
    RANK: tl.constexpr, STRIDED: tl.constexpr, MODED: tl.constexpr, DILATED: tl.constexpr,
    ACC: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`O[key] = scale * sum over the queries that attend to key of A[query, key's slot] * Q[query]`.

    `heads` are the keys' heads; each gathers from its `group` query heads.
    """
    h, n, b = _program(heads, tokens)
    x0, x1, x2 = coordinates(n, L1, L2, RANK)
    g0, j0, n0 = in_group(x0, L0, E0, DILATED)
    g1, j1, n1 = in_group(x1, L1, E1, DILATED)
    g2, j2, n2 = in_group(x2, L2, E2, DILATED)
    # Window ends never decrease along an axis: the queries that attend to a key are one interval per axis.
    first0 = first_query_stopping_after(j0, n0, W0, S0, M0, STRIDED, MODED)
    first1 = first_query_stopping_after(j1, n1, W1, S1, M1, STRIDED, MODED)
    first2 = first_query_stopping_after(j2, n2, W2, S2, M2, STRIDED, MODED)
    count0 = first_query_starting_at(j0 + 1, n0, W0, S0, M0, STRIDED, MODED) - first0
    count1 = first_query_starting_at(j1 + 1, n1, W1, S1, M1, STRIDED, MODED) - first1
    count2 = first_query_starting_at(j2 + 1, n2, W2, S2, M2, STRIDED, MODED) - first2
    o_row = O + b * o_b + n.to(tl.int64) * o_n + h * o_h
    count = tl.maximum(count0, 0) * tl.maximum(count1, 0) * tl.maximum(count2, 0)
    for d_first in range(0, D, BLOCK_D):
        d = d_first + tl.arange(0, BLOCK_D)
        total = tl.zeros((BLOCK_D,), dtype=ACC)
        for member in range(0, group):
            a_head = A + b * a_b + (h * group + member) * a_h
            q_head = Q + b * q_b + (h * group + member) * q_h
            for first in range(0, count, BLOCK_S):
                c = first + tl.arange(0, BLOCK_S)
                c0, c1, c2 = unmixed(c, count1, count2, RANK)
                i0 = first0 + c0
                i1 = first1 + c1
                i2 = first2 + c2
                start0, _stop0 = window(i0, n0, W0, S0, M0, STRIDED, MODED)
                start1, _stop1 = window(i1, n1, W1, S1, M1, STRIDED, MODED)
                start2, _stop2 = window(i2, n2, W2, S2, M2, STRIDED, MODED)
                slot = mixed(j0 - start0, j1 - start1, j2 - start2, W1, W2, RANK)
                token = mixed(i0 * E0 + g0, i1 * E1 + g1, i2 * E2 + g2, L1, L2, RANK).to(tl.int64)
                a = tl.load(a_head + token * a_n + slot, mask=c < count, other=0.0).to(ACC)
                q = tl.load(
                    q_head + (token * q_n)[:, None] + d[None, :],
                    mask=(c < count)[:, None] & (d < D)[None, :],
                    other=0.0,
                )
                total += tl.sum(q.to(ACC) * a[:, None], 0)
        tl.store(o_row + d, (total * scale).to(O.dtype.element_ty), mask=d < D)


@triton.jit
def _program(heads, tokens):
    """The head, token and batch element of this program; the batch element 64-bit, as it multiplies a stride."""
    p = tl.program_id(0)
    n = p // heads
    return p % heads, n % tokens, (n // tokens).to(tl.int64)
