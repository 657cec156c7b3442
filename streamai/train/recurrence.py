"""The recurrence as a torch operation; the loop over time is a kernel."""

from __future__ import annotations

import torch

from streamai.kernels import recurrence as kernel


class Recurrence(torch.autograd.Function):
    """h_t = a_t h_(t-1) + b_t with h before the first step zero; a, b, h are f4[B, T, d]."""

    @staticmethod
    def forward(ctx, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a, b = a.contiguous(), b.contiguous()
        h = torch.empty_like(a)
        kernel.forward(a.detach().numpy(), b.detach().numpy(), h.numpy())
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        a, h = ctx.saved_tensors
        gb = grad.contiguous().clone()
        ga = torch.empty_like(a)
        kernel.backward(a.detach().numpy(), h.detach().numpy(), gb.numpy(), ga.numpy())
        return ga, gb


recurrence = Recurrence.apply
