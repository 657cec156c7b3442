"""Results of one batch -> JSON lines in one buffer, always the same bytes for the same numbers.

The fixed text of a line comes as `parts u1[...]` with `parts_at i4[m + 1]` (made by `wire/output.py`);
a kernel writes parts and numbers in turn. Every line begins with part HEAD, the offset, part KEY, the key,
part TIME, event_ts_ns. `out` must have room: `wire/output.py` counts it. Functions that write return the
position after what they wrote; those of a batch return the number of lines m, with out[at[j] : at[j + 1]]
the j-th and which[j] its event.

Numbers: null for NaN and infinity; -0 is 0; whole numbers below 1e15 plain; others rounded to a number of
significant digits without trailing zeros (9 bring a float32 back exactly, 15 a decimal price).
"""

import numpy as np
from numba import njit

from streamai.kernels import leaf
from streamai.kernels.word import load8, store8

HEAD, KEY, TIME, REST = 0, 1, 2, 3
SILENT, PRIOR = 0, 1  # deadline.Tier
LATE = 1  # scored.LATE
TENS = 10.0 ** np.arange(23)
POWERS = np.array([10**i for i in range(20)], np.uint64)
PAIRS = np.frombuffer(b"".join(b"%02d" % i for i in range(100)), np.uint8)
HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
ZERO, TEN, HUNDRED, MYRIAD = np.uint64(0), np.uint64(10), np.uint64(100), np.uint64(10_000)
MILLION = np.uint64(1_000_000)
WHOLE_END, MICRO_END = 1e15, 9e12


@njit(**leaf)
def put_bytes(out, p, source, at, end):
    """Copy source[at : end]; may write up to 7 bytes beyond, which the next write covers."""
    while at + 8 <= end or (at < end and at + 8 <= source.shape[0]):
        store8(out, p, load8(source, at))
        used = min(8, end - at)
        p += used
        at += used
    while at < end:
        out[p] = source[at]
        p += 1
        at += 1
    return p


@njit(**leaf)
def put_part(out, p, parts, parts_at, j):
    return put_bytes(out, p, parts, np.int64(parts_at[j]), np.int64(parts_at[j + 1]))


@njit(**leaf)
def put_escaped(out, p, source, at, n):
    """UTF-8 text as the inside of a JSON string, escaped as msgspec does."""
    for x in range(at, at + n):
        c = source[x]
        if c >= 32 and c != 34 and c != 92:
            out[p] = c
            p += 1
            continue
        short = np.int64(0)
        if c == 34 or c == 92:
            short = np.int64(c)
        elif c == 8:
            short = 98
        elif c == 9:
            short = 116
        elif c == 10:
            short = 110
        elif c == 12:
            short = 102
        elif c == 13:
            short = 114
        out[p] = 92
        if short != 0:
            out[p + 1] = short
            p += 2
        else:
            out[p + 1] = 117
            out[p + 2] = 48
            out[p + 3] = 48
            out[p + 4] = HEX[c >> 4]
            out[p + 5] = HEX[c & 15]
            p += 6
    return p


@njit(**leaf)
def _put_digits(out, p, value, n):
    """The n low digits of u8 `value`, zeros in front."""
    x = p + n
    while x - p >= 2:
        rest = value // HUNDRED
        pair = np.int64(value - rest * HUNDRED) * 2
        out[x - 1] = PAIRS[pair + 1]
        out[x - 2] = PAIRS[pair]
        value = rest
        x -= 2
    if x > p:
        out[p] = 48 + np.int64(value % TEN)
    return p + n


@njit(**leaf)
def _count_digits(value):
    n = 1
    while n < 20 and value >= POWERS[n]:
        n += 1
    return n


@njit(**leaf)
def put_int(out, p, value):
    """An int64 in decimal."""
    u = np.uint64(value)
    if value < 0:
        out[p] = 45
        p += 1
        u = ZERO - u
    return _put_digits(out, p, u, _count_digits(u))


@njit(**leaf)
def put_null(out, p):
    out[p] = 110
    out[p + 1] = 117
    out[p + 2] = 108
    out[p + 3] = 108
    return p + 4


