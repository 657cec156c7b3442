"""Ask for memory before it is needed: rows of keys lie far apart, and a miss costs as much as a feature."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LINE_CELLS = 8  # float64 in a cache line


@intrinsic
def prefetch(_context, array, i):
    """Start to load the cache line of array[i], a 1-dimensional array; changes nothing, never faults."""

    def emit(context, builder, sig, args):
        made = context.make_array(sig.args[0])(context, builder, args[0])
        at = builder.gep(made.data, [args[1]])
        pointer = builder.bitcast(at, ir.IntType(8).as_pointer())
        i4 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, i4, i4, i4])
        f = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(f, [pointer, i4(1), i4(3), i4(1)])  # to write, keep in all caches, data
        return context.get_dummy_value()

    return types.void(array, types.intp), emit
