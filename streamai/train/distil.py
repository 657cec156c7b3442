"""Distillation: what a teacher thought of every position, kept once, and a student's loss towards it.

A folder holds, in the order of the flat arrays of the `Sequences` that both learn from,
    ids.npy      u2 or i4[N, k]   the teacher's k likeliest next items after each event
    logs.npy     f2[N, k]         the logarithms of their chances
    about.json   k, N, digest of the tokens, and what is known of the teacher
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from streamai.errors import ModelError
from streamai.kernels import softmax
from streamai.train.data import Batch, Sequences, batch
from streamai.train.fit import Recipe, hidden_of, progress
from streamai.train.loss import CHUNK, ChunkedCrossEntropy

K = 128
"""How many of the teacher's items are kept of a position."""
LEAST = 1 / 2
"""Share of a window that is context only, where a key has more events than the window holds."""


def digest(seq: Sequences) -> str:
    """16 hex digits of the tokens: a student learns from the sequences that the teacher was asked about."""
    return hashlib.blake2b(seq.token.tobytes(), digest_size=8).hexdigest()


def log_chances(models: list, row: int, cut: slice, outputs: list) -> torch.Tensor:
    """Logarithms of the next item's chances f4[n, V] at some places of a row; of several models the mean."""
    total = 0
    for model, q in zip(models, outputs):
        total = total + torch.log_softmax(q[row, cut] @ model.items().t() + model.bias, -1)
    return total if len(models) == 1 else torch.log_softmax(total / len(models), -1)


def store(
    models: list, seq: Sequences, folder: str | Path, facts: dict, console: Console, k: int = K
) -> None:
    """Ask a teacher, or several whose logarithms are averaged, about every position of `seq`.

    Writes the folder, `about.json` last. Models are called as `EventLM` is.
    """
    folder, V = Path(folder), models[0].shape.vocabulary
    folder.mkdir(parents=True, exist_ok=True)
    k = min(k, V)
    kind = np.uint16 if V <= 1 << 16 else np.int32
    ids = np.lib.format.open_memmap(folder / "ids.npy", "w+", kind, (seq.events, k))
    logs = np.lib.format.open_memmap(folder / "logs.npy", "w+", np.float16, (seq.events, k))
    first, length, skip = stretches(seq, min(getattr(m.shape, "window", 200) for m in models))
    order = np.argsort(length, kind="stable")
    for model in models:
        model.eval()
    with progress(console) as bar, torch.no_grad():
        task = bar.add_task("asking the teacher", total=len(order), note="")
        for at in range(0, len(order), 32):
            rows = order[at : at + 32]
            b = batch(seq, first[rows], length[rows], V)
            outputs = [m(b.token, b.kind, b.gap, b.side) for m in models]
            for i, r in enumerate(rows):
                chance = log_chances(models, i, slice(int(skip[r]), int(length[r])), outputs)
                best, which = chance.topk(k, -1)
                where = slice(first[r] + skip[r], first[r] + length[r])
                ids[where], logs[where] = which.numpy().astype(kind), best.numpy().astype(np.float16)
            bar.update(task, advance=len(rows))
    ids.flush()
    logs.flush()
    about = {"k": k, "events": seq.events, "tokens": digest(seq), "vocabulary": V, "teacher": facts}
    (folder / "about.json").write_text(json.dumps(about))


def stretches(seq: Sequences, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Begin, length and context i8[n]: stretches of one key of at most `window` events, whose parts behind
    their context cover every event once; a context is as long as the window allows, but for half of it."""
    first, length, skip = [], [], []
    hop = max(1, int(window * LEAST))
    for a, n in zip(seq.start[:-1].tolist(), seq.lengths().tolist()):
        end = min(n, window)
        first.append(a)
        length.append(end)
        skip.append(0)
        while end < n:
            new = min(n, end + hop)
            begin = new - window
            first.append(a + begin)
            length.append(window)
            skip.append(end - begin)
            end = new
    return np.array(first, np.int64), np.array(length, np.int64), np.array(skip, np.int64)


class DistilledCrossEntropy(torch.autograd.Function):
    """Mean of alpha times the cross-entropy with the target and (1 - alpha) times that with the teacher.

    hidden f4[N, d], item f4[V, d], bias f4[V], target i8[N], ids i4[N, k], chance f4[N, k]; matrix products
    in bfloat16, as `HalfCrossEntropy`. The teacher's items beyond k are one bucket.
    """

    @staticmethod
    def forward(ctx, hidden, item, bias, target, ids, chance, alpha):
        n = hidden.shape[0]
        g_hidden, g_item, g_bias = torch.empty_like(hidden), torch.zeros_like(item), torch.zeros_like(bias)
        loss = torch.empty(n, dtype=torch.float64)
        rows, columns = item.bfloat16(), item.t().bfloat16().contiguous()
        halves = hidden.bfloat16()
        for at in range(0, n, CHUNK):
            cut = slice(at, at + CHUNK)
            h = halves[cut]
            p = h @ columns
            softmax.distil(
                p.view(torch.uint16).numpy(), bias.detach().numpy(), target[cut].numpy(), ids[cut],
                chance[cut], alpha, loss[cut].numpy(), g_bias.numpy(),
            )  # fmt: skip
            g_hidden[cut] = p @ rows
            g_item += p.t() @ h
        for g in (g_hidden, g_item, g_bias):
            g /= n
        ctx.save_for_backward(g_hidden, g_item, g_bias)
        return (loss.sum() / n).to(hidden.dtype)

    @staticmethod
    def backward(ctx, grad):
        return *ChunkedCrossEntropy.backward(ctx, grad)[:3], None, None, None, None


def loss_from(folder: str | Path, seq: Sequences, alpha: float = 0.3) -> tuple[Callable, dict]:
    """A loss for `fit`, and what is known of the teacher. ModelError when the folder is of others."""
    folder = Path(folder)
    try:
        about = json.loads((folder / "about.json").read_text())
        ids, logs = (np.load(folder / f"{n}.npy", mmap_mode="r", allow_pickle=False) for n in ("ids", "logs"))
    except (OSError, ValueError) as e:
        raise ModelError(
            f"{folder}: no answers of a teacher ({e}); make them with `streamai train --teacher`"
        ) from e
    if about["tokens"] != digest(seq) or len(ids) != seq.events:
        raise ModelError(
            f"{folder}: the teacher was asked about {about['events']:,} events, these are {seq.events:,} "
            "others. Teacher and student need the same --events, --protocol and --until"
        )

    def loss(model, b: Batch, recipe: Recipe, noise: torch.Generator) -> torch.Tensor:
        q = hidden_of(model, b, recipe, noise)
        at = b.event.numpy()
        chance = np.exp(logs[at].astype(np.float32))
        return DistilledCrossEntropy.apply(
            q, model.items(), model.bias, b.target, ids[at].astype(np.int32), chance, alpha
        )

    return loss, about["teacher"]
