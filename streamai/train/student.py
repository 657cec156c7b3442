"""The LM that is served: trained or distilled, then compressed, chosen by events that it is not judged by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from rich.console import Console

from streamai.model import weights
from streamai.train.checkpoint import Checkpoint
from streamai.train.compress import Table, compress
from streamai.train.data import Sequences
from streamai.train.distil import digest, loss_from
from streamai.train.export import served
from streamai.train.fit import fit
from streamai.train.model import EventLM, Shape
from streamai.train.ranking import measures, ranked, ranks_of
from streamai.train.text import text_arrays, with_text

PLACES_MAX = 3000
"""Most events that an epoch is chosen by."""
HISTORY = 200
"""Events before one of them that a model is given."""


@dataclass(frozen=True)
class Places:
    """Held-out events: each is at first + length of `seq`, the `length` events from first on are its history.

    seen: what a key has met before can be recommended to it.
    """

    seq: Sequences
    first: np.ndarray
    length: np.ndarray
    seen: bool

    def figures(self, model) -> dict[str, float]:
        """NDCG@10 and HR@10 of a model by itself; nothing without a place."""
        if not len(self.first):
            return {}
        found = ranked(model, self.seq, self.first, self.length, seen=self.seen)
        return {name: found[name] for name in ("ndcg@10", "hr@10")}

    def served(self, file: weights.Weights) -> dict[str, float]:
        """The same of a weights file, by the kernel that serves it."""
        outputs = served(file, self.seq, self.first, self.length)
        q = torch.from_numpy(np.stack([o[-1] for o in outputs]))
        scores = q @ torch.from_numpy(file.items()).t() + torch.from_numpy(np.array(file.arrays["bias"]))
        found = measures(ranks_of(scores, self.seq, self.first, self.length, self.seen))
        return {name: found[name] for name in ("ndcg@10", "hr@10")}


def second_last(seq: Sequences, seen: bool, most: int, seed: int = 0) -> Places:
    """Every key's second-last event (of `most` keys): what leave-one-out chooses by."""
    n = seq.lengths()
    return _some(seq, seq.start[:-1][n > 2], n[n > 2] - 2, seen, most, seed)


def later(seq: Sequences, wanted: np.ndarray, seen: bool, most: int = PLACES_MAX, seed: int = 0) -> Places:
    """Of the rows of the table where wanted bool[...] those that have a history."""
    begin = np.repeat(seq.start[:-1], seq.lengths())
    at = np.flatnonzero(wanted[seq.row] & (np.arange(seq.events) > begin))
    first = np.maximum(begin[at], at - HISTORY)
    return _some(seq, first, at - first, seen, most, seed)


def _some(seq, first, length, seen, most, seed) -> Places:
    if len(first) > most:
        chosen = np.sort(np.random.default_rng(seed).choice(len(first), most, replace=False))
        first, length = first[chosen], length[chosen]
    order = np.argsort(length, kind="stable")
    return Places(seq, first[order], length[order], seen)


def fit_student(
    shape: Shape,
    seq: Sequences,
    places: Places,
    given: weights.Weights | None,
    options,
    console: Console,
    text: np.ndarray | None = None,
    kind: str = "clicks",
    vocab: list[str] = (),
    words: dict | None = None,
) -> tuple[EventLM, dict]:
    """The LM trained on `seq` (or the given one as it is) and compressed; figures of both.

    places: events that choose epoch and steps of compression. text f4[V, T]: vectors that the item table
    begins with, or None; words gets its arrays. options: `recommend.Options`.
    """
    loss_of, figures = None, {}
    if options.distil:
        loss_of, figures["teacher"] = loss_from(options.distil, seq, options.alpha)
    if given is not None:
        model = EventLM.of(given, options.dropout)
        figures["lm"] = {"taken_from": given.digest}
        model.int8, model.halves = given.int8, given.halves
    else:
        torch.manual_seed(options.recipe.seed)
        model = EventLM(shape, options.dropout, options.time)
        if text is not None:
            with_text(model, text, options.text_bound)
        sizes = f"{shape.vocabulary:,} tokens, d {shape.d}"
        console.print(f"LM: {seq.events:,} events of {len(seq):,} keys, {sizes}")
        run = f"{digest(seq)} {shape} {options.recipe} {options.dropout} {options.distil}"
        checkpoint = Checkpoint(options.checkpoint, run) if options.checkpoint else None
        records = fit(model, seq, options.recipe, lambda: places.figures(model), console, checkpoint, loss_of)
        best = max(records, key=lambda r: r.get("ndcg@10", r["epoch"]))["epoch"]
        figures["lm"] = records[-1] | {"seconds": sum(r["seconds"] for r in records), "best_epoch": best}
    if text is not None:
        words |= text_arrays(model, text)
    figures["lm"] |= {"keys": len(seq), "events": seq.events, "items": shape.vocabulary}
    if not len(places.first) or (given is not None and given.int8):
        return model, figures
    table = Table(places.served, places.seq, kind, vocab)
    table.measure("distilled" if options.distil else "trained", model)
    model = compress(model, seq, options.recipe, options.compression, table, console, loss_of)
    return model, figures | {"compression": table.rows}


def fit_again(
    shape: Shape, seq: Sequences, like: EventLM, epochs: int, options, console: Console,
    text: np.ndarray | None, words: dict,
) -> tuple[EventLM, dict]:  # fmt: skip
    """An LM trained as `like` was, on more events: nothing is left to choose by, so for as many epochs as
    were best for `like`, and in 8 bits and halves where `like` is."""
    torch.manual_seed(options.recipe.seed)
    model = EventLM(shape, options.dropout, options.time)
    if text is not None:
        with_text(model, text, options.text_bound)
    records = fit(model, seq, replace(options.recipe, epochs=epochs, patience=0), console=console)
    model.int8, model.halves = like.int8, like.halves
    if text is not None:
        words |= text_arrays(model, text)
    figures = {"keys": len(seq), "events": seq.events, "items": shape.vocabulary}
    return model, records[-1] | figures | {"seconds": sum(r["seconds"] for r in records)}


def validation_of(model, places: Places) -> Callable[[], dict[str, float]]:
    """What `fit` calls after an epoch."""
    return lambda: places.figures(model)
