"""A second model beside the one that serves: the same events, its outputs to a side topic, nothing of the
flow's own touched.

It begins as a copy of the partition's store at a checkpoint (hard links: no bytes are copied) and has its
own engine on it from there on. It takes what was served after it was published; when there is no time left
it makes state without outputs (SILENT), so that it never falls behind and its state stays that of all events.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from streamai.deadline import Cost, Deadline, Tier, cut
from streamai.engine import Engine
from streamai.events import Events
from streamai.flow import Flow
from streamai.model import merged
from streamai.state.store import Store
from streamai.wire.codec import Codec
from streamai.wire.output import Values

log = logging.getLogger("streamai.live")

CHECKPOINT_EVENTS = 128  # a write of so many rows takes 0.6 ms of the loop


def shadow_flow(flow: Flow) -> Flow:
    """What the shadow's outputs are: the flow's results alone, on a topic of their own."""
    return flow.but(output=f"{flow.output}.shadow", publish_features=False)


class Shadow:
    """The shadow of one partition. `flow` has the second model; see `shadow_flow`."""

    def __init__(
        self, flow: Flow, partition: int, store: Store, folder: Path, others: merged.Table | None, **options
    ) -> None:
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        store.copy(folder)
        self.engine = Engine(flow, partition, Store(folder), **options)
        if others is not None:
            self.engine.take_others(others)
        self.codec = Codec(flow, self.engine)
        self.digest = self.engine.model_digest
        self.failed = False
        self._since_write = 0

    def take(
        self, events: Events, skip: Iterable[int], due: Deadline, cost: Cost, behind: bool, clock
    ) -> Iterator[tuple[np.ndarray, dict[str, Values]]]:
        """(offsets, {topic: values}) of every cut of the events it has not had, but for the offsets `skip`.

        behind: no time for outputs. A failure ends the shadow, not the worker.
        """
        if self.failed:
            return
        try:
            offsets = events.rows["offset"]
            at, left_out = int(np.searchsorted(offsets, self.engine.position)), set(skip)
            while at < len(events):
                if int(offsets[at]) in left_out:
                    at += 1
                    continue
                size = min(cut(cost, due.budget_ns, len(events) - at), self.engine.batch_max)
                if left_out:
                    size = 1
                in_time = cost.of(Tier.FULL, size) <= due.left_ns(clock.now_ns())
                tier = Tier.FULL if in_time and not behind else Tier.SILENT
                scored = self.engine.step(events[at : at + size], tier)
                yield offsets[at : at + len(scored)], self.codec.encode(scored)
                at += len(scored)
                self._since_write += len(scored)
                if not len(scored) or self._since_write >= CHECKPOINT_EVENTS:
                    self._since_write = 0
                    self.engine.checkpoint()
        except Exception:
            self.failed = True
            log.exception("the shadow of %s failed and is off until its file changes", self.engine.flow.name)

    def take_tables(self, table: merged.Table) -> None:
        """Score with what other partitions count, as what serves does."""
        self.engine.take_others(table)
        self.codec = Codec(self.engine.flow, self.engine)

    def close(self) -> None:
        """Its state is given up: the next one begins with the flow's again."""
        self.engine.close()
        shutil.rmtree(self.folder, ignore_errors=True)
