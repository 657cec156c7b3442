"""A market signal beside its baselines: same rows, same labels, same purged splits in time.

The flow's engine is fed the events once, with an LM that was fitted before the first test part; what it
served is what every model sees. Then, for every test part: all rows before it whose label was known by then
are learnt from, the last TAIL of them choose (epoch, trees), and the part is judged. Intervals are by
bootstrap over blocks of time.

majority, persistence    the commonest class of the past; the newest label that was known
logistic                 queue imbalance and order flow
lightgbm                 all served features, boosted trees
bin-ctabl                the features of the last events, see `bin_ctabl`
head, features alone     the signal head without the LM
ours                     the signal head on features and LM
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from rich.console import Console

from streamai.errors import InputError, ModelError, SettingsError
from streamai.evaluate import metrics as m
from streamai.evaluate.market import persistence
from streamai.flow import Flow
from streamai.model import weights
from streamai.train.bin_ctabl import BinCtabl, windows
from streamai.train.data import by_key
from streamai.train.head import Norm, normed_user
from streamai.train.market import DOWN, NO_LABEL, UP
from streamai.train.recommend import good
from streamai.train.served import served
from streamai.train.targets import classes, horizon, threshold, values

MODELS = ("majority", "persistence", "logistic", "lightgbm", "bin-ctabl", "head, features alone", "ours")
TAIL, STEPS, BLOCKS = 0.15, 10, 40
ROWS_MAX = 120_000
"""Most rows that one fit learns from, drawn evenly."""
LOGISTIC = ("imbalance", "imbalance_1s", "ofi_10", "ofi_1s")


@dataclass(frozen=True)
class Rows:
    """Every event of the table in its order: features f4[N, F] and LM output f4[N, d] as served, time i8[N],
    key's first row i8[N] (rows of a key lie together), and the columns that the logistic model sees."""

    features: np.ndarray
    hidden: np.ndarray
    ts: np.ndarray
    start: np.ndarray
    few: np.ndarray


@dataclass(frozen=True)
class Label:
    """Of one kind and horizon: value f8[N], the time ns at which it is known i8[N], and the newest class that
    was known, by a threshold given later, as the row it came from i8[N] (-1 = none)."""

    name: str
    value: np.ndarray
    known_ns: np.ndarray
    end: np.ndarray


def study(
    flow: Flow, table: pl.DataFrame, kinds: list[str], horizons: list[str], folds: int, share: float,
    models: tuple[str, ...], console: Console,
) -> list[dict]:  # fmt: skip
    """One record a label and model: macro-F1, accuracy, MCC and rank correlation with the value, each with
    the bounds of its 95 % interval, over all test parts."""
    if unknown := set(models) - set(MODELS):
        raise SettingsError(f"study: no model {sorted(unknown)}; expected {', '.join(MODELS)}")
    table = good(table, flow)
    ts = table["event_ts_ns"]
    first, last = int(ts.min()), int(ts.max())
    cuts = [first + int((last - first) * (share + (1 - share) * k / folds)) for k in range(folds + 1)]
    _check_model(flow, cuts[0])
    table, starts, _ = by_key(table, flow.schema.key)
    rows = _rows(flow, table.drop("row", "key_index"), starts, console)
    bid, ask = (_filled(table[c], starts) for c in flow.schema.crossed)
    out = []
    for kind in kinds:
        for name in horizons:
            label = _label(kind, name, rows.ts, bid, ask, starts)
            parts = [_fold(rows, label, kind, lo, hi, models) for lo, hi in zip(cuts[:-1], cuts[1:])]
            for model in models:
                record = {"label": kind, "horizon": name, "model": model, "folds": folds}
                says, tests, truths = ([p[name] for p in parts] for name in (model, "rows", "truth"))
                out.append(record | _judged(rows, label, says, tests, truths))
                console.print(f"{kind} {name} {model}: macro-F1 {out[-1]['macro_f1']:.4f}")
    return out


def _check_model(flow: Flow, cut_ns: int) -> None:
    if flow.model is None:
        raise InputError(f"flow {flow.name!r} has no model; name one with --model")
    until = weights.read(flow.model).header.get("metrics", {}).get("fitted_until_ns")
    if until is None or until > cut_ns:
        raise ModelError(
            f"{flow.model} was fitted on events up to {until}; the first test part begins at {cut_ns}. Train "
            "it with `streamai train ... --protocol prequential`, or give a later --share"
        )


