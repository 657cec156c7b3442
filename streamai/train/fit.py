"""Next-event pre-training: AdamW, warm-up and cosine, exact cross-entropy, a bar with the time left."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from streamai.errors import ModelError
from streamai.train.checkpoint import Checkpoint
from streamai.train.data import Batch, Sequences, epoch, steps_of
from streamai.train.loss import cross_entropy
from streamai.train.model import UNKNOWN, groups


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are what was measured on MovieLens 1M (with dropout 0.2)."""

    epochs: int = 30
    batch: int = 32
    window: int = 200
    cover: bool = False  # all events of a long key every epoch, not one window of it
    rate: float = 2e-3
    warm_up: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    patience: int = 0  # epochs without a better validation that end the training; 0: none do
    unknown: float = 0.01  # share of input tokens replaced by a random unknown one, so that those learn
    seed: int = 0
    precision: str = "auto"  # of matrix products: f32, bf16, or auto: bf16 where the processor is fast at it
    threads: int = 1  # more stall each other as soon as the machine is shared, and gain little at these sizes


def half_precision(precision: str) -> bool:
    """Whether matrix products are to be in bfloat16; auto asks the processor."""
    if precision not in ("auto", "f32", "bf16"):
        raise ModelError(f"precision {precision!r}; expected auto, f32 or bf16")
    if precision == "auto":
        # private, and younger than the oldest torch that will do: without them it is float32
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, bool)() for name in checks)
    return precision == "bf16"


