"""A flow as it is served over several partitions: an engine each, keys by hash, their counts merged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from streamai.engine import Engine
from streamai.events import Events
from streamai.kernels import context as c
from streamai.model import merged
from streamai.scored import Scored


class Partitioned:
    """Engines of one flow behind the face of one, as evaluation needs it.

    open_engine  () -> Engine of one partition, in memory
    merge_every  events, of all partitions, between two merges of what they count; 0 = each knows its own
    """

    def __init__(self, open_engine: Callable[[], Engine], partitions: int, merge_every: int) -> None:
        self.engines = [open_engine() for _ in range(partitions)]
        first = self.engines[0]
        self.flow, self.catalogue, self.layout = first.flow, first.catalogue, first.layout
        self.model, self.model_digest, self.batch_max = first.model, first.model_digest, first.batch_max
        self.table_arrays, self.arrays, self.exclude = first.table_arrays, first.arrays, first.exclude
        self.merge_every, self.merges, self._taken = merge_every, 0, 0
        self._learning = True
        for engine in self.engines[1:]:  # what is hidden is hidden from all
            engine.arrays["exclude"] = self.exclude
            engine.work = c.work(engine.arrays)

    def step(self, events: Events, tiers: np.ndarray) -> Scored:
        """Those of the first events that are of one partition."""
        # by the key's hash, as a producer does; which hash does not matter here
        partition = events.rows["hash0"] % np.uint64(len(self.engines))
        other = np.flatnonzero(partition != partition[0])
        n = int(other[0]) if len(other) else len(events)
        if self.merge_every:
            n = min(n, max(1, self.merge_every - self._taken))
        engine = self.engines[int(partition[0])]
        scored = engine.step(events[:n], tiers[:n])
        if not len(scored):
            engine.checkpoint()
            scored = engine.step(events[:n], tiers[:n])
        self._taken += len(scored)
        return scored

    def learn_counts(self, on: bool) -> None:
        """See Engine.learn_counts. Called before every list: merges that are due happen here, outside what is
        timed."""
        if self.merge_every and self._taken >= self.merge_every:
            self._merge()
        if on != self._learning:
            self._learning = on
            for engine in self.engines:
                engine.learn_counts(on)

    def checkpoint(self) -> None:
        """Nothing: `step` makes room itself."""

    def _merge(self) -> None:
        self._taken = 0
        self.merges += 1
        if len(self.engines) == 1:
            return
        tables = [engine.snapshot() for engine in self.engines]
        for p, engine in enumerate(self.engines):
            engine.take_others(merged.merge(tables[:p] + tables[p + 1 :], engine.counts.tau))
