"""The near limit of W1 and W2: hand-written kernels over growing ring buffers per key, no engine around them.

No eviction, no late events, no ties, no NaN, no key bytes: what is left is the arithmetic and the memory.
The plain Python of the same answers, which also checks them, is in peers.py.
"""

from __future__ import annotations

import numpy as np
from numba import njit


class W1:
    """Events in 5 minutes, clicks in 1 hour, decayed count (half-life 10 min), ms since the last event."""

    def __init__(self, keys: int = 50_000) -> None:
        counters = [np.zeros(keys, "i8") for _ in range(8)]
        self.state = (*counters, np.zeros(keys), np.full(keys, -1, "i8"))
        self.buffers = (np.empty(1 << 18, "i8"), np.empty(1 << 18, "i8"), 0, 0)

    def run(self, user, click, ts_ms, out) -> None:
        """out f8[n, 4] of a slice of events."""
        self.buffers = _w1(user, click, ts_ms, out, *self.buffers, *self.state)


class W2:
    """1-min VWAP, 1-min realised volatility, EWMA of the mid (half-life 10 s), imbalance of 100 events."""

    def __init__(self, keys: int = 50) -> None:
        counters = [np.zeros(keys, "i8") for _ in range(4)]
        sums = [np.zeros(keys) for _ in range(5)]
        rings = [np.zeros((keys, 100)), np.zeros((keys, 100))]
        of_rings = [np.zeros(keys, "i8"), np.zeros(keys), np.zeros(keys)]
        self.state = (*counters, *sums, np.full(keys, -1, "i8"), *rings, *of_rings)
        self.buffers = (np.empty((1 << 16, 4)), 0)

    def run(self, ts_us, instrument, bid, ask, price, size, side, out) -> None:
        """out f8[n, 4] of a slice of events."""
        self.buffers = _w2(ts_us, instrument, bid, ask, price, size, side, out, *self.buffers, *self.state)


@njit
def _push(buf, head, size, cap, off, used, k, x):
    if size[k] == cap[k]:
        new = max(8, cap[k] * 2)
        if used + new > buf.shape[0]:
            grown = np.empty(max(buf.shape[0] * 2, used + new), buf.dtype)
            grown[:used] = buf[:used]
            buf = grown
        for j in range(size[k]):
            buf[used + j] = buf[off[k] + ((head[k] + j) & (cap[k] - 1))]
        off[k] = used
        head[k] = 0
        cap[k] = new
        used += new
    buf[off[k] + ((head[k] + size[k]) & (cap[k] - 1))] = x
    size[k] += 1
    return buf, used


@njit
def _w1(user, click, ts, out, a, c, ua, uc, ha, sa, ca, oa, hc, sc, cc, oc, rate, last):
    for i in range(user.shape[0]):
        k = user[i]
        t = ts[i]
        a, ua = _push(a, ha, sa, ca, oa, ua, k, t)
        low = t - 300_000
        while a[oa[k] + ha[k]] <= low:
            ha[k] = (ha[k] + 1) & (ca[k] - 1)
            sa[k] -= 1
        if click[i]:
            c, uc = _push(c, hc, sc, cc, oc, uc, k, t)
        low = t - 3_600_000
        while sc[k] > 0 and c[oc[k] + hc[k]] <= low:
            hc[k] = (hc[k] + 1) & (cc[k] - 1)
            sc[k] -= 1
        dt = -1
        r = 1.0
        if last[k] >= 0:
            dt = t - last[k]
            r = rate[k] * 2.0 ** (-dt / 600_000) + 1.0
        rate[k] = r
        last[k] = t
        out[i, 0] = sa[k]
        out[i, 1] = sc[k]
        out[i, 2] = r
        out[i, 3] = dt
    return a, c, ua, uc


@njit
def _w2(
    ts, inst, bid, ask, px, q, side, out, w, used,
    h, n, cap, off, pq_, q_, rr, mid_, ew, last, fs, fq, fn, fss, fqs,
):
    for i in range(ts.shape[0]):
        k = inst[i]
        t = ts[i]
        mid = (bid[i] + ask[i]) * 0.5
        r2 = 0.0
        e = mid
        if last[k] >= 0:
            r = np.log(mid / mid_[k])
            r2 = r * r
            al = 2.0 ** (-(t - last[k]) / 10_000_000)
            e = al * ew[k] + (1.0 - al) * mid
        if n[k] == cap[k]:
            new = max(64, cap[k] * 2)
            if used + new > w.shape[0]:
                grown = np.empty((max(w.shape[0] * 2, used + new), 4))
                grown[:used] = w[:used]
                w = grown
            for j in range(n[k]):
                w[used + j] = w[off[k] + ((h[k] + j) & (cap[k] - 1))]
            off[k] = used
            h[k] = 0
            cap[k] = new
            used += new
        p = off[k] + ((h[k] + n[k]) & (cap[k] - 1))
        pq = px[i] * q[i]
        w[p, 0] = t
        w[p, 1] = pq
        w[p, 2] = q[i]
        w[p, 3] = r2
        n[k] += 1
        pq_[k] += pq
        q_[k] += q[i]
        rr[k] += r2
        low = t - 60_000_000
        p = off[k] + h[k]
        while w[p, 0] <= low:
            pq_[k] -= w[p, 1]
            q_[k] -= w[p, 2]
            rr[k] -= w[p, 3]
            h[k] = (h[k] + 1) & (cap[k] - 1)
            n[k] -= 1
            p = off[k] + h[k]
        s = fn[k] % 100
        if fn[k] >= 100:
            fss[k] -= fs[k, s]
            fqs[k] -= fq[k, s]
        fs[k, s] = side[i] * q[i]
        fq[k, s] = q[i]
        fss[k] += fs[k, s]
        fqs[k] += fq[k, s]
        fn[k] += 1
        mid_[k] = mid
        ew[k] = e
        last[k] = t
        out[i, 0] = pq_[k] / q_[k]
        out[i, 1] = np.sqrt(max(rr[k], 0.0))
        out[i, 2] = e
        out[i, 3] = fss[k] / fqs[k]
    return w, used
