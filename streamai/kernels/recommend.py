"""From a key's state to its best items: candidates, their inputs, the head, the best k.

FULL   the catalogue scan, counts, popularity; RANK leaves out the scan; PRIOR is popularity alone.
An item is a candidate once, is available, and is not excluded.
"""

import numpy as np
from numba import njit

from . import context as c
from . import counts, jit, rank
from .maths import log1p_f4, log_f4

SILENT, PRIOR, RANK, FULL = range(4)
_ZERO, _ONE = np.float32(0), np.float32(1)
_LEAST = np.float32(1e-5)
_RING = 2  # mark in W.exclude of items excluded because they are in the ring


@njit(**jit)
def _add(T, W, ids, m, n, limit, stamp):
    """Append those of ids[:m] that are new and allowed to W.cand; returns the new count."""
    for k in range(m):
        item = ids[k]
        if n == limit:
            break
        if T.available[item] != 0 and W.exclude[item] == 0 and W.stamp[item] != stamp:
            W.stamp[item] = stamp
            W.cand[n] = item
            n += 1
    return n


@njit(**jit)
def _add_popular(T, S, W, n, limit, stamp):
    """Append the recently popular items that are new and allowed; returns the new count."""
    for p in range(S.top_fast.size):
        item = S.top_fast[p] - 1
        if item < 0 or n == limit:
            break
        if T.available[item] != 0 and W.exclude[item] == 0 and W.stamp[item] != stamp:
            W.stamp[item] = stamp
            W.cand[n] = item
            n += 1
    return n


@njit(**jit)
def _most(values, top):
    """The greatest of values, or a tiny number while all are zero."""
    return values[top[0] - 1] if top[0] > 0 else np.float32(1e-20)


@njit(**jit)
def _candidates(T, S, W, n_hist, t, tier):
    """Fills W.cand; returns (number, touched by counts). W.acc holds the counts' scores until cleared."""
    shape = T.shape
    limit = shape[c.CANDIDATES]
    S.clock[c.STAMP] += 1
    stamp = S.clock[c.STAMP]
    n = 0
    if tier == FULL and shape[c.HAS_LM] != 0:
        step = rank.quantise(W.q, W.words)
        m = rank.scan(T.packed, T.scale, T.bias, T.scannable, W.exclude, T.available.size, W.words, step,
                      shape[c.SCANNED], W.top_s, W.top)  # fmt: skip
        n = _add(T, W, W.top, m, n, limit, stamp)
    scored = min(n_hist, shape[c.SCORED_ITEMS])
    touched = counts.accumulate(S.ids, S.w, S.pop, S.norm, S.clock, S.tau, W.hist, scored, t, W.acc,
                                W.touched)  # fmt: skip
    m = counts.best(W.acc, W.touched, touched, T.available, W.exclude, limit - n, W.best_s, W.best)
    n = _add(T, W, W.best, m, n, limit - shape[c.POPULAR], stamp)
    n = _add_popular(T, S, W, n, limit, stamp)
    return n, touched


@njit(**jit)
def _inputs(T, S, W, n):
    """The head's inputs of every candidate, f4[n, 8], in the order of `Z_NAMES` in train/head.py."""
    most, fast_most = _most(S.pop, S.top_pop), _most(S.fast, S.top_fast)
    if T.shape[c.HAS_LM] != 0:
        rank.rescore(T.item, T.bias, W.q, W.cand, n, W.cand_s)
    for k in range(n):
        item = W.cand[k]
        z = W.z[k]
        score = W.acc[item]
        z[0] = W.cand_s[k] if T.shape[c.HAS_LM] != 0 and T.known[item] != 0 else _ZERO
        z[1] = log1p_f4(score * np.float32(1e3))
        z[2] = log_f4(S.pop[item] / most + _LEAST)
        z[3] = log_f4(S.fast[item] / fast_most + _LEAST)
        z[4] = _ONE if score > _ZERO else _ZERO
        age = W.age[item]
        z[5] = _ONE if age > 0 else _ZERO
        z[6] = log1p_f4(np.float32(age))
        z[7] = T.price_z[item]


@njit(**jit)
def _score(T, W, i, n):
    """Scores of the candidates into W.cand_s: the head, or without one the LM logit plus log counts."""
    if T.shape[c.HAS_HEAD] != 0:
        rank.head_user(W.q, W.features[i], T.feat_mean, T.feat_inv, T.head_Wu, T.head_bu, W.user)
        rank.head_score(W.z, n, T.head_mean, T.head_inv, T.head_w, T.head_b, T.head_Wz, T.head_W2, W.user,
                        W.cand_s)  # fmt: skip
        return
    for k in range(n):
        # without a head: the LM's logit and the counts, and popularity to break what is left equal
        W.cand_s[k] = W.z[k, 0] + W.z[k, 1] + np.float32(0.01) * W.z[k, 3]


@njit(**jit)
def _mark_ring(T, W, n_hist):
    """Ages of the ring's items, 1 = newest; excluded where the flow says so."""
    for k in range(n_hist):
        item = W.hist[k]
        if item >= 0:
            if W.age[item] == 0:
                W.age[item] = k + 1
            if T.shape[c.EXCLUDE_SEEN] != 0 and W.exclude[item] == 0:
                W.exclude[item] = _RING


@njit(**jit)
def _unmark_ring(W, n_hist):
    for k in range(n_hist):
        item = W.hist[k]
        if item >= 0:
            W.age[item] = 0
            if W.exclude[item] == _RING:
                W.exclude[item] = 0


@njit(**jit)
def recommend(T, S, W, i, n_hist, t, tier):
    """The best items for the key whose tokens are in W.hist, into W.items[i] and W.scores[i].

    n_hist tokens, newest first.
    T.shape, S and W as in `context`; t event time, ns; tier PRIOR, RANK or FULL. Changes no state.
    """
    k = T.shape[c.TOP_K]
    _mark_ring(T, W, n_hist)
    if tier == PRIOR:
        S.clock[c.STAMP] += 1
        n = _add_popular(T, S, W, 0, W.cand.size, S.clock[c.STAMP])
        most = _most(S.fast, S.top_fast)
        for j in range(n):
            W.cand_s[j] = S.fast[W.cand[j]] / most
    else:
        n, touched = _candidates(T, S, W, n_hist, t, tier)
        _inputs(T, S, W, n)
        counts.clear(W.acc, W.touched, touched)
        _score(T, W, i, n)
    rank.top_k(W.cand_s, W.cand, n, k, W.items[i], W.scores[i])
    W.found[0] = n
    _unmark_ring(W, n_hist)
