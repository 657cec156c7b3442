"""Tables in, tables out: a flow or a view over a DataFrame, for notebooks."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

import numpy as np
import polars as pl

from streamai.catalogue import Catalogue
from streamai.deadline import TIER_NAMES, Tier
from streamai.errors import InputError
from streamai.events import SCHEMAS
from streamai.flow import Flow
from streamai.replay.mapping import Mapping
from streamai.replay.produce import rows_of
from streamai.replay.read import conform, read_events
from streamai.replay.run import CHUNK, Replay, split
from streamai.scored import LATE, SCORED

_STATUS = ("scored", "late", "dead")


def replay_frame(
    flow: Flow,
    events: pl.DataFrame | str | pathlib.Path,
    mapping: Mapping | Iterable[str] | None = None,
    tier: Tier = Tier.FULL,
    batch: int = 256,
    partitions: int = 1,
    sort: bool = False,
) -> pl.DataFrame:
    """Run a flow over a table and get one row an event, in the table's order.

    Columns: the key, event_ts_ns, `status` (scored, late, dead), `tier`, the features (null = not seen); with
    a catalogue `items` (ids) and `scores`; with a market model `signal_H` and `confidence_H` for each horizon
    H; with a scorer `scores`; with `decide` also `target`. State is in memory and gone afterwards.
    """
    if isinstance(events, pl.DataFrame):
        table = conform(events, flow.schema, mapping)
        table = table.sort("event_ts_ns", maintain_order=True) if sort else table
    else:
        table = read_events(events, flow.schema, mapping, sort)
    run = Replay(flow, tier, batch)
    rows = rows_of(table, flow.schema, partitions)
    found = _Columns(flow, len(table))
    next_offset = np.zeros(partitions, np.int64)
    try:
        for at in range(0, len(table), CHUNK):
            part = type(rows)(*(getattr(rows, n)[at : at + CHUNK] for n in vars(rows)))
            where = [at + np.flatnonzero(part.partition == p) for p in np.unique(part.partition)]
            for records, index in zip(split(part, next_offset), where):
                for step in run.feed(records):
                    if step.scored is not None:
                        found.take(step.scored, index[step.places()])
        if len(table) == 0:
            run.partition(0)
        engine = next(iter(run.partitions.values())).engine
        columns = found.frame(engine.feature_names, engine.catalogue)
    finally:
        run.close()
    return pl.concat([table.select(flow.schema.key, "event_ts_ns"), columns], how="horizontal")


def compute_view(view, events: pl.DataFrame, mapping: Mapping | Iterable[str] | None = None) -> pl.DataFrame:
    """A table of events with the features of one view after each of them, in the table's order.

    Late and invalid rows have nulls. A view keyed by item knows the items that are in the table.
    """
    schema = SCHEMAS.get(view.source)
    if schema is None:
        raise InputError(f"{view.__name__}: source {view.source!r} is unknown; known: {', '.join(SCHEMAS)}")
    items = None
    if view.key == schema.item:
        ids = conform(events, schema, mapping)[schema.item].drop_nulls().unique(maintain_order=True)
        items = Catalogue.of_ids([i for i in ids.to_list() if i])
    flow = Flow(view.__name__.lower(), source=view.source, views=(view,), schema=schema, catalogue=items)
    out = replay_frame(flow, events, mapping, Tier.SILENT)
    return out.drop("status", "tier", "items", "scores", strict=False)


class _Columns:
    """Results of n events, filled as steps give them."""

    def __init__(self, flow: Flow, n: int) -> None:
        self.flow, self.n = flow, n
        self.status = np.full(n, _STATUS.index("dead"), np.uint8)
        self.tier = np.zeros(n, np.uint8)
        self.arrays: dict[str, np.ndarray] = {}

    def take(self, scored, index: np.ndarray) -> None:
        """index i8[m]: the table's row of each event."""
        self.status[index], self.tier[index] = scored.status, scored.tier
        for name in ("features", "items", "scores", "target"):
            values = getattr(scored, name)
            if name not in self.arrays:
                empty = -1 if name == "items" else np.nan
                self.arrays[name] = np.full((self.n, *values.shape[1:]), empty, values.dtype)
            self.arrays[name][index] = values

    def frame(self, feature_names: tuple[str, ...], catalogue: Catalogue | None) -> pl.DataFrame:
        silent = (self.status != SCORED) | (self.tier == Tier.SILENT)
        columns = {
            "status": np.array(_STATUS)[self.status],
            "tier": np.array([TIER_NAMES[t] for t in Tier])[
                np.where(self.status == LATE, Tier.SILENT, self.tier)
            ],
        }
        features = self.arrays.get("features", np.zeros((self.n, len(feature_names)), np.float32))
        columns |= {name: pl.Series(features[:, i]).fill_nan(None) for i, name in enumerate(feature_names)}
        scores = self.arrays.get("scores", np.zeros((self.n, 0), np.float32))
        if self.flow.scorer is not None:
            columns["scores"] = _lists(scores, np.ones(scores.shape, bool), silent)
        elif self.flow.catalogue is not None:
            items = self.arrays.get("items", np.zeros((self.n, 0), np.int32))
            ids = np.array([*catalogue.ids, ""], object)[items]
            columns["items"] = _lists(ids, items >= 0, silent)
            columns["scores"] = _lists(scores, items >= 0, silent)
        elif self.flow.model is not None:
            columns |= self._signals(scores, silent | (self.tier <= Tier.PRIOR))
        if self.flow.decide is not None and "target" in self.arrays:
            columns["target"] = pl.Series(self.arrays["target"]).fill_nan(None)
        return pl.DataFrame(columns)

    def _signals(self, scores: np.ndarray, none: np.ndarray) -> dict[str, pl.Series]:
        out = {}
        for h, horizon in enumerate(self.flow.horizons):
            p = np.where(none[:, None], np.nan, scores[:, 3 * h : 3 * h + 3])
            out[f"signal_{horizon}"] = pl.Series(p[:, 2] - p[:, 0]).fill_nan(None)
            out[f"confidence_{horizon}"] = pl.Series(p.max(1)).fill_nan(None)
        return out


def _lists(values: np.ndarray, there: np.ndarray, none: np.ndarray) -> pl.Series:
    """Rows of an array as lists, without what is not there; null where none."""
    rows = [None if skip else v[t].tolist() for v, t, skip in zip(values, there, none)]
    kind = pl.List(pl.String if values.dtype == object else pl.Float32)
    return pl.Series(rows, dtype=kind)
