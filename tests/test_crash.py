"""The real pump, engine and RocksDB store, killed anywhere: outputs and state as if never stopped.

With late, older, bad and unknown events, few rows in memory, several checkpoints on the way, another model
and another catalogue (shuffled, grown, shrunk) at planned stops.
"""

from __future__ import annotations

import asyncio
import json
import random

import numpy as np
import pytest

from features.clicks import ItemClicks, UserClicks
from streamai.catalogue import Catalogue
from streamai.clock import ManualClock
from streamai.deadline import Cost, Tier
from streamai.engine import Engine, reopen_with
from streamai.flow import Counts, Flow
from streamai.kernels import context as c
from streamai.live.batch import Batch, Pace
from streamai.live.changing import ChangingPump
from streamai.live.stats import Stats
from streamai.model import weights
from streamai.replay.record import Records
from streamai.replay.run import Replay
from streamai.replay.versions import Served
from streamai.state.store import MemoryStore, Store
from streamai.wire import version
from streamai.wire.codec import Codec
from tests.made import ITEMS, click_values, random_model
from tests.pump import SlowSink

N, KILLS = 500, 12
COUNTS = (Counts(), Counts(tau_days=0.002, fast_tau_days=0.001), Counts(neighbours=16, window=3, scored=2))
NEVER = 10**15


def rough(values: list[bytes], rng: random.Random) -> list[bytes | None]:
    """The events with everything among them that a topic may hold."""
    out, newest = [], 0
    for value in values:
        event, dice = json.loads(value), rng.random()
        newest = max(newest, event["event_ts_ns"])
        if dice < 0.04:
            late_ns = rng.choice([10_000_000_001, 20_000_000_000])
            event |= {"event_ts_ns": newest - late_ns, "user_id": f"late{rng.randrange(5)}"}
        elif dice < 0.12:
            event["event_ts_ns"] = newest - rng.choice([0, 0, 10_000_000_000])
        elif dice < 0.14:
            event |= {"item_id": f"unheard of {rng.randrange(9)}", "price": 1e308}
        out.append(rng.choice([None, b"{bad"]) if dice > 0.98 else json.dumps(event).encode())
    return out


def phases(rng: random.Random, folder) -> list[tuple[Flow, int]]:
    """(flow, the offset up to which it runs): one to three flows, all of one name."""
    ids, counts = list(Catalogue.load(ITEMS).ids), rng.choice(COUNTS)
    models = [random_model(folder / f"m{i}", i, d) for i, d in enumerate((16, 16, 32))]
    ends = sorted(rng.sample(range(1, N), rng.randrange(3))) + [N]
    out = []
    for end in ends:
        some = rng.sample(ids, rng.choice([10, 16, 17, 100, 300, len(ids)]))
        items = Catalogue(some, available=[int(rng.random() < 0.9) for _ in some])
        model = rng.choice([None, *models])
        views = [UserClicks, ItemClicks]
        out.append((Flow("crash", "clicks", views, catalogue=items, counts=counts, model=model), end))
    return out


def state_of(flow: Flow, store: MemoryStore) -> dict:
    """Everything that a restart begins with."""
    engine = Engine(flow, store=store)
    counts = engine.counts
    arrays = (counts.ids, counts.w, counts.pop, counts.fast, counts.norm, counts.top_pop, counts.top_fast)
    return {
        "rows": dict(store.scan(b"k")),
        "items": engine.state_arrays["items_f8"].tobytes(),
        "counts": [a.tobytes() for a in arrays],
        "clock": engine.clock[[c.WATERMARK, c.LANDMARK, c.LATE_TOTAL]].tolist(),
        "position": engine.position,
        "catalogue": engine.catalogue_digest,
    }


def unbroken(runs: list[tuple[Flow, int]], values: list) -> tuple[dict, dict]:
    """(output by topic and id, state) of big batches in memory."""
    store, out, at = MemoryStore(), {}, 0
    for flow, end in runs:
        engine = Engine(flow, store=store)
        codec, offsets = Codec(flow, engine), np.arange(at, end)
        events = codec.decoder.decode(values[at:end], offsets, np.zeros(end - at, "i8"), "clicks", 0)
        done = 0
        while done < len(events):
            scored = engine.step(events[done:], Tier.FULL)
            for topic, (lines, _) in codec.encode(scored).items():
                out |= {(topic, json.loads(line)["id"]): line for line in lines}
            done += len(scored)
        at = engine.position = end
        engine.checkpoint()
    return out, state_of(flow, store)


