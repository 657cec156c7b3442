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
from streamai.train.model import GAPS, KINDS, UNKNOWN, rms


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


def linear(inputs: int, outputs: int, spread: float = 1.0) -> nn.Linear:
    """A matrix without bias; spread scales what it begins with."""
    module = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(module.weight, std=spread / math.sqrt(inputs))
    return module


class TeacherLayer(nn.Module):
    """Biased causal attention and a gated MLP, each on a residual branch.

    Matrices are modules of their own and heads are found by width, so that a part of the heads and hidden
    units can be had by each of several processes (`train/parallel.py`): `first_head` is then its first.
    """

    def __init__(self, s: TeacherShape, dropout: float) -> None:
        super().__init__()
        d, m, calm = s.d, s.mlp, 1 / math.sqrt(2 * s.layers)
        self.width, self.first_head, self.dropout = d // s.heads, 0, dropout
        self.q, self.k, self.v = linear(d, d), linear(d, d), linear(d, d)
        self.out = linear(d, d, calm)
        self.gate, self.up, self.down = linear(d, m), linear(d, m), linear(m, d, calm)
        self.position = nn.Parameter(torch.zeros(s.window, s.heads))
        self.time_bias = nn.Parameter(torch.zeros(GAPS, s.heads))

    def bias(self, distance: torch.Tensor, between: torch.Tensor | None, heads: int) -> torch.Tensor:
        """Of this process's heads, f4[B or 1, heads, T, T]; -inf on the future."""
        mine = slice(self.first_head, self.first_head + heads)
        out = self.position[:, mine][distance.clamp(min=0)].permute(2, 0, 1)[None]
        if between is not None:
            out = out + F.embedding(between, self.time_bias[:, mine]).permute(0, 3, 1, 2)
        return out.masked_fill((distance < 0)[None, None], -1e9)

    def forward(self, x: torch.Tensor, distance, between, half: bool) -> torch.Tensor:
        """x f4[B, T, d]; distance i8[T, T] in events, negative in the future; between i8[B, T, T] or None."""
        B, T, _ = x.shape
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            n = rms(x)
            q, k, v = (f(n).view(B, T, -1, self.width).transpose(1, 2) for f in (self.q, self.k, self.v))
            weight = (q @ k.transpose(-1, -2)) / math.sqrt(self.width)
            weight = weight + self.bias(distance, between, q.shape[1]).to(weight.dtype)
            weight = F.dropout(weight.softmax(-1).to(v.dtype), self.dropout, self.training)
            y = self.out((weight @ v).transpose(1, 2).reshape(B, T, -1))
            x = x + F.dropout(y.float(), self.dropout, self.training)
            n = rms(x)
            y = self.down(F.silu(self.gate(n)) * self.up(n))
            return x + F.dropout(y.float(), self.dropout, self.training)


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
        return self.read(self.embed(token, kind, gap, side), gap)

    def embed(self, token, kind, gap, side=None) -> torch.Tensor:
        """What the first block takes, f4[B, T, d]."""
        if self.shape.window < token.shape[1]:
            raise ModelError(f"teacher: {token.shape[1]} events, its window is {self.shape.window}")
        x = F.embedding(token, torch.cat([self.item, self.unknown])) + F.embedding(kind, self.kind_emb)
        if self.time:
            x = x + F.embedding(gap, self.gap_emb)
        if self.shape.side:
            x = x + side @ self.Wside
        return F.dropout(x, self.dropout, self.training)

    def read(self, x: torch.Tensor, gap: torch.Tensor) -> torch.Tensor:
        """All blocks and the final gain: f4[B, T, d] -> q f4[B, T, d]."""
        return rms(self.through(x, gap, self.blocks)) * self.final_gain

    def through(self, x: torch.Tensor, gap: torch.Tensor, blocks) -> torch.Tensor:
        """Some of the blocks."""
        at = torch.arange(x.shape[1], device=x.device)
        distance = at[:, None] - at[None]
        between = time_between(gap) if self.time else None
        for block in blocks:
            x = block(x, distance, between, self.half and self.training)
        return x

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
