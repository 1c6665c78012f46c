"""Matrix products of stacks, by the vendor's GEMM."""

from __future__ import annotations

import math

import torch

from .. import memory


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    rows, columns, inner = a.shape[-2], b.shape[-1], a.shape[-1]
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    y = memory.empty((*batch, rows, columns), a.dtype, a.device)
    if not y.numel():
        return y
    if b.ndim == 2:
        torch.mm(_viewed(a, (math.prod(a.shape[:-1]), inner)), b, out=y.view(-1, columns))
    else:
        count = math.prod(batch)
        stacks = (_viewed(t.expand(*batch, *t.shape[-2:]), (count, *t.shape[-2:])) for t in (a, b))
        torch.bmm(*stacks, out=y.view(count, rows, columns))
    return y


def _viewed(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """x in another shape, copied if its strides ask for that."""
    try:
        return x.view(shape)
    except RuntimeError:
        return memory.copy(x).view(shape)
