"""What the ranking head is told about a candidate, and about the key's ring.

A key's ring is summed up once an event: by position of an item's newest occurrence, how often the item is
in the ring, how often with newer occurrences weighing more, and how long ago it was there last. Times come
from the ring's gap buckets, so that a row needs no clock of its own; they run back from the key's newest
event.
"""

import numpy as np
from numba import njit

from . import context as c
from . import counts, jit, lm, others, rank, simd
from .maths import exp_f4, log1p_f4, log_f4
from .rank import HEAD_INPUTS

NAMES = (
    "lm",  # log softmax of the LM's logit over the candidates; what it does not know: the mean of the others
    "log_counts",
    "log_popularity_365d",
    "log_popularity_7d",
    "in_counts",
    "in_ring",
    "log_age_events",  # since the key's newest with the item, 0 = not in the ring
    "price_z",
    "log_span",  # log seconds since the key's first of the item in the ring
    "lm_knows",
    "log_back_counts",  # counts of the way back: the key's newest items after the candidate
    "log_own",  # how often the item is in the ring
    "log_own_recent",  # the same, the k-th newest event weighing 1 / sqrt(k)
    "log_since_own",  # log seconds since the key's newest of the item, 0 = not in the ring
    "text",  # cosine of the item's text with that of the ring's newest items
    "item_views",  # the item's window features as of its newest event, weighed
)
"""The head's inputs of a candidate, in order."""
RING_NAMES = ("repeats", "log_events", "newest_again")
"""The head's inputs of a ring, behind LM output and features: share of events whose item is in the ring at a
newer place too, log number of events, whether the newest item was there before."""
assert len(NAMES) == HEAD_INPUTS
RING_INPUTS = len(RING_NAMES)
TEXT = 32
"""Numbers of an item's text vector."""
NEWEST = 4
"""Newest items of a ring that links back to them are counted for."""
_TEXTS = 16
_ZERO, _ONE = np.float32(0), np.float32(1)
_LEAST = np.float32(1e-5)
_GAP_S = np.array([0.0] + [1e-3 * 2.0 ** (b // 2) * (1.19 if b % 2 == 0 else 1.68) for b in range(63)], "f4")
"""Seconds of a gap bucket: its middle."""
_FADE = np.float32(0.8)
_RING = 2  # mark of items excluded because they are in the ring


@njit(**jit)
def mark_ring(T, S, W, exclude, slot, n):
    """Sum up the ring's newest n items, which are in W.hist; into exclude u1[N] where the flow says so.

    W.age[item] is 1 + the place of its newest occurrence; W.own i4, W.recent, W.since, W.span f4 by place.
    """
    shape = T.shape
    ring, entry = shape[c.RING], shape[c.ENTRY]
    row, seen = S.rows_u1[slot], S.rows_i8[slot, 1]
    elapsed, again = _ZERO, 0
    for k in range(n):
        item = W.hist[k]
        weight = _ONE / np.sqrt(np.float32(k + 1))
        if item >= 0:
            place = W.age[item] - 1
            if place < 0:
                W.age[item] = k + 1
                W.own[k], W.recent[k], W.since[k], W.span[k] = 1, weight, elapsed, elapsed
            else:
                W.own[place] += 1
                W.recent[place] += weight
                W.span[place] = elapsed
                again += 1
            if shape[c.EXCLUDE_SEEN] != 0 and exclude[item] == 0:
                exclude[item] = _RING
        gap = row[shape[c.RING_AT] + ((seen - 1 - k) % ring) * entry + 5]
        elapsed += _GAP_S[gap & 63]
    W.ring[0] = np.float32(again) / np.float32(max(n, 1))
    W.ring[1] = log1p_f4(np.float32(n))
    W.ring[2] = _ONE if n > 0 and W.hist[0] >= 0 and W.own[0] > 1 else _ZERO


@njit(**jit)
def unmark_ring(W, exclude, n):
    """Undo `mark_ring`."""
    for k in range(n):
        item = W.hist[k]
        if item >= 0:
            W.age[item] = 0
            if exclude[item] == _RING:
                exclude[item] = 0


@njit(**jit)
def mean_text(T, W, n):
    """Decayed mean of the text vectors of the ring's newest items into W.text, brought to length 1."""
    for j in range(TEXT):
        W.text[j] = _ZERO
    weight = _ONE
    for k in range(min(n, _TEXTS)):
        item = W.hist[k]
        if item >= 0:
            for j in range(TEXT):
                W.text[j] += weight * T.text[item, j]
        weight *= _FADE
    size = _ZERO
    for j in range(TEXT):
        size += W.text[j] * W.text[j]
    if size > _ZERO:
        size = _ONE / np.sqrt(size)
        for j in range(TEXT):
            W.text[j] *= size


@njit(**jit)
def _weigh_newest(S, W, n_hist, t):
    """W.newest: what a link to each of the ring's newest items weighs, as in `counts.accumulate`."""
    left = counts.decay(S.clock, S.tau[0], t)
    for k in range(NEWEST):
        i = W.hist[k] if k < n_hist else np.int32(-1)
        W.newest[k] = _ZERO
        if i >= 0:
            W.newest[k] = np.float32(left / ((np.float64(S.pop[i]) * left + counts.SMOOTH) * (k + 1)))


@njit(**jit)
def _back(T, S, W, item):
    """Score of the links that lead back: from the candidate to the key's newest items."""
    total = others.link_back(S.ids, S.w, W.hist, W.newest, item)
    if T.others_pop.size > 0:
        total += others.link_back(T.others_ids, T.others_w, W.hist, W.newest_others, item)
    return total * S.joint[item]


@njit(**jit)
def _lm_share(T, W, n):
    """W.cand_s: the LM's logits as logarithms of shares among the candidates that it knows."""
    if T.shape[c.HAS_LM] == 0:
        for k in range(n):
            W.cand_s[k] = _ZERO
        return
    rank.rescore(T.item, T.bias, W.q, W.cand, n, W.cand_s)
    most, known, total = np.float32(-np.inf), 0, _ZERO
    for k in range(n):
        if T.known[W.cand[k]] != 0:
            known += 1
            total += W.cand_s[k]
            most = max(most, W.cand_s[k])
    if known == 0:
        most = _ZERO
    mass = _ZERO
    for k in range(n):
        if T.known[W.cand[k]] != 0:
            mass += exp_f4(W.cand_s[k] - most)
    shift = most + (log_f4(mass) if known > 0 else _ZERO)
    middle = total / np.float32(max(known, 1)) - shift if known > 0 else _ZERO
    for k in range(n):
        W.cand_s[k] = W.cand_s[k] - shift if T.known[W.cand[k]] != 0 else middle


@njit(**jit)
def _item_views(T, S, item):
    """The window features of an item as of its newest event, weighed by the head; 0 before the first."""
    if S.items_i8[item, 0] == 0:
        return _ZERO
    total, first = _ZERO, T.shape[c.KEY_F]
    at = S.items_f4.shape[1] - T.head_items.size
    for f in range(T.head_items.size):
        v = (S.items_f4[item, at + f] - T.feat_mean[first + f]) * T.feat_inv[first + f]
        if v - v == _ZERO:  # finite
            total += v * T.head_items[f]
    return total


@njit(**jit)
def _own(T, W, item, z):
    """The inputs that a ring gives for one candidate."""
    place = W.age[item] - 1
    z[7] = T.price_z[item]
    if place < 0:
        z[5] = z[6] = z[8] = z[11] = z[12] = z[13] = _ZERO
        return
    z[5] = _ONE
    z[6] = log1p_f4(np.float32(place + 1))
    z[8] = log1p_f4(W.span[place])
    z[11] = log1p_f4(np.float32(W.own[place]))
    z[12] = log1p_f4(W.recent[place])
    z[13] = log1p_f4(W.since[place])


@njit(**jit)
def inputs(T, S, W, n, n_hist, t):
    """The head's inputs of the candidates W.cand[:n] into W.z f4[C, HEAD_INPUTS], in the order of NAMES.

    The ring has been marked and W.acc holds the counts' scores. A head of eight inputs (version 1) gets the
    LM's logit as it is, and 0 for what the LM does not know.
    """
    most, fast_most = others.most_pop(T, S, W), others.most_fast(T, S, W)
    if T.others_pop.size > 0:
        others.weigh_newest(T, S, W, n_hist, NEWEST)
    else:
        _weigh_newest(S, W, n_hist, t)
    old = T.shape[c.HEAD_OLD] != 0
    if old and T.shape[c.HAS_LM] != 0:
        rank.rescore(T.item, T.bias, W.q, W.cand, n, W.cand_s)
    else:
        _lm_share(T, W, n)
    has_text = T.text.shape[0] > 0
    if has_text:
        mean_text(T, W, n_hist)
    for k in range(n):
        item = W.cand[k]
        z = W.z[k]
        score = W.acc[item]
        known = T.shape[c.HAS_LM] != 0 and T.known[item] != 0
        z[0] = _ZERO if old and not known else W.cand_s[k]
        z[1] = log1p_f4(score * np.float32(1e3))
        z[2] = log_f4(others.pop_of(T, S, W, item) / most + _LEAST)
        z[3] = log_f4(others.fast_of(T, S, W, item) / fast_most + _LEAST)
        z[4] = _ONE if score > _ZERO else _ZERO
        _own(T, W, item, z)
        z[9] = _ONE if known else _ZERO
        z[10] = log1p_f4(_back(T, S, W, item) * np.float32(1e3))
        z[14] = _ZERO
        if has_text:
            z[14] = simd.total(
                simd.fma(simd.load(T.text, np.int64(item) * TEXT), simd.load(W.text, 0),
                         simd.mul(simd.load(T.text, np.int64(item) * TEXT + 16), simd.load(W.text, 16)))
            )  # fmt: skip
        z[15] = _item_views(T, S, item) if T.head_items.size > 0 else _ZERO


@njit(**jit)
def recent(T, S, W, slot, limit):
    """The newest `limit` tokens of the key's ring into W.hist, most recent first; how many."""
    ring, entry = T.shape[c.RING], T.shape[c.ENTRY]
    at, seen = T.shape[c.RING_AT], S.rows_i8[slot, 1]
    n = min(min(seen, ring), limit)
    row, hist = S.rows_u1[slot], W.hist
    for k in range(n):
        hist[k] = lm.ring_token(row, at + ((seen - 1 - k) % ring) * entry)
    return n
