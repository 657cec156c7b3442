"""Panes: the algebra of aggregates. zero = all zero cells, add one value, merge two, decay one.

A pane is one to three cells (a bitmap: more), the first of which is the number of values, or their
weight where values decay. Nothing is ever subtracted; variance is Welford's, West's and Chan's.
"""

import numpy as np
from numba import njit

from streamai.kernels import leaf

inlined = dict(leaf, forceinline=True)
"""Options of a small function that is called for every accumulator: each array handed over is seven words,
and the compiler by itself makes a call of most. With it features/market.py takes 350 ns an event, not 820."""

COUNT = 1  # n
SUM = 2  # n, sum
MOMENTS = 3  # n, mean, sum of squared deviations
WEIGHTED = 4  # n, sum of weight * value, sum of weight
MINIMUM = 5  # n, minimum
MAXIMUM = 6  # n, maximum
FIRST = 7  # n, value, time in ns
LAST = 8  # n, value, time in ns
BITMAP = 9  # a set of bits, value = 52 bits of a hash: linear counting (Whang, Vander-Zanden and Taylor 1990)

CELLS = {COUNT: 1, SUM: 2, MOMENTS: 3, WEIGHTED: 3, MINIMUM: 2, MAXIMUM: 2, FIRST: 3, LAST: 3}

FORGOTTEN = 1e-200
"""A decayed weight below this is none: some 660 half-lives. Smaller ones would lose digits."""


@njit(**inlined)
def merge(agg, n1, a1, b1, n2, a2, b2):
    """The pane of the earlier values (n1, a1, b1) followed by the later (n2, a2, b2)."""
    if n2 == 0.0:
        return n1, a1, b1
    if n1 == 0.0:
        return n2, a2, b2
    n = n1 + n2
    if agg == MOMENTS:
        d = a2 - a1
        share = n2 / n
        return n, a1 + d * share, b1 + b2 + d * d * (n1 * share)
    if agg == MINIMUM:
        return n, min(a1, a2), 0.0
    if agg == MAXIMUM:
        return n, max(a1, a2), 0.0
    if agg == FIRST:
        return n, a1, b1
    if agg == LAST:
        return n, a2, b2
    return n, a1 + a2, b1 + b2


@njit(**inlined)
def load(cells, at, size):
    """The pane at `at` as three numbers."""
    return cells[at], (cells[at + 1] if size > 1 else 0.0), (cells[at + 2] if size > 2 else 0.0)


@njit(**inlined)
def store(cells, at, size, n, a, b):
    cells[at] = n
    if size > 1:
        cells[at + 1] = a
    if size > 2:
        cells[at + 2] = b


@njit(**inlined)
def merge_into(agg, cells, cells_i8, at, size, later):
    """Merge the pane at `later` into the one at `at`."""
    if agg == BITMAP:
        for j in range(size):
            cells_i8[at + j] |= cells_i8[later + j]
        return
    if cells[later] == 0.0:
        return
    n1, a1, b1 = load(cells, at, size)
    n2, a2, b2 = load(cells, later, size)
    n, a, b = merge(agg, n1, a1, b1, n2, a2, b2)
    store(cells, at, size, n, a, b)


@njit(**inlined)
def clear(cells, at, count):
    for j in range(at, at + count):
        cells[j] = 0.0


@njit(**inlined)
def add(agg, cells, cells_i8, at, size, v, w, t, weight):
    """Add value v, with the column of weights w (VWAP) and the decayed weight `weight`, at time t."""
    if agg == COUNT:
        cells[at] += weight
    elif agg == SUM:
        cells[at] += weight
        cells[at + 1] += weight * v
    elif agg == MOMENTS:
        n = cells[at] + weight
        cells[at] = n
        d = v - cells[at + 1]
        cells[at + 1] += d * (weight / n)
        cells[at + 2] += weight * (d * (v - cells[at + 1]))
    elif agg == WEIGHTED:
        cells[at] += weight
        cells[at + 1] += weight * (w * v)
        cells[at + 2] += weight * w
    elif agg == BITMAP:
        bit = np.int64(v) & (size * 64 - 1)
        cells_i8[at + (bit >> 6)] |= np.int64(1) << (bit & 63)
    else:
        n = cells[at]
        cells[at] = n + 1.0
        if agg == MINIMUM:
            take = v < cells[at + 1]
        elif agg == MAXIMUM:
            take = v > cells[at + 1]
        elif agg == FIRST:
            take = t < cells_i8[at + 2]
        else:
            take = t >= cells_i8[at + 2]
        if n == 0.0 or take:
            cells[at + 1] = v
            if size > 2:
                cells_i8[at + 2] = t


@njit(**inlined)
def decay(agg, cells, at, size, factor):
    """Multiply the weight of all that the pane holds; the mean of MOMENTS stays."""
    n = cells[at] * factor
    if n < FORGOTTEN:
        clear(cells, at, size)
        return
    cells[at] = n
    if size > 1 and agg != MOMENTS:
        cells[at + 1] *= factor
    if size > 2:
        cells[at + 2] *= factor
