"""Rows of one kind of key in memory: fixed size, fixed number, found by hash.

What lies in a row (see streamai/layout.py) is what is stored, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from streamai.errors import StateError
from streamai.kernels import index, slots
from streamai.layout import MODEL_CELL, Layout


class Slab:
    """`rows_max` rows with an index. Only clean rows are ever evicted.

    A row is dirty when it changed since the last barrier, in flight while a checkpoint that holds it
    is not yet written, and clean otherwise.
    """

    def __init__(self, rows_max: int, layout: Layout) -> None:
        if rows_max < 1:
            raise StateError(f"rows_max is {rows_max}; a slab needs at least one row")
        self.layout, self.capacity, self.used = layout, rows_max, 0
        self.rows = np.zeros((rows_max, layout.row_bytes), "u1")
        self.hash0, self.hash1 = np.zeros(rows_max, "u8"), np.zeros(rows_max, "u8")
        self.table = np.zeros(1 << max(4, (2 * rows_max - 1).bit_length()), "i4")
        self.keys: list[bytes] = [b""] * rows_max
        self.dirty = np.zeros(rows_max, "u1")
        self.in_flight = np.zeros(rows_max, "u1")
        self.recent = np.zeros(rows_max, "u1")  # touched since the eviction hand last passed
        self.pinned = np.zeros(rows_max, "i8")  # number of the batch that last needed the row
        self.dirty_slots = np.zeros(rows_max, "i4")  # written by the step kernel
        self.batch = 0
        self.hand = 0
        self.evicted = self.loaded = 0

    def view(self, dtype: str) -> np.ndarray:
        """The rows as [rows_max, ...] of another type: the same memory."""
        return self.rows.view(dtype)

    def locate(self, events, out: np.ndarray, load: Callable) -> int:
        """Slots of the events into out i4[n]; rows that are not here are loaded or begun.

        Returns how many of the events, from the first on, have a slot: fewer than n when every row that
        could make room is dirty, in flight or needed by these events.
        """
        missing = index.locate(self.table, self.hash0, self.hash1, events.rows, out)
        self.batch += 1
        if missing == 0:
            return len(events)
        return self._admit(events, out, load)

    def _admit(self, events, out: np.ndarray, load: Callable) -> int:
        absent = np.flatnonzero(out[: len(events)] < 0)
        h0, h1 = events.rows["hash0"], events.rows["hash1"]
        names = {int(i): h0[i].tobytes() + h1[i].tobytes() for i in absent}
        order = list(dict.fromkeys(names.values()))
        stored = dict(zip(order, load(order), strict=True))
        for i in range(len(events)):
            slot = int(out[i])
            # an eviction for an earlier event of this batch may have taken the row
            if slot < 0 or self.hash0[slot] != h0[i] or self.hash1[slot] != h1[i]:
                slot = int(index.find(self.table, self.hash0, self.hash1, h0[i], h1[i]))
            if slot < 0:
                slot = self._free()
                if slot < 0:
                    return i
                name = names.get(i) or h0[i].tobytes() + h1[i].tobytes()
                if name not in stored:
                    stored[name] = load([name])[0]
                self._fill(slot, h0[i], h1[i], events.key(i), stored[name])
            self.pinned[slot] = self.batch
            out[i] = slot
        return len(events)

    def _free(self) -> int:
        if self.used < self.capacity:
            self.used += 1
            return self.used - 1
        slot, self.hand = slots.victim(
            self.dirty, self.in_flight, self.pinned, self.recent, self.batch, self.hand
        )
        if slot >= 0:
            index.remove(self.table, self.hash0, slot)
            self.evicted += 1
        return int(slot)

    def _fill(self, slot: int, h0: np.uint64, h1: np.uint64, key: bytes, value: bytes | None) -> None:
        row = self.rows[slot]
        if value is None:
            if self.evicted:  # else the row is as it was allocated, and not yet backed by memory
                row[:] = 0
        else:
            at = 2 + int.from_bytes(value[:2], "little")
            self._restore(row, value[2:at], np.frombuffer(value, "u1", offset=at))
            self.loaded += 1
        self.hash0[slot], self.hash1[slot], self.keys[slot] = h0, h1, key
        index.insert(self.table, self.hash0, h0, slot)

    def _restore(self, row: np.ndarray, key: bytes, stored: np.ndarray) -> None:
        """A stored row into its place. LM state of another size is another model's: left out, and the digest
        with it, so that it is made anew from the ring."""
        if len(stored) == row.size:
            row[:] = stored
            return
        kept = 8 * self.layout.lm_at
        if len(stored) < kept:
            raise StateError(
                f"the stored row of key {key!r} has {len(stored)} bytes, this flow's rows have at least "
                f"{kept}. The views changed, or the store is damaged: remove the state folder to rebuild it."
            )
        row[:kept], row[kept:] = stored[:kept], 0
        row[8 * MODEL_CELL : 8 * MODEL_CELL + 8] = 0

    def take_dirty(self, count: int) -> tuple[np.ndarray, np.ndarray, list[bytes], list[bytes]]:
        """Slots, copies, hashes, keys of the rows dirtied since the last barrier; they are in flight now."""
        which = np.sort(self.dirty_slots[:count])
        self.dirty[which] = 0
        self.in_flight[which] += 1
        raw = np.stack((self.hash0[which], self.hash1[which]), axis=1).tobytes()
        hashes = [raw[at : at + 16] for at in range(0, len(raw), 16)]
        return which, self.rows[which], hashes, [self.keys[s] for s in which.tolist()]

    def written(self, which: np.ndarray) -> None:
        """The checkpoint with these slots is on disk."""
        self.in_flight[which] -= 1
