"""A GRU of the student's size: what a session recommender of its budget is measured against.

One layer over item vectors, an output matrix back to their width, items tied in and out (GRU4Rec's shape:
Hidasi et al. 2016), trained by the same recipe and loss as the student.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from streamai.train.model import UNKNOWN, Shape, rms

HIDDEN = 144
"""Units that bring a GRU over vectors of 64 near the parameters of a 2 x 64 student (99 to 110 thousand)."""


class Gru(nn.Module):
    """Called as `EventLM` is; sees items only."""

    def __init__(self, shape: Shape, dropout: float = 0.2, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.shape, self.dropout, self.half = shape, dropout, False
        V, d = shape.vocabulary, shape.d
        self.item = nn.Parameter(torch.randn(V, d) / math.sqrt(d))
        self.bias = nn.Parameter(torch.zeros(V))
        self.unknown = nn.Parameter(torch.randn(UNKNOWN, d) / math.sqrt(d))
        self.gru = nn.GRU(d, hidden, batch_first=True)
        self.out = nn.Linear(hidden, d, bias=False)
        self.final_gain = nn.Parameter(torch.ones(d))

    def forward(self, token, kind, gap, side=None) -> torch.Tensor:
        """q f4[B, T, d] after each event; kind, gap and side are not looked at."""
        x = F.embedding(token, torch.cat([self.item, self.unknown]))
        h, _ = self.gru(F.dropout(x, self.dropout, self.training))
        return rms(self.out(F.dropout(h, self.dropout, self.training))) * self.final_gain

    def items(self) -> torch.Tensor:
        """The item table f4[V, d]."""
        return self.item

    def body_parameters(self) -> int:
        """Parameters beside the tables."""
        return sum(p.numel() for m in (self.gru, self.out) for p in m.parameters()) + self.shape.d
