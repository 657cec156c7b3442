"""Compression of a trained LM, a step at a time, each measured: what it costs in quality and what it saves.

prune    hidden units of the gated MLPs that do least, by |unit| on real events times the length of its row in
         W2 (Molchanov et al. 2017 rank units likewise by what they contribute); then fine-tuning
rank     the item table as a product U P of a smaller rank: singular vectors, then fine-tuning
int8     matrices, their inputs and the item table in 8 bits; by itself, then with quantisation-aware training
         (Jacob et al. 2018: rounded forward, gradient straight through) where that costs too much
halves   the state of a row in half precision
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from streamai.errors import SettingsError
from streamai.model import weights
from streamai.train.data import Sequences, batch
from streamai.train.export import export, held_out_part, served
from streamai.train.fit import Recipe, fit
from streamai.train.model import EventLM, Layer, Shape, rms

COST_MOST = 0.005
"""Share of NDCG@10 that 8 bits may cost; above it they are trained for, or left out."""
TUNE_RATE = 0.1
"""Learning rate of fine-tuning, as a share of the recipe's."""


@dataclass(frozen=True)
class Compression:
    """What to do; 0, "off" and "f4" leave a step out.

    prune        hidden units of an MLP to keep, a multiple of 16
    rank         rank of the item table
    int8         "auto": kept where it costs at most COST_MOST, trained for if need be; "on"; "off"
    state        "auto": halves where int8 is kept; "f2"; "f4"
    tune_epochs  of fine-tuning after a step
    """

    prune: int = 0
    rank: int = 0
    int8: str = "auto"
    state: str = "auto"
    tune_epochs: int = 2


