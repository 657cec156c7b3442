"""The event-LM: one diagonal gated recurrent step a event, its state in the key's row.

For an event with token vector e, kind, gap bucket g and side values, width d, layers L, hidden m:

    x = e + kind_emb[kind] + gap_emb[g] + side @ Wside
    each layer:
      p = rms(x) @ Wg + bg                                  d -> 4d: r, i, v, o
      u = cw[0] v_t + cw[1] v_{t-1} + cw[2] v_{t-2} + cw[3] v_{t-3} + cb
      log a = -lam * sigmoid(r) * (1 + gap_w * g / 16)
      h = a h + sqrt(max(0, 1 - a a)) * (sigmoid(i) * u);   x += (h * silu(o)) @ Wo
      f = rms(x) @ W1;                                      x += (silu(f[:m]) * f[m:]) @ W2
    q = rms(x) * final_gain;   logit of item j = q . item[j] + bias[j]

rms(x) = x / sqrt(mean(x x) + 1e-6). The form is RG-LRU's (De et al. 2024, arXiv:2402.19427) with the
time gap in the decay. All float32, every sum in a fixed order. d and m are multiples of 16.
State of a key, f4[(4 L + 1) d]: h of every layer (L x d), then the last three v of every layer (L x 3 x d,
newest first), then q. Zeros = no event yet.

A model in 8 bits has the matrices Wg, Wo, W1, W2 of a layer packed one behind the other in Wq i1[L, bytes],
with steps Ws f4[L, columns] and sums Wc i4[L, columns] (see `quant`); its float matrices are empty, as Wq is
where they are not. A state in half precision is rounded after every event: what lies in the row is what the
next event reads.
"""

import numpy as np
from numba import njit

from . import half, jit, quant, simd
from .maths import exp_f4, fma_f4, sigmoid_f4, silu_f4

UNKNOWN = 64
"""Number of hashed tokens for items that the model does not know."""
GAPS = 64
_f4 = np.float32
_ZERO, _ONE = _f4(0), _f4(1)
ARRAYS = (
    "kind_emb", "gap_emb", "Wside", "Wg", "bg", "cw", "cb", "lam", "gap_w", "Wo", "W1", "W2", "Wq", "Ws",
    "Wc", "final_gain",
)  # fmt: skip
"""The weights that `step`, `rebuild` and `run` take, in this order."""
_load, _store, _splat, _fma, _add = simd.load, simd.store, simd.splat, simd.fma, simd.add


@njit(**jit)
def gap_bucket(dt_ns):
    """Bucket of a time gap: 0 for none or not positive, else min(63, 1 + floor(2 log2(1 + dt / 1 ms))).

    Integer arithmetic: the same for every driver and for training.
    """
    if dt_ns <= 0:
        return 0
    y = min(dt_ns, np.int64(1) << np.int64(53)) + np.int64(1_000_000)
    whole = y // np.int64(1_000_000)
    k = 0
    while whole > 1:
        whole >>= 1
        k += 1
    # the odd bucket begins at sqrt(2) 2^k ms; the product with a power of two is exact
    odd = y > np.int64(1414213.562373095 * np.float64(np.int64(1) << np.int64(k)))
    return min(GAPS - 1, 1 + 2 * k + (1 if odd else 0))


@njit(**jit)
def token_of(item, item_hash):
    """What a ring keeps for an event: the catalogue index, or -1 - (hash & 63) for an unknown item."""
    if item >= 0:
        return np.int32(item)
    return np.int32(-1 - (np.int64(item_hash) & np.int64(UNKNOWN - 1)))


@njit(**jit)
def embed(token, item, known, unknown):
    """Vector f4[d] of a token: its row of item f4[V, d]; or of unknown f4[64, d] when the token is
    negative, beyond the table, or an item that the model was not trained on (known u1[V] = 0)."""
    if token < 0:
        return unknown[(-1 - token) & (UNKNOWN - 1)]
    if token >= item.shape[0] or known[token] == 0:
        return unknown[token & (UNKNOWN - 1)]
    return item[token]


