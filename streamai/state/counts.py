"""The counts table between checkpoints: a log of updates and a rolling snapshot, 1/256 of the rows a time.

One event touches some twenty rows, so rows are not written one by one. Restoring is the newest snapshot of
every run of rows, then the log records that are newer than each row's own: the same bits.
"""

from __future__ import annotations

import struct

import numpy as np

from streamai.errors import StateError
from streamai.kernels import context as c
from streamai.kernels import counts as kernel

RUNS = 256
LOG_MAX = 1 << 15
POPULAR = 64
DAY_NS = 86_400 * 10**9
_HEAD = struct.Struct("<qqq")  # offset and landmark of a run, its number of rows


class CountsState:
    """Arrays of kernels/counts.py for a catalogue, and what of them a checkpoint takes."""

    def __init__(self, settings, catalogue) -> None:
        n = 0 if catalogue is None else len(catalogue.available)
        width = -(-settings.neighbours // 16) * 16
        self.n, self.log_max = n, LOG_MAX if n else 1
        self.ids, self.w = np.zeros((n, width), "i4"), np.zeros((n, width), "f4")
        self.pop, self.fast, self.norm = (np.zeros(n, "f4") for _ in range(3))
        self.top_pop, self.top_fast = np.zeros(POPULAR, "i4"), np.zeros(POPULAR, "i4")
        self.log = np.zeros(self.log_max, kernel.LOG)
        self.tau = np.array([settings.tau_days * DAY_NS, settings.fast_tau_days * DAY_NS])
        self.rows_a_run = max(1, -(-n // RUNS))
        self.runs = -(-n // self.rows_a_run)
        self.next_run = 0
        self.chunks: list[int] = []  # first offsets of the log chunks in the store, oldest first
        self.fences = np.zeros(self.runs, "i8")  # of the newest snapshot of every run
        self.all_runs = False
        self.clock: np.ndarray | None = None
        self.seen_rescales = 0

    def arrays(self) -> dict[str, np.ndarray]:
        """By the names of context.STATE."""
        names = ("ids", "w", "pop", "fast", "norm", "top_pop", "top_fast", "log", "tau")
        return {name: getattr(self, name) for name in names} | {"joint": self.norm}

    def bind(self, clock: np.ndarray) -> None:
        """The engine's clock, which counts the records logged."""
        self.clock = clock

    def room(self) -> int:
        """Events that fit into the log before the next barrier."""
        return self.log_max - int(self.clock[c.LOGGED]) if self.n else 1 << 30

    def take(self, clock: np.ndarray, fence: int):
        """What a checkpoint at `fence` takes: (log bytes, its first offset, runs, first offsets of the log
        chunks that are no longer needed, whether the runs in the store are to go)."""
        if not self.n:
            return b"", -1, [], [], False
        count = int(clock[c.LOGGED])
        log = self.log[:count].tobytes()
        at = int(self.log["offset"][0]) if count else -1
        clock[c.LOGGED] = 0
        if count:
            self.chunks.append(at)
        everything = self.all_runs or int(clock[c.RESCALED]) != self.seen_rescales
        self.seen_rescales, self.all_runs = int(clock[c.RESCALED]), False
        which = range(self.runs) if everything else [self.next_run]
        runs = [(r * self.rows_a_run, self._run(r, fence, int(clock[c.LANDMARK]))) for r in which]
        self.fences[which] = fence
        self.next_run = (self.next_run + 1) % self.runs
        # a chunk ends where the next begins; it is needed until every run is newer than its end
        oldest, keep = int(self.fences.min()), 0
        while keep + 1 < len(self.chunks) and self.chunks[keep + 1] <= oldest:
            keep += 1
        gone, self.chunks = self.chunks[:keep], self.chunks[keep:]
        return log, at, runs, gone, everything

    def _run(self, run: int, fence: int, landmark: int) -> bytes:
        cut = slice(run * self.rows_a_run, min((run + 1) * self.rows_a_run, self.n))
        parts = (self.ids[cut], self.w[cut], self.pop[cut], self.fast[cut], self.norm[cut])
        return _HEAD.pack(fence, landmark, cut.stop - cut.start) + b"".join(p.tobytes() for p in parts)

    def meta(self, clock: np.ndarray) -> dict:
        return {
            "landmark": int(clock[c.LANDMARK]), "next_run": self.next_run, "rows_a_run": self.rows_a_run,
            "counts_width": self.ids.shape[1], "tau_ns": self.tau.tolist(),
        }  # fmt: skip

    def restore(self, store, clock: np.ndarray, meta: dict) -> None:
        """Runs, then the log; the clock's landmark and the popular lists with them."""
        if not self.n:  # a flow without its catalogue for a while hands on what it found
            clock[c.LANDMARK], self.next_run = meta["landmark"], meta["next_run"]
            return
        if meta["counts_width"] != self.ids.shape[1] or meta["tau_ns"] != self.tau.tolist():
            raise StateError(
                f"the counts in {store.where} have {meta['counts_width']} neighbours and decay "
                f"{meta['tau_ns']} ns, this flow {self.ids.shape[1]} and {self.tau.tolist()}: remove the "
                "folder to rebuild the state."
            )
        offsets = np.zeros(self.n, "i8")
        oldest: tuple[int, int] | None = None
        covered = 0
        for name, data in store.scan(b"r"):
            first = int.from_bytes(name, "big")
            fence, landmark, rows = _HEAD.unpack_from(data)
            cut = slice(first, first + rows)
            offsets[cut] = fence
            covered += rows
            if first % self.rows_a_run == 0 and first < self.n:
                self.fences[first // self.rows_a_run] = fence
            oldest = min(oldest, (fence, landmark)) if oldest else (fence, landmark)
            at = _HEAD.size
            for array in (self.ids, self.w, self.pop, self.fast, self.norm):
                part = np.frombuffer(data, array.dtype, array[cut].size, at)
                array[cut] = part.reshape(array[cut].shape)
                at += part.nbytes
        # rows that were never snapshotted start empty; all runs have one landmark, or were taken before there
        # was one: a rescale writes them all
        clock[c.LANDMARK] = oldest[1] if oldest else 0
        for name, data in store.scan(b"c"):
            self.chunks.append(int.from_bytes(name, "big", signed=True))
            kernel.replay(
                np.frombuffer(data, kernel.LOG), offsets, self.ids, self.w, self.pop, self.fast, self.norm,
                clock, self.tau,
            )  # fmt: skip
        clock[c.LANDMARK] = meta["landmark"]
        kernel.rebuild_popular(self.pop, self.top_pop)
        kernel.rebuild_popular(self.fast, self.top_fast)
        self.next_run, self.seen_rescales = meta["next_run"], int(clock[c.RESCALED])
        # a grown catalogue has other runs: write them all once
        self.all_runs = meta["rows_a_run"] != self.rows_a_run or covered > self.n
