"""From the LM's output to the best items: scan of the whole catalogue, exact scores, head, top k.

The scan is approximate but repeatable: item rows in 8 bits and the query in 16, integer dot products
(exact, so any order of the sums gives the same bits), one rounding to float32, the row's scale and bias.
What it finds is scored again exactly. Ties always go to the lower index.
"""

import numpy as np
from numba import njit

from . import jit, simd
from .maths import bits_of_f4, exp_f4

HEAD_INPUTS = 16
"""Inputs of a candidate; their names are in inputs.py."""
_f4 = np.float32
_ZERO, _ONE = _f4(0), _f4(1)
_load, _splat, _fma, _dot, _add = simd.load, simd.splat, simd.fma, simd.dot_pairs, simd.add


@njit(**jit)
def pack_row(row, i, panels, scale):
    """Item i's vector f4[d] into its place: 8-bit steps of max |row| / 127 = scale[i].

    panels i1[blocks, d, 16]: sixteen items a block; two neighbouring dimensions of an item lie together,
    so dimension j of item i is at byte (j & 1) + 2 (i & 15) + 32 (j >> 1) of block i >> 4.
    """
    d = row.size
    most = _ZERO
    for j in range(d):
        most = max(most, abs(row[j]))
    step = most / _f4(127)
    scale[i] = step
    flat = panels[i >> 4].reshape(d * 16)
    for j in range(d):
        v = np.rint(row[j] / step) if step > _ZERO else _ZERO
        flat[(j & 1) + 2 * (i & 15) + 32 * (j >> 1)] = np.int8(min(max(v, _f4(-127)), _f4(127)))


@njit(**jit)
def pack(item, panels, scale):
    """All rows of item f4[N, d] into panels i1[ceil(N / 16), d, 16] and scale f4[>= N]; d even."""
    for i in range(item.shape[0]):
        pack_row(item[i], i, panels, scale)


@njit(**jit)
def quantise(q, words):
    """The query q f4[d] in steps of its greatest value / limit into words i2[d]; returns the step.

    The limit is 32767, or less for d > 516, so that no sum leaves 32 bits.
    """
    limit = min(_f4(32767), _f4(2147483520.0 / (127.0 * q.size)))
    limit = np.floor(limit)
    most = _ZERO
    for j in range(q.size):
        most = max(most, abs(q[j]))
    step = most / limit
    for j in range(q.size):
        v = np.rint(q[j] / step) if step > _ZERO else _ZERO
        words[j] = np.int16(min(max(v, -limit), limit))
    return step


@njit(**jit)
def _ordered(x):
    """An integer that orders as the float does (no NaN)."""
    bits = bits_of_f4(x)
    return bits if bits >= 0 else np.int32(bits ^ np.int32(0x7FFFFFFF))


@njit(**jit)
def _lowest_ids(values, ids, n, edge, k):
    """The k-th lowest id among the values whose ordered bits are edge."""
    low, high = np.int64(0), np.int64(2147483647)
    while low < high:
        middle = (low + high) >> 1
        count = 0
        for i in range(n):
            count += _ordered(values[i]) == edge and ids[i] <= middle
        if count >= k:
            high = middle
        else:
            low = middle + 1
    return np.int32(low)


@njit(**jit)
def keep_best(values, ids, n, k):
    """The k best of n >= k by value into the first k places, order kept, ties to the lower id.

    values f4 (no NaN), ids i4 (not negative, all different); returns the k-th value. Bisection over the
    values' bits: 32 counts that vectorise, no branches to guess.
    """
    low, high = np.int64(-2147483648), np.int64(2147483647)
    keys = values.view(np.int32)
    while low < high:  # the greatest v for which at least k are >= v
        middle = (low + high + 1) >> 1
        edge = np.int32(middle)
        count = np.int32(0)
        for i in range(n):
            bits = keys[i]
            count += np.int32((bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))) >= edge)
        if count >= k:
            low = middle
        else:
            high = middle - 1
    edge = np.int32(low)
    better, level = 0, 0
    for i in range(n):
        key = _ordered(values[i])
        better += key > edge
        level += key == edge
    last = np.int32(2147483647)
    if better + level > k:
        last = _lowest_ids(values, ids, n, edge, k - better)
    m, worst = 0, _ZERO
    for i in range(n):
        v, name = values[i], ids[i]
        key = _ordered(v)
        if key == edge:
            worst = v
        values[m], ids[m] = v, name
        m += key > edge or (key == edge and name <= last)
    return worst


