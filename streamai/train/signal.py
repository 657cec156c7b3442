"""The signal head: up, flat or down after each horizon, with calibrated probabilities."""

from __future__ import annotations

import numpy as np
import torch
from rich.console import Console
from torch import nn

from streamai.errors import ModelError
from streamai.train.fit import progress
from streamai.train.head import Norm, normed_user
from streamai.train.market import DOWN, HORIZONS, NO_LABEL, UP, Horizon


class SignalHead(nn.Module):
    """[q, features'] -> relu hidden -> 3 logits a horizon (down, flat, up)."""

    def __init__(self, inputs: int, hidden: int, horizons: int) -> None:
        super().__init__()
        self.W1 = nn.Parameter(torch.randn(inputs, hidden) * (2 / inputs) ** 0.5)
        self.b1 = nn.Parameter(torch.zeros(hidden))
        self.W2 = nn.Parameter(torch.zeros(hidden, 3 * horizons))
        self.b2 = nn.Parameter(torch.zeros(3 * horizons))
        self.horizons = horizons

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits f4[n, H, 3]."""
        y = torch.relu(x @ self.W1 + self.b1) @ self.W2 + self.b2
        return y.view(len(x), self.horizons, 3)


def fit_signal(
    user: np.ndarray,
    label: np.ndarray,
    d: int,
    tail: np.ndarray,
    *,
    hidden: int = 32,
    epochs: int = 12,
    rate: float = 2e-3,
    weight_decay: float = 0.05,
    seed: int = 0,
    horizons: tuple[Horizon, ...] = HORIZONS,
    console: Console | None = None,
) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays of the head and figures by horizon on the tail.

    user f4[n, d + F] (LM output and served features, NaN = not seen), label i1[n, H]; tail bool[n] marks the
    later part that chooses the epoch and sets the temperatures. The caller has purged: no label of the
    first part may reach into the tail.
    """
    fit_rows = np.flatnonzero(~tail & (label != NO_LABEL).any(1))
    tail_rows = np.flatnonzero(tail & (label != NO_LABEL).any(1))
    if len(fit_rows) < 100 or len(tail_rows) < 20:
        raise ModelError(
            f"signal head: {len(fit_rows)} labelled events to fit on and {len(tail_rows)} to calibrate on; "
            "at least 100 and 20 are needed; give more events"
        )
    norm = Norm.of(user[fit_rows][:, d:])
    x = torch.from_numpy(normed_user(user, d, norm))
    y = torch.from_numpy(label.astype(np.int64))
    torch.manual_seed(seed)
    head = SignalHead(x.shape[1], hidden, label.shape[1])
    optimiser = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=weight_decay)
    rows_t, best, kept = torch.from_numpy(fit_rows), np.inf, None
    with progress(console or Console(stderr=True)) as bar:
        task = bar.add_task("signal head", total=epochs, note="")
        for _ in range(epochs):
            for rows in rows_t[torch.randperm(len(rows_t))].split(512):
                optimiser.zero_grad(set_to_none=True)
                _loss(head(x[rows]), y[rows]).backward()
                optimiser.step()
            with torch.no_grad():
                loss = _loss(head(x[tail_rows]), y[tail_rows]).item()
            if loss < best:
                best, kept = loss, {k: v.detach().clone() for k, v in head.state_dict().items()}
            bar.update(task, advance=1, note=f"tail loss {loss:.4f}")
    if kept is None:
        raise ModelError("signal head: the loss is not a number; lower --rate")
    head.load_state_dict(kept)
    with torch.no_grad():
        logits = head(x[tail_rows])
    warmth = np.array([temperature(logits[:, h], y[tail_rows, h]) for h in range(label.shape[1])], np.float32)
    arrays = {f"sig_{n}": np.array(p.detach().numpy(), np.float32) for n, p in head.named_parameters()}
    arrays |= {"sig_temp": warmth, "feat_mean": norm.mean, "feat_inv": norm.inv}
    chance = torch.softmax(logits / torch.from_numpy(warmth)[:, None], -1).numpy()
    figures = {h.name: measure(chance[:, i], label[tail_rows, i]) for i, h in enumerate(horizons)}
    return arrays, {"rows": len(fit_rows), "tail": len(tail_rows), "loss": best, "horizons": figures}


def _loss(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the labels that are known."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), label.flatten(), ignore_index=NO_LABEL)


def temperature(logits: torch.Tensor, label: torch.Tensor) -> float:
    """The divisor of the logits f4[n, 3] that makes them most likely on label i8[n]: 0.2 .. 20, by a grid."""
    known = label != NO_LABEL
    if not known.any():
        return 1.0
    grid = np.geomspace(0.2, 20.0, 93)
    losses = [nn.functional.cross_entropy(logits[known] / t, label[known]).item() for t in grid]
    return float(grid[int(np.argmin(losses))])


def measure(chance: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Accuracy, macro-F1, the share of the commonest class, IC of (up - down) with the sign, and expected
    calibration error (10 bins of confidence). chance f8[n, 3], label i1[n]."""
    known = label != NO_LABEL
    p, y = chance[known], label[known].astype(np.int64)
    if not len(y):
        return {"n": 0}
    said, sure = p.argmax(1), p.max(1)
    f1 = []
    for c in range(3):
        hit = np.sum((said == c) & (y == c))
        both = np.sum(said == c) + np.sum(y == c)
        if both:
            f1.append(2 * hit / both)
    signal, sign = p[:, UP] - p[:, DOWN], y - 1.0
    vary = signal.std() > 0 and sign.std() > 0
    bins = np.minimum((sure * 10).astype(int), 9)
    right = (said == y).astype(float)
    gaps = [abs(right[bins == b].sum() - sure[bins == b].sum()) for b in range(10)]
    return {
        "n": len(y),
        "accuracy": float(right.mean()),
        "majority": float(np.bincount(y, minlength=3).max() / len(y)),
        "macro_f1": float(np.mean(f1)),
        "ic": float(np.corrcoef(signal, sign)[0, 1]) if vary else 0.0,
        "ece": float(sum(gaps) / len(y)),
    }
