"""The partitions that are this worker's now: one pump each, opened and released as they come and go."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from pathlib import Path

from streamai.deadline import Cost
from streamai.engine import Engine
from streamai.flow import Flow
from streamai.live.batch import Batch, Pace
from streamai.live.pump import Pump
from streamai.live.sink import Sink
from streamai.live.stats import Stats
from streamai.settings import Settings
from streamai.state.store import Store
from streamai.wire.codec import Codec

log = logging.getLogger("streamai.live")

LOCK_WAIT_S = 30.0  # another worker on this machine checkpoints and lets go first


class Partitions:
    """Pumps by partition. `take` is the one line of work of a flow's agent."""

    def __init__(self, flow: Flow, settings: Settings, stats: Stats, clock) -> None:
        self.flow, self.settings, self.stats, self.clock = flow, settings, stats, clock
        self.pumps: dict[int, Pump] = {}
        self.cost: Cost | None = None  # measured before partitions are taken
        state, engine = settings.state, settings.engine
        self.pace = Pace(
            checkpoint_ns=state.checkpoint_ms * 1_000_000,
            checkpoint_events=state.checkpoint_events,
            sync_ns=state.fsync_ms * 1_000_000,
            budget_ns=int((engine.budget_ms or flow.budget_ms) * 1e6),
            batch_max=engine.batch_max,
        )

    def folder(self, partition: int) -> Path:
        """Where the partition's store lies on this machine."""
        return Path(self.settings.state.folder) / self.flow.name / str(partition)

    async def take(self, batch: Batch) -> None:
        """Score a batch, if its partition is still ours."""
        pump = self.pumps.get(batch.partition)
        if pump is not None:
            await pump.take(batch)

    async def open(
        self, partition: int, sink: Sink, rewind: Callable[[int], None], silent_until: int = 0
    ) -> Pump:
        """Open the partition's store and engine, off the event loop. StateError when it stays locked."""
        began = self.clock.monotonic_ns()
        pump = await asyncio.to_thread(self._open, partition, sink, rewind, silent_until)
        self.stats.stages["restore"].add(self.clock.monotonic_ns() - began)
        return pump

    def _open(self, partition: int, sink: Sink, rewind: Callable[[int], None], silent_until: int) -> Pump:
        store = Store(self.folder(partition), wait_s=LOCK_WAIT_S)
        settings = self.settings

        def open_engine() -> Engine:
            return Engine(
                self.flow, partition, store, settings.state.rows_max, batch_max=settings.engine.batch_max
            )

        try:
            return Pump(
                self.flow, partition, open_engine, lambda engine: Codec(self.flow, engine), sink, self.clock,
                self.stats, rewind, self.cost, self.pace, silent_until,
            )  # fmt: skip
        except BaseException:
            store.close()
            raise

    async def close(self) -> dict[int, int]:
        """Checkpoint and release every partition; returns their fences on disk."""
        pumps, self.pumps = self.pumps, {}
        ends = await asyncio.gather(*(p.close() for p in pumps.values()), return_exceptions=True)
        gc.unfreeze()  # engines that were frozen can be collected now
        gc.collect()
        gc.freeze()
        for error in filter(None, ends):  # when all have had their turn
            raise error
        return {p: pump.synced for p, pump in pumps.items() if pump.synced}

    def tick(self) -> None:
        for pump in list(self.pumps.values()):
            pump.tick()

    async def sync(self) -> dict[int, int]:
        """Make due fences survive a power cut; returns those that are new, by partition."""
        out = {}
        for partition, pump in list(self.pumps.items()):
            if pump.sync_due():
                async with pump.storing:
                    if not pump.closing:
                        await asyncio.to_thread(pump.sync)  # the disk's time, not the loop's
                        out[partition] = pump.synced
                        self.stats.state_bytes[partition] = pump.engine.store.size_bytes()
        return out
