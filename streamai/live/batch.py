"""What a source hands to a pump, and how fast a pump works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Batch:
    """Records of one partition, as one fetch brought them. offsets, kafka_ts_ns: i8[n], ascending offsets.

    epoch: the pump's when they were fetched; one from before a rewind, or of another pump, is dropped.
    """

    topic: str
    partition: int
    values: Sequence[bytes | None]
    keys: Sequence[bytes | None]
    offsets: np.ndarray
    kafka_ts_ns: np.ndarray
    receive_ts_ns: int
    epoch: int

    def __len__(self) -> int:
        return len(self.values)

    def place(self, j: int) -> str:
        """topic/partition/offset of record j."""
        return f"{self.topic}/{self.partition}/{self.offsets[j]}"

    def after(self, offset: int) -> Batch:
        """The records from `offset` on."""
        k = int(np.searchsorted(self.offsets, offset))
        if k == 0:
            return self
        return replace(
            self,
            values=self.values[k:],
            keys=self.keys[k:],
            offsets=self.offsets[k:],
            kafka_ts_ns=self.kafka_ts_ns[k:],
        )


@dataclass(frozen=True)
class Pace:
    """How often state is written, and how long an event may take."""

    checkpoint_ns: int = 50_000_000
    checkpoint_events: int = 65_536
    sync_ns: int = 1_000_000_000
    budget_ns: int = 5_000_000
    batch_max: int = 256

    @property
    def publish_ns(self) -> int:
        """How long outputs may gather, and the event loop wait, while a long batch is worked on."""
        return min(20_000_000, max(2_000_000, self.budget_ns // 5))
