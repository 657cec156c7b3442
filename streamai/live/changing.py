"""A pump whose model, table of other partitions' counts and shadow may change between two batches.

    all that was scored is acknowledged -> checkpoint at F -> the store says what serves from F on
    -> a record of it to the versions topic -> the next event, at F or later, by the new one

So an event is never served by two: what is read again after a crash is served by what the store says.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import numpy as np

from streamai.deadline import Deadline
from streamai.live.batch import Batch
from streamai.live.pump import Pump
from streamai.live.shadow import Shadow
from streamai.model import merged
from streamai.wire import version

log = logging.getLogger("streamai.live")


class ChangingPump(Pump):
    """A Pump that can go on with something else.

    shadow         a second model beside what serves, or None
    shadow_digest  of the one that was last begun with, also where that failed
    """

    shadow: Shadow | None = None
    shadow_digest = ""

    def _open(self, engine) -> None:
        super()._open(engine)
        if "versions" in self.flow.topics:
            self._put_version()

    def _put_version(self) -> None:
        e = self.engine
        if e.others_digest:
            self.stats.tables[self.partition] = e.others_digest
        value = version.encode(self.flow, self.partition, e.since, e.model_digest, e.others_digest)
        self._put(self.flow.topics["versions"], [value], [None], [])

    async def take_tables(self, table: merged.Table) -> None:
        """Go on with this table of what other partitions count, from the next event on."""
        async with self._between_batches() as ready:
            if not ready or table.digest == self.engine.others_digest:
                return
            self.engine.serve_with(table)
            self.codec = self._codec_of(self.engine)
            if self.shadow is not None:
                self.shadow.take_tables(table)
            self._put_version()
            await self._publish()

    async def take_up(self, open_engine: Callable) -> None:
        """Go on with what `open_engine` opens, such as another model, from the next event on.

        Between two batches: what was scored before is acknowledged and in the store first, so that no event
        is ever served again by the model before.
        """
        async with self._between_batches() as ready:
            if not ready:
                return
            began = self.clock.monotonic_ns()
            engine = await asyncio.to_thread(open_engine)  # heartbeats and other partitions go on
            self._open_engine = open_engine
            self._open(engine)
            await self._publish()
            self.stats.stages["take_up"].add(self.clock.monotonic_ns() - began)
            log.info("partition %d: %s from %d on", self.partition, engine.model_digest, engine.position)

    @contextlib.asynccontextmanager
    async def _between_batches(self):
        """What was scored is acknowledged and in the store; False where it is closing or broken."""
        async with self._busy:
            ready = not self.closing and self.whole
            if ready:
                await self._write_now()
                while self._sent:  # records without an event, such as the version before
                    await asyncio.wait([self._sent[0][1]])
                    self._settle()
            yield ready

    async def _taken(self, batch: Batch, events) -> None:
        """What was served through the second model."""
        if self.shadow is None:
            return
        due = Deadline.after(batch.receive_ts_ns, self.pace.budget_ns)
        behind = self.stats.end.get(self.partition, 0) > self.engine.position
        began = self._yield_ns = self.clock.monotonic_ns()
        cuts = self.shadow.take(events, self._poison.stacks, due, self.cost, behind, self.clock)
        for offsets, outputs in cuts:
            where = np.searchsorted(batch.offsets, offsets)
            for topic, (values, which) in outputs.items():
                if values:
                    self._put(topic, values, [batch.keys[j] for j in where[which].tolist()], [])
            now = self.clock.monotonic_ns()
            if now - self._yield_ns > self.pace.publish_ns:
                self._yield_ns = now
                await self._publish()
                await asyncio.sleep(0)
        self.stats.stages["shadow"].add(self.clock.monotonic_ns() - began)
        await self._publish()

    async def begin_shadow(self, digest: str, open_shadow: Callable[[], Shadow]) -> None:
        """Go on with a second model of this digest, from the next event on, beside what serves. Where it
        cannot be opened, the log says why and there is none."""
        async with self._between_batches() as ready:
            if not ready:
                return
            self._closed()
            self.shadow, self.shadow_digest = None, digest
            self.stats.shadow.pop(self.partition, None)
            try:
                self.shadow = await asyncio.to_thread(open_shadow)
            except Exception:
                log.exception("partition %d goes on without the shadow %s", self.partition, digest)
                return
            self.stats.shadow[self.partition] = digest

    def _closed(self) -> None:
        if self.shadow is not None:
            self.shadow.close()