@njit(**jit)
def _columns_256(x, w, at, width, y):
    """y[at : at + 256] = x @ w[:, at : at + 256]: sixteen sums in registers, rows walked once."""
    z = _splat(_ZERO)
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = a8 = a9 = a10 = a11 = a12 = a13 = a14 = a15 = z
    p = at
    for i in range(x.size):
        v = _splat(x[i])
        a0 = _fma(v, _load(w, p), a0)
        a1 = _fma(v, _load(w, p + 16), a1)
        a2 = _fma(v, _load(w, p + 32), a2)
        a3 = _fma(v, _load(w, p + 48), a3)
        a4 = _fma(v, _load(w, p + 64), a4)
        a5 = _fma(v, _load(w, p + 80), a5)
        a6 = _fma(v, _load(w, p + 96), a6)
        a7 = _fma(v, _load(w, p + 112), a7)
        a8 = _fma(v, _load(w, p + 128), a8)
        a9 = _fma(v, _load(w, p + 144), a9)
        a10 = _fma(v, _load(w, p + 160), a10)
        a11 = _fma(v, _load(w, p + 176), a11)
        a12 = _fma(v, _load(w, p + 192), a12)
        a13 = _fma(v, _load(w, p + 208), a13)
        a14 = _fma(v, _load(w, p + 224), a14)
        a15 = _fma(v, _load(w, p + 240), a15)
        p += width
    _store(y, at, a0)
    _store(y, at + 16, a1)
    _store(y, at + 32, a2)
    _store(y, at + 48, a3)
    _store(y, at + 64, a4)
    _store(y, at + 80, a5)
    _store(y, at + 96, a6)
    _store(y, at + 112, a7)
    _store(y, at + 128, a8)
    _store(y, at + 144, a9)
    _store(y, at + 160, a10)
    _store(y, at + 176, a11)
    _store(y, at + 192, a12)
    _store(y, at + 208, a13)
    _store(y, at + 224, a14)
    _store(y, at + 240, a15)


@njit(**jit)
def _columns_64(x, w, at, width, y):
    """y[at : at + 64] = x @ w[:, at : at + 64]; four rows at a time, as four sums added at the end."""
    z = _splat(_ZERO)
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = z
    p = at
    for i in range(0, x.size, 4):
        v = _splat(x[i])
        a0 = _fma(v, _load(w, p), a0)
        a1 = _fma(v, _load(w, p + 16), a1)
        a2 = _fma(v, _load(w, p + 32), a2)
        a3 = _fma(v, _load(w, p + 48), a3)
        p += width
        v = _splat(x[i + 1])
        b0 = _fma(v, _load(w, p), b0)
        b1 = _fma(v, _load(w, p + 16), b1)
        b2 = _fma(v, _load(w, p + 32), b2)
        b3 = _fma(v, _load(w, p + 48), b3)
        p += width
        v = _splat(x[i + 2])
        c0 = _fma(v, _load(w, p), c0)
        c1 = _fma(v, _load(w, p + 16), c1)
        c2 = _fma(v, _load(w, p + 32), c2)
        c3 = _fma(v, _load(w, p + 48), c3)
        p += width
        v = _splat(x[i + 3])
        d0 = _fma(v, _load(w, p), d0)
        d1 = _fma(v, _load(w, p + 16), d1)
        d2 = _fma(v, _load(w, p + 32), d2)
        d3 = _fma(v, _load(w, p + 48), d3)
        p += width
    _store(y, at, _add(_add(a0, b0), _add(c0, d0)))
    _store(y, at + 16, _add(_add(a1, b1), _add(c1, d1)))
    _store(y, at + 32, _add(_add(a2, b2), _add(c2, d2)))
    _store(y, at + 48, _add(_add(a3, b3), _add(c3, d3)))


@njit(**jit)
def _columns_16(x, w, at, width, y):
    """y[at : at + 16] = x @ w[:, at : at + 16]; four rows at a time."""
    a = b = c = d = _splat(_ZERO)
    p = at
    for i in range(0, x.size, 4):
        a = _fma(_splat(x[i]), _load(w, p), a)
        b = _fma(_splat(x[i + 1]), _load(w, p + width), b)
        c = _fma(_splat(x[i + 2]), _load(w, p + 2 * width), c)
        d = _fma(_splat(x[i + 3]), _load(w, p + 3 * width), d)
        p += 4 * width
    _store(y, at, _add(_add(a, b), _add(c, d)))


