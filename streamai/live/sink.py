"""Whole record batches to Kafka, one per partition and call; acknowledgements come back in order."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from aiokafka import AIOKafkaProducer

from streamai.live.batch import Batch

BATCH_BYTES_MAX = 1_000_000  # a broker's own default limit is 1 MiB
VALUE_BYTES_MAX = 900_000  # a longer original value on the late or dead-letter topic is cut off here

WAITING_MAX = 20_000  # records of a partition that wait for the request before them

Headers = list[tuple[str, bytes]]


class Chunk(NamedTuple):
    """Records with the same headers. keys: one a value; None = no key."""

    values: Sequence[bytes]
    keys: Sequence[bytes | None]
    headers: Headers


class Outbox:
    """Records that are gathered for the next publish."""

    def __init__(self) -> None:
        self._chunks: dict[str, list[Chunk]] = {}

    def put(
        self, topic: str, values: Sequence[bytes], keys: Sequence[bytes | None], headers: Headers
    ) -> None:
        """Records with the same headers; keys: one a value."""
        self._chunks.setdefault(topic, []).append(Chunk(values, keys, headers))

    def put_original(self, topic: str, batch: Batch, j: int, headers: Headers) -> None:
        """Record j of a batch as it came, to the late or the dead-letter topic."""
        value = batch.values[j] or b""
        if len(value) > VALUE_BYTES_MAX:
            headers = [*headers, ("cut_off_from", b"%d" % len(value))]
            value = value[:VALUE_BYTES_MAX]
        self.put(topic, [value], [batch.keys[j]], headers)

    def take(self) -> dict[str, list[Chunk]]:
        """What has gathered; empty from here on."""
        chunks, self._chunks = self._chunks, {}
        return chunks


class Sink(Protocol):
    """Where a pump's outputs go: Kafka, or the simulator's own."""

    async def publish(self, partition: int, outputs: Mapping[str, Sequence[Chunk]]) -> asyncio.Future:
        """Hand over the records of some topics; the future is done when all of them are safe.

        Waits while the partition has too much under way. Records of a topic keep their order.
        """


class KafkaSink:
    """A started producer as a Sink.

    `create_batch` and `send_batch` cost 3 us a record, `send` 19 (research: a task and a future each).
    A partition has one request under way; what comes meanwhile is gathered into the next, so that the one
    who publishes never waits for a round trip.
    """

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self.producer = producer
        self._lanes: dict[int, _Lane] = {}

    async def publish(self, partition: int, outputs: Mapping[str, Sequence[Chunk]]) -> asyncio.Future:
        lane = self._lanes.get(partition)
        if lane is None:
            lane = self._lanes[partition] = _Lane(self.producer, partition)
        return await lane.put(outputs)


class _Lane:
    """The outputs of one partition on their way, in order."""

    def __init__(self, producer: AIOKafkaProducer, partition: int) -> None:
        self.producer, self.partition = producer, partition
        self.waiting: list[tuple[Mapping[str, Sequence[Chunk]], asyncio.Future]] = []
        self.records = 0  # in `waiting`
        self.room = asyncio.Event()
        self.task: asyncio.Task | None = None

    async def put(self, outputs: Mapping[str, Sequence[Chunk]]) -> asyncio.Future:
        while self.records >= WAITING_MAX:
            self.room.clear()
            await self.room.wait()
        done = asyncio.get_running_loop().create_future()
        self.waiting.append((outputs, done))
        self.records += sum(len(c.values) for chunks in outputs.values() for c in chunks)
        if self.task is None or self.task.done():
            self.task = asyncio.ensure_future(self._run())
        return done

    async def _run(self) -> None:
        while self.waiting:
            taken, self.waiting, self.records = self.waiting, [], 0
            self.room.set()
            error = None
            try:
                sent = [f for t in _topics(taken) for f in await self._send(t, taken)]
                await (sent[0] if len(sent) == 1 else asyncio.gather(*sent))
            except Exception as e:
                error = e
            for _, done in taken:
                if not done.cancelled():
                    done.set_result(None) if error is None else done.set_exception(error)

    async def _send(self, topic: str, taken) -> list[asyncio.Future]:
        """Whole record batches of one topic; their acknowledgements."""
        create, send = self.producer.create_batch, self.producer.send_batch
        batch, sent = create(), []
        for outputs, _ in taken:
            for values, keys, headers in outputs.get(topic, ()):
                for value, key in zip(values, keys, strict=True):
                    if batch.append(timestamp=None, key=key, value=value, headers=headers) is None:  # full
                        sent.append(await send(batch, topic, partition=self.partition))
                        batch = create()
                        batch.append(timestamp=None, key=key, value=value, headers=headers)
        if batch.record_count():
            sent.append(await send(batch, topic, partition=self.partition))
        return sent


def _topics(taken) -> list[str]:
    return list(dict.fromkeys(topic for outputs, _ in taken for topic in outputs))
