"""From a key's state to its best items: candidates, their inputs, the head, the best k.

FULL   the catalogue scan, the key's own items, counts, popularity; RANK leaves out the scan; PRIOR is
       popularity alone.
An item is a candidate once, is available, and is not excluded.
"""

import numpy as np
from numba import njit

from . import context as c
from . import counts, ivf, jit, others, rank
from .inputs import inputs, mark_ring, unmark_ring

SILENT, PRIOR, RANK, FULL = range(4)
_OFTEN = (8, 4, 3, 2, 1)  # times in the ring, by which own items come in


@njit(**jit)
def _add(T, W, exclude, ids, m, n, limit, stamp):
    """Append those of ids[:m] that are new and allowed to W.cand; returns the new count."""
    for k in range(m):
        item = ids[k]
        if n == limit:
            break
        if T.available[item] != 0 and exclude[item] == 0 and W.stamp[item] != stamp:
            W.stamp[item] = stamp
            W.cand[n] = item
            n += 1
    return n


@njit(**jit)
def _add_popular(T, S, W, exclude, n, limit, stamp):
    """Append the recently popular items that are new and allowed, those of the other partitions first;
    returns the new count."""
    if T.others_pop.size > 0:
        n = _add_top(T, T.others_top_fast, W, exclude, n, limit, stamp)
    return _add_top(T, S.top_fast, W, exclude, n, limit, stamp)


@njit(**jit)
def _add_top(T, top, W, exclude, n, limit, stamp):
    """Append those of a popular list that are new and allowed; returns the new count."""
    for p in range(top.size):
        item = top[p] - 1
        if item < 0 or n == limit:
            break
        if T.available[item] != 0 and exclude[item] == 0 and W.stamp[item] != stamp:
            W.stamp[item] = stamp
            W.cand[n] = item
            n += 1
    return n


@njit(**jit)
def _add_own(T, W, exclude, n_hist, n, limit, stamp):
    """Append items of the marked ring that are new and allowed, the most frequent first, then the newest."""
    for least in _OFTEN:
        for k in range(n_hist):
            item = W.hist[k]
            if n == limit:
                return n
            if item < 0 or W.age[item] != k + 1 or W.own[k] < least:
                continue
            if T.available[item] != 0 and exclude[item] == 0 and W.stamp[item] != stamp:
                W.stamp[item] = stamp
                W.cand[n] = item
                n += 1
    return n


@njit(**jit)
def _link(T, S, W, n_hist, t):
    """The counts' scores of what follows the newest items, into W.acc; returns how many are touched."""
    scored = min(n_hist, T.shape[c.SCORED_ITEMS])
    if T.others_pop.size > 0:
        return others.accumulate(T, S, W, scored)
    return counts.accumulate(S.ids, S.w, S.pop, S.norm, S.clock, S.tau, W.hist, scored, t, W.acc, W.touched)


@njit(**jit)
def _scan(T, W, exclude):
    """The best items by the LM alone into W.top, of the table or of the index's best lists; how many."""
    step, k = rank.quantise(W.q, W.words), T.shape[c.SCANNED]
    if T.ivf_start.size == 0:
        return rank.scan(T.packed, T.scale, T.bias, T.scannable, exclude, T.available.size, W.words, step, k,
                         W.top_s, W.top)  # fmt: skip
    m = ivf.choose(W.q, W.words, step, T.ivf_middle, T.ivf_middle_scale, T.ivf_middle_bias, T.ivf_reach,
                   W.probe_score, W.probe_on, W.probe_off, W.probed[0], W.probe_s, W.probe)  # fmt: skip
    return ivf.scan(T.packed, T.scale, T.ivf_bias, T.ivf_live, T.ivf_item, exclude, T.ivf_start, W.probe, m,
                    W.words, step, k, W.top_s, W.top)  # fmt: skip


@njit(**jit)
def candidates(T, S, W, exclude, n_hist, t, tier):
    """Fills W.cand with items that are not in exclude u1[N]; returns (number, touched by counts).

    The ring has been marked; W.acc holds the counts' scores until they are cleared.
    """
    shape = T.shape
    limit = shape[c.CANDIDATES]
    S.clock[c.STAMP] += 1
    stamp = S.clock[c.STAMP]
    n = 0
    if tier == FULL and shape[c.HAS_LM] != 0:
        m = _scan(T, W, exclude)
        n = _add(T, W, exclude, W.top, m, n, limit, stamp)
    n = _add_own(T, W, exclude, n_hist, n, min(n + shape[c.OWN], limit), stamp)
    touched = _link(T, S, W, n_hist, t)
    m = counts.best(W.acc, W.touched, touched, T.available, exclude, limit - n, W.best_s, W.best)
    n = _add(T, W, exclude, W.best, m, n, limit - shape[c.POPULAR], stamp)
    n = _add_popular(T, S, W, exclude, n, limit, stamp)
    return n, touched