@njit(**jit)
def matvec(x, w, y):
    """y = x @ w for x f4[n], w f4[n, m], y f4[m]; C-contiguous, n a multiple of 4, m of 16.

    The order of every sum follows from the shape alone.
    """
    m = w.shape[1]
    at = 0
    while at + 256 <= m:
        _columns_256(x, w, at, m, y)
        at += 256
    while at + 64 <= m:
        _columns_64(x, w, at, m, y)
        at += 64
    while at < m:
        _columns_16(x, w, at, m, y)
        at += 16


@njit(**jit)
def rms(x, y):
    """y = x / sqrt(mean(x x) + 1e-6), both f4[d]."""
    s = _splat(_ZERO)
    for i in range(0, x.size, 16):
        v = _load(x, i)
        s = _fma(v, v, s)
    scale = _ONE / np.sqrt(simd.total(s) / _f4(x.size) + _f4(1e-6))
    for i in range(x.size):
        y[i] = x[i] * scale


@njit(**jit)
def _mix(p, gap, cw, cb, lam, gap_w, h, conv, y):
    """Short convolution, gates and recurrence of one layer: p f4[4d] -> y f4[d]; h and conv move on."""
    d = h.size
    r, i, v, o = p[:d], p[d : 2 * d], p[2 * d : 3 * d], p[3 * d : 4 * d]
    v1, v2, v3 = conv[:d], conv[d : 2 * d], conv[2 * d : 3 * d]
    w0, w1, w2, w3 = cw[0], cw[1], cw[2], cw[3]
    for j in range(d):
        u = fma_f4(w3[j], v3[j], cb[j])
        u = fma_f4(w2[j], v2[j], u)
        u = fma_f4(w1[j], v1[j], u)
        u = fma_f4(w0[j], v[j], u)
        a = exp_f4(-lam[j] * sigmoid_f4(r[j]) * fma_f4(gap_w[j], gap, _ONE))
        rest = _ONE - a * a
        rest = rest if rest > _ZERO else _ZERO
        t = fma_f4(a, h[j], np.sqrt(rest) * (sigmoid_f4(i[j]) * u))
        y[j] = t * silu_f4(o[j])
        h[j] = t
        v3[j] = v2[j]
        v2[j] = v1[j]
        v1[j] = v[j]


@njit(**jit)
def _product(x, w, k, Wq, at, Ws, Wc, column, m, octets, y):
    """y = x @ w[k], or by the packed matrix of layer k at byte `at`, its columns from `column` on."""
    if Wq.shape[0] == 0:
        matvec(x, w[k], y)
    else:
        start, first = k * Wq.shape[1] + at, k * Ws.shape[1] + column
        quant.matvec(x, octets, Wq, start, m, Wc, Ws, first, y)


@njit(**jit)
def hidden_units(W2, Ws, d):
    """m of a model with weights W2 f4[L, m, d] or, in 8 bits, columns Ws f4[L, 6 d + 2 m]."""
    return W2.shape[1] if Ws.shape[0] == 0 else (Ws.shape[1] - 6 * d) // 2


@njit(**jit)
def _layer(x, n, p, y, f, gap, k, m, Wg, bg, cw, cb, lam, gap_w, Wo, W1, W2, Wq, Ws, Wc, state, octets):
    """x f4[d] through layer k; n f4[d], p f4[4 d], y f4[d], f f4[2 m] are scratch."""
    d, layers = x.size, bg.shape[0]
    f0, f1 = f[:m], f[m : 2 * m]
    rms(x, n)
    _product(n, Wg, k, Wq, 0, Ws, Wc, 0, 4 * d, octets, p)
    bias = bg[k]
    for j in range(4 * d):
        p[j] += bias[j]
    at = layers * d + k * 3 * d
    _mix(p, gap, cw[k], cb[k], lam[k], gap_w[k], state[k * d : (k + 1) * d], state[at : at + 3 * d], y)
    _product(y, Wo, k, Wq, 4 * d * d, Ws, Wc, 4 * d, d, octets, n)
    for j in range(d):
        x[j] += n[j]
    rms(x, n)
    _product(n, W1, k, Wq, 5 * d * d, Ws, Wc, 5 * d, 2 * m, octets, f)
    for j in range(m):
        f0[j] = silu_f4(f0[j]) * f1[j]
    _product(f0, W2, k, Wq, 5 * d * d + 2 * d * m, Ws, Wc, 5 * d + 2 * m, d, octets, n)
    for j in range(d):
        x[j] += n[j]


