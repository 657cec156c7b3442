"""What a recommender has to beat: popularity, a key's own habits, one step of memory, counts.

All see the same events in the same order and are asked at the same moments as the flow under test. Scores
are f4[N] over the catalogue, 0 = nothing known; an item outside the catalogue (-1) teaches nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Protocol

import numpy as np

from streamai.flow import Counts as CountsSettings
from streamai.kernels import context as c
from streamai.kernels import counts as kernel
from streamai.state.counts import DAY_NS, CountsState

_GROWTH_MAX = 200.0  # time constants after which decayed weights are rescaled


class History:
    """The items of every key, in order."""

    def __init__(self) -> None:
        self.items: dict[int, list[int]] = defaultdict(list)

    def add(self, key: int, item: int) -> None:
        self.items[key].append(item)

    def newest(self, key: int, n: int) -> list[int]:
        """The last n items of a key, most recent first."""
        return self.items[key][: -n - 1 : -1]

    def seen(self, key: int) -> np.ndarray:
        """The distinct items of a key that are in the catalogue."""
        return np.array(sorted({i for i in self.items[key] if i >= 0}), np.int64)


class Baseline(Protocol):
    """learn: one event, before `history` has it. scores: overwritten by the next call."""

    name: str

    def learn(self, key: int, item: int, event_ts_ns: int, history: History) -> None: ...

    def scores(self, key: int, event_ts_ns: int, history: History) -> np.ndarray: ...


class Popularity:
    """How often an item came, ever."""

    name = "popularity"

    def __init__(self, n: int) -> None:
        self.count = np.zeros(n, np.float32)

    def learn(self, key: int, item: int, event_ts_ns: int, history: History) -> None:
        if item >= 0:
            self.count[item] += 1

    def scores(self, key: int, event_ts_ns: int, history: History) -> np.ndarray:
        return self.count


class DecayedPopularity:
    """How often an item came lately: a weight falls by e every tau. Forward decay."""

    def __init__(self, n: int, tau_days: float = 7.0) -> None:
        self.name = f"popularity {tau_days:g}d"
        self.tau_ns = tau_days * DAY_NS
        self.weight = np.zeros(n, np.float64)
        self.landmark: int | None = None

    def learn(self, key: int, item: int, event_ts_ns: int, history: History) -> None:
        if item < 0:
            return
        if self.landmark is None:
            self.landmark = event_ts_ns
        age = (event_ts_ns - self.landmark) / self.tau_ns
        if age > _GROWTH_MAX:
            self.weight *= math.exp(-age)
            self.landmark, age = event_ts_ns, 0.0
        self.weight[item] += math.exp(age)

    def scores(self, key: int, event_ts_ns: int, history: History) -> np.ndarray:
        return self.weight


class _Sparse:
    """Scores of few items in an array that is zero elsewhere."""

    def __init__(self, n: int) -> None:
        self.dense = np.zeros(n, np.float32)
        self.used: list[int] = []

    def fill(self, counts: dict[int, float]) -> np.ndarray:
        self.dense[self.used] = 0
        self.used = list(counts)
        self.dense[self.used] = list(counts.values())
        return self.dense


class OwnFrequencies:
    """How often the key itself had the item."""

    name = "own frequencies"

    def __init__(self, n: int) -> None:
        self.out = _Sparse(n)

    def learn(self, key: int, item: int, event_ts_ns: int, history: History) -> None:
        """Everything is in the history."""

    def scores(self, key: int, event_ts_ns: int, history: History) -> np.ndarray:
        counts: dict[int, float] = defaultdict(float)
        for item in history.items[key]:
            if item >= 0:
                counts[item] += 1
        return self.out.fill(counts)


class Markov1:
    """How often the item came right after the key's last one, with any key."""

    name = "markov-1"

    def __init__(self, n: int) -> None:
        self.after: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        self.out = _Sparse(n)

    def learn(self, key: int, item: int, event_ts_ns: int, history: History) -> None:
        last = history.newest(key, 1)
        if item >= 0 and last and last[0] >= 0:
            self.after[last[0]][item] += 1

    def scores(self, key: int, event_ts_ns: int, history: History) -> np.ndarray:
        last = history.newest(key, 1)
        return self.out.fill(self.after.get(last[0], {}) if last else {})


class Counts:
    """Decayed sequential rules: the very kernel that the engine keeps (kernels/counts.py), alone."""

    name = "counts"

    def __init__(self, settings: CountsSettings, catalogue) -> None:
        self.settings = settings
        self.state = CountsState(settings, catalogue)
        self.clock = np.zeros(c.CLOCK_SIZE, np.int64)
        links = settings.scored * self.state.ids.shape[1]
        self.acc, self.touched = np.zeros(self.state.n, np.float32), np.zeros(links, np.int32)
        self.hist = np.zeros(max(settings.window, settings.scored), np.int32)
        self.m = 0

    def _recent(self, key: int, n: int, history: History) -> int:
        newest = history.newest(key, n)
        self.hist[: len(newest)] = newest
        return len(newest)

    def learn(self, key: int, item: int, event_ts_ns: int, history: History) -> None:
        if item < 0:
            return
        s, n = self.state, self._recent(key, self.settings.window, history)
        kernel.learn(
            s.ids, s.w, s.pop, s.fast, s.norm, s.top_pop, s.top_fast, self.clock, s.tau, self.hist, n, item,
            event_ts_ns,
        )  # fmt: skip

    def scores(self, key: int, event_ts_ns: int, history: History) -> np.ndarray:
        s, n = self.state, self._recent(key, self.settings.scored, history)
        kernel.clear(self.acc, self.touched, self.m)
        self.m = kernel.accumulate(
            s.ids, s.w, s.pop, s.norm, self.clock, s.tau, self.hist, n, event_ts_ns, self.acc, self.touched
        )
        return self.acc
