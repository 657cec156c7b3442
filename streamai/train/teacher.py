"""The teacher: a causal transformer over the same tokens, larger and slower than what is served.

Attention is softmax(q k / sqrt(width) + position[distance] + time[bucket of the time between]), both learnt a
head and a layer (as T5's and HSTU's biases: Raffel et al. 2020, Zhai et al. 2024); the MLP is gated
(SwiGLU); items are tied in and out. It is trained by `fit` and asked by `distil`, never served.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from streamai.errors import ModelError
from streamai.train.model import GAPS, KINDS, UNKNOWN, product, rms


@dataclass(frozen=True)
class TeacherShape:
    """Sizes: vocabulary V, width d, layers L, heads H (d a multiple of H), mlp m, side features S, and the
    longest window W in events."""

    vocabulary: int
    d: int = 128
    layers: int = 5
    heads: int = 4
    mlp: int = 512
    side: int = 0
    window: int = 200

    def as_dict(self) -> dict:
        return asdict(self)


class TeacherLayer(nn.Module):
    """Biased causal attention and a gated MLP, each on a residual branch."""

    def __init__(self, s: TeacherShape, dropout: float) -> None:
        super().__init__()
        d, m, self.heads, self.m, self.dropout = s.d, s.mlp, s.heads, s.mlp, dropout
        self.Wqkv = nn.Parameter(torch.randn(d, 3 * d) / math.sqrt(d))
        self.Wo = nn.Parameter(torch.randn(d, d) / math.sqrt(d * 2 * s.layers))
        self.W1 = nn.Parameter(torch.randn(d, 2 * m) / math.sqrt(d))
        self.W2 = nn.Parameter(torch.randn(m, d) / math.sqrt(m * 2 * s.layers))
        self.position = nn.Parameter(torch.zeros(s.window, s.heads))
        self.time_bias = nn.Parameter(torch.zeros(GAPS, s.heads))

    def forward(self, x: torch.Tensor, bias: torch.Tensor, half: bool) -> torch.Tensor:
        """x f4[B, T, d]; bias f4[B or 1, H, T, T], -inf on the future."""
        B, T, d = x.shape
        q, k, v = product(rms(x), self.Wqkv, half).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if half:
            q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
        weight = (q @ k.transpose(-1, -2)) * (1 / math.sqrt(q.shape[-1])) + bias.to(q.dtype)
        weight = F.dropout(weight.softmax(-1), self.dropout, self.training)
        y = (weight @ v).transpose(1, 2).reshape(B, T, d)
        x = x + F.dropout(product(y.float(), self.Wo, half), self.dropout, self.training)
        f, g = product(rms(x), self.W1, half).split(self.m, -1)
        return x + F.dropout(product(F.silu(f) * g, self.W2, half), self.dropout, self.training)


class Teacher(nn.Module):
    """Next-event transformer; called as `EventLM` is. Tokens V..V+63 are the hashed unknown ones."""

    def __init__(self, shape: TeacherShape, dropout: float = 0.2, time: bool = True) -> None:
        super().__init__()
        if shape.d % shape.heads:
            raise ModelError(f"teacher: width {shape.d} is not a multiple of its {shape.heads} heads")
        self.shape, self.dropout, self.time, self.half = shape, dropout, time, False
        V, d = shape.vocabulary, shape.d
        self.item = nn.Parameter(torch.randn(V, d) / math.sqrt(d))
        self.bias = nn.Parameter(torch.zeros(V))
        self.unknown = nn.Parameter(torch.randn(UNKNOWN, d) / math.sqrt(d))
        self.kind_emb = nn.Parameter(torch.zeros(KINDS, d))
        self.gap_emb = nn.Parameter(torch.zeros(GAPS, d))
        self.Wside = nn.Parameter(0.1 * torch.randn(shape.side, d))
        self.blocks = nn.ModuleList(TeacherLayer(shape, dropout) for _ in range(shape.layers))
        self.final_gain = nn.Parameter(torch.ones(d))

    def forward(self, token, kind, gap, side=None) -> torch.Tensor:
        """q f4[B, T, d] after each event; arguments as of `EventLM.forward`, T at most the window."""
        T = token.shape[1]
        if self.shape.window < T:
            raise ModelError(f"teacher: {T} events, its window is {self.shape.window}")
        x = F.embedding(token, torch.cat([self.item, self.unknown])) + F.embedding(kind, self.kind_emb)
        if self.time:
            x = x + F.embedding(gap, self.gap_emb)
        if self.shape.side:
            x = x + side @ self.Wside
        x = F.dropout(x, self.dropout, self.training)
        at = torch.arange(T, device=token.device)
        distance = (at[:, None] - at[None]).clamp(min=0)
        future = (at[:, None] < at[None])[None, None]
        between = time_between(gap) if self.time else None
        half = self.half and self.training
        for block in self.blocks:
            bias = block.position[distance].permute(2, 0, 1)[None]
            if between is not None:
                bias = bias + F.embedding(between, block.time_bias).permute(0, 3, 1, 2)
            x = block(x, bias.masked_fill(future, -1e9), half)
        return rms(x) * self.final_gain

    def items(self) -> torch.Tensor:
        """The item table f4[V, d]."""
        return self.item

    def body_parameters(self) -> int:
        """Parameters beside the embedding tables (items, their biases, unknown items, kinds, gaps)."""
        return sum(p.numel() for p in self.blocks.parameters()) + self.shape.d


def time_between(gap: torch.Tensor) -> torch.Tensor:
    """Bucket i8[B, T, T] of the time from event j to event i >= j, from the gaps' buckets i8[B, T].

    A bucket stands for the time that it begins with; the sum's bucket is of the same scale (`lm.gap_bucket`).
    """
    step_ms = torch.where(gap > 0, torch.exp2((gap.double() - 1) / 2) - 1, 0.0)
    at_ms = step_ms.cumsum(1)
    span = (at_ms[:, :, None] - at_ms[:, None, :]).clamp(min=0)
    return torch.where(span > 0, 1 + (2 * torch.log2(1 + span)).floor(), 0.0).long().clamp(max=GAPS - 1)


def save(path: str | Path, model: Teacher, facts: dict) -> None:
    """Write the teacher's arrays (.npz, nothing that is executed), whole or not at all."""
    path = Path(path)
    header = {"shape": model.shape.as_dict(), "time": model.time, "dropout": model.dropout, "facts": facts}
    arrays = {n: p.detach().cpu().numpy() for n, p in model.named_parameters()}
    draft = path.with_name(path.name + ".draft")
    with draft.open("wb") as f:
        np.savez(f, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)
    draft.replace(path)


def load(path: str | Path) -> tuple[Teacher, dict]:
    """The teacher of a file of `save`, and the facts written with it. ModelError when it is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            model = Teacher(TeacherShape(**header["shape"]), header["dropout"], header["time"])
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.copy_(torch.from_numpy(file[name]))
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ModelError(
            f"{path}: not a teacher of `streamai train --teacher` ({e!r}); train it again"
        ) from e
    return model.eval(), header["facts"]
