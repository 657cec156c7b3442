"""Products of a vector with a matrix in 8-bit integers, as the LM of an int8 model takes them.

    x_q[i] = rint(x[i] / x_s) in -127 .. 127, x_s = max |x| / 127      the whole vector has one step
    y[j]   = (sum_i w_q[i, j] * x_q[i]) * (w_s[j] * x_s)               a column has one step; sums are exact

The instruction multiplies unsigned with signed bytes: x_q + 128 is what it is given, and 128 times the
column's sum is taken off again. Integer sums have no order, so every machine and every path gives the same
bits. A packed matrix w_q i1[n, m] lies in quads: byte 4 (16 (m / 16) i + j) + k holds row 4 i + k, column j.
"""

import numpy as np
from numba import njit

from . import jit, simd

_f4, _i4 = np.float32, np.int32
_ZERO, _LIMIT, _MIDDLE = _f4(0), _f4(127), _f4(128)
_load, _dot = simd.load, simd.dot_quads


@njit(**jit)
def pack(w, packed, sums):
    """w i1[n, m] into packed i1[n * m], 128 times its columns' sums into sums i4[m]; n % 4 = m % 16 = 0."""
    n, m = w.shape
    for j in range(m):
        sums[j] = 0
    for i in range(n):
        for j in range(m):
            packed[((i >> 2) * m + j) * 4 + (i & 3)] = w[i, j]
            sums[j] += _i4(128) * _i4(w[i, j])


@njit(**jit)
def quantise(x, octets):
    """x f4[n] in steps of its greatest / 127, plus 128, into octets u1[>= n]; returns the step (zeros: 0)."""
    most = simd.splat(_ZERO)
    for i in range(0, x.size, 16):
        v = _load(x, i)
        most = simd.larger(simd.larger(v, simd.negative(v)), most)
    step = simd.maximum(most) / _LIMIT
    scale = _f4(1) / step if step > _f4(1e-30) else _ZERO
    for i in range(x.size):
        octets[i] = np.uint8(_i4(np.rint(x[i] * scale) + _MIDDLE))
    return step if step > _f4(1e-30) else _ZERO


@njit(**jit)
def _finish(y, at, column, acc, sums, scale, whole):
    """y[at:] = (acc - sums) * (scale * whole), sixteen columns from `column` of the layer's on."""
    exact = simd.to_floats(simd.subtract_integers(acc, simd.load_integers(sums, column)))
    simd.store(y, at, simd.mul(exact, simd.mul(_load(scale, column), whole)))


@njit(**jit)
def _columns_256(octets, n, packed, at, m, y, j, sums, scale, column, whole):
    """Columns j .. j + 255, sixteen sums in registers."""
    z = simd.zero_integers()
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = a8 = a9 = a10 = a11 = a12 = a13 = a14 = a15 = z
    p = at + 4 * j
    for i in range(0, n, 4):
        a0 = _dot(a0, packed, p, octets, i)
        a1 = _dot(a1, packed, p + 64, octets, i)
        a2 = _dot(a2, packed, p + 128, octets, i)
        a3 = _dot(a3, packed, p + 192, octets, i)
        a4 = _dot(a4, packed, p + 256, octets, i)
        a5 = _dot(a5, packed, p + 320, octets, i)
        a6 = _dot(a6, packed, p + 384, octets, i)
        a7 = _dot(a7, packed, p + 448, octets, i)
        a8 = _dot(a8, packed, p + 512, octets, i)
        a9 = _dot(a9, packed, p + 576, octets, i)
        a10 = _dot(a10, packed, p + 640, octets, i)
        a11 = _dot(a11, packed, p + 704, octets, i)
        a12 = _dot(a12, packed, p + 768, octets, i)
        a13 = _dot(a13, packed, p + 832, octets, i)
        a14 = _dot(a14, packed, p + 896, octets, i)
        a15 = _dot(a15, packed, p + 960, octets, i)
        p += 4 * m
    _finish(y, j, column, a0, sums, scale, whole)
    _finish(y, j + 16, column + 16, a1, sums, scale, whole)
    _finish(y, j + 32, column + 32, a2, sums, scale, whole)
    _finish(y, j + 48, column + 48, a3, sums, scale, whole)
    _finish(y, j + 64, column + 64, a4, sums, scale, whole)
    _finish(y, j + 80, column + 80, a5, sums, scale, whole)
    _finish(y, j + 96, column + 96, a6, sums, scale, whole)
    _finish(y, j + 112, column + 112, a7, sums, scale, whole)
    _finish(y, j + 128, column + 128, a8, sums, scale, whole)
    _finish(y, j + 144, column + 144, a9, sums, scale, whole)
    _finish(y, j + 160, column + 160, a10, sums, scale, whole)
    _finish(y, j + 176, column + 176, a11, sums, scale, whole)
    _finish(y, j + 192, column + 192, a12, sums, scale, whole)
    _finish(y, j + 208, column + 208, a13, sums, scale, whole)
    _finish(y, j + 224, column + 224, a14, sums, scale, whole)
    _finish(y, j + 240, column + 240, a15, sums, scale, whole)


@njit(**jit)
def _columns_64(octets, n, packed, at, m, y, j, sums, scale, column, whole):
    """Columns j .. j + 63, two rows of quads at a time, as two sums each."""
    z = simd.zero_integers()
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = z
    p = at + 4 * j
    for i in range(0, n, 8):
        a0 = _dot(a0, packed, p, octets, i)
        a1 = _dot(a1, packed, p + 64, octets, i)
        a2 = _dot(a2, packed, p + 128, octets, i)
        a3 = _dot(a3, packed, p + 192, octets, i)
        q = p + 4 * m
        b0 = _dot(b0, packed, q, octets, i + 4)
        b1 = _dot(b1, packed, q + 64, octets, i + 4)
        b2 = _dot(b2, packed, q + 128, octets, i + 4)
        b3 = _dot(b3, packed, q + 192, octets, i + 4)
        p += 8 * m
    _finish(y, j, column, simd.add_integers(a0, b0), sums, scale, whole)
    _finish(y, j + 16, column + 16, simd.add_integers(a1, b1), sums, scale, whole)
    _finish(y, j + 32, column + 32, simd.add_integers(a2, b2), sums, scale, whole)
    _finish(y, j + 48, column + 48, simd.add_integers(a3, b3), sums, scale, whole)


@njit(**jit)
def _columns_16(octets, n, packed, at, m, y, j, sums, scale, column, whole):
    """Columns j .. j + 15."""
    a = b = simd.zero_integers()
    p = at + 4 * j
    for i in range(0, n, 8):
        a = _dot(a, packed, p, octets, i)
        b = _dot(b, packed, p + 4 * m, octets, i + 4)
        p += 8 * m
    _finish(y, j, column, simd.add_integers(a, b), sums, scale, whole)


@njit(**jit)
def matvec(x, octets, packed, at, m, sums, scale, column, y):
    """y = x @ w for x f4[n] and the packed matrix of m columns that begins at byte `at` of packed i1.

    Its columns have sums i4 and steps scale f4 from `column` on; octets u1[>= n] is scratch; y f4[m]; n is a
    multiple of 16.
    """
    whole = simd.splat(quantise(x, octets))
    n, j = x.size, 0
    while j + 256 <= m:
        _columns_256(octets, n, packed, at, m, y, j, sums, scale, column + j, whole)
        j += 256
    while j + 64 <= m:
        _columns_64(octets, n, packed, at, m, y, j, sums, scale, column + j, whole)
        j += 64
    while j < m:
        _columns_16(octets, n, packed, at, m, y, j, sums, scale, column + j, whole)
        j += 16
