"""Linear layer: y = x W^T (+ residual)."""

from __future__ import annotations

import torch

from .. import memory
from .gemm import block_rows, blocks, multiply, multiply_add
from .lanes import WeightGradient
from .launch import launch, launch_ranges


def forward(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
    rows_x = x.reshape(-1, x.shape[-1])
    y = memory.empty((*x.shape[:-1], weight.shape[0]), x.dtype)
    rows_y = y.view(-1, weight.shape[0])
    rows_r = None if residual is None else residual.reshape(-1, weight.shape[0])
    n = block_rows(sum(weight.shape))

    def program(block: int):
        rows = slice(block * n, block * n + n)
        if rows_r is None:
            multiply(rows_x[rows], weight.t(), rows_y[rows])
        else:
            multiply_add(rows_r[rows], rows_x[rows], weight.t(), rows_y[rows])

    launch(program, blocks(len(rows_x), n))
    return y


def backward(dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor,
             into: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
    rows_x, rows_dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    dx = memory.empty(x.shape, x.dtype)
    rows_dx = dx.view(-1, x.shape[-1])
    n = block_rows(sum(weight.shape))
    grid = blocks(len(rows_x), n)
    dweight = WeightGradient(grid, weight, into)

    def program(lane: int, start: int, stop: int):
        for block in range(start, stop):
            rows = slice(block * n, block * n + n)
            multiply(rows_dy[rows], weight, rows_dx[rows])
            dweight.add(lane, rows_dy[rows], rows_x[rows])

    launch_ranges(program, grid)
    return dx, dweight.total()
