"""What the engine itself made of history: features, LM outputs and candidates, for the heads to learn from.

Training reads the features that the engine made; nothing is worked out a second time here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from rich.console import Console

from streamai.deadline import Tier
from streamai.engine import Engine
from streamai.errors import InputError
from streamai.events import Events
from streamai.flow import Flow
from streamai.kernels.inputs import HEAD_INPUTS, RING_INPUTS
from streamai.replay.produce import rows_of
from streamai.scored import LATE
from streamai.train.fit import progress
from streamai.train.head import Logged
from streamai.wire.json import Decoder

CHUNK = 8_192


@dataclass(frozen=True)
class Served:
    """Engine outputs of chosen rows of a table.

    row       i8[n]         which rows of the table, in feeding order
    user      f4[n, d + F]  LM output and features after the event, NaN = not seen
    d         width of the LM's output
    """

    row: np.ndarray
    user: np.ndarray
    d: int


def batches(
    flow: Flow, table: pl.DataFrame, engine: Engine, advance: Callable[[int], None]
) -> Iterator[Events]:
    """The table's rows as events, by way of the wire; an event's offset is its row."""
    decoder = Decoder(flow.schema, engine.catalogue)
    for at in range(0, len(table), CHUNK):
        part = rows_of(table[at : at + CHUNK], flow.schema)
        offsets = np.arange(at, at + len(part))
        yield decoder.decode(part.values, offsets, part.event_ts_ns, flow.source, 0)
        advance(len(part))


def take(engine: Engine, events: Events, tier: Tier):
    """One step over the first of `events`; a full slab or log is checkpointed first."""
    scored = engine.step(events, tier)
    if not len(scored):
        engine.checkpoint()
        scored = engine.step(events, tier)
    return scored


def served(flow: Flow, table: pl.DataFrame, wanted: np.ndarray, console: Console | None = None) -> Served:
    """LM output and features of the rows where wanted bool[n], every row being fed in order."""
    engine = _engine(flow)
    rows, users = [], []
    with progress(console or Console(stderr=True)) as bar:
        task = bar.add_task("replay", total=len(table), note="features and LM outputs")
        for events in batches(flow, table, engine, lambda n: bar.update(task, advance=n)):
            while len(events):
                scored = take(engine, events, Tier.SILENT)
                offset = events.rows["offset"][: len(scored)]
                keep = wanted[offset] & (scored.status != LATE)
                rows.append(offset[keep].astype(np.int64))
                users.append(np.concatenate([scored.hidden[keep], scored.features[keep]], 1))
                events = events[len(scored) :]
    engine.close()
    if not rows:
        raise InputError("training: no event of the table is good; see `streamai replay` for the causes")
    return Served(np.concatenate(rows), np.concatenate(users), engine.arrays["hidden"].shape[1])


def log_candidates(
    flow: Flow,
    table: pl.DataFrame,
    target: list[list[str] | None],
    *,
    hide_seen: bool = False,
    console: Console | None = None,
) -> Logged:
    """Candidates after each row that has a target (the ids of the key's next basket), rows fed in order.

    The targets' own events must come later in the table, or not at all. hide_seen: items that the key has met
    are no candidates (the whole history, not only the ring), as where repeats are not asked for.
    """
    engine = _engine(flow)
    wanted = np.array([t is not None for t in target])
    seen: dict[bytes, list[int]] = {}
    logged = _Log(engine, int(wanted.sum()))
    with progress(console or Console(stderr=True)) as bar:
        task = bar.add_task("replay", total=len(table), note="candidates")
        for events in batches(flow, table, engine, lambda n: bar.update(task, advance=n)):
            at = 0
            while at < len(events):
                offset = events.rows["offset"][at:]
                if not wanted[offset[0]]:
                    stop = at + int(np.argmax(wanted[offset])) if wanted[offset].any() else len(events)
                    n = len(take(engine, events[at:stop], Tier.SILENT))
                else:
                    n = 1
                    own = [int(events.rows["item"][at])]
                    met = seen.get(events.key(at), []) + own if hide_seen else []
                    logged.step(events[at : at + 1], target[offset[0]], met)
                if hide_seen:
                    for i in range(at, at + n):
                        seen.setdefault(events.key(i), []).append(int(events.rows["item"][i]))
                at += n
    engine.close()
    return logged.done()


class _Log:
    """Grows the arrays of a Logged, one scored event at a time."""

    def __init__(self, engine: Engine, n: int) -> None:
        self.engine, self.n = engine, 0
        width = engine.arrays["z"].shape[0]
        users = engine.arrays["hidden"].shape[1] + engine.arrays["features"].shape[1] + RING_INPUTS
        self.z = np.zeros((n, width, HEAD_INPUTS), np.float32)
        self.items = np.full((n, width, len(engine.item_plan.names)), np.nan, np.float32)
        self.count, self.target = np.zeros(n, np.int32), np.zeros((n, width), np.float32)
        self.user = np.zeros((n, users), np.float32)

    def step(self, event: Events, target: list[str], met: list[int]) -> None:
        """Score one event with the items `met` left out, and keep its candidates."""
        a = self.engine.arrays
        hide = np.array([i for i in met if i >= 0], np.int64)
        a["exclude"][hide] = 1
        scored = take(self.engine, event, Tier.FULL)
        a["exclude"][hide] = 0
        if scored.status[0] == LATE:
            return
        n = int(a["found"][0])
        self.z[self.n, :n] = a["z"][:n]
        if self.items.shape[2]:
            self.items[self.n, :n] = self.engine.item_features(a["cand"][:n])
        self.count[self.n] = n
        for item in target:
            hit = np.flatnonzero(a["cand"][:n] == self.engine.catalogue.index(item))
            self.target[self.n, hit] += 1 / len(target)
        self.user[self.n] = np.concatenate([scored.hidden[0], scored.features[0], a["ring"]])
        self.n += 1

    def done(self) -> Logged:
        n = self.n
        return Logged(self.z[:n], self.items[:n], self.count[:n], self.target[:n], self.user[:n])


def _engine(flow: Flow) -> Engine:
    """An engine in memory that takes nothing for late: a table for training may be in any order of keys."""
    return Engine(flow.but(disorder="36500d", decide=None))
