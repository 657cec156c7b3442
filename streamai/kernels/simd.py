"""Sixteen floats or integers at a time: vector types for numba code, portable through LLVM.

`f32x16` and `i32x16` are numba types whose LLVM value is a <16 x float> or <16 x i32>; LLVM maps them to
whatever the processor has. Every operation works lane by lane or in a fixed order, so the bits do not
depend on the machine. Loads and stores take a C-contiguous array of any dimension and a flat index of
its elements; nothing checks bounds, the caller does.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

from . import SIMD, jit

LANES = 16
_F4, _I1, _I2, _I4, _I8 = ir.FloatType(), *(ir.IntType(n) for n in (8, 16, 32, 64))
_VF4, _VI1, _VI4 = (ir.VectorType(t, LANES) for t in (_F4, _I1, _I4))


class Vector(types.Type):
    """Sixteen lanes; lives in registers only."""


class Floats(Vector):
    """numba type of `f32x16`."""


class Integers(Vector):
    """numba type of `i32x16`."""


@register_model(Floats)
class _FloatsModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, _VF4)


@register_model(Integers)
class _IntegersModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, _VI4)


f32x16 = Floats("f32x16")
i32x16 = Integers("i32x16")


def _at(context, builder, array_type, array, index, target):
    """Pointer to element `index` of the array's data, as a pointer to `target`."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index], inbounds=True), target.as_pointer())


def _splat(builder, value, vector):
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_I4, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_VI4, [0] * LANES))


def _half(builder, value, lanes, at):
    """`lanes` of a vector from lane `at` on."""
    picked = ir.Constant(ir.VectorType(_I4, lanes), list(range(at, at + lanes)))
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), picked)


@intrinsic
def load(_context, array, index):
    """Sixteen elements of a float32 array."""

    def emit(ctx, b, sig, args):
        return b.load(_at(ctx, b, sig.args[0], args[0], args[1], _VF4), align=4)

    return f32x16(array, types.int64), emit


@intrinsic
def store(_context, array, index, value):
    """Sixteen elements into a float32 array."""

    def emit(ctx, b, sig, args):
        b.store(args[2], _at(ctx, b, sig.args[0], args[0], args[1], _VF4), align=4)
        return ctx.get_dummy_value()

    return types.void(array, types.int64, f32x16), emit


@intrinsic
def splat(_context, value):
    """One float32 in every lane."""
    return f32x16(types.float32), lambda _ctx, b, _sig, args: _splat(b, args[0], _VF4)


@intrinsic
def fma(_context, a, x, y):
    """a * x + y with one rounding."""

    def emit(_ctx, b, _sig, args):
        kind = ir.FunctionType(_VF4, [_VF4] * 3)
        return b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.fma.v16f32"), args)

    return f32x16(f32x16, f32x16, f32x16), emit


def _binary(operation):
    @intrinsic
    def apply(_context, x, y):
        emit = lambda _ctx, b, _sig, args: getattr(b, operation)(args[0], args[1])  # noqa: E731
        return f32x16(f32x16, f32x16), emit

    return apply


add, mul = _binary("fadd"), _binary("fmul")


@intrinsic
def total(_context, x):
    """Sum of the lanes by halves: lane 0 + 8, then 0 + 4, 0 + 2, 0 + 1. Always this order."""

    def emit(_ctx, b, _sig, args):
        value = args[0]
        for lanes in (8, 4, 2, 1):
            value = b.fadd(_half(b, value, lanes, 0), _half(b, value, lanes, lanes))
        return b.extract_element(value, ir.Constant(_I4, 0))

    return types.float32(f32x16), emit


@intrinsic
def larger(_context, x, y):
    """The larger of two lanes; y where either is NaN."""

    def emit(_ctx, b, _sig, args):
        return b.select(b.fcmp_ordered(">", args[0], args[1]), args[0], args[1])

    return f32x16(f32x16, f32x16), emit


@intrinsic
def above(_context, x, y):
    """Lanes where x > y, as the low sixteen bits of an integer."""

    def emit(_ctx, b, _sig, args):
        return b.zext(b.bitcast(b.fcmp_ordered(">", args[0], args[1]), _I2), _I4)

    return types.int32(f32x16, f32x16), emit


