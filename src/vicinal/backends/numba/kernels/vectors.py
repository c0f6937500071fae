"""Vectors of 16 numbers inside kernels compiled by numba, and memory by address.

A `Vector` is a value of 16 lanes, one query each, that LLVM keeps in registers (one of 512 bits, or several smaller
ones). Addresses are integers, in bytes. `zero` is a number of the kernel's dtype: it only says which dtype is meant.
Functions in capitals below make LLVM's instructions; the intrinsics wrap them for kernels.
"""

from __future__ import annotations

from functools import cache
from math import factorial, inf, log, sqrt

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, register_model

LANES = 16
INT = ir.IntType(64)
BITS = ir.IntType(LANES)  # a lane each
_TYPES = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
_INTS = {"float": ir.IntType(32), "double": ir.IntType(64)}
_SIZE = {"float": 4, "double": 8}
_MANTISSA = {"float": 23, "double": 52}
_DEGREE = {"float": 7, "double": 13}  # of Taylor's series of 2^r, -1/2 <= r <= 1/2: errors below 6e-9 and 5e-18
_LOG_TERMS = {"float": 5, "double": 11}  # of 2 atanh(r), |r| < 0.172: relative errors below 3e-9 and 2e-18


class Vector(types.Type):
    """The type of `LANES` numbers of a dtype."""

    def __init__(self, dtype: types.Float) -> None:
        super().__init__(name=f"Vector({dtype})")
        self.dtype = dtype


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, vector_of(_TYPES[fe_type.dtype]))


@cache
def registers() -> tuple[int, int]:
    """Bits of a vector register of the machine that is compiled for, and how many there are."""
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    if "+avx512f" in features:
        return 512, 32
    if "+avx," in features + ",":
        return 256, 16
    return 128, 32 if triple.startswith(("aarch64", "arm64")) else 16


def registers_per_vector(element) -> int:
    return LANES * 8 * size_of(element) // registers()[0]


# LLVM's instructions ---------------------------------------------------------------------------------------------


def vector_of(element):
    return ir.VectorType(element, LANES)


def size_of(kind) -> int:
    """Bytes of a number, or of one of a vector's."""
    return _SIZE[str(kind.element if isinstance(kind, ir.VectorType) else kind)]


def number(element, value: float):
    """A constant; of a vector where `element` is one."""
    if isinstance(element, ir.VectorType):
        return ir.Constant(element, [ir.Constant(element.element, value)] * LANES)
    return ir.Constant(element, value)


def LOAD(builder, kind, address, offset: int = 0):
    """A value of LLVM's type `kind`, aligned as its elements are."""
    pointer = builder.inttoptr(_at(builder, address, offset), kind.as_pointer())
    return builder.load(pointer, align=_alignment(kind))


def STORE(builder, value, address, offset: int = 0):
    pointer = builder.inttoptr(_at(builder, address, offset), value.type.as_pointer())
    builder.store(value, pointer, align=_alignment(value.type))


def SPLAT(builder, value):
    vector = vector_of(value.type)
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def FMA(builder, a, b, c):
    """a * b + c, rounded once where the machine can."""
    name = f"llvm.fmuladd.v{LANES}f{8 * size_of(a.type.element)}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(a.type, [a.type] * 3), name)
    return builder.call(function, [a, b, c])


def MAX(builder, a, b):
    """The larger; `a` where either is not a number."""
    return builder.select(builder.fcmp_ordered("<", a, b), b, a)


def UNLESS_MASKED(builder, scores, x):
    """Per lane `x`, or 0 where the score is -inf; whatever `x` is."""
    masked = builder.fcmp_ordered("==", scores, number(scores.type, -inf))
    return builder.select(masked, number(x.type, 0.0), x)


def SELECT(builder, bits, a, b):
    """Per lane `a` where its bit is set, else `b`."""
    return builder.select(builder.bitcast(bits, ir.VectorType(ir.IntType(1), LANES)), a, b)


def LOOP(builder, count, step: int, start, body):
    """`values = body(index, values)` for index 0, step, ... below `count` (at least one), from `start`; the last."""
    before, head = builder.block, builder.append_basic_block("loop")
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(INT)
    index.add_incoming(ir.Constant(INT, 0), before)
    values = []
    for value in start:
        values.append(builder.phi(value.type))
        values[-1].add_incoming(value, before)
    last = body(index, values)
    following = builder.add(index, ir.Constant(INT, step))
    index.add_incoming(following, builder.block)
    for phi, value in zip(values, last):
        phi.add_incoming(value, builder.block)
    after = builder.append_basic_block("after")
    builder.cbranch(builder.icmp_signed("<", following, count), head, after)
    builder.position_at_end(after)
    return last


