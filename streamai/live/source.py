"""The Faust service that owns the Kafka clients: group, assignment, seek to the fence, batches.

Rules, each paid for once (research/faust.md 1 and 2):
- the generation is read AFTER getmany, which may wait through a rebalance and return the next one's records
- nothing waits for a commit; a refused one is a log line
- never `x and await f()` as the last statement of a try: CPython 3.11 lets the exception pass the handler
"""

from __future__ import annotations

import asyncio
import gc
import logging

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import ConsumerStoppedError, KafkaError, KafkaTimeoutError, UnknownTopicOrPartitionError
from mode import Service

from streamai.errors import StateError, StreamaiError
from streamai.live.batch import Batch
from streamai.live.connection import connection
from streamai.live.sink import BATCH_BYTES_MAX, KafkaSink
from streamai.live.topic import make_topic

RECORDS_MAX = 4096  # of one fetch, over all partitions
TICK_S = 0.02
COMMIT_S = 1.0
LOOK_S = 1.0  # at the weights file


class Source(Service, ConsumerRebalanceListener):
    """Reads the flow's topic and puts partition batches into the app's channel.

    `app` is set by live.app: the service is made by Faust, last of all and so stopped first, while the agent
    is still there to finish what is under way.
    """

    app = None
    abstract = False

    async def on_start(self) -> None:
        app = self.app
        app.source = self
        app.flow_control.resume()  # else put() waits for Faust's own consumer, which is off
        self.flow, self.partitions, self.clock = app.flow, app.pump, app.pump.clock
        self.generation = 0
        self.ready = False
        self.polled_ns = 0  # not yet
        self._opening: set[asyncio.Task] = set()
        kafka = app.settings.kafka
        options = connection(kafka)
        await asyncio.to_thread(self.partitions.prepare)
        gc.collect()
        gc.freeze()  # one full collection over numba's heap takes 60 ms
        gc.set_threshold(50_000, 20, 100)
        # Faust's spinner (log level warn, error) sets the root logger to DEBUG: aiokafka then makes a record
        # a request only to drop it, 7 % of the worker's time
        logging.getLogger("aiokafka").setLevel(logging.INFO)
        self.producer = AIOKafkaProducer(
            **options, linger_ms=0, max_batch_size=BATCH_BYTES_MAX, acks="all",
            enable_idempotence=kafka.idempotence,
        )  # fmt: skip
        self.consumer = AIOKafkaConsumer(
            **options,
            group_id=kafka.group or self.flow.name,
            group_instance_id=kafka.instance or None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=kafka.fetch_max_wait_ms,
            session_timeout_ms=kafka.session_timeout_ms,
            heartbeat_interval_ms=min(3000, kafka.session_timeout_ms // 6),
            rebalance_timeout_ms=max(30_000, kafka.session_timeout_ms),
        )
        self.consumer.subscribe([self.flow.source], listener=self)
        try:
            await self.producer.start()
            await self._make_topics(options, kafka)
            await self.consumer.start()
        except KafkaError as e:
            raise StreamaiError(
                f"cannot work with Kafka at {options['bootstrap_servers']}: {e!r}. "
                "Is it running, and are [kafka] security and log-in right?"
            ) from e
        self.sink = KafkaSink(self.producer)

    async def _make_topics(self, options: dict, kafka) -> None:
        """The output topics, with the source's partition count, where they are missing."""
        try:
            count = len(await self.producer.partitions_for(self.flow.source))
        except (UnknownTopicOrPartitionError, KafkaTimeoutError) as e:
            raise StreamaiError(
                f"no topic {self.flow.source!r} at {options['bootstrap_servers']}: make it first, "
                f"or `streamai produce FILE {self.flow.source}`"
            ) from e
        if kafka.create_topics:
            for topic in sorted(self.partitions.topics):
                await make_topic(options, topic, count, kafka.replication)

    # --- reading

    @Service.task
    async def fetch(self) -> None:
        """Poll, stamp, put. The bounded channel makes put() wait, then nothing is polled or fetched."""
        try:
            while not self.should_stop:
                got = await self.consumer.getmany(timeout_ms=200, max_records=RECORDS_MAX)
                received_ns = self.clock.now_ns()
                self.polled_ns = self.clock.monotonic_ns()
                generation = self.generation  # AFTER getmany
                # epochs too are of now: a pump may rewind while put() waits for the partition before it
                for batch in self._batches(got, received_ns):
                    if generation != self.generation or self.should_stop:
                        break  # revoked while put() waited: the next owner begins at the fence
                    await self.app.batches.put(batch)
        except ConsumerStoppedError:
            if not self.should_stop:
                raise  # -> the worker stops with exit code 1

    def _batches(self, got: dict, received_ns: int) -> list[Batch]:
        """Batches of the partitions that are open; another one seeks to its fence when it is."""
        out = []
        for place, records in got.items():
            pump = self.partitions.pumps.get(place.partition)
            if pump is not None:
                if records[0].offset < pump.engine.position:
                    raise StateError(
                        f"{place.topic}/{place.partition} began again at offset {records[0].offset}, behind "
                        f"{pump.engine.position}: the topic was made anew while it was read. Remove "
                        f"{self.partitions.folder(place.partition)} to begin again"
                    )
                self.app.stats.end[place.partition] = self.consumer.highwater(place) or 0
                out.append(_batch(place, records, received_ns, pump.epoch))
        return out

    @Service.task
    async def keep(self) -> None:
        """Barriers, writes and syncs that are due; tell Kafka the fence about once a second."""
        commit: dict[int, int] = {}
        at_ns = 0
        while not self.should_stop:
            await self.sleep(TICK_S)
            self.partitions.tick()
            commit |= await self.partitions.sync()
            now = self.clock.monotonic_ns()
            if commit and now - at_ns >= COMMIT_S * 1e9:
                at_ns, offsets = now, commit
                commit = {}
                await self._commit(offsets)

    @Service.task
    async def watch(self) -> None:
        """Take up another model when its file is there."""
        looked_ns = self.clock.monotonic_ns()
        while not self.should_stop:
            await self.sleep(TICK_S)
            await self.partitions.turn()
            if self.clock.monotonic_ns() - looked_ns >= LOOK_S * 1e9:
                await self.partitions.look()
                await self.partitions.merge()
                looked_ns = self.clock.monotonic_ns()

    async def _commit(self, offsets: dict[int, int]) -> None:
        """Information for lag tools and for a first start elsewhere; the truth is in the store."""
        places = [TopicPartition(self.flow.source, p) for p in offsets]
        ours = {t: offsets[t.partition] for t in places if t in self.consumer.assignment()}
        try:
            if ours:
                await self.consumer.commit(ours)
        except KafkaError as e:
            self.log.warning("the offset commit was refused (the state is safe without it): %r", e)

    # --- rebalance

    async def on_partitions_revoked(self, revoked) -> None:
        self.generation += 1
        self.ready = False
        await self._release()

    async def _release(self) -> dict[int, int]:
        """Checkpoint and close every partition; returns their fences."""
        for task in self._opening:
            task.cancel()
        if self._opening:
            await asyncio.wait(self._opening)
        return await self.partitions.close()

    async def on_partitions_assigned(self, assigned) -> None:
        """No heartbeat is sent while this runs: engines open in a task, partitions paused until then."""
        self.app.stats.rebalances += 1
        self.log.info("assigned %s partitions %s", self.flow.source, sorted(t.partition for t in assigned))
        self.consumer.pause(*assigned)
        task = asyncio.ensure_future(self._open_all(sorted(assigned), self.generation))
        self._opening.add(task)
        task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task) -> None:
        self._opening.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.add_future(self.crash(task.exception()))

    async def _open_all(self, places: list[TopicPartition], generation: int) -> None:
        for place in places:
            begin = (await self.consumer.beginning_offsets([place]))[place]
            end = (await self.consumer.end_offsets([place]))[place]
            committed = await self.consumer.committed(place) or 0
            pump = await self.partitions.open(
                place.partition, self.sink, lambda offset, place=place: self.consumer.seek(place, offset),
                end=end,
            )  # fmt: skip
            if generation != self.generation:
                await pump.close()
                return
            self._start(pump, place, begin, end, committed)
        self.ready = True
        self.log.info("ready: %s", {p: pump.engine.position for p, pump in self.partitions.pumps.items()})

    def _start(self, pump, place: TopicPartition, begin: int, end: int, committed: int) -> None:
        """Seek to the fence; a new store on an old group is rebuilt in silence."""
        position = pump.engine.position
        if position > end:
            raise StateError(
                f"the state of {place.topic}/{place.partition} stands at offset {position}, the topic ends "
                f"at {end}: the topic was made anew. Remove {self.partitions.folder(place.partition)} to "
                "begin again"
            )
        if position == 0 and committed > end:
            self.log.warning(
                "%s/%d: the group stands at %d, the topic ends at %d: the topic was made anew, the group's "
                "offset is left aside", place.topic, place.partition, committed, end,
            )  # fmt: skip
        elif position == 0 and committed > begin:
            pump.silent_until = committed
            self.log.warning(
                "%s/%d: no state here, but the group stands at %d: rebuilding it from %d without outputs",
                place.topic, place.partition, committed, begin,
            )  # fmt: skip
        self.app.stats.end[place.partition] = end
        self.partitions.pumps[place.partition] = pump
        self.consumer.seek(place, max(position, begin))
        self.consumer.resume(place)

    async def on_stop(self) -> None:
        self.generation += 1
        self.ready = False
        if hasattr(self, "consumer"):
            await self._commit(await self._release())
            await self.consumer.stop()  # leaves the group, unless it is a static member
            await self.producer.stop()


def _batch(place: TopicPartition, records: list, received_ns: int, epoch: int) -> Batch:
    n = len(records)
    return Batch(
        topic=place.topic,
        partition=place.partition,
        values=[r.value for r in records],
        keys=[r.key for r in records],
        offsets=np.fromiter((r.offset for r in records), np.int64, n),
        kafka_ts_ns=np.fromiter((r.timestamp for r in records), np.int64, n) * 1_000_000,
        receive_ts_ns=received_ns,
        epoch=epoch,
    )
