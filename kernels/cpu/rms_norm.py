"""Root-mean-square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467): y = x / sqrt(mean(x^2) + eps) * gain."""

from __future__ import annotations

import numpy as np
import torch

from .. import memory
from .compiled import compiled
from .gemm import block_rows, blocks
from .lanes import add_lanes, lane_buffers
from .launch import launch_ranges
from .rows import as_rows, as_vector, launch_rows


@compiled
def normalise_rows(x, gain, eps, y, rstd):
    """y and the reciprocal root mean square of each row."""
    width = x.shape[1]
    for i in range(x.shape[0]):
        total = x.dtype.type(0)
        for j in range(width):
            total += x[i, j] * x[i, j]
        scale = x.dtype.type(1) / np.sqrt(total / x.dtype.type(width) + eps)
        rstd[i] = scale
        for j in range(width):
            y[i, j] = x[i, j] * scale * gain[j]


@compiled
def scale_rows(x, gain, rstd, y):
    """y again from the saved reciprocal root mean squares."""
    for i in range(x.shape[0]):
        scale = rstd[i]
        for j in range(x.shape[1]):
            y[i, j] = x[i, j] * scale * gain[j]


@compiled
def backward_rows(dy, x, gain, rstd, dx, dgain):
    """dx per row; adds each row's part of the gain's gradient to `dgain`. The arrays must not overlap."""
    width = x.shape[1]
    for i in range(x.shape[0]):
        scale = rstd[i]
        dot = x.dtype.type(0)
        for j in range(width):
            dot += dy[i, j] * gain[j] * x[i, j]
        dot *= scale * scale * scale / x.dtype.type(width)
        for j in range(width):
            d = dy[i, j]
            dgain[j] += d * x[i, j] * scale
            dx[i, j] = d * gain[j] * scale - x[i, j] * dot


@compiled
def backward_rows_onto(base, dy, x, gain, rstd, dx, dgain):
    """`backward_rows` with base added to dx."""
    width = x.shape[1]
    for i in range(x.shape[0]):
        scale = rstd[i]
        dot = x.dtype.type(0)
        for j in range(width):
            dot += dy[i, j] * gain[j] * x[i, j]
        dot *= scale * scale * scale / x.dtype.type(width)
        for j in range(width):
            d = dy[i, j]
            dgain[j] += d * x[i, j] * scale
            dx[i, j] = base[i, j] + d * gain[j] * scale - x[i, j] * dot


@compiled
def _add_rows(x, residual, total):
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            total[i, j] = x[i, j] + residual[i, j]


def forward(x: torch.Tensor, gain: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    y, rstd = memory.empty(x.shape, x.dtype), memory.empty(x.shape[:-1], x.dtype)
    rows_x, rows_y, rows_rstd, gains = as_rows(x), as_rows(y), as_vector(rstd), as_vector(gain)
    eps = gains.dtype.type(eps)
    launch_rows(lambda rows: normalise_rows(rows_x[rows], gains, eps, rows_y[rows], rows_rstd[rows]), *rows_x.shape)
    return y, rstd


def backward(dy: torch.Tensor, x: torch.Tensor, gain: torch.Tensor,
             rstd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _backward(dy, x, gain, rstd, None)


def _backward(dy, x, gain, rstd, base):
    """dx, with `base` added if it is not None, and dgain."""
    dx = memory.empty(x.shape, x.dtype)
    rows_dy, rows_x, rows_dx = as_rows(dy), as_rows(x), as_rows(dx)
    rows_base = None if base is None else as_rows(base)
    rows_rstd, gains = as_vector(rstd), as_vector(gain)
    n = block_rows(x.shape[-1])
    grid = max(blocks(len(rows_x), n), 1)
    dgain = lane_buffers(grid, gain.shape, gain)

    def program(lane: int, start: int, stop: int):
        dgain[lane].zero_()
        rows = slice(start * n, stop * n)
        gradient = rows_dy[rows], rows_x[rows], gains, rows_rstd[rows], rows_dx[rows], dgain[lane].numpy()
        if rows_base is None:
            backward_rows(*gradient)
        else:
            backward_rows_onto(rows_base[rows], *gradient)

    launch_ranges(program, grid)
    return dx, add_lanes(dgain)


def add_forward(x: torch.Tensor, residual: torch.Tensor, gain: torch.Tensor,
                eps: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    total = memory.empty(x.shape, x.dtype)
    rows_x, rows_residual, rows_total = as_rows(x), as_rows(residual), as_rows(total)
    launch_rows(lambda part: _add_rows(rows_x[part], rows_residual[part], rows_total[part]), *rows_x.shape)
    return total, *forward(total, gain, eps)


def add_backward(dy: torch.Tensor, dtotal: torch.Tensor, total: torch.Tensor, gain: torch.Tensor,
                 rstd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _backward(dy, total, gain, rstd, dtotal)