def EXP(builder, x):
    """e^x for x up to the dtype's range; 0 where it is below the smallest normal number.

    Its relative error is some units in the last place, and |x| / 4 of them more: that of log2(e), rounded. What is
    added up to a softmax has x e^x of them, less than one.
    """
    kind, element = x.type, x.type.element
    mantissa, integers = _MANTISSA[str(element)], ir.VectorType(_INTS[str(element)], LANES)
    bias = 2 ** (8 * size_of(element) - 2 - mantissa) - 1
    x = MAX(builder, x, number(kind, -bias * log(2)))
    shift = number(kind, 1.5 * 2.0**mantissa)  # added, it leaves the nearest integer in the low bits
    log2_e = number(kind, 1 / log(2))
    shifted = FMA(builder, x, log2_e, shift)
    rest = FMA(builder, x, log2_e, builder.fsub(shift, shifted))
    coefficients = [log(2) ** k / factorial(k) for k in range(_DEGREE[str(element)] + 1)]
    power = number(kind, coefficients[-1])
    for c in coefficients[-2::-1]:
        power = FMA(builder, power, rest, number(kind, c))
    exponent = builder.shl(builder.bitcast(shifted, integers), ir.Constant(integers, [mantissa] * LANES))
    exponent = builder.add(exponent, ir.Constant(integers, [bias << mantissa] * LANES))
    return builder.fmul(power, builder.bitcast(exponent, kind))


def LOG(builder, x):
    """The natural logarithm of positive normal numbers: that of a factor near 1, and of a power of two."""
    kind, element = x.type, x.type.element
    mantissa, integers = _MANTISSA[str(element)], ir.VectorType(_INTS[str(element)], LANES)
    least = builder.bitcast(number(kind, sqrt(0.5)), integers)
    bits = builder.bitcast(x, integers)
    above = builder.sub(bits, least)
    exponent = builder.ashr(above, ir.Constant(integers, [mantissa] * LANES))
    power = builder.shl(exponent, ir.Constant(integers, [mantissa] * LANES))
    factor = builder.bitcast(builder.sub(bits, power), kind)
    one = number(kind, 1.0)
    ratio = builder.fdiv(builder.fsub(factor, one), builder.fadd(factor, one))  # log(factor) = 2 atanh(ratio)
    square = builder.fmul(ratio, ratio)
    terms = _LOG_TERMS[str(element)]
    series = number(kind, 2 / (2 * terms - 1))
    for k in range(terms - 2, -1, -1):
        series = FMA(builder, series, square, number(kind, 2 / (2 * k + 1)))
    found = FMA(builder, builder.sitofp(exponent, kind), number(kind, log(2)), builder.fmul(ratio, series))
    return builder.select(builder.fcmp_unordered("uno", x, x), x, found)


def TRANSPOSE(builder, rows):
    """16 vectors of 16 transposed: in every stage, neighbors at twice the distance exchange halves."""
    for distance in (8, 4, 2, 1):
        low = [i if not i & distance else LANES + i - distance for i in range(LANES)]
        high = [i + distance if not i & distance else LANES + i for i in range(LANES)]
        masks = [ir.Constant(ir.VectorType(ir.IntType(32), LANES), m) for m in (low, high)]
        new = list(rows)
        for i in range(LANES):
            if not i & distance:
                pair = rows[i], rows[i + distance]
                new[i], new[i + distance] = (builder.shuffle_vector(*pair, mask) for mask in masks)
        rows = new
    return rows


def _at(builder, address, offset):
    return builder.add(address, ir.Constant(INT, offset)) if offset else address


def _alignment(kind):
    if isinstance(kind, ir.IntType):
        return kind.width // 8
    return size_of(kind)


# For kernels -----------------------------------------------------------------------------------------------------


@intrinsic
def itemsize(typingctx, zero):
    """Bytes of a number, or of one of a vector's."""
    return types.int64(zero), lambda context, builder, signature, args: ir.Constant(INT, size_of(args[0].type))


