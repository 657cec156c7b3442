"""JSON and binary records of one batch -> EVENT rows and columns, in one pass over their bytes.

The scanner takes the plain form only: one flat object, strings of ASCII without escapes, numbers whose
value is exact by one multiplication (Clinger 1990: digits below 2^53, power of ten within 22) and no
field twice. What it takes, it takes as msgspec would; whatever else it meets (good or bad) gets status
FALLBACK and is decided by `wire/check.py`. Records are joined by newlines: a control byte ends every
string, number and literal, so only runs of white space need a bound.

Tables (made by `wire/json.py` from a schema, so that one compile serves all):
  names  u1[F + K, W]   names of the F fields, then of the K kinds
  spec   i8[F + K, 4]   name length, WHAT, argument (time scale, column, kind's code), column's rule
  shape  i8[8]          F, K, default kind (-1 none), required columns (bits), bid column or -1, ask
                        column, max bytes of a record, max skew ns
  needs  i8[m, 2]       (kind's code, column that it needs)
  binary i8[4]          record bytes, key bytes, item bytes, u2 that names the schema
"""

import numpy as np
from numba import njit

from streamai.kernels import jit, leaf
from streamai.kernels.index import find, hash128
from streamai.kernels.word import HIGH, LOW, load8, trailing_zeros

KEY, ITEM, KIND, TIME, COLUMN = 0, 1, 2, 3, 4
ANY, POSITIVE, NON_NEGATIVE, SIGN = 0, 1, 2, 3
GOOD, FALLBACK = 0, 1
MAGIC, BINARY_VERSION, BINARY_HEAD = 0xA5, 1, 16
KEY_BYTES_MAX = 256
TIME_END_NS = 9_214_646_400 * 10**9  # 2262-01-01

# places in `got`
SEEN, KEY_AT, KEY_LEN, ITEM_AT, ITEM_LEN, TS, KIND_CODE, TIMES = 0, 1, 2, 3, 4, 5, 6, 7
BAD, WHOLE, FRACTION = 0, 1, 2  # what a number is

TENS = 10.0 ** np.arange(23)
ZERO, QUOTES, SLASHES, SPACES = np.uint64(0), np.uint64(34) * LOW, np.uint64(92) * LOW, np.uint64(32) * LOW
TEN, TOP, EXACT = np.uint64(10), np.uint64(2**63 - 1), np.uint64(2**53)


@njit(**leaf)
def _space(buf, p, end):
    if buf[p] > 32:
        return p
    while p < end and (buf[p] == 32 or buf[p] == 10 or buf[p] == 13 or buf[p] == 9):
        p += 1
    return p


@njit(**leaf)
def _string(buf, p):
    """End of the plain string whose first byte is at p (where its closing quote is), or -1.

    Eight bytes at a time: the lowest byte that is a quote, a backslash, a control byte or not ASCII.
    """
    for at in range(p, buf.shape[0] - 7, 8):
        w = load8(buf, at)
        quote = w ^ QUOTES
        slash = w ^ SLASHES
        stop = ((quote - LOW) & ~quote) | ((slash - LOW) & ~slash) | ((w - SPACES) & ~w) | w
        stop &= HIGH
        if stop != ZERO:
            at += trailing_zeros(stop) >> 3
            return at if buf[at] == 34 else np.int64(-1)
    return np.int64(-1)


@njit(**leaf)
def _number(buf, p):
    """-> (next position, BAD | WHOLE | FRACTION, value as i8, value as f8)"""
    negative = buf[p] == 45
    if negative:
        p += 1
    first = p
    m = np.uint64(0)
    digits = 0
    while buf[p] >= 48 and buf[p] <= 57:
        m = m * TEN + np.uint64(buf[p] - 48)
        p += 1
    digits = p - first
    if digits == 0 or digits > 19 or (digits > 1 and buf[first] == 48):
        return p, BAD, np.int64(0), 0.0
    c = buf[p]
    if c != 46 and c != 101 and c != 69:
        if m > TOP or (negative and m == 0):
            return p, BAD, np.int64(0), 0.0
        whole = -np.int64(m) if negative else np.int64(m)
        return p, WHOLE, whole, np.float64(whole)
    power = 0
    if c == 46:
        p += 1
        first = p
        while buf[p] >= 48 and buf[p] <= 57:
            m = m * TEN + np.uint64(buf[p] - 48)
            p += 1
        power = first - p
        digits -= power
        if power == 0 or digits > 19:
            return p, BAD, np.int64(0), 0.0
    if buf[p] == 101 or buf[p] == 69:
        p += 1
        down = buf[p] == 45
        if down or buf[p] == 43:
            p += 1
        first = p
        e = 0
        while buf[p] >= 48 and buf[p] <= 57 and p - first < 4:
            e = e * 10 + np.int64(buf[p] - 48)
            p += 1
        if p == first:
            return p, BAD, np.int64(0), 0.0
        power += -e if down else e
    if m > EXACT or power > 22 or power < -22:
        return p, BAD, np.int64(0), 0.0
    value = np.float64(m)
    value = value * TENS[power] if power >= 0 else value / TENS[-power]
    return p, FRACTION, np.int64(0), -value if negative else value