@njit(**jit)
def scan(panels, scale, bias, available, exclude, n, words, step, k, values, ids):
    """The k best of n items by approximate score, in ascending index; returns how many (<= k).

    panels, scale from `pack`; bias f4, available u1, exclude u1 all padded to whole blocks of 16;
    words, step from `quantise`. An item counts when available is not 0 and exclude is 0.
    values f4[B], ids i4[B]: results in front, the rest scratch; B >= k + 16, best about 4 k.
    """
    d = panels.shape[1]
    room = values.size - 16
    m, worst = 0, _f4(-np.inf)
    edge = _splat(worst)
    whole = _splat(step)
    for block in range((n + 15) >> 4):
        at = block * d * 16
        a = b = simd.zero_integers()
        for j in range(0, d, 4):
            a = _dot(a, panels, at, words, j)
            b = _dot(b, panels, at + 32, words, j + 2)
            at += 64
        first = block * 16
        sums = simd.to_floats(simd.add_integers(a, b))
        score = _fma(sums, simd.mul(whole, _load(scale, first)), _load(bias, first))
        mask = simd.above(score, edge)
        if mask != 0:
            mask &= simd.nonzero_bytes(available, first) & ~simd.nonzero_bytes(exclude, first)
            if first + 16 > n:
                mask &= np.int32((1 << (n - first)) - 1)
            if mask != 0:
                m = simd.append(values, ids, m, score, first, mask)
                if m > room:
                    worst = keep_best(values, ids, m, k)
                    m = k
                    edge = _splat(worst)
    if m > k:
        keep_best(values, ids, m, k)
        m = k
    return m


@njit(**jit)
def rescore(item, bias, q, ids, n, out):
    """out[c] = q . item[ids[c]] + bias[ids[c]] in float32, fixed order; item f4[V, d], ids i4, out f4."""
    d = q.size
    for c in range(n):
        i = ids[c]
        s = _splat(_ZERO)
        at = np.int64(i) * d
        for j in range(0, d, 16):
            s = _fma(_load(item, at + j), _load(q, j), s)
        out[c] = simd.total(s) + bias[i]


@njit(**jit)
def head_user(q, features, ring, feat_mean, feat_inv, Wu, bu, user):
    """The head's part that is the same for all candidates: user f4[Hd] = bu + [q, features', ring] @ Wu.

    features' = (features - mean) * inv, a missing or infinite one 0; Wu f4[d + F (+ R), Hd], ring f4[R] or
    none. F may be 0.
    """
    d = q.size
    for h in range(user.size):
        user[h] = bu[h]
    for j in range(d):
        v, row = q[j], Wu[j]
        for h in range(user.size):
            user[h] += v * row[h]
    for f in range(feat_mean.size):
        v, row = (features[f] - feat_mean[f]) * feat_inv[f], Wu[d + f]
        if v - v == _ZERO:  # finite
            for h in range(user.size):
                user[h] += v * row[h]
    for r in range(Wu.shape[0] - d - feat_mean.size):
        v, row = ring[r], Wu[d + feat_mean.size + r]
        for h in range(user.size):
            user[h] += v * row[h]


@njit(**jit)
def head_score(z, n, mean, inv, w, b, Wz, W2, user, normed, out):
    """out[c] = w . z' + b + W2 . relu(Wz z' + user), z' = (z - mean) * inv, for n rows of z f4[C, Z].

    Z = HEAD_INPUTS; w f4[Z], b f4[1], Wz f4[Z, Hd], W2 f4[Hd], user f4[Hd]; Hd a multiple of 16; normed f4[Z]
    is scratch.
    """
    hidden = user.size
    zero = _splat(_ZERO)
    for c in range(n):
        for i in range(HEAD_INPUTS):
            normed[i] = (z[c, i] - mean[i]) * inv[i]
        z0, z1, z2, z3 = normed[0], normed[1], normed[2], normed[3]
        z4, z5, z6, z7 = normed[4], normed[5], normed[6], normed[7]
        z8, z9, z10, z11 = normed[8], normed[9], normed[10], normed[11]
        z12, z13, z14, z15 = normed[12], normed[13], normed[14], normed[15]
        linear = b[0]
        linear += (z0 * w[0] + z1 * w[1]) + (z2 * w[2] + z3 * w[3])
        linear += (z4 * w[4] + z5 * w[5]) + (z6 * w[6] + z7 * w[7])
        linear += (z8 * w[8] + z9 * w[9]) + (z10 * w[10] + z11 * w[11])
        linear += (z12 * w[12] + z13 * w[13]) + (z14 * w[14] + z15 * w[15])
        s = zero
        for h in range(0, hidden, 16):
            x = _fma(_splat(z0), _load(Wz, h), _load(user, h))
            y = simd.mul(_splat(z8), _load(Wz, 8 * hidden + h))
            x = _fma(_splat(z1), _load(Wz, hidden + h), x)
            y = _fma(_splat(z9), _load(Wz, 9 * hidden + h), y)
            x = _fma(_splat(z2), _load(Wz, 2 * hidden + h), x)
            y = _fma(_splat(z10), _load(Wz, 10 * hidden + h), y)
            x = _fma(_splat(z3), _load(Wz, 3 * hidden + h), x)
            y = _fma(_splat(z11), _load(Wz, 11 * hidden + h), y)
            x = _fma(_splat(z4), _load(Wz, 4 * hidden + h), x)
            y = _fma(_splat(z12), _load(Wz, 12 * hidden + h), y)
            x = _fma(_splat(z5), _load(Wz, 5 * hidden + h), x)
            y = _fma(_splat(z13), _load(Wz, 13 * hidden + h), y)
            x = _fma(_splat(z6), _load(Wz, 6 * hidden + h), x)
            y = _fma(_splat(z14), _load(Wz, 14 * hidden + h), y)
            x = _fma(_splat(z7), _load(Wz, 7 * hidden + h), x)
            y = _fma(_splat(z15), _load(Wz, 15 * hidden + h), y)
            s = _fma(simd.larger(_add(x, y), zero), _load(W2, h), s)
        out[c] = linear + simd.total(s)


