"""Nearest-neighbour recommenders over the keys' histories, learnt as the events pass: VMIS-kNN and STAN.

A session is what a key did so far, its last HISTORY items. Both look at the keys that most recently had one
of the session's items, keep those most alike, and add up what these had last.

VMIS-kNN (Kersbergen, Sprangers, Schelter, SIGMOD 2022): likeness r(n) = sum over shared items of their place
in the session / its length; score(j) = sum over neighbours with j of lambda(x) r(n) log(H / h_j), x the place
of the newest shared item from the session's end, lambda(x) = 1 - x / 10 for x < 10, else 0; h_j of all H keys
had j.

STAN (Garg et al., SIGIR 2019): likeness = sum over shared items of exp((place - length) / L1), over
sqrt(|s| |n|), times exp(-age of the neighbour's last event / L2); an item of a neighbour counts
exp(-|its place - that of the newest shared item| / L3).
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from streamai.evaluate.baselines import (
    Baseline,
    Counts,
    DecayedPopularity,
    History,
    Markov1,
    OwnFrequencies,
    Popularity,
)
from streamai.flow import Counts as CountsSettings

HISTORY = 50
"""Items of a key that count, as a session and as a neighbour."""
RECENT = 500
"""Keys that are remembered of an item: those that had it last."""
NEIGHBOURS = 100
DAY_NS = 86_400_000_000_000


class Postings:
    """Who had an item last: for each item the keys, newest last, each once."""

    def __init__(self, recent: int = RECENT) -> None:
        self.recent = recent
        self.keys: dict[int, dict[int, None]] = defaultdict(dict)
        self.had: dict[int, set[int]] = defaultdict(set)

    def learn(self, key: int, item: int) -> None:
        """One event."""
        keys = self.keys[item]
        keys.pop(key, None)
        keys[key] = None
        if len(keys) > self.recent:
            del keys[next(iter(keys))]
        self.had[item].add(key)

    def of(self, item: int) -> np.ndarray:
        """i8[<= recent] keys that had it."""
        return np.fromiter(self.keys.get(item, ()), np.int64)


class _Neighbours:
    """What both share: the session, the keys that share an item with it, and the sums over items."""

    def __init__(self, n: int, keys: int) -> None:
        self.n, self.postings = n, Postings()
        self.seen_keys: set[int] = set()
        self.last_ns = np.zeros(keys, np.int64)
        self.length = np.zeros(keys, np.int64)
        self.likeness, self.newest = np.zeros(keys), np.zeros(keys, np.int64)

    def learn(self, key: int, item: int, event_ts_ns: int, history: History) -> None:
        self.seen_keys.add(key)
        self.last_ns[key] = max(self.last_ns[key], event_ts_ns)
        self.length[key] = min(HISTORY, self.length[key] + 1)
        if item >= 0:
            self.postings.learn(key, item)

    def _near(self, key: int, session: list[int], weight: np.ndarray) -> np.ndarray:
        """Keys that share an item with the session (newest first): likeness gets the sum of the shared items'
        weights, newest the place from the end, 1 = last, of the newest shared one."""
        met = []
        done: set[int] = set()
        for x in range(len(session) - 1, -1, -1):  # the oldest first, so that the newest place stands
            keys = self.postings.of(session[x]) if session[x] >= 0 else np.zeros(0, np.int64)
            met.append(keys)
            self.newest[keys] = x + 1
        for x, item in enumerate(session):  # an item that came twice counts where it came last
            if item >= 0 and item not in done:
                done.add(item)
                self.likeness[met[len(session) - 1 - x]] += weight[x]
        near = np.unique(np.concatenate(met)) if met else np.zeros(0, np.int64)
        return near[near != key]

    def _forget(self, key: int, near: np.ndarray) -> None:
        self.likeness[near] = 0
        self.likeness[key] = 0

    @staticmethod
    def _best(near: np.ndarray, worth: np.ndarray) -> np.ndarray:
        """Places in `near` of the NEIGHBOURS best, ties to the lower key."""
        return np.lexsort((near, -worth))[:NEIGHBOURS]


class VmisKnn(_Neighbours):
    """See the module's head."""

    name = "VMIS-kNN"

    def scores(self, key: int, event_ts_ns: int, history: History) -> np.ndarray:
        """f8[n] over the catalogue; 0 = nothing known."""
        session = history.newest(key, HISTORY)
        length = len(session)
        near = self._near(key, session, (length - np.arange(length)) / max(length, 1))
        like, place = self.likeness[near].copy(), self.newest[near].copy()
        self._forget(key, near)
        out = np.zeros(self.n)
        for k in self._best(near, like):
            x = int(place[k])
            if x < 10:
                items = np.unique([i for i in history.newest(int(near[k]), HISTORY) if i >= 0])
                out[items] += (1 - x / 10) * like[k]
        found = np.flatnonzero(out)
        had = np.array([len(self.postings.had[i]) for i in found.tolist()])
        out[found] *= np.log(np.maximum(1.0001, len(self.seen_keys) / np.maximum(1, had)))
        return out


class Stan(_Neighbours):
    """See the module's head; L1 and L3 in places, L2 in time, as its authors set them for YooChoose."""

    name = "STAN"
    L1, L2_NS, L3 = 1.02, 5 * DAY_NS, 2.05

    def scores(self, key: int, event_ts_ns: int, history: History) -> np.ndarray:
        """f8[n] over the catalogue; 0 = nothing known."""
        session = history.newest(key, HISTORY)
        near = self._near(key, session, np.exp(-np.arange(len(session)) / self.L1))
        like, place = self.likeness[near].copy(), self.newest[near].copy()
        self._forget(key, near)
        like /= np.sqrt(max(1, len(session)) * np.maximum(1, self.length[near]))
        like *= np.exp(-np.maximum(0, event_ts_ns - self.last_ns[near]) / self.L2_NS)
        out = np.zeros(self.n)
        for k in self._best(near, like):
            theirs = np.array(history.newest(int(near[k]), HISTORY))
            shared = session[int(place[k]) - 1]
            at = np.flatnonzero(theirs == shared)
            if not len(at):
                continue
            worth = like[k] * np.exp(-np.abs(np.arange(len(theirs)) - at[0]) / self.L3)
            np.add.at(out, theirs[theirs >= 0], worth[theirs >= 0])
        return out


def all_baselines(catalogue, settings: CountsSettings, keys: int) -> list[Baseline]:
    """One of each baseline, for a catalogue and so many keys."""
    n = len(catalogue.available)
    simple = [Popularity(n), DecayedPopularity(n), DecayedPopularity(n, 1.0), OwnFrequencies(n), Markov1(n)]
    return [*simple, Counts(settings, catalogue), VmisKnn(n, keys), Stan(n, keys)]