@intrinsic
def nonzero_bytes(_context, array, index):
    """Which of sixteen bytes of a u1 array are not zero, as the low sixteen bits of an integer."""

    def emit(ctx, b, sig, args):
        value = b.load(_at(ctx, b, sig.args[0], args[0], args[1], _VI1), align=1)
        return b.zext(b.bitcast(b.icmp_unsigned("!=", value, ir.Constant(_VI1, [0] * LANES)), _I2), _I4)

    return types.int32(array, types.int64), emit


@intrinsic
def lowest_bit(_context, mask):
    """Number of the lowest set bit of an int64; mask is not zero."""

    def emit(_ctx, b, _sig, args):
        kind = ir.FunctionType(_I8, [_I8, ir.IntType(1)])
        function = cgutils.get_or_insert_function(b.module, kind, "llvm.cttz.i64")
        return b.call(function, [args[0], ir.Constant(ir.IntType(1), 1)])

    return types.int64(types.int64), emit


@intrinsic
def zero_integers(_context):
    """0 in every lane."""
    return i32x16(), lambda _ctx, _b, _sig, _args: ir.Constant(_VI4, [0] * LANES)


@intrinsic
def to_floats(_context, x):
    """Integers as float32, rounded to nearest."""
    return f32x16(i32x16), lambda _ctx, b, _sig, args: b.sitofp(args[0], _VF4)


@intrinsic
def dot_pairs(_context, sums, bytes_array, byte, words_array, word):
    """sums + for every lane j: bytes[byte + 2 j] * words[word] + bytes[byte + 2 j + 1] * words[word + 1].

    bytes i1, words i2, sums exact in 32 bits. Written so that LLVM finds the multiply-and-add-pairs
    instruction where there is one; the result is the same integer where there is none.
    """

    def emit(ctx, b, sig, args):
        pairs, words = ir.VectorType(_I1, 2 * LANES), ir.VectorType(_I2, 2 * LANES)
        wide = ir.VectorType(_I4, 2 * LANES)
        x = b.load(_at(ctx, b, sig.args[1], args[1], args[2], pairs), align=1)
        pair = b.load(_at(ctx, b, sig.args[3], args[3], args[4], _I4), align=2)
        y = b.bitcast(_splat(b, pair, _VI4), words)
        product = b.mul(b.sext(x, wide), b.sext(y, wide))
        none = ir.Constant(wide, ir.Undefined)
        even = b.shuffle_vector(product, none, ir.Constant(_VI4, list(range(0, 2 * LANES, 2))))
        odd = b.shuffle_vector(product, none, ir.Constant(_VI4, list(range(1, 2 * LANES, 2))))
        return b.add(args[0], b.add(even, odd))

    return i32x16(i32x16, bytes_array, types.int64, words_array, types.int64), emit


