"""Ranks of targets by model, and what is reported of them."""

from __future__ import annotations

import numpy as np

from streamai.evaluate import metrics as m
from streamai.evaluate.protocols import Task

LIST = 50
"""Length of the lists that are judged."""
SHOWN = 10
"""Of those, how many count for coverage and exposure."""
WINDOW = 10_000
"""Targets, in the order of time, that one figure of how quality moves is of."""
COLD_EVENTS = 5
"""An item with so many events or fewer is cold: hardly anything is known of it but its text."""


class Tally:
    """Ranks and exposures of one model: `all` ranks every item; `new` leaves out what the key had before, and
    judges only by targets that are new to the key; `cold` ranks cold targets among the cold items alone."""

    MODES = ("all", "new")
    RANKS = (*MODES, "cold")

    def __init__(self, task: Task, items: int) -> None:
        self.at = task.target_at
        self.group = np.repeat(np.arange(len(self.at) - 1), np.diff(self.at))  # list of each target
        self.rank = {mode: np.full(len(task.target), m.MISS, np.int64) for mode in self.RANKS}
        self.shown = {mode: np.zeros(items, np.int64) for mode in self.RANKS}

    def dense(
        self, s: int, scores: np.ndarray, target: np.ndarray, repeat: np.ndarray, seen: np.ndarray,
        cold: np.ndarray,
    ) -> None:  # fmt: skip
        """List s as scores of all items; its targets i8[k], which of them repeat, the items the key had, and
        which items are cold, bool[N]."""
        at = self.at[s]
        if (cold[target] & (target >= 0)).any():
            among = np.where(cold[: len(scores)], scores, 0)
            for j in np.flatnonzero(cold[target] & (target >= 0)):
                self.rank["cold"][at + j] = m.rank_dense(among, target[j])
            self.shown["cold"][m.top(among, SHOWN)] += 1
        for j in range(len(target)):
            self.rank["all"][at + j] = m.rank_dense(scores, target[j])
            if not repeat[j]:
                self.rank["new"][at + j] = m.rank_dense(scores, target[j], seen)
        self.shown["all"][m.top(scores, SHOWN)] += 1
        self.shown["new"][m.top(scores, SHOWN, seen)] += 1

    def listed(
        self, mode: str, s: int, items: np.ndarray, target: np.ndarray, repeat: np.ndarray, cold: np.ndarray
    ) -> None:
        """List s as items i4[...], best first, -1 = no more. Cold targets are ranked among its cold items."""
        for j in range(len(target)):
            if mode == "all" or not repeat[j]:
                self.rank[mode][self.at[s] + j] = m.rank_listed(items, target[j])
            if mode == "all" and target[j] >= 0 and cold[target[j]]:
                among = items[(items >= 0) & cold[items]]
                self.rank["cold"][self.at[s] + j] = m.rank_listed(among, target[j])
        shown = items[:SHOWN]
        self.shown[mode][shown[shown >= 0]] += 1

    def report(self, repeat: np.ndarray, available: np.ndarray, cold: np.ndarray) -> dict:
        """repeat bool[T]: targets that the key had before, which `new` does not count; cold bool[T]: targets
        that hardly anyone had; available bool[N]."""
        return {
            mode: _figures(self.rank[ranks][use], self.group[use], self.shown[ranks][available])
            for mode, (ranks, use) in _used(repeat, cold).items()
        }


def _used(repeat: np.ndarray, cold: np.ndarray) -> dict[str, tuple[str, np.ndarray]]:
    """What is reported -> whose ranks, and which targets it counts, bool[T]."""
    return {
        "all": ("all", np.ones(len(repeat), bool)),
        "new": ("new", ~repeat),
        "cold": ("all", cold),
        "cold_among": ("cold", cold),
    }


def paired(tally: Tally, others: dict[str, Tally], repeat: np.ndarray, cold: np.ndarray) -> dict:
    """NDCG@10 of `tally` less that of each other, target by target, the error of that mean, and its 95 %
    interval by bootstrap over the lists.

    Two models that meet the same targets err together, so this is far sharper than two errors side by side.
    """
    out = {}
    for mode, (ranks, use) in _used(repeat, cold).items():
        own, out[mode] = m.ndcg(tally.rank[ranks][use], 10), {}
        for name, other in others.items():
            less = own - m.ndcg(other.rank[ranks][use], 10)
            mean, error = m.mean_and_error(less, tally.group[use])
            low, high = m.bootstrap(less, tally.group[use])
            out[mode][name] = {
                "ndcg@10": mean, "ndcg@10_se": error, "ndcg@10_low": low, "ndcg@10_high": high,
            }  # fmt: skip
    return out


def windows(values: np.ndarray) -> list[float]:
    """Means of WINDOW values after the other, in the order of the targets; of the last ones, if there are at
    least half as many."""
    parts = [values[at : at + WINDOW] for at in range(0, len(values), WINDOW)]
    return [float(part.mean()) for part in parts if len(part) >= WINDOW // 2]


def _figures(ranks: np.ndarray, group: np.ndarray, shown: np.ndarray) -> dict:
    out = {"targets": len(ranks)}
    for name, values in (
        ("hr@1", m.hits(ranks, 1)), ("hr@10", m.hits(ranks, 10)), ("hr@20", m.hits(ranks, 20)),
        ("hr@50", m.hits(ranks, 50)), ("ndcg@10", m.ndcg(ranks, 10)), ("mrr@20", m.mrr(ranks, 20)),
    ):  # fmt: skip
        out[name], out[f"{name}_se"] = m.mean_and_error(values, group)
    out["ndcg@10_windows"] = windows(m.ndcg(ranks, 10))
    out["coverage@10"] = float(np.count_nonzero(shown) / max(len(shown), 1))
    out["gini@10"] = m.gini(shown)
    return out


class Warm:
    """For every list in turn (its number, which items are cold, bool[N]): those with at most COLD_EVENTS
    events, with any key, when the list was served. The array is the same one, overwritten."""

    def __init__(self, task: Task, item: np.ndarray, items: int) -> None:
        self.task, self.item, self.items = task, item, items

    def __iter__(self):
        met, cold, row = np.zeros(self.items, np.int64), np.ones(self.items, bool), 0
        for s, ask in enumerate(self.task.ask.tolist()):
            fed = self.item[row : ask + 1]
            fed, row = fed[fed >= 0], ask + 1
            np.add.at(met, fed, 1)
            cold[fed] = met[fed] <= COLD_EVENTS
            yield s, cold
