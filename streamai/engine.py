"""One partition's engine: events in, scores out, and the state between them.

`step` is the only path from events to scores, live and in history. It is deterministic: the same events
give the same bits, however they are cut into batches and wherever the engine was reopened.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from streamai.asking import Asking
from streamai.catalogue import Catalogue
from streamai.deadline import Tier
from streamai.declaration import duration_ns
from streamai.errors import StateError, StepError
from streamai.events import Events
from streamai.feature import compile_views
from streamai.flow import Flow
from streamai.kernels import context as c
from streamai.kernels import others as others_kernel
from streamai.kernels import step as kernel
from streamai.kernels.request import FEW, FEW_INDEXED
from streamai.model import merged, tables, weights
from streamai.scored import Scored
from streamai.state import arrays as state_arrays
from streamai.state import online
from streamai.state.counts import CountsState
from streamai.state.slab import Slab
from streamai.state.store import Checkpoint, MemoryStore, Store

ROWS_MAX = 65_536
BATCH_MAX = 256
NO_DIGEST = "0" * 16


class Engine:
    """State and scorer of one partition of a flow.

    position    offset of the next event to take; set `position` past records that are no events
    since       offset of the first event that is served by this model
    store       where checkpoints go; opened with the engine's folder, or in memory
    rows_max    keys in memory; batch_max: most events of one step
    """

    def __init__(
        self,
        flow: Flow,
        partition: int = 0,
        store: MemoryStore | None = None,
        rows_max: int = ROWS_MAX,
        batch_max: int = BATCH_MAX,
    ) -> None:
        if batch_max < 1:
            raise StateError(f"batch_max is {batch_max}; a step takes at least one event")
        self.flow, self.partition, self.batch_max = flow, partition, batch_max
        self.store = MemoryStore() if store is None else store
        self.position = 0
        self.plan = compile_views(flow.key_views, flow.schema)
        self.item_plan = compile_views(flow.item_views, flow.schema)
        self.model = None if flow.model is None else weights.read(flow.model)
        if self.model is not None:
            tables.check(flow, self.model, self.plan_digest)
        self.catalogue = _catalogue(flow, self.store.vocabulary())
        self.layout = tables.layout_of(flow, self.plan, self.model)
        self.slab = Slab(rows_max, self.layout)
        self.counts = CountsState(flow.counts, self.catalogue)
        self.since = 0
        self.others: merged.Table | None = None
        self.others_digest: str | None = None
        self._bundle()
        self.restore()

    # -- digests that stand in every output

    @property
    def plan_digest(self) -> str:
        return (
            self.plan.digest if not self.item_plan.names else _both(self.plan.digest, self.item_plan.digest)
        )

    @property
    def model_digest(self) -> str:
        return NO_DIGEST if self.model is None else self.model.digest

    @property
    def catalogue_digest(self) -> str:
        return NO_DIGEST if self.catalogue is None else self.catalogue.digest

    @property
    def feature_names(self) -> tuple[str, ...]:
        return self.plan.names + self.item_plan.names

    # -- the hot path

    def step(self, events: Events, tiers) -> Scored:
        """Take events in offset order and score them.

        tiers: one Tier, or u1[n]. Takes the first len(result) of the events: fewer than given when more
        than batch_max, or when no clean row is left for a new key (then checkpoint and call again with
        the rest). Requests among them change no state. Arrays of the result are overwritten by the next step.
        """
        n = min(len(events), self.batch_max, self.counts.room())
        if n < len(events):
            events = events[:n]
        n = self.slab.locate(events, self.arrays["slots"], self.store.load)
        if n < len(events):
            events = events[:n]
        if np.isscalar(tiers) or isinstance(tiers, Tier):
            self.tiers[:n] = tiers
        else:
            self.tiers[:n] = tiers[:n]
        # with a scorer of the user's own the kernel makes state only
        work = self.tiers[:n] if self.flow.scorer is None else self.silence[:n]
        asked = bool(events.requests)
        if asked:
            events = self.asking.put(events)
            n = len(events)
        kernel.step(self.tables, self.state, self.work, events.rows, events.columns, work[:n])
        if asked:
            self.asking.none()
        if n:
            self.position = int(events.rows["offset"][n - 1]) + 1
        scored = self._scored(events, n)
        if n == 0:
            return scored  # users' own code need not know of a step without events
        if self.flow.scorer is not None:
            scored.scores[:] = 0  # what it leaves out must not be the step's before
            self.flow.scorer(scored.features, scored.hidden, scored.scores)
        if self.flow.decide is not None:
            scored.target[:] = self._decided(scored, events)
        return scored

    def _decided(self, scored: Scored, events: Events) -> np.ndarray:
        target = self.flow.decide(scored, events)
        if np.shape(target) not in ((), (len(scored),)):
            raise StepError(
                f"decide of flow {self.flow.name!r} gave an array of shape {np.shape(target)} for "
                f"{len(scored)} events; expected one target an event (or one number for all)"
            )
        return target

    def _scored(self, events: Events, n: int) -> Scored:
        a = self.arrays
        self.target[:n] = np.nan
        return Scored(
            events, a["status"][:n], self.tiers[:n], a["features"][:n], a["hidden"][:n], a["items"][:n],
            a["scores"][:n], self.target[:n],
        )  # fmt: skip

    # -- what training and evaluation look at

    @property
    def exclude(self) -> np.ndarray:
        """u1[items]: set entries are never recommended, until they are cleared. For evaluation."""
        return self.arrays["exclude"]

    def learn_counts(self, on: bool) -> None:
        """Whether events change counts and popularity; a replay of held-out events turns it off."""
        self.clock[c.LEARN] = int(on)

    def candidates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the last event of the last step, if it was scored at RANK or FULL: candidate indices i4[m], the
        head's inputs z f4[m, 16] (see kernels/inputs.py) and the head's scores f4[m]. Views of scratch."""
        m = int(self.arrays["found"][0])
        return self.arrays["cand"][:m], self.arrays["z"][:m], self.arrays["cand_s"][:m]

    def item_features(self, items: np.ndarray) -> np.ndarray:
        """The item views' features f4[m, I] of items i4[m] as of each one's newest event, NaN before it."""
        rows = self.state_arrays["items_f4"][items]
        out = rows[:, rows.shape[1] - len(self.item_plan.names) :].copy()
        out[self.state_arrays["items_i8"][items, 0] == 0] = np.nan
        return out

    # -- what other partitions count

    def snapshot(self) -> merged.Table:
        """This partition's own counts as of now."""
        as_of_ns = max(int(self.clock[c.WATERMARK]), 1)
        return merged.snapshot(
            self.catalogue.ids, self.state_arrays, int(self.clock[c.LANDMARK]), self.counts.tau, as_of_ns
        )

    def take_others(self, others: merged.Table | None) -> None:
        """Score with what the other partitions counted, from the next event on; None: with the own alone."""
        self.others, self.others_digest = others, None if others is None else others.digest
        joint, arrays = self.counts.norm, merged.none()
        if others is not None:
            here = others.of_catalogue(self.catalogue.ids, self.counts.n)
            arrays, joint = here.arrays(), np.zeros_like(joint)
            others_kernel.rejoin_all(self.counts.norm, here.pop, joint)
        self.table_arrays |= arrays
        self.state_arrays["joint"] = joint
        self.tables, self.state = c.tables(self.table_arrays), c.state(self.state_arrays)

    def serve_with(self, others: merged.Table | None) -> None:
        """`take_others`, and the store says so, if it said otherwise. What was scored before is in it."""
        if self.others_digest is not None or others is not None:
            self.take_others(others)
        meta = self.store.meta()
        here = {"model": self.model_digest, "tables": self.others_digest}
        stored = None if meta is None else {name: meta.get(name) for name in here}
        if stored == here:
            self.since = int(meta.get("since", 0))
        elif self.flow.model is not None or self.flow.merge:
            self.since = self.position
            self.checkpoint()

    # -- checkpoints

    def barrier(self) -> Checkpoint:
        """Copies of all that changed since the last barrier, as of `position`. Write it once every output
        below its fence is acked, then call `written`."""
        clock = self.clock
        which, rows, hashes, keys = self.slab.take_dirty(int(clock[c.DIRTY_KEYS]))
        items = np.sort(self.state_arrays["item_dirty_list"][: clock[c.DIRTY_ITEMS]]).astype("i8")
        item_rows = self.state_arrays["items_f8"][items].view("u1")
        self.state_arrays["item_dirty"][items] = 0
        log, log_at, runs, log_gone, all_runs = self.counts.take(clock, self.position)
        clock[c.DIRTY_KEYS] = clock[c.DIRTY_ITEMS] = 0
        checkpoint = Checkpoint(
            self.position, hashes, keys, rows, which, items, item_rows, log, log_at, runs, log_gone, all_runs,
            self._meta(), self._vocabulary, online.packed(self.state_arrays, clock),
        )  # fmt: skip
        self._vocabulary = None
        return checkpoint

    def written(self, checkpoint: Checkpoint) -> None:
        """The checkpoint is in the store: its rows are clean unless they changed again."""
        self.slab.written(checkpoint.slots)

    def checkpoint(self) -> Checkpoint:
        """Barrier, write and mark, for drivers whose outputs are safe already."""
        checkpoint = self.barrier()
        self.store.write(checkpoint)
        self.written(checkpoint)
        return checkpoint

    def restore(self) -> None:
        """State and position of the last checkpoint; an empty store is a beginning."""
        meta = self.store.meta()
        self._vocabulary = None if self.catalogue is None else self.catalogue.ids
        if meta is None:
            return
        _check_meta(meta, self._meta(), self.store.where)
        self.position = self.since = int(meta["fence"])
        if meta["model"] == self.model_digest and meta.get("tables") == self.others_digest:
            self.since = int(meta.get("since", 0))
        self.clock[c.WATERMARK] = meta["watermark"]
        self.clock[c.LATE_TOTAL] = meta["late_total"]
        items = self.state_arrays["items_f8"].view("u1")
        for name, row in self.store.scan(b"i"):
            items[int.from_bytes(name, "big")] = np.frombuffer(row, "u1")
        self.counts.restore(self.store, self.clock, meta)
        online.restore(self.store.get(b"o"), self.state_arrays, self.clock)
        if self.store.vocabulary() == self._vocabulary:
            self._vocabulary = None

    def close(self) -> None:
        """Let the store go; what was not checkpointed comes again from the topic."""
        self.store.close()

    def _meta(self) -> dict:
        clock = self.clock
        return {
            "flow": self.flow.name, "source": self.flow.source, "partition": self.partition,
            "plan": self.plan.digest, "item_plan": self.item_plan.digest,
            "item_cells": state_arrays.item_cells(self.item_plan),
            "layout": {k: v for k, v in asdict(self.layout).items() if k not in tables.OF_MODEL},
            "model": self.model_digest, "since": self.since, "catalogue": self.catalogue_digest,
            "tables": self.others_digest,
            "watermark": int(clock[c.WATERMARK]), "late_total": int(clock[c.LATE_TOTAL]),
            **self.counts.meta(clock),
        }  # fmt: skip

    # -- once, at the start

    def _bundle(self) -> None:
        flow = self.flow
        arrays = tables.arrays_of(flow, self.plan, self.item_plan, self.catalogue, self.model)
        arrays |= merged.none()
        width = self._score_width()
        linked = 2 * flow.counts.scored * self.counts.ids.shape[1]  # own and the other partitions'
        sizes = {
            c.DISORDER: duration_ns(flow.disorder),
            c.LOG_MAX: self.counts.log_max,
            c.HORIZONS: len(flow.horizons),
        }
        shape = tables.shape_of(flow, self.plan, self.item_plan, self.layout, arrays, self.model, sizes)
        self.table_arrays = arrays | {"shape": shape}
        self.tables = c.tables(self.table_arrays)
        digest = int(self.model_digest, 16)
        self.state_arrays = state_arrays.of_state(
            self.slab, self.counts, self.catalogue, self.item_plan, digest, flow.online
        )
        self.state = c.state(self.state_arrays)
        self.clock = self.state_arrays["clock"]
        self.counts.bind(self.clock)
        self.arrays = state_arrays.of_work(
            self.batch_max, self.table_arrays, self.plan, self.item_plan, width, linked
        )
        self.work = c.work(self.arrays)
        few = FEW if len(arrays["ivf_start"]) == 0 else FEW_INDEXED
        self.asking = Asking(self.catalogue, flow.top_k, few, self.arrays)
        self.tiers = np.zeros(self.batch_max, "u1")
        self.silence = np.full(self.batch_max, Tier.SILENT, "u1")
        self.target = np.full(self.batch_max, np.nan)

    def _score_width(self) -> int:
        if self.flow.scorer is not None:
            return self.flow.scorer_width
        if self.catalogue is not None:
            return self.flow.answer_max
        return 3 * len(self.flow.horizons) if self.model is not None else 0


