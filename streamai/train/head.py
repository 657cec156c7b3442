"""The ranking head: softmax cross-entropy over logged candidates, and its arrays.

score = w . z' + b + W2 . relu(z' Wz + user),  z' = (z - mean) * inv
user  = bu + [q, features'] Wu,                features' = (f - mean) * inv, missing = 0
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from torch import nn

from streamai.errors import ModelError
from streamai.train.fit import progress

Z_NAMES = (
    "lm_logit",
    "log_counts",
    "log_popularity_365d",
    "log_popularity_7d",
    "in_counts",
    "in_ring",
    "log_age_events",
    "price_z",
)
"""Inputs of a candidate, in order (`kernels/recommend.py` makes them)."""


@dataclass(frozen=True)
class Logged:
    """Candidates for the key's next item as the engine met them, one row a scored event, after that event.

    z         f4[n, C, 8]  inputs of each candidate (Z_NAMES)
    count     i4[n]        how many of the C are real; the rest is padding
    target    i4[n]        which candidate came next, -1 = none of them
    user      f4[n, d + F] LM output and features, NaN = not seen
    """

    z: np.ndarray
    count: np.ndarray
    target: np.ndarray
    user: np.ndarray

    def __len__(self) -> int:
        return len(self.target)

    def rows(self, use: np.ndarray) -> Logged:
        return Logged(self.z[use], self.count[use], self.target[use], self.user[use])

    def beside(self, other: Logged) -> Logged:
        """The rows of both, each in its order, spread evenly over one another."""
        share = [np.arange(len(x)) / max(1, len(x)) for x in (self, other)]
        order = np.argsort(np.concatenate(share), kind="stable")
        pairs = ((self.z, other.z), (self.count, other.count), (self.target, other.target))
        parts = [np.concatenate(p) for p in (*pairs, (self.user, other.user))]
        return Logged(*parts).rows(order)


class RankingHead(nn.Module):
    """The head's function; starts as the LM's logit plus `alpha` times the log counts score."""

    def __init__(self, z_std: np.ndarray, inputs: int, hidden: int, alpha: float = 1.0) -> None:
        super().__init__()
        w = torch.zeros(len(z_std))
        w[0], w[1] = float(z_std[0]), alpha * float(z_std[1])
        self.w = nn.Parameter(w)
        self.b = nn.Parameter(torch.zeros(1))
        self.Wz = nn.Parameter(torch.randn(len(z_std), hidden) * 0.3)
        self.W2 = nn.Parameter(torch.zeros(hidden))
        self.bu = nn.Parameter(torch.zeros(hidden))
        self.Wu = nn.Parameter(torch.randn(inputs, hidden) * 0.3 / max(1, inputs) ** 0.5)

    def forward(self, z: torch.Tensor, user: torch.Tensor) -> torch.Tensor:
        """Scores f4[n, C] of z f4[n, C, 8] and user f4[n, d + F], both normed."""
        u = self.bu + user @ self.Wu
        return z @ self.w + self.b + torch.relu(z @ self.Wz + u[:, None]) @ self.W2


@dataclass(frozen=True)
class Norm:
    """(x - mean) * inv, f4; a column that never varies gets inv 0, a missing value becomes 0."""

    mean: np.ndarray
    inv: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray) -> Norm:
        """From x f4[n, k]; NaN and infinity are left out."""
        x = np.where(np.isfinite(x), x, np.nan).astype(np.float64)
        seen = np.isfinite(x).any(0) if len(x) else np.zeros(x.shape[1], bool)
        mean, std = np.zeros(x.shape[1]), np.zeros(x.shape[1])
        mean[seen], std[seen] = np.nanmean(x[:, seen], 0), np.nanstd(x[:, seen], 0)
        inv = np.divide(1.0, std, out=np.zeros_like(std), where=std > 1e-6 * (1 + np.abs(mean)))
        return cls(mean.astype(np.float32), inv.astype(np.float32))

    @property
    def std(self) -> np.ndarray:
        return np.divide(1.0, self.inv, out=np.zeros_like(self.inv), where=self.inv > 0)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        seen = np.isfinite(x)
        return np.where(seen, (np.where(seen, x, 0) - self.mean) * self.inv, 0).astype(np.float32)


def normed_user(user: np.ndarray, d: int, norm: Norm) -> np.ndarray:
    """[q, features'] from [q, features]: the LM's output is normed already."""
    return np.concatenate([user[:, :d], norm(user[:, d:])], 1).astype(np.float32)


def ndcg10(scores: np.ndarray, target: np.ndarray) -> float:
    """NDCG@10 of the candidate `target` i8[n] in scores f4[n, C]; ties count against it."""
    own = scores[np.arange(len(target)), target]
    rank = (scores >= own[:, None]).sum(1) - 1
    return float(np.where(rank < 10, 1 / np.log2(rank + 2), 0).mean()) if len(target) else 0.0


def fit_head(
    logged: Logged,
    d: int,
    *,
    hidden: int = 16,
    epochs: int = 30,
    rate: float = 3e-3,
    weight_decay: float = 0.05,
    held_out: float = 0.15,
    seed: int = 0,
    console: Console | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Arrays of the head (names of the weights file) and figures.

    Rows whose target is no candidate are skipped and counted. The last `held_out` of the rows choose the
    epoch; figures are NDCG@10 among the candidates there, for the LM's order and for the head's.
    """
    use = np.flatnonzero((logged.target >= 0) & (logged.count > 1))
    figures = {"rows": len(logged), "skipped": len(logged) - len(use)}
    if len(use) < 20:
        raise ModelError(
            f"ranking head: {len(use)} of {len(logged)} events have their target among the candidates; at "
            "least 20 are needed; give more events, or leave the head out (--no-head)"
        )
    data = logged.rows(use)
    real = np.arange(data.z.shape[1]) < data.count[:, None]
    cut = max(10, int(len(data) * (1 - held_out)))
    z_norm = Norm.of(data.z[:cut][real[:cut]])
    f_norm = Norm.of(data.user[:cut, d:])
    z, real_t = torch.from_numpy(z_norm(data.z)), torch.from_numpy(real)
    user = torch.from_numpy(normed_user(data.user, d, f_norm))
    target = torch.from_numpy(data.target.astype(np.int64))
    torch.manual_seed(seed)
    head = RankingHead(z_norm.std, user.shape[1], hidden)
    optimiser = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=weight_decay)
    best, kept = np.inf, None
    held = torch.arange(cut, len(data))
    with progress(console or Console(stderr=True)) as bar:
        task = bar.add_task("ranking head", total=epochs, note="")
        for _ in range(epochs):
            for rows in torch.randperm(cut).split(128):
                optimiser.zero_grad(set_to_none=True)
                _loss(head, z, real_t, user, target, rows).backward()
                optimiser.step()
            with torch.no_grad():
                loss = _loss(head, z, real_t, user, target, held).item()
            if loss < best:
                best, kept = loss, {k: v.detach().clone() for k, v in head.state_dict().items()}
            bar.update(task, advance=1, note=f"held-out loss {loss:.4f}")
    if kept is None:
        raise ModelError("ranking head: the loss is not a number; the logged candidates hold NaN or infinity")
    head.load_state_dict(kept)
    with torch.no_grad():
        scores = _scores(head, z, real_t, user, held).numpy()
    lm = np.where(real[cut:], data.z[cut:, :, 0], -np.inf)
    figures |= {"loss": best, "ndcg@10": ndcg10(scores, data.target[cut:]), "held_out": len(held)}
    figures["lm_ndcg@10"] = ndcg10(lm, data.target[cut:])
    return _arrays(head, z_norm, f_norm), figures


