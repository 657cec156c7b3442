"""The peer of live/*: the same decoder, engine and encoder in a bare aiokafka loop, without Faust.

No tiers, no checkpoints, no isolation of poison: what a framework may cost is measured against this.
"""

from __future__ import annotations

import asyncio
import sys
import time

import numpy as np
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from streamai.deadline import Tier
from streamai.engine import Engine
from streamai.live.cost import measure_cost
from streamai.wire.codec import Codec
from tests.bench.live import PARTITIONS, flow_of


async def publish(
    producer, partition: int, topic: str, values: list[bytes], keys: list
) -> list[asyncio.Future]:
    batch, futures = producer.create_batch(), []
    for value, key in zip(values, keys):
        if batch.append(key=key, value=value, timestamp=None) is None:
            futures.append(await producer.send_batch(batch, topic, partition=partition))
            batch = producer.create_batch()
            batch.append(key=key, value=value, timestamp=None)
    return [*futures, await producer.send_batch(batch, topic, partition=partition)]


async def run(kind: str, folder: str, bootstrap: str) -> None:
    flow = flow_of(kind, folder)
    measure_cost(flow)
    engines = [Engine(flow, p) for p in range(PARTITIONS)]
    codecs = [Codec(flow, e) for e in engines]
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, linger_ms=0, max_batch_size=1_000_000, enable_idempotence=True
    )
    consumer = AIOKafkaConsumer(
        flow.source, bootstrap_servers=bootstrap, group_id="bare", enable_auto_commit=False,
        auto_offset_reset="earliest", fetch_max_wait_ms=50,
    )  # fmt: skip
    await producer.start()
    await consumer.start()
    futures, committed = [], time.monotonic()
    while True:
        got = await consumer.getmany(timeout_ms=200, max_records=4096)
        for place, records in got.items():
            n, p = len(records), place.partition
            offsets = np.fromiter((r.offset for r in records), np.int64, n)
            times = np.fromiter((r.timestamp for r in records), np.int64, n) * 1_000_000
            values, keys = [r.value for r in records], [r.key for r in records]
            events = codecs[p].decoder.decode(values, offsets, times, flow.source, p, time.time_ns())
            at, out = 0, {}
            while at < len(events):
                scored = engines[p].step(events[at:], Tier.FULL)
                if len(scored) == 0:
                    engines[p].checkpoint()
                for topic, (made, which) in codecs[p].encode(scored).items():
                    mine = out.setdefault(topic, ([], []))
                    mine[0].extend(made)
                    mine[1].extend(keys[at + j] for j in which.tolist())
                at += len(scored)
            for topic, (made, named) in out.items():
                futures += await publish(producer, p, topic, made, named)
        if time.monotonic() - committed > 0.2:
            await asyncio.gather(*futures)
            futures.clear()
            await consumer.commit()
            committed = time.monotonic()


if __name__ == "__main__":
    uvloop.run(run(*sys.argv[1:]))
