"""Training of a market flow: next token first, then the signal head on what the engine served."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console

from streamai.engine import Engine
from streamai.errors import ModelError
from streamai.flow import Flow
from streamai.kernels.tokens import MARKET_SIDE, MARKET_TOKENS
from streamai.model import weights
from streamai.train.export import export
from streamai.train.market import HORIZONS, NO_LABEL, labels, market_sequences
from streamai.train.model import Shape
from streamai.train.recommend import Options, good, moment, with_kinds
from streamai.train.served import served
from streamai.train.signal import fit_signal
from streamai.train.student import fit_student
from streamai.train.student import later as places_after

TAIL_SHARE = 0.15
"""Last part of the fitted time that chooses the head's epoch and its temperatures."""
ROWS_MAX = 300_000


def train(flow: Flow, table: pl.DataFrame, out: str | Path, options: Options, console: Console) -> dict:
    """Train on a frame of `read_events` of market events, write the model to `out`, return the figures."""
    table = good(table, flow)
    until = moment(table["event_ts_ns"], options.share())
    fitted = table.filter(pl.col("event_ts_ns") < until)
    if len(fitted) < 1000:
        raise ModelError(f"training: {len(fitted)} market events to fit on, at least 1,000 are needed")
    seq, mid = market_sequences(with_kinds(fitted, flow), time=options.time)
    shape = Shape(MARKET_TOKENS, options.d, options.layers, side=MARKET_SIDE)
    given = weights.read(options.lm) if options.lm else None
    later, _ = market_sequences(with_kinds(table, flow), time=options.time)
    # what chooses lies in the fitted time; the LM has learnt from it, as the signal head's tail has too
    tail = (table["event_ts_ns"] >= moment(fitted["event_ts_ns"], 1 - TAIL_SHARE)).to_numpy()
    places = places_after(later, tail & (table["event_ts_ns"] < until).to_numpy(), True)
    model, figures = fit_student(shape, seq, places, given, options, console, kind="market")
    head, plan = None, ""
    if options.head:
        with tempfile.TemporaryDirectory() as folder:
            draft = Path(folder) / "lm.weights"
            export(draft, model, "market", later, horizons=flow.horizons)
            head, figures["signal"], plan = _head(flow.but(model=draft), fitted, seq, mid, options, console)
    metrics = {"protocol": options.protocol, "fitted_until_ns": until, **figures}
    digest = export(
        out, model, "market", later, horizons=flow.horizons, head=head, plan=plan, metrics=metrics
    )
    return {"model": digest, "path": str(out), **figures}


def _head(flow, table, seq, mid, options, console) -> tuple[dict, dict, str]:
    """Arrays, figures and plan digest of the signal head, learnt from the features that the engine served."""
    horizons = tuple(h for h in HORIZONS if h.name in flow.horizons)
    if tuple(h.name for h in horizons) != tuple(flow.horizons):
        known = [h.name for h in HORIZONS]
        raise ModelError(f"flow {flow.name!r}: horizons {flow.horizons}; expected {known} or a part in order")
    ts = table["event_ts_ns"].to_numpy()
    by_key, end = labels(ts[seq.row], mid, seq.start, horizons)
    label = np.full(by_key.shape, NO_LABEL, np.int8)
    tail_from = moment(table["event_ts_ns"], 1 - TAIL_SHARE)
    tail = ts >= tail_from
    # purged: before the tail, a label that is only known inside it is not learnt
    ends_late = ts[seq.row][end] >= tail_from
    label[seq.row] = np.where(ends_late & ~tail[seq.row][:, None], NO_LABEL, by_key)
    wanted = (label != NO_LABEL).any(1)
    if wanted.sum() > ROWS_MAX:
        drop = np.random.default_rng(options.recipe.seed).permutation(np.flatnonzero(wanted))[ROWS_MAX:]
        wanted[drop] = False
    got = served(flow, table, wanted, console)
    plan = Engine(flow.but(decide=None), rows_max=64).plan_digest
    arrays, figures = fit_signal(
        got.user, label[got.row], got.d, tail[got.row], horizons=horizons, seed=options.recipe.seed,
        console=console,
    )  # fmt: skip
    return arrays, figures, plan
