"""Slots of attention weights in Triton, shared by the naive and the GEMM kernels. The rule: `vicinal.backends.slots`.

Conventions of both: always three axes, fewer are the last ones with leading lengths and windows of 1. Tensors are
`[B, N, heads, C]` over flattened tokens with their own strides, the last axis contiguous; offsets of rows are 64-bit.
"""

import triton
import triton.language as tl

from vicinal.kernels.triton.window import group_length, window_start, window_stop

# Run-time integers that must not be specialised on: else every window, length or count of heads compiles anew.
# Strides of attention weights are among them, as they follow from the window.
GEOMETRY = [f"{name}{axis}" for name in "LWSEM" for axis in range(3)] + ["heads", "group", "tokens"]
GEOMETRY += ["a_b", "a_n", "a_h", "q_b", "k_b", "v_b", "o_b"]


@triton.jit
def coordinates(n, L1, L2, RANK: tl.constexpr):
    """A flattened token's position along each axis."""
    x0 = 0
    x1 = 0
    x2 = n
    if RANK >= 2:
        x2 = n % L2
        x1 = n // L2
    if RANK == 3:
        x0 = x1 // L1
        x1 = x1 % L1
    return x0, x1, x2


@triton.jit
def in_group(x, length, dilation, DILATED: tl.constexpr):
    """A position's dilation group, its position in there, and the group's length."""
    group = x * 0
    if DILATED:
        group = x % dilation
        x = x // dilation
    return group, x, group_length(length, dilation, group, DILATED)


@triton.jit
def window(i, length, size, stride, mode, STRIDED: tl.constexpr, MODED: tl.constexpr):
    """`[start, stop)` of the window of position `i`."""
    start = window_start(i, length, size, stride, mode, STRIDED, MODED)
    if MODED:
        stop = window_stop(i, length, size, stride, mode, STRIDED, MODED)
    else:
        stop = start + size
    return start, stop


@triton.jit
def mixed(s0, s1, s2, W1, W2, RANK: tl.constexpr):
    """Row-major number of `(s0, s1, s2)` where the last two axes have sizes `W1` and `W2`."""
    number = s2
    if RANK >= 2:
        number += s1 * W2
    if RANK == 3:
        number += s0 * (W1 * W2)
    return number


@triton.jit
def unmixed(number, W1, W2, RANK: tl.constexpr):
    """The inverse of `mixed`."""
    s0 = 0
    s1 = 0
    s2 = number
    if RANK >= 2:
        s2 = number % W2
        s1 = number // W2
    if RANK == 3:
        s0 = s1 // W1
        s1 = s1 % W1
    return s0, s1, s2


@triton.jit(do_not_specialize=[*GEOMETRY, "g_b", "g_n", "g_h", "batch_tokens", "chunk", "bias_size"])
def bias_sum(
    G, Out, g_b, g_n, g_h, heads, tokens, batch_tokens, chunk, bias_size,
    L0, L1, L2, W0, W1, W2, S0, S1, S2, E0, E1, E2, M0, M1, M2,
    RANK: tl.constexpr, STRIDED: tl.constexpr, MODED: tl.constexpr, DILATED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Part `program_id(2)` of the sums by relative position `[H, 2*W0-1, ...]` of gradients `[B, N, H, slots]`.

    A program sums a block of relative positions of one head over `chunk` tokens: no atomics. Relative positions next
    to each other are slots next to each other, so loads are in rows.
    """
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    h = tl.program_id(1)
    r0, r1, r2 = unmixed(r, 2 * W1 - 1, 2 * W2 - 1, RANK)
    total = tl.zeros((BLOCK_R,), dtype=tl.float32)
    begin = tl.program_id(2) * chunk
    end = tl.minimum(begin + chunk, batch_tokens)
    for at in range(begin, end, BLOCK_N):
        bn = at + tl.arange(0, BLOCK_N)
        n = bn % tokens
        x0, x1, x2 = coordinates(n, L1, L2, RANK)
        ok = (bn < end)[:, None] & (r < bias_size)[None, :]
        _g2, i2, n2 = in_group(x2, L2, E2, DILATED)
        start2, stop2 = window(i2, n2, W2, S2, M2, STRIDED, MODED)
        j2 = (i2 - W2 + 1)[:, None] + r2[None, :]
        ok &= (j2 >= start2[:, None]) & (j2 < stop2[:, None])
        s2 = j2 - start2[:, None]
        s1 = s2 * 0
        s0 = s2 * 0
        if RANK >= 2:
            _g1, i1, n1 = in_group(x1, L1, E1, DILATED)
            start1, stop1 = window(i1, n1, W1, S1, M1, STRIDED, MODED)
            j1 = (i1 - W1 + 1)[:, None] + r1[None, :]
            ok &= (j1 >= start1[:, None]) & (j1 < stop1[:, None])
            s1 = j1 - start1[:, None]
        if RANK == 3:
            _g0, i0, n0 = in_group(x0, L0, E0, DILATED)
            start0, stop0 = window(i0, n0, W0, S0, M0, STRIDED, MODED)
            j0 = (i0 - W0 + 1)[:, None] + r0[None, :]
            ok &= (j0 >= start0[:, None]) & (j0 < stop0[:, None])
            s0 = j0 - start0[:, None]
        row = (bn // tokens).to(tl.int64) * g_b + n.to(tl.int64) * g_n + h * g_h
        slot = mixed(s0, s1, s2, W1, W2, RANK)
        grad = tl.load(G + row[:, None] + slot, mask=ok, other=0.0)
        total += tl.sum(grad.to(tl.float32), 0)
    out = (tl.program_id(2) * heads + h) * bias_size + r
    tl.store(Out + out, total, mask=r < bias_size)
