"""The embedded broker keeps to the protocol, with both clients that are used: aiokafka and librdkafka."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import TopicAlreadyExistsError
from confluent_kafka import Consumer, Producer

from streamai.broker import Broker, start_broker_process


@pytest.fixture(scope="module")
def broker():
    with Broker() as b:
        yield b


@contextlib.asynccontextmanager
async def producer(b, **options):
    p = AIOKafkaProducer(bootstrap_servers=b.bootstrap, **options)
    await p.start()
    try:
        yield p
    finally:
        await p.stop()


@contextlib.asynccontextmanager
async def consumer(b, *topics, **options):
    c = AIOKafkaConsumer(*topics, bootstrap_servers=b.bootstrap, auto_offset_reset="earliest", **options)
    await c.start()
    try:
        yield c
    finally:
        await c.stop()


async def read(c, n, seconds=10):
    """n records of a consumer, or those that came in time."""
    out, end = [], time.monotonic() + seconds
    while len(out) < n and time.monotonic() < end:
        for records in (await c.getmany(timeout_ms=200)).values():
            out += records
    return out


def test_produce_fetch_headers_and_offsets_by_time(broker):
    async def run():
        async with producer(broker, enable_idempotence=True) as p:
            batch = p.create_batch()
            for i in range(100):
                batch.append(key=b"k%d" % i, value=b"v%d" % i, timestamp=1000 + i, headers=[("n", b"%d" % i)])
            meta = await (await p.send_batch(batch, "basics", partition=1))
            assert (meta.partition, meta.offset) == (1, 0)
            await p.send_and_wait("basics", b"last", partition=1, timestamp_ms=5000)
        tp = TopicPartition("basics", 1)
        async with consumer(broker) as c:
            c.assign([tp])
            got = await read(c, 101)
            found = await c.offsets_for_times({tp: 1050})
            ends = await c.end_offsets([tp])
            past = await c.offsets_for_times({tp: 9000})
        assert [r.offset for r in got] == list(range(101))
        assert [r.value for r in got[:100]] == [b"v%d" % i for i in range(100)]
        assert got[7].headers == (("n", b"7"),) and got[7].timestamp == 1007 and got[7].key == b"k7"
        assert found[tp].offset == 50 and ends[tp] == 101 and past[tp] is None

    asyncio.run(run())


def test_topics_are_created_once_with_their_partitions(broker):
    async def run():
        admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
        await admin.start()
        try:
            made = await admin.create_topics([NewTopic("made", 3, 1)])
            again = await admin.create_topics([NewTopic("made", 3, 1)])
            assert made.topic_errors[0][1] == 0 and again.topic_errors[0][1] == TopicAlreadyExistsError.errno
            described = await admin.describe_topics(["made"])
            assert len(described[0]["partitions"]) == 3
            await admin.delete_topics(["made"])
            assert "made" not in await admin.list_topics()
        finally:
            await admin.close()

    asyncio.run(run())


def test_a_group_of_two_shares_and_takes_over(broker):
    async def run():
        options = {"group_id": "two", "enable_auto_commit": False, "heartbeat_interval_ms": 100}
        async with producer(broker) as p, consumer(broker, "shared", **options) as a:
            for i in range(40):
                await p.send("shared", b"%d" % i, partition=i % 4)
            await p.flush()
            assert len(await read(a, 40)) == 40
            await a.commit()
            async with consumer(broker, "shared", **options) as b:
                for _ in range(50):
                    await asyncio.gather(a.getmany(timeout_ms=100), b.getmany(timeout_ms=100))
                    if len(a.assignment()) == len(b.assignment()) == 2:
                        break
                assert not a.assignment() & b.assignment()
                assert len(a.assignment() | b.assignment()) == 4
                for i in range(4):
                    await p.send("shared", b"new", partition=i)
                await p.flush()
                one, two = await asyncio.gather(read(a, 2), read(b, 2))
                assert [r.value for r in one + two] == [b"new"] * 4  # nothing that was committed comes again
                await asyncio.gather(a.commit(), b.commit())
            for _ in range(50):
                await a.getmany(timeout_ms=100)
                if len(a.assignment()) == 4:
                    break
            assert len(a.assignment()) == 4
            assert [await a.committed(TopicPartition("shared", i)) for i in range(4)] == [11] * 4

    asyncio.run(run())


def test_a_static_member_comes_back_without_a_rebalance(broker):
    async def run():
        options = {"group_id": "static", "enable_auto_commit": False, "heartbeat_interval_ms": 100}
        async with producer(broker) as p:
            await p.send_and_wait("places", b"x", partition=0)
        async with consumer(broker, "places", group_instance_id="a", **options):
            first = consumer(broker, "places", group_instance_id="b", **options)
            async with first as b:
                await b.getmany(timeout_ms=500)
                for _ in range(50):
                    if len(b.assignment()) == 2:
                        break
                    await b.getmany(timeout_ms=100)
                held, generation = b.assignment(), broker.groups["static"].generation
            async with consumer(broker, "places", group_instance_id="b", **options) as again:
                await again.getmany(timeout_ms=200)
                assert again.assignment() == held
                assert broker.groups["static"].generation == generation
                assert len(broker.groups["static"].members) == 2

    asyncio.run(run())


def test_a_dead_member_is_dropped_after_its_session(broker):
    options = {"group_id": "dead", "session_timeout_ms": 600, "heartbeat_interval_ms": 100}
    program = f"""
