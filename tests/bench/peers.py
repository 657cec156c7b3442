"""What a user would write without streamai, on the same events: plain Python, polars, and the near limit.

`w1_peers()` and `w2_peers()` are rows of their own (`python -m tests.bench peers`); `events_per_s("w1", ...)`
is the figure that features/w1 and features/w2 put beside theirs. The answers of every one are checked
against the plain Python.
"""

from __future__ import annotations

import functools
import math
import time
from collections import deque

import numpy as np

from tests.bench import bound, names, streams

CHECKED = 20_000  # events whose answers are compared


class UserState:
    """One user of W1 in plain Python: dict and deque, the state of `tests/bench/bound.py` W1."""

    __slots__ = ("clicks", "events", "last", "rate")

    def __init__(self) -> None:
        self.events, self.clicks, self.rate, self.last = deque(), deque(), 0.0, -1

    def update(self, ts: int, click: bool) -> tuple:
        events, clicks = self.events, self.clicks
        events.append(ts)
        low = ts - 300_000
        while events[0] <= low:
            events.popleft()
        if click:
            clicks.append(ts)
        low = ts - 3_600_000
        while clicks and clicks[0] <= low:
            clicks.popleft()
        if self.last < 0:
            dt, rate = -1, 1.0
        else:
            dt = ts - self.last
            rate = self.rate * 2.0 ** (-dt / 600_000) + 1.0
        self.rate, self.last = rate, ts
        return len(events), len(clicks), rate, dt


class InstrumentState:
    """One instrument of W2 in plain Python."""

    __slots__ = ("ewma", "flow", "flow_size", "last", "mid", "pq", "q", "rr", "signed", "window")

    def __init__(self) -> None:
        self.window, self.flow = deque(), deque()
        self.pq = self.q = self.rr = self.mid = self.ewma = self.signed = self.flow_size = 0.0
        self.last = -1

    def update(self, ts, bid, ask, price, size, side) -> tuple:
        mid = (bid + ask) * 0.5
        if self.last < 0:
            r2, ewma = 0.0, mid
        else:
            r2 = math.log(mid / self.mid) ** 2
            keep = 2.0 ** (-(ts - self.last) / 10_000_000)
            ewma = keep * self.ewma + (1.0 - keep) * mid
        window, pq = self.window, price * size
        window.append((ts, pq, size, r2))
        self.pq += pq
        self.q += size
        self.rr += r2
        low = ts - 60_000_000
        while window[0][0] <= low:
            _, a, b, c = window.popleft()
            self.pq -= a
            self.q -= b
            self.rr -= c
        signed, flow = side * size, self.flow
        flow.append((signed, size))
        self.signed += signed
        self.flow_size += size
        if len(flow) > 100:
            a, b = flow.popleft()
            self.signed -= a
            self.flow_size -= b
        self.mid, self.ewma, self.last = mid, ewma, ts
        return self.pq / self.q, math.sqrt(max(self.rr, 0.0)), ewma, self.signed / self.flow_size


def _arrays(workload: str, n: int) -> tuple:
    s = {k: v[:n] for k, v in (streams.w1() if workload == "w1" else streams.w2()).items()}
    if workload == "w1":
        return s["user"], s["kind"] == 1, s["ts_ms"]
    return tuple(s[k] for k in ("ts_us", "instrument", "bid", "ask", "price", "size", "side"))


def _python(workload: str, n: int, batch: int) -> tuple[float, np.ndarray]:
    """CPU seconds and answers of plain Python; events are tuples, as a decoder would give them."""
    rows = list(zip(*(a.tolist() for a in _arrays(workload, n))))
    state, out = {}, []
    began = time.process_time()
    if workload == "w1":
        for user, click, ts in rows:
            s = state.get(user)
            if s is None:
                s = state[user] = UserState()
            out.append(s.update(ts, click))
    else:
        for ts, instrument, *rest in rows:
            s = state.get(instrument)
            if s is None:
                s = state[instrument] = InstrumentState()
            out.append(s.update(ts, *rest))
    return time.process_time() - began, np.array(out, "f8")


def _numba(workload: str, n: int, batch: int) -> tuple[float, np.ndarray]:
    """CPU seconds and answers of the near limit in slices of `batch`."""
    arrays = _arrays(workload, n)
    out = np.empty((n, 4))
    make = bound.W1 if workload == "w1" else bound.W2
    make().run(*(a[:100] for a in arrays), out[:100])  # compile
    state = make()
    began = time.process_time()
    for i in range(0, n, batch):
        state.run(*(a[i : i + batch] for a in arrays), out[i : i + batch])
    return time.process_time() - began, out


def _polars(workload: str, n: int, batch: int) -> tuple[float, np.ndarray]:
    """CPU seconds and answers of polars with all rows at once: offline, not a stream."""
    import polars as pl

    s = {k: v[:n] for k, v in (streams.w1() if workload == "w1" else streams.w2()).items()}
    frame = pl.DataFrame(s)
    began = time.process_time()
    out = (_polars_w1 if workload == "w1" else _polars_w2)(pl, frame)
    return time.process_time() - began, out


