"""An answer to a request: what the key's row and the shared state say now. Changes neither.

W.asking i8[1] says whether the batch has requests, W.asked i8[B, 8] what each row asks (columns below, 0 in
the first = an event). Item lists lie end to end in W.members i4; W.filters u1[M, N] holds masks of the
items that will do.
"""

import numpy as np
from numba import njit

from . import context as c
from . import jit, windows
from .inputs import recent
from .lm_state import query
from .recommend import recommend
from .signal import signal
from .take import SCORED

# columns of W.asked; ends are where the next begins
IS, K, ONLY, GIVEN_AT, GIVEN_END, BARRED_END, MASK = range(7)
ASKED = 8
CANDIDATES_MAX = EXCLUDE_MAX = 1000
"""Items that a request may name of each."""
FEW, FEW_INDEXED = 1000, 4096
"""Items that fulfil a filter and are ranked one and all; more where the whole table is too large to scan."""
MEMBERS, MASKS = 65_536, 8
"""Room for the requests of one step: items that they name, and different masks."""
SILENT, PRIOR = 0, 1
_BARRED = 4  # mark in W.exclude of items that this request does not want
BOOK = 4  # bid, ask, bid_size, ask_size: the first columns of a market event, and of its row's book
_NAN, _SIXTEENTH = np.float32(np.nan), np.float32(1.0 / 16.0)


@njit(**jit)
def _features(T, S, W, columns, i, slot, t):
    """The key's features as of t with no event at t, in a copy of its windows; the item views' are NaN."""
    shape = T.shape
    features = W.features[i]
    for f in range(features.size):
        features[f] = _NAN
    if shape[c.KEY_F] == 0 or S.rows_i8[slot, 1] == 0:
        return
    at = shape[c.PLAN_AT]
    for j in range(W.cells_f8.size):
        W.cells_i8[j] = S.rows_i8[slot, at + j]
    windows.update(
        T.key_derived, T.key_derived_p, T.key_acc, T.key_acc_p, T.key_out, T.key_out_p, W.cells_f8,
        W.cells_i8, t, S.rows_i8[slot, 0], -1, np.uint64(0), columns[i], W.x, features[: shape[c.KEY_F]],
    )  # fmt: skip


@njit(**jit)
def _bar(W, asked):
    """Mark in W.exclude what the request does not want."""
    for j in range(asked[GIVEN_END], asked[BARRED_END]):
        item = W.members[j]
        if W.exclude[item] == 0:
            W.exclude[item] = _BARRED
    if asked[MASK] >= 0:
        mask = W.filters[asked[MASK]]
        for item in range(W.exclude.size):
            if mask[item] == 0 and W.exclude[item] == 0:
                W.exclude[item] = _BARRED


@njit(**jit)
def _unbar(W, asked):
    if asked[MASK] >= 0:
        for item in range(W.exclude.size):
            if W.exclude[item] == _BARRED:
                W.exclude[item] = 0
        return
    for j in range(asked[GIVEN_END], asked[BARRED_END]):
        item = W.members[j]
        if W.exclude[item] == _BARRED:
            W.exclude[item] = 0


@njit(**jit)
def _market(T, S, W, columns, i, slot):
    """The book as it stands into the row's columns, the newest event's sides into W.side_f4."""
    shape = T.shape
    book = S.rows_f8[slot, shape[c.BOOK_AT] : shape[c.BOOK_AT] + 8]
    for at in range(BOOK):
        columns[i, at] = book[at] if book[at] > 0.0 else np.nan
    newest = (S.rows_i8[slot, 1] - 1) % shape[c.RING]
    at = shape[c.RING_AT] + newest * shape[c.ENTRY] + 6
    for s in range(shape[c.SIDES]):
        W.side_f4[s] = np.float32(np.int8(S.rows_u1[slot, at + s])) * _SIXTEENTH


@njit(**jit)
def answer(T, S, W, rows, columns, i, tier):
    """Row i, a request: status, features, hidden, items and scores; its time becomes the one answered for.

    That is its own, or the newest event time of the partition where it names none or an older one. A key
    without events gets what is popular, or of the given items the popular ones first.
    """
    shape, slot, asked = T.shape, W.slots[i], W.asked[i]
    t = max(rows[i].event_ts_ns, S.clock[c.WATERMARK])
    rows[i].event_ts_ns = t
    W.status[i] = SCORED
    _features(T, S, W, columns, i, slot, t)
    known = S.rows_i8[slot, 1] > 0
    if shape[c.HAS_LM] != 0 and known:
        query(T, S, W, slot)
        W.hidden[i] = W.q
    if tier == SILENT:
        return
    if shape[c.MODE] == c.CLICKS:
        _bar(W, asked)
        grade = tier if known else np.uint8(PRIOR)
        given = W.members[asked[GIVEN_AT] : asked[GIVEN_END]]
        if asked[MASK] >= 0:
            W.probed[0] = W.probe_on.size  # who wants few of the items may find them in any list
        recommend(T, S, W, i, slot, recent(T, S, W, slot, shape[c.RING]), t, grade,
                  asked[K], asked[ONLY] != 0, given)  # fmt: skip
        W.probed[0] = shape[c.PROBED]
        _unbar(W, asked)
    elif shape[c.MODE] == c.MARKET and known:
        _market(T, S, W, columns, i, slot)
        if tier > PRIOR:
            signal(T, W, i)
