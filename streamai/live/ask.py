"""One request into a flow's source topic, and its answer out of the flow's output topic."""

from __future__ import annotations

import asyncio

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from streamai.errors import StreamaiError
from streamai.live.topic import partitions_of
from streamai.wire.output import parse_id

_TURN_MS = 50


async def ask(
    options: dict, source: str, topics: list[str], value: bytes, key: bytes, partition: int, wait_s: float
) -> tuple[str, bytes, str]:
    """Send `value` to a partition of `source`; (topic, value, cause) of the first record with its id.

    options  bootstrap_servers and the rest of a client's connection
    topics   where the answer may be: the output, and the dead letters, which have a cause

    StreamaiError if Kafka cannot be reached, a topic is not there, or nothing came in wait_s seconds.
    """
    producer = AIOKafkaProducer(**options, acks="all")
    consumer = AIOKafkaConsumer(**options, enable_auto_commit=False)
    try:
        places = [TopicPartition(topic, p) for topic in topics for p in await partitions_of(options, topic)]
        await consumer.start()
        await producer.start()
        consumer.assign(places)
        await consumer.seek_to_end(*places)
        for place in places:  # the end as of now, not as of the first fetch
            await consumer.position(place)
        sent = await producer.send_and_wait(source, value, key=key, partition=partition)
        return await asyncio.wait_for(_find(consumer, (source, partition, sent.offset)), wait_s)
    except TimeoutError:
        raise StreamaiError(
            f"no answer in {wait_s:g} s on {' or '.join(topics)}; is a worker of the flow running? "
            "(`streamai worker`, `streamai stats`)"
        ) from None
    except KafkaError as error:
        raise StreamaiError(f"Kafka at {options.get('bootstrap_servers')}: {error!r}") from error
    finally:
        await producer.stop()
        await consumer.stop()


async def _find(consumer: AIOKafkaConsumer, wanted: tuple[str, int, int]) -> tuple[str, bytes, str]:
    while True:
        for place, records in (await consumer.getmany(timeout_ms=_TURN_MS)).items():
            for record in records:
                if _id_of(record) == wanted:
                    return place.topic, record.value, dict(record.headers or ()).get("cause", b"").decode()


def _id_of(record) -> tuple[str, int, int] | None:
    """Place of the event that a record answers: in its value, or in a dead letter's header."""
    try:
        return parse_id(record.value or b"")
    except ValueError:
        name = dict(record.headers or ()).get("id", b"").decode()
    parts = name.rsplit("/", 2)
    return (parts[0], int(parts[1]), int(parts[2])) if len(parts) == 3 else None
