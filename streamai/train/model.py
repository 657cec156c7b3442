"""The event language model in torch: the twin of `kernels/lm.py`, over whole sequences.

One class serves clicks (tokens are items) and markets (tokens are composite codes with side features).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from streamai.model.weights import Weights
from streamai.train.recurrence import recurrence

UNKNOWN, KINDS, GAPS, TAPS = 64, 8, 64, 4
"""Hashed unknown tokens, kinds of an event, time-gap buckets, taps of the causal convolution."""
GAP_UNIT = 1 / 16
EPS = 1e-6


@dataclass(frozen=True)
class Shape:
    """Sizes: vocabulary V, width d, layers L, mlp m (0: 8/3 d rounded up to 16), side features S."""

    vocabulary: int
    d: int = 64
    layers: int = 2
    mlp: int = 0
    side: int = 0

    def __post_init__(self) -> None:
        if not self.mlp:
            object.__setattr__(self, "mlp", 16 * math.ceil(self.d * 8 / 3 / 16))

    def as_dict(self) -> dict:
        return asdict(self)


def rms(x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, (x.shape[-1],), eps=EPS)


def product(x: torch.Tensor, w: torch.Tensor, half: bool, int8: bool = False) -> torch.Tensor:
    """x @ w in float32, or with both rounded to bfloat16 first: the processor's fast path.

    int8: both are first rounded to 8 bits as `kernels/quant.py` does it, a vector and a column at a time.
    """
    if int8:
        x, w = in_steps(x, -1), in_steps(w, 0)
    return (x.bfloat16() @ w.bfloat16()).float() if half else x @ w


def in_steps(x: torch.Tensor, dim: int) -> torch.Tensor:
    """x in steps of its greatest / 127 along `dim`; the gradient is that of x itself (straight through)."""
    step = x.detach().abs().amax(dim, keepdim=True) / 127
    scale = torch.where(step > 1e-30, 1 / step, torch.zeros_like(step))
    return x + ((x.detach() * scale).round() * step - x.detach())


class Layer(nn.Module):
    """Gated diagonal recurrence and gated MLP, each on a residual branch."""

    def __init__(self, d: int, m: int, dropout: float) -> None:
        super().__init__()
        self.d, self.m, self.dropout = d, m, dropout
        self.Wg = nn.Parameter(torch.randn(d, 4 * d) / math.sqrt(d))
        self.bg = nn.Parameter(torch.zeros(4 * d))
        taps = torch.zeros(TAPS, d)
        taps[0] = 1.0
        self.cw = nn.Parameter(taps + 0.1 * torch.randn(TAPS, d))
        self.cb = nn.Parameter(torch.zeros(d))
        # with the gate at one half the decay is exp(-1 / tau), tau from 1.5 to 100 events
        tau = torch.logspace(math.log10(1.5), 2.0, d)
        self.raw_lam = nn.Parameter(torch.log(torch.expm1(2.0 / tau)))
        self.raw_gap = nn.Parameter(torch.full((d,), -3.0))
        self.Wo = nn.Parameter(torch.randn(d, d) / math.sqrt(d) * 0.5)
        self.W1 = nn.Parameter(torch.randn(d, 2 * m) / math.sqrt(d))
        self.W2 = nn.Parameter(torch.randn(m, d) / math.sqrt(m) * 0.5)

    def lam(self) -> torch.Tensor:
        return F.softplus(self.raw_lam)

    def gap_w(self) -> torch.Tensor:
        return F.softplus(self.raw_gap)

    def forward(
        self, x: torch.Tensor, gap: torch.Tensor | None, half: bool = False, int8: bool = False
    ) -> torch.Tensor:
        """x f4[B, T, d]; gap f4[B, T, 1] (bucket / 16) or None for no time; half, int8: see `product`."""
        r, i, v, o = (product(rms(x), self.Wg, half, int8) + self.bg).split(self.d, -1)
        u = self.cw[0] * v + self.cb
        for k in range(1, TAPS):
            u = u + self.cw[k] * F.pad(v[:, :-k], (0, 0, k, 0))
        log_a = -self.lam() * torch.sigmoid(r)
        if gap is not None:
            log_a = log_a * (1 + self.gap_w() * gap)
        a = torch.exp(log_a)
        # the floor keeps the square root's gradient finite where nothing decays
        b = torch.sqrt(torch.clamp(1 - a * a, min=EPS)) * (torch.sigmoid(i) * u)
        y = recurrence(a, b) * F.silu(o)
        x = x + F.dropout(product(y, self.Wo, half, int8), self.dropout, self.training)
        f, g = product(rms(x), self.W1, half, int8).split(self.m, -1)
        return x + F.dropout(product(F.silu(f) * g, self.W2, half, int8), self.dropout, self.training)


class EventLM(nn.Module):
    """Next-event model. Tokens 0..V-1 are the vocabulary, V..V+63 the hashed unknown ones."""

    def __init__(self, shape: Shape, dropout: float = 0.1, time: bool = True) -> None:
        super().__init__()
        self.shape, self.dropout, self.time = shape, dropout, time
        self.half = False  # matrix products of training in bfloat16
        self.int8 = False  # matrices, their inputs and the item table in 8 bits, as they are served
        self.halves = False  # the state of a row is kept in half precision
        V, d = shape.vocabulary, shape.d
        self.item = nn.Parameter(torch.randn(V, d) / math.sqrt(d))
        self.bias = nn.Parameter(torch.zeros(V))
        self.unknown = nn.Parameter(torch.randn(UNKNOWN, d) / math.sqrt(d))
        self.kind_emb = nn.Parameter(torch.zeros(KINDS, d))
        self.gap_emb = nn.Parameter(torch.zeros(GAPS, d))
        self.Wside = nn.Parameter(0.1 * torch.randn(shape.side, d))
        self.blocks = nn.ModuleList(Layer(d, shape.mlp, dropout) for _ in range(shape.layers))
        self.final_gain = nn.Parameter(torch.ones(d))

    def forward(self, token, kind, gap, side=None) -> torch.Tensor:
        """q f4[B, T, d] after each event. token, kind, gap i8[B, T]; side f4[B, T, S] or None."""
        x = F.embedding(token, torch.cat([self.items(), self.unknown]))
        x = x + F.embedding(kind, self.kind_emb)
        value = None
        if self.time:
            x = x + F.embedding(gap, self.gap_emb)
            value = (gap.to(x.dtype) * GAP_UNIT)[..., None]
        if self.shape.side:
            x = x + side @ self.Wside
        x = F.dropout(x, self.dropout, self.training)
        half = self.half and self.training
        for block in self.blocks:
            x = block(x, value, half, self.int8)
        return rms(x) * self.final_gain

    def items(self) -> torch.Tensor:
        """The item table f4[V, d] as it is served."""
        low = self.low_rank()
        if low is not None and self.int8:
            return in_steps(low[0], 1) @ low[1]
        return in_steps(self.item, 1) if self.int8 else self.item

    def low_rank(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """U f4[V, r] and P f4[r, d] of an item table that is their product (`compress.low_rank`)."""
        made = getattr(self, "parametrizations", {})
        if "item" not in made or not getattr(made["item"][0], "low_rank", False):
            return None
        return made["item"].original, made["item"][0].P

    def flags(self) -> dict:
        """What a weights file says of the form of its arrays."""
        low = self.low_rank()
        rank = {} if low is None else {"rank": len(low[1])}
        return rank | ({"int8": True} if self.int8 else {}) | ({"state": "f2"} if self.halves else {})

    @classmethod
    def of(cls, file: Weights, dropout: float = 0.1) -> EventLM:
        """The LM of a weights file, to train on or to fit another head to."""
        h = file.header
        rows = len(file.arrays["bias"])
        shape = Shape(rows, h["d"], h["layers"], h["mlp"], h["side"])
        model = cls(shape, dropout, h["time"])
        arrays = file.arrays | {"item": file.items()} | {n: file.matrix(n) for n in ("Wg", "Wo", "W1", "W2")}
        given = {n: torch.from_numpy(np.array(a)) for n, a in arrays.items() if a.dtype == np.float32}
        with torch.no_grad():
            for name, p in model.named_parameters():
                block, bare = name.split(".")[1:] if "." in name else (0, name)
                value = given[bare.replace("raw_", "").replace("gap", "gap_w") if "raw_" in bare else bare]
                value = value[int(block)] if "." in name else value
                if "raw_" not in bare:
                    p.copy_(value)
                elif (value > 0).all():
                    # softplus turned round; a model without time wrote a gap weight of 0 and keeps its own
                    p.copy_(torch.where(value > 20, value, torch.log(torch.expm1(value))))
        return model

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of a weights file, f4, C order (names and shapes as `model/weights.py`).

        A model without time is exported so that the gap has no effect, whatever the server feeds.
        """
        with torch.no_grad():
            tables = ("item", "bias", "unknown", "kind_emb", "gap_emb", "Wside", "final_gain")
            out = {name: getattr(self, name) for name in tables}
            for name in ("Wg", "bg", "cw", "cb", "Wo", "W1", "W2"):
                out[name] = torch.stack([getattr(b, name) for b in self.blocks])
            out["lam"] = torch.stack([b.lam() for b in self.blocks])
            out["gap_w"] = torch.stack([b.gap_w() for b in self.blocks])
            if not self.time:
                for name in ("gap_emb", "gap_w"):
                    out[name] = torch.zeros_like(out[name])
            if (low := self.low_rank()) is not None:
                del out["item"]
                out["item_u"], out["item_p"] = low
            plain = {n: np.array(v.numpy(), np.float32, order="C") for n, v in out.items()}
        if self.int8:
            for name in ("Wg", "Wo", "W1", "W2", "item_u" if low is not None else "item"):
                plain[f"{name}_q"], plain[f"{name}_s"] = in_int8(plain.pop(name), 1)
        return plain


def in_int8(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers i1 and steps f4 (without `axis`) of x, in steps of its greatest / 127 along `axis`."""
    step = np.abs(x).max(axis) / np.float32(127)
    scale = np.where(step > 1e-30, np.float32(1) / np.maximum(step, np.float32(1e-30)), 0).astype(np.float32)
    return np.rint(x * np.expand_dims(scale, axis)).astype(np.int8), step


FREE = ("cw", "kind_emb", "gap_emb", "unknown", "position", "time_bias")
"""Tables that weight decay does not pull to zero."""


def groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups: matrices decay; biases, gains, time constants and rarely met tables do not."""
    decay, free = [], []
    for name, p in model.named_parameters():
        bare = name.rsplit(".", 1)[-1]
        (decay if p.ndim == 2 and bare not in FREE else free).append(p)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