def _scores(head, z, real, user, rows) -> torch.Tensor:
    return head(z[rows], user[rows]).masked_fill(~real[rows], -torch.inf)


def _loss(head, z, real, user, target, rows) -> torch.Tensor:
    return nn.functional.cross_entropy(_scores(head, z, real, user, rows), target[rows])


def _arrays(head: RankingHead, z_norm: Norm, f_norm: Norm) -> dict[str, np.ndarray]:
    out = {f"head_{n}": np.array(p.detach().numpy(), np.float32) for n, p in head.named_parameters()}
    out |= {"head_mean": z_norm.mean, "head_inv": z_norm.inv}
    return out | {"feat_mean": f_norm.mean, "feat_inv": f_norm.inv}


def score_plain(arrays: dict[str, np.ndarray], z: np.ndarray, user: np.ndarray, d: int) -> np.ndarray:
    """Scores f4[C] of one event's candidates by the head's arrays in plain numpy: what kernels must equal."""
    feature = Norm(arrays["feat_mean"], arrays["feat_inv"])
    u = arrays["head_bu"] + normed_user(user[None], d, feature)[0] @ arrays["head_Wu"]
    zn = Norm(arrays["head_mean"], arrays["head_inv"])(z)
    hidden = np.maximum(zn @ arrays["head_Wz"] + u, 0)
    return zn @ arrays["head_w"] + arrays["head_b"] + hidden @ arrays["head_W2"]
