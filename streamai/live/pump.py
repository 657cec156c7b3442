"""One partition, from records to outputs to checkpoints. Knows no Kafka: sink, store and clock are given.

    decode -> cut -> tier -> step -> encode -> publish        for every cut of a batch
    barrier at F -> all outputs below F acknowledged -> one atomic write (rows, fence F) -> sync

The fence in the store is the truth. What is lost by a crash is read again from it: outputs keep their ids.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from streamai import deadline
from streamai.deadline import Deadline, Tier
from streamai.errors import StateError, StepError
from streamai.flow import CATCH_UP, Flow
from streamai.live.batch import Batch, Pace
from streamai.live.poison import Poison
from streamai.live.sink import Outbox, Sink
from streamai.live.stats import Stats
from streamai.scored import LATE

log = logging.getLogger("streamai.live")

CHECKPOINT_REST = 40  # at least so many times as long as the last write until the next barrier
TURNS = 4
LATE_BUDGET_NS = 50_000_000  # late events are cut as for this budget: a step of 10 ms at most
_EPOCHS = itertools.count()  # no number twice: a batch may wait while its partition goes and comes back


class Pump:
    """Takes the batches of one partition, in order.

    open_engine  () -> Engine from its store, at the store's fence; called again after a failed step
    codec_of     (engine) -> wire.codec.Codec
    rewind       (offset) -> None: the source is to go on from there
    silent_until events below this offset make state but no output: their outputs were acknowledged before
    """

    def __init__(
        self,
        flow: Flow,
        partition: int,
        open_engine: Callable,
        codec_of: Callable,
        sink: Sink,
        clock,
        stats: Stats,
        rewind: Callable[[int], None],
        cost: deadline.Cost,
        pace: Pace,
        silent_until: int = 0,
    ) -> None:
        self.flow, self.partition, self.sink, self.clock, self.stats = flow, partition, sink, clock, stats
        self.cost, self.pace, self.silent_until = cost, pace, silent_until
        self._open_engine, self._codec_of, self._rewind = open_engine, codec_of, rewind
        self.epoch = next(_EPOCHS)
        self.closing = False
        self.synced = 0  # fence that survives a power cut: what may be committed to Kafka
        self.storing = asyncio.Lock()  # a sync in a thread, or the store being closed
        self.whole = True  # False while taking; stays False after an exception there: nothing may be written
        self._busy = asyncio.Lock()
        self._poison = Poison()
        self._open(self._open_engine())

    def _open(self, engine) -> None:
        self.engine = engine
        self.codec = self._codec_of(self.engine)
        self.fence = self.acked = self.engine.position
        self._next_offset = self.engine.position
        self._outbox = Outbox()
        # (outputs below this offset, done when they are safe)
        self._sent: deque[tuple[int, asyncio.Future]] = deque()
        self._pending = None  # the checkpoint that waits for acknowledgements
        self._barrier_ns = self._sync_ns = self._yield_ns = self.clock.monotonic_ns()
        # a write holds the interpreter's lock: the partitions of a worker take turns
        self._barrier_ns -= self.partition % TURNS * self.pace.checkpoint_ns // TURNS
        self._since_barrier = self._write_ns = 0
        self._note()

    # --- taking a batch

    async def take(self, batch: Batch) -> None:
        """Score a batch and hand its outputs to the sink. Returns early when closing or after a rewind."""
        async with self._busy:
            if self.closing or batch.epoch != self.epoch:
                return
            batch = batch.after(self.engine.position)
            if len(batch):
                self.whole = False
                await self._take(batch)
                self.whole = True

    async def _take(self, batch: Batch) -> None:
        missing = int(batch.offsets[0]) - self._next_offset
        if missing > 0:
            self.stats.gap += missing
            log.warning(
                "%s/%d: offsets %d to %d never came: compacted, or gone by the topic's retention",
                batch.topic, self.partition, self._next_offset, self._next_offset + missing - 1,
            )  # fmt: skip
        epoch = self.epoch
        began = self.clock.monotonic_ns()
        events = self.codec.decoder.decode(
            batch.values, batch.offsets, batch.kafka_ts_ns, batch.topic, self.partition, batch.receive_ts_ns
        )
        self.stats.stages["decode"].add(self.clock.monotonic_ns() - began)
        for letter in events.dead:
            self._dead(batch, letter.offset, letter.cause, letter.headers(batch.topic, self.partition))
        await self._step_all(batch, events)
        if epoch != self.epoch:
            return  # a step failed: the source reads again from the fence
        if not self.closing:
            self._next_offset = int(batch.offsets[-1]) + 1
            self.engine.position = self._next_offset  # past dead letters at the end of the batch
        await self._publish()
        self._keep()
        await self._taken(batch, events)

    async def _taken(self, batch: Batch, events) -> None:
        """For those who do more with a batch whose outputs are published."""

    async def _step_all(self, batch: Batch, events) -> None:
        due = Deadline.after(batch.receive_ts_ns, self.pace.budget_ns)
        at, n, epoch = 0, len(events), self.epoch
        offsets = events.rows["offset"]
        while at < n and not self.closing and epoch == self.epoch:
            if int(offsets[at]) in self._poison.stacks:
                self._drop_poison(batch, int(offsets[at]))
                at += 1
                continue
            size, tier = self._plan_cut(due, offsets[at:], n - at)
            part = events[at : at + size]
            began = self.clock.monotonic_ns()
            try:
                scored = self.engine.step(part, tier)
            except Exception as error:
                self._failed(error, part)
                return
            took = self.clock.monotonic_ns()
            self.stats.stages["step"].add(took - began)
            if len(scored) == 0:  # no clean row: only a checkpoint makes room
                await self._write_now()
                continue
            self._poison.well(int(part.rows["offset"][0]))
            self._emit(batch, scored, tier)
            at += len(scored)
            self._since_barrier += len(scored)
            self._keep()
            if took - self._yield_ns > self.pace.publish_ns:
                self._yield_ns = took
                await self._publish()
                await asyncio.sleep(0)

    def _plan_cut(self, due: Deadline, offsets: np.ndarray, left: int) -> tuple[int, Tier]:
        """(events of the next step, their tier). The clock is read here, once a cut."""
        first, left_ns = int(offsets[0]), due.left_ns(self.clock.now_ns())
        # what is late already gets one tier, however it is cut
        budget_ns = self.pace.budget_ns if left_ns > 0 else max(self.pace.budget_ns, LATE_BUDGET_NS)
        size = min(deadline.cut(self.cost, budget_ns, left), self.pace.batch_max)
        if first < self._poison.careful_until:
            size = 1
        for edge in (self.silent_until, *self._poison.stacks):  # a cut ends where the treatment changes
            if edge > first:
                size = min(size, max(1, int(np.searchsorted(offsets[:size], edge))))
        if first < self.silent_until:
            return size, Tier.SILENT
        catch_up = CATCH_UP[self.flow.catch_up]
        return size, deadline.choose_tier(left_ns, size, left - size, self.cost, catch_up)

    # --- what goes out

    def _emit(self, batch: Batch, scored, tier: Tier) -> None:
        """Encode a step's outputs into the outbox."""
        began = self.clock.monotonic_ns()
        rows = scored.events.rows[: len(scored)]
        where = np.searchsorted(batch.offsets, rows["offset"])
        elapsed_ns = self.clock.now_ns() - batch.receive_ts_ns
        times = {"receive_ts_ns": batch.receive_ts_ns, "elapsed_ns": elapsed_ns}
        clock_fields = [(name, b"%d" % ns) for name, ns in times.items()]
        for topic, (values, which) in self.codec.encode(scored).items():
            if values:
                self._put(topic, values, [batch.keys[j] for j in where[which].tolist()], clock_fields)
        late = np.flatnonzero(scored.status == LATE)
        for j in where[late].tolist():
            if batch.offsets[j] >= self.silent_until:
                headers = [("cause", b"late"), ("id", batch.place(j).encode())]
                self._outbox.put_original(self.flow.topics["late"], batch, j, headers)
        self.stats.outcomes["late"] += len(late)
        self.stats.outcomes["scored"] += len(scored) - len(late)
        self.stats.tiers[deadline.TIER_NAMES[tier]] += len(scored) - len(late)
        self.stats.stages["encode"].add(self.clock.monotonic_ns() - began)
        self.stats.stages["event"].add(elapsed_ns, len(scored))

    def _put(self, topic: str, values: Sequence[bytes], keys: Sequence[bytes | None], headers) -> None:
        self._outbox.put(topic, values, keys, headers)
        self.stats.latest[topic] = values[-1]

    def _dead(self, batch: Batch, offset: int, cause: str, headers) -> None:
        if offset < self.silent_until:
            return
        self.stats.dead(cause)
        j = int(np.searchsorted(batch.offsets, offset))
        self._outbox.put_original(self.flow.topics["dead"], batch, j, headers)

    async def _publish(self) -> None:
        """Hand the outbox to the sink. Everything below engine.position is then on its way or skipped."""
        position, outputs = self.engine.position, self._outbox.take()
        if outputs:
            epoch, began, ack = self.epoch, self.clock.monotonic_ns(), self.stats.stages["ack"]
            done = await self.sink.publish(self.partition, outputs)
            done.add_done_callback(lambda _: ack.add(self.clock.monotonic_ns() - began))
            if epoch == self.epoch:
                self._sent.append((position, done))
        elif not self._sent:
            self.acked = position
        else:
            self._sent.append((position, self._sent[-1][1]))

    # --- checkpoints

    def tick(self) -> None:
        """Called often, also when nothing comes: barriers, writes and acknowledgements that are due.

        Raises what a publish raised: the worker stops before the fence moves.
        """
        if not self.closing:
            self._keep()

    def _keep(self) -> None:
        now = self.clock.monotonic_ns()
        # a write must not take more than a share of the time, however fast events come
        wait_ns = max(self.pace.checkpoint_ns, CHECKPOINT_REST * self._write_ns)
        due = now - self._barrier_ns >= wait_ns
        if self._pending is None and (due or self._since_barrier >= self.pace.checkpoint_events):
            self._barrier()
        self._settle()
        self._note()

    def _barrier(self) -> None:
        self._barrier_ns = self.clock.monotonic_ns()
        if self.engine.position > self.fence:
            self._since_barrier = 0
            self._pending = self.engine.barrier()

    def _settle(self) -> None:
        """Take acknowledgements in order; write the checkpoint whose outputs are all safe."""
        while self._sent and self._sent[0][1].done():
            position, done = self._sent[0]
            done.result()  # raises what the publish raised, now and ever after: the fence stays
            self._sent.popleft()
            self.acked = position
        if self._pending is not None and self.acked >= self._pending.fence:
            began = self.clock.monotonic_ns()
            self.engine.store.write(self._pending)
            self.engine.written(self._pending)
            self.fence, self._pending = self._pending.fence, None
            self._poison.forget(self.fence)
            self._write_ns = self.clock.monotonic_ns() - began
            self.stats.stages["checkpoint"].add(self._write_ns)

    async def _write_now(self) -> None:
        """Checkpoint now, and wait for it: the slab has no clean row, or the partition is leaving."""
        await self._publish()
        while True:
            for _, done in list(self._sent):
                await asyncio.wait([done])
            self._settle()
            if self.fence >= self.engine.position:
                return
            if self._pending is None:
                self._barrier()

    def sync_due(self) -> bool:
        """Whether the store has news that should survive a power cut now."""
        return self.fence > self.synced and self.clock.monotonic_ns() - self._sync_ns >= self.pace.sync_ns

    def sync(self) -> None:
        """Make the fence survive a power cut; may run in a thread."""
        fence = self.fence
        self._sync_ns = self.clock.monotonic_ns()
        self.engine.store.sync()
        self.synced = fence

    async def close(self, timeout_s: float = 10.0) -> None:
        """Stop taking, wait for acknowledgements, checkpoint, release the store. Only logs a slow sink."""
        self.closing = True
        async with self._busy, self.storing:
            try:
                if not self.whole:
                    raise StepError("a batch was left half done")
                async with asyncio.timeout(timeout_s):
                    await self._write_now()
                self.sync()
            except Exception as error:
                log.warning(
                    "partition %d: closed at fence %d, not %d (%r): its events are read again",
                    self.partition, self.fence, self.engine.position, error,
                )  # fmt: skip
            finally:
                self._closed()
                self.engine.store.close()
                self.stats.forget(self.partition)

    def _closed(self) -> None:
        """For those who keep more."""

    def _note(self) -> None:
        self.stats.position[self.partition] = self.engine.position
        self.stats.fence[self.partition] = self.fence
        self.stats.model[self.partition] = self.engine.model_digest

    # --- exceptions inside a step

    def _failed(self, error: Exception, part) -> None:
        """The engine is not to be trusted: open it again from the store and read again from the fence."""
        first, last = int(part.rows["offset"][0]), int(part.rows["offset"][-1])
        where = f"{part.topic}/{self.partition}/{first}"
        if isinstance(error, (StateError, MemoryError)):
            raise error  # not the event's fault: no other event would fare better
        self.stats.failures += 1
        log.warning("a step over %s..%d failed: %r; reading again from %d", where, last, error, self.fence)
        self._poison.failed(error, first, last, where, self.flow)
        for _, done in self._sent:  # those outputs are sent again under the same ids
            done.add_done_callback(lambda f: f.cancelled() or f.exception())
        self.epoch = next(_EPOCHS)
        self._open(self._open_engine())
        self._rewind(self.engine.position)

    def _drop_poison(self, batch: Batch, offset: int) -> None:
        cause, headers = self._poison.letter(batch, offset)
        self.stats.outcomes["poison"] += 1
        self._dead(batch, offset, cause, headers)
