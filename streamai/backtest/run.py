"""A flow's targets over history: through the engine that serves them live, then the fill simulation."""

from __future__ import annotations

import pathlib
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from streamai.backtest import report
from streamai.backtest.fills import Result, simulate
from streamai.backtest.latency import DEFAULT, Histogram, measure
from streamai.deadline import Tier
from streamai.errors import DeclarationError, InputError
from streamai.events import Events, Schema
from streamai.flow import Flow
from streamai.replay.mapping import Mapping
from streamai.replay.progress import Progress
from streamai.replay.read import count_rows
from streamai.replay.run import Partition, Replay, records_of
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

    def add(self, scored: Scored) -> None:
        """Append the events of one step, copied."""
        events = scored.events
        late = scored.status == LATE
        self.late += int(late.sum())
        instrument = self._instruments(events)
        keep = ~late & (instrument >= 0)
        bid, ask = (events.columns[keep, self.schema.column(c)] for c in ("bid", "ask"))
        ts_ns, target = events.rows["event_ts_ns"][keep], scored.target[keep]
        self._parts.append((instrument[keep], ts_ns, bid, ask, target))

    def _instruments(self, events: Events) -> np.ndarray:
        """i4[n]: index of each event's instrument, -1 = not asked for."""
        hashes = events.rows[["hash0", "hash1"]]
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
    start        share of the events' time that is fed but not traded: where the model was fitted
    """

    latency_ms: float = 1.0
    fee_bp: float = 0.5
    size: float = 1.0
    seed: int = 7
    compute: Histogram | None = None
    instrument: str | None = None
    start: float = 0.0

    def histogram(self) -> Histogram:
        return self.compute or Histogram.load(DEFAULT)


def backtest(
    flow: Flow,
    source: str | pathlib.Path,
    terms: Terms,
    mapping: Mapping | Iterable[str] | None = None,
    sort: bool = False,
    batch: int = 256,
) -> dict:
    """Run a flow over a file of events or a recorded topic, everything at tier FULL, and trade its targets.

    batch   most events of one step; the report does not depend on it
    Returns the report of `report.build`. DeclarationError where the flow decides nothing, InputError where
    there is nothing to trade.
    """
    check(flow)
    tape = Tape(flow.schema, terms.instrument)
    run = Replay(flow, Tier.FULL, batch)
    try:
        with Progress(f"backtest {flow.name}", count_rows(source)) as bar:
            for records in records_of(source, flow, mapping, 1, sort):
                for step in run.feed(records):
                    if step.scored is None:
                        tape.dead += len(step.events.dead)
                    else:
                        tape.add(step.scored)
                bar.advance(len(records))
        engines = [p.engine for p in run.partitions.values()]
        about = {"plan": engines[0].plan_digest, "model": engines[0].model_digest} if engines else {}
    finally:
        run.close()
    return trade(tape, terms, flow=flow.name, **about)


def check(flow: Flow) -> None:
    """Refuse a flow that has no targets, or whose events carry no prices."""
    if flow.decide is None:
        raise DeclarationError(
            f"flow {flow.name!r} has no decide=, so it wants no positions; a backtest needs targets (see "
            "agents/trade.py)"
        )
    names = {c.name for c in flow.schema.columns}
    if not {"bid", "ask"} <= names:
        raise DeclarationError(
            f"flow {flow.name!r} reads {flow.schema.name!r}, whose events carry no bid and ask to trade at"
        )


def measure_flow(
    flow: Flow,
    source: str | pathlib.Path,
    mapping: Mapping | Iterable[str] | None = None,
    n: int = 20_000,
    warm: int = 1_000,
) -> Histogram:
    """Time the flow's engine on the first events of a file, one event a step, all at tier FULL.

    Measured is engine.step whole: state, model, decide; not the decoding of the record, not the network.
    With fewer than n + warm events all are taken, a tenth of them to warm up.
    """
    partition = Partition(flow, 0, 1, None)
    try:
        chunks, have = [], 0
        for records in records_of(source, flow, mapping):
            chunks.append(partition.decode(records))
            have += len(chunks[-1])
            if have >= n + warm:
                break
        if have < 10:
            raise InputError(f"{source}: {have} good events are too few to measure anything")
        warm = min(warm, have // 10)
        n = min(n, have - warm)
        engine, singles = partition.engine, _one_by_one(chunks)

        def step(_: int) -> None:
            event = next(singles)
            while not len(engine.step(event, Tier.FULL)):
                engine.checkpoint()

        source_ = f"{flow.name}, model {engine.model_digest}, {n} single steps, {platform.machine()}"
        return measure(step, n, warm, source_)
    finally:
        partition.close()


def _one_by_one(chunks: list[Events]) -> Iterator[Events]:
    for events in chunks:
        for i in range(len(events)):
            yield events[i : i + 1]


def _from(columns: tuple[np.ndarray, ...], start: float) -> tuple[np.ndarray, ...]:
    """The rows of a tape's columns from `start` of its time on; the first position is taken there."""
    ts_ns = columns[1]
    if not start or not len(ts_ns):
        return columns
    first, last = int(ts_ns.min()), int(ts_ns.max())
    keep = ts_ns >= first + int((last - first) * start)
    return tuple(c[keep] for c in columns)


def trade(tape: Tape, terms: Terms, **about) -> dict:
    """Simulate a tape under the terms, once for each latency of DECAY_MS; the report.

    about   words of the caller (flow, digests), put at the head of it
    """
    if not tape.names:
        asked = f" of instrument {tape.only!r}" if tape.only else ""
        raise InputError(f"no event{asked} was scored ({tape.late} late, {tape.dead} dead); nothing to test")
    histogram = terms.histogram()
    columns = _from(tape.columns(), terms.start)
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
        start=terms.start,
        compute={
            "source": histogram.source,
            "p50_us": histogram.quantile_ns(0.5) / 1e3,
            "p99_us": histogram.quantile_ns(0.99) / 1e3,
        },
    )
