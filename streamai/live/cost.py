"""What a step costs on this machine: measured before partitions are taken; compiles the kernels too."""

from __future__ import annotations

import json
import time

import numpy as np

from streamai.deadline import Cost, Tier
from streamai.engine import Engine
from streamai.events import EVENT, Events
from streamai.flow import Flow
from streamai.settings import Settings
from streamai.wire.codec import Codec

MARGIN = 1.5  # over the median: other work of the machine, colder caches
EVENTS = 1024  # stepped before measuring, so that rings and counts are not empty
REPEATS = 15
KEYS = 64


def measure_cost(flow: Flow, settings: Settings | None = None) -> Cost:
    """Cost table of a flow: ns a call and ns an event by tier, from an engine in memory on made-up events."""
    settings = settings or Settings()
    batch = settings.engine.batch_max
    engine = Engine(flow, 0, None, rows_max=max(4 * KEYS, 256), batch_max=batch)
    made = _events(flow, engine, EVENTS + 3 * REPEATS * (batch + 1))
    at = 0

    def step(n: int, tier: Tier) -> int:
        """Take n events; returns ns."""
        nonlocal at
        took = 0
        while n:
            part = made[at : at + n]
            began = time.perf_counter_ns()
            done = len(engine.step(part, tier))
            took += time.perf_counter_ns() - began
            at, n = at + done, n - done
            if n or at % 4096 < done:
                engine.checkpoint()
        return took

    _warm_codec(flow, engine, made)
    for _ in range(EVENTS // min(batch, EVENTS)):
        step(min(batch, EVENTS), Tier.FULL)
    call, event = 0.0, {}
    for tier in (Tier.FULL, Tier.RANK, Tier.PRIOR):
        one = np.median([step(1, tier) for _ in range(REPEATS)])
        many = np.median([step(batch, tier) for _ in range(REPEATS)])
        each = max(0.0, many - one) / max(1, batch - 1)
        call = max(call, one - each)
        event[tier] = max(1, int(MARGIN * each))
    event[Tier.SILENT] = event[Tier.PRIOR]
    return Cost(int(MARGIN * call), event)


def _warm_codec(flow: Flow, engine: Engine, made: Events) -> None:
    """Compile what decodes and encodes, too: the first batch must not wait for it."""
    codec = Codec(flow, engine)
    record = {flow.schema.key: "k", "event_ts_ns": int(made.rows["event_ts_ns"][0])}
    now = made.rows["kafka_ts_ns"][:1]
    codec.decoder.decode([json.dumps(record).encode()], np.zeros(1, "i8"), now, flow.source, 0)
    for tier in Tier:
        codec.encode(engine.step(made[:1], tier))
    engine.checkpoint()
    engine.position = 0


def _events(flow: Flow, engine: Engine, n: int) -> Events:
    """n plausible events of the flow's schema, a millisecond apart."""
    rng = np.random.default_rng(1)
    rows = np.zeros(n, EVENT)
    key = rng.integers(0, KEYS, n)
    rows["hash0"] = (key.astype("u8") + 1) * np.uint64(0x9E3779B97F4A7C15)
    rows["hash1"] = key + 1
    rows["event_ts_ns"] = rows["kafka_ts_ns"] = 1_700_000_000_000_000_000 + np.arange(n) * 1_000_000
    rows["offset"] = np.arange(n)
    rows["kind"] = rng.choice(list(flow.schema.kinds.values()), n)
    rows["item"] = rng.integers(0, engine.catalogue.n, n) if engine.catalogue is not None else -1
    rows["item_hash"] = rng.integers(1, 1 << 32, n)
    names = [b"k%03d" % k for k in range(KEYS)]
    rows["key_at"], rows["key_len"] = key * 4, 4
    columns = np.empty((n, len(flow.schema.columns)))
    walk = 100 + np.cumsum(rng.integers(-1, 2, n)) * 0.01
    for j, column in enumerate(flow.schema.columns):
        columns[:, j] = {
            "bid": walk,
            "ask": walk + 0.01,
            "price": walk,
            "side": rng.integers(-1, 2, n),
        }.get(column.name, rng.integers(1, 100, n))
    return Events(flow.source, 0, rows, columns, np.frombuffer(bytearray().join(names), np.uint8))
