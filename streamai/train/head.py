"""The ranking head: softmax cross-entropy over logged candidates and "none of them", and its arrays.

score = w . z' + b + W2 . relu(z' Wz + user),  z' = (z - mean) * inv, z[15] = items . item features'
user  = bu + [q, features', ring] Wu,          features' = (f - mean) * inv, missing = 0
p(candidate comes next) = exp(score) / (1 + sum of exp(scores))
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from torch import nn

from streamai.errors import ModelError
from streamai.kernels.inputs import NAMES, RING_INPUTS
from streamai.train.fit import progress

LM, COUNTS, VIEWS = NAMES.index("lm"), NAMES.index("log_counts"), NAMES.index("item_views")
BATCH = 128


@dataclass(frozen=True)
class Logged:
    """Candidates for the key's next item as the engine met them, one row a scored event, after that event.

    z         f4[n, C, 16]     inputs of each candidate (kernels/inputs.py)
    items     f4[n, C, I]      window features of each candidate as of its newest event, NaN = not seen
    count     i4[n]            how many of the C are real; the rest is padding
    target    f4[n, C]         share of the key's next basket; what is missing to 1 was no candidate
    user      f4[n, d + F + R] LM output, features (NaN = not seen), what the ring says
    """

    z: np.ndarray
    items: np.ndarray
    count: np.ndarray
    target: np.ndarray
    user: np.ndarray

    def __len__(self) -> int:
        return len(self.target)

    def rows(self, use: np.ndarray) -> Logged:
        return Logged(self.z[use], self.items[use], self.count[use], self.target[use], self.user[use])

    def beside(self, other: Logged) -> Logged:
        """The rows of both, each in its order, spread evenly over one another."""
        share = [np.arange(len(x)) / max(1, len(x)) for x in (self, other)]
        order = np.argsort(np.concatenate(share), kind="stable")
        names = ("z", "items", "count", "target", "user")
        return Logged(*(np.concatenate([getattr(self, n), getattr(other, n)]) for n in names)).rows(order)


@dataclass(frozen=True)
class HeadRecipe:
    """How the head is fitted.

    steps     at least so many, in more epochs where there are few rows
    held_out  last share of the rows: chooses the epoch, and the temperature of the scores
    use_lm    False: the part that all candidates share does not read the LM's output, so that the head can be
              served beside another training of the LM
    """

    hidden: int = 16
    epochs: int = 20
    steps: int = 600
    rate: float = 1e-2
    weight_decay: float = 0.05
    held_out: float = 0.15
    use_lm: bool = False
    seed: int = 0


class RankingHead(nn.Module):
    """The head's function; starts as the LM's logit plus the log counts score."""

    def __init__(self, z_std: np.ndarray, users: int, items: int, hidden: int) -> None:
        super().__init__()
        w = torch.zeros(len(z_std))
        w[LM], w[COUNTS], w[VIEWS] = float(z_std[LM]), float(z_std[COUNTS]), 1.0
        self.w = nn.Parameter(w)
        self.b = nn.Parameter(torch.zeros(1))
        self.items = nn.Parameter(torch.zeros(items))
        self.Wz = nn.Parameter(torch.randn(len(z_std), hidden) * 0.3)
        self.W2 = nn.Parameter(torch.zeros(hidden))
        self.bu = nn.Parameter(torch.zeros(hidden))
        self.Wu = nn.Parameter(torch.randn(users, hidden) * 0.3 / max(1, users) ** 0.5)

    def forward(self, z: torch.Tensor, items: torch.Tensor, user: torch.Tensor) -> torch.Tensor:
        """Scores f4[n, C] of z f4[n, C, 16], items f4[n, C, I] and user f4[n, d + F + R], all normed."""
        z = torch.cat([z[..., :VIEWS], (items @ self.items)[..., None]], -1)
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

    def tail(self, n: int) -> Norm:
        """Of the last n columns."""
        at = len(self.mean) - n
        return Norm(self.mean[at:], self.inv[at:])

    def __call__(self, x: np.ndarray) -> np.ndarray:
        seen = np.isfinite(x)
        return np.where(seen, (np.where(seen, x, 0) - self.mean) * self.inv, 0).astype(np.float32)


def normed_user(user: np.ndarray, d: int, norm: Norm) -> np.ndarray:
    """[q, features', ring] from [q, features, ring]: LM output and ring are as they are."""
    at = d + len(norm.mean)
    return np.concatenate([user[:, :d], norm(user[:, d:at]), user[:, at:]], 1).astype(np.float32)


def ndcg10(scores: np.ndarray, target: np.ndarray) -> float:
    """Mean NDCG@10 of the targets, f4[n, C] shares of a row, by scores f4[n, C]; ties count against a target,
    and a target that is no candidate scores 0."""
    row, c = np.nonzero(target)
    own = scores[row, c]
    rank = np.zeros(len(row))
    for i in range(0, len(row), 4096):
        rank[i : i + 4096] = (scores[row[i : i + 4096]] >= own[i : i + 4096, None]).sum(1)
    gain = np.where(rank <= 10, 1 / np.log2(rank + 1), 0)
    return float((target[row, c] * gain).sum() / max(1, len(target)))


def calibration_error(p: np.ndarray, target: np.ndarray, best: int = 10, bins: int = 15) -> float:
    """Expected calibration error of the `best` greatest of p f4[n, C]: mean |p - share that came|, in bins of
    equal size by p."""
    top = np.argpartition(-p, min(best, p.shape[1]) - 1, 1)[:, :best]
    said, came = (np.take_along_axis(a, top, 1).ravel() for a in (p, target))
    order = np.argsort(said, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(sum(abs(said[i].mean() - came[i].mean()) * len(i) for i in parts) / max(1, len(order)))


class _Data:
    """A Logged, normed, as tensors."""

    def __init__(self, logged: Logged, d: int, cut: int, use_lm: bool) -> None:
        real = np.arange(logged.z.shape[1]) < logged.count[:, None]
        features = logged.user.shape[1] - d - RING_INPUTS
        z = Norm.of(logged.z[:cut][real[:cut]])
        # the item views are normed one by one
        self.z_norm = Norm(np.where(np.arange(len(NAMES)) == VIEWS, 0, z.mean).astype("f4"),
                           np.where(np.arange(len(NAMES)) == VIEWS, 1, z.inv).astype("f4"))  # fmt: skip
        self.f_norm = Norm.of(logged.user[:cut, d : d + features])
        user = normed_user(logged.user, d, self.f_norm)
        user[:, :d] *= use_lm
        items = self.f_norm.tail(logged.items.shape[2])(logged.items)
        self.z, self.items, self.user = (torch.from_numpy(a) for a in (self.z_norm(logged.z), items, user))
        self.real, self.target = torch.from_numpy(real), torch.from_numpy(logged.target)

    def scores(self, head: RankingHead, rows) -> torch.Tensor:
        return head(self.z[rows], self.items[rows], self.user[rows]).masked_fill(~self.real[rows], -torch.inf)


def _loss(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy where "none of them" has the score 0."""
    none = torch.zeros_like(scores[:, :1])
    logs = torch.log_softmax(torch.cat([scores, none], 1), 1)
    logs = logs.masked_fill(logs == -torch.inf, 0)
    return -((logs[:, :-1] * target).sum(1) + logs[:, -1] * (1 - target.sum(1))).mean()


def fit_head(
    logged: Logged, d: int, recipe: HeadRecipe = HeadRecipe(), console: Console | None = None
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Arrays of the head (names of the weights file) and figures.

    The last `held_out` of the rows choose the epoch and the temperature; what does not beat the plain sum of
    the LM's logit and the log counts there gives way to it. Figures are on those rows: NDCG@10 among the
    candidates of the LM's order, the plain sum and the head, and the calibration error on every second one.
    """
    hits = int((logged.target.sum(1) > 0).sum())
    if hits < 20:
        raise ModelError(
            f"ranking head: {hits} of {len(logged)} events have their target among the candidates; at "
            "least 20 are needed; give more events, or leave the head out (--no-head)"
        )
    cut = max(10, int(len(logged) * (1 - recipe.held_out)))
    data = _Data(logged, d, cut, recipe.use_lm)
    torch.manual_seed(recipe.seed)
    head = RankingHead(data.z_norm.std, data.user.shape[1], data.items.shape[2], recipe.hidden)
    held = torch.arange(cut, len(logged))
    with torch.no_grad():
        head.b += _start(data.scores(head, torch.arange(cut)[:2048]), data.target[: min(cut, 2048)])
        plain = data.scores(head, held)
    kept, best = _descend(head, data, cut, held, recipe, console)
    if kept is None:
        raise ModelError("ranking head: the loss is not a number; the logged candidates hold NaN or infinity")
    target = logged.target[cut:]
    start = {k: v.clone() for k, v in kept["start"].items()}
    head.load_state_dict(kept["best"])
    with torch.no_grad():
        scores = data.scores(head, held)
    figures = {"rows": len(logged), "with_target": hits, "loss": best, "held_out": len(held)}
    figures["plain_ndcg@10"] = ndcg10(plain.numpy(), target)
    if ndcg10(scores.numpy(), target) < figures["plain_ndcg@10"]:
        head.load_state_dict(start)
        scores, figures["fell_back"] = plain, True
    real = data.real[held].numpy()
    figures["ndcg@10"] = ndcg10(scores.numpy(), target)
    figures["lm_ndcg@10"] = ndcg10(np.where(real, logged.z[cut:, :, LM], -np.inf), target)
    inverse, shift = calibrated(scores[::2], data.target[held][::2])
    p = _probabilities(scores[1::2]).numpy()
    figures["ece_before"] = calibration_error(p, target[1::2])
    p = _probabilities(scores[1::2] * inverse + shift).numpy()
    figures |= {"ece": calibration_error(p, target[1::2]), "temperature": 1 / inverse}
    with torch.no_grad():
        head.w *= inverse
        head.W2 *= inverse
        head.b.copy_(head.b * inverse + shift)
    return _arrays(head, data, d, recipe), figures


def _start(scores: torch.Tensor, target: torch.Tensor) -> float:
    """What to add to all scores so that "none of them" begins about as often as it came."""
    hit = float(target.sum(1).mean().clamp(0.01, 0.99))
    return float(np.log(hit / (1 - hit)) - torch.logsumexp(scores, 1).median())


def _descend(head, data, cut, held, recipe, console) -> tuple[dict | None, float]:
    """The states at the start and at the lowest held-out loss, and that loss."""
    free = [head.b, head.w]
    rest = [p for p in head.parameters() if all(p is not f for f in free)]
    groups = [{"params": free, "weight_decay": 0.0}, {"params": rest, "weight_decay": recipe.weight_decay}]
    optimiser = torch.optim.AdamW(groups, lr=recipe.rate)
    best, kept = np.inf, None
    start = {k: v.detach().clone() for k, v in head.state_dict().items()}
    epochs = max(recipe.epochs, -(-recipe.steps * BATCH // cut))
    with progress(console or Console(stderr=True)) as bar:
        task = bar.add_task("ranking head", total=epochs, note="")
        for epoch in range(epochs):
            for rows in torch.randperm(cut).split(BATCH):
                optimiser.zero_grad(set_to_none=True)
                _loss(data.scores(head, rows), data.target[rows]).backward()
                optimiser.step()
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate * (1 - (epoch + 1) / epochs)
            with torch.no_grad():
                loss = float(_loss(data.scores(head, held), data.target[held]))
            if loss < best:
                best = loss
                kept = {"start": start, "best": {k: v.detach().clone() for k, v in head.state_dict().items()}}
            bar.update(task, advance=1, note=f"held-out loss {loss:.4f}")
    return kept, best


def _probabilities(scores: torch.Tensor) -> torch.Tensor:
    return torch.softmax(torch.cat([scores, torch.zeros_like(scores[:, :1])], 1), 1)[:, :-1]


def calibrated(scores: torch.Tensor, target: torch.Tensor) -> tuple[float, float]:
    """(inverse temperature, shift) with which scores give probabilities nearest to what came."""
    scores = scores.clamp(min=-1e9)  # padding
    log_inverse, shift = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_inverse, shift], max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = _loss(scores * log_inverse.exp() + shift, target)
        loss.backward()
        return loss

    optimiser.step(closure)
    inverse = float(log_inverse.detach().clamp(-1, 1).exp())
    return inverse, float(shift.detach())


def _arrays(head: RankingHead, data: _Data, d: int, recipe: HeadRecipe) -> dict[str, np.ndarray]:
    out = {f"head_{n}": np.array(p.detach().numpy(), np.float32) for n, p in head.named_parameters()}
    if not recipe.use_lm:
        out["head_Wu"][:d] = 0
    out |= {"head_mean": data.z_norm.mean, "head_inv": data.z_norm.inv}
    return out | {"feat_mean": data.f_norm.mean, "feat_inv": data.f_norm.inv}


def score_plain(arrays: dict[str, np.ndarray], z: np.ndarray, user: np.ndarray, d: int) -> np.ndarray:
    """Scores f4[C] of one event's candidates by the head's arrays in plain numpy: what kernels must equal.

    z f4[C, 16] as the engine serves them, with the item views weighed."""
    feature = Norm(arrays["feat_mean"], arrays["feat_inv"])
    u = arrays["head_bu"] + normed_user(user[None], d, feature)[0] @ arrays["head_Wu"]
    zn = Norm(arrays["head_mean"], arrays["head_inv"])(z)
    hidden = np.maximum(zn @ arrays["head_Wz"] + u, 0)
    return zn @ arrays["head_w"] + arrays["head_b"] + hidden @ arrays["head_W2"]
