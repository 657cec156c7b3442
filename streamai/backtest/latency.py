"""How long an event takes to be scored: measured once as a histogram, drawn again with a seed.

A backtest that charges no compute time trades on prices that were gone when the score was ready. The
histogram is measured on the very engine that is tested, an event at a time (`measure`), kept as JSON, and
drawn by event number and seed only: the same draw for any batch size, machine or numpy.
"""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from streamai.errors import InputError

DEFAULT = pathlib.Path(__file__).parent / "compute.json"
"""The histogram used when none is named; its `source` says on what it was measured."""

BUCKETS_PER_OCTAVE = 8
MIN_NS, MAX_NS = 256, 1 << 34


def edges_ns() -> np.ndarray:
    """i8[B + 1]: bucket limits, 8 to a doubling from 256 ns to 17 s, the first from 0."""
    octaves = int(np.log2(MAX_NS // MIN_NS))
    steps = np.round(MIN_NS * 2 ** (np.arange(octaves * BUCKETS_PER_OCTAVE + 1) / BUCKETS_PER_OCTAVE))
    return np.concatenate([[0], steps.astype(np.int64)])


@dataclass(frozen=True)
class Histogram:
    """Counts of times: bucket b holds `counts[b]` of them in [edges_ns[b], edges_ns[b + 1]).

    source   what was measured, for people
    """

    edges_ns: np.ndarray
    counts: np.ndarray
    source: str = ""

    @classmethod
    def of(cls, times_ns: np.ndarray, source: str = "") -> Histogram:
        """Of measured times; what lies beyond the last limit counts in the last bucket."""
        edges = edges_ns()
        bucket = np.searchsorted(edges, np.asarray(times_ns, np.int64), side="right") - 1
        bucket = np.clip(bucket, 0, len(edges) - 2)
        return cls(edges, np.bincount(bucket, minlength=len(edges) - 1), source)

    @classmethod
    def load(cls, path: str | pathlib.Path) -> Histogram:
        """From a file of `save`. InputError says what is wrong with it."""
        try:
            data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
            edges = np.asarray(data["edges_ns"], np.int64)
            counts = np.asarray(data["counts"], np.int64)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise InputError(f"{path} is no histogram: expected JSON with edges_ns and counts") from error
        rising = edges.ndim == 1 and len(edges) > 1 and edges[0] >= 0 and bool((np.diff(edges) > 0).all())
        if not rising or counts.shape != (len(edges) - 1,) or counts.min() < 0 or counts.sum() == 0:
            raise InputError(
                f"{path} is no histogram: edges_ns must rise from 0 or more, counts must be one fewer, "
                "none negative and not all zero"
            )
        return cls(edges, counts, str(data.get("source", "")))

    def save(self, path: str | pathlib.Path) -> None:
        """As JSON, empty buckets at both ends left out."""
        used = np.flatnonzero(self.counts)
        low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        data = {
            "source": self.source,
            "edges_ns": self.edges_ns[low : high + 1].tolist(),
            "counts": self.counts[low:high].tolist(),
        }
        pathlib.Path(path).write_text(json.dumps(data) + "\n", encoding="utf-8")

    def draw(self, n: int, seed: int) -> np.ndarray:
        """i8[n]: times like the measured ones; entry i depends on i and the seed alone."""
        at = np.arange(n, dtype=np.uint64) * np.uint64(2) + _mix(np.array([seed % (1 << 64)], np.uint64))
        total = np.cumsum(self.counts)
        bucket = np.searchsorted(total, (_mix(at) % np.uint64(total[-1])).astype(np.int64), side="right")
        low, high = self.edges_ns[bucket], self.edges_ns[bucket + 1]
        inside = _mix(at + np.uint64(1)) % (high - low).astype(np.uint64)
        return low + inside.astype(np.int64)

    def quantile_ns(self, q: float) -> int:
        """Upper limit of the bucket that holds the q-th part of the times."""
        total = np.cumsum(self.counts)
        return int(self.edges_ns[np.searchsorted(total, q * total[-1]) + 1])


def measure(step: Callable[[int], object], n: int, warm: int = 500, source: str = "") -> Histogram:
    """Time n calls `step(i)`, i from `warm` on; calls 0..warm-1 are made first and not counted.

    `step(i)` scores event i alone, as a worker with an empty queue does.
    """
    for i in range(warm):
        step(i)
    times_ns = np.empty(n, np.int64)
    clock = time.perf_counter_ns
    for i in range(n):
        begin = clock()
        step(warm + i)
        times_ns[i] = clock() - begin
    return Histogram.of(times_ns, source)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): u8[n] -> u8[n], evenly spread."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
