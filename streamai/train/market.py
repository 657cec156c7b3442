"""Market events as sequences of tokens, and the labels of their future: what the mid did next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from streamai.events import MARKET
from streamai.kernels.tokens import MARKET_SIDE, market_tokens
from streamai.train.data import Sequences, by_key, gaps

DOWN, FLAT, UP, NO_LABEL = 0, 1, 2, -1
MS = 1_000_000


@dataclass(frozen=True)
class Horizon:
    """How long after an event its label looks: ns of event time, or a number of the key's events."""

    name: str
    ns: int = 0
    events: int = 0


HORIZONS = (
    Horizon("100ms", ns=100 * MS),
    Horizon("1s", ns=1_000 * MS),
    Horizon("5s", ns=5_000 * MS),
    Horizon("10ev", events=10),
    Horizon("100ev", events=100),
)


def mids(bid: np.ndarray, ask: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Mid f8[N] after each event, keys one after another; a missing price is the key's last, NaN before."""
    return 0.5 * (_filled(bid, start) + _filled(ask, start))


def _filled(x: np.ndarray, start: np.ndarray) -> np.ndarray:
    at = np.where(np.isfinite(x), np.arange(len(x)), -1)
    last = np.maximum.accumulate(at)
    first = np.repeat(start[:-1], np.diff(start))
    return np.where(last >= first, x[np.maximum(last, 0)], np.nan)


def labels(
    event_ts_ns: np.ndarray, mid: np.ndarray, start: np.ndarray, horizons: tuple[Horizon, ...] = HORIZONS
) -> tuple[np.ndarray, np.ndarray]:
    """Sign of the mid's move from right after each event to each horizon's end.

    Keys lie one after another, each in arrival order. Returns label i1[N, H] (DOWN, FLAT, UP; NO_LABEL where
    the data ends first, a mid is missing, or the key's next event has the same time, so that the book is
    half updated) and the row i8[N, H] whose mid ended it (for purging).
    By time: the last event not later than event time + horizon. A row out of order counts at the newest
    time before it, as nothing later was known then.
    """
    n = len(mid)
    label = np.full((n, len(horizons)), NO_LABEL, np.int8)
    end = np.full((n, len(horizons)), n, np.int64)
    for a, z in zip(start[:-1], start[1:]):
        seen = np.maximum.accumulate(event_ts_ns[a:z])
        settled = np.append(event_ts_ns[a + 1 : z] != event_ts_ns[a : z - 1], True)[: z - a]
        for h, horizon in enumerate(horizons):
            if horizon.events:
                stop = np.arange(horizon.events, z - a + horizon.events)
                whole = stop < z - a
            else:
                stop = np.searchsorted(seen, seen + horizon.ns, side="right") - 1
                whole = seen + horizon.ns <= seen[-1]
            stop = np.minimum(stop, z - a - 1)
            move = mid[a:z][stop] - mid[a:z]
            whole = whole & settled & np.isfinite(move)
            label[a:z, h] = np.where(whole, 1 + np.sign(np.nan_to_num(move)), NO_LABEL)
            end[a:z, h] = a + stop
    return label, end


def market_sequences(table: pl.DataFrame, *, time: bool = True) -> tuple[Sequences, np.ndarray]:
    """Sequences of a table of market events in arrival order, and the mid f8[N] after each of their events.

    table: `instrument`, `kind` (1..3), `event_ts_ns`, and the columns of `events.MARKET` (null = missing).
    """
    table, start, keys = by_key(table, MARKET.key)
    columns = np.stack([_floats(table, c.name) for c in MARKET.columns], 1)
    kind = table["kind"].to_numpy().astype(np.int32)
    token, side = np.zeros(len(table), np.int32), np.zeros((len(table), MARKET_SIDE), np.int8)
    market_tokens(kind, columns, start, token, side)
    row = table["row"].to_numpy().astype(np.int64)
    gap = gaps(table, time)
    seq = Sequences(start, token, kind, gap, side.astype(np.float32) / 16, row, keys)
    return seq, mids(columns[:, MARKET.column("bid")], columns[:, MARKET.column("ask")], start)


def _floats(table: pl.DataFrame, name: str) -> np.ndarray:
    if name not in table.columns:
        return np.full(len(table), np.nan)
    return table[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