def _polars_w1(pl, frame):
    scaled = (pl.col("ts_ms") - pl.col("ts_ms").first()) / 600_000.0
    lazy = frame.lazy().with_columns(
        t=pl.from_epoch("ts_ms", time_unit="ms"),
        click=(pl.col("kind") == 1).cast(pl.Int32),
        one=pl.lit(1, pl.Int32),
        x=scaled,
    )
    out = lazy.select(
        a=pl.col("one").rolling_sum_by("t", "5m").over("user"),
        b=pl.col("click").rolling_sum_by("t", "1h").over("user"),
        c=((2.0 ** pl.col("x")).cum_sum() / 2.0 ** pl.col("x")).over("user"),
        d=pl.col("ts_ms").diff().over("user").fill_null(-1),
    )
    return out.collect().to_numpy()


def _polars_w2(pl, frame):
    key = "instrument"
    lazy = frame.lazy().with_columns(
        t=pl.from_epoch("ts_us", time_unit="us"),
        mid=(pl.col("bid") + pl.col("ask")) * 0.5,
        pq=pl.col("price") * pl.col("size"),
        sq=pl.col("side") * pl.col("size"),
    )
    lazy = lazy.with_columns(r2=(pl.col("mid").log().diff() ** 2).fill_null(0.0).over(key))
    sums, last = pl.col("size").rolling_sum_by("t", "1m"), pl.col("size").rolling_sum(100, min_samples=1)
    out = lazy.select(
        a=(pl.col("pq").rolling_sum_by("t", "1m") / sums).over(key),
        b=pl.col("r2").rolling_sum_by("t", "1m").clip(0.0).sqrt().over(key),
        c=pl.col("mid").ewm_mean_by("t", half_life="10s").over(key),
        d=(pl.col("sq").rolling_sum(100, min_samples=1) / last).over(key),
    )
    return out.collect().to_numpy()


PEERS = {"python": _python, "numba": _numba, "polars": _polars}
EVENTS = {"python": 200_000, "numba": 1_000_000, "polars": 1_000_000}


@functools.lru_cache
def answers(workload: str) -> np.ndarray:
    """f8[CHECKED, 4]: what plain Python says about the first events of a workload."""
    return _python(workload, CHECKED, 1)[1]


def events_per_s(workload: str, peer: str = "numba", batch: int = 256) -> float:
    """Events a CPU second of a peer, best of three; its answers are checked. Measured once a process."""
    return _events_per_s(workload, peer, batch)


@functools.lru_cache
def _events_per_s(workload: str, peer: str, batch: int) -> float:
    n = EVENTS[peer]
    runs = [PEERS[peer](workload, n, batch) for _ in range(3)]
    got = runs[0][1][:CHECKED]
    right = answers(workload)
    close = np.isclose(got, right, rtol=1e-6, atol=1e-8).all(1)
    if not close.all():
        i = int(np.argmin(close))
        raise AssertionError(f"{peer} {workload}: event {i} is {got[i]}, not {right[i]}")
    return n / min(seconds for seconds, _ in runs)


def json_events_per_s(lines: list[bytes], batch: int = 256) -> float:
    """W1 of the near limit with JSON in and out by msgspec, in slices: events a CPU second, best of three."""
    import msgspec

    class In(msgspec.Struct):
        user_id: str
        kind: str
        event_ts_ms: int

    class Out(msgspec.Struct):
        id: int
        key: str
        event_ts_ms: int
        events_5m: int
        clicks_1h: int
        events_decayed: float
        idle_ms: int

    read, write = msgspec.json.Decoder(In).decode, msgspec.json.Encoder().encode

    def run() -> float:
        state, keys, out = bound.W1(), {}, np.empty((batch, 4))
        began = time.process_time()
        for at in range(0, len(lines), batch):
            events = [read(line) for line in lines[at : at + batch]]
            n = len(events)
            user = np.fromiter((keys.setdefault(e.user_id, len(keys)) for e in events), "i8", n)
            click = np.fromiter((e.kind == "click" for e in events), "?", n)
            state.run(user, click, np.fromiter((e.event_ts_ms for e in events), "i8", n), out[:n])
            for i, (e, (a, b, c, d)) in enumerate(zip(events, out[:n].tolist())):
                write(Out(at + i, e.user_id, e.event_ts_ms, int(a), int(b), c, int(d)))
        return time.process_time() - began

    _numba("w1", 1000, batch)  # compile
    return len(lines) / min(run() for _ in range(3))


def _row(workload: str, peer: str, title: str, batch: int = 256) -> dict:
    return {
        "name": f"peer/{workload}_{peer}",
        "value": round(events_per_s(workload, peer, batch)),
        "unit": "events/s/core",
        "n": EVENTS[peer],
        "peer": title,
        "limit": round(events_per_s(workload)),
    }


@names("peer/w1_numba", "peer/w1_python", "peer/w1_polars")
def w1_peers() -> list[dict]:
    """Clicks: four features for every event, keyed by user."""
    return [
        _row("w1", "numba", "near limit, slices of 256"),
        _row("w1", "python", "dict and deque"),
        _row("w1", "polars", "offline, all rows at once"),
    ]


@names("peer/w2_numba", "peer/w2_python", "peer/w2_polars")
def w2_peers() -> list[dict]:
    """Market: four features for every event, keyed by instrument."""
    return [
        _row("w2", "numba", "near limit, slices of 256"),
        _row("w2", "python", "dict and deque"),
        _row("w2", "polars", "offline, all rows at once"),
    ]
