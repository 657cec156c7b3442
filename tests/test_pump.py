"""The pump: order, acknowledgements before the fence, crashes, poison. Its engine here is small."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition

from streamai.clock import ManualClock
from streamai.errors import StateError, StepError
from streamai.live.batch import Batch
from streamai.live.source import Source
from tests.pump import DEAD, FLOW, LATE_TOPIC, Bench, expected, users


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
        stale = Batch(**{**first.__dict__, "epoch": -1})
        await b.pump.take(stale)
        await b.run()
        assert b.sink.values() == list(expected(b.values)[0].values())

    asyncio.run(run())


def test_a_batch_that_waited_while_its_partition_went_and_came_back_is_dropped():
    """The partition was closed at an older fence (a slow sink): what lies between would be lost."""

    async def run():
        b = Bench(users(30))
        b.next_batch(10)
        waiting = b.next_batch(10)
        b.crash()
        await b.pump.take(waiting)
        await b.run()
        await b.pump.close()
        assert b.sink.values() == list(expected(b.values)[0].values()) and b.stats.gap == 0

    asyncio.run(run())


def test_a_partition_that_rewinds_while_the_channel_is_full_is_read_again():
    """One fetch brought both partitions; its second batch must not pass for one of after the rewind."""
    pumps = {p: SimpleNamespace(epoch=p, engine=SimpleNamespace(position=0)) for p in (0, 1)}
    got = {
        TopicPartition("clicks", p): [SimpleNamespace(value=b"", key=b"", offset=9, timestamp=1)]
        for p in pumps
    }

    class Channel(list):
        async def put(self, batch):
            self.append(batch)
            pumps[1].epoch = 7
            source.should_stop = len(self) == 2

    async def getmany(**options):
        return got

    channel, clock = Channel(), ManualClock(1)
    app = SimpleNamespace(batches=channel, stats=SimpleNamespace(end={}))
    source = SimpleNamespace(
        should_stop=False, generation=0, clock=clock, app=app, partitions=SimpleNamespace(pumps=pumps),
        consumer=SimpleNamespace(getmany=getmany, highwater=lambda place: 10),
    )  # fmt: skip
    source._batches = lambda *args: Source._batches(source, *args)
    asyncio.run(Source.fetch.fun(source))
    assert [(b.partition, b.epoch) for b in channel] == [(0, 0), (1, 1)]


def test_a_topic_that_begins_again_while_it_is_read_stops_the_worker():
    """Else its records would be dropped as ones that were taken before."""
    pump = SimpleNamespace(epoch=0, engine=SimpleNamespace(position=100))
    source = SimpleNamespace(
        app=SimpleNamespace(stats=SimpleNamespace(end={})),
        consumer=SimpleNamespace(highwater=lambda place: 10),
        partitions=SimpleNamespace(pumps={0: pump}, folder=lambda partition: "state/0"),
    )  # fmt: skip

    def batches(offset):
        record = SimpleNamespace(value=b"", key=b"", offset=offset, timestamp=1)
        return Source._batches(source, {TopicPartition("clicks", 0): [record]}, 1)

    assert [b.offsets.tolist() for b in batches(100)] == [[100]]
    with pytest.raises(StateError, match="clicks/0 began again at offset 99, behind 100"):
        batches(99)


@pytest.mark.parametrize("end, silent_until", [(50, 0), (200, 100)])
def test_a_group_that_stands_beyond_the_end_of_a_new_topic_silences_nothing(end, silent_until):
    pump = SimpleNamespace(engine=SimpleNamespace(position=0), silent_until=0)
    source = SimpleNamespace(
        log=SimpleNamespace(warning=lambda *args: None), app=SimpleNamespace(stats=SimpleNamespace(end={})),
        partitions=SimpleNamespace(pumps={}),
        consumer=SimpleNamespace(seek=lambda *args: None, resume=lambda *args: None),
    )  # fmt: skip
    Source._start(source, pump, TopicPartition("clicks", 0), 0, end, committed=100)
    assert pump.silent_until == silent_until


def test_tier_follows_the_deadline():
    async def run():
        b = Bench(users(30), budget_ns=1_000_000)
        await b.pump.take(b.next_batch(10))
        batch = b.next_batch(10)
        b.clock.advance(2_000_000)
        await b.pump.take(batch)
        assert b.stats.tiers["full"] == 10 and b.stats.tiers["prior"] == 10

    asyncio.run(run())
