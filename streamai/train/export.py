"""A weights file from a trained model, once the served kernels agree with torch on held-out events."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from streamai.errors import ModelError
from streamai.kernels import lm
from streamai.model import weights
from streamai.train.data import Sequences, batch
from streamai.train.model import EventLM

TOLERANCE = 1e-4
"""Greatest |kernel - torch| / (1 + |torch|) of an LM output with which a model is still written."""

STEP_ARRAYS = (
    "item", "known", "unknown", "kind_emb", "gap_emb", "Wside", "Wg", "bg", "cw", "cb", "lam", "gap_w",
    "Wo", "W1", "W2", "final_gain",
)  # fmt: skip
"""Arguments of `kernels.lm.run` that are weights, in its order."""


def held_out_part(seq: Sequences, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """Begin and length of sequences that make up at least `positions` events (all, where there are fewer):
    the longest first, since errors add up along a sequence, but none longer than a quarter."""
    most = max(2, positions // 4)
    length = np.minimum(seq.lengths(), most)
    order = np.argsort(-length, kind="stable")
    n = int(np.searchsorted(np.cumsum(length[order]), positions)) + 1
    return seq.start[order[:n]], length[order[:n]]


def check(model: EventLM, arrays: dict[str, np.ndarray], held_out: Sequences, positions: int = 1000) -> float:
    """Greatest difference between torch's and the kernel's outputs, from the arrays that would be written.

    ModelError above TOLERANCE, or with fewer than two events to compare on.
    """
    if not held_out.events:
        raise ModelError("export: no held-out events to compare torch and kernel on; give later events")
    shape = model.shape
    first, length = held_out_part(held_out, positions)
    b = batch(held_out, first, length, shape.vocabulary)
    model.eval()
    with torch.no_grad():
        q = model(b.token, b.kind, b.gap, b.side).numpy()
    given = arrays | {"known": np.ones(shape.vocabulary, np.uint8)}
    scratch = np.zeros(16 * shape.d + 4 * shape.mlp, np.float32)
    got, wanted = [], []
    for i, (at, n) in enumerate(zip(first, length)):
        token = held_out.token[at : at + n]
        # a ring keeps an unknown token k as -1 - k
        token = np.where(token < shape.vocabulary, token, shape.vocabulary - 1 - token).astype(np.int32)
        kind, gap = (getattr(held_out, name)[at : at + n].astype(np.uint8) for name in ("kind", "gap"))
        side = np.ascontiguousarray(held_out.side[at : at + n], np.float32)
        state = np.zeros(shape.layers * 4 * shape.d, np.float32)
        out = np.zeros((int(n), shape.d), np.float32)
        lm.run(token, kind, gap, side, *(given[name] for name in STEP_ARRAYS), state, scratch, out)
        got.append(out)
        wanted.append(q[i, :n])
    return weights.check_agreement("LM output on held-out events", got, wanted, TOLERANCE)


def export(
    path: str | Path,
    model: EventLM,
    kind: str,
    held_out: Sequences,
    *,
    vocabulary: list[str] = (),
    plan: str = "",
    horizons: tuple[str, ...] = (),
    head: dict[str, np.ndarray] | None = None,
    metrics: dict | None = None,
    arrays: dict[str, np.ndarray] | None = None,
    text: dict[str, np.ndarray] | None = None,
) -> str:
    """Write the model; returns the file's digest. Nothing is written unless torch and kernel agree.

    kind "clicks" or "market"; plan: digest of the features that the head was fitted on; head: the arrays of
    `fit_head` or `fit_signal`; arrays: in place of the model's own (they must still compute what it does);
    text: the arrays of `train/text.py`.
    """
    if kind == "clicks" and len(vocabulary) != model.shape.vocabulary:
        rows = model.shape.vocabulary
        raise ModelError(f"export: {len(vocabulary)} item ids for {rows} rows of the item table")
    arrays = model.arrays() if arrays is None else arrays
    worst = check(model, arrays, held_out)
    heads = []
    if head:
        heads = ["signal"] if "sig_W1" in head else ["ranking"]
    header = {
        "kind": kind,
        "d": model.shape.d,
        "layers": model.shape.layers,
        "mlp": model.shape.mlp,
        "side": model.shape.side,
        "time": model.time,
        "heads": heads,
        "horizons": list(horizons),
        "plan": plan,
        "metrics": (metrics or {}) | {"kernel_difference": worst},
        "vocabulary": vocabulary,
    }
    return weights.write(path, header, arrays | (head or {}) | (text or {}))
