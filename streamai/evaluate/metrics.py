"""Measures of ranked lists and of forecasts, with their standard errors. numpy only.

Ranks begin at 1; a miss has a rank beyond every k. Equal scores count against the model.
"""

from __future__ import annotations

import numpy as np

MISS = np.iinfo(np.int32).max
"""Rank of a target that the model cannot name at all."""


def rank_dense(scores: np.ndarray, target: int, seen: np.ndarray | None = None) -> int:
    """Rank of `target` among all items: 1 + how many others score at least as much.

    scores f4[N]; 0 or less = nothing known, which no list shows: a MISS. So is target -1, no item of ours.
    seen   i4[m]: distinct items that are left out of the ranking (the target must not be one of them)
    """
    if target < 0 or not scores[target] > 0:
        return MISS
    least = scores[target]
    rank = int(np.count_nonzero(scores >= least))
    if seen is not None and len(seen):
        rank -= int(np.count_nonzero(scores[seen] >= least))
    return rank


def rank_listed(items: np.ndarray, target: int, seen: np.ndarray | None = None) -> int:
    """Rank of `target` in a list that was served, best first; -1 ends the list. MISS if it is not there.

    seen: items skipped before counting.
    """
    at = np.flatnonzero(items == target) if target >= 0 else ()
    if len(at) == 0:
        return MISS
    before = items[: at[0]]
    if seen is not None and len(seen):
        before = before[~np.isin(before, seen)]
    return len(before) + 1


def top(scores: np.ndarray, k: int, seen: np.ndarray | None = None) -> np.ndarray:
    """Indices of the k best of scores f4[N], ties to the lower index; items scored 0 or less are left out."""
    if seen is not None and len(seen):
        scores = scores.copy()
        scores[seen] = 0
    if len(scores) > 4 * k:
        edge = np.partition(scores, len(scores) - k)[len(scores) - k]
        found = np.flatnonzero(scores >= max(edge, np.finfo(np.float32).tiny))
    else:
        found = np.flatnonzero(scores > 0)
    return found[np.lexsort((found, -scores[found]))][:k]


def hits(ranks: np.ndarray, k: int) -> np.ndarray:
    """HR@k of each target: 1 if its rank is at most k. ranks i4[n] -> f8[n]."""
    return (ranks <= k).astype(np.float64)


def ndcg(ranks: np.ndarray, k: int) -> np.ndarray:
    """NDCG@k of each single target: 1 / log2(1 + rank) within k, else 0."""
    return np.where(ranks <= k, 1.0 / np.log2(1.0 + np.minimum(ranks, k + 1)), 0.0)


def mrr(ranks: np.ndarray, k: int) -> np.ndarray:
    """Reciprocal rank of each target within k, else 0."""
    return np.where(ranks <= k, 1.0 / np.maximum(ranks, 1), 0.0)


def mean_and_error(values: np.ndarray, group: np.ndarray | None = None) -> tuple[float, float]:
    """Mean and its standard error; (nan, nan) of nothing, error nan of one.

    group i8[n], ascending: values of one group (the targets of one list) are not independent, and count as
    one draw (cluster-robust error of a mean).
    """
    n = len(values)
    if n == 0:
        return float("nan"), float("nan")
    mean = float(np.mean(values))
    off = values - mean
    if group is not None:
        off = np.add.reduceat(off, np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]])))
    k = len(off)
    return mean, float(np.sqrt(off @ off * k / (k - 1)) / n) if k > 1 else float("nan")


def bootstrap(
    values: np.ndarray, group: np.ndarray | None = None, draws: int = 1000, seed: int = 0, share: float = 0.95
) -> tuple[float, float]:
    """Interval of the mean of values f8[n] by resampling groups with replacement (Efron 1979), percentiles.

    group i8[n], ascending: values of one group are drawn together; None: each by itself. The same seed gives
    the same interval; (nan, nan) of fewer than two groups.
    """
    n = len(values)
    if group is None:
        total, size = values, np.ones(n)
    else:
        starts = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]])) if n else np.zeros(0, int)
        total = np.add.reduceat(values, starts) if n else values
        size = np.diff(np.append(starts, n)).astype(np.float64)
    k = len(total)
    if k < 2:
        return float("nan"), float("nan")
    rng, means = np.random.default_rng(seed), np.zeros(draws)
    for i in range(draws):
        times = np.bincount(rng.integers(0, k, k), minlength=k)
        means[i] = (times @ total) / (times @ size)
    low, high = np.quantile(means, ((1 - share) / 2, (1 + share) / 2))
    return float(low), float(high)


