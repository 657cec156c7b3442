"""A whole topic in, a whole topic out: what `streamai record` and `streamai produce` do on Kafka."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError
from aiokafka.partitioner import murmur2

from streamai.errors import StreamaiError

IN_FLIGHT = 16
"""Record batches under way at once."""

_QUIET_S = 0.5


async def record(
    options: dict,
    topic: str,
    seconds: float = 0.0,
    events: int = 0,
    from_end: bool = False,
    expect: Callable[[int], None] = lambda n: None,
) -> AsyncIterator[list]:
    """The records of a topic, in lists as they were fetched: each partition in offset order.

    options   bootstrap_servers and the rest of a client's connection
    seconds, events  stop after so long or so many; with neither, at the ends the partitions have now
    from_end  begin with what comes from now on instead of the oldest record
    expect    called with the number of records to come, where the ends are known

    StreamaiError if the topic does not exist or the broker cannot be reached.
    """
    places = [TopicPartition(topic, p) for p in await partitions_of(options, topic)]
    consumer = AIOKafkaConsumer(**options, enable_auto_commit=False, auto_offset_reset="earliest")
    await _start(consumer, options)
    try:
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        await (consumer.seek_to_end(*places) if from_end else consumer.seek_to_beginning(*places))
        begins = {place: await consumer.position(place) for place in places}
        open_ended = seconds > 0 or events > 0
        if not open_ended:
            expect(sum(ends[p] - begins[p] for p in places))
        stop_at, taken = time.monotonic() + seconds, 0
        while True:
            if not open_ended and all([await consumer.position(p) >= ends[p] for p in places]):
                return
            if seconds > 0 and time.monotonic() >= stop_at:
                return
            got = await consumer.getmany(timeout_ms=int(_QUIET_S * 200))
            for place, records in got.items():
                if not open_ended:
                    records = [r for r in records if begins[place] <= r.offset < ends[place]]
                if events > 0:
                    records = records[: events - taken]
                taken += len(records)
                if records:
                    yield records
                if 0 < events <= taken:
                    return
    finally:
        await consumer.stop()


async def produce(
    options: dict,
    topic: str,
    batches: Iterable[tuple[Sequence[bytes], Sequence[bytes | None], Sequence[int]]],
    rate: float = 0.0,
    acks: str | int = "all",
    sent: Callable[[int], None] = lambda n: None,
) -> int:
    """Send records, each to its partition, in order; returns how many, when all are acknowledged.

    batches  (values, keys, partitions), equally long
    rate     events/s, open loop: record i is due at start + i / rate, however the ones before it fared;
             0 = as fast as the broker takes them
    sent     called with the number of records just handed over
    """
    producer = AIOKafkaProducer(**options, acks=int(acks) if str(acks) in ("0", "1", "-1") else acks)
    await _start(producer, options)
    waiting: deque[asyncio.Future] = deque()
    n, start = 0, time.monotonic()
    try:
        for values, keys, partitions in batches:
            at = 0
            while at < len(values):
                stop = len(values)
                if rate > 0:
                    due = int((time.monotonic() - start) * rate) + 1 - n
                    if due <= 0:
                        await asyncio.sleep(max(0.0005, n / rate - (time.monotonic() - start)))
                        continue
                    stop = min(stop, at + due)
                part = slice(at, stop)
                waiting.extend(await _send(producer, topic, values[part], keys[part], partitions[part]))
                while len(waiting) > IN_FLIGHT:
                    await waiting.popleft()
                n += stop - at
                sent(stop - at)
                at = stop
        while waiting:
            await waiting.popleft()
    except KafkaError as error:
        raise StreamaiError(f"topic {topic}: {error!r} after {n} records") from error
    finally:
        await producer.stop()
    return n


async def partitions_of(options: dict, topic: str) -> list[int]:
    """The topic's partitions in order; StreamaiError if there is no such topic."""
    admin = AIOKafkaAdminClient(**options)
    await _start(admin, options)
    try:
        if topic not in await admin.list_topics():
            raise StreamaiError(f"no topic {topic!r} at {options['bootstrap_servers']}")
        described = await admin.describe_topics([topic])
    finally:
        await admin.close()
    return sorted(p["partition"] for p in described[0]["partitions"])


def kafka_partition(key: bytes, partitions: int) -> int:
    """Where Kafka's default partitioner puts a key (murmur2)."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


async def make_topic(options: dict, topic: str, partitions: int, replication: int = 1) -> None:
    """Make the topic; if it is there already it must have as many partitions, else StreamaiError."""
    admin = AIOKafkaAdminClient(**options)
    await _start(admin, options)
    try:
        if topic not in await admin.list_topics():
            answer = await admin.create_topics([NewTopic(topic, partitions, replication)])
            bad = [e for e in answer.topic_errors if e[1] not in (0, 36)]  # 36: it is there already
            if bad:
                raise StreamaiError(f"the broker did not make topic {topic}: {bad}")
    finally:
        await admin.close()
    have = len(await partitions_of(options, topic))
    if have != partitions:
        raise StreamaiError(
            f"topic {topic} has {have} partitions, not {partitions}: give --partitions {have}"
        )


async def _send(
    producer: AIOKafkaProducer,
    topic: str,
    values: Sequence[bytes],
    keys: Sequence[bytes | None],
    partitions: Sequence[int],
) -> list[asyncio.Future]:
    """Whole record batches: 3 us a record against 19 of `send`."""
    open_batches, futures = {}, []
    for value, key, partition in zip(values, keys, partitions, strict=True):
        batch = open_batches.get(partition)
        if batch is None:
            batch = open_batches[partition] = producer.create_batch()
        if batch.append(timestamp=None, key=key, value=value) is None:  # full
            futures.append(await producer.send_batch(batch, topic, partition=int(partition)))
            batch = open_batches[partition] = producer.create_batch()
            if batch.append(timestamp=None, key=key, value=value) is None:
                raise StreamaiError(f"topic {topic}: a record of {len(value)} bytes does not fit a batch")
    for partition, batch in open_batches.items():
        if batch.record_count():
            futures.append(await producer.send_batch(batch, topic, partition=int(partition)))
    return futures


async def _start(client, options: dict) -> None:
    try:
        await client.start()
    except KafkaError as error:
        await (client.close if hasattr(client, "close") else client.stop)()
        raise StreamaiError(
            f"cannot reach Kafka at {options.get('bootstrap_servers')}: {error}. "
            "Give --bootstrap HOST:PORT or STREAMAI_BOOTSTRAP"
        ) from error
