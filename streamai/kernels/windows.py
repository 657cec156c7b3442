"""update(): every feature of one event, from tables. One compile serves every plan.

    derived columns  ->  accumulators (a pane of panes.py in a window)  ->  outputs

A row of `acc` is an aggregate in a window and owns some cells of the key's row; features that need the
same one share it. All-zero cells are an empty window. Time only goes forward: windows end at the key's
newest event time `now`, and an event older than that is put where it belongs, if that still exists.
"""

import numpy as np
from numba import njit

from streamai.kernels import derive, exact, leaf
from streamai.kernels.maths import exp2_f8, log_f8
from streamai.kernels.panes import add, clear, decay, inlined, merge_into

# windows; each with its cells
UNBOUNDED = 1  # pane
TUMBLING = 2  # number of the interval + 1, pane
SESSION = 3  # time of the first event, pane
DECAYED = 4  # pane
SAWTOOTH = 5  # number of the running hop + 1, mask, pane of all hops, hops + 1 panes by hop number
EXACT = 6  # exact.py
EWM = 7  # time of the newest value, pane (seen, value)
SINCE = 8  # time of the newest event, pane (known, ms)

# columns of acc
AGG, WINDOW, VALUE, WEIGHT, KINDS, BASE, SIZE, LENGTH, HOP, HOPS, RESULT = range(11)

# outputs; of the result pane
N, TOTAL, MEAN, VARIANCE, STD, SECOND, RATE, RATE_OF_HOPS, ROOT, WEIGHTED_MEAN, DISTINCT = range(1, 12)
# outputs; of two other outputs
RATIO, MINUS, DEVIATION_BP, LOG_RATIO = range(12, 16)


@njit(**inlined)
def _tumble(acc, a, f, i, now, t):
    """True if an event at t belongs to the interval that now lies in."""
    base, length = acc[a, BASE], acc[a, LENGTH]
    number = now // length + 1
    if i[base] != number:
        clear(f, base + 1, acc[a, SIZE])
        i[base] = number
    return t // length + 1 == number


@njit(**inlined)
def _session(acc, a, f, i, last_ts, t):
    """True if an event at t belongs to the newest session; a gap of `length` or more parts two."""
    base, gap = acc[a, BASE], acc[a, LENGTH]
    if last_ts == 0 or t - last_ts >= gap:
        clear(f, base + 1, acc[a, SIZE])
        i[base] = t
        return True
    if t < i[base]:
        if i[base] - t >= gap:
            return False
        i[base] = t
    return True


@njit(**leaf)
def _turn(agg, size, hops, f, i, base, running, number):
    """The running hop becomes `number`, and the pane of all hops is made anew from those that hold something.

    Bit j of the mask: hop number - j holds something. What lies in the panes of the others is not looked at.
    """
    gone_by = number - running
    filled = (i[base + 1] << gone_by) & ((1 << (hops + 1)) - 1) if gone_by <= hops else 0
    i[base] = number + 1
    i[base + 1] = filled
    clear(f, base + 2, size)
    if filled == 0:
        return
    slot = number % (hops + 1)
    for j in range(hops, 0, -1):  # from the oldest to the newest
        if (filled >> j) & 1:
            at = slot - j if slot >= j else slot - j + hops + 1
            merge_into(agg, f, i, base + 2, size, base + 2 + size * (1 + at))


@njit(**leaf)
def _sawtooth(acc, a, f, i, now, seen, v, w, t):
    """Whole hops and the running one. The pane of all of them is made anew only when the hop changes."""
    agg, base, size, hop, hops = acc[a, AGG], acc[a, BASE], acc[a, SIZE], acc[a, HOP], acc[a, HOPS]
    running = i[base] - 1
    if not (running >= 0 and now - running * hop < hop):
        number = now // hop
        _turn(agg, size, hops, f, i, base, running, number)
        running = number
    if seen:
        number = running if t >= running * hop else t // hop
        back = running - number
        if back <= hops:
            at = base + 2 + size * (1 + number % (hops + 1))
            if (i[base + 1] >> back) & 1 == 0:
                i[base + 1] |= 1 << back
                clear(f, at, size)
            add(agg, f, i, at, size, v, w, t, 1.0)
            add(agg, f, i, base + 2, size, v, w, t, 1.0)


@njit(**inlined)
def _since(acc, a, f, i, now, seen, t):
    """ms from the newest event before this one to now."""
    base = acc[a, BASE]
    last = i[base]
    f[base + 1] = 1.0 if last != 0 else 0.0
    f[base + 2] = (now - last) * 1e-6
    if seen and t > last:
        i[base] = t


@njit(**inlined)
def _ewm(acc, acc_p, a, f, i, seen, v, t):
    """Mean that forgets half of itself in a half-life, whatever the number of events: the newest value
    is given what the time since the one before it took (polars' ewm_mean_by)."""
    base = acc[a, BASE]
    if not seen or (f[base + 1] != 0.0 and t < i[base]):
        return
    if f[base + 1] == 0.0:
        f[base + 2] = v
    else:
        keep = exp2_f8((i[base] - t) * acc_p[a, 0])
        f[base + 2] = keep * f[base + 2] + (1.0 - keep) * v
    f[base + 1] = 1.0
    i[base] = t


