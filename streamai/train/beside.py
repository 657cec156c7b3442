"""Models that are trained only to be measured beside the flow: on the same events, by the same recipe.

gru    a GRU of the student's budget
twin   the student with windowed softmax attention in place of its recurrence: the same widths, layers and
       hidden units, attention over the last WINDOW events biased by distance and time
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import torch
from rich.console import Console

from streamai.errors import SettingsError
from streamai.flow import Flow
from streamai.train.data import Sequences, batch, sequences, vocabulary
from streamai.train.fit import Recipe, fit
from streamai.train.gru import Gru
from streamai.train.model import Shape
from streamai.train.recommend import with_kinds
from streamai.train.teacher import Teacher, TeacherShape

KINDS = ("gru", "twin")
WINDOW = 64
SIZE = 64
"""Events that one pass over a batch goes through at once."""


def answers(
    kind: str, flow: Flow, fed: pl.DataFrame, learnt: np.ndarray, ask: np.ndarray, recipe: Recipe,
    dropout: float, time: bool, console: Console,
) -> dict:  # fmt: skip
    """Train one on the rows of `fed` where learnt bool[n], ask it after the rows `ask`.

    fed: good events in feeding order. Returns the fields of `evaluate.recommend.Beside` by name.
    """
    names = {flow.schema.key: "user_id", flow.schema.item: "item_id"}
    table = with_kinds(fed, flow).rename(names)
    vocab = vocabulary(table.filter(pl.Series(learnt))["item_id"])
    seq = sequences(table.filter(pl.Series(learnt)), vocab, time=time)
    everything = sequences(table, vocab, time=time)
    torch.manual_seed(recipe.seed)
    model = model_of(kind, len(vocab), dropout, time)
    window = min(recipe.window, getattr(model.shape, "window", recipe.window))
    fit(model, seq, replace(recipe, window=window), console=console, title=kind)
    with torch.no_grad():
        hidden = outputs(model, everything, ask)
        item, bias = model.items().numpy().copy(), model.bias.detach().numpy().copy()
    return {"name": kind, "hidden": hidden, "item": item, "bias": bias, "vocabulary": vocab}


def model_of(kind: str, items: int, dropout: float, time: bool):
    """A fresh one, of the size of a 2 x 64 student."""
    shape = Shape(items)
    if kind == "gru":
        return Gru(shape, dropout)
    if kind == "twin":
        sizes = TeacherShape(items, shape.d, shape.layers, 2, shape.mlp, window=WINDOW)
        return Teacher(sizes, dropout, time)
    raise SettingsError(f"beside {kind!r}: expected one of {', '.join(KINDS)}")


def outputs(model, seq: Sequences, rows: np.ndarray) -> np.ndarray:
    """q f4[S, d] after the table's rows `rows` i8[S], given the key's events before (as many as the model's
    window holds, or 200)."""
    window = getattr(model.shape, "window", 200)
    place = np.full(int(max(seq.row.max(), rows.max())) + 1, -1, np.int64)
    place[seq.row] = np.arange(seq.events)
    at = place[rows]
    begin = seq.start[np.searchsorted(seq.start, at, side="right") - 1]
    first = np.maximum(begin, at + 1 - window)
    length, out = at + 1 - first, np.zeros((len(rows), model.shape.d), np.float32)
    order = np.argsort(length, kind="stable")
    model.eval()
    for i in range(0, len(order), SIZE):
        some = order[i : i + SIZE]
        b = batch(seq, first[some], length[some], model.shape.vocabulary)
        q = model(b.token, b.kind, b.gap, b.side)
        out[some] = q[torch.arange(len(some)), b.length - 1].numpy()
    return out
