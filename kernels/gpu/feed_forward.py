"""A pre-norm SwiGLU feed-forward part with its residual.

Of the wide intermediate values only h = [gate | up] is kept for backward; its gradient then takes its place, and the
activation made again takes that of its own gradient. The normalised rows come again from the norm's backward, which
also adds the residual's gradient.
"""

from __future__ import annotations

import torch

from . import linear, rms_norm, swiglu, swiglu_linear


def forward(x: torch.Tensor, gain: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor,
            eps: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    normed, rstd = rms_norm.forward(x, gain, eps)
    h = linear.forward(normed, gate_up)
    return linear.forward(swiglu.forward(h), down, x), h, rstd


def backward(dy: torch.Tensor, x: torch.Tensor, gain: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor,
             h: torch.Tensor, rstd: torch.Tensor, into: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)):
    dh = h
    active = swiglu_linear.activation_and_gradient(dy, h, down, dh)
    ddown = linear.weight_gradient(dy, active, down, into[1])
    del active
    d_normed = linear.input_gradient(dh, x, gate_up)
    dx, dgain, normed = rms_norm.backward_rows(d_normed, x, gain, rstd, dy, with_result=True)
    return dx, dgain, linear.weight_gradient(dh, normed, gate_up, into[0]), ddown
