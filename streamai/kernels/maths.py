"""exp, log, sigmoid and friends: polynomials of our own, the same bits on every machine.

No libm and no fastmath, so nothing depends on the C library or on how a loop was vectorised. Every
multiply-add is an explicit fused one (`llvm.fma`, correctly rounded wherever it runs). Functions with
`_f4` take and give float32, `_f8` float64; NaN gives NaN. Scalar functions, which LLVM vectorises in a
loop. Errors are stated in units in the last place (ulp) and tested against numpy.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from . import jit

_F4, _F8 = ir.FloatType(), ir.DoubleType()
_I4, _I8 = ir.IntType(32), ir.IntType(64)


def _bitcast(source, target, llvm_target):
    """An intrinsic that reads the bits of `source` as `target`."""

    @intrinsic
    def cast(_context, x):
        return target(source), lambda _ctx, b, _sig, args: b.bitcast(args[0], llvm_target)

    return cast


bits_of_f4 = _bitcast(types.float32, types.int32, _I4)
f4_of_bits = _bitcast(types.int32, types.float32, _F4)
bits_of_f8 = _bitcast(types.float64, types.int64, _I8)
f8_of_bits = _bitcast(types.int64, types.float64, _F8)


def _fused(scalar, llvm_type, name):
    """An intrinsic for a * b + c with one rounding."""

    @intrinsic
    def fma(_context, a, b, c):
        def emit(_ctx, builder, _sig, args):
            kind = ir.FunctionType(llvm_type, [llvm_type] * 3)
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)

        return scalar(scalar, scalar, scalar), emit

    return fma


fma_f4 = _fused(types.float32, _F4, "llvm.fma.f32")
fma_f8 = _fused(types.float64, _F8, "llvm.fma.f64")

_f4 = np.float32
# adding this leaves the nearest integer in the low bits, and needs no conversion that NaN would break
_ROUND4, _ROUND4_BITS = _f4(12582912.0), np.int32(np.array(12582912.0, "f4").view("i4"))
_ROUND8, _ROUND8_BITS = 6755399441055744.0, np.int64(np.array(6755399441055744.0).view("i8"))
_LN2_HI4, _LN2_LO4 = _f4(0.693359375), _f4(-2.12194440e-4)
_LN2_HI8, _LN2_LO8 = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # fdlibm
_LOG2E4, _LOG2E8, _LN2 = _f4(1.4426950408889634), 1.4426950408889634, 0.6931471805599453
_ONE4, _ZERO4 = _f4(1), _f4(0)
_E = tuple(_f4(c) for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2,
                            1.6666665459e-1, 5.0000001201e-1))  # Cephes expf  # fmt: skip
_L = tuple(_f4(c) for c in (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1,
                            1.4249322787e-1, -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1,
                            3.3333331174e-1))  # Cephes logf  # fmt: skip


@njit(**jit)
def exp_f4(x):
    """exp, 2 ulp. 0 below -87.33; the greatest argument is 88.37, above it the value at it."""
    y = x if x > _f4(-87.33) else (_f4(-87.33) if x <= _f4(-87.33) else x)
    y = _f4(88.37) if y > _f4(88.37) else y
    k = fma_f4(y, _LOG2E4, _ROUND4)
    n = np.int32(bits_of_f4(k) - _ROUND4_BITS)
    k = k - _ROUND4
    r = fma_f4(k, -_LN2_LO4, fma_f4(k, -_LN2_HI4, y))
    p = fma_f4(_E[0], r, _E[1])
    p = fma_f4(p, r, _E[2])
    p = fma_f4(p, r, _E[3])
    p = fma_f4(p, r, _E[4])
    p = fma_f4(p, r, _E[5])
    p = fma_f4(p, r * r, r) + _ONE4
    p = p * f4_of_bits(np.int32((n + np.int32(127)) << np.int32(23)))
    return _ZERO4 if x < _f4(-87.33) else p


@njit(**jit)
def log_f4(x):
    """Natural logarithm, 2 ulp. 0 gives -inf, negative NaN; denormals are scaled first."""
    small = x < _f4(1.1754944e-38)
    y = x * _f4(8388608.0) if small else x
    bits = bits_of_f4(y)
    # the mantissa in [sqrt(1/2), sqrt(2)), so that the logarithm of 1 is exactly 0
    e = np.int32((bits - np.int32(0x3F3504F3)) >> np.int32(23))
    m = f4_of_bits(np.int32(bits - (e << np.int32(23)))) - _ONE4
    n = _f4(e) - (_f4(23) if small else _ZERO4)
    p = fma_f4(_L[0], m, _L[1])
    p = fma_f4(p, m, _L[2])
    p = fma_f4(p, m, _L[3])
    p = fma_f4(p, m, _L[4])
    p = fma_f4(p, m, _L[5])
    p = fma_f4(p, m, _L[6])
    p = fma_f4(p, m, _L[7])
    p = fma_f4(p, m, _L[8])
    z = m * m
    p = fma_f4(n, _LN2_LO4, (m * z) * p)
    p = fma_f4(_f4(-0.5), z, p)
    y = fma_f4(n, _LN2_HI4, m + p)
    y = x if x == _f4(np.inf) else y
    y = _f4(-np.inf) if x == _ZERO4 else y
    return y if x >= _ZERO4 else _f4(np.nan)


@njit(**jit)
def log1p_f4(x):
    """log(1 + x) for x > -1, 4 ulp, also where 1 + x rounds to 1."""
    u = _ONE4 + x
    d = u - _ONE4
    y = log_f4(u) * (x / (d if d != _ZERO4 else _ONE4))
    y = x if d == _ZERO4 else y
    return u if u == _f4(np.inf) else y


@njit(**jit)
def sigmoid_f4(x):
    """1 / (1 + exp(-x)), 4 ulp for x > -87; 0 < value <= 1."""
    return _ONE4 / (_ONE4 + exp_f4(-x))


@njit(**jit)
def silu_f4(x):
    """x * sigmoid(x), 5 ulp for x > -87."""
    return x / (_ONE4 + exp_f4(-x))


@njit(**jit)
def _exp_of_remainder(r):
    """exp on |r| <= 0.35 by its series to the 13th power: what is left out is below 4e-18."""
    p = 1.0 / 6227020800.0
    p = fma_f8(p, r, 1.0 / 479001600.0)
    p = fma_f8(p, r, 1.0 / 39916800.0)
    p = fma_f8(p, r, 1.0 / 3628800.0)
    p = fma_f8(p, r, 1.0 / 362880.0)
    p = fma_f8(p, r, 1.0 / 40320.0)
    p = fma_f8(p, r, 1.0 / 5040.0)
    p = fma_f8(p, r, 1.0 / 720.0)
    p = fma_f8(p, r, 1.0 / 120.0)
    p = fma_f8(p, r, 1.0 / 24.0)
    p = fma_f8(p, r, 1.0 / 6.0)
    p = fma_f8(p, r, 0.5)
    return fma_f8(p, r * r, r) + 1.0


@njit(**jit)
def exp_f8(x):
    """exp, 2 ulp. 0 below -708, inf above 709."""
    y = -708.0 if x < -708.0 else x
    y = 709.0 if y > 709.0 else y
    k = fma_f8(y, _LOG2E8, _ROUND8)
    n = bits_of_f8(k) - _ROUND8_BITS
    k = k - _ROUND8
    r = fma_f8(k, -_LN2_LO8, fma_f8(k, -_LN2_HI8, y))
    p = _exp_of_remainder(r) * f8_of_bits((n + 1023) << 52)
    p = 0.0 if x < -708.0 else p
    return np.inf if x > 709.0 else p


@njit(**jit)
def exp2_f8(x):
    """2 ** x, 2 ulp, exact at integers. 0 below -1022, inf from 1023.5."""
    y = -1022.0 if x < -1022.0 else x
    y = 1023.0 if y > 1023.0 else y
    k = y + _ROUND8
    n = bits_of_f8(k) - _ROUND8_BITS
    p = _exp_of_remainder((x - (k - _ROUND8) if x < 1024.0 else 0.0) * _LN2 if x > -1022.0 else 0.0)
    p = p * f8_of_bits((n + 1023) << 52)
    p = 0.0 if x < -1022.0 else p
    p = np.inf if x >= 1023.5 else p
    return p if x == x else x


@njit(**jit)
def log_f8(x):
    """Natural logarithm, 2 ulp (the method and coefficients of fdlibm). 0 gives -inf, negative NaN."""
    small = x < 2.2250738585072014e-308
    y = x * 18014398509481984.0 if small else x
    bits = bits_of_f8(y)
    e = (bits - 0x3FE6A09E667F3BCD) >> 52
    f = f8_of_bits(bits - (e << 52)) - 1.0
    n = np.float64(e) - (54.0 if small else 0.0)
    s = f / (2.0 + f)
    z = s * s
    p = fma_f8(1.479819860511658591e-01, z, 1.531383769920937332e-01)
    p = fma_f8(p, z, 1.818357216161805012e-01)
    p = fma_f8(p, z, 2.222219843214978396e-01)
    p = fma_f8(p, z, 2.857142874366239149e-01)
    p = fma_f8(p, z, 3.999999999940941908e-01)
    p = fma_f8(p, z, 6.666666666666735130e-01) * z
    half = 0.5 * f * f
    y = fma_f8(n, _LN2_HI8, -((half - fma_f8(s, half + p, n * _LN2_LO8)) - f))
    y = x if x == np.inf else y
    y = -np.inf if x == 0.0 else y
    return y if x >= 0.0 else np.nan


@njit(**jit)
def ordered_dot(x, y):
    """Sum of x[i] y[i] over f4[n] and f4[>= n], from the first on: always this order."""
    s = np.float32(0)
    for i in range(x.size):
        s += x[i] * y[i]
    return s
