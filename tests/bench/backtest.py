"""The fill simulation alone: ns an event on a made market, beside the same ledger as a plain Python loop."""

from __future__ import annotations

import math
import time
from collections import deque

import numpy as np

from replay_data.generate import stream_market
from streamai.backtest.fills import simulate
from tests.bench import names

EVENTS = 200_000
LATENCY_NS, FEE_BP = 1_000_000, 0.5


def _market():
    """Columns of made events and targets that follow queue imbalance, as lists would be given by a user."""
    m = stream_market(EVENTS, seed=7)
    imbalance = (m["bid_size"] - m["ask_size"]) / (m["bid_size"] + m["ask_size"])
    target = np.where(imbalance > 0.6, 1.0, np.where(imbalance < -0.6, -1.0, np.nan))
    instrument = np.unique(m["instrument"], return_inverse=True)[1].astype(np.int32)
    return instrument, m["event_ts_ns"], m["bid"], m["ask"], target


def _plain(instrument, ts_ns, bid, ask, target) -> tuple[int, float]:
    """What a user would write: the same fills, fees, marks and drawdown, in dicts and deques."""
    books, queues, accounts = {}, {}, {}
    fills, total, peak, fall, rate = 0, 0.0, 0.0, 0.0, FEE_BP * 1e-4

    def mark(k):
        nonlocal total, peak, fall
        a, (_, b, s) = accounts[k], books[k]
        value = a["cash"] - a["fees"] + a["position"] * 0.5 * (b + s)
        total += value - a["value"]
        a["value"] = value
        peak = max(peak, total)
        fall = max(fall, peak - total)

    for k, ts, b, s, wanted in zip(instrument, ts_ns, bid, ask, target):
        if k not in books:
            books[k], queues[k] = (ts, b, s), deque()
            accounts[k] = {"cash": 0.0, "fees": 0.0, "position": 0.0, "sent": 0.0, "due": 0, "value": 0.0}
        now, account, queue = max(ts, books[k][0]), accounts[k], queues[k]
        while queue and queue[0][0] < now:
            _, quantity = queue.popleft()
            price = books[k][2] if quantity > 0 else books[k][1]
            account["cash"] -= quantity * price
            account["fees"] += rate * abs(quantity) * price
            account["position"] += quantity
            fills += 1
            mark(k)
        books[k] = (now, b, s)
        mark(k)
        if not math.isnan(wanted) and wanted != account["sent"]:
            account["due"] = max(now + LATENCY_NS, account["due"])
            queue.append((account["due"], wanted - account["sent"]))
            account["sent"] = wanted
    return fills, total


@names("backtest/event")
def event() -> dict:
    """Ns an event, best of five; the peer's fills and net result are checked against ours."""
    market = _market()
    simulate(*market, LATENCY_NS, FEE_BP)
    best = math.inf
    for _ in range(5):
        begin = time.perf_counter_ns()
        result = simulate(*market, LATENCY_NS, FEE_BP)
        best = min(best, (time.perf_counter_ns() - begin) / EVENTS)
    lists = [column.tolist() for column in market]
    begin = time.perf_counter_ns()
    fills, net = _plain(*lists)
    peer = (time.perf_counter_ns() - begin) / EVENTS
    if fills != result.total.fills or not math.isclose(net, result.total.net, rel_tol=1e-6):
        raise SystemExit(f"backtest/event: peer made {fills} fills, {net}; ours {result.total}")
    return {
        "name": "backtest/event",
        "value": round(best, 1),
        "unit": "ns",
        "n": EVENTS,
        "peer": "plain Python loop",
        "peer_value": round(peer, 1),
        "limit": 250.0,
        "fills": result.total.fills,
    }
