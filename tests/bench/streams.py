"""The events that streamai and its peers are measured on: deterministic, no file needed.

W1 clicks: 50,000 users and 20,000 items, Zipf(1.1), about 50 events/s, so that the hottest user holds
about 2,000 events in 5 minutes. W2 market: 50 instruments, about 1,000 events/s. Times rise strictly, so
that nobody's way of breaking ties matters.
"""

from __future__ import annotations

import functools

import numpy as np

KINDS = np.array([b"view", b"click", b"cart", b"buy"])


def _zipf(rng, keys: int, s: float, n: int) -> np.ndarray:
    p = np.arange(1, keys + 1) ** -s
    return rng.permutation(keys)[rng.choice(keys, n, p=p / p.sum())].astype("i8")


@functools.lru_cache(2)
def w1(n: int = 1_000_000) -> dict[str, np.ndarray]:
    """user i8[n], item i8[n], kind i8[n] (0 view, 1 click, 2 cart, 3 buy), ts_ms i8[n]."""
    rng = np.random.default_rng(20240601)
    user, item = _zipf(rng, 50_000, 1.1, n), _zipf(rng, 20_000, 1.1, n)
    kind = rng.choice(4, n, p=[0.70, 0.20, 0.07, 0.03])
    ts_ms = 1_700_000_000_000 + np.cumsum(1 + rng.exponential(19.0, n).astype("i8"))
    return {"user": user, "item": item, "kind": kind, "ts_ms": ts_ms}


@functools.lru_cache(2)
def w2(n: int = 1_000_000) -> dict[str, np.ndarray]:
    """instrument i8[n], ts_us i8[n], bid ask bid_size ask_size price size f8[n], side i8[n] (1 or -1)."""
    rng = np.random.default_rng(20240602)
    p = np.arange(1, 51) ** -0.5
    instrument = rng.choice(50, n, p=p / p.sum())
    ts_us = 1_700_000_000_000_000 + np.cumsum(1 + rng.exponential(999.0, n).astype("i8"))
    ticks = np.empty(n, "i8")
    step = rng.choice([-1, 0, 1], n, p=[0.3, 0.4, 0.3])
    for i in range(50):
        mine = instrument == i
        ticks[mine] = rng.integers(5_000, 50_000) + np.cumsum(step[mine])
    bid, ask = ticks / 100, (ticks + rng.choice([1, 2, 3], n, p=[0.7, 0.2, 0.1])) / 100
    bid_size, ask_size = ((1 + rng.lognormal(4, 1, n)).astype("i8").astype("f8") for _ in range(2))
    side = rng.choice([1, -1], n)
    return {
        "instrument": instrument,
        "ts_us": ts_us,
        "bid": bid,
        "ask": ask,
        "bid_size": bid_size,
        "ask_size": ask_size,
        "price": np.where(side > 0, ask, bid),
        "size": (1 + rng.lognormal(3, 1, n)).astype("i8").astype("f8"),
        "side": side,
    }


def w1_json(n: int = 200_000) -> list[bytes]:
    """The first n events of W1 as they come from Kafka."""
    s = {k: v[:n].tolist() for k, v in w1().items()}
    kinds = KINDS.tolist()
    return [
        b'{"user_id":"u%d","item_id":"i%d","kind":"%s","event_ts_ms":%d}' % (u, i, kinds[k], t)
        for u, i, k, t in zip(s["user"], s["item"], s["kind"], s["ts_ms"])
    ]
