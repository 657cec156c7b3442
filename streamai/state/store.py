"""The checkpoint of an engine on disk: one RocksDB a partition. The only door to rocksdict.

Keys
    m             meta: JSON of format, fence, watermark, digests, layout
    v             catalogue ids in index order, JSON
    k + hash128   a key's row: u2 length of the key, the key, the row as it lies in the slab
    i + u4        an item's row
    c + i8        log of count updates since the checkpoint before, named by its first offset
    r + u4        a run of rows of the counts table, named by its first row
    o             what the ranking head learnt online
Every value begins with FORMAT. All numbers in names are big endian, so that RocksDB's order is theirs.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rocksdict

from streamai.errors import StateError

log = logging.getLogger("streamai.state")

FORMAT = b"\x01"


@dataclass
class Checkpoint:
    """What one atomic write holds: everything that changed between two barriers, and the fence.

    fence       first offset whose effects are not in the state
    hashes      16 bytes a row (hash0, hash1 little endian); names its place in the store
    keys        key bytes, parallel to hashes
    rows        u1[n, R] copies of the dirty rows; slots i8[n] where they came from
    items       i8[m] indices, item_rows u1[m, B]
    log         packed counts.LOG records; log_at their first offset (-1: none)
    runs        [(first row, bytes)] of the counts table
    log_gone    first offsets of the log chunks that are no longer needed
    drop_runs   whether the runs in the store go first
    meta        JSON-able; written with the fence
    online      what the ranking head learnt, whole
    """

    fence: int
    hashes: list[bytes]
    keys: list[bytes]
    rows: np.ndarray
    slots: np.ndarray
    items: np.ndarray
    item_rows: np.ndarray
    log: bytes
    log_at: int
    runs: list[tuple[int, bytes]]
    log_gone: list[int]
    drop_runs: bool
    meta: dict
    vocabulary: list[str] | None = None
    online: bytes = b""
    took_ns: int = field(default=0)

    def nbytes(self) -> int:
        """Bytes handed to the store, before its compression."""
        runs = sum(len(b) for _, b in self.runs)
        return self.rows.nbytes + self.item_rows.nbytes + len(self.log) + runs + sum(map(len, self.keys))

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        for h, key, row in zip(self.hashes, self.keys, self.rows, strict=True):
            yield b"k" + h, FORMAT + struct.pack("<H", len(key)) + key + row.tobytes()
        for i, row in zip(self.items.tolist(), self.item_rows, strict=True):
            yield b"i" + struct.pack(">I", i), FORMAT + row.tobytes()
        if self.log:
            yield _chunk(self.log_at), FORMAT + self.log
        for first, data in self.runs:
            yield b"r" + struct.pack(">I", first), FORMAT + data
        if self.online:
            yield b"o", FORMAT + self.online
        if self.vocabulary is not None:
            yield b"v", FORMAT + json.dumps(self.vocabulary).encode()
        yield b"m", FORMAT + json.dumps({**self.meta, "fence": self.fence}).encode()


def _chunk(first: int) -> bytes:
    """Name of the log chunk that begins with offset `first`."""
    return b"c" + struct.pack(">q", first)


def _value(raw: bytes, name: bytes, where: str) -> bytes:
    if raw[:1] != FORMAT:
        raise StateError(
            f"{where}: entry {name!r} has format {raw[:1]!r}, this version reads {FORMAT!r}. "
            "Use the version that wrote it, or remove the folder to rebuild the state from the topic."
        )
    return raw[1:]


class MemoryStore:
    """The same store in a dict, for replays and tests that need no disk."""

    where = "memory"

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}

    def get(self, name: bytes) -> bytes | None:
        raw = self.data.get(name)
        return None if raw is None else _value(raw, name, self.where)

    def load(self, hashes: list[bytes]) -> list[bytes | None]:
        """Stored values (u2 length, key, row) of keys, None where unknown."""
        return [self.get(b"k" + h) for h in hashes]

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(name without prefix, value) in order of name."""
        for name in sorted(n for n in self.data if n[:1] == prefix):
            yield name[1:], _value(self.data[name], name, self.where)

    def write(self, checkpoint: Checkpoint) -> None:
        if checkpoint.drop_runs:
            for name in [n for n in self.data if n[:1] == b"r"]:
                del self.data[name]
        for at in checkpoint.log_gone:
            self.data.pop(_chunk(at), None)
        self.data.update(checkpoint.entries())

    def meta(self) -> dict | None:
        raw = self.get(b"m")
        return None if raw is None else json.loads(raw)

    def vocabulary(self) -> list[str] | None:
        raw = self.get(b"v")
        return None if raw is None else json.loads(raw)

    def sync(self) -> None:
        """Nothing to do: memory is as durable as it gets."""

    def size_bytes(self) -> int:
        return sum(len(n) + len(v) for n, v in self.data.items())

    def close(self) -> None:
        """Nothing to release."""


