"""Exact cross-entropy over the whole vocabulary without ever holding [positions, items]."""

from __future__ import annotations

import torch


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean negative log likelihood of `target` under softmax(hidden @ item.T + bias).

    hidden f4[N, d], item f4[V, d], bias f4[V], target i8[N] in [0, V). Gradients are formed in the forward
    pass, chunk by chunk, so that at most chunk x V logits live at once.
    """

    @staticmethod
    def forward(ctx, hidden, item, bias, target, chunk: int = 1024):
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


cross_entropy = ChunkedCrossEntropy.apply