@njit(**jit)
def _score(T, S, W, i, n):
    """Scores of the candidates into W.cand_s: the head, or without one the LM logit plus log counts."""
    if T.shape[c.ONLINE] != 0:
        _score_learnt(T, S, W, i, n)
        return
    if T.shape[c.HAS_HEAD] != 0:
        rank.head_user(W.q, W.features[i], W.ring, T.feat_mean, T.feat_inv, T.head_Wu, T.head_bu, W.user)
        rank.head_score(W.z, n, T.head_mean, T.head_inv, T.head_w, T.head_b, T.head_Wz, T.head_W2, W.user,
                        W.zn, W.cand_s)  # fmt: skip
        return
    for k in range(n):
        # without a head: the LM's logit and the counts, and popularity to break what is left equal
        W.cand_s[k] = W.z[k, 0] + W.z[k, 1] + np.float32(0.01) * W.z[k, 3]


@njit(**jit)
def _score_learnt(T, S, W, i, n):
    """The head with what was learnt online (see online.py), as of its last refresh."""
    now = T.shape[c.REFRESH] == 0
    weights = S.learnt_w if now else S.served_w
    bias = S.learnt_bias if now else S.served_bias
    for j in range(rank.HEAD_INPUTS):
        W.w[j] = T.head_w[j] + weights[j]
    W.b[0] = T.head_b[0] + weights[rank.HEAD_INPUTS]
    rank.head_user(W.q, W.features[i], W.ring, T.feat_mean, T.feat_inv, T.head_Wu, T.head_bu, W.user)
    rank.head_score(W.z, n, T.head_mean, T.head_inv, W.w, W.b, T.head_Wz, T.head_W2, W.user, W.zn, W.cand_s)
    for k in range(n):
        W.cand_s[k] += bias[W.cand[k]]


@njit(**jit)
def _given(T, S, W, given, n_hist, t):
    """`candidates` where only the items `given` i4[m] are to be ranked."""
    S.clock[c.STAMP] += 1
    n = _add(T, W, W.exclude, given, given.size, 0, W.cand.size, S.clock[c.STAMP])
    return n, _link(T, S, W, n_hist, t)


@njit(**jit)
def _by_popularity(T, S, W, only, given):
    """Candidates and their scores at tier PRIOR; how many."""
    S.clock[c.STAMP] += 1
    if only:
        n = _add(T, W, W.exclude, given, given.size, 0, W.cand.size, S.clock[c.STAMP])
    else:
        n = _add_popular(T, S, W, W.exclude, 0, T.shape[c.CANDIDATES], S.clock[c.STAMP])
    most = others.most_fast(T, S, W)
    for j in range(n):
        W.cand_s[j] = others.fast_of(T, S, W, W.cand[j]) / most
    return n


@njit(**jit)
def recommend(T, S, W, i, slot, n_hist, t, tier, k, only, given):
    """The k best items for the key of row `slot`, its tokens in W.hist, into W.items[i] and W.scores[i].

    n_hist tokens, newest first; only: nothing but the items `given` i4[m], all different, is ranked.
    T.shape, S and W as in `context`; t event time, ns; tier PRIOR, RANK or FULL. Changes no state.
    """
    mark_ring(T, S, W, W.exclude, slot, n_hist)
    if T.others_pop.size > 0:
        others.factors(T, S, W, t)
    if tier == PRIOR:
        n = _by_popularity(T, S, W, only, given)
    else:
        if only:
            n, touched = _given(T, S, W, given, n_hist, t)
        else:
            n, touched = candidates(T, S, W, W.exclude, n_hist, t, tier)
        inputs(T, S, W, n, n_hist, t)
        counts.clear(W.acc, W.touched, touched)
        _score(T, S, W, i, n)
    rank.top_k(W.cand_s, W.cand, n, k, W.items[i], W.scores[i])
    if tier != PRIOR and T.shape[c.CALIBRATED] != 0:
        rank.to_probabilities(W.cand_s, n, W.scores[i, :k])
    W.found[0] = n
    unmark_ring(W, W.exclude, n_hist)
