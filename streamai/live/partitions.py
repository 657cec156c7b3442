"""The partitions that are this worker's now: one pump each, opened and released as they come and go."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from pathlib import Path

from streamai.deadline import Cost
from streamai.engine import NO_DIGEST, Engine, reopen_with
from streamai.errors import ModelError, StateError
from streamai.flow import Flow
from streamai.live.batch import Batch, Pace
from streamai.live.changing import ChangingPump
from streamai.live.cost import measure_cost
from streamai.live.merging import Merging
from streamai.live.models import Watched, as_fast
from streamai.live.shadow import Shadow, shadow_flow
from streamai.live.sink import Sink
from streamai.live.stats import Stats
from streamai.model import merged
from streamai.model.kept import Kept
from streamai.settings import Settings
from streamai.state.store import Store
from streamai.wire.codec import Codec

log = logging.getLogger("streamai.live")

LOCK_WAIT_S = 30.0  # another worker on this machine checkpoints and lets go first


class Partitions:
    """Pumps by partition. `take` is the one line of work of a flow's agent.

    flow   what partitions are to be served with: another one when its weights file has changed
    cost   what a step of it costs
    """

    def __init__(self, flow: Flow, settings: Settings, stats: Stats, clock) -> None:
        self.flow, self.settings, self.stats, self.clock = flow, settings, stats, clock
        self.pumps: dict[int, ChangingPump] = {}
        self.cost: Cost | None = None
        self.watched: Watched | None = None
        self.shadow: Watched | None = None
        self.merging = Merging(flow, settings.state) if flow.merge else None
        self._due: dict[int, int] = {}  # by partition: no other model below this offset
        state, engine = settings.state, settings.engine
        self.pace = Pace(
            checkpoint_ns=state.checkpoint_ms * 1_000_000,
            checkpoint_events=state.checkpoint_events,
            sync_ns=state.fsync_ms * 1_000_000,
            budget_ns=int((engine.budget_ms or flow.budget_ms) * 1e6),
            batch_max=engine.batch_max,
        )

    def prepare(self) -> None:
        """Before partitions are taken: the copy of the model that is served, and the cost of a step."""
        if self.flow.model is not None:
            kept = Kept(Path(self.settings.state.folder) / "models")
            self.watched = Watched(self.flow, self.flow.model, kept)
            self.flow = self.watched.start()
            if self.settings.engine.shadow:
                self.shadow = Watched(shadow_flow(self.flow), self.settings.engine.shadow, kept)
                self.shadow.start()
        self.cost = measure_cost(self.flow, self.settings)

    def folder(self, partition: int, under: str = "") -> Path:
        """Where the partition's store lies on this machine."""
        return Path(self.settings.state.folder) / under / self.flow.name / str(partition)

    async def take(self, batch: Batch) -> None:
        """Score a batch, if its partition is still ours."""
        pump = self.pumps.get(batch.partition)
        if pump is not None:
            await pump.take(batch)

    async def open(
        self,
        partition: int,
        sink: Sink,
        rewind: Callable[[int], None],
        silent_until: int = 0,
        end: int = 0,
    ) -> ChangingPump:
        """Open the partition's store and engine, off the event loop. StateError when it stays locked.

        end: where the partition's topic ends now
        """
        began = self.clock.monotonic_ns()
        pump = await asyncio.to_thread(self._open, partition, sink, rewind, silent_until, end)
        self.stats.stages["restore"].add(self.clock.monotonic_ns() - began)
        return pump

    def _open(
        self, partition: int, sink: Sink, rewind: Callable[[int], None], silent_until: int, end: int
    ) -> ChangingPump:
        store = Store(self.folder(partition), wait_s=LOCK_WAIT_S)
        try:
            flow = self._served_before(store, partition, end)
            return ChangingPump(
                self.flow, partition, self._opener(flow, partition, store),
                lambda engine: Codec(self.flow, engine), sink, self.clock, self.stats, rewind, self.cost,
                self.pace, silent_until,
            )  # fmt: skip
        except BaseException:
            store.close()
            raise

    def _opener(self, flow: Flow, partition: int, store: Store) -> Callable[[], Engine]:
        state, engine = self.settings.state, self.settings.engine

        def open_engine() -> Engine:
            return reopen_with(
                flow, partition, store, self._others(store, partition), rows_max=state.rows_max,
                batch_max=engine.batch_max,
            )  # fmt: skip

        return open_engine

    def _shadow_of(self, pump: ChangingPump) -> Shadow:
        settings = self.settings
        return Shadow(
            self.shadow.flow, pump.partition, pump.engine.store, self.folder(pump.partition, "shadow"),
            pump.engine.others, rows_max=settings.state.rows_max, batch_max=settings.engine.batch_max,
        )  # fmt: skip

    @property
    def topics(self) -> set[str]:
        """Every topic that outputs go to."""
        own = set(self.flow.topics.values())
        return own if self.shadow is None else own | {self.shadow.flow.topics["result"]}

    def _others(self, store: Store, partition: int) -> merged.Table | None:
        """The other partitions' counts that the store's checkpoint was served with."""
        meta = store.meta()
        digest = None if meta is None or self.merging is None else meta.get("tables")
        if digest is None:
            return None
        try:
            return merged.read(self.merging.tables / f"{digest}.counts")
        except ModelError as error:
            log.warning("partition %d: goes on with its own counts alone: %s", partition, error)
            return None

    async def merge(self) -> None:
        """Exchange counts with the other partitions, where it is a partition's turn."""
        for partition, pump in list(self.pumps.items()):
            now = self.clock.monotonic_ns()
            if self.merging is None or pump.closing or not self.merging.due(partition, now):
                continue
            own, tau = pump.engine.snapshot(), pump.engine.counts.tau
            try:
                table = await asyncio.to_thread(self.merging.exchange, partition, own, tau)
            except StateError as error:
                log.error("%s", error)
                continue
            if table is not None and pump.engine.position >= self._due[partition]:
                await pump.take_tables(table)

    def _served_before(self, store: Store, partition: int, end: int) -> Flow:
        """The flow with the model of the store's checkpoint: events up to `end` may have been served by it,
        and what is read again is served again by the same. Another one is taken up at `end`, no sooner."""
        self._due[partition] = end
        meta = store.meta()
        before = None if meta is None or self.watched is None else meta["model"]
        if before is None or before in (self.watched.digest, NO_DIGEST):
            return self.flow
        flow = self.watched.of(before)
        if flow is None:
            log.warning(
                "partition %d: was served by model %s, which is not in %s: events from the fence %d on are "
                "served by %s, also those whose outputs it had sent", partition, before,
                self.watched.kept.folder, meta["fence"], self.watched.digest,
            )  # fmt: skip
            return self.flow
        return flow

    async def look(self) -> None:
        """Look at the weights file; a good one that is new is taken up by every partition."""
        if self.watched is None:
            return
        before = self.flow
        if await asyncio.to_thread(self.watched.look):
            if not await asyncio.to_thread(as_fast, before, self.watched.flow):
                self.cost = await asyncio.to_thread(measure_cost, self.watched.flow, self.settings)
            self.flow = self.watched.flow
            for pump in self.pumps.values():
                pump.cost = self.cost
        errors = [self.watched.error]
        if self.shadow is not None:
            await asyncio.to_thread(self.shadow.look)
            errors.append(self.shadow.error)
        self.stats.model_error = "; ".join(filter(None, errors))

    async def turn(self) -> None:
        """Partitions that are served by another model than the present one, and have come to where they are
        to go on with that, do so."""
        for partition, pump in list(self.pumps.items()):
            if self.watched is None or pump.closing:
                continue
            if self.shadow is not None and pump.shadow_digest != self.shadow.digest:
                await pump.begin_shadow(self.shadow.digest, lambda pump=pump: self._shadow_of(pump))
            if pump.engine.model_digest == self.watched.digest:
                continue
            if pump.engine.position >= self._due[partition]:
                await pump.take_up(self._opener(self.flow, partition, pump.engine.store))

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