@intrinsic
def convert(typingctx, value, zero):
    """A float64 as a number of the dtype of `zero`."""

    def generate(context, builder, signature, args):
        return builder.fptrunc(args[0], args[1].type) if size_of(args[1].type) < 8 else args[0]

    return zero(types.float64, zero), generate


@intrinsic
def where_given(typingctx, flag, address):
    """`address`, or None where `flag` is None: known when compiled."""
    if isinstance(flag, types.NoneType):
        return types.none(flag, address), lambda context, builder, signature, args: context.get_dummy_value()
    return address(flag, address), lambda context, builder, signature, args: args[1]


@intrinsic
def advanced(typingctx, address, by):
    """`address + by`, or None where `address` is None."""
    if isinstance(address, types.NoneType):
        return types.none(address, by), lambda context, builder, signature, args: context.get_dummy_value()
    return address(address, by), lambda context, builder, signature, args: builder.add(*args)


@intrinsic
def add_atomically(typingctx, address, number):
    """Add to the integer at `address`; what it was before."""

    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], INT.as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "monotonic")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def load_int(typingctx, address):
    """The 64-bit integer at `address`."""
    return types.int64(types.int64), lambda context, builder, signature, args: LOAD(builder, INT, args[0])


@intrinsic
def store_int(typingctx, address, value):
    def generate(context, builder, signature, args):
        STORE(builder, args[1], args[0])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def load_bits(typingctx, address):
    """16 bits at `address`, a lane each, as an integer."""

    def generate(context, builder, signature, args):
        return builder.zext(LOAD(builder, BITS, args[0]), INT)

    return types.int64(types.int64), generate


@intrinsic
def store_bits(typingctx, address, bits):
    def generate(context, builder, signature, args):
        STORE(builder, builder.trunc(args[1], BITS), args[0])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def load_number(typingctx, address, zero):
    """The number at `address`, of the dtype of `zero`."""

    def generate(context, builder, signature, args):
        return LOAD(builder, args[1].type, args[0])

    return zero(types.int64, zero), generate


@intrinsic
def load(typingctx, address, zero):
    """The vector at `address`."""

    def generate(context, builder, signature, args):
        return LOAD(builder, vector_of(args[1].type), args[0])

    return Vector(zero)(types.int64, zero), generate


@intrinsic
def store(typingctx, address, value):
    """A number or a vector to `address`."""

    def generate(context, builder, signature, args):
        STORE(builder, args[1], args[0])
        return context.get_dummy_value()

    return types.void(types.int64, value), generate


@intrinsic
def splat(typingctx, value):
    """A number in every lane."""
    return Vector(value)(value), lambda context, builder, signature, args: SPLAT(builder, args[0])


def _lanewise(instruction, count):
    """An intrinsic on `count` vectors."""

    def generate(context, builder, signature, args):
        return instruction(builder, *args)

    if count == 1:
        return intrinsic(lambda typingctx, a: (a(a), generate))
    if count == 2:
        return intrinsic(lambda typingctx, a, b: (a(a, a), generate))
    return intrinsic(lambda typingctx, a, b, c: (a(a, a, a), generate))


add = _lanewise(lambda builder, a, b: builder.fadd(a, b), 2)
subtract = _lanewise(lambda builder, a, b: builder.fsub(a, b), 2)
multiply = _lanewise(lambda builder, a, b: builder.fmul(a, b), 2)
divide = _lanewise(lambda builder, a, b: builder.fdiv(a, b), 2)
fma = _lanewise(FMA, 3)
unless_masked = _lanewise(UNLESS_MASKED, 2)
exp = _lanewise(EXP, 1)
logarithm = _lanewise(LOG, 1)


@intrinsic
def transpose(typingctx, table, offset, factor, into):
    """Sixteen rows of 16 numbers, at `offset` from the addresses in `table`, times `factor`, to columns at `into`."""

    def generate(context, builder, signature, args):
        rows, offset, factor, into = args
        kind = vector_of(factor.type)
        lines = [LOAD(builder, kind, builder.add(LOAD(builder, INT, rows, 8 * i), offset)) for i in range(LANES)]
        times = SPLAT(builder, factor)
        for i, line in enumerate(TRANSPOSE(builder, lines)):
            STORE(builder, builder.fmul(line, times), into, i * LANES * size_of(factor.type))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, factor, types.int64), generate