@njit(**leaf)
def _scaled(v, power):
    """v * 10^power, rounded to a whole number."""
    while power > 22:
        v *= TENS[22]
        power -= 22
    while power < -22:
        v /= TENS[22]
        power += 22
    v = v * TENS[power] if power >= 0 else v / TENS[-power]
    return np.uint64(np.rint(v))


@njit(**leaf)
def _round(v, digits):
    """v > 0 -> (m, n, k): v is about m * 10^(k - n + 1), m of n <= digits digits, its last not 0."""
    exponent = (np.float64(v).view(np.int64) >> 52) - 1023
    k = (exponent * 1233) >> 12  # log10 of the power of two, rounded down; put right below
    m = _scaled(v, digits - 1 - k)
    while m >= POWERS[digits]:
        k += 1
        m = _scaled(v, digits - 1 - k)
    while m < POWERS[digits - 1]:
        k -= 1
        m = _scaled(v, digits - 1 - k)
        if m >= POWERS[digits]:  # 9.9999.. rounds up to the next power
            m = POWERS[digits - 1]
            k += 1
    n = digits
    while n > 4 and m % MYRIAD == ZERO:
        m //= MYRIAD
        n -= 4
    while m % TEN == ZERO:
        m //= TEN
        n -= 1
    return m, n, k