@njit(**jit)
def step(e, kind, gap, side, kind_emb, gap_emb, Wside, Wg, bg, cw, cb, lam, gap_w, Wo, W1, W2, Wq, Ws, Wc,
         final_gain, halves, state, scratch, octets, q_out):  # fmt: skip
    """One event through the LM. Changes state, fills q_out f4[d].

    e f4[d] (see `embed`); kind 0..7; gap 0..63 (see `gap_bucket`); side f4[S]; weights as in the module's
    head, with a leading axis of layers; halves: round state and q to half precision; state f4[(4 L + 1) d];
    scratch f4[>= 16 * d + 4 * m]; octets u1[>= max(d, m)] is scratch of 8-bit models.
    """
    d, layers = e.size, bg.shape[0]
    m = hidden_units(W2, Ws, d)
    x, n, p = scratch[:d], scratch[d : 2 * d], scratch[2 * d : 6 * d]
    y, f = scratch[6 * d : 7 * d], scratch[7 * d : 7 * d + 2 * m]
    kind_row, gap_row = kind_emb[kind], gap_emb[gap]
    for j in range(d):
        x[j] = e[j] + kind_row[j] + gap_row[j]
    for s in range(side.size):
        row, v = Wside[s], side[s]
        for j in range(d):
            x[j] = fma_f4(v, row[j], x[j])
    gap_value = _f4(gap) * _f4(1.0 / 16.0)
    for k in range(layers):
        _layer(x, n, p, y, f, gap_value, k, m, Wg, bg, cw, cb, lam, gap_w, Wo, W1, W2, Wq, Ws, Wc, state,
               octets)  # fmt: skip
    rms(x, n)
    at = 4 * layers * d
    for j in range(d):
        state[at + j] = n[j] * final_gain[j]
    if halves:
        half.round_all(state)
    for j in range(d):
        q_out[j] = state[at + j]


@njit(**jit)
def ring_token(ring, at):
    """The token i4 of the ring entry u1[E] at byte `at` (little-endian, as on disk)."""
    low = np.int64(ring[at]) | (np.int64(ring[at + 1]) << 8) | (np.int64(ring[at + 2]) << 16)
    return np.int32(low | (np.int64(ring[at + 3]) << 24))


@njit(**jit)
def rebuild(ring, entry_bytes, n_events, item, known, unknown, kind_emb, gap_emb, Wside, Wg, bg, cw, cb,
            lam, gap_w, Wo, W1, W2, Wq, Ws, Wc, final_gain, halves, state, scratch, octets, side,
            q_out):  # fmt: skip
    """LM state of a key from its ring of events, oldest first, starting at zeros; q_out of the newest.

    ring u1[R * entry_bytes]: token i4, kind u1, gap u1, side i1[entry_bytes - 6] (sixteenths); event
    number c lies at c % R and n_events have been written. side f4[S] is scratch. For a row whose state
    was made by another model. It is what the new model would have if the key began R events ago.
    """
    size = ring.size // entry_bytes
    for j in range(state.size):
        state[j] = _ZERO
    for j in range(q_out.size):
        q_out[j] = _ZERO
    for c in range(max(0, n_events - size), n_events):
        at = (c % size) * entry_bytes
        for s in range(side.size):
            side[s] = _f4(np.int8(ring[at + 6 + s])) * _f4(1.0 / 16.0)
        e = embed(ring_token(ring, at), item, known, unknown)
        step(e, ring[at + 4], ring[at + 5], side, kind_emb, gap_emb, Wside, Wg, bg, cw, cb, lam, gap_w,
             Wo, W1, W2, Wq, Ws, Wc, final_gain, halves, state, scratch, octets, q_out)  # fmt: skip


@njit(**jit)
def run(token, kind, gap, side, item, known, unknown, kind_emb, gap_emb, Wside, Wg, bg, cw, cb, lam, gap_w,
        Wo, W1, W2, Wq, Ws, Wc, final_gain, halves, state, scratch, octets, q):  # fmt: skip
    """A whole sequence: token i4[n], kind and gap u1[n], side f4[n, S] -> q f4[n, d]; state moves on."""
    for t in range(token.size):
        step(embed(token[t], item, known, unknown), kind[t], gap[t], side[t], kind_emb, gap_emb, Wside,
             Wg, bg, cw, cb, lam, gap_w, Wo, W1, W2, Wq, Ws, Wc, final_gain, halves, state, scratch, octets,
             q[t])  # fmt: skip
