"""RMSNorm and the projection after it: y = rms_norm(x) W^T. The normalised rows are made again in backward."""

from __future__ import annotations

import torch

from . import linear, rms_norm


def forward(x: torch.Tensor, gain: torch.Tensor, weight: torch.Tensor,
            eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    normed, rstd = rms_norm.forward(x, gain, eps)
    return linear.forward(normed, weight), rstd


def backward(dy: torch.Tensor, x: torch.Tensor, gain: torch.Tensor, weight: torch.Tensor,
             rstd: torch.Tensor, into: torch.Tensor | None = None, dresidual: torch.Tensor | None = None):
    d_normed = linear.input_gradient(dy, x, weight)
    dx, dgain, normed = rms_norm.backward_rows(d_normed, x, gain, rstd, dresidual, with_result=True)
    return dx, dgain, linear.weight_gradient(dy, normed, weight, into)
