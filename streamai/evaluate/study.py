"""What was said of a market's test parts, judged: with intervals, beside persistence."""

from __future__ import annotations

import numpy as np

from streamai.evaluate import metrics as m
from streamai.evaluate.market import DOWN, UP, persistence

BLOCKS = 40


def judged(parts: list) -> list[dict]:
    """A record a model over all test parts of one label: macro-F1, accuracy, MCC, rank correlation with the
    value, calibration, and the bounds of their 95 % intervals by bootstrap over blocks of time.

    parts: `train.study.Told`, one a test part. `persistence` (the newest label that was known) is added.
    """
    says = [p.says | {"persistence": said_before(p)} for p in parts]
    test = np.concatenate([p.rows for p in parts])
    truth = np.concatenate([p.classes[p.rows] for p in parts]).astype(np.int64)
    order = np.argsort(parts[0].ts[test], kind="stable")
    out = []
    for model in says[0]:
        chance = np.concatenate([s[model] for s in says])[order]
        of = {"label": parts[0].label, "horizon": parts[0].horizon, "model": model, "folds": len(parts)}
        out.append(of | measures(chance, truth[order], parts[0].value[test[order]]))
    return out


def measures(chance: np.ndarray, truth: np.ndarray, value: np.ndarray | None = None) -> dict:
    """Of chances f4[n, 3] in order of time; value f8[n]: what the signal is ranked beside."""
    guess, signal = chance.argmax(1), chance[:, UP] - chance[:, DOWN]
    block = np.minimum(np.arange(len(truth)) * BLOCKS // max(1, len(truth)), BLOCKS - 1)
    out = {"n": len(truth), "ece": m.calibration_error(truth, chance), "flat": float((truth == 1).mean())}
    wanted = [("macro_f1", m.macro_f1), ("accuracy", m.accuracy), ("mcc", m.matthews)]
    todo = [(name, measure, (truth, guess)) for name, measure in wanted]
    if value is not None:
        todo.append(("rank_ic", rank_ic, (signal, value)))
    for name, measure, arrays in todo:
        out[name] = float(measure(*arrays))
        out[f"{name}_low"], out[f"{name}_high"] = m.block_bootstrap(measure, block, *arrays)
    return out


def rank_ic(signal: np.ndarray, value: np.ndarray) -> float:
    """Rank correlation; 0 of a signal that says the same of everything."""
    return 0.0 if np.ptp(signal) == 0 or np.ptp(value) == 0 else m.spearman(signal, value)


def said_before(p) -> np.ndarray:
    """Persistence as chances f4[n, 3]: the newest class of the key that was known; the common one before."""
    newest = np.full(len(p.ts), -1, np.int64)
    for a in np.unique(p.start):
        z = int(np.searchsorted(p.start, a, side="right"))
        known = np.minimum(p.known[a:z] - a, z - a)
        newest[a:z] = persistence(p.classes[a:z].astype(np.int64), known)
    said = newest[p.rows]
    return np.eye(3, dtype=np.float32)[np.where(said >= 0, said, p.common)]
