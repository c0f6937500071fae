"""dQ from the float32 sums that `vicinal.backends.hopper.kernels.onepass` has added up, block by block."""

from vicinal.backends.hopper.kernels.backward import of_row
from vicinal.backends.hopper.kernels.chain import await_previous, let_next_start
from vicinal.backends.hopper.kernels.compat import gl, gluon
from vicinal.backends.hopper.kernels.onepass import ROWS, parts
from vicinal.backends.hopper.kernels.walk import locate, row_position, tokens_at


@gluon.jit(do_not_specialize=["groups"])
def finish(
    addends_ptr,
    dq_ptr,  # written
    lengths, blocks,  # tokens, and blocks of them, along each axis of a dilation group
    heads, groups, strides,  # `Groups`, `TokenStrides` of dQ, whose heads are adjacent
    scale,
    C: gl.constexpr,  # `FinishConstants`
):  # fmt: skip
    """dQ from the sum of its addends: one program per four blocks of 16 queries of a row.

    Of a block there is, for each part of the columns and each 8 of them, what 32 threads have of these: as wgmma leaves
    it, two columns of two rows.
    """
    PARTS: gl.constexpr = parts(C.width)
    BLOCK: gl.constexpr = C.block
    SIZE: gl.constexpr = ROWS * C.width
    flat: gl.constexpr = gl.BlockedLayout([4], [32], [4], [0])
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32 // (C.width // 8), C.width // 8], [4, 1], [1, 0])
    count = blocks[0] * blocks[1] * blocks[2]
    programs = gl.cdiv(count, 4)
    place, row = of_row(programs, heads)
    first = place * 4
    item = locate(row, (1, 1, 1), heads, groups, C)
    i = gl.arange(0, 4 * ROWS, layout=gl.SliceLayout(1, layout))
    number = first + i // ROWS
    x0 = number // blocks[2] // blocks[1] * BLOCK[0] + row_position(i % ROWS, 0, BLOCK)
    x1 = number // blocks[2] % blocks[1] * BLOCK[1] + row_position(i % ROWS, 1, BLOCK)
    x2 = number % blocks[2] * BLOCK[2] + row_position(i % ROWS, 2, BLOCK)
    inside = (number < count) & (x0 < lengths[0]) & (x1 < lengths[1]) & (x2 < lengths[2])
    column = gl.arange(0, C.width, layout=gl.SliceLayout(0, layout))
    at = tokens_at(item, C.columns, (x0, x1, x2), strides)
    each = gl.arange(0, 4 * SIZE, layout=flat)
    start = (row.to(gl.int64) * count + first) * SIZE
    await_previous(C.chained)
    sums = gl.load(addends_ptr + start + each, mask=each < (count - first) * SIZE, other=0.0)
    let_next_start(C.chained)
    # block, part, columns, row, columns, row, column
    sums = sums.reshape([4, PARTS, C.width // PARTS // 8, 8, 4, 2, 2])
    sums = sums.permute((0, 5, 3, 1, 2, 4, 6)).reshape([4 * ROWS, C.width])
    dq = gl.convert_layout((sums * scale).to(dq_ptr.dtype.element_ty), layout)
    gl.store(dq_ptr + at[:, None] + column[None, :], dq, mask=inside[:, None] & (column < C.columns)[None, :])
