"""Rescaling what has been accumulated, skipped by warps in which nothing changes.

An online softmax multiplies its sums by `exp2(old - new)` whenever a row's maximum grows. The maximum may lag behind:
subtracting less only makes exponentials larger, by at most `2**GROWTH`, and the last division takes that out again. So
it follows only when scores exceed it by more, which after a row's first tiles is rare, and a warp whose factors are
all 1 jumps over its multiplications. On an H200 a long problem is held back by power, not by issue slots: these are
a tenth of the instructions of a tile (docs/laboratory/hopper.md). Source of the idea: FlashAttention-4.

Gluon has no branch of a single warp, only of a whole warpgroup after a reduction through shared memory; hence PTX.
"""

from vicinal.backends.hopper.kernels.compat import gl, gluon

GROWTH = gl.constexpr(8.0)  # powers of two: exponentials up to 256, which any dtype holds as precisely as those up to 1


@gluon.jit
def followed(maximum, top):
    """The maximum to subtract from scores of which the largest is `top`: it follows where they outgrow it."""
    return gl.where(top > maximum + GROWTH, top, maximum)


@gluon.jit
def rescaled(sums, factor, PIECES: gl.constexpr):
    """`sums * factor[:, None]` of the warps in which a factor is not 1."""
    ROWS: gl.constexpr = factor.shape[0] // (8 * gl.num_warps())  # of a thread: four threads share each
    changes = gl.inline_asm_elementwise(
        _any_changes(ROWS), _constraints(ROWS, "r", "f"), [factor], dtype=gl.int32, is_pure=False, pack=ROWS
    )
    if PIECES == 1:
        return (_product(sums[0], factor, changes),)
    else:
        x = _product(sums[0], factor, changes)
        y = _product(sums[1], factor, changes)
        z = _product(sums[2], factor, changes)
        return (x, y, z)


@gluon.jit
def _product(x, factor, changes):
    COUNT: gl.constexpr = x.shape[0] * x.shape[1] // (32 * gl.num_warps())  # elements of a thread
    return gl.inline_asm_elementwise(
        _multiply(COUNT), _constraints(COUNT, "f", "", "f", "r"), [x, factor[:, None], changes[:, None]],
        dtype=gl.float32, is_pure=False, pack=COUNT,
    )  # fmt: skip


@gluon.constexpr_function
def _any_changes(rows):
    """PTX: of all rows of a warp, 1 if any factor is not 1, else 0."""
    tests = "".join(f"setp.neu.or.f32 some, ${rows + i}, 0f3F800000, some; " for i in range(rows))
    results = "".join(f"selp.u32 ${i}, 1, 0, some; " for i in range(rows))
    start = "setp.ne.u32 some, 0, 0; "
    return f"{{ .reg .pred some; {start}{tests}vote.sync.any.pred some, some, 0xffffffff; {results}}}"


@gluon.constexpr_function
def _multiply(count):
    """PTX: elements by their factors, if the flag of the first is set, which is that of its warp."""
    products = "".join(f"mul.f32 ${i}, ${i}, ${2 * count + i}; " for i in range(count))
    return f"{{ .reg .pred same; setp.eq.u32 same, ${3 * count}, 0; @same bra done; {products}done: }}"


@gluon.constexpr_function
def _constraints(count, result, *arguments):
    """LLVM's, of results and arguments with `count` elements each; "" is an argument in the results' registers."""
    kinds = ["=" + result, *arguments]
    return ",".join(kind or str(i) for kind in kinds for i in range(count))
