"""Features only, through the whole engine: look-up, windows, ring, in batches of 256; one core.

W1 and W2 are the workloads of tests/bench/streams.py: four values for every event. Keys are known: each had
one event a day before. The first answers are checked against the plain Python of tests/bench/peers.py, and
the sawtooth windows against the exact ones.
"""

from __future__ import annotations

import time

import numpy as np

from streamai import (
    CLICK,
    FeatureView,
    count,
    ewm,
    mid,
    realised_vol,
    since_last,
    trade_imbalance,
    vwap,
)
from streamai.deadline import Tier
from streamai.engine import Engine
from streamai.events import CLICKS, EVENT, MARKET, TRADE, Events
from streamai.flow import Flow
from streamai.kernels.index import hash_all
from streamai.wire.codec import Codec
from tests.bench import names, peers, streams

BATCH, TURNS, LIMIT, JSON_LIMIT = 256, 3, 2_000_000, 600_000
DAY_NS = 86_400 * 10**9


class ExactClicks(FeatureView):
    """W1. The hottest user has 2,200 events in 5 minutes and 5,200 clicks in an hour."""

    source = "clicks"
    key = "user_id"
    events_5m = count("5m", exact=True, max=2304)
    clicks_1h = count("1h", kind=CLICK, exact=True, max=5632)
    events_decayed = count(half_life="10m")
    idle_ms = since_last()


class Clicks(FeatureView):
    """W1 with sawtooth windows of 16 hops."""

    source = "clicks"
    key = "user_id"
    events_5m = count("5m")
    clicks_1h = count("1h", kind=CLICK)
    events_decayed = count(half_life="10m")
    idle_ms = since_last()


class ExactMarket(FeatureView):
    """W2. The busiest instrument has 4,800 events a minute."""

    source = "market"
    key = "instrument"
    vwap_1m = vwap("1m", exact=True, max=6144)
    vol_1m = realised_vol("1m", exact=True, max=6144)
    mid_10s = ewm(mid(), half_life="10s", adjust=False)
    imbalance_100 = trade_imbalance(last=100)


def _events(topic: str, key: np.ndarray, t: np.ndarray, kind, columns: np.ndarray) -> Events:
    keys = int(key.max()) + 1
    written = [f"k{j}".encode() for j in range(keys)]
    at = np.zeros(keys + 1, "i8")
    np.cumsum([len(b) for b in written], out=at[1:])
    buffer = np.frombuffer(b"".join(written), "u1")
    h0, h1 = np.zeros(keys, "u8"), np.zeros(keys, "u8")
    hash_all(buffer, at, h0, h1)
    rows = np.zeros(len(key), EVENT)
    rows["hash0"], rows["hash1"], rows["event_ts_ns"], rows["kind"] = h0[key], h1[key], t, kind
    rows["offset"], rows["item"] = np.arange(len(key)), -1
    rows["key_at"], rows["key_len"] = at[key], np.diff(at)[key]
    return Events(topic, 0, rows, columns, buffer)


def _known(topic: str, events: Events, keys: int) -> Events:
    """One event of every key, a day before, without columns."""
    t = np.full(keys, int(events.rows["event_ts_ns"][0]) - DAY_NS)
    return _events(topic, np.arange(keys), t, 1, np.full((keys, events.columns.shape[1]), np.nan))


def _clicks() -> Events:
    """W1 as decoded events."""
    s = streams.w1()
    columns = np.full((len(s["user"]), len(CLICKS.columns)), np.nan)
    return _events("clicks", s["user"], s["ts_ms"] * 10**6, s["kind"] + 1, columns)


def _market() -> Events:
    """W2 as decoded events: every one a trade with the book after it."""
    s = streams.w2()
    columns = np.stack([s[c.name].astype("f8") for c in MARKET.columns], 1)
    return _events("market", s["instrument"], s["ts_us"] * 1000, TRADE, columns)


def _run(view, events: Events, keys: int) -> tuple[float, np.ndarray, Engine]:
    """(CPU seconds, f4[n, F] features, the engine afterwards) of one turn."""
    engine = Engine(Flow("bench", view.source, [view], ring=1), rows_max=keys, batch_max=BATCH)
    out = np.empty((len(events), len(view.features)), "f4")
    _feed(engine, _known(view.source, events, keys), np.empty((keys, out.shape[1]), "f4"))
    taken = _feed(engine, events, out)
    return taken, out, engine


