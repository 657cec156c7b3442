"""An inverted file over the item table, for catalogues too large to scan for every event.

Items lie in lists of alike ones, each list in whole blocks of sixteen, packed as `rank.pack` packs the
whole table. A query finds the best lists by their middles and scans those: the same integer dot products,
the same bits, fewer rows. Place p of the lists holds item[p], or -1; live[p] is 0 for a place to be passed
over, so an item goes out of stock, or comes, in place. The last list has no middle and is always scanned: it
has places for new items.

Score of a list: q . middle + mean bias + |q| * reach, where reach is how far its best member is expected
to stand out from the middle: a wide list is worth a look where a narrow one is not.
"""

import numpy as np
from numba import njit

from . import jit, rank, simd

_f4 = np.float32
_ZERO = _f4(0)
_load, _splat, _fma, _dot = simd.load, simd.splat, simd.fma, simd.dot_pairs


@njit(**jit)
def length(q):
    """|q| of q f4[d], d a multiple of 16, in fixed order."""
    s = _splat(_ZERO)
    for j in range(0, q.size, 16):
        v = _load(q, j)
        s = _fma(v, v, s)
    return np.sqrt(simd.total(s))


@njit(**jit)
def choose(q, words, step, panels, scale, bias, reach, score, on, off, n, values, lists):
    """The n best lists for a query into lists i4[4 n + 16], in ascending order, and the one that is always
    scanned; how many.

    words, step from `rank.quantise`; panels, scale of the middles, bias and reach f4[L]; score f4[L], on
    u1[L] of ones, off u1[L] of zeros, values f4[4 n + 16] are scratch. L a multiple of 16.
    """
    size = length(q)
    for l in range(score.size):
        score[l] = bias[l] + size * reach[l]
    m = rank.scan(panels, scale, score, on, off, score.size, words, step, min(n, score.size), values, lists)
    lists[m] = score.size
    return m + 1


@njit(**jit)
def scan(panels, scale, bias, live, item, exclude, start, lists, m_lists, words, step, k, values, ids):
    """The k best items of some lists by approximate score; returns how many (<= k).

    panels i1[blocks, d, 16], scale, bias f4, live u1, item i4 by place; list l has the blocks start[l] ..
    start[l + 1]; exclude u1 by item. values f4[B], ids i4[B]: results in front, the rest scratch; B >=
    k + 16, best about 4 k. Equal scores at the edge go to the lower place.
    """
    d = panels.shape[1]
    room = values.size - 16
    m, worst = 0, _f4(-np.inf)
    edge = _splat(worst)
    whole = _splat(step)
    for which in range(m_lists):
        for block in range(start[lists[which]], start[lists[which] + 1]):
            at = np.int64(block) * d * 16
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
                mask &= simd.nonzero_bytes(live, first)
                for lane in range(16):
                    if (mask >> lane) & 1 != 0 and exclude[item[first + lane]] != 0:
                        mask &= ~np.int32(1 << lane)
                if mask != 0:
                    m = simd.append(values, ids, m, score, first, mask)
                    if m > room:
                        worst = rank.keep_best(values, ids, m, k)
                        m = k
                        edge = _splat(worst)
    if m > k:
        rank.keep_best(values, ids, m, k)
        m = k
    for j in range(m):
        ids[j] = item[ids[j]]
    return m


@njit(**jit)
def assign(points, panels, scale, bias, on, off, words, values, ids, out):
    """List of each point: the one of the nearest middle, |x - c|^2 / 2 least, into out i4[n].

    points f4[n, d]; panels, scale of the middles, bias f4[L] = -|c|^2 / 2; the rest as in `choose`.
    """
    for i in range(points.shape[0]):
        step = rank.quantise(points[i], words)
        rank.scan(panels, scale, bias, on, off, bias.size, words, step, 1, values, ids)
        out[i] = ids[0]


@njit(**jit)
def middles(points, list_of, total, count, out):
    """Mean of the points f4[n, d] of each list into out f4[L, d], in the points' order; count i8[L].

    total f8[L, d] is scratch. A list without points keeps its middle.
    """
    total[:] = 0.0
    count[:] = 0
    d = points.shape[1]
    for i in range(points.shape[0]):
        row = total[list_of[i]]
        count[list_of[i]] += 1
        for j in range(d):
            row[j] += points[i, j]
    for l in range(out.shape[0]):
        if count[l] > 0:
            for j in range(d):
                out[l, j] = _f4(total[l, j] / count[l])


@njit(**jit)
def spread(item, bias, list_of, middle, total, means, count):
    """Of each list: root mean square distance of its items' vectors f4[N, d] from the middle f4[L, d] into
    total f8[L], their mean bias into means f8[L], their number into count i8[L]. list_of -1: in no list."""
    total[:] = 0.0
    means[:] = 0.0
    count[:] = 0
    for i in range(item.shape[0]):
        l = list_of[i]
        if l < 0:
            continue
        s = 0.0
        for j in range(item.shape[1]):
            x = np.float64(item[i, j]) - np.float64(middle[l, j])
            s += x * x
        total[l] += s
        means[l] += bias[i]
        count[l] += 1
    for l in range(total.size):
        if count[l] > 0:
            total[l] = np.sqrt(total[l] / count[l])
            means[l] /= count[l]


@njit(**jit)
def fill(rows, bias, live_item, list_of, start, item, live, place, panels, scale, place_bias, used):
    """Put every item into the next free place of its list.

    rows f4[N, d], bias f4[N], live_item u1[N] (0 = not to be found now), list_of i4[N] (-1 = in none), start
    i4[L + 2] in blocks; item i4[P], live u1[P], panels, scale, place_bias as in `scan`; place i4[N]; used
    i4[L + 1] is scratch.
    """
    used[:] = 0
    item[:] = -1
    live[:] = 0
    for i in range(rows.shape[0]):
        l = list_of[i]
        if l >= 0:
            p = np.int64(start[l]) * 16 + used[l]
            put(rows[i], bias[i], i, live_item[i], p, item, live, place, panels, scale, place_bias)
            used[l] += 1


@njit(**jit)
def put(row, bias, i, scored, p, item, live, place, panels, scale, place_bias):
    """Item i with vector row f4[d] into place p."""
    item[p], live[p], place[i], place_bias[p] = i, scored, p, bias
    rank.pack_row(row, p, panels, scale)


@njit(**jit)
def add(row, bias, i, l, start, item, live, place, panels, scale, place_bias):
    """A new item into a free place of list l, or of the last one; False: neither has one, and the index is to
    be built again."""
    for at in (l, start.size - 2):
        for p in range(start[at] * 16, start[at + 1] * 16):
            if item[p] < 0:
                put(row, bias, i, 1, p, item, live, place, panels, scale, place_bias)
                return True
    return False
