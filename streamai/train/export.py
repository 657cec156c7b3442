"""A weights file from a trained model, once the served kernels agree with torch on held-out events."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from streamai.errors import ModelError
from streamai.kernels import lm
from streamai.model import weights
from streamai.model.tables import lm_arrays
from streamai.train.data import Sequences, batch
from streamai.train.model import EventLM

TOLERANCE = 1e-4
"""Greatest |kernel - torch| / (1 + |torch|) of an LM output with which a float model is still written."""
TOLERANCE_ROUNDED = 0.01
"""The same of the mean, for a model in 8 bits or with a state in halves: where a number lies in the middle of
two steps, torch and kernel may round it to either side, and go on from there."""


def held_out_part(seq: Sequences, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """Begin and length of sequences that make up at least `positions` events (all, where there are fewer):
    the longest first, since errors add up along a sequence, but none longer than a quarter."""
    most = max(2, positions // 4)
    length = np.minimum(seq.lengths(), most)
    order = np.argsort(-length, kind="stable")
    n = int(np.searchsorted(np.cumsum(length[order]), positions)) + 1
    return seq.start[order[:n]], length[order[:n]]


def served(file: weights.Weights, seq: Sequences, first: np.ndarray, length: np.ndarray) -> list[np.ndarray]:
    """LM outputs f4[length, d] of the served kernel after each event of the given stretches of `seq`."""
    given, rows = lm_arrays(file), len(file.arrays["bias"])
    d, layers = file.header["d"], file.header["layers"]
    m = file.header["mlp"]
    scratch, octets = np.zeros(16 * d + 4 * m, np.float32), np.zeros(max(d, m), np.uint8)
    known, out = np.ones(rows, np.uint8), []
    for at, n in zip(first, length):
        token = seq.token[at : at + n]
        # a ring keeps an unknown token k as -1 - k
        token = np.where(token < rows, token, rows - 1 - token).astype(np.int32)
        kind, gap = (getattr(seq, name)[at : at + n].astype(np.uint8) for name in ("kind", "gap"))
        side = np.ascontiguousarray(seq.side[at : at + n], np.float32)
        state, q = np.zeros((4 * layers + 1) * d, np.float32), np.zeros((int(n), d), np.float32)
        lm.run(token, kind, gap, side, given["item"], known, given["unknown"],
               *(given[name] for name in lm.ARRAYS), file.halves, state, scratch, octets, q)  # fmt: skip
        out.append(q)
    return out


def check(model: EventLM, file: weights.Weights, held_out: Sequences, positions: int = 1000) -> float:
    """Difference between torch's and the kernel's outputs, from the file as it would be served.

    ModelError above what is allowed, or with fewer than two events to compare on.
    """
    if not held_out.events:
        raise ModelError("export: no held-out events to compare torch and kernel on; give later events")
    first, length = held_out_part(held_out, positions)
    b = batch(held_out, first, length, model.shape.vocabulary)
    model.eval()
    with torch.no_grad():
        q = model(b.token, b.kind, b.gap, b.side).numpy()
    wanted = [q[i, :n] for i, n in enumerate(length)]
    got = served(file, held_out, first, length)
    rounded = file.int8 or file.halves
    tolerance = TOLERANCE_ROUNDED if rounded else TOLERANCE
    return weights.check_agreement("LM output on held-out events", got, wanted, tolerance, mean=rounded)


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
        "calibrated": bool(head) and "head_items" in head,
        "vocabulary": vocabulary,
        **model.flags(),
    }
    parts = arrays | (head or {}) | (text or {})
    path = Path(path)
    draft = path.with_name(path.name + ".unchecked")
    try:
        weights.write(draft, header, parts)
        worst = check(model, weights.read(draft), held_out)
    finally:
        draft.unlink(missing_ok=True)
    header["metrics"] = (metrics or {}) | {"kernel_difference": worst}
    return weights.write(path, header, parts)
