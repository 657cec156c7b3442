"""The loop over events: the hot path as the machine runs it.

One event at a time through shared state, so that a batch of n gives the bits of n batches of one. For
each event: late or not; the key's features; the item's features; counts; ring; LM; then, by tier, the
recommendation or the signal. Everything above the tier is state and happens in every tier.
"""

import numpy as np
from numba import njit

from . import context as c
from . import counts, jit, lm, windows
from .recommend import recommend
from .signal import signal
from .tokens import market_token

SILENT, PRIOR, RANK, FULL = range(4)
SCORED, LATE = 0, 1
_SIDE = np.float32(1.0 / 16.0)


@njit(**jit)
def _features(T, S, W, i, row, columns, slot):
    """Features of the key, then of the event's item, into W.features[i]."""
    shape = T.shape
    t, kind, item = row.event_ts_ns, row.kind, row.item
    token = np.uint64(row.item_hash)
    features = W.features[i]
    n = shape[c.KEY_F]
    at = shape[c.PLAN_AT]
    end = at + shape[c.KEY_CELLS]
    if n > 0:
        windows.update(
            T.key_derived, T.key_derived_p, T.key_acc, T.key_acc_p, T.key_out, T.key_out_p,
            S.rows_f8[slot, at:end], S.rows_i8[slot, at:end], t, S.rows_i8[slot, 0], kind, token,
            columns, W.x, features[:n],
        )  # fmt: skip
    if shape[c.ITEM_F] > 0:
        if item >= 0:
            if S.item_dirty[item] == 0:
                S.item_dirty[item] = 1
                S.item_dirty_list[S.clock[c.DIRTY_ITEMS]] = item
                S.clock[c.DIRTY_ITEMS] += 1
            windows.update(
                T.item_derived, T.item_derived_p, T.item_acc, T.item_acc_p, T.item_out, T.item_out_p,
                S.items_f8[item, 1:], S.items_i8[item, 1:], t, S.items_i8[item, 0], kind, token,
                columns, W.x, features[n:],
            )  # fmt: skip
            S.items_i8[item, 0] = max(S.items_i8[item, 0], t)
        else:
            features[n:] = np.float32(np.nan)


@njit(**jit)
def _recent(T, S, W, slot, limit):
    """The newest `limit` tokens of the key's ring into W.hist, most recent first; how many."""
    ring, entry = T.shape[c.RING], T.shape[c.ENTRY]
    at, seen = T.shape[c.RING_AT], S.rows_i8[slot, 1]
    n = min(min(seen, ring), limit)
    for k in range(n):
        W.hist[k] = lm.ring_token(S.rows_u1[slot], at + ((seen - 1 - k) % ring) * entry)
    return n


@njit(**jit)
def _push(T, S, W, slot, token, kind, gap, sides):
    """Write the event into the key's ring."""
    ring, entry = T.shape[c.RING], T.shape[c.ENTRY]
    at = T.shape[c.RING_AT] + (S.rows_i8[slot, 1] % ring) * entry
    row = S.rows_u1[slot]
    for b in range(4):
        row[at + b] = (np.int64(token) >> (8 * b)) & 255
    row[at + 4] = kind
    row[at + 5] = gap
    for s in range(sides):
        row[at + 6 + s] = np.uint8(W.side[s])
    S.rows_i8[slot, 1] += 1


@njit(**jit)
def _count(T, S, W, row, slot):
    """Link the event's item to the key's last ones, and keep what a restore needs to do it again."""
    n = _recent(T, S, W, slot, T.shape[c.HIST])
    at = S.clock[c.LOGGED]
    record = S.log[at]
    record.offset, record.event_ts_ns, record.item, record.n = row.offset, row.event_ts_ns, row.item, n
    for k in range(n):
        record.hist[k] = W.hist[k]
    S.clock[c.LOGGED] = at + 1
    counts.learn(S.ids, S.w, S.pop, S.fast, S.norm, S.top_pop, S.top_fast, S.clock, S.tau, W.hist, n,
                 row.item, row.event_ts_ns)  # fmt: skip


