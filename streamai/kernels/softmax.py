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


@njit(**jit)
def distil(logits, bias, target, ids, chance, alpha, loss, g_bias):
    """As `cross_entropy`, towards alpha of the target and (1 - alpha) of a teacher's chances.

    ids i4[n, K], chance f4[n, K]: the teacher's K likeliest items. What it leaves over is compared with what
    the student leaves over, as one bucket: -sum_k c_k log s_k - rest log(1 - sum_k s_k).
    """
    n, V = logits.shape
    padded = (V + _LANES - 1) // _LANES * _LANES
    x = np.zeros(padded, np.float32)
    beta, tiny = _f4(1) - _f4(alpha), _f4(1e-6)
    for r in range(n):
        row, t = logits[r], target[r]
        for j in range(V):
            x[j] = _widened(row[j]) + bias[j]
        for j in range(V, padded):
            x[j] = _f4(-3e38)
        most = _greatest(x, padded)
        own = x[t] - most
        near, rest = _f4(0), _f4(1)  # sum of c_k times the logit of k; what the teacher leaves over
        for k in range(ids.shape[1]):
            near += chance[r, k] * (x[ids[r, k]] - most)
            rest -= chance[r, k]
        rest = max(rest, _f4(0))
        for j in range(padded):
            x[j] = exp_f4(x[j] - most)
        z = _total(x, padded)
        share, log_z, held = _f4(1) / z, log_f4(z), _f4(0)
        for k in range(ids.shape[1]):
            held += x[ids[r, k]] * share
        left = max(_f4(1) - held, tiny)
        loss[r] = alpha * (log_z - own) + beta * ((_f4(1) - rest) * log_z - near - rest * log_f4(left))
        factor = share * (_f4(1) - beta * rest / left)
        for j in range(V):
            p = x[j] * factor
            g_bias[j] += p
            row[j] = _halved(p)
        for k in range(ids.shape[1]):
            j = ids[r, k]
            p = x[j] * share - beta * chance[r, k] - (_f4(alpha) if j == t else _f4(0))
            g_bias[j] += p - x[j] * factor
            row[j] = _halved(p)
            if j == t:
                t = -1
        if t >= 0:
            g_bias[t] -= _f4(alpha)
            row[t] = _halved(x[t] * factor - _f4(alpha))
