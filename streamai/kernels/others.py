"""Counts and popularity of the other partitions beside a partition's own (design rule 2).

The others' numbers come as one merged table that does not change while it is in use. What is scored with is
the sum, as of the event:

    C(i, j) = own C left + others' C left',   pop_i likewise,   left = exp(-(t - landmark) / tau)

    s(j) = sum over the last items i, age 1 = newest:  (1 / age) C(i, j) / (pop_i + 20) / (pop_j + 20)^0.2

pop_j in the last factor is the own one as of item j's newest event here, and the others' as of the table:
S.joint f4[N], a function of S.norm and the table alone, so that a restart finds the same bits. Without a
table (its arrays have length 0) nothing here is run, S.joint is S.norm, and the bits are those of counts.py.

Work.factors f8[4]: left of own counts, own fast popularity, the others' counts, the others' fast.
"""

import numpy as np
from numba import njit

from . import counts, jit, simd
from .counts import SMOOTH
from .maths import exp_f4, exp_f8, log_f4
from .rank import keep_best

_f4 = np.float32
_ZERO, _TINY = _f4(0), _f4(1e-20)
_POWER, _INVERSE = _f4(-0.2), _f4(-5.0)
_SMOOTH = _f4(SMOOTH)


@njit(**jit)
def factors(T, S, W, t):
    """Decay of both tables' numbers at time t, ns, into W.factors."""
    W.factors[0] = counts.decay(S.clock, S.tau[0], t)
    W.factors[1] = counts.decay(S.clock, S.tau[1], t)
    gone = max(0.0, np.float64(t - T.others_landmark[0]))  # others may be ahead in time
    W.factors[2] = exp_f8(-gone / S.tau[0])
    W.factors[3] = exp_f8(-gone / S.tau[1])


@njit(**jit)
def rejoin(norm, pop, joint, item):
    """joint[item] of norm[item] (0 = no event of it here) and the others' popularity."""
    own = _SMOOTH
    if norm[item] > _ZERO:
        own = exp_f4(_INVERSE * log_f4(norm[item]))
    joint[item] = exp_f4(_POWER * log_f4(own + pop[item]))


@njit(**jit)
def rejoin_all(norm, pop, joint):
    """`rejoin` of every item."""
    for item in range(joint.size):
        rejoin(norm, pop, joint, item)


@njit(**jit)
def _spread(ids, w, i, scale, acc, touched, m):
    """Add scale times row i to acc; returns the number touched so far.

    The same loop stands in `counts.accumulate`: called from there it made that 9 to 15 % slower.
    """
    for s in range(ids.shape[1]):
        j = ids[i, s] - 1
        if j < 0:
            break
        old, more = acc[j], scale * w[i, s]
        acc[j] = old + more
        touched[m] = j
        m += (old == _ZERO) & (more > _ZERO)
    return m


@njit(**jit)
def _weight(T, S, W, i, place):
    """1 / ((pop_i + 20) age) of a link from the item at this place, 0 = newest."""
    pop = np.float64(S.pop[i]) * W.factors[0] + np.float64(T.others_pop[i]) * W.factors[2]
    return 1.0 / ((pop + SMOOTH) * (place + 1))


@njit(**jit)
def accumulate(T, S, W, n):
    """`counts.accumulate` of W.hist[:n] over both tables into W.acc and W.touched; returns how many."""
    m = 0
    for k in range(n):
        i = W.hist[k]
        if i < 0:
            continue
        weight = _weight(T, S, W, i, k)
        m = _spread(S.ids, S.w, i, _f4(weight * W.factors[0]), W.acc, W.touched, m)
        m = _spread(T.others_ids, T.others_w, i, _f4(weight * W.factors[2]), W.acc, W.touched, m)
    for p in range(m):
        j = W.touched[p]
        W.acc[j] *= S.joint[j]
    return m


@njit(**jit)
def weigh_newest(T, S, W, n_hist, size):
    """W.newest and W.newest_others f4[size]: what a link to each of the newest items weighs, by table."""
    for k in range(size):
        i = W.hist[k] if k < n_hist else np.int32(-1)
        W.newest[k] = W.newest_others[k] = _ZERO
        if i >= 0:
            weight = _weight(T, S, W, i, k)
            W.newest[k], W.newest_others[k] = _f4(weight * W.factors[0]), _f4(weight * W.factors[2])


@njit(**jit)
def link_back(ids, w, hist, newest, item):
    """Sum of newest f4[m] times the links from the item to hist[:m]."""
    width = ids.shape[1]
    at = np.int64(item) * width
    total = _ZERO
    for s in range(0, width, 16):
        names = simd.load_integers(ids, at + s)
        for k in range(newest.size):
            if newest[k] > _ZERO:
                hit = simd.equal_integers(names, simd.splat_integer(np.int32(hist[k] + 1)))
                if hit != 0:
                    total += newest[k] * w[item, s + simd.lowest_bit(np.int64(hit))]
    return total


@njit(**jit)
def pop_of(T, S, W, item):
    """Popularity of an item, to be compared with `most_pop` only."""
    if T.others_pop.size == 0:
        return S.pop[item]
    return _f4(np.float64(S.pop[item]) * W.factors[0] + np.float64(T.others_pop[item]) * W.factors[2])


@njit(**jit)
def fast_of(T, S, W, item):
    """Recent popularity of an item, to be compared with `most_fast` only."""
    if T.others_pop.size == 0:
        return S.fast[item]
    return _f4(np.float64(S.fast[item]) * W.factors[1] + np.float64(T.others_fast[item]) * W.factors[3])


@njit(**jit)
def most_pop(T, S, W):
    """Of the own and the others' most popular item the greater popularity; a tiny number while all are 0."""
    most = pop_of(T, S, W, S.top_pop[0] - 1) if S.top_pop[0] > 0 else _TINY
    if T.others_pop.size > 0 and T.others_top_pop[0] > 0:
        most = max(most, pop_of(T, S, W, T.others_top_pop[0] - 1))
    return most


@njit(**jit)
def most_fast(T, S, W):
    """`most_pop` of the recent popularity."""
    most = fast_of(T, S, W, S.top_fast[0] - 1) if S.top_fast[0] > 0 else _TINY
    if T.others_pop.size > 0 and T.others_top_fast[0] > 0:
        most = max(most, fast_of(T, S, W, T.others_top_fast[0] - 1))
    return most


@njit(**jit)
def _keep_row(acc, touched, m, values, which, ids, w, i):
    """Row i of a merged table: the greatest of what was added, ties to the lower item; acc is cleared."""
    width = ids.shape[1]
    for p in range(m):
        j = touched[p]
        values[p], which[p], acc[j] = acc[j], j, _ZERO
    n = m
    if n > width:
        keep_best(values, which, n, width)
        n = width
    for s in range(width):
        ids[i, s] = which[s] + 1 if s < n else 0
        w[i, s] = values[s] if s < n else _ZERO


@njit(**jit)
def merge(ids, w, scales, out_ids, out_w, acc, touched, values, which):
    """Rows of several tables ids, w [P, N, K], times scales f4[P], summed in the order given into [N, K'].

    acc f4[N] all zeros; touched, values, which: at least P * K. Rows are packed; id 0 = no more.
    """
    for i in range(out_ids.shape[0]):
        m = 0
        for p in range(ids.shape[0]):
            m = _spread(ids[p], w[p], i, scales[p], acc, touched, m)
        _keep_row(acc, touched, m, values, which, out_ids, out_w, i)
