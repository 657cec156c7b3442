"""BiN-C(TABL): bilinear normalisation and temporal attention over the last events' features.

Tran et al. 2019 (arXiv:1712.00975) for the bilinear layers and the attention, Tran et al. 2020
(arXiv:2003.00598) for the normalisation. Some ten thousand parameters; a baseline, judged as the others are.
"""

from __future__ import annotations

import torch
from torch import nn


class Bin(nn.Module):
    """Each feature normalised over time, each time over features, and both mixed; x f4[B, F, T]."""

    def __init__(self, features: int, steps: int) -> None:
        super().__init__()
        self.gain_t, self.gain_f = (nn.Parameter(torch.ones(s)) for s in ((features, 1), (1, steps)))
        self.shift_t, self.shift_f = (nn.Parameter(torch.zeros(s)) for s in ((features, 1), (1, steps)))
        self.mix = nn.Parameter(torch.full((2,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        over_time = self.gain_t * _normal(x, 2) + self.shift_t
        over_features = self.gain_f * _normal(x, 1) + self.shift_f
        mix = torch.relu(self.mix)
        return mix[0] * over_time + mix[1] * over_features


def _normal(x: torch.Tensor, dim: int) -> torch.Tensor:
    return (x - x.mean(dim, keepdim=True)) / (x.std(dim, keepdim=True, unbiased=False) + 1e-4)


class Bilinear(nn.Module):
    """relu(W1 x W2 + b)."""

    def __init__(self, rows: int, columns: int, rows_out: int, columns_out: int) -> None:
        super().__init__()
        self.W1 = nn.Parameter(torch.randn(rows_out, rows) / rows**0.5)
        self.W2 = nn.Parameter(torch.randn(columns, columns_out) / columns**0.5)
        self.b = nn.Parameter(torch.zeros(rows_out, columns_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.W1 @ x @ self.W2 + self.b)


class Attention(nn.Module):
    """TABL: rows mixed, times weighted by a softmax of their own, then times mixed; x f4[B, F, T]."""

    def __init__(self, rows: int, columns: int, rows_out: int, columns_out: int) -> None:
        super().__init__()
        self.W1 = nn.Parameter(torch.randn(rows_out, rows) / rows**0.5)
        self.W = nn.Parameter(torch.randn(columns, columns) / columns**0.5)
        self.W2 = nn.Parameter(torch.randn(columns, columns_out) / columns**0.5)
        self.b = nn.Parameter(torch.zeros(rows_out, columns_out))
        self.share = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.W1 @ x
        T = self.W.shape[0]
        own = torch.eye(T, device=x.device)
        weight = torch.softmax(x @ (self.W * (1 - own) + own / T), -1)  # a time's own weight is fixed
        share = self.share.clamp(0, 1)
        return (share * x * weight + (1 - share) * x) @ self.W2 + self.b


class BinCtabl(nn.Module):
    """x f4[B, F, T], the newest time last -> logits f4[B, 3]."""

    def __init__(self, features: int, steps: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Bin(features, steps), Bilinear(features, steps, 60, steps), nn.Dropout(0.1),
            Bilinear(60, steps, 120, 5), nn.Dropout(0.1), Attention(120, 5, 3, 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)[..., 0]


def windows(x: torch.Tensor, row: torch.Tensor, start: torch.Tensor, steps: int) -> torch.Tensor:
    """f4[n, F, steps]: the last `steps` rows of x f4[N, F] up to each of `row` i8[n], none before its key's
    first, `start` i8[n] (that one stands again)."""
    at = row[:, None] - torch.arange(steps - 1, -1, -1)
    return x[torch.maximum(at, start[:, None])].transpose(1, 2)
