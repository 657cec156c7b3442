"""The pump: order, acknowledgements before the fence, crashes, poison. Its engine here is small."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from streamai.clock import ManualClock
from streamai.deadline import Cost, Tier
from streamai.errors import StateError, StepError
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


def test_every_event_once_in_order_and_the_state_on_close():
    async def run():
        b = Bench(users(200), lag=3)
        task = asyncio.ensure_future(b.run())
        await task
        while b.sink.waiting:
            b.sink.acknowledge()
        await b.pump.close()
        out, counts = expected(b.values)
        assert b.sink.values() == list(out.values())
        assert b.disk.rows == counts and b.disk.fence == 200 and b.disk.closed and b.disk.writes > 5

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(10))
def test_crashes_anywhere_lose_nothing(seed):
    """Outputs repeat with the same bytes, the state ends as if nothing had happened."""

    async def run():
        rng = random.Random(seed)
        b = Bench(users(150, seed), lag=rng.randrange(5), checkpoint_events=rng.choice([1, 5, 20]))
        for _ in range(6):
            for _ in range(rng.randrange(6)):
                await b.pump.take(b.next_batch(rng.choice([1, 3, 30])))
            if rng.random() < 0.5:
                b.pump.tick()
            b.sink.waiting.clear()  # those acknowledgements never come
            b.crash()
        b.sink.lag = 0
        await b.run()
        await b.pump.close()
        out, counts = expected(b.values)
        assert set(b.sink.values()) == set(out.values())
        assert b.disk.rows == counts and b.disk.fence == 150

    asyncio.run(run())


def test_late_and_bad_keep_their_bytes_and_advance_the_fence():
    async def run():
        values = [b"a", b"bad", b"late", b"a", b"bad", b"bad"]
        b = Bench(values)
        await b.run()
        await b.pump.close()
        out, counts = expected(values)
        assert b.sink.values() == list(out.values())
        assert [(v, h["id"]) for t, v, h in b.sink.records if t == LATE_TOPIC] == [(b"late", b"clicks/0/2")]
        dead = [(v, h["cause"], h["id"]) for t, v, h in b.sink.records if t == DEAD]
        assert dead == [(b"bad", b"bad thing", b"clicks/0/%d" % i) for i in (1, 4, 5)]
        assert b.disk.fence == 6 and b.disk.rows == counts
        assert b.stats.outcomes == {"scored": 2, "late": 1, "dead": 3, "poison": 0}

    asyncio.run(run())


@pytest.mark.parametrize("poison", [{7}, {0}, {49}, {7, 8, 30}])
def test_poison_goes_to_the_dead_letters_and_changes_no_state(poison):
    async def run():
        def fail(offset):
            if offset in poison:
                raise ZeroDivisionError("no good")

        b = Bench(users(50), fail)
        await b.run(20)
        await b.pump.close()
        out, counts = expected(b.values, poison)
        assert set(b.sink.values()) == set(out.values())
        assert b.disk.rows == counts and b.disk.fence == 50
        dead = {h["id"]: h for t, _, h in b.sink.records if t == DEAD}
        assert set(dead) == {b"clicks/0/%d" % o for o in poison}
        head = dead[b"clicks/0/%d" % min(poison)]
        assert head["cause"] == b"poison: ZeroDivisionError: no good" and b"in fail" in head["stack"]

    asyncio.run(run())


def test_a_failure_that_does_not_repeat_kills_no_event():
    async def run():
        failed = []

        def fail(offset):
            if offset == 11 and not failed:
                failed.append(offset)
                raise ValueError("once")

        b = Bench(users(40), fail)
        await b.run(20)
        await b.pump.close()
        out, counts = expected(b.values)
        assert set(b.sink.values()) == set(out.values()) and b.disk.rows == counts
        assert not b.sink.values(DEAD) and b.stats.failures == 1

    asyncio.run(run())


def test_on_error_stop_and_a_flow_that_always_fails_stop_the_worker():
    async def run(flow, message):
        def fail(offset):
            if offset >= 5:
                raise ValueError("always")

        b = Bench(users(60), fail, flow=flow)
        with pytest.raises(StepError, match=message):
            await b.run()
        fence = b.disk.fence
        await b.pump.close()
        assert b.disk.fence == fence and b.disk.closed  # a half done batch is never written

    asyncio.run(run(FLOW.but(on_error="stop"), "clicks/0/5 of flow test failed twice"))
    asyncio.run(run(FLOW, "failed twice"))


def test_a_store_that_fails_is_no_event_s_fault():
    async def run():
        def fail(offset):
            raise StateError("disk")

        b = Bench(users(5), fail)
        with pytest.raises(StateError):
            await b.run()

    asyncio.run(run())


def test_a_refused_publish_stops_before_the_fence():
    async def run():
        b = Bench(users(100))
        b.sink.fail_at = 30
        with pytest.raises(ConnectionError):
            await b.run()
            b.pump.tick()
        fence = b.disk.fence
        assert fence < 35
        with pytest.raises(ConnectionError):
            b.pump.tick()  # again: it is not forgotten
        await b.pump.close()
        assert b.disk.fence == fence

    asyncio.run(run())


def test_acknowledgements_that_never_come_do_not_hold_up_a_release():
    async def run():
        b = Bench(users(50), lag=100)
        await b.run()
        await b.pump.close(timeout_s=0.05)
        assert b.disk.closed and b.disk.fence == 0
        b.sink.waiting.clear()
        b.sink.lag = 0
        b.disk.closed = False
        b.crash()
        await b.run()
        await b.pump.close()
        assert b.disk.rows == expected(b.values)[1]

    asyncio.run(run())


def test_a_full_slab_forces_checkpoints():
    async def run():
        b = Bench(users(60), lag=2, room=3, checkpoint_events=1000)
        task = asyncio.ensure_future(b.run(25))
        while not task.done():
            await asyncio.sleep(0)
            while b.sink.waiting:
                b.sink.acknowledge()
        task.result()
        await b.pump.close()
        out, counts = expected(b.values)
        assert b.sink.values() == list(out.values()) and b.disk.rows == counts and b.disk.writes >= 20

    asyncio.run(run())


def test_silent_until_makes_state_without_outputs():
    async def run():
        b = Bench([b"bad", b"late", *users(40)])
        b.silent_until = 21
        b.open()
        await b.run(9)
        await b.pump.close()
        out, counts = expected(b.values)
        assert b.sink.values() == [v for o, v in out.items() if o >= 21] and b.disk.rows == counts
        assert len(b.sink.records) == len(b.sink.values())
        assert b.stats.tiers["silent"] == 19

    asyncio.run(run())


def test_batches_from_before_a_rewind_or_already_taken_are_dropped():
    async def run():
        b = Bench(users(20))
        first = b.next_batch(10)
        await b.pump.take(first)
        await b.pump.take(first)  # again, as after a seek to the fence
        stale = Batch(**{**first.__dict__, "epoch": 99})
        await b.pump.take(stale)
        await b.run()
        assert b.sink.values() == list(expected(b.values)[0].values())

    asyncio.run(run())


def test_tier_follows_the_deadline():
    async def run():
        b = Bench(users(30), budget_ns=1_000_000)
        await b.pump.take(b.next_batch(10))
        batch = b.next_batch(10)
        b.clock.advance(2_000_000)
        await b.pump.take(batch)
        assert b.stats.tiers["full"] == 10 and b.stats.tiers["prior"] == 10

    asyncio.run(run())
