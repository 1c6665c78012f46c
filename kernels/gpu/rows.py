"""Tensors as rows, and sums over the rows of partial results."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from .. import memory
from .launch import launch
from .tuning import tuned


def contiguous(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, copied only if its elements do not lie in order."""
    return tensor if tensor.is_contiguous() else memory.copy(tensor)


def as_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as contiguous (rows, last dimension), copied only if it is not contiguous."""
    return contiguous(tensor).view(math.prod(tensor.shape[:-1]), tensor.shape[-1])


@triton.jit
def _sum_rows(parts, total, rows, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    used = column < WIDTH
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & used[None, :]
        sums += tl.load(parts + row[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)
    tl.store(total + column, tl.sum(sums, axis=0).to(total.dtype.element_ty), mask=used)


def sum_rows(parts: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The sum, in one fixed order, over the first dimension of float32 `parts` (n, ...), as `shape` and `dtype`."""
    width = math.prod(shape)
    total = memory.empty(shape, dtype, parts.device)
    config = tuned("sum_rows", parts.dtype)
    launch(_sum_rows, (triton.cdiv(width, config["COLUMNS"]),), parts, total, len(parts), WIDTH=width, **config)
    return total