def _rows(flow: Flow, table: pl.DataFrame, starts: np.ndarray, console: Console) -> Rows:
    """Feed everything and keep what was served."""
    got = served(flow, table, np.ones(len(table), bool), console)
    user = np.full((len(table), got.user.shape[1]), np.nan, np.float32)
    user[got.row] = got.user
    few = [i for i, name in enumerate(_names(flow)) if name.split(".")[-1] in LOGISTIC]
    begin = np.repeat(starts[:-1], np.diff(starts))
    ts = table["event_ts_ns"].to_numpy()
    return Rows(user[:, got.d :], user[:, : got.d], ts, begin, np.array(few, np.int64))


def _names(flow: Flow) -> list[str]:
    from streamai.engine import Engine

    engine = Engine(flow.but(decide=None), rows_max=64)
    return list(engine.feature_names)


def _filled(column: pl.Series, starts: np.ndarray) -> np.ndarray:
    x = column.cast(pl.Float64).fill_null(np.nan).to_numpy()
    at = np.where(np.isfinite(x), np.arange(len(x)), -1)
    newest = np.maximum.accumulate(at)
    return np.where(newest >= np.repeat(starts[:-1], np.diff(starts)), x[np.maximum(newest, 0)], np.nan)


def _label(kind: str, name: str, ts: np.ndarray, bid, ask, starts: np.ndarray) -> Label:
    h, value, end = horizon(name), np.full(len(ts), np.nan), np.zeros(len(ts), np.int64)
    known_ns = np.zeros(len(ts), np.int64)
    for a, z in zip(starts[:-1], starts[1:]):
        value[a:z], stop = values(kind, ts[a:z], bid[a:z], ask[a:z], h)
        end[a:z] = a + stop
        known_ns[a:z] = ts[a:z][stop] if h.events else ts[a:z] + h.ns
    return Label(f"{kind} {name}", value, known_ns, end)


def _fold(rows: Rows, label: Label, kind: str, lo: int, hi: int, models: tuple[str, ...]) -> dict:
    """What each model says f4[n, 3] of the rows of one test part, learnt from what was known before it."""
    past = np.flatnonzero((rows.ts < lo) & (label.known_ns < lo) & np.isfinite(label.value))
    test = np.flatnonzero((rows.ts >= lo) & (rows.ts < hi) & np.isfinite(label.value))
    if len(past) < 500 or len(test) < 100:
        raise InputError(f"study: {len(past)} rows to learn from and {len(test)} to judge, too few")
    edge = threshold(kind, label.value[past])
    y = classes(label.value, edge)
    past = past[np.argsort(rows.ts[past], kind="stable")]
    cut = rows.ts[past[int(len(past) * (1 - TAIL))]]
    tail = past[rows.ts[past] >= cut]
    fit = past[(rows.ts[past] < cut) & (label.known_ns[past] < cut)]  # purged before the tail too
    if len(fit) > ROWS_MAX:
        fit = np.sort(np.random.default_rng(0).choice(fit, ROWS_MAX, replace=False))
    data = _Data(rows, y, fit, tail, test)
    says = {"majority": _majority, "persistence": _persistence(label, rows), "logistic": _logistic,
            "lightgbm": _lightgbm, "bin-ctabl": _bin_ctabl, "head, features alone": _head(False),
            "ours": _head(True)}  # fmt: skip
    return {"rows": test, "truth": y[test]} | {name: says[name](data) for name in models}


@dataclass(frozen=True)
class _Data:
    rows: Rows
    y: np.ndarray
    fit: np.ndarray
    tail: np.ndarray
    test: np.ndarray


def _one_hot(label: np.ndarray) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[label]


def _majority(d: _Data) -> np.ndarray:
    return _one_hot(np.full(len(d.test), np.bincount(d.y[d.fit], minlength=3).argmax()))


def _persistence(label: Label, rows: Rows):
    def say(d: _Data) -> np.ndarray:
        # a label of row i is known with the first row after its end; keys lie one after another
        known = np.minimum(label.end + 1, len(rows.ts))
        newest = np.full(len(rows.ts), NO_LABEL, np.int64)
        for a in np.unique(rows.start):
            z = int(np.searchsorted(rows.start, a, side="right"))
            newest[a:z] = persistence(d.y[a:z].astype(np.int64), np.minimum(known[a:z] - a, z - a))
        said = newest[d.test]
        common = int(np.bincount(d.y[d.fit], minlength=3).argmax())
        return _one_hot(np.where(said >= 0, said, common))

    return say


