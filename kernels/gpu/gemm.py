"""Sums of matrix products in float32, by PyTorch's GEMM."""

from __future__ import annotations

import torch


def add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor, onto: bool = True) -> None:
    """total += a b in place, or without `onto` total = a b; `total` may be float32 where the factors are halves."""
    precision = {}
    if total.dtype != a.dtype:
        if a.device.type != "cuda":  # in Triton's interpreter, and for shapes alone: PyTorch has no such product there
            a, b = a.to(total.dtype), b.to(total.dtype)
        else:
            precision["out_dtype"] = total.dtype
    if onto:
        torch.addmm(total, a, b, out=total, **precision)
    else:
        torch.mm(a, b, out=total, **precision)