def open_engine(
    flow: Flow, folder: str | Path | None, partition: int = 0, wait_s: float = 0.0, **options
) -> Engine:
    """An engine on the store `folder`/flow/partition, or in memory; resumes at its fence."""
    if folder is None:
        return Engine(flow, partition, **options)
    return Engine(flow, partition, Store(Path(folder) / flow.name / str(partition), wait_s), **options)


def reopen_with(
    flow: Flow, partition: int, store: MemoryStore, others: merged.Table | None = None, **options
) -> Engine:
    """An engine on the store's checkpoint that serves with the flow's model, and these counts of other
    partitions, from the fence on.

    Where those are others than the checkpoint's, the store says so before anything is served: whoever opens
    it after a crash finds what the outputs from the fence on were made with.
    """
    engine = Engine(flow, partition, store, **options)
    engine.serve_with(others)
    return engine


def check_model(flow: Flow) -> None:
    """ModelError if the flow's model does not fit the flow."""
    Engine(flow, rows_max=8, batch_max=1)


def _catalogue(flow: Flow, stored: list[str] | None) -> Catalogue | None:
    if flow.catalogue is None:
        return None
    catalogue = flow.catalogue if isinstance(flow.catalogue, Catalogue) else Catalogue.load(flow.catalogue)
    return catalogue if stored is None or stored == catalogue.ids else catalogue.extend(stored)


def _both(a: str, b: str) -> str:
    """One digest of two."""
    return f"{int(a, 16) ^ (int(b, 16) * 3 & (1 << 64) - 1):016x}"


def _check_meta(stored: dict, here: dict, where: str) -> None:
    for name in ("flow", "source", "partition", "plan", "item_plan", "item_cells", "layout"):
        if stored.get(name) != here[name]:
            raise StateError(
                f"the state in {where} was made with {name} {stored.get(name)!r}, this flow has "
                f"{here[name]!r}. Views and layout decide what a row means: remove the folder to rebuild the "
                "state from the topic, or give the flow another name."
            )
