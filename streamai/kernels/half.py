"""IEEE half precision in two bytes, by integer arithmetic: the same bits with and without the instruction.

Narrowing rounds to nearest, halves to even; beyond the greatest half (65504) the value stays there: a state
must not become infinite. NaN stays NaN.
"""

import numpy as np
from numba import njit

from . import jit
from .maths import bits_of_f4, f4_of_bits

_f4, _i4 = np.float32, np.int32
_NORMAL = _i4(113 << 23)  # 2^-14, the smallest normal half
_SHIFT = _i4(126 << 23)  # 0.5: adding it leaves a denormal half in the low bits
_BIAS = _i4((15 - 127) << 23)
_MOST, _NAN = _i4(0x7BFF), _i4(0x7E00)
_EXPONENT, _INFINITE = _i4(0x0F800000), _i4(0x7F800000)


@njit(**jit)
def narrow(x):
    """The sixteen bits u2 of the half nearest to the float x."""
    bits = bits_of_f4(x)
    size = bits & _i4(0x7FFFFFFF)
    sign = (bits >> _i4(16)) & _i4(0x8000)
    small = bits_of_f4(f4_of_bits(size) + f4_of_bits(_SHIFT)) - _SHIFT
    odd = (size >> _i4(13)) & _i4(1)
    large = min((size + _BIAS + _i4(0xFFF) + odd) >> _i4(13), _MOST)
    half = small if size < _NORMAL else large
    half = _MOST if size >= _i4(143 << 23) else half
    half = _NAN if size > _INFINITE else half
    return np.uint16(half | sign)


@njit(**jit)
def widen(half):
    """The float of a half's sixteen bits u2, exactly."""
    bits = (_i4(half) & _i4(0x7FFF)) << _i4(13)
    exponent = bits & _EXPONENT
    normal = bits - _BIAS
    small = bits_of_f4(f4_of_bits(normal + _i4(1 << 23)) - f4_of_bits(_NORMAL))
    size = small if exponent == _i4(0) else normal
    size = bits - _BIAS + _i4((128 - 16) << 23) if exponent == _EXPONENT else size
    return f4_of_bits(size | ((_i4(half) & _i4(0x8000)) << _i4(16)))


@njit(**jit)
def narrow_all(x, halves):
    """x f4[n] into halves u2[n]."""
    for j in range(x.size):
        halves[j] = narrow(x[j])


@njit(**jit)
def widen_all(halves, x):
    """halves u2[n] into x f4[n]."""
    for j in range(halves.size):
        x[j] = widen(halves[j])


@njit(**jit)
def round_all(x):
    """Every number of x f4[n] to what a half keeps of it."""
    for j in range(x.size):
        x[j] = widen(narrow(x[j]))
