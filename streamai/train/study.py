"""A market signal beside its baselines: same rows, same labels, same purged splits in time.

The flow's engine is fed the events once, with an LM that was fitted before the first test part; what it
served is what every model sees. Then, for every test part: all rows before it whose label was known by then
are learnt from, the last TAIL of them choose (epoch, trees), and the part's rows are told.
`evaluate/study.py` judges what was said.

majority                 the commonest class of the past
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
from streamai.flow import Flow
from streamai.model import weights
from streamai.train.bin_ctabl import BinCtabl, windows
from streamai.train.data import by_key
from streamai.train.head import Norm, normed_user
from streamai.train.recommend import good
from streamai.train.served import served
from streamai.train.targets import classes, horizon, threshold, values

MODELS = ("majority", "logistic", "lightgbm", "bin-ctabl", "head, features alone", "ours")
TAIL, STEPS = 0.15, 10
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
    """Of one kind and horizon: value f8[N], time ns i8[N] at which it is known, row i8[N] that ends it."""

    value: np.ndarray
    known_ns: np.ndarray
    end: np.ndarray


@dataclass(frozen=True)
class Told:
    """What the models said of one test part and one label.

    says      model -> f4[n, 3] chances of down, flat, up
    rows      i8[n] judged
    classes   i1[N] of all rows by this part's threshold, NO_LABEL = none; known i8[N]: the first row at which
              each could be known
    start     i8[N] first row of each row's key; ts i8[N] ns; value f8[N]
    common    the past's commonest class
    """

    label: str
    horizon: str
    says: dict[str, np.ndarray]
    rows: np.ndarray
    classes: np.ndarray
    known: np.ndarray
    start: np.ndarray
    ts: np.ndarray
    value: np.ndarray
    common: int


def study(
    flow: Flow, table: pl.DataFrame, kinds: list[str], horizons: list[str], folds: int, share: float,
    models: tuple[str, ...], console: Console,
) -> list[list[Told]]:  # fmt: skip
    """For every kind and horizon of label, what the models said of each test part."""
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
            console.print(f"{kind} {name}")
            out.append([_fold(rows, label, kind, name, *part, models) for part in zip(cuts[:-1], cuts[1:])])
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
    return Label(value, known_ns, end)


def _fold(
    rows: Rows, label: Label, kind: str, name: str, lo: int, hi: int, models: tuple[str, ...]
) -> Told:
    """What each model says of the rows of one test part, learnt from what was known before it."""
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
    ways = {"majority": _majority, "logistic": _logistic, "lightgbm": _lightgbm, "bin-ctabl": _bin_ctabl,
            "head, features alone": _head(False), "ours": _head(True)}  # fmt: skip
    says = {model: ways[model](data) for model in models}
    # by events a label is known with the row that ends it, by time with the first row after
    known = label.end if horizon(name).events else label.end + 1
    common = int(np.bincount(y[fit], minlength=3).argmax())
    return Told(kind, name, says, test, y, known, rows.start, rows.ts, label.value, common)


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


def learn(
    model: torch.nn.Module, take, y: np.ndarray, fit: np.ndarray, tail: np.ndarray, epochs: int, rate: float,
    size: int = 512,
) -> None:  # fmt: skip
    """Fit in place by cross-entropy on the fit rows of y i8[N]; the epoch that is best on the tail is kept.

    take(rows i8[n]) -> the model's input of those rows.
    """
    y = torch.from_numpy(y.astype(np.int64))
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    fit, tail = torch.from_numpy(fit), torch.from_numpy(tail)
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
        raise ModelError("the loss is not a number; the features hold infinities")
    model.load_state_dict(kept)


def _learnt(model: torch.nn.Module, take, d: _Data, epochs: int, rate: float) -> np.ndarray:
    """What a model says of the test rows once it has learnt."""
    learn(model, take, d.y, d.fit, d.tail, epochs, rate)
    return torch.softmax(_says(model, take, torch.from_numpy(d.test)), -1).numpy()


def _says(model, take, rows: torch.Tensor) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat([model(take(part)) for part in rows.split(8192)])


def _logistic(d: _Data) -> np.ndarray:
    norm = Norm.of(d.rows.features[d.fit])
    x = torch.from_numpy(normed_user(d.rows.features, 0, norm)[:, d.rows.few])
    torch.manual_seed(0)
    return _learnt(torch.nn.Linear(x.shape[1], 3), lambda rows: x[rows], d, 8, 0.02)


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
        return _learnt(model, lambda rows: x[rows], d, 12, 2e-3)

    return say


def _bin_ctabl(d: _Data) -> np.ndarray:
    norm = Norm.of(d.rows.features[d.fit])
    x = torch.from_numpy(normed_user(d.rows.features, 0, norm)).clamp(-8, 8)
    start = torch.from_numpy(d.rows.start)
    torch.manual_seed(0)
    model = BinCtabl(x.shape[1], STEPS)
    return _learnt(model, lambda rows: windows(x, rows, start[rows], STEPS), d, 6, 2e-3)


def _lightgbm(d: _Data) -> np.ndarray:
    return trees(d.rows.features, d.y, d.fit, d.tail, d.rows.features[d.test])


def trees(x: np.ndarray, y: np.ndarray, fit: np.ndarray, tail: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Chances f4[n, 3] of rows test f4[n, F] by boosted trees on x f4[N, F], stopped by the tail."""
    try:
        import lightgbm
    except ImportError as e:
        raise SettingsError("the model lightgbm needs the extra: pip install 'streamai[study]'") from e
    data = lightgbm.Dataset(x[fit], y[fit].astype(np.int32))
    valid = lightgbm.Dataset(x[tail], y[tail].astype(np.int32), reference=data)
    how = {"objective": "multiclass", "num_class": 3, "num_leaves": 31, "learning_rate": 0.05,
           "min_data_in_leaf": 100, "feature_fraction": 0.8, "verbosity": -1, "seed": 0, "num_threads": 1,
           "deterministic": True}  # fmt: skip
    stop = lightgbm.early_stopping(20, verbose=False)
    model = lightgbm.train(how, data, 300, valid_sets=[valid], callbacks=[stop])
    return np.asarray(model.predict(test, num_threads=1), np.float32)