@njit(**leaf)
def _literal(buf, p):
    """Position after null, true or false at p, or -1."""
    c = buf[p]
    if c == 110 and buf[p + 1] == 117 and buf[p + 2] == 108 and buf[p + 3] == 108:
        return p + 4
    if c == 116 and buf[p + 1] == 114 and buf[p + 2] == 117 and buf[p + 3] == 101:
        return p + 4
    if c == 102 and buf[p + 1] == 97 and buf[p + 2] == 108 and buf[p + 3] == 115 and buf[p + 4] == 101:
        return p + 5
    return np.int64(-1)


@njit(**leaf)
def _same(buf, p, n, names, spec, f):
    if spec[f, 0] != n:
        return False
    words = n >> 3
    for x in range(words):
        if load8(buf, p + 8 * x) != names[f, x]:
            return False
    if (n & 7) == 0:
        return True
    return (load8(buf, p + 8 * words) ^ names[f, words]) << np.uint64(64 - 8 * (n & 7)) == ZERO


@njit(**leaf)
def _field(buf, p, n, names, spec, fields, order, place):
    """Index of the field called buf[p : p + n], or -1. Records mostly repeat the order of the last."""
    guess = np.int64(order[place & 31])
    if _same(buf, p, n, names, spec, guess):
        return guess
    for f in range(fields):
        if _same(buf, p, n, names, spec, f):
            order[place & 31] = f
            return np.int64(f)
    return np.int64(-1)


@njit(**leaf)
def _store_string(buf, p, n, f, names, spec, shape, got):
    what = spec[f, 1]
    if what == KIND:
        for k in range(shape[0], shape[0] + shape[1]):
            if _same(buf, p, n, names, spec, k):
                got[KIND_CODE] = spec[k, 2]
                return True
        return False
    if n == 0 or n > KEY_BYTES_MAX:
        return False
    if what == KEY:
        got[KEY_AT] = p
        got[KEY_LEN] = n
        return True
    if what == ITEM:
        got[ITEM_AT] = p
        got[ITEM_LEN] = n
        return True
    return False


@njit(**leaf)
def _store_number(p, n, kind, whole, value, f, spec, got, columns, i):
    what = spec[f, 1]
    if what == COLUMN:
        columns[i, spec[f, 2]] = value + 0.0
        return True
    if what == TIME:
        scale = spec[f, 2]
        got[TIMES] += 1
        if kind == WHOLE:
            if whole <= 0 or whole >= TIME_END_NS // scale:
                return False
            got[TS] = whole * scale
            return True
        if not (value > 0.0 and value < TIME_END_NS / scale - 1.0):
            return False
        floor = np.floor(value)
        got[TS] = np.int64(floor) * scale + np.int64(np.rint((value - floor) * scale))
        return got[TS] > 0
    if kind != WHOLE:
        return False
    if what == KEY:
        got[KEY_AT] = p
        got[KEY_LEN] = n
        return True
    if what == ITEM:
        got[ITEM_AT] = p
        got[ITEM_LEN] = n
        return True
    return False


@njit(**leaf)
def _json(buf, p, end, names, spec, shape, order, got, columns, i):
    """Read one record into got and columns[i]; False = not for us."""
    p = _space(buf, p, end)
    if p >= end or buf[p] != 123:
        return False
    p = _space(buf, p + 1, end)
    place = 0
    while True:
        if buf[p] != 34:
            return False  # also the empty object: it lacks a key
        q = _string(buf, p + 1)
        if q < 0:
            return False
        f = _field(buf, p + 1, q - p - 1, names, spec, shape[0], order, place)
        place += 1
        if f >= 0:
            bit = np.int64(1) << f
            if got[SEEN] & bit:
                return False
            got[SEEN] |= bit
        p = _space(buf, q + 1, end)
        if buf[p] != 58:
            return False
        p = _space(buf, p + 1, end)
        c = buf[p]
        if c == 34:
            q = _string(buf, p + 1)
            if q < 0:
                return False
            if f >= 0 and not _store_string(buf, p + 1, q - p - 1, f, names, spec, shape, got):
                return False
            p = q + 1
        elif c == 45 or (c >= 48 and c <= 57):
            q, kind, whole, value = _number(buf, p)
            if kind == BAD:
                return False
            if f >= 0 and not _store_number(p, q - p, kind, whole, value, f, spec, got, columns, i):
                return False
            p = q
        else:
            q = _literal(buf, p)
            if q < 0 or (f >= 0 and (c != 110 or (spec[f, 1] != COLUMN and spec[f, 1] != ITEM))):
                return False
            p = q
        p = _space(buf, p, end)
        if buf[p] == 44 and p < end:
            p = _space(buf, p + 1, end)
        elif buf[p] == 125 and p < end:
            return _space(buf, p + 1, end) == end
        else:
            return False


