"""Training of a click flow: the LM on the first part of history, the ranking head on what follows it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console

from streamai.catalogue import Catalogue
from streamai.engine import Engine
from streamai.errors import InputError, ModelError
from streamai.flow import Flow
from streamai.model import weights
from streamai.replay.read import valid
from streamai.train.compress import Compression
from streamai.train.data import Sequences, sequences, vocabulary
from streamai.train.export import export
from streamai.train.fit import Recipe
from streamai.train.head import HeadRecipe, fit_head
from streamai.train.model import Shape
from streamai.train.ranking import leave_one_out
from streamai.train.served import log_candidates
from streamai.train.student import PLACES_MAX, Places, fit_again, fit_student, later, second_last
from streamai.train.text import given_arrays, text_of

PROTOCOLS = ("leave-one-out", "prequential", "all")
PREQUENTIAL_SHARE = 0.6
HEAD_SHARE = 0.3
"""Last part of the fitted time that the head learns from, and the first LM does not see."""
LOGGED_MAX = 15_000
"""Most events that the head learns from, in each of its passes."""


@dataclass(frozen=True)
class Options:
    """What `streamai train` lets one choose.

    protocol   leave-one-out: LM to each key's third-last event, head on the second-last; prequential: all of
               it on the first 60 % of time; all: on everything
    until      share of time to fit on, in place of the protocol's (not for leave-one-out)
    time       False: the LM sees no time gaps
    hide_seen  candidates leave out what the key has met
    head       False: the LM alone
    text       item vectors begin with the catalogue's text, where it has vectors (`streamai items`)
    text_bound greatest length of what an item's vector has beside its text
    lm         weights file whose LM is taken as it is; only the head is fitted
    distil     folder of a teacher's answers; alpha: share of the loss that is still the next event's own
    checkpoint file that a training goes on from
    answers    folder for a teacher's answers; of: files of the models to ask, in place of training one
    nproc      processes that train a teacher; parallel: how they share it
    refit      the LM is trained again, up to the end of the fitted time, once the head has learnt beside one
               that had not seen the head's part; not for leave-one-out, where both end at the same place, nor
               where the LM is given, distilled, pruned or of low rank
    fresh      the head also learns from a replay that begins with nothing known, as a new worker does
    """

    d: int = 64
    layers: int = 2
    dropout: float = 0.2
    protocol: str = "prequential"
    until: float | None = None
    time: bool = True
    hide_seen: bool = False
    head: bool = True
    text: bool = True
    text_bound: float = 0.5
    lm: str | None = None
    recipe: Recipe = field(default_factory=Recipe)
    distil: str | None = None
    alpha: float = 0.3
    compression: Compression = field(default_factory=Compression)
    checkpoint: str | None = None
    answers: str | None = None
    of: tuple[str, ...] = ()
    nproc: int = 1
    parallel: str = "data"
    refit: bool = True
    fresh: bool = False

    def again(self) -> bool:
        """Whether the LM is trained again for what is served."""
        todo = self.compression
        return self.refit and not (self.lm or self.distil or todo.prune or todo.rank)

    def share(self) -> float:
        """Share of time that is fitted on."""
        if self.until is not None:
            return self.until
        return PREQUENTIAL_SHARE if self.protocol == "prequential" else 1.0


def moment(ts: pl.Series, share: float) -> int:
    """The event time, ns, that lies `share` of the way from the first to the last."""
    first, last = int(ts.min()), int(ts.max())
    return last + 1 if share >= 1 else first + int((last - first) * share)


def good(table: pl.DataFrame, flow: Flow) -> pl.DataFrame:
    """The rows that the wire would accept; InputError where there are none."""
    rows = table.filter(valid(flow.schema))
    if not len(rows):
        name = flow.schema.name
        raise InputError(f"training: none of {len(table)} rows is a good event of {name}; check --map")
    return rows


def with_kinds(table: pl.DataFrame, flow: Flow) -> pl.DataFrame:
    """`kind` as the schema's numbers."""
    return table.with_columns(pl.col("kind").replace_strict(flow.schema.kinds, return_dtype=pl.Int32))


@dataclass(frozen=True)
class Split:
    """lm: rows that the LM learns; feed: rows of the head's replay, in order; target: by row of `feed`, the
    ids of the key's next basket where the head learns from it; until_ns: end of all that was fitted on;
    fresh: row of `feed` from which a second replay begins with nothing known, None = there is none."""

    lm: pl.DataFrame
    feed: pl.DataFrame
    target: list[list[str] | None]
    until_ns: int
    fresh: int | None = None