import asyncio, aiokafka
async def run():
    c = aiokafka.AIOKafkaConsumer("shared", bootstrap_servers="{broker.bootstrap}", **{options})
    await c.start()
    print("joined", flush=True)
    await asyncio.sleep(60)
asyncio.run(run())
"""
    gone = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert gone.stdout.readline() == "joined\n"
    gone.kill()
    gone.wait()
    gone.stdout.close()

    async def run():
        async with consumer(broker, "shared", **options) as c:
            end = time.monotonic() + 10
            while len(c.assignment()) < 4 and time.monotonic() < end:
                await c.getmany(timeout_ms=100)
            assert len(c.assignment()) == 4

    asyncio.run(run())
    assert len(broker.groups["dead"].members) <= 1


def test_a_repeated_idempotent_batch_is_stored_once(broker):
    """The connection is torn after the append: the producer sends the batch again."""
    torn = []

    def fault(method, request):
        if method == "produce" and request.topics[0][0] == "once" and not torn:
            torn.append(1)
            for topic, partitions in request.topics:
                for partition, raw in partitions:
                    broker.topic(topic)[partition].append(raw)
            return "drop"
        return None

    async def run():
        async with producer(broker, enable_idempotence=True) as p:
            await p.partitions_for("once")
            broker.fault = fault
            try:
                for i in range(3):
                    await p.send_and_wait("once", b"%d" % i, partition=0)
            finally:
                broker.fault = None
        async with consumer(broker) as c:
            c.assign([TopicPartition("once", 0)])
            assert [r.value for r in await read(c, 4, seconds=1)] == [b"0", b"1", b"2"]

    asyncio.run(run())
    assert torn


def test_librdkafka_reads_what_aiokafka_writes_in_a_process():
    with start_broker_process() as b:

        async def write():
            async with producer(b) as p:
                for i in range(200):
                    await p.send("mixed", b"%d" % i, partition=i % 4)
                await p.flush()

        asyncio.run(write())
        p = Producer({"bootstrap.servers": b.bootstrap, "enable.idempotence": True})
        for i in range(200, 400):
            p.produce("mixed", b"%d" % i, partition=i % 4)
        p.flush(10)
        c = Consumer({"bootstrap.servers": b.bootstrap, "group.id": "g", "auto.offset.reset": "earliest"})
        c.subscribe(["mixed"])
        got, end = set(), time.monotonic() + 20
        while len(got) < 400 and time.monotonic() < end:
            got.update(int(m.value()) for m in c.consume(500, 0.2) if not m.error())
        c.close()
        assert got == set(range(400))