def rate_at(step: int, steps: int, warm_up: int) -> float:
    """Share of the learning rate: linear warm-up, then cosine to 1 %."""
    warm_up = min(warm_up, max(1, steps // 10))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.01 + 0.495 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def noisy(b: Batch, recipe: Recipe, vocabulary: int, rng: torch.Generator) -> torch.Tensor:
    """The batch's tokens with the recipe's share replaced by random unknown ones."""
    if not recipe.unknown:
        return b.token
    swap = torch.rand(b.token.shape, generator=rng) < recipe.unknown
    other = vocabulary + torch.randint(0, UNKNOWN, b.token.shape, generator=rng)
    return torch.where(swap, other, b.token)


def hidden_of(model, b: Batch, recipe: Recipe, rng: torch.Generator) -> torch.Tensor:
    """What the model says f4[M, d] after the events before the batch's targets."""
    token = noisy(b, recipe, model.shape.vocabulary, rng)
    return model(token, b.kind, b.gap, b.side).reshape(-1, model.shape.d)[b.at]


def step_loss(model, b: Batch, recipe: Recipe, rng: torch.Generator) -> torch.Tensor:
    """Mean next-event loss of a batch."""
    q = hidden_of(model, b, recipe, rng)
    return cross_entropy(q, model.items(), model.bias, b.target, half=model.half)


def fit(
    model,
    seq: Sequences,
    recipe: Recipe,
    validate: Callable[[], dict[str, float]] | None = None,
    console: Console | None = None,
    checkpoint: Checkpoint | None = None,
    loss_of: Callable | None = None,
    title: str = "pre-training",
) -> list[dict[str, float]]:
    """Train `model` in place on every event of `seq`; one record an epoch: loss, positions/s, seconds.

    validate() may return figures for an epoch's record; with `ndcg@10` among them the model of the best epoch
    is kept, and `recipe.patience` epochs without a better one end the training. checkpoint: written after
    every epoch, and gone on from where one is found. loss_of: in place of `step_loss`. Without a terminal,
    one line an epoch.
    """
    per_epoch = steps_of(seq, recipe.batch, recipe.window, recipe.cover)
    if not per_epoch:
        raise ModelError("nothing to train on: no key has two events or more before the split")
    torch.set_num_threads(recipe.threads)
    model.half = half_precision(recipe.precision)
    rng, noise = np.random.default_rng(recipe.seed), torch.Generator().manual_seed(recipe.seed)
    weights = groups(model, recipe.weight_decay)
    optimiser = torch.optim.AdamW(weights, lr=recipe.rate, betas=(0.9, 0.98), fused=True)
    steps = recipe.epochs * per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: rate_at(s, steps, recipe.warm_up))
    console = console or Console(stderr=True)
    records, best = [], Best(recipe.patience)
    parts = {"model": model, "optimiser": optimiser, "schedule": schedule, "best": best}
    if checkpoint and (facts := checkpoint.read(parts, rng, noise)):
        records = facts["records"]
        console.print(f"{checkpoint.path}: going on after epoch {len(records)}")
    with progress(console) as bar:
        task = bar.add_task(title, total=steps, completed=len(records) * per_epoch, note="")
        for number in range(len(records) + 1, recipe.epochs + 1):
            if best.over():
                break
            began = perf_counter()

            def show(loss: float, count: int, began=began) -> None:
                speed = count / (perf_counter() - began)
                bar.update(task, advance=1, note=f"{best.note}loss {loss:.4f} · {speed:,.0f} events/s")

            loss, count = _epoch(
                model, seq, recipe, (optimiser, schedule), (rng, noise), loss_of or step_loss, show
            )
            if not math.isfinite(loss):
                raise ModelError(f"training diverged in epoch {number}: loss is {loss}; lower --rate")
            seconds = perf_counter() - began
            record = {"epoch": number, "loss": loss, "events_per_s": count / seconds, "seconds": seconds}
            if validate:
                model.eval()
                record |= validate()
                best.see(model, record)
            records.append(record)
            if checkpoint:
                checkpoint.write(parts, rng, noise, {"records": records})
            if not console.is_terminal:
                console.print(one_line(record))
    best.restore(model)
    if checkpoint:
        checkpoint.remove()
    model.eval()
    return records


def _epoch(model, seq, recipe: Recipe, optimisers, randoms, loss_of, show) -> tuple[float, int]:
    """One pass over the events: mean loss and number of positions."""
    (optimiser, schedule), (rng, noise) = optimisers, randoms
    model.train()
    total, count = 0.0, 0
    for b in epoch(seq, model.shape.vocabulary, recipe.batch, recipe.window, rng, recipe.cover):
        if len(b.target):
            loss = loss_of(model, b, recipe, noise)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimiser.step()
            total += loss.item() * len(b.target)
            count += len(b.target)
        schedule.step()
        show(total / max(1, count), count)
    return total / max(1, count), count


class Best:
    """The parameters of the epoch with the best NDCG@10 on validation."""

    def __init__(self, patience: int) -> None:
        self.patience, self.ndcg, self.since, self.kept = patience, -1.0, 0, None

    @property
    def note(self) -> str:
        return "" if self.ndcg < 0 else f"NDCG@10 {self.ndcg:.4f} · "

    def see(self, model: nn.Module, record: dict) -> None:
        """An epoch's record; its parameters are kept if it is the best so far."""
        if "ndcg@10" not in record:
            return
        self.since += 1
        if record["ndcg@10"] > self.ndcg:
            self.ndcg, self.since = record["ndcg@10"], 0
            self.kept = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def over(self) -> bool:
        return bool(self.patience) and self.since >= self.patience

    def restore(self, model: nn.Module) -> None:
        if self.kept is not None:
            model.load_state_dict(self.kept)

    def state_dict(self) -> dict:
        return {"ndcg": self.ndcg, "since": self.since, "kept": self.kept}

    def load_state_dict(self, state: dict) -> None:
        self.ndcg, self.since, self.kept = state["ndcg"], state["since"], state["kept"]


def one_line(record: dict[str, float]) -> str:
    """A record of figures as one line of a log."""
    return "  ".join(f"{k} {v:,.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items())


def progress(console: Console) -> Progress:
    """The bar of every training: done, note, time left; hidden without a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
