"""Online learning of the ranking head's linear part and of a bias for every item.

For each event of a key that had one before: the list that the key's state gives, as it stands before the
event (LM output and shared part of the head from the row, ring, counts), and one step of gradient descent
on the cross-entropy of what came, "none of them" included:

    g[c] = p[c] - (c came);   w -= rate sum g[c] z'[c];   b -= rate sum g[c]
    bias[item of c] -= bias_rate g[c]

Events that the model was trained on teach nothing: it knows them too well. The candidates are those of tier
FULL whatever the tier, so that every tier does the same. Of what a key does
at one time only the first counts: the list was served before all of it. What is served is the learner's own
numbers, or a copy of them taken when event time enters a new period of `refresh`.

weights f4[Z + 1] (w and b, added to the head's own), bias f4[N]; clock[REFRESHED] is the period of the copy.
"""

import numpy as np
from numba import njit

from . import context as c
from . import counts, jit, others, rank
from .inputs import inputs, mark_ring, recent, unmark_ring
from .lm_state import query
from .maths import exp_f4
from .rank import HEAD_INPUTS
from .recommend import FULL, candidates

_ZERO, _ONE = np.float32(0), np.float32(1)


@njit(**jit)
def keep_user(T, S, W, i, slot):
    """The part of the head that all candidates share, as of this event, into the row: what `learn` reads.

    In every tier, so the ring is summed up here too.
    """
    n_hist = recent(T, S, W, slot, T.shape[c.RING])
    mark_ring(T, S, W, W.ring_hidden, slot, n_hist)
    unmark_ring(W, W.ring_hidden, n_hist)
    rank.head_user(W.q, W.features[i], W.ring, T.feat_mean, T.feat_inv, T.head_Wu, T.head_bu, W.user)
    at = T.shape[c.HEAD_AT]
    for h in range(W.user.size):
        S.rows_f4[slot, at + h] = W.user[h]


@njit(**jit)
def _as_it_stood(T, S, W, slot):
    """LM output and shared part of the key's list before the event, from the row into W.q and W.user."""
    query(T, S, W, slot)
    for h in range(W.user.size):
        W.user[h] = S.rows_f4[slot, T.shape[c.HEAD_AT] + h]


@njit(**jit)
def descend(z, mean, inv, scores, cand, n, item, rate, bias_rate, normed, weights, bias):
    """One step: scores f4[C] become shares less what came; weights f4[Z + 1] and bias f4[N] move.

    z f4[C, Z] inputs of the candidates cand i4[:n]; item: what came; normed f4[Z] is scratch.
    """
    most = _ZERO
    for k in range(n):
        most = max(most, scores[k])
    total = exp_f4(-most)
    for k in range(n):
        scores[k] = exp_f4(scores[k] - most)
        total += scores[k]
    total = _ONE / total
    for j in range(HEAD_INPUTS):
        normed[j] = _ZERO
    shift = _ZERO
    for k in range(n):
        g = scores[k] * total - (_ONE if cand[k] == item else _ZERO)
        scores[k] = g
        shift += g
        for j in range(HEAD_INPUTS):
            normed[j] += g * ((z[k, j] - mean[j]) * inv[j])
        bias[cand[k]] -= bias_rate * g
    for j in range(HEAD_INPUTS):
        weights[j] -= rate * normed[j]
    weights[HEAD_INPUTS] -= rate * shift


@njit(**jit)
def learn(T, S, W, slot, item, t):
    """Learn from an event of the key of row `slot` before it enters anything but features; item < 0 was none
    of the candidates."""
    shape = T.shape
    if S.rows_u8[slot, 2] != S.digest[0]:
        return  # the row's state is another model's: it will be made anew by this event
    n_hist = recent(T, S, W, slot, shape[c.RING])
    _as_it_stood(T, S, W, slot)
    mark_ring(T, S, W, W.ring_hidden, slot, n_hist)
    if T.others_pop.size > 0:
        others.factors(T, S, W, t)
    n, touched = candidates(T, S, W, W.ring_hidden, n_hist, t, FULL)
    inputs(T, S, W, n, n_hist, t)
    counts.clear(W.acc, W.touched, touched)
    unmark_ring(W, W.ring_hidden, n_hist)
    W.found[1] = n
    for j in range(HEAD_INPUTS):
        W.w[j] = T.head_w[j] + S.learnt_w[j]
    W.b[0] = T.head_b[0] + S.learnt_w[HEAD_INPUTS]
    rank.head_score(W.z, n, T.head_mean, T.head_inv, W.w, W.b, T.head_Wz, T.head_W2, W.user, W.zn, W.cand_s)
    for k in range(n):
        W.cand_s[k] += S.learnt_bias[W.cand[k]]
    descend(W.z, T.head_mean, T.head_inv, W.cand_s, W.cand, n, item, S.rates[0], S.rates[1], W.zn, S.learnt_w,
            S.learnt_bias)  # fmt: skip


@njit(**jit)
def refresh(T, S):
    """Copy what was learnt to what is served, when event time has entered a new period."""
    length = T.shape[c.REFRESH]
    if length == 0:
        return
    period = S.clock[c.WATERMARK] // length
    if period > S.clock[c.REFRESHED]:
        S.clock[c.REFRESHED] = period
        for j in range(S.learnt_w.size):
            S.served_w[j] = S.learnt_w[j]
        for k in range(S.learnt_bias.size):
            S.served_bias[k] = S.learnt_bias[k]
