"""One partition: record batches as they came, never decoded except for a look-up by time."""

from __future__ import annotations

import asyncio
import struct
from bisect import bisect_left, bisect_right

from aiokafka.record import MemoryRecords

from streamai.broker.apis import INVALID_PRODUCER_EPOCH, OK, OUT_OF_ORDER_SEQUENCE

# A v2 record batch: base offset i8, length i4, leader epoch i4, magic i1, crc u4, then from byte 21
# attributes i2, last offset delta i4, first time i8, greatest time i8, producer id i8, epoch i2,
# sequence i4, count i4
_HEAD = struct.Struct(">hiqqqhii")
_HEAD_AT, _LENGTH_AT, _EPOCH_AT = 21, 8, 12


class Log:
    """Appends and reads batches; wakes the fetches that wait for more."""

    __slots__ = (
        "base_offsets",
        "batches",
        "next_offset",
        "sequences",
        "start_offset",
        "times_max",
        "waiters",
    )

    def __init__(self) -> None:
        self.base_offsets: list[int] = []
        self.batches: list[bytes] = []
        self.times_max: list[int] = []  # running maximum, so that a look-up by time can bisect
        self.start_offset = self.next_offset = 0
        self.waiters: set[asyncio.Future] = set()
        self.sequences: dict[
            int, tuple[int, int, int]
        ] = {}  # producer id -> (epoch, last sequence, its offset)

    def append(self, raw: bytes) -> tuple[int, int]:
        """Append one or more batches; returns (error, base offset of the first).

        A repeated batch of an idempotent producer is acknowledged with its old offset and not appended.
        """
        view, at, first = memoryview(raw), 0, None
        while at < len(raw):
            size = 12 + int.from_bytes(view[at + _LENGTH_AT : at + _EPOCH_AT], "big")
            _, last_delta, _, time_max, pid, epoch, sequence, count = _HEAD.unpack_from(view, at + _HEAD_AT)
            if pid >= 0:
                error, seen = self._sequence(pid, epoch, sequence, count)
                if error or seen >= 0:
                    return error, seen
            batch = bytearray(view[at : at + size])
            batch[0:8] = self.next_offset.to_bytes(8, "big")
            batch[_EPOCH_AT : _EPOCH_AT + 4] = bytes(4)
            first = self.next_offset if first is None else first
            self.base_offsets.append(self.next_offset)
            self.batches.append(bytes(batch))
            self.times_max.append(max(time_max, self.times_max[-1] if self.times_max else time_max))
            self.next_offset += last_delta + 1
            at += size
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.waiters.clear()
        return OK, -1 if first is None else first

    def _sequence(self, pid: int, epoch: int, sequence: int, count: int) -> tuple[int, int]:
        """(error, offset of the batch if it is a repeat, else -1); notes the sequence of a new one."""
        epoch_seen, last, offset = self.sequences.get(pid, (epoch, -1, -1))
        if epoch < epoch_seen:
            return INVALID_PRODUCER_EPOCH, -1
        if epoch > epoch_seen:
            last = -1
        if sequence <= last:
            return OK, offset
        if last >= 0 and sequence != last + 1:
            return OUT_OF_ORDER_SEQUENCE, -1
        self.sequences[pid] = (epoch, sequence + count - 1, self.next_offset)
        return OK, -1

    def read(self, offset: int, max_bytes: int) -> bytes:
        """Whole batches from the one that holds `offset` on, at least one, then up to max_bytes."""
        at = end = max(0, bisect_right(self.base_offsets, offset) - 1)
        size = 0
        while end < len(self.batches) and (end == at or size + len(self.batches[end]) <= max_bytes):
            size += len(self.batches[end])
            end += 1
        return b"".join(self.batches[at:end])

    def offset_at(self, time_ms: int) -> tuple[int, int]:
        """(offset, time) of the first record at or after time_ms; (-1, -1) when there is none."""
        for i in range(bisect_left(self.times_max, time_ms), len(self.batches)):
            for record in MemoryRecords(self.batches[i]).next_batch():
                if record.timestamp >= time_ms:
                    return record.offset, record.timestamp
        return -1, -1