class Worker:
    """One life of a pump: fed in random pieces, acknowledged and ticked at random, until `end` or a kill."""

    pieces = (1, 7, 40, 300)
    fed = 0  # end of what any life was handed

    def __init__(self, flow: Flow, folder, values: list, sink: SlowSink, rng: random.Random) -> None:
        self.values, self.sink, self.rng, self.clock = values, sink, rng, ManualClock(10**18)
        self.store, self.rows = Store(folder), rng.choice([2, 3, 8, 4096])
        self.batch = batch = rng.choice([1, 3, 64, 256])
        pace = Pace(rng.choice([1, NEVER]), rng.choice([1, 5, 50]), budget_ns=NEVER, batch_max=batch)
        self.pump = ChangingPump(
            flow, 0, self.opener(flow), lambda engine: Codec(flow, engine),
            sink, self.clock, Stats("crash"), lambda offset: None, Cost(1000, dict.fromkeys(Tier, 1000)),
            pace,
        )  # fmt: skip

    def opener(self, flow: Flow):
        return lambda: Engine(flow, 0, self.store, self.rows, self.batch)

    async def between(self) -> None:
        """What happens between two pieces."""

    async def feed(self, end: int) -> None:
        at = self.pump.engine.position
        while at < end:
            await self.between()
            n = min(self.rng.choice(self.pieces), end - at)
            Worker.fed = max(Worker.fed, at + n)
            offsets, now = np.arange(at, at + n), self.clock.now_ns()
            await self.pump.take(
                Batch(
                    "clicks",
                    0,
                    self.values[at : at + n],
                    [None] * n,
                    offsets,
                    offsets * 0,
                    now,
                    self.pump.epoch,
                )
            )
            at += n

    async def acknowledge(self) -> None:
        while True:
            if self.sink.waiting and self.rng.random() < 0.6:
                self.sink.acknowledge()
            if self.rng.random() < 0.3:
                self.clock.advance(1000)
                self.pump.tick()
            await asyncio.sleep(0)

    async def live(self, end: int, turns: int) -> bool:
        """Until the end, closed in order; or killed after so many turns of the loop: False."""
        feed, acks = (asyncio.ensure_future(f) for f in (self.feed(end), self.acknowledge()))
        while turns and not feed.done() and not acks.done():
            await asyncio.sleep(0)
            turns -= 1
        killed = not feed.done()
        if not killed:
            feed.result()
            await self.pump.close()
        feed.cancel(), acks.cancel()
        for ended in await asyncio.gather(feed, acks, return_exceptions=True):
            assert ended is None or isinstance(ended, asyncio.CancelledError), ended
        if killed:
            self.sink.waiting.clear()  # those acknowledgements never come
            self.store.close()
        return not killed


async def broken(runs: list[tuple[Flow, int]], values: list, folder, rng: random.Random) -> tuple[list, int]:
    """(topic, value) of all that was sent, and how often the worker was killed."""
    sink, kills = SlowSink(lag=NEVER), 0
    for flow, end in runs:
        turns = rng.choice([2, 3]) if kills < KILLS else NEVER
        while not await Worker(flow, folder, values, sink, rng).live(end, turns):
            kills += 1
            turns = rng.choice([2, 5, 30, 100]) if kills < KILLS else NEVER
    return [(topic, value) for topic, value, _ in sink.records], kills


class Changing(Worker):
    """A life that takes up other models as it goes, and begins with that of the store."""

    pieces = (1, 7, 15)

    def opener(self, flow: Flow):
        options = {"rows_max": self.rows, "batch_max": self.batch}
        served = (self.store.meta() or {}).get("model")
        first = next((m for m in self.models if weights.read(m).digest == served), self.models[0])
        return lambda: reopen_with(flow.but(model=first, output=flow.output), 0, self.store, **options)

    async def between(self) -> None:
        # events below may have been served: they are served again by the same model
        if self.pump.engine.position >= Worker.fed and self.rng.random() < 0.6:
            flow = self.pump.flow.but(model=self.rng.choice(self.models), output=self.pump.flow.output)
            options = {"rows_max": self.rows, "batch_max": self.batch}
            await self.pump.take_up(lambda: reopen_with(flow, 0, self.store, **options))


@pytest.mark.parametrize("seed", range(8))
def test_models_that_change_while_it_is_killed_are_replayed_where_they_changed(seed, tmp_path):
    rng, values = random.Random(seed), click_values(N, seed)
    models = [random_model(tmp_path / f"m{i}", i, d) for i, d in enumerate((16, 16, 32))]
    flow = Flow("crash", "clicks", [UserClicks, ItemClicks], catalogue=ITEMS, model=models[0])
    Changing.models, Worker.fed, sink, lives = models, 0, SlowSink(lag=NEVER), 0
    turns = 2
    while not asyncio.run(_life(Changing, flow, tmp_path / "0", values, sink, rng, turns)):
        lives += 1
        turns = rng.choice([2, 5, 30, 300]) if lives < 6 else NEVER
    at: dict[int, str] = {}
    for topic, value, _ in sink.records:
        if topic.endswith(".versions"):
            at[version.decode(value).offset] = version.decode(value).model
    by = {weights.read(m).digest: flow.but(model=m) for m in models}
    run = Replay(flow, versions={0: [Served(o, by[at[o]]) for o in sorted(at)]})
    expected = {}
    for step in run.feed(Records(0, values, np.arange(N), np.zeros(N, "i8"))):
        for topic, (lines, _) in run.partition(0).codec.encode(step.scored).items():
            expected |= {(topic, json.loads(line)["id"]): line for line in lines}
    results = [(t, v) for t, v, _ in sink.records if not t.endswith(".versions")]
    assert lives > 0 and len(at) > 1 and {(t, json.loads(v)["id"]) for t, v in results} == expected.keys()
    assert all(expected[t, json.loads(v)["id"]] == v for t, v in results)


async def _life(kind, flow, folder, values, sink, rng, turns) -> bool:
    return await kind(flow, folder, values, sink, rng).live(N, turns)


@pytest.mark.parametrize("seed", range(10))
def test_killed_anywhere_is_as_never_stopped(seed, tmp_path):
    rng = random.Random(seed)
    values, runs = rough(click_values(N, seed), rng), phases(rng, tmp_path)
    sent, kills = asyncio.run(broken(runs, values, tmp_path / "0", rng))
    expected, state = unbroken(runs, values)
    results = [(t, v) for t, v in sent if not t.endswith((".late", ".dead", ".versions"))]
    assert kills > 0 and {(t, json.loads(v)["id"]) for t, v in results} == expected.keys()
    assert all(expected[t, json.loads(v)["id"]] == v for t, v in results), "a double has other bytes"
    store = Store(tmp_path / "0")
    here = state_of(runs[-1][0], store)
    store.close()
    assert {name for name in state if here[name] != state[name]} == set()
