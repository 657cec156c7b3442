"""Whole record batches to Kafka, one per partition and call; acknowledgements come back in order."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from aiokafka import AIOKafkaProducer

BATCH_BYTES_MAX = 1_000_000  # a broker's own default limit is 1 MiB
VALUE_BYTES_MAX = 900_000  # a longer original value on the late or dead-letter topic is cut off here

Headers = list[tuple[str, bytes]]


class Chunk(NamedTuple):
    """Records with the same headers. keys: one a value; None = no key."""

    values: Sequence[bytes]
    keys: Sequence[bytes | None]
    headers: Headers


class Sink(Protocol):
    """Where a pump's outputs go: Kafka, or the simulator's own."""

    async def publish(self, partition: int, outputs: Mapping[str, Sequence[Chunk]]) -> asyncio.Future:
        """Hand over the records of some topics; the future is done when all of them are safe.

        Waits while the partition has too much under way. Records of a topic keep their order.
        """


class KafkaSink:
    """A started producer as a Sink.

    `create_batch` and `send_batch` cost 3 us a record, `send` 19 (research: a task and a future each).
    """

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self.producer = producer

    async def publish(self, partition: int, outputs: Mapping[str, Sequence[Chunk]]) -> asyncio.Future:
        sent = []
        for topic, chunks in outputs.items():
            batch = self.producer.create_batch()
            append = batch.append
            for values, keys, headers in chunks:
                for value, key in zip(values, keys, strict=True):
                    if append(timestamp=None, key=key, value=value, headers=headers) is None:  # full
                        sent.append(await self.producer.send_batch(batch, topic, partition=partition))
                        batch = self.producer.create_batch()
                        append = batch.append
                        append(timestamp=None, key=key, value=value, headers=headers)
            if batch.record_count():
                sent.append(await self.producer.send_batch(batch, topic, partition=partition))
        return asyncio.gather(*sent)
