"""The loop over events: the hot path as the machine runs it.

One event at a time through shared state, so that a batch of n gives the bits of n batches of one. For
each event: late or not, features of the key and of the item (take.py); counts, ring, LM; then, by tier,
the recommendation or the signal. Everything above the tier is state and happens in every tier.
"""

import numpy as np
from numba import njit

from . import context as c
from . import counts, half, jit, lm, online, others
from .inputs import recent
from .lm_state import rebuild, state_of
from .recommend import recommend
from .request import answer
from .signal import signal
from .take import SCORED, push, take
from .tokens import market_token

SILENT, PRIOR, RANK, FULL = range(4)
_SIDE = np.float32(1.0 / 16.0)


@njit(**jit)
def _take(T, S, W, rows, columns, first, last, alone):
    """`take.take` of the engine's arrays."""
    shape = T.shape
    take(
        rows, columns, first, last, alone, shape[c.DISORDER], shape[c.PLAN_AT], shape[c.KEY_CELLS],
        shape[c.KEY_F], shape[c.ITEM_F], W.slots, W.status, W.features, W.gaps, W.x, S.clock, S.dirty,
        S.dirty_slots, S.recent, S.flat_f8, S.rows_f8, S.rows_i8, S.rows_u1, shape[c.RING_AT], shape[c.RING],
        shape[c.ENTRY], W.side,
        T.key_derived, T.key_derived_p, T.key_acc, T.key_acc_p, T.key_out, T.key_out_p,
        S.item_dirty, S.item_dirty_list, S.items_f8, S.items_i8,
        T.item_derived, T.item_derived_p, T.item_acc, T.item_acc_p, T.item_out, T.item_out_p,
    )  # fmt: skip


@njit(**jit)
def _count(T, S, W, row, slot):
    """Link the event's item to the key's last ones, and keep what a restore needs to do it again."""
    n = recent(T, S, W, slot, T.shape[c.HIST])
    at = S.clock[c.LOGGED]
    record = S.log[at]
    record.offset, record.event_ts_ns, record.item, record.n = row.offset, row.event_ts_ns, row.item, n
    for k in range(n):
        record.hist[k] = W.hist[k]
    S.clock[c.LOGGED] = at + 1
    counts.learn(S.ids, S.w, S.pop, S.fast, S.norm, S.top_pop, S.top_fast, S.clock, S.tau, W.hist, n,
                 row.item, row.event_ts_ns)  # fmt: skip
    if T.others_pop.size > 0:
        others.rejoin(S.norm, T.others_pop, S.joint, row.item)


@njit(**jit)
def _keep_item_features(T, S, W, i, item):
    """The item views' outputs behind their state: what the head is told of the item until its next event."""
    at = S.items_f4.shape[1] - T.shape[c.ITEM_F]
    for f in range(T.shape[c.ITEM_F]):
        S.items_f4[item, at + f] = W.features[i, T.shape[c.KEY_F] + f]


@njit(**jit)
def _read(T, S, W, slot, token, kind, gap):
    """The event through the LM: state in the row, output in W.q."""
    state = state_of(T, S, W, slot)
    if S.rows_u8[slot, 2] != S.digest[0]:
        rebuild(T, S, W, slot, state)
        S.rows_u8[slot, 2] = S.digest[0]
    used = T.Wside.shape[0]
    for s in range(used):
        W.side_f4[s] = np.float32(W.side[s]) * _SIDE
    lm.step(
        lm.embed(token, T.item, T.present, T.unknown), kind & 7, gap, W.side_f4[:used],
        T.kind_emb, T.gap_emb, T.Wside, T.Wg, T.bg, T.cw, T.cb, T.lam, T.gap_w, T.Wo, T.W1, T.W2,
        T.Wq, T.Ws, T.Wc, T.final_gain, T.shape[c.HALVES] != 0, state, W.lm, W.octets, W.q,
    )  # fmt: skip
    if T.shape[c.HALVES] != 0:
        at = 2 * T.shape[c.LM_AT]
        half.narrow_all(state, S.rows_u2[slot, at : at + state.size])


@njit(**jit)
def _advance(T, S, W, i, row, columns, slot):
    """Counts, LM and ring of one event whose features are taken."""
    shape = T.shape
    mode = shape[c.MODE]
    sides = 0
    if mode == c.MARKET:
        sides = shape[c.SIDES]
        book = S.rows_f8[slot, shape[c.BOOK_AT] : shape[c.BOOK_AT] + 8]
        token = np.int32(market_token(row.kind, columns, book, W.side))
    else:
        token = lm.token_of(row.item, row.item_hash)
    if shape[c.ONLINE] != 0:
        online.refresh(T, S)
        if W.gaps[i] > 0 and row.event_ts_ns >= shape[c.LEARN_FROM] and S.clock[c.LEARN] != 0:
            online.learn(T, S, W, slot, row.item, row.event_ts_ns)
    if mode == c.CLICKS and row.item >= 0 and S.clock[c.LEARN] != 0:
        _count(T, S, W, row, slot)
    if row.item >= 0 and shape[c.ITEM_F] > 0:
        _keep_item_features(T, S, W, i, row.item)
    if shape[c.HAS_LM] != 0:
        _read(T, S, W, slot, token, row.kind, W.gaps[i])
        W.hidden[i] = W.q
    push(S.rows_u1[slot], S.rows_i8[slot], shape[c.RING_AT], shape[c.RING], shape[c.ENTRY], token, row.kind,
         W.gaps[i], W.side, sides)  # fmt: skip
    if shape[c.ONLINE] != 0:
        online.keep_user(T, S, W, i, slot)


@njit(**jit)
def step(T, S, W, rows, columns, tiers):
    """Take n events: rows EVENT[n], columns f8[n, C], tiers u1[n]; W.slots[:n] are their rows in the slab.

    Fills rows :n of W.status, features, hidden, items, scores. Rows with W.asked are requests: they change
    no state, and get the time that they are answered for.
    """
    mode = T.shape[c.MODE]
    n = rows.shape[0]
    asking = W.asking[0] != 0
    if mode == c.PLAIN and T.shape[c.HAS_LM] == 0 and not asking:
        _take(T, S, W, rows, columns, 0, n, True)
        return
    alone = mode == c.PLAIN and T.shape[c.HAS_LM] == 0
    for i in range(n):
        W.items[i] = -1
        W.scores[i] = np.float32(0)
        W.hidden[i] = np.float32(0)
        if asking and W.asked[i, 0] != 0:
            answer(T, S, W, rows, columns, i, tiers[i])
            continue
        _take(T, S, W, rows, columns, i, i + 1, alone)
        if W.status[i] != SCORED or alone:
            continue
        slot = W.slots[i]
        _advance(T, S, W, i, rows[i], columns[i], slot)
        if tiers[i] == SILENT:
            continue
        if mode == c.CLICKS:
            recommend(T, S, W, i, slot, recent(T, S, W, slot, T.shape[c.RING]), rows[i].event_ts_ns, tiers[i],
                      T.shape[c.TOP_K], False, W.members[:0])  # fmt: skip
        elif mode == c.MARKET and tiers[i] > PRIOR:
            signal(T, W, i)