def split(table: pl.DataFrame, flow: Flow, options: Options, seed: int = 0) -> Split:
    """Cut a table of good clicks in arrival order by the protocol."""
    key, item = flow.schema.key, flow.schema.item
    until = moment(table["event_ts_ns"], options.share())
    table = table.with_columns(pl.col(item).shift(-1).over(key).alias("next_item"))
    if options.protocol == "leave-one-out":
        back = pl.len().over(key) - pl.int_range(pl.len()).over(key) - 1
        table = table.with_columns(back.alias("back")).filter(pl.col("back") >= 2)
        # all keys' last steps before their targets come at the end: no target is fed, and all else is known
        feed = table.with_columns((pl.col("back") == 2).alias("last")).sort("last", maintain_order=True)
        target = feed.select(pl.when("last").then("next_item").otherwise(None)).to_series().to_list()
        target = [None if t is None else [t] for t in target]
        return Split(table, feed, target, until)
    table = table.filter(pl.col("event_ts_ns") < until)
    head_from = moment(table["event_ts_ns"], 1 - HEAD_SHARE)
    target = _next_baskets(table, flow, head_from)
    wanted = np.flatnonzero([t is not None for t in target])
    if len(wanted) > LOGGED_MAX:
        drop = np.random.default_rng(seed).permutation(wanted)[LOGGED_MAX:]
        target[drop] = None
    late = np.flatnonzero((table["event_ts_ns"] >= head_from).to_numpy())
    fresh = int(late[0]) if len(late) and len(wanted) else None
    return Split(table.filter(pl.col("event_ts_ns") < head_from), table, target.tolist(), until, fresh)


def _next_baskets(table: pl.DataFrame, flow: Flow, from_ns: int) -> np.ndarray:
    """By row from from_ns on, the items of the key's next basket; None where there is none, and within one.

    A basket is what shares key and time; a list is asked for after its last row, as in `evaluate`: what
    stands beside an item in its own basket is never asked for. The next basket must itself lie in the table.
    """
    key, item = flow.schema.key, flow.schema.item
    starts = (pl.col("event_ts_ns") != pl.col("event_ts_ns").shift(1).over(key)).fill_null(True)
    rows = table.with_row_index("_row").select(key, item, "event_ts_ns", "_row", starts.alias("_starts"))
    rows = rows.with_columns(pl.col("_starts").cum_sum().over(key).alias("_basket"))
    baskets = rows.group_by(key, "_basket", maintain_order=True).agg(
        pl.col("_row").last(), pl.col(item).drop_nulls(), pl.col("event_ts_ns").first()
    )
    baskets = baskets.with_columns(pl.col(item).shift(-1).over(key, order_by="_basket").alias("_next"))
    asked = baskets.filter((pl.col("event_ts_ns") >= from_ns) & (pl.col("_next").list.len() > 0))
    target = np.full(len(table), None, object)
    for row, items in zip(asked["_row"].to_list(), asked["_next"].to_list()):
        target[row] = items
    return target


@dataclass(frozen=True)
class Learnt:
    """What a model learns from: parts, vocabulary, the LM's sequences, those of all events, and the events
    that choose."""

    parts: Split
    vocab: list[str]
    lm: Sequences
    everything: Sequences
    places: Places


def learnt_from(flow: Flow, table: pl.DataFrame, options: Options, vocab: list[str] | None = None) -> Learnt:
    """Cut a frame of `read_events` by the protocol. ModelError when nothing is left to learn from."""
    table = good(table, flow)
    parts = split(table, flow, options, options.recipe.seed)
    if not len(parts.lm):
        raise ModelError(f"training: nothing to fit on is left by --protocol {options.protocol}")
    vocab = vocab or vocabulary(parts.lm[flow.schema.item])
    lm, everything = _sequences(flow, table, parts.lm, vocab, options)
    seen = not options.hide_seen
    if options.protocol == "leave-one-out":
        places = second_last(everything, seen, PLACES_MAX)
    else:
        ts = table["event_ts_ns"].to_numpy()
        places = later(everything, (ts > parts.lm["event_ts_ns"].max()) & (ts < parts.until_ns), seen)
    return Learnt(parts, vocab, lm, everything, places)


