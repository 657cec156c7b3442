"""Exact cross-entropy over the whole vocabulary without ever holding [positions, items]."""

from __future__ import annotations

import torch

from streamai.kernels import softmax

CHUNK = 1024
"""Positions whose logits live at once."""


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean negative log likelihood of `target` under softmax(hidden @ item.T + bias).

    hidden f4[N, d], item f4[V, d], bias f4[V], target i8[N] in [0, V). Gradients are formed in the forward
    pass, chunk by chunk, so that at most chunk x V logits live at once.
    """

    @staticmethod
    def forward(ctx, hidden, item, bias, target, chunk: int = CHUNK):
        n = hidden.shape[0]
        g_hidden, g_item, g_bias = torch.empty_like(hidden), torch.zeros_like(item), torch.zeros_like(bias)
        total = hidden.new_zeros((), dtype=torch.float64)
        items = item.t().contiguous()
        for at in range(0, n, chunk):
            h, t = hidden[at : at + chunk], target[at : at + chunk, None]
            p = torch.addmm(bias, h, items)
            p -= p.amax(1, keepdim=True)
            shifted = p.gather(1, t)
            p.exp_()
            z = p.sum(1, keepdim=True)
            total += (z.log() - shifted).sum(dtype=torch.float64)
            p /= z
            p.scatter_add_(1, t, p.new_full(t.shape, -1.0))
            torch.mm(p, item, out=g_hidden[at : at + chunk])
            g_item.addmm_(p.t(), h)
            g_bias += p.sum(0)
        for g in (g_hidden, g_item, g_bias):
            g /= n
        ctx.save_for_backward(g_hidden, g_item, g_bias)
        return (total / n).to(hidden.dtype)

    @staticmethod
    def backward(ctx, grad):
        g_hidden, g_item, g_bias = ctx.saved_tensors
        return g_hidden * grad, g_item * grad, g_bias * grad, None, None


class HalfCrossEntropy(torch.autograd.Function):
    """The same with bfloat16 matrix products; logits, sums and probabilities in float32 in between.

    A logit is rounded to 8 bits of mantissa before the softmax: noise of 2^-9 of its size.
    """

    @staticmethod
    def forward(ctx, hidden, item, bias, target, chunk: int = CHUNK):
        n = hidden.shape[0]
        g_hidden, g_item, g_bias = torch.empty_like(hidden), torch.zeros_like(item), torch.zeros_like(bias)
        loss = torch.empty(n, dtype=torch.float64)
        rows, columns = item.bfloat16(), item.t().bfloat16().contiguous()
        halves = hidden.bfloat16()
        for at in range(0, n, chunk):
            h = halves[at : at + chunk]
            p = h @ columns
            softmax.cross_entropy(
                p.view(torch.uint16).numpy(), bias.detach().numpy(), target[at : at + chunk].numpy(),
                loss[at : at + chunk].numpy(), g_bias.numpy(),
            )  # fmt: skip
            g_hidden[at : at + chunk] = p @ rows
            g_item += p.t() @ h
        for g in (g_hidden, g_item, g_bias):
            g /= n
        ctx.save_for_backward(g_hidden, g_item, g_bias)
        return (loss.sum() / n).to(hidden.dtype)

    backward = ChunkedCrossEntropy.backward


def cross_entropy(hidden, item, bias, target, chunk: int = CHUNK, half: bool = False) -> torch.Tensor:
    """Exact mean cross-entropy, see `ChunkedCrossEntropy`; half: bfloat16 matrix products (on a CPU)."""
    kind = HalfCrossEntropy if half else ChunkedCrossEntropy
    return kind.apply(hidden, item, bias, target, chunk)