@njit(**jit)
def to_probabilities(scores, n, best):
    """The best scores f4[k] (0 behind the last) as shares of exp(scores[:n]) and exp(0): none of them."""
    most = _ZERO
    for c in range(n):
        most = max(most, scores[c])
    total = exp_f4(-most)
    for c in range(n):
        total += exp_f4(scores[c] - most)
    for k in range(min(best.size, n)):
        best[k] = exp_f4(best[k] - most) / total


@njit(**jit)
def signal_head(q, features, side, feat_mean, feat_inv, W1, b1, W2, b2, temperature, hidden, out):
    """Probabilities (down, flat, up) of every horizon into out f4[3 H].

    Input q f4[d], features f4[F] (normalised as in `head_user`) and, when W1 has rows for it, side f4[S];
    W1 f4[d + F (+ S), Hd] -> relu -> W2 f4[Hd, 3 H] -> logits / temperature[horizon] -> softmax.
    hidden f4[Hd] is scratch.
    """
    d = q.size
    for h in range(hidden.size):
        hidden[h] = b1[h]
    for i in range(W1.shape[0]):
        if i < d:
            v = q[i]
        elif i < d + feat_mean.size:
            v = (features[i - d] - feat_mean[i - d]) * feat_inv[i - d]
            v = v if v - v == _ZERO else _ZERO
        else:
            v = side[i - d - feat_mean.size]
        row = W1[i]
        for h in range(hidden.size):
            hidden[h] += v * row[h]
    for k in range(out.size):
        out[k] = b2[k]
    for h in range(hidden.size):
        v, row = max(hidden[h], _ZERO), W2[h]
        for k in range(out.size):
            out[k] += v * row[k]
    for t in range(temperature.size):
        softmax3(out, 3 * t, temperature[t])


@njit(**jit)
def softmax3(out, at, temperature):
    """out[at : at + 3] from logits to probabilities, exp(logit / temperature) / sum."""
    a, b, c = out[at] / temperature, out[at + 1] / temperature, out[at + 2] / temperature
    most = max(a, max(b, c))
    a, b, c = exp_f4(a - most), exp_f4(b - most), exp_f4(c - most)
    s = a + b + c
    out[at], out[at + 1], out[at + 2] = a / s, b / s, c / s


@njit(**jit)
def top_k(scores, ids, n, k, out_items, out_scores):
    """The k best of n candidates, score descending, ties to the lower id; returns how many.

    ids i4 all different; the places left over get -1 and 0. A NaN score never gets in.
    """
    m = 0
    for c in range(n):
        s, i = scores[c], ids[c]
        if s != s:
            continue
        if m == k:
            last = out_scores[k - 1]
            if s < last or (s == last and i > out_items[k - 1]):
                continue
        p = m if m < k else k - 1
        m = p + 1 if m < k else m
        while p > 0 and (out_scores[p - 1] < s or (out_scores[p - 1] == s and out_items[p - 1] > i)):
            out_scores[p], out_items[p] = out_scores[p - 1], out_items[p - 1]
            p -= 1
        out_scores[p], out_items[p] = s, i
    for p in range(m, k):
        out_scores[p], out_items[p] = _ZERO, -1
    return m
