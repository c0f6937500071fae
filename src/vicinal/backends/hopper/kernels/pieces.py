"""Tiles of any head dim that the Hopper kernels take, as pieces whose columns are a power of two.

Tensors in Gluon have sides that are powers of two, so a tile of 96 or 192 columns is three pieces of 32 or 64: a
descriptor's block, a buffer and a wgmma each. Other head dims are one piece. Buffers are `[slots * PIECES, 1, *tile,
piece]`; what is accumulated is a tuple of `PIECES` tensors. `warpgroup_mma_wait` counts one for each piece.
"""

from vicinal.backends.hopper.kernels.compat import gl, gluon, tma_load, tma_store, warpgroup_mma, warpgroup_mma_wait
from vicinal.backends.hopper.kernels.walk import place


@gluon.constexpr_function
def accumulator(columns):
    """The layout of a warpgroup's sums of so many columns."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, columns, 16])


@gluon.constexpr_function
def left_operand(columns):
    """The layout of what is multiplied, from registers, into sums of so many columns."""
    return gl.DotOperandLayout(operand_index=0, parent=accumulator(columns), k_width=2)


@gluon.jit
def hidden_zero():
    """0, which the compiler does not know, here and now: added to a slot's number it keeps addresses from moving there.

    What ptxas computes from addresses that never change (descriptors of 16 rows, two registers each), it keeps in
    registers over a loop, and spills; from others, next to where it is used, in uniform registers.
    """
    return gl.inline_asm_elementwise("mov.b32 $0, 0;", "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def load_pieces(desc, at, column, bar, buffer, slot, PIECES: gl.constexpr):
    """Load the tile at `at`, columns from `column` on, into `slot` of a buffer."""
    WIDE: gl.constexpr = desc.block_shape[4]
    for j in gl.static_range(PIECES):
        tma_load(desc, [at[0], at[1], at[2], at[3], column + j * WIDE], bar, buffer.index(slot * PIECES + j))


@gluon.jit
def load_head(desc, item, head, strides, x, bar, buffer, slot, COLUMNS: gl.constexpr, C: gl.constexpr):
    """Load a head's tile at `x` into `slot` of a buffer."""
    first, column = place(item, head, strides, COLUMNS, C)
    load_pieces(desc, (first, x[0], x[1], x[2]), column, bar, buffer, slot, COLUMNS // desc.block_shape[4])


@gluon.jit
def scores_of(a_s, a_slot, b_s, b_slot, zero, PIECES: gl.constexpr):
    """Issue `A @ B^T` of two tiles in shared memory, summed over columns; the caller waits. `zero` gives the shape."""
    WIDE: gl.constexpr = a_s.shape[5]
    a = a_s.index(a_slot * PIECES).reshape([zero.shape[0], WIDE])
    b = b_s.index(b_slot * PIECES).reshape([zero.shape[1], WIDE]).permute((1, 0))
    s = warpgroup_mma(a, b, zero, use_acc=False, is_async=True)
    for j in gl.static_range(1, PIECES):
        a = a_s.index(a_slot * PIECES + j).reshape([zero.shape[0], WIDE])
        b = b_s.index(b_slot * PIECES + j).reshape([zero.shape[1], WIDE]).permute((1, 0))
        s = warpgroup_mma(a, b, s, is_async=True)
    return s


@gluon.jit
def zeros(ROWS: gl.constexpr, WIDE: gl.constexpr, PIECES: gl.constexpr, layout: gl.constexpr):
    """`[ROWS, PIECES * WIDE]`."""
    z = gl.zeros([ROWS, WIDE], gl.float32, layout=layout)
    if PIECES == 1:
        return (z,)
    else:
        return (z, z, z)


@gluon.jit
def add_product(p, b_s, slot, sums, PIECES: gl.constexpr):
    """Issue `sums + p @ B`, with `p` in registers; the caller waits."""
    SHAPE: gl.constexpr = [p.shape[1], sums[0].shape[1]]
    first = slot * PIECES
    x = warpgroup_mma(p, b_s.index(first).reshape(SHAPE), sums[0], is_async=True)
    if PIECES == 1:
        return (x,)
    else:
        y = warpgroup_mma(p, b_s.index(first + 1).reshape(SHAPE), sums[1], is_async=True)
        z = warpgroup_mma(p, b_s.index(first + 2).reshape(SHAPE), sums[2], is_async=True)
        return (x, y, z)


@gluon.jit
def finished(sums, p, PIECES: gl.constexpr):
    """Wait for all that was issued: `sums`, and `p` which fed them."""
    if PIECES == 1:
        x, p = warpgroup_mma_wait(0, deps=[sums[0], p])
        return (x,), p
    else:
        x, y, z, p = warpgroup_mma_wait(0, deps=[sums[0], sums[1], sums[2], p])
        return (x, y, z), p


@gluon.jit
def scaled(sums, factor, PIECES: gl.constexpr):
    """`sums * factor`."""
    if PIECES == 1:
        return (sums[0] * factor,)
    else:
        return (sums[0] * factor, sums[1] * factor, sums[2] * factor)


@gluon.jit
def only(sums, rows, PIECES: gl.constexpr):
    """`sums` of these rows, and zeros for the others."""
    if PIECES == 1:
        return (gl.where(rows[:, None], sums[0], 0.0),)
    else:
        x = gl.where(rows[:, None], sums[0], 0.0)
        y = gl.where(rows[:, None], sums[1], 0.0)
        z = gl.where(rows[:, None], sums[2], 0.0)
        return (x, y, z)


@gluon.jit
def write_pieces(sums, factor, buffer, slot, DTYPE: gl.constexpr, PIECES: gl.constexpr):
    """`sums * factor` into a slot of a buffer; a fence must follow before it is stored."""
    SHAPE: gl.constexpr = sums[0].shape
    for j in gl.static_range(PIECES):
        buffer.index(slot * PIECES + j).reshape(SHAPE).store((sums[j] * factor).to(DTYPE))


@gluon.jit
def store_pieces(desc, at, column, buffer, slot, PIECES: gl.constexpr):
    """Store the tile in a slot of a buffer to `at`, columns from `column` on."""
    WIDE: gl.constexpr = desc.block_shape[4]
    for j in gl.static_range(PIECES):
        tma_store(desc, [at[0], at[1], at[2], at[3], column + j * WIDE], buffer.index(slot * PIECES + j))


@gluon.jit
def store_head(desc, item, head, strides, x, buffer, slot, COLUMNS: gl.constexpr, C: gl.constexpr):
    """Store the tile in a slot of a buffer as a head's, at `x`."""
    first, column = place(item, head, strides, COLUMNS, C)
    store_pieces(desc, (first, x[0], x[1], x[2]), column, buffer, slot, COLUMNS // desc.block_shape[4])


@gluon.jit
def store_sums(ptr, sums, factor, stride, PIECES: gl.constexpr):
    """Write `sums * factor` to memory, rows `stride` elements apart."""
    layout: gl.constexpr = sums[0].type.layout
    WIDE: gl.constexpr = sums[0].shape[1]
    row = gl.arange(0, sums[0].shape[0], layout=gl.SliceLayout(1, layout))
    column = gl.arange(0, WIDE, layout=gl.SliceLayout(0, layout))
    for j in gl.static_range(PIECES):
        gl.store(ptr + (row * stride)[:, None] + (j * WIDE + column)[None, :], sums[j] * factor)
