"""Linear layer: y = x W^T (+ residual). The products are the vendor's."""

from __future__ import annotations

import torch

from .. import memory
from .gemm import add_product
from .rows import as_rows


def forward(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
    y = memory.empty((*x.shape[:-1], weight.shape[0]), x.dtype, x.device)
    if residual is None:
        torch.mm(as_rows(x), weight.t(), out=as_rows(y))
    else:
        torch.addmm(as_rows(residual), as_rows(x), weight.t(), out=as_rows(y))
    return y


def backward(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor,
             into: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
    return input_gradient(dy, x, weight), weight_gradient(dy, x, weight, into)


def input_gradient(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """dx = dy W."""
    dx = memory.empty(x.shape, x.dtype, x.device)
    torch.mm(as_rows(dy), weight, out=as_rows(dx))
    return dx


def weight_gradient(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor,
                    into: torch.Tensor | None = None) -> torch.Tensor | None:
    """dW = dy^T x; None after adding it to `into`, if given, which may be float32 where the weight is not."""
    rows_dy, rows_x = as_rows(dy), as_rows(x)
    if into is not None:
        add_product(into, rows_dy.t(), rows_x)
        return None
    dweight = memory.empty(weight.shape, weight.dtype, weight.device)
    torch.mm(rows_dy.t(), rows_x, out=dweight)
    return dweight
