"""Reading and writing tiles of tokens in place: any strides but a contiguous last dimension, 64-bit where needed.

Strides come in units of `VECTOR` elements, a power of two that divides every stride: multiplying by a constant tells
the compiler that rows are aligned, which a run-time stride would hide from it, and so loads are 16 bytes wide.
Offsets within a tile are 32-bit unless `WIDE`; the offset of a tile is always 64-bit.
"""

import triton
import triton.language as tl

from vicinal.kernels.triton.window import linear


@triton.jit
def rows_within(j0, j1, j2, e0, e1, e2, s0, s1, s2, VECTOR: tl.constexpr, RANK: tl.constexpr, WIDE: tl.constexpr):
    """The offsets, in elements, of a tile's tokens from its first one: positions times dilation times stride."""
    if WIDE:
        j2 = j2.to(tl.int64)
        if RANK >= 2:
            j1 = j1.to(tl.int64)
        if RANK == 3:
            j0 = j0.to(tl.int64)
    return linear(j0, j1, j2, e0 * s0, e1 * s1, e2 * s2, RANK) * VECTOR


@triton.jit
def tile_at(x0, x1, x2, s0, s1, s2, VECTOR: tl.constexpr, RANK: tl.constexpr):
    """The offset, in elements, of the token at (x0, x1, x2)."""
    offset = x2.to(tl.int64) * s2
    if RANK >= 2:
        offset += x1.to(tl.int64) * s1
    if RANK == 3:
        offset += x0.to(tl.int64) * s0
    return offset * VECTOR


@triton.jit
def load_rows(pointer, rows, inside, SIZE: tl.constexpr, PADDED: tl.constexpr, CHECKED: tl.constexpr):
    """A `[rows, PADDED]` tile: rows at `pointer + rows`, zeros past `SIZE` and, if `CHECKED`, where not `inside`."""
    d = tl.arange(0, PADDED)
    pointers = pointer + rows[:, None] + d[None, :]
    if CHECKED:
        if SIZE == PADDED:
            return tl.load(pointers, mask=inside[:, None], other=0.0)
        else:
            return tl.load(pointers, mask=inside[:, None] & (d < SIZE)[None, :], other=0.0)
    else:
        if SIZE == PADDED:
            return tl.load(pointers)
        else:
            return tl.load(pointers, mask=(d < SIZE)[None, :], other=0.0)


@triton.jit
def store_rows(pointer, rows, inside, tile, SIZE: tl.constexpr, PADDED: tl.constexpr):
    """Write a `[rows, PADDED]` tile where `inside`, its first `SIZE` columns, in the pointer's dtype."""
    d = tl.arange(0, PADDED)
    mask = inside[:, None]
    if SIZE != PADDED:
        mask = mask & (d < SIZE)[None, :]
    tl.store(pointer + rows[:, None] + d[None, :], tile.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def token_rows(b, x0, x1, x2, L0, L1, L2, heads, h, RANK: tl.constexpr):
    """The numbers of rows of a contiguous `[B, *X, H, ...]` tensor: 64-bit."""
    token = b.to(tl.int64)
    if RANK == 3:
        token = token * L0 + x0
    if RANK >= 2:
        token = token * L1 + x1
    return (token * L2 + x2) * heads + h
