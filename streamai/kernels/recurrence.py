"""The linear recurrence h_t = a_t h_(t-1) + b_t over whole sequences, forward and backward, for training.

It does not reach served state: `lm.step` makes that one event at a time.
"""

import numpy as np
from numba import njit

from streamai.kernels import jit


@njit(**jit)
def forward(a, b, h):
    """h f4[B, T, d] from decay a and input b of the same shape; h before the first step is zero."""
    B, T, d = a.shape
    for s in range(B):
        for j in range(d):
            h[s, 0, j] = b[s, 0, j]
        for t in range(1, T):
            for j in range(d):
                h[s, t, j] = a[s, t, j] * h[s, t - 1, j] + b[s, t, j]


@njit(**jit)
def backward(a, h, gh, ga):
    """Gradients from gh f4[B, T, d] (of h): ga of a; gh itself becomes the gradient of b."""
    B, T, d = a.shape
    for s in range(B):
        for t in range(T - 1, 0, -1):
            for j in range(d):
                g = gh[s, t, j]
                ga[s, t, j] = g * h[s, t - 1, j]
                gh[s, t - 1, j] += a[s, t, j] * g
        for j in range(d):
            ga[s, 0, j] = np.float32(0)