def gini(exposures: np.ndarray) -> float:
    """Gini coefficient of how often each item was shown: 0 all alike, near 1 all on one item; nan of nothing.

    exposures i8[N], items never shown included.
    """
    x = np.sort(exposures.astype(np.float64))
    total = x.sum()
    n = len(x)
    if total == 0:
        return float("nan")
    return float((2 * np.arange(1, n + 1) - n - 1) @ x / (n * total))


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation; nan if fewer than 3 pairs or one side is constant."""
    if len(x) < 3:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else float("nan")


def average_ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 0, equal values share their mean rank."""
    order = np.argsort(x, kind="stable")
    values = x[order]
    first = np.concatenate([[True], values[1:] != values[:-1]])
    group = np.cumsum(first) - 1
    start = np.flatnonzero(first)
    stop = np.append(start[1:], len(x))
    out = np.empty(len(x))
    out[order] = ((start + stop - 1) / 2)[group]
    return out


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation (RankIC), ties by mean rank."""
    if len(x) < 3:
        return float("nan")
    return pearson(average_ranks(x), average_ranks(y))


def accuracy(truth: np.ndarray, guess: np.ndarray) -> float:
    """Share of equal labels; nan of nothing."""
    return float(np.mean(truth == guess)) if len(truth) else float("nan")


def macro_f1(truth: np.ndarray, guess: np.ndarray, classes: int = 3) -> float:
    """Mean F1 over the classes that occur in truth or guess; labels 0 .. classes - 1."""
    table = np.bincount(truth * classes + guess, minlength=classes * classes).reshape(classes, classes)
    both = table.sum(0) + table.sum(1)
    there = both > 0
    return float(np.mean(2 * np.diag(table)[there] / both[there])) if there.any() else float("nan")


def calibration_error(truth: np.ndarray, chance: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: |share that came true - mean confidence|, over bins of equal confidence.

    chance f4[n, 3] of each class; the confidence is the greatest of them. 0 = as often right as it says; nan
    of nothing.
    """
    if not len(truth):
        return float("nan")
    sure, right = chance.max(1).astype(np.float64), (chance.argmax(1) == truth).astype(np.float64)
    which = np.minimum((sure * bins).astype(np.int64), bins - 1)
    return float(np.abs(np.bincount(which, right - sure, bins)).sum() / len(truth))


def block_error(measure, *arrays: np.ndarray, blocks: int = 20) -> float:
    """Standard error of `measure(*arrays)` from its spread over contiguous blocks of equal length.

    Neighbouring events are not independent, so single events would give an error that is far too small.
    nan if fewer than 2 blocks have a value.
    """
    n = len(arrays[0])
    edges = np.linspace(0, n, min(blocks, n) + 1).astype(np.int64)
    values = np.array([measure(*(a[i:j] for a in arrays)) for i, j in zip(edges[:-1], edges[1:])])
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return float("nan")
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def matthews(truth: np.ndarray, guess: np.ndarray, classes: int = 3) -> float:
    """Matthews correlation of classes (Gorodkin 2004); 0 where either never varies."""
    table = np.zeros((classes, classes))
    np.add.at(table, (truth, guess), 1)
    n, right = table.sum(), np.trace(table)
    true, said = table.sum(1), table.sum(0)
    spread = np.sqrt((n * n - said @ said) * (n * n - true @ true))
    return float((right * n - true @ said) / spread) if spread > 0 else 0.0


def block_bootstrap(
    measure, block: np.ndarray, *arrays: np.ndarray, draws: int = 200, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of measure(*arrays) by drawing whole blocks with replacement; block i8[n], ascending."""
    edges = np.flatnonzero(np.concatenate([[True], block[1:] != block[:-1], [True]]))
    parts = [np.arange(a, z) for a, z in zip(edges[:-1], edges[1:])]
    if len(parts) < 2:
        return float("nan"), float("nan")
    rng, found = np.random.default_rng(seed), np.zeros(draws)
    for i in range(draws):
        rows = np.concatenate([parts[k] for k in rng.integers(0, len(parts), len(parts))])
        found[i] = measure(*(a[rows] for a in arrays))
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)