@njit(**leaf)
def _binary(buf, p, end, spec, shape, binary, got, columns, i):
    """Read one binary record (layout: `wire/binary.py`); keys must be ASCII here, others fall back."""
    if end - p != binary[0] or buf[p + 1] != BINARY_VERSION or buf[p + 5] != 0:
        return False
    if np.int64(buf[p + 6]) + 256 * np.int64(buf[p + 7]) != binary[3]:
        return False
    for k in range(shape[0], shape[0] + shape[1]):
        if spec[k, 2] == np.int64(buf[p + 2]):
            got[KIND_CODE] = spec[k, 2]
    ts = np.int64(load8(buf, p + 8))
    if ts <= 0 or ts >= TIME_END_NS or got[KIND_CODE] != np.int64(buf[p + 2]):
        return False
    got[TS] = ts
    got[TIMES] = 1
    p += BINARY_HEAD
    for j in range(columns.shape[1]):
        v = np.uint64(load8(buf, p)).view(np.float64) + 0.0
        columns[i, j] = v if v == v else np.nan  # one NaN, whatever its bits
        p += 8
    head = end - binary[0]
    got[KEY_AT] = p
    got[KEY_LEN] = buf[head + 3]
    got[ITEM_AT] = p + binary[1]
    got[ITEM_LEN] = buf[head + 4]
    if got[KEY_LEN] > binary[1] or got[ITEM_LEN] > binary[2]:
        return False
    for x in range(p, end):
        used = x - p < got[KEY_LEN] or (x >= got[ITEM_AT] and x < got[ITEM_AT] + got[ITEM_LEN])
        if buf[x] > 127 or (not used and buf[x] != 0):
            return False
    return True


@njit(**leaf)
def _good(got, shape, spec, needs, columns, i, kafka_ts_ns):
    if got[KEY_LEN] == 0 or got[TIMES] != 1 or got[KIND_CODE] < 0:
        return False
    if kafka_ts_ns > 0 and got[TS] - kafka_ts_ns > shape[7]:
        return False
    for f in range(shape[0]):
        if spec[f, 1] != COLUMN:
            continue
        j = spec[f, 2]
        v = columns[i, j]
        rule = spec[f, 3]
        if np.isnan(v):
            if (shape[3] >> j) & 1:
                return False
            continue
        if np.isinf(v) or (rule == SIGN and v != 0.0 and v != 1.0 and v != -1.0):
            return False
        if (rule == POSITIVE and v <= 0.0) or (rule == NON_NEGATIVE and v < 0.0):
            return False
    if shape[4] >= 0 and columns[i, shape[4]] > columns[i, shape[5]]:
        return False
    for k in range(needs.shape[0]):
        if needs[k, 0] == got[KIND_CODE] and np.isnan(columns[i, needs[k, 1]]):
            return False
    return True


@njit(**leaf)
def set_row(buf, key_at, key_len, item_at, item_len, kind, ts, table, hash0, hash1, rows, i):
    """Fill rows[i] but for offset and Kafka time; key and item id lie in buf (item_len 0 = none)."""
    h0, h1 = hash128(buf, key_at, key_len)
    rows[i].hash0 = h0
    rows[i].hash1 = h1
    rows[i].event_ts_ns = ts
    rows[i].kind = kind
    rows[i].key_at = key_at
    rows[i].key_len = key_len
    rows[i].spare = 0
    rows[i].item = -1
    rows[i].item_hash = 0
    if item_len > 0:
        h0, h1 = hash128(buf, item_at, item_len)
        rows[i].item = find(table, hash0, hash1, h0, h1)
        rows[i].item_hash = np.uint32(h0 & np.uint64(0xFFFFFFFF)) | np.uint32(1)


@njit(**jit)
def scan(
    buf, sizes, names, spec, shape, needs, binary, table, hash0, hash1,
    offsets, kafka_ts_ns, rows, columns, status,
):
    """Records of sizes[i] bytes, each followed by a newline -> rows[i], columns[i], status[i].

    sizes i8[n], rows EVENT[n], columns f8[n, C], status u1[n]; table, hash0, hash1 find catalogue items.
    Offset and Kafka time are set in every row. Returns how many records have status FALLBACK.
    """
    got = np.zeros(8, np.int64)
    order = np.zeros(32, np.int32)
    back = 0
    end = -1
    for i in range(status.shape[0]):
        p = end + 1
        end = p + sizes[i]
        got[:] = 0
        got[KIND_CODE] = shape[2]
        for j in range(columns.shape[1]):
            columns[i, j] = np.nan
        ok = end > p and end - p <= shape[6]
        if ok:
            if buf[p] == MAGIC:
                ok = _binary(buf, p, end, spec, shape, binary, got, columns, i)
            else:
                ok = _json(buf, p, end, names, spec, shape, order, got, columns, i)
        ok = ok and _good(got, shape, spec, needs, columns, i, kafka_ts_ns[i])
        rows[i].offset = offsets[i]
        rows[i].kafka_ts_ns = kafka_ts_ns[i]
        status[i] = GOOD if ok else FALLBACK
        if ok:
            set_row(
                buf, got[KEY_AT], got[KEY_LEN], got[ITEM_AT], got[ITEM_LEN], got[KIND_CODE], got[TS],
                table, hash0, hash1, rows, i,
            )
        else:
            back += 1
    return back