@njit(**leaf)
def put_number(out, p, v, digits):
    """A float64 as JSON, see the head of this file; plain from 1e-5 to 1e15, else with an exponent."""
    if not np.isfinite(v):
        return put_null(out, p)
    if v == np.rint(v) and v < WHOLE_END and v > -WHOLE_END:
        return put_int(out, p, np.int64(v))
    if v < 0:
        out[p] = 45
        p += 1
        v = -v
    m, n, k = _round(v, digits)
    if k < -5 or k >= 15:
        p = _put_digits(out, p, m // POWERS[n - 1], 1)
        if n > 1:
            out[p] = 46
            p = _put_digits(out, p + 1, m, n - 1)
        out[p] = 101
        return put_int(out, p + 1, k)
    if k < 0:
        out[p] = 48
        out[p + 1] = 46
        p += 2
        for _ in range(-1 - k):
            out[p] = 48
            p += 1
        return _put_digits(out, p, m, n)
    if n <= k + 1:
        return _put_digits(out, p, m * POWERS[k + 1 - n], k + 1)
    p = _put_digits(out, p, m // POWERS[n - k - 1], k + 1)
    out[p] = 46
    return _put_digits(out, p + 1, m, n - k - 1)


@njit(**leaf)
def put_score(out, p, v):
    """A float64 to 6 decimals, without trailing zeros."""
    if not np.isfinite(v) or v > MICRO_END or v < -MICRO_END:
        return put_number(out, p, v, 9)
    micro = np.rint(v * 1e6)
    if micro < 0:
        out[p] = 45
        p += 1
    m = np.uint64(abs(micro))
    whole = m // MILLION
    m -= whole * MILLION
    p = _put_digits(out, p, whole, _count_digits(whole))
    if m == ZERO:
        return p
    n = 6
    while m % TEN == ZERO:
        m //= TEN
        n -= 1
    out[p] = 46
    return _put_digits(out, p + 1, m, n)


@njit(**leaf)
def _open(out, p, parts, parts_at, rows, keys, i):
    p = put_part(out, p, parts, parts_at, HEAD)
    p = put_int(out, p, rows[i].offset)
    p = put_part(out, p, parts, parts_at, KEY)
    p = put_escaped(out, p, keys, np.int64(rows[i].key_at), np.int64(rows[i].key_len))
    p = put_part(out, p, parts, parts_at, TIME)
    return put_int(out, p, rows[i].event_ts_ns)


@njit(**leaf)
def features(out, at, which, parts, parts_at, rows, keys, status, tier, values):
    """REST + f: what stands before feature f; REST + F + tier: closes the line. values f4[n, F]."""
    p = m = 0
    for i in range(rows.shape[0]):
        if status[i] == LATE or tier[i] == SILENT:
            continue
        p = _open(out, p, parts, parts_at, rows, keys, i)
        for f in range(values.shape[1]):
            p = put_part(out, p, parts, parts_at, REST + f)
            p = put_number(out, p, np.float64(values[i, f]), 9)
        p = put_part(out, p, parts, parts_at, REST + values.shape[1] + np.int64(tier[i]))
        which[m] = i
        m += 1
        at[m] = p
    return m


@njit(**leaf)
def scores(out, at, which, parts, parts_at, rows, keys, status, tier, values):
    """REST: opens the list; REST + 1 + tier: closes the line. values f4[n, k]."""
    p = m = 0
    for i in range(rows.shape[0]):
        if status[i] == LATE or tier[i] == SILENT:
            continue
        p = _open(out, p, parts, parts_at, rows, keys, i)
        p = put_part(out, p, parts, parts_at, REST)
        for j in range(values.shape[1]):
            if j > 0:
                out[p] = 44
                p += 1
            p = put_score(out, p, np.float64(values[i, j]))
        p = put_part(out, p, parts, parts_at, REST + 1 + np.int64(tier[i]))
        which[m] = i
        m += 1
        at[m] = p
    return m


@njit(**leaf)
def recommendations(
    out, at, which, parts, parts_at, rows, keys, status, tier, items, values, ids, ids_at
):
    """REST: opens the items; + 1: opens the scores; + 2 + tier: closes. items i4[n, k], -1 ends a list."""
    p = m = 0
    for i in range(rows.shape[0]):
        if status[i] == LATE or tier[i] == SILENT:
            continue
        p = _open(out, p, parts, parts_at, rows, keys, i)
        p = put_part(out, p, parts, parts_at, REST)
        k = 0
        while k < items.shape[1] and items[i, k] >= 0:
            item = items[i, k]
            if k > 0:
                out[p] = 44
                p += 1
            out[p] = 34
            p = put_bytes(out, p + 1, ids, np.int64(ids_at[item]), np.int64(ids_at[item + 1]))
            out[p] = 34
            p += 1
            k += 1
        p = put_part(out, p, parts, parts_at, REST + 1)
        for j in range(k):
            if j > 0:
                out[p] = 44
                p += 1
            p = put_score(out, p, np.float64(values[i, j]))
        p = put_part(out, p, parts, parts_at, REST + 2 + np.int64(tier[i]))
        which[m] = i
        m += 1
        at[m] = p
    return m


@njit(**leaf)
def signals(
    out, at, which, parts, parts_at, rows, keys, status, tier, columns, bid, ask, values, target
):
    """REST: before mid; + 1: opens signals; + 2: before confidence; + 3: closes a horizon; + 4: before
    the target; + 5 + tier: closes the line; + 9 + h: opens horizon h. values f4[n, 3H]: down, flat, up."""
    p = m = 0
    for i in range(rows.shape[0]):
        if status[i] == LATE or tier[i] == SILENT:
            continue
        p = _open(out, p, parts, parts_at, rows, keys, i)
        p = put_part(out, p, parts, parts_at, REST)
        p = put_number(out, p, 0.5 * (columns[i, bid] + columns[i, ask]), 15)
        p = put_part(out, p, parts, parts_at, REST + 1)
        abstain = tier[i] == PRIOR
        horizons = 0 if abstain else values.shape[1] // 3
        for h in range(horizons):
            down = np.float64(values[i, 3 * h])
            flat = np.float64(values[i, 3 * h + 1])
            up = np.float64(values[i, 3 * h + 2])
            p = put_part(out, p, parts, parts_at, REST + 9 + h)
            p = put_score(out, p, up - down)
            p = put_part(out, p, parts, parts_at, REST + 2)
            p = put_score(out, p, max(down, flat, up))
            p = put_part(out, p, parts, parts_at, REST + 3)
        p = put_part(out, p, parts, parts_at, REST + 4)
        p = put_number(out, p, np.nan if abstain else target[i], 15)
        p = put_part(out, p, parts, parts_at, REST + 5 + np.int64(tier[i]))
        which[m] = i
        m += 1
        at[m] = p
    return m