@njit(**leaf)
def _accumulate(acc, acc_p, f, i, t, last_ts, kind, x):
    now = max(t, last_ts)
    factor, of_rate, late_factor = 1.0, -1.0, 1.0  # of the half-life last met: rows of one are neighbours
    for a in range(acc.shape[0]):
        window, agg, base, size = acc[a, WINDOW], acc[a, AGG], acc[a, BASE], acc[a, SIZE]
        seen = kind >= 0 and (acc[a, KINDS] >> kind) & 1 == 1
        v, w = 0.0, 0.0
        if acc[a, VALUE] >= 0:
            v = x[acc[a, VALUE]]
            seen = seen and v == v
        if acc[a, WEIGHT] >= 0:
            w = x[acc[a, WEIGHT]]
            seen = seen and w == w
        if window == SAWTOOTH:
            _sawtooth(acc, a, f, i, now, seen, v, w, t)
        elif window == EXACT:
            exact.update(agg, f, i, base, size, acc[a, LENGTH], acc[a, HOPS], now, seen, v, w, t)
        elif window == DECAYED:
            if acc_p[a, 0] != of_rate:
                of_rate = acc_p[a, 0]
                factor = exp2_f8((last_ts - now) * of_rate) if last_ts != 0 and now > last_ts else 1.0
                late_factor = exp2_f8((t - now) * of_rate) if t < now else 1.0
            if factor != 1.0:
                decay(agg, f, base, size, factor)
            if seen and late_factor > 0.0:
                add(agg, f, i, base, size, v, w, t, late_factor)
        elif window == UNBOUNDED:
            if seen:
                add(agg, f, i, base, size, v, w, t, 1.0)
        elif window == TUMBLING:
            if _tumble(acc, a, f, i, now, t) and seen:
                add(agg, f, i, base + 1, size, v, w, t, 1.0)
        elif window == SESSION:
            if _session(acc, a, f, i, last_ts, t) and seen:
                add(agg, f, i, base + 1, size, v, w, t, 1.0)
        elif window == EWM:
            _ewm(acc, acc_p, a, f, i, seen, v, t)
        elif window == SINCE:
            _since(acc, a, f, i, now, seen, t)


@njit(**inlined)
def _distinct(i, at, size):
    """Linear counting: bits * log(bits / zeros); a full bitmap counts as if one bit were zero."""
    ones = 0
    for j in range(at, at + size):
        word = np.uint64(i[j])
        while word:
            word &= word - np.uint64(1)
            ones += 1
    bits = size * 64
    return bits * log_f8(bits / float(max(bits - ones, 1)))


@njit(**inlined)
def _of_pane(op, f, i, at, size, scale, now, start):
    n = f[at]
    if op == N:
        return n
    if op == TOTAL:
        return f[at + 1]
    if op == RATE:
        return n * scale
    if op == RATE_OF_HOPS:
        return n * 1e9 / float(max(now - start, 1))
    if op == DISTINCT:
        return _distinct(i, at, size)
    if n == 0.0:
        return np.nan
    if op == MEAN:
        return f[at + 1] / n
    if op == SECOND:
        return f[at + 1]
    if op == VARIANCE:
        return f[at + 2] / n
    if op == STD:
        return np.sqrt(f[at + 2] / n)
    if op == ROOT:
        return np.sqrt(f[at + 1])
    return f[at + 1] / f[at + 2] if f[at + 2] != 0.0 else np.nan  # WEIGHTED_MEAN


@njit(**inlined)
def _of_outputs(op, a, b):
    if op == RATIO:
        return a / b if b != 0.0 else np.nan
    if op == MINUS:
        return a - b
    if op == DEVIATION_BP:
        return 1e4 * (a - b) / b if b != 0.0 else np.nan
    return log_f8(a / b) if a > 0.0 and b > 0.0 else np.nan  # LOG_RATIO


@njit(**leaf)
def update(
    derived, derived_p, acc, acc_p, out, out_p,
    cells_f8, cells_i8, t, last_ts, kind, item_hash, columns, x, features,
):  # fmt: skip
    """Take one event into the state of its key and write its features, the event itself included.

    kind -1 is no event: windows move on to time t, and the features are those of then.

    derived i8[D, 8], derived_p f8[D, 4]   of_event's rows
    acc i8[A, 12], acc_p f8[A, 4]          AGG.. RESULT; acc_p[:, 0] = 1 / half-life in 1/ns
    out i8[O, 8], out_p f8[O, 4]           op, result cell, its size, two outputs (indices into x), index in
                                           `features` or -1, accumulator or -1; out_p[:, 0] = scale of a rate
    cells_f8, cells_i8                     the same plan.cells cells of 8 bytes, seen both ways
    t, last_ts                             event time; the key's newest before it (0 = none), ns
    item_hash u8, columns f8[C]            NaN = not there
    x f8[plan.scratch]                     room for columns, derived columns and outputs
    features f4[F]                         out: NaN = not seen or undefined
    """
    now = max(t, last_ts)
    old = t < last_ts
    for c in range(columns.size):
        x[c] = columns[c]
    at = columns.size
    for d in range(derived.shape[0]):
        x[at] = derive.of_event(derived, d, cells_f8, x, kind, item_hash, old)
        at += 1
    _accumulate(acc, acc_p, cells_f8, cells_i8, t, last_ts, kind, x)
    for o in range(out.shape[0]):
        op = out[o, 0]
        if op >= RATIO:
            y = _of_outputs(op, x[out[o, 3]], x[out[o, 4]])
        else:
            start = np.int64(0)
            if op == RATE_OF_HOPS:
                a = out[o, 6]
                start = (cells_i8[acc[a, BASE]] - 1 - acc[a, HOPS]) * acc[a, HOP]
            y = _of_pane(op, cells_f8, cells_i8, out[o, 1], out[o, 2], out_p[o, 0], now, start)
        x[at] = y
        at += 1
        if out[o, 5] >= 0:
            features[out[o, 5]] = y
