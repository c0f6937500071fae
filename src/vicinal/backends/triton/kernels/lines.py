"""Fused neighborhood attention of small windows on two axes: each warp walks the lines of keys that its queries see.

A program has 8x8 queries, and their box of keys in shared memory. A warp has two lines of queries, which see one line
more than a window has: half of the box or less, where products of whole programs compute all of it. Products are
`mma.sync`, a batch of four, one a warp: what they multiply by is four lines of the box, two apart. Even and odd lines
lie apart, so that these four are neighbors in memory, and a step is a view that begins a line later. All scores of a
query are in registers, so there is no running maximum. What is outside a window along the lines is where products
start from; which lines are inside is the same for all tiles away from borders. At borders, where windows shift, all
warps walk all lines.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2

from vicinal.backends.triton.kernels.softmax import LN2, LOWEST

barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # Triton >= 3.7 renamed it
TILE = gl.constexpr(8)  # queries along each axis; a warp has two lines of them, 16 rows of its products
COLUMNS = gl.constexpr(16)  # keys of a line
VECTOR = gl.constexpr(8)  # elements, that strides are in: 16 bytes


@gluon.constexpr_function
def _copied(D):
    """How the copies of `[8 lines, COLUMNS, D]` are spread over threads."""
    return gl.BlockedLayout([1, 1, 8], [1, 32 * 8 // D, D // 8], [1, 4, 1], [2, 1, 0])


@gluon.constexpr_function
def _swizzled(D, order):
    return gl.SwizzledSharedLayout(8, 128 // (2 * D), 2 * D // 16, order=order)


@gluon.jit
def _copy(smem, pointer, parity, there, MOST: gl.constexpr, line_apart, column_apart, D: gl.constexpr):
    """Ask for the lines of one parity, as far as they are there."""
    L: gl.constexpr = _copied(D)
    line = gl.expand_dims(gl.expand_dims(gl.arange(0, 8, layout=gl.SliceLayout(1, gl.SliceLayout(2, L))), 1), 2)
    column = gl.expand_dims(gl.expand_dims(gl.arange(0, 16, layout=gl.SliceLayout(0, gl.SliceLayout(2, L))), 0), 2)
    d = gl.expand_dims(gl.expand_dims(gl.arange(0, D, layout=gl.SliceLayout(0, gl.SliceLayout(1, L))), 0), 1)
    at = pointer + (((parity + 2 * line) * line_apart + column * column_apart) * VECTOR + d)
    inside = (parity + 2 * line < there) & (line < MOST) & (column < 16) & (d < D)
    async_copy.async_copy_global_to_shared(smem, at, mask=inside)


@gluon.jit
def _flat(x, LAYOUT: gl.constexpr):
    """`[4, 16, n]` as `[64, n]`, in the same registers."""
    return gl.convert_layout(x.reshape([64, x.shape[2]]), LAYOUT)


NUMBERS = ("scale", "heads", "group_size", "X0", "X1", "W1")
STRIDES = ("qb", "q0", "q1", "qh", "kb", "k0", "k1", "kh", "vb", "v0", "v1", "vh")


@gluon.jit(do_not_specialize=NUMBERS + STRIDES)
def forward_of_lines_kernel(
    query, key, value, output, lse,
    scale,  # positive, times log2(e)
    heads, group_size,
    X0, X1,  # lengths
    W1,  # window along the lines
    qb, q0, q1, qh, kb, k0, k1, kh, vb, v0, v1, vh,  # strides of batch, axes, heads
    W: gl.constexpr,  # window of lines
    D: gl.constexpr,
):  # fmt: skip
    M: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [4, 1, 1], [1, 16, 8])
    M2: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [4, 1], [16, 8])
    DTYPE: gl.constexpr = key.dtype.element_ty
    LINES: gl.constexpr = TILE + W - 1  # of a box
    HALF: gl.constexpr = (LINES + 1) // 2
    R: gl.constexpr = W // 2
    pid = gl.program_id(0)
    tiles1 = (X1 + TILE - 1) // TILE
    tiles0 = (X0 + TILE - 1) // TILE
    x0 = pid % tiles1 * TILE
    rest = pid // tiles1
    y0 = rest % tiles0 * TILE
    rest = rest // tiles0
    h = rest % heads
    b = (rest // heads).to(gl.int64)
    by = gl.minimum(gl.maximum(y0 - R, 0), X0 - W)
    there = gl.minimum(gl.maximum(y0 + TILE - 1 - R, 0), X0 - W) + W - by
    inner = (y0 >= R) & (there == LINES)
    bx = gl.minimum(gl.maximum(x0 - W1 // 2, 0), X1 - COLUMNS)
    kv_head = h // group_size
    key += (b * kb + kv_head.to(gl.int64) * kh + by.to(gl.int64) * k0 + bx.to(gl.int64) * k1) * VECTOR
    value += (b * vb + kv_head.to(gl.int64) * vh + by.to(gl.int64) * v0 + bx.to(gl.int64) * v1) * VECTOR
    S: gl.constexpr = _swizzled(D, [2, 1, 0])
    S2: gl.constexpr = _swizzled(D, [1, 0])
    k_s = gl.allocate_shared_memory(DTYPE, [2 * HALF + 1, COLUMNS, D], S2)  # even lines, then odd ones
    v_s = gl.allocate_shared_memory(DTYPE, [2 * HALF + 1, COLUMNS, D], S2)
    for parity in gl.static_range(2):
        lines = k_s.index(HALF * parity)._reinterpret(DTYPE, [8, COLUMNS, D], S)
        _copy(lines, key, parity, there, HALF, k0, k1, D)
    async_copy.commit_group()
    for parity in gl.static_range(2):
        lines = v_s.index(HALF * parity)._reinterpret(DTYPE, [8, COLUMNS, D], S)
        _copy(lines, value, parity, there, HALF, v0, v1, D)
    async_copy.commit_group()
    A: gl.constexpr = gl.DotOperandLayout(0, M, 2)
    B: gl.constexpr = gl.DotOperandLayout(1, M, 2)
    A2: gl.constexpr = gl.DotOperandLayout(0, M2, 2)
    B2: gl.constexpr = gl.DotOperandLayout(1, M2, 2)
    QL: gl.constexpr = gl.BlockedLayout([1, 8], [32 * 8 // D, D // 8], [4, 1], [1, 0])
    row = gl.expand_dims(gl.arange(0, 64, layout=gl.SliceLayout(1, QL)), 1)
    d = gl.expand_dims(gl.arange(0, D, layout=gl.SliceLayout(0, QL)), 0)
    exists = (y0 + row // TILE < X0) & (x0 + row % TILE < X1) & (d < D)
    query += (b * qb + h.to(gl.int64) * qh + y0.to(gl.int64) * q0 + x0.to(gl.int64) * q1) * VECTOR
    own = ((row // TILE) * q0 + (row % TILE) * q1) * VECTOR + d
    q2 = gl.convert_layout(gl.load(query + own, mask=exists, other=0.0), A2)
    m_row = gl.arange(0, 64, layout=gl.SliceLayout(1, M2))
    m_col = gl.expand_dims(gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, M2)), 0)
    first_column = gl.minimum(gl.maximum(x0 + m_row % TILE - W1 // 2, 0), X1 - W1)
    away = bx + m_col - gl.expand_dims(first_column, 1)
    columns2 = gl.where((away >= 0) & (away < W1), 0.0, float("-inf"))
    async_copy.wait_group(1)
    barrier()
    if inner:
        q = gl.convert_layout(q2.reshape([4, 16, D]), A)
        columns = gl.convert_layout(columns2.reshape([4, 16, COLUMNS]), M)
        of_warp = gl.arange(0, 16, layout=gl.SliceLayout(0, gl.SliceLayout(2, M)))
        of_warp = gl.expand_dims(gl.expand_dims(of_warp, 0), 2)
        upper = (of_warp < TILE) & (columns <= 0.0)
        lower = (of_warp >= TILE) & (columns <= 0.0)
        scores = ()
        for i in gl.static_range(W + 1):
            start = columns
            if i == 0:  # only a warp's first line of queries sees it
                start = gl.where(upper, columns, float("-inf"))
            if i == W:
                start = gl.where(lower, columns, float("-inf"))
            k = k_s.index(i % 2 * HALF + i // 2)._reinterpret(DTYPE, [4, COLUMNS, D], S).permute((0, 2, 1)).load(B)
            scores = scores + (mma_v2(q, k, start),)
        most = scores[0]
        for i in gl.static_range(1, W + 1):
            most = gl.maximum(most, scores[i])
        top3 = gl.maximum(gl.max(most, 2) * scale, LOWEST)
        every = gl.zeros([4, 16, COLUMNS], gl.float32, M)
        sums3 = gl.zeros([4, 16, D], gl.float32, M)
        async_copy.wait_group(0)
        barrier()
        for i in gl.static_range(W + 1):
            p = gl.exp2(scores[i] * scale - gl.expand_dims(top3, 2))
            every += p
            v = v_s.index(i % 2 * HALF + i // 2)._reinterpret(DTYPE, [4, COLUMNS, D], S).load(B)
            sums3 = mma_v2(gl.convert_layout(p.to(DTYPE), A), v, sums3)
        sums = _flat(sums3, M2)
        total = gl.convert_layout(gl.sum(every, 2).reshape([64]), gl.SliceLayout(1, M2))
        top = gl.convert_layout(top3.reshape([64]), gl.SliceLayout(1, M2))
    else:
        async_copy.wait_group(0)
        barrier()
        first = gl.minimum(gl.maximum(y0 + m_row // TILE - R, 0), X0 - W) - by
        top = gl.full([64], LOWEST, gl.float32, gl.SliceLayout(1, M2))
        total = gl.zeros([64], gl.float32, gl.SliceLayout(1, M2))
        sums = gl.zeros([64, D], gl.float32, M2)
        for j in range(there):
            seen = gl.expand_dims((first <= j) & (j < first + W), 1)
            at = j % 2 * HALF + j // 2
            s = mma_v2(q2, k_s.index(at).permute((1, 0)).load(B2), gl.where(seen, columns2, float("-inf")))
            new = gl.maximum(top, gl.max(s, 1) * scale)
            p = gl.exp2(s * scale - gl.expand_dims(new, 1))
            fade = gl.exp2(top - new)
            top = new
            total = total * fade + gl.sum(p, 1)
            v = v_s.index(at).load(B2)
            sums = mma_v2(gl.convert_layout(p.to(DTYPE), A2), v, sums * gl.expand_dims(fade, 1))
    share = gl.where(total == 0.0, 0.0, 1.0 / total)
    out = gl.convert_layout((sums * gl.expand_dims(share, 1)).to(output.dtype.element_ty), QL)
    first_row = ((b * X0 + y0) * X1 + x0) * heads + h
    gl.store(output + first_row * D + (((row // TILE) * X1 + row % TILE) * heads * D + d), out, mask=exists)
    token = ((m_row // TILE) * X1 + m_row % TILE) * heads
    inside = (y0 + m_row // TILE < X0) & (x0 + m_row % TILE < X1)
    gl.store(lse + first_row + token, (top + gl.log2(total)) * LN2, mask=inside)