def train(flow: Flow, table: pl.DataFrame, out: str | Path, options: Options, console: Console) -> dict:
    """Train on a frame of `read_events`, write the model to `out`, return the figures."""
    given = weights.read(options.lm) if options.lm else None
    data = learnt_from(flow, table, options, given.vocabulary if given else None)
    parts, flow = data.parts, _loaded(flow)
    head_from = None if parts.fresh is None else int(parts.feed["event_ts_ns"][parts.fresh])
    if given and options.head and head_from is not None:
        _check_given(given, head_from)
    vocab, everything = data.vocab, data.everything
    text = text_of(flow.catalogue, vocab) if options.text and not given else None
    words = given_arrays(given) if given else {}
    model, figures = fit_student(
        Shape(len(vocab), options.d, options.layers), data.lm, data.places, given, options, console, text,
        vocab=vocab, words=words,
    )  # fmt: skip
    if options.protocol == "leave-one-out":
        figures["lm_validation"] = leave_one_out(model, everything, 2)
    head, plan, lm_until = None, "", head_from or parts.until_ns
    if options.head:
        head, figures["head"], plan = _head(flow, model, everything, parts, vocab, options, console, words)
    if head_from is not None and options.again():
        vocab, lm_until = vocabulary(parts.feed[flow.schema.item]), parts.until_ns
        lm, everything = _sequences(flow, table, parts.feed, vocab, options)
        text, words = text_of(flow.catalogue, vocab) if options.text else None, {}
        shape, epochs = Shape(len(vocab), options.d, options.layers), figures["lm"]["best_epoch"]
        model, figures["lm_again"] = fit_again(shape, lm, model, epochs, options, console, text, words)
    metrics = {"protocol": options.protocol, "fitted_until_ns": parts.until_ns, "lm_until_ns": lm_until}
    digest = export(
        out, model, "clicks", everything, head=head, metrics=metrics | figures, text=words, vocabulary=vocab,
        plan=plan,
    )  # fmt: skip
    return {"model": digest, "path": str(out), **figures}


def _sequences(flow, table, rows, vocab: list[str], options: Options) -> tuple[Sequences, Sequences]:
    """Of the LM's rows, and of all good rows of the table."""
    names = {flow.schema.key: "user_id", flow.schema.item: "item_id"}
    lm = sequences(with_kinds(rows, flow).rename(names), vocab, time=options.time)
    return lm, sequences(with_kinds(good(table, flow), flow).rename(names), vocab, time=options.time)


def _check_given(given: weights.Weights, head_from: int) -> None:
    """An LM that has learnt what the head is to learn from would be trusted too much."""
    until = given.header.get("metrics", {}).get("lm_until_ns")
    if until is not None and until > head_from:
        raise ModelError(
            f"{given.path}: its LM has learnt events up to {until}, the head learns from those after "
            f"{head_from}, and would trust it too much. Train the LM with --no-refit, or the head with "
            "--until a later share of time."
        )


def _loaded(flow: Flow) -> Flow:
    """The flow with its catalogue in memory."""
    if flow.catalogue is None or isinstance(flow.catalogue, Catalogue):
        return flow
    return flow.but(catalogue=Catalogue.load(flow.catalogue))


def _head(flow, model, everything, parts, vocab, options, console, words) -> tuple[dict, dict, str]:
    """Arrays, figures and plan digest of the head, from the candidates of an engine with the LM alone."""
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "lm.weights"
        export(draft, model, "clicks", everything, vocabulary=vocab, text=words)
        catalogue = flow.catalogue
        if catalogue is None:
            catalogue = Catalogue.of_ids(sorted(vocab))
        flow = flow.but(model=draft, catalogue=catalogue)
        seen = {"hide_seen": options.hide_seen, "console": console}
        logged = log_candidates(flow, parts.feed, parts.target, **seen)
        if parts.fresh is not None and options.fresh:
            # a worker may begin with a full state or with none: counts and popularity of either are met
            begun = log_candidates(flow, parts.feed[parts.fresh :], parts.target[parts.fresh :], **seen)
            logged = logged.beside(begun)
        plan = Engine(flow.but(decide=None), rows_max=64).plan_digest
    if options.protocol == "leave-one-out":
        # fed by length of history: what is held out for choosing the epoch must not be the longest only
        logged = logged.rows(np.random.default_rng(options.recipe.seed).permutation(len(logged)))
    arrays, figures = fit_head(logged, model.shape.d, HeadRecipe(seed=options.recipe.seed), console)
    return arrays, figures, plan
