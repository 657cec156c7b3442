"""Feed a topic at a fixed rate and watch what comes out: latency from the *intended* send time.

Open loop: an event is due at start + i / rate whatever became of the ones before it, so that a stall shows
in the latency of everything behind it and is not left out by a sender that waited too.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from hdrh.histogram import HdrHistogram

STAGES = ("in", "step", "out", "total")
"""in: intended send time to the worker's receive time (broker, fetch); step: receive time to encoded
output; out: from there to the consumed output (acks, broker, fetch); total: all of it."""


@dataclass
class Feed:
    """Events for one topic. A topic that is fed must be new: offsets are reckoned from 0.

    values, keys  bytes of n events in order; rate in events/s; partitions of the topic
    partition     i8[n] by key, so that a key's events stay in order
    position      i8[n] offset that the event gets in its partition
    """

    topic: str
    values: Sequence[bytes]
    keys: Sequence[bytes]
    rate: float
    partitions: int = 1
    partition: np.ndarray = field(init=False)
    position: np.ndarray = field(init=False)
    start_ns: int = field(default=0, init=False)
    sent: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.partition = np.array([zlib.crc32(k) % self.partitions for k in self.keys], "i8")
        self.position = np.empty(len(self.keys), "i8")
        self._index = []
        for p in range(self.partitions):
            mine = np.flatnonzero(self.partition == p)
            self.position[mine] = np.arange(len(mine))
            self._index.append(mine)

    def due_ns(self, i: int) -> int:
        """When event i is to be sent, whether or not it was."""
        return self.start_ns + int(i * 1e9 / self.rate)

    def index(self, partition: int, offset: int) -> int:
        """Which event lies at an offset of a partition."""
        return int(self._index[partition][offset])

    async def run(self, producer: AIOKafkaProducer, start_ns: int, stop: asyncio.Event) -> None:
        """Send every event when it is due, until the last one or `stop`; returns when all are acked."""
        self.start_ns, n, acks = start_ns, len(self.values), set()
        while self.sent < n and not stop.is_set():
            due = min(n, int((time.time_ns() - start_ns) * self.rate / 1e9) + 1)
            for i in range(self.sent, due):
                acks.add(
                    await producer.send(
                        self.topic,
                        self.values[i],
                        self.keys[i],
                        int(self.partition[i]),
                        self.due_ns(i) // 1_000_000,
                    )
                )
            self.sent = max(self.sent, due)
            acks = {a for a in acks if not a.done() or a.exception()}
            await asyncio.sleep(max(0.0005, (self.due_ns(self.sent) - time.time_ns()) / 1e9))
        if acks:
            await asyncio.gather(*acks)


async def feed(bootstrap: str, feeds: Sequence[Feed], lead_s: float, stop: asyncio.Event) -> None:
    """Run some feeds side by side with one producer; the first events are due `lead_s` after it connected."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, linger_ms=0)
    await producer.start()
    try:
        for f in feeds:
            await producer.partitions_for(f.topic)  # fetched now, or the first events would wait for it
        start_ns = time.time_ns() + int(lead_s * 1e9)
        await asyncio.gather(*(f.run(producer, start_ns, stop) for f in feeds))
    finally:
        await producer.stop()


class Latency:
    """Histograms of STAGES, in microseconds up to a minute."""

    def __init__(self) -> None:
        self.stage = {s: HdrHistogram(1, 60_000_000, 3) for s in STAGES}

    def add(self, due_ns: int, receive_ns: int, elapsed_ns: int, now_ns: int) -> None:
        """One output: when its event was due, was received, how long the worker had it, and now."""
        done_ns = receive_ns + elapsed_ns
        spans = (receive_ns - due_ns, elapsed_ns, now_ns - done_ns, now_ns - due_ns)
        for s, ns in zip(STAGES, spans):
            self.stage[s].record_value(min(59_999_999, max(1, ns // 1000)))

    def ms(self, stage: str, percentile: float) -> float:
        """A percentile in ms; NaN before the first output."""
        h = self.stage[stage]
        return h.get_value_at_percentile(percentile) / 1000 if h.total_count else float("nan")

    def max_ms(self) -> float:
        h = self.stage["total"]
        return h.get_max_value() / 1000 if h.total_count else float("nan")


async def watch(
    bootstrap: str, partitions: dict[str, int], take: Callable[[object, int], None], stop: asyncio.Event
) -> None:
    """Call `take(record, now_ns)` for every record of some topics (name -> partitions) from offset 0 on."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        fetch_max_wait_ms=50,
    )
    await consumer.start()
    try:
        consumer.assign([TopicPartition(t, p) for t, n in partitions.items() for p in range(n)])
        while not stop.is_set():
            got = await consumer.getmany(timeout_ms=50)
            now_ns = time.time_ns()
            for records in got.values():
                for record in records:
                    take(record, now_ns)
    finally:
        await consumer.stop()
