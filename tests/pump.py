"""A pump on a bench: a disk, a sink and an engine small enough to see everything that they do."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from streamai.clock import ManualClock
from streamai.deadline import Cost, Tier
from streamai.events import CLICKS, EVENT, Events
from streamai.flow import Flow
from streamai.live.batch import Batch, Pace
from streamai.live.pump import Pump
from streamai.live.stats import Stats
from streamai.scored import LATE, SCORED, Scored
from streamai.wire.dead_letter import DeadLetter

FLOW = Flow(name="test", source="clicks", schema=CLICKS)
OUT, LATE_TOPIC, DEAD = FLOW.topics["features"], FLOW.topics["late"], FLOW.topics["dead"]


@dataclass
class Disk:
    """What survives a crash: rows and fence, written together."""

    rows: dict = field(default_factory=dict)
    fence: int = 0
    acked_below: object = lambda fence: True
    writes: int = 0
    closed: bool = False

    def write(self, checkpoint):
        assert self.acked_below(checkpoint.fence), "the fence passed an output that was not acknowledged"
        self.rows, self.fence = dict(checkpoint.rows), checkpoint.fence
        self.writes += 1

    def sync(self):
        assert not self.closed

    def close(self):
        self.closed = True


class CountingEngine:
    """Counts the events of each key. room: steps this many events, then only after a checkpoint."""

    def __init__(self, disk, fail=lambda offset: None, room=10**9):
        self.store, self.fail, self.room = disk, fail, room
        self.rows, self.position = dict(disk.rows), disk.fence
        self.since, self.model_digest = 0, "0" * 16
        self.free = room

    def step(self, events, tier):
        n = min(len(events), self.free)
        counts = np.zeros((n, 1), np.float32)
        status = np.zeros(n, np.uint8)
        for i in range(n):
            offset = int(events.rows["offset"][i])
            self.fail(offset)
            if events.key(i) == b"late":
                status[i] = LATE
            else:
                status[i] = SCORED
                self.rows[events.key(i)] = self.rows.get(events.key(i), 0) + 1
                counts[i, 0] = self.rows[events.key(i)]
            self.position = offset + 1
        self.free -= n
        none = np.zeros((n, 0), np.float32)
        tiers = np.full(n, tier, np.uint8)
        return Scored(events[:n], status, tiers, counts, none, none, none, np.full(n, np.nan))

    def barrier(self):
        return SimpleNamespace(rows=dict(self.rows), fence=self.position)

    def written(self, checkpoint):
        self.free = self.room


class TextCodec:
    """Values are keys; "bad" is no event. An output is offset:key:count."""

    def __init__(self, engine):
        self.decoder = self

    def decode(self, values, offsets, kafka_ts_ns, topic, partition, receive_ts_ns):
        good = [i for i, v in enumerate(values) if v != b"bad"]
        rows = np.zeros(len(good), EVENT)
        rows["offset"] = offsets[good]
        sizes = [len(values[i]) for i in good]
        rows["key_len"] = sizes
        rows["key_at"] = np.cumsum([0, *sizes])[:-1]
        raw = np.frombuffer(b"".join(values[i] for i in good), np.uint8)
        events = Events(topic, partition, rows, np.zeros((len(good), 3)), raw, receive_ts_ns)
        events.dead = [
            DeadLetter(int(offsets[i]), "bad thing", v) for i, v in enumerate(values) if v == b"bad"
        ]
        return events

    def encode(self, scored):
        which = [
            i for i in range(len(scored)) if scored.status[i] == SCORED and scored.tier[i] != Tier.SILENT
        ]
        values = [
            b"%d:%s:%d" % (scored.events.rows["offset"][i], scored.events.key(i), int(scored.features[i, 0]))
            for i in which
        ]
        return {OUT: (values, np.array(which, np.int64))}


class SlowSink:
    """Keeps what was published; acknowledges in order, after `lag` later publishes."""

    def __init__(self, lag=0):
        self.lag, self.waiting, self.records, self.acked = lag, [], [], []
        self.fail_at = None

    async def publish(self, partition, outputs):
        done = asyncio.get_running_loop().create_future()
        records = [
            (topic, value, dict(chunk.headers))
            for topic, chunks in outputs.items()
            for chunk in chunks
            for value, _ in zip(chunk.values, chunk.keys, strict=True)
        ]
        self.records += records
        self.waiting.append((done, records))
        if self.fail_at is not None and len(self.records) >= self.fail_at:
            self.waiting.remove((done, records))
            done.set_exception(ConnectionError("broker gone"))
            return done
        while len(self.waiting) > self.lag:
            self.acknowledge()
        await asyncio.sleep(0)
        return done

    def acknowledge(self):
        done, records = self.waiting.pop(0)
        self.acked += records
        done.cancelled() or done.set_result(None)

    def values(self, topic=OUT):
        return [v for t, v, _ in self.records if t == topic]


class Bench:
    """A topic of values, and a pump that reads it; `crash` forgets all but the disk."""

    def __init__(self, values, fail=lambda offset: None, lag=0, room=10**9, flow=FLOW, **pace):
        self.values, self.fail, self.room, self.flow = values, fail, room, flow
        self.disk, self.sink, self.clock, self.stats = Disk(), SlowSink(lag), ManualClock(10**18), Stats("t")
        self.disk.acked_below = self.acked_below
        self.pace = Pace(**({"checkpoint_ns": 10**12, "checkpoint_events": 5, "batch_max": 4} | pace))
        self.silent_until = 0
        self.open()

    def acked_below(self, fence):
        out = {int(v.split(b":")[0]) for t, v, _ in self.sink.acked if t == OUT}
        other = {int(h["id"].rsplit(b"/")[-1]) for t, _, h in self.sink.acked if t != OUT}
        return set(range(self.silent_until, fence)) <= out | other

    def open(self):
        self.pump = Pump(
            self.flow, 0, lambda: CountingEngine(self.disk, self.fail, self.room), TextCodec, self.sink,
            self.clock, self.stats, self.rewind, Cost(1000, dict.fromkeys(Tier, 1000)), self.pace,
            self.silent_until,
        )  # fmt: skip
        self.at = self.pump.engine.position

    crash = open

    def rewind(self, offset):
        self.at = offset

    def next_batch(self, n):
        part = self.values[self.at : self.at + n]
        offsets = np.arange(self.at, self.at + len(part))
        self.at += len(part)
        keys = [b"k%d" % o for o in offsets]
        return Batch("clicks", 0, part, keys, offsets, offsets, self.clock.now_ns(), self.pump.epoch)

    async def run(self, n=7):
        while self.at < len(self.values):
            await self.pump.take(self.next_batch(n))


def users(n, seed=0):
    rng = random.Random(seed)
    return [b"u%d" % rng.randrange(5) for _ in range(n)]


def expected(values, skip=()):
    """(outputs by offset, final counts) of the obvious loop."""
    counts, out = Counter(), {}
    for i, v in enumerate(values):
        if v not in (b"bad", b"late") and i not in skip:
            counts[v] += 1
            out[i] = b"%d:%s:%d" % (i, v, counts[v])
    return out, dict(counts)