class Store(MemoryStore):
    """RocksDB in `folder`; one process at a time.

    wait_s: how long to wait for another process that still holds the folder (a rebalance hands it over).
    """

    def __init__(self, folder: str | Path, wait_s: float = 0.0, read_only: bool = False) -> None:
        self.where = str(folder)
        try:
            Path(folder).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(
                f"the folder of the state cannot be made: {error}. Name another with state.folder "
                "(STREAMAI_FOLDER), or --state of a replay"
            ) from error
        access = rocksdict.AccessType.read_only() if read_only else rocksdict.AccessType.read_write()
        until = time.monotonic() + wait_s
        while True:
            try:
                self.db = rocksdict.Rdict(self.where, _options(), access_type=access)
                return
            except Exception as error:  # rocksdict raises plain Exception for every RocksDB status
                if "lock" in str(error).lower() and time.monotonic() < until:
                    time.sleep(0.05)
                    continue
                raise StateError(
                    f"cannot open the state in {self.where}: {error}. Expected a folder that no other "
                    "process uses; stop the other worker, or remove the folder to rebuild the state "
                    "from the topic."
                ) from error

    def get(self, name: bytes) -> bytes | None:
        raw = self.db.get(name)
        return None if raw is None else _value(raw, name, self.where)

    def load(self, hashes: list[bytes]) -> list[bytes | None]:
        names = [b"k" + h for h in hashes]
        return [
            None if raw is None else _value(raw, name, self.where)
            for name, raw in zip(names, self.db.get(names), strict=True)
        ]

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        for name, raw in self.db.items(from_key=prefix):
            if name[:1] != prefix:
                return
            yield name[1:], _value(raw, name, self.where)

    def write(self, checkpoint: Checkpoint) -> None:
        """One atomic batch; survives the process, and the machine after the next `sync`.

        StateError when the disk takes no more: the store is as it was.
        """
        began = time.perf_counter_ns()
        batch = rocksdict.WriteBatch(raw_mode=True)
        if checkpoint.drop_runs:
            batch.delete_range(b"r", b"s")
        # one by one: ranges that were deleted make the first read after each write slow, 15 ms after 2,000
        for at in checkpoint.log_gone:
            batch.delete(_chunk(at))
        for name, value in checkpoint.entries():
            batch.put(name, value)
        try:
            self.db.write(batch)
        except Exception as error:  # rocksdict raises plain Exception for every RocksDB status
            raise StateError(
                f"cannot write the state in {self.where}: {error}. Is the disk full? The state stands at the "
                "checkpoint before; nothing is lost"
            ) from error
        checkpoint.took_ns = time.perf_counter_ns() - began

    def sync(self) -> None:
        """fsync of the write-ahead logs, from here: rocksdict's own would hold the interpreter's lock for the
        4 to 8 ms that a disk takes. RocksDB syncs its table files itself before it drops a log."""
        folder = Path(self.where)
        for path in [*folder.glob("*.log"), folder]:
            try:
                handle = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue  # its rows are in a table file by now
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def copy(self, folder: str | Path) -> None:
        """The store as it is now, as a store of its own in a folder that is not there yet: table files are
        hard links where the file system is the same."""
        Path(folder).parent.mkdir(parents=True, exist_ok=True)
        try:
            rocksdict.Checkpoint(self.db).create_checkpoint(str(folder))
        except Exception as error:  # rocksdict raises plain Exception for every RocksDB status
            raise StateError(f"cannot copy the state in {self.where} to {folder}: {error}") from error

    def size_bytes(self) -> int:
        return sum(p.stat().st_size for p in Path(self.where).iterdir() if p.is_file())

    def close(self) -> None:
        try:
            self.db.close()
        except Exception as error:  # after a write that failed; what was written before is on disk
            log.warning("closing the state in %s: %s", self.where, error)


def _options() -> rocksdict.Options:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_compression_type(rocksdict.DBCompressionType.lz4())
    options.set_bottommost_compression_type(rocksdict.DBCompressionType.zstd())
    options.set_write_buffer_size(32 << 20)
    options.set_max_write_buffer_number(3)
    options.set_keep_log_file_num(3)
    options.set_max_total_wal_size(128 << 20)
    return options
