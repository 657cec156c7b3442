"""How well signals foresee the mid: correlations by horizon, classes beside persistence and majority.

The move of an event is the mid at the horizon's end over the mid right after the event, less one. Only events
after the first part of time are judged; what the majority is, is counted before it. Events of an instrument
that share a time are one: judged is the last of them, as the book in between is half updated, and what
follows within the same time is no future.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl

from streamai.deadline import Tier
from streamai.engine import Engine
from streamai.errors import DeclarationError, InputError, ModelError
from streamai.evaluate import metrics as m
from streamai.flow import Flow
from streamai.replay.produce import rows_of
from streamai.scored import SCORED
from streamai.wire.json import Decoder

DOWN, FLAT, UP = 0, 1, 2
BLOCKS = 20
_UNITS_NS = {"ms": 1_000_000, "s": 1_000_000_000}
_CHUNK = 8192


def horizon_of(name: str) -> tuple[int, int]:
    """`100ms`, `5s`, `10ev` -> (ns, events), one of which is 0."""
    digits = name.rstrip("msev")
    unit = name[len(digits) :]
    if unit == "ev":
        return 0, int(digits)
    if unit in _UNITS_NS and digits.isdecimal():
        return int(digits) * _UNITS_NS[unit], 0
    raise DeclarationError(f"horizon {name!r}: write a number and ms, s or ev")


def moves(event_ts_ns: np.ndarray, mid: np.ndarray, horizon: str) -> tuple[np.ndarray, np.ndarray]:
    """(return f8[n] from right after each event to the horizon's end, row i8[n] at which it was known).

    One instrument's events in order of time; NaN where the data ends first, a mid is missing, or another
    event of the same time follows. By time, the end is the last event not later than the event's time +
    horizon; the return is known with the first event after that. By events, it is known with the event that
    ends it.
    """
    n = len(mid)
    ns, events = horizon_of(horizon)
    if events:
        end = np.arange(n) + events
        whole, known = end < n, end
    else:
        after = np.searchsorted(event_ts_ns, event_ts_ns + ns, side="right")
        end, known = after - 1, after
        whole = event_ts_ns + ns <= event_ts_ns[-1] if n else np.zeros(0, bool)
    end = np.minimum(end, n - 1)
    whole = whole & np.append(event_ts_ns[1:] != event_ts_ns[:-1], True)[:n]
    with np.errstate(invalid="ignore", divide="ignore"):
        out = np.where(whole, mid[end] / mid - 1.0, np.nan)
    return out, np.where(whole, known, n)


def classes(move: np.ndarray) -> np.ndarray:
    """DOWN, FLAT or UP i8[n] of each move; of a NaN -1."""
    return np.where(np.isfinite(move), 1 + np.sign(np.nan_to_num(move)), -1).astype(np.int64)


def persistence(label: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The newest label that was known when each event came i8[n], -1 = none yet.

    known i8[n]: the row at which label i is known; a label of row j is used from row `known[j]` on.
    """
    n = len(label)
    newest = np.full(n + 1, -1, np.int64)
    there = label >= 0
    np.maximum.at(newest, known[there], np.flatnonzero(there))
    source = np.maximum.accumulate(newest)[:n]
    return np.where(source >= 0, label[np.maximum(source, 0)], -1)


def evaluate(
    flow: Flow,
    table: pl.DataFrame,
    share: float = 0.6,
    advance: Callable[[int], None] = lambda n: None,
    elsewhere: bool = False,
) -> dict:
    """Figures by horizon of a market flow on good events in order of time, judged after `share` of it.

    elsewhere  the caller knows that the model was trained on other events; else ModelError where it was
               fitted on later ones than the cut

    Standard errors are over BLOCKS blocks of time, as neighbouring events are not independent.
    """
    first, last = int(table["event_ts_ns"].min()), int(table["event_ts_ns"].max())
    cut_ns = first + int((last - first) * share)
    signals, given = _serve(flow, table, cut_ns, advance, elsewhere)
    bid, ask = flow.schema.crossed
    instruments = table[flow.schema.key].unique(maintain_order=True).to_list()
    out, shared = {}, pl.col("event_ts_ns") == pl.col("event_ts_ns").shift(-1).over(flow.schema.key)
    at_one_time = table.filter(pl.col("event_ts_ns") >= cut_ns).select(shared.sum()).item()
    for h, name in enumerate(flow.horizons):
        parts = []
        for instrument in instruments:
            rows = np.flatnonzero((table[flow.schema.key] == instrument).to_numpy())
            quotes = table[rows].select(pl.col(bid).forward_fill(), pl.col(ask).forward_fill())
            mid = ((quotes[bid] + quotes[ask]) / 2).fill_null(np.nan).to_numpy()
            times = table["event_ts_ns"][rows].to_numpy()
            move, known = moves(times, mid, name)
            label = classes(move)
            known_ns = np.append(times, last + 1)[known]
            parts.append((rows, times, move, label, persistence(label, known), known_ns))
        columns = (np.concatenate(c) for c in zip(*parts))
        out[name] = _figures(signals[:, 3 * h : 3 * h + 3], given, cut_ns, *columns)
    facts = {"cut_ns": cut_ns, "instruments": len(instruments), "followed_at_the_same_time": int(at_one_time)}
    return facts | {"horizons": out}


def _figures(
    p: np.ndarray, given: np.ndarray, cut_ns: int, rows: np.ndarray, times: np.ndarray, move: np.ndarray,
    label: np.ndarray, last_label: np.ndarray, known_ns: np.ndarray,
) -> dict:  # fmt: skip
    """Measures of one horizon. p f4[N, 3] and given bool[N] by row of the table, the rest by `rows`."""
    fitted = (known_ns <= cut_ns) & (label >= 0)
    majority = int(np.argmax(np.bincount(label[fitted], minlength=3))) if fitted.any() else FLAT
    tested = (times >= cut_ns) & (label >= 0)
    use = tested & given[rows]
    order = np.flatnonzero(use)[np.argsort(times[use], kind="stable")]
    p, truth, returns = p[rows[order]], label[order], move[order]
    signal, guess = p[:, UP] - p[:, DOWN], p.argmax(1)
    # before the first label is known, persistence says what the majority says
    persist = np.where(last_label[order] >= 0, last_label[order], majority)
    out = {
        "events": int(tested.sum()),
        "coverage": float(use.sum() / max(1, tested.sum())),
        "flat_share": float(np.mean(truth == FLAT)) if len(truth) else float("nan"),
        "majority": ("down", "flat", "up")[majority],
    }
    for name, measure, arrays in (
        ("ic", m.pearson, (signal, returns)),
        ("rank_ic", m.spearman, (signal, returns)),
        ("accuracy", m.accuracy, (truth, guess)),
        ("macro_f1", m.macro_f1, (truth, guess)),
    ):
        out[name] = measure(*arrays)
        out[f"{name}_se"] = m.block_error(measure, *arrays, blocks=BLOCKS)
    out["confidence"] = float(p.max(1).mean()) if len(p) else float("nan")
    out["ece"] = m.calibration_error(truth, p)
    for name, other in (("persistence", persist), ("majority", np.full(len(truth), majority))):
        out[f"accuracy_{name}"] = m.accuracy(truth, other)
        out[f"macro_f1_{name}"] = m.macro_f1(truth, other)
    return out


def _serve(
    flow: Flow, table: pl.DataFrame, cut_ns: int, advance: Callable[[int], None], elsewhere: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Scores f4[N, 3H], and which rows have them bool[N]: only those from cut_ns on are scored."""
    engine = Engine(flow.but(decide=None))
    if engine.model is None:
        raise InputError(f"flow {flow.name!r} has no model and gives no signal; name one with --model")
    until = engine.model.header.get("metrics", {}).get("fitted_until_ns")
    if not elsewhere and (until is None or until > cut_ns):
        raise ModelError(
            f"{engine.model.path} was fitted on events up to {until}; judged is what comes from {cut_ns} on. "
            "Train one with `streamai train ... --protocol prequential` on the same events and name it with "
            "--model; judge a later part with --fit; or, if it was trained on other events than these, give "
            "--trained-elsewhere"
        )
    decoder = Decoder(flow.schema, None)
    n, width = len(table), 3 * len(flow.horizons)
    scores, given = np.zeros((n, width), np.float32), np.zeros(n, bool)
    times = table["event_ts_ns"].to_numpy()
    for base in range(0, n, _CHUNK):
        part = rows_of(table[base : base + _CHUNK], flow.schema)
        offsets = np.arange(base, base + len(part))
        events = decoder.decode(part.values, offsets, np.zeros(len(part), np.int64), flow.source, 0)
        if events.dead:
            raise InputError(f"row {events.dead[0].offset}: {events.dead[0].cause}")
        at = 0
        while at < len(events):
            cut = events[at : at + engine.batch_max]
            tiers = np.where(times[cut.rows["offset"]] >= cut_ns, Tier.FULL, Tier.SILENT).astype(np.uint8)
            scored = engine.step(cut, tiers)
            rows = scored.events.rows["offset"]
            good = (scored.status == SCORED) & (scored.tier == Tier.FULL)
            scores[rows[good]], given[rows[good]] = scored.scores[good], True
            at += len(scored)
            if len(scored) < len(cut):
                engine.checkpoint()
        advance(len(part))
    return scores, given