@njit(**jit)
def _remember(T, S, W, slot, token, kind, gap, sides):
    """Ring and LM state of the key; W.q is the LM's output. A row of another model is rebuilt first."""
    shape = T.shape
    has_lm = shape[c.HAS_LM] != 0
    if has_lm:
        state = S.rows_f4[slot, shape[c.LM_AT] : shape[c.LM_AT] + shape[c.LM_FLOATS]]
        if S.rows_u8[slot, 2] != S.digest[0]:
            ring_at = shape[c.RING_AT]
            ring = S.rows_u1[slot, ring_at : ring_at + shape[c.RING] * shape[c.ENTRY]]
            lm.rebuild(
                ring, shape[c.ENTRY], S.rows_i8[slot, 1], T.item, T.present, T.unknown, T.kind_emb, T.gap_emb,
                T.Wside, T.Wg, T.bg, T.cw, T.cb, T.lam, T.gap_w, T.Wo, T.W1, T.W2, T.final_gain,
                state, W.lm, W.side_f4[: T.Wside.shape[0]], W.q,
            )  # fmt: skip
            S.rows_u8[slot, 2] = S.digest[0]
        used = T.Wside.shape[0]
        for s in range(used):
            W.side_f4[s] = np.float32(W.side[s]) * _SIDE
        lm.step(
            lm.embed(token, T.item, T.present, T.unknown), kind & 7, gap, W.side_f4[:used],
            T.kind_emb, T.gap_emb, T.Wside, T.Wg, T.bg, T.cw, T.cb, T.lam, T.gap_w, T.Wo, T.W1, T.W2,
            T.final_gain, state, W.lm, W.q,
        )  # fmt: skip
    _push(T, S, W, slot, token, kind, gap, sides)


@njit(**jit)
def _advance(T, S, W, i, row, columns, slot):
    """All state of one event."""
    mode = T.shape[c.MODE]
    if S.dirty[slot] == 0:
        S.dirty[slot] = 1
        S.dirty_slots[S.clock[c.DIRTY_KEYS]] = slot
        S.clock[c.DIRTY_KEYS] += 1
    S.recent[slot] = 1
    first = S.rows_i8[slot, 1] == 0
    gap = 0 if first else lm.gap_bucket(row.event_ts_ns - S.rows_i8[slot, 0])
    _features(T, S, W, i, row, columns, slot)
    token = np.int32(0)
    sides = 0
    if mode == c.CLICKS:
        token = lm.token_of(row.item, row.item_hash)
        if row.item >= 0 and S.clock[c.LEARN] != 0:
            _count(T, S, W, row, slot)
    elif mode == c.MARKET:
        sides = T.shape[c.SIDES]
        book = S.rows_f8[slot, T.shape[c.BOOK_AT] : T.shape[c.BOOK_AT] + 8]
        token = np.int32(market_token(row.kind, columns, book, W.side))
    _remember(T, S, W, slot, token, row.kind, gap, sides)
    S.rows_i8[slot, 0] = max(S.rows_i8[slot, 0], row.event_ts_ns)


@njit(**jit)
def step(T, S, W, rows, columns, tiers):
    """Take n events: rows EVENT[n], columns f8[n, C], tiers u1[n]; W.slots[:n] are their rows in the slab.

    Fills rows :n of W.status, features, hidden, items, scores.
    """
    shape = T.shape
    for i in range(rows.shape[0]):
        row = rows[i]
        W.items[i] = -1
        W.scores[i] = np.float32(0)
        if row.event_ts_ns < S.clock[c.WATERMARK] - shape[c.DISORDER]:
            W.status[i] = LATE
            S.clock[c.LATE_TOTAL] += 1
            W.features[i] = np.float32(np.nan)
            W.hidden[i] = np.float32(0)
            continue
        W.status[i] = SCORED
        S.clock[c.WATERMARK] = max(S.clock[c.WATERMARK], row.event_ts_ns)
        slot = W.slots[i]
        _advance(T, S, W, i, row, columns[i], slot)
        if shape[c.HAS_LM] != 0:
            W.hidden[i] = W.q
        if tiers[i] == SILENT:
            continue
        if shape[c.MODE] == c.CLICKS:
            n = _recent(T, S, W, slot, shape[c.RING])
            recommend(T, S, W, i, n, row.event_ts_ns, tiers[i])
        elif shape[c.MODE] == c.MARKET and tiers[i] > PRIOR:
            signal(T, W, i)
