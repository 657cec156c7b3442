"""A flow's targets over history: through the engine that serves them live, then the fill simulation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from streamai.backtest import report
from streamai.backtest.fills import Result, simulate
from streamai.backtest.latency import DEFAULT, Histogram
from streamai.errors import DeclarationError, InputError
from streamai.events import Events, Schema
from streamai.scored import LATE, Scored

DECAY_MS = (0.0, 1.0, 10.0, 100.0, 1000.0)
"""Latencies added to the one asked for, in the report's table."""


@dataclass
class Tape:
    """What the fill simulation needs of every scored event; late ones changed no state and are left out.

    names   key of each instrument, by index
    """

    schema: Schema
    only: str | None = None
    names: list[str] = field(default_factory=list)
    late: int = 0
    dead: int = 0
    _index: dict[tuple[int, int], int] = field(default_factory=dict)
    _parts: list[tuple] = field(default_factory=list)

    def add(self, events: Events, scored: Scored) -> None:
        """Append a batch: `scored` may hold fewer rows than `events` (the first ones)."""
        n = len(scored)
        rows, columns = events.rows[:n], events.columns[:n]
        late = scored.status == LATE
        self.late += int(late.sum())
        self.dead += len(events.dead)
        instrument = self._instruments(events, n)
        keep = ~late & (instrument >= 0)
        bid, ask = (columns[keep, self.schema.column(c)] for c in ("bid", "ask"))
        ts_ns, target = rows["event_ts_ns"][keep], scored.target[keep]
        self._parts.append((instrument[keep], ts_ns, bid, ask, target))

    def _instruments(self, events: Events, n: int) -> np.ndarray:
        """i4[n]: index of each event's instrument, -1 = not asked for."""
        hashes = events.rows[:n][["hash0", "hash1"]]
        distinct, first, which = np.unique(hashes, return_index=True, return_inverse=True)
        index = np.empty(len(distinct), np.int32)
        for d in np.argsort(first, kind="stable"):  # indices follow the first appearance, whatever the batch
            key = (int(distinct[d]["hash0"]), int(distinct[d]["hash1"]))
            if key not in self._index:
                name = events.key(int(first[d])).decode()
                wanted = self.only in (None, name)
                self._index[key] = len(self.names) if wanted else -1
                if wanted:
                    self.names.append(name)
            index[d] = self._index[key]
        return index[which]

    def columns(self) -> tuple[np.ndarray, ...]:
        """instrument i4, event_ts_ns i8, bid, ask, target f8: one row an event, in arrival order."""
        types = (np.int32, np.int64, np.float64, np.float64, np.float64)
        if not self._parts:
            return tuple(np.empty(0, t) for t in types)
        self._parts = [tuple(np.concatenate(c) for c in zip(*self._parts))]
        return self._parts[0]


@dataclass(frozen=True)
class Terms:
    """Under which a flow is tested.

    latency_ms   from a scored event to the book, both ways of the network; compute time comes on top
    compute      histogram of the time a score takes; None: the one shipped with streamai
    seed         of its draws
    fee_bp       of each trade's notional; size: quantity of one unit of target
    instrument   test only this one
    """

    latency_ms: float = 1.0
    fee_bp: float = 0.5
    size: float = 1.0
    seed: int = 7
    compute: Histogram | None = None
    instrument: str | None = None

    def histogram(self) -> Histogram:
        return self.compute or Histogram.load(DEFAULT)


def backtest(flow, batches: Iterable[tuple[Events, Scored]], terms: Terms, **about) -> dict:
    """The report of `report.build` for scored batches in arrival order.

    about   digests and other words of the caller, kept at the head of the report
    """
    if flow.decide is None:
        raise DeclarationError(
            f"flow {flow.name!r} has no decide=, so it wants no positions; a backtest needs targets (see "
            "agents/trade.py)"
        )
    tape = Tape(flow.schema, terms.instrument)
    for events, scored in batches:
        tape.add(events, scored)
    if not tape.names:
        asked = f" of instrument {terms.instrument!r}" if terms.instrument else ""
        raise InputError(f"no event{asked} was scored ({tape.late} late, {tape.dead} dead); nothing to test")
    return trade(tape, terms, flow=flow.name, **about)


def trade(tape: Tape, terms: Terms, **about) -> dict:
    """Simulate a tape under the terms, once for each latency of DECAY_MS; the report."""
    histogram = terms.histogram()
    columns = tape.columns()
    target = columns[4]
    latency_ns = histogram.draw(len(target), terms.seed) + round(terms.latency_ms * 1e6)

    def under(added_ms: float) -> Result:
        return simulate(*columns, latency_ns + round(added_ms * 1e6), terms.fee_bp, terms.size)

    decay = [(added_ms, under(added_ms)) for added_ms in DECAY_MS]
    return report.build(
        decay[0][1],
        tape.names,
        decay,
        **about,
        events=len(target),
        abstained=int(np.isnan(target).sum()),
        late=tape.late,
        dead=tape.dead,
        latency_ms=terms.latency_ms,
        fee_bp=terms.fee_bp,
        size=terms.size,
        seed=terms.seed,
        compute={
            "source": histogram.source,
            "p50_us": histogram.quantile_ns(0.5) / 1e3,
            "p99_us": histogram.quantile_ns(0.99) / 1e3,
        },
    )
