"""Matrix products of stacks: PyTorch's GEMM, one thread per part of the rows or of the stack."""

from __future__ import annotations

import math

import torch

from .. import memory
from .launch import launch_ranges, threads


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    rows, columns = a.shape[-2], b.shape[-1]
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out = memory.empty((*batch, rows, columns), a.dtype)
    if b.ndim == 2:
        _matrices(a.reshape(math.prod(a.shape[:-1]), a.shape[-1]), b, out.view(-1, columns) if out.numel() else out)
        return out
    count = math.prod(batch)
    stack_a, stack_b = (t.expand(*batch, *t.shape[-2:]).reshape(count, *t.shape[-2:]) for t in (a, b))
    _stacks(stack_a, stack_b, out.view(count, rows, columns))
    return out


def _matrices(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    if out.numel():
        launch_ranges(lambda _lane, start, stop: torch.mm(a[start:stop], b, out=out[start:stop]), len(a))


def _stacks(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    if not out.numel():
        return
    if len(a) >= threads():
        launch_ranges(lambda _lane, start, stop: torch.bmm(a[start:stop], b[start:stop], out=out[start:stop]), len(a))
        return
    for i in range(len(a)):
        _matrices(a[i], b[i], out[i])
