"""SwiGLU and the projection after it (arXiv 2002.05202). The activation is made again in backward, in the same pass as
its gradient."""

from __future__ import annotations

import torch

from .. import memory
from . import linear, swiglu
from .rows import as_rows


def forward(h: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
    return linear.forward(swiglu.forward(h), weight, residual)


def backward(dy: torch.Tensor, h: torch.Tensor, weight: torch.Tensor,
             into: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
    dh = memory.empty(h.shape, h.dtype, h.device)
    active = activation_and_gradient(dy, as_rows(h), weight, dh)
    return dh, linear.weight_gradient(dy, active, weight, into)


def activation_and_gradient(dy: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, dh: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up (rows, f) again; the gradient of contiguous h goes into `dh`, which may be `h`."""
    rows_dy = as_rows(dy)
    d_active = memory.empty((len(rows_dy), weight.shape[1]), h.dtype, h.device)
    torch.mm(rows_dy, weight, out=d_active)
    swiglu.backward_rows(d_active, h, dh, d_active)
    return d_active