def _learn(model: torch.nn.Module, take, d: _Data, epochs: int, rate: float, size: int = 512) -> np.ndarray:
    """Fit by cross-entropy on the fit rows, keep the epoch that is best on the tail, say the test rows'."""
    y = torch.from_numpy(d.y.astype(np.int64))
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    fit, tail, test = (torch.from_numpy(r) for r in (d.fit, d.tail, d.test))
    best, kept = np.inf, None
    for _ in range(epochs):
        model.train()
        for rows in fit[torch.randperm(len(fit))].split(size):
            optimiser.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(model(take(rows)), y[rows]).backward()
            optimiser.step()
        loss = float(torch.nn.functional.cross_entropy(_says(model, take, tail), y[tail]))
        if loss < best:
            best, kept = loss, {k: v.detach().clone() for k, v in model.state_dict().items()}
    if kept is None:
        raise ModelError("study: the loss is not a number; the features hold infinities")
    model.load_state_dict(kept)
    return torch.softmax(_says(model, take, test), -1).numpy()


def _says(model, take, rows: torch.Tensor) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat([model(take(part)) for part in rows.split(8192)])


def _logistic(d: _Data) -> np.ndarray:
    norm = Norm.of(d.rows.features[d.fit])
    x = torch.from_numpy(normed_user(d.rows.features, 0, norm)[:, d.rows.few])
    torch.manual_seed(0)
    return _learn(torch.nn.Linear(x.shape[1], 3), lambda rows: x[rows], d, 8, 0.02)


def _head(with_lm: bool):
    def say(d: _Data) -> np.ndarray:
        norm = Norm.of(d.rows.features[d.fit])
        x = torch.from_numpy(normed_user(d.rows.features, 0, norm))
        if with_lm:
            x = torch.cat([torch.from_numpy(d.rows.hidden), x], 1)
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(x.shape[1], 64), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(64, 3)
        )
        return _learn(model, lambda rows: x[rows], d, 12, 2e-3)

    return say


def _bin_ctabl(d: _Data) -> np.ndarray:
    norm = Norm.of(d.rows.features[d.fit])
    x = torch.from_numpy(normed_user(d.rows.features, 0, norm)).clamp(-8, 8)
    start = torch.from_numpy(d.rows.start)
    torch.manual_seed(0)
    model = BinCtabl(x.shape[1], STEPS)
    return _learn(model, lambda rows: windows(x, rows, start[rows], STEPS), d, 6, 2e-3)


def _lightgbm(d: _Data) -> np.ndarray:
    try:
        import lightgbm
    except ImportError as e:
        raise SettingsError("the model lightgbm needs it installed: pip install lightgbm") from e
    x = d.rows.features
    data = lightgbm.Dataset(x[d.fit], d.y[d.fit].astype(np.int32))
    valid = lightgbm.Dataset(x[d.tail], d.y[d.tail].astype(np.int32), reference=data)
    how = {"objective": "multiclass", "num_class": 3, "num_leaves": 31, "learning_rate": 0.05,
           "min_data_in_leaf": 100, "feature_fraction": 0.8, "verbosity": -1, "seed": 0, "num_threads": 1,
           "deterministic": True}  # fmt: skip
    stop = lightgbm.early_stopping(20, verbose=False)
    model = lightgbm.train(how, data, 300, valid_sets=[valid], callbacks=[stop])
    return np.asarray(model.predict(x[d.test], num_threads=1), np.float32)


def _rank_ic(signal: np.ndarray, value: np.ndarray) -> float:
    """Rank correlation; 0 of a signal that says the same of everything."""
    return 0.0 if np.ptp(signal) == 0 or np.ptp(value) == 0 else m.spearman(signal, value)


def _judged(rows: Rows, label: Label, says: list, tests: list, truths: list) -> dict:
    """Measures of all test parts together, with 95 % intervals over blocks of time."""
    p, test, truth = np.concatenate(says), np.concatenate(tests), np.concatenate(truths).astype(np.int64)
    order = np.argsort(rows.ts[test], kind="stable")
    p, truth, value = p[order], truth[order], label.value[test[order]]
    guess, signal = p.argmax(1), p[:, UP] - p[:, DOWN]
    block = np.minimum(np.arange(len(truth)) * BLOCKS // max(1, len(truth)), BLOCKS - 1)
    out = {"n": len(truth), "ece": m.calibration_error(truth, p), "flat": float((truth == 1).mean())}
    for name, measure, arrays in (
        ("macro_f1", m.macro_f1, (truth, guess)),
        ("accuracy", m.accuracy, (truth, guess)),
        ("mcc", m.matthews, (truth, guess)),
        ("rank_ic", _rank_ic, (signal, value)),
    ):
        out[name] = float(measure(*arrays))
        out[f"{name}_low"], out[f"{name}_high"] = m.block_bootstrap(measure, block, *arrays)
    return out
