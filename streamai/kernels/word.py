"""Eight bytes at once: an unaligned little-endian load and store, and the count of trailing zero bits."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LOW = np.uint64(0x0101010101010101)
HIGH = np.uint64(0x8080808080808080)


def _address(context, builder, array_type, array, at):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(cgutils.gep_inbounds(builder, data, at), ir.IntType(64).as_pointer())


@intrinsic
def load8(typingctx, buf, at):
    """buf[at : at + 8] as u8; the caller sees to it that they are there."""

    def codegen(context, builder, signature, args):
        word = builder.load(_address(context, builder, signature.args[0], args[0], args[1]))
        word.align = 1
        return word

    return types.uint64(buf, types.int64), codegen


@intrinsic
def store8(typingctx, buf, at, word):
    """Write u8 `word` to buf[at : at + 8]; the caller sees to it that they are there."""

    def codegen(context, builder, signature, args):
        store = builder.store(args[2], _address(context, builder, signature.args[0], args[0], args[1]))
        store.align = 1
        return context.get_dummy_value()

    return types.void(buf, types.int64, types.uint64), codegen


@intrinsic
def trailing_zeros(typingctx, word):
    """Number of zero bits below the lowest set bit of a u8 that is not 0."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), codegen