class Table:
    """The rows of the report: one a step."""

    def __init__(self, validate: Callable, seq: Sequences, kind: str, vocab: list[str]) -> None:
        self.validate, self.seq, self.kind, self.vocab, self.rows = validate, seq, kind, vocab, []

    def measure(self, step: str, model: EventLM, seconds: float = 0.0) -> dict:
        """Quality, bytes and time of the file and of the kernel that serves it."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "lm.weights"
            export(path, model, self.kind, self.seq, vocabulary=self.vocab)
            file = weights.read(path)
            row = {"step": step, **self.validate(file), **cost(file, self.seq)}
        self.rows.append(row | {"seconds": seconds, "kept": True})
        return row


def cost(file: weights.Weights, seq: Sequences) -> dict:
    """Bytes of the file, bytes of LM state a key, microseconds an event of the served kernel (best of 5)."""
    first, length = held_out_part(seq, 2000)
    taken = []
    for _ in range(5):
        began = perf_counter()
        served(file, seq, first, length)
        taken.append(perf_counter() - began)
    numbers = (4 * file.header["layers"] + 1) * file.header["d"]
    return {
        "model_bytes": Path(file.path).stat().st_size,
        "key_bytes": numbers * (2 if file.halves else 4),
        "us_per_event": min(taken) / int(length.sum()) * 1e6,
    }


def compress(
    model: EventLM, seq: Sequences, recipe: Recipe, todo: Compression, table: Table, console: Console,
    loss_of: Callable | None = None,
) -> EventLM:  # fmt: skip
    """The model after the steps that are asked for; `table` gets a row for each, kept or not."""
    tune = replace(recipe, epochs=todo.tune_epochs, rate=recipe.rate * TUNE_RATE, warm_up=20, patience=0)

    def tuned(candidate: EventLM, title: str) -> float:
        began = perf_counter()
        if todo.tune_epochs:
            fit(candidate, seq, tune, console=console, loss_of=loss_of, title=title)
        return perf_counter() - began

    if todo.prune:
        model = pruned(model, seq, todo.prune)
        table.measure(f"MLP pruned to {todo.prune}", model, tuned(model, "fine-tuning (pruned)"))
    if todo.rank:
        model = low_rank(model, todo.rank)
        table.measure(f"items of rank {todo.rank}", model, tuned(model, "fine-tuning (low rank)"))
    if todo.int8 != "off":
        model = _in_8_bits(model, todo, table, tuned)
    if todo.state == "f2" or (todo.state == "auto" and model.int8):
        model.halves = True
        table.measure("state in halves", model)
    return model


def _in_8_bits(model: EventLM, todo: Compression, table: Table, tuned: Callable) -> EventLM:
    before = table.rows[-1]["ndcg@10"]
    low = before * (1 - COST_MOST)
    model.int8 = True
    row = table.measure("int8", model)
    if row["ndcg@10"] >= low or todo.int8 == "on":
        return model
    trained = copy.deepcopy(model)
    seconds = tuned(trained, "fine-tuning (8 bits)")
    row = table.measure("int8, trained for", trained, seconds)
    table.rows[-2]["kept"] = False
    if row["ndcg@10"] >= low:
        return trained
    table.rows[-1]["kept"] = False
    model.int8 = False
    return model


def pruned(model: EventLM, seq: Sequences, keep: int, positions: int = 20_000) -> EventLM:
    """A copy with `keep` hidden units an MLP: those that give most on some of `seq`."""
    old = model.shape
    if keep % 16 or not 16 <= keep <= old.mlp:
        raise SettingsError(f"--prune {keep}: a multiple of 16, at most the {old.mlp} units that there are")
    new = EventLM(replace(old, mlp=keep), model.dropout, model.time)
    worth = _worth(model, seq, positions)
    with torch.no_grad():
        theirs = dict(model.named_parameters())
        for name, p in new.named_parameters():
            value = theirs[name]
            if name.startswith("blocks."):
                units = torch.sort(torch.topk(worth[int(name.split(".")[1])], keep).indices).values
                if name.endswith("W1"):
                    value = value[:, torch.cat([units, units + old.mlp])]
                elif name.endswith("W2"):
                    value = value[units]
            p.copy_(value)
    new.int8, new.halves = model.int8, model.halves
    return new


def _worth(model: EventLM, seq: Sequences, positions: int) -> list[torch.Tensor]:
    """What each hidden unit of each layer adds to the residual on average, f4[m] a layer."""
    first, length = held_out_part(seq, positions)
    length = np.minimum(length, 200)
    gathered: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda block, given, out: gathered.append(_units(block, out)))
        for block in model.blocks
    ]
    model.eval()
    total = [torch.zeros(model.shape.mlp) for _ in model.blocks]
    try:
        with torch.no_grad():
            for at in range(0, len(first), 32):
                gathered.clear()
                b = batch(seq, first[at : at + 32], length[at : at + 32], model.shape.vocabulary)
                model(b.token, b.kind, b.gap, b.side)
                real = torch.arange(b.token.shape[1]) < b.length[:, None]
                for k, units in enumerate(gathered):
                    total[k] += units[real].sum(0)
    finally:
        for hook in hooks:
            hook.remove()
    return total


def _units(block: Layer, out: torch.Tensor) -> torch.Tensor:
    """|hidden unit| times the length of its row in W2; the block's output stands for its MLP's input, which
    differs from it by what the MLP adds."""
    f, g = (rms(out) @ block.W1).split(block.m, -1)
    return (F.silu(f) * g).abs() * block.W2.norm(dim=1)


class LowRank(nn.Module):
    """An item table as the product of U f4[V, r] and P f4[r, d], as a parametrisation."""

    low_rank = True

    def __init__(self, P: torch.Tensor) -> None:
        super().__init__()
        self.P = nn.Parameter(P)

    def forward(self, U: torch.Tensor) -> torch.Tensor:
        return U @ self.P

    def right_inverse(self, item: torch.Tensor) -> torch.Tensor:
        return item @ torch.linalg.pinv(self.P)


def low_rank(model: EventLM, rank: int) -> EventLM:
    """A copy whose item table has this rank: the best such table, then trained as a product."""
    if not 0 < rank < model.shape.d:
        raise SettingsError(f"--rank {rank}: from 1 to below the width {model.shape.d}")
    new = copy.deepcopy(model)
    with torch.no_grad():
        u, s, v = torch.linalg.svd(model.item.double(), full_matrices=False)
        if parametrize.is_parametrized(new, "item"):
            parametrize.remove_parametrizations(new, "item")
        new.item.copy_((u[:, :rank] * s[:rank]).float() @ v[:rank].float())
        parametrize.register_parametrization(new, "item", LowRank(v[:rank].float().clone()))
    return new


def shape_after(shape: Shape, todo: Compression) -> Shape:
    """The sizes of the model that `compress` returns."""
    return replace(shape, mlp=todo.prune) if todo.prune else shape
