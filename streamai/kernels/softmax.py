"""Softmax cross-entropy over rows of bfloat16 logits, for training: probabilities less the target, in place.

What torch does in six passes over memory is done row by row in the first-level cache. It does not reach
served state or outputs.
"""

import numpy as np
from numba import njit

from . import jit, simd
from .maths import bits_of_f4, exp_f4, f4_of_bits, log_f4

_f4 = np.float32
_LANES = 16


@njit(**jit)
def _total(x, n):
    """Sum of x f4, n a multiple of 16."""
    s = simd.splat(_f4(0))
    for j in range(0, n, _LANES):
        s = simd.add(s, simd.load(x, j))
    return simd.total(s)


@njit(**jit)
def _greatest(x, n):
    """Greatest of x f4, n a multiple of 16."""
    s = simd.splat(_f4(-3e38))
    for j in range(0, n, _LANES):
        s = simd.larger(simd.load(x, j), s)
    best = _f4(-3e38)
    for lane in range(_LANES):
        best = max(best, simd.lane_of(s, lane))
    return best


@njit(**jit)
def _widened(half):
    """The float of a bfloat16's sixteen bits."""
    return f4_of_bits(np.int32(np.uint32(half) << np.uint32(16)))


@njit(**jit)
def _halved(x):
    """The sixteen bits of the bfloat16 nearest to x, halves to even (no NaN)."""
    bits = np.uint32(bits_of_f4(x))
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@njit(**jit)
def cross_entropy(logits, bias, target, loss, g_bias):
    """-log softmax(logits + bias)[target] into loss f8[n]; logits become the gradient by themselves.

    logits u2[n, V] (bfloat16 bits); bias f4[V]; target i8[n]; g_bias f4[V] grows by the rows' gradients.
    """
    n, V = logits.shape
    padded = (V + _LANES - 1) // _LANES * _LANES
    x = np.zeros(padded, np.float32)
    for r in range(n):
        row = logits[r]
        for j in range(V):
            x[j] = _widened(row[j]) + bias[j]
        for j in range(V, padded):
            x[j] = _f4(-3e38)
        most = _greatest(x, padded)
        own = x[target[r]] - most
        for j in range(padded):
            x[j] = exp_f4(x[j] - most)
        z = _total(x, padded)
        loss[r] = log_f4(z) - own
        share = _f4(1) / z
        for j in range(V):
            p = x[j] * share
            g_bias[j] += p
            row[j] = _halved(p)
        p = x[target[r]] * share - _f4(1)
        g_bias[target[r]] -= _f4(1)
        row[target[r]] = _halved(p)