def _quads_of(kind):
    """sums + for every lane j the dot product of four bytes i1[4 j ..] with the four u1 of `words`."""
    octets = ir.VectorType(_I1, 4 * LANES)

    def one(module, name, vector):
        return cgutils.get_or_insert_function(module, ir.FunctionType(vector, [vector] * 3), name)

    def fast(b, sums, x, w):
        if kind == "avx512vnni":
            return b.call(one(b.module, "llvm.x86.avx512.vpdpbusd.512", _VI4), [sums, x, w])
        half = ir.VectorType(_I4, LANES // 2)
        call = one(b.module, "llvm.x86.avx512.vpdpbusd.256", half)
        parts = [b.call(call, [_half(b, v, LANES // 2, at) for v in (sums, x, w)]) for at in (0, LANES // 2)]
        return b.shuffle_vector(*parts, ir.Constant(_VI4, list(range(LANES))))

    def plain(b, sums, x, w):
        wide = ir.VectorType(_I4, 4 * LANES)
        product = b.mul(b.zext(b.bitcast(x, octets), wide), b.sext(b.bitcast(w, octets), wide))
        none = ir.Constant(wide, ir.Undefined)
        for first in range(4):
            picked = ir.Constant(_VI4, list(range(first, 4 * LANES, 4)))
            sums = b.add(sums, b.shuffle_vector(product, none, picked))
        return sums

    return plain if kind == "portable" else fast


def _dot_quads(kind):
    quads = _quads_of(kind)

    @intrinsic
    def dot(_context, sums, bytes_array, byte, values, at):
        def emit(ctx, b, sig, args):
            w = b.load(_at(ctx, b, sig.args[1], args[1], args[2], _VI4), align=1)
            x = b.load(_at(ctx, b, sig.args[3], args[3], args[4], _I4), align=1)
            return quads(b, args[0], _splat(b, x, _VI4), w)

        return i32x16(i32x16, bytes_array, types.int64, values, types.int64), emit

    return dot


dot_quads = _dot_quads(SIMD)
"""sums + for every lane j: the sum over k < 4 of bytes[byte + 4 j + k] * values[at + k]; bytes i1, values u1,
exact in 32 bits. By the processor's instruction where it has one; `dot_quads_portable` gives the same."""
dot_quads_portable = _dot_quads("portable")


@intrinsic
def store_integers(_context, array, index, value):
    """Sixteen elements into an int32 array."""

    def emit(ctx, b, sig, args):
        b.store(args[2], _at(ctx, b, sig.args[0], args[0], args[1], _VI4), align=4)
        return ctx.get_dummy_value()

    return types.void(array, types.int64, i32x16), emit


@intrinsic
def add_integers(_context, x, y):
    """x + y, lane by lane."""
    return i32x16(i32x16, i32x16), lambda _ctx, b, _sig, args: b.add(args[0], args[1])


@intrinsic
def subtract_integers(_context, x, y):
    """x - y, lane by lane."""
    return i32x16(i32x16, i32x16), lambda _ctx, b, _sig, args: b.sub(args[0], args[1])


@intrinsic
def negative(_context, x):
    """-x, lane by lane."""
    return f32x16(f32x16), lambda _ctx, b, _sig, args: b.fneg(args[0])


@intrinsic
def maximum(_context, x):
    """The greatest lane (no NaN)."""

    def emit(_ctx, b, _sig, args):
        value = args[0]
        for lanes in (8, 4, 2, 1):
            low, high = _half(b, value, lanes, 0), _half(b, value, lanes, lanes)
            value = b.select(b.fcmp_ordered(">", low, high), low, high)
        return b.extract_element(value, ir.Constant(_I4, 0))

    return types.float32(f32x16), emit


@intrinsic
def load_integers(_context, array, index):
    """Sixteen elements of an int32 array."""

    def emit(ctx, b, sig, args):
        return b.load(_at(ctx, b, sig.args[0], args[0], args[1], _VI4), align=4)

    return i32x16(array, types.int64), emit


@intrinsic
def splat_integer(_context, value):
    """One int32 in every lane."""
    return i32x16(types.int32), lambda _ctx, b, _sig, args: _splat(b, args[0], _VI4)


@intrinsic
def equal_integers(_context, x, y):
    """Lanes where x == y, as the low sixteen bits of an integer."""

    def emit(_ctx, b, _sig, args):
        return b.zext(b.bitcast(b.icmp_signed("==", args[0], args[1]), _I2), _I4)

    return types.int32(i32x16, i32x16), emit


@intrinsic
def equal(_context, x, y):
    """Lanes where x == y, as the low sixteen bits of an integer."""

    def emit(_ctx, b, _sig, args):
        return b.zext(b.bitcast(b.fcmp_ordered("==", args[0], args[1]), _I2), _I4)

    return types.int32(f32x16, f32x16), emit


@intrinsic
def smaller(_context, x, y):
    """The smaller of two lanes; y where either is NaN."""

    def emit(_ctx, b, _sig, args):
        return b.select(b.fcmp_ordered("<", args[0], args[1]), args[0], args[1])

    return f32x16(f32x16, f32x16), emit


@intrinsic
def minimum(_context, x):
    """The smallest lane (no NaN)."""

    def emit(_ctx, b, _sig, args):
        value = args[0]
        for lanes in (8, 4, 2, 1):
            low, high = _half(b, value, lanes, 0), _half(b, value, lanes, lanes)
            value = b.select(b.fcmp_ordered("<", low, high), low, high)
        return b.extract_element(value, ir.Constant(_I4, 0))

    return types.float32(f32x16), emit


@intrinsic
def lane_of(_context, x, lane):
    """One lane of a vector."""
    return types.float32(f32x16, types.int64), lambda _ctx, b, _sig, args: b.extract_element(*args)


@njit(**jit)
def append(values, ids, n, lanes, first, mask):
    """Lanes set in mask behind the n values f4 and their indices first + lane behind the n ids i4; new n.

    Needs room for sixteen more.
    """
    while mask != 0:
        lane = lowest_bit(np.int64(mask))
        mask &= mask - np.int32(1)
        values[n], ids[n] = lane_of(lanes, lane), first + lane
        n += 1
    return n