def _feed(engine: Engine, events: Events, out: np.ndarray) -> float:
    began = time.process_time()
    for i in range(0, len(events), BATCH):
        out[i : i + BATCH] = engine.step(events[i : i + BATCH], Tier.PRIOR).features
    return time.process_time() - began


def _row(name: str, workload: str, view, events: Events, keys: int) -> tuple[dict, np.ndarray, Engine]:
    turns = [_run(view, events, keys) for _ in range(TURNS)]
    rate = round(len(events) / min(t[0] for t in turns))
    row = {"name": name, "value": rate, "unit": "events/s", "n": len(events), "limit": LIMIT}
    row |= {"peer": "numba, hand-written, same batches", "peer_value": round(peers.events_per_s(workload))}
    row |= {"row_bytes": 8 * turns[0][2].plan.cells}
    return row, turns[-1][1], turns[-1][2]


def _dropped(engine: Engine) -> int:
    """Events that the exact windows of all rows dropped."""
    at, cells = engine.layout.plan_at, engine.plan.cells
    rows = engine.slab.view("i8")[:, at : at + cells]
    return sum(sum(engine.plan.overflow(row).values()) for row in rows)


def _check(name: str, got: np.ndarray, want: np.ndarray, rows: np.ndarray) -> None:
    close = np.isclose(got[: len(want)], want, rtol=1e-5, atol=1e-8)
    if not close[rows[: len(want)]].all():
        raise AssertionError(f"{name}: answers differ from plain Python's")


@names("features/w1", "features/w1_sawtooth")
def w1() -> list[dict]:
    """Exact windows without overflow, and sawtooth windows with their error against the exact ones."""
    events, keys = _clicks(), 50_000
    exact, out, engine = _row("features/w1", "w1", ExactClicks, events, keys)
    want = peers.answers("w1")
    seen_before = want[:, 3] >= 0
    _check("features/w1", out, want, seen_before)
    exact["dropped"] = _dropped(engine)
    del engine
    saw, rough, _ = _row("features/w1_sawtooth", "w1", Clicks, events, keys)
    saw["mean_excess"] = round(float(rough[:, :2].sum() / out[:, :2].sum() - 1), 4)
    return [exact, saw]


@names("features/w1_json")
def w1_json() -> dict:
    """W1 with JSON bytes in and out: decode, exact windows, encode, in the same batches."""
    lines = streams.w1_json()
    day_before_ms = int(streams.w1()["ts_ms"][0]) - DAY_NS // 10**6
    known = [b'{"user_id":"u%d","kind":"view","event_ts_ms":%d}' % (k, day_before_ms) for k in range(50_000)]

    def feed(engine: Engine, codec: Codec, values: list[bytes]) -> float:
        """CPU seconds from bytes to bytes."""
        offsets, now_ns = np.arange(len(values)) + engine.position, np.full(len(values), time.time_ns())
        began = time.process_time()
        for at in range(0, len(values), BATCH):
            cut = slice(at, at + BATCH)
            events = codec.decoder.decode(values[cut], offsets[cut], now_ns[cut], "clicks", 0)
            codec.encode(engine.step(events, Tier.FULL))
        return time.process_time() - began

    def turn() -> float:
        engine = Engine(Flow("bench", "clicks", [ExactClicks], ring=1), rows_max=50_000, batch_max=BATCH)
        codec = Codec(engine.flow, engine)
        feed(engine, codec, known)
        return feed(engine, codec, lines)

    rate = round(len(lines) / min(turn() for _ in range(TURNS)))
    row = {"name": "features/w1_json", "value": rate, "unit": "events/s", "n": len(lines)}
    row["limit"] = JSON_LIMIT
    row["peer"] = "msgspec and numba, hand-written"
    return row | {"peer_value": round(peers.json_events_per_s(lines))}


@names("features/w2")
def w2() -> dict:
    """VWAP and realised volatility of the last minute exactly, EWMA of the mid, imbalance of 100 trades."""
    events, keys = _market(), 50
    row, out, engine = _row("features/w2", "w2", ExactMarket, events, keys)
    want = peers.answers("w2")
    first = np.unique(streams.w2()["instrument"], return_index=True)[1]
    later = np.ones(len(events), bool)
    later[first] = False
    _check("features/w2", out, want, later)
    row["dropped"] = _dropped(engine)
    return row
