"""Layer normalisation (Ba et al. 2016, arXiv 1607.06450): y = (x - mean) / sqrt(variance + eps) * gain + bias."""

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
def _forward_rows(x, gain, bias, eps, y, mean, rstd):
    """The mean is taken of distances from the first element, so that rows far from 0 lose no digits."""
    one, width = x.dtype.type(1), x.shape[1]
    share = one / x.dtype.type(width)
    for i in range(x.shape[0]):
        total, first = x.dtype.type(0), x[i, 0]
        for j in range(width):
            total += x[i, j] - first
        m = first + total * share
        square = x.dtype.type(0)
        for j in range(width):
            square += (x[i, j] - m) * (x[i, j] - m)
        r = one / np.sqrt(square * share + eps)
        mean[i], rstd[i] = m, r
        for j in range(width):
            y[i, j] = (x[i, j] - m) * r * gain[j] + bias[j]


@compiled
def _backward_rows(dy, x, gain, mean, rstd, dx, dgain, dbias):
    """dx per row; adds each row's part to `dgain` and `dbias`."""
    width = x.shape[1]
    share = x.dtype.type(1) / x.dtype.type(width)
    for i in range(x.shape[0]):
        m, r = mean[i], rstd[i]
        total, dot = x.dtype.type(0), x.dtype.type(0)
        for j in range(width):
            g = dy[i, j] * gain[j]
            total += g
            dot += g * (x[i, j] - m)
        total *= share
        dot *= share * r * r
        for j in range(width):
            d, centred = dy[i, j], x[i, j] - m
            dgain[j] += d * centred * r
            dbias[j] += d
            dx[i, j] = (d * gain[j] - total - centred * dot) * r


def forward(x: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor,
            eps: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    y = memory.empty(x.shape, x.dtype)
    mean, rstd = memory.empty(x.shape[:-1], x.dtype), memory.empty(x.shape[:-1], x.dtype)
    rows_x, rows_y, gains, biases = as_rows(x), as_rows(y), as_vector(gain), as_vector(bias)
    means, rstds, eps = as_vector(mean), as_vector(rstd), rows_x.dtype.type(eps)
    launch_rows(lambda part: _forward_rows(rows_x[part], gains, biases, eps, rows_y[part], means[part], rstds[part]),
                *rows_x.shape)
    return y, mean, rstd


def backward(dy: torch.Tensor, x: torch.Tensor, gain: torch.Tensor, mean: torch.Tensor,
             rstd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dx = memory.empty(x.shape, x.dtype)
    rows_dy, rows_x, rows_dx, gains = as_rows(dy), as_rows(x), as_rows(dx), as_vector(gain)
    means, rstds = as_vector(mean), as_vector(rstd)
    n = block_rows(x.shape[-1])
    grid = max(blocks(len(rows_x), n), 1)
    dgain, dbias = lane_buffers(grid, gain.shape, gain), lane_buffers(grid, gain.shape, gain)

    def program(lane: int, start: int, stop: int):
        rows = slice(start * n, stop * n)
        _backward_rows(rows_dy[rows], rows_x[rows], gains, means[rows], rstds[rows], rows_dx[rows],
                       dgain[lane].zero_().numpy(), dbias[lane].zero_().numpy())

    launch_ranges(program, grid)
    return dx, add_lanes(dgain), add_lanes(dbias)
