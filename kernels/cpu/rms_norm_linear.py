"""RMSNorm and the projection after it, a block of rows at a time: the normalised rows never leave the cache."""

from __future__ import annotations

import torch

from .. import memory
from .gemm import block_rows, blocks, multiply
from .lanes import WeightGradient, add_lanes, lane_buffers
from .launch import launch, launch_ranges, scratch
from .rms_norm import backward_rows, backward_rows_onto, normalise_rows, scale_rows
from .rounding import rounded
from .rows import as_rows, as_vector


def forward(x: torch.Tensor, gain: torch.Tensor, weight: torch.Tensor,
            eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    d_out, d_in = weight.shape
    y, rstd = memory.empty((*x.shape[:-1], d_out), x.dtype), memory.empty(x.shape[:-1], x.dtype)
    rows_y, rows_rstd = y.view(-1, d_out), rstd.view(-1).numpy()
    array_x, gains, eps = as_rows(x), as_vector(gain), gain.numpy().dtype.type(eps)
    n = block_rows(d_in + d_out)

    def program(block: int):
        rows = slice(block * n, block * n + n)
        part = array_x[rows]
        normed = scratch("normed", part.shape, x.dtype)
        normalise_rows(part, gains, eps, normed.numpy(), rows_rstd[rows])
        multiply(rounded(normed), weight.t(), rows_y[rows])

    launch(program, blocks(len(array_x), n))
    return y, rstd


def backward(dy: torch.Tensor, x: torch.Tensor, gain: torch.Tensor, weight: torch.Tensor,
             rstd: torch.Tensor, into: torch.Tensor | None = None, dresidual: torch.Tensor | None = None):
    d_out, d_in = weight.shape
    dx = memory.empty(x.shape, x.dtype)
    rows_dy, array_x, rows_dx = dy.reshape(-1, d_out), as_rows(x), as_rows(dx)
    rows_rstd, gains = as_vector(rstd), as_vector(gain)
    rows_base = None if dresidual is None else as_rows(dresidual)
    n = block_rows(d_in + d_out)
    grid = blocks(len(array_x), n)
    dgain, dweight = lane_buffers(grid, gain.shape, gain), WeightGradient(grid, weight, into)

    def program(lane: int, start: int, stop: int):
        dgain[lane].zero_()
        gain_part = dgain[lane].numpy()
        for block in range(start, stop):
            rows = slice(block * n, block * n + n)
            part = array_x[rows]
            normed = scratch("normed", part.shape, x.dtype)
            scale_rows(part, gains, rows_rstd[rows], normed.numpy())
            dweight.add(lane, rows_dy[rows], rounded(normed))
            d_normed = scratch("d_normed", part.shape, x.dtype)
            multiply(rows_dy[rows], weight, d_normed)
            gradient = rounded(d_normed).numpy(), part, gains, rows_rstd[rows], rows_dx[rows], gain_part
            if rows_base is None:
                backward_rows(*gradient)
            else:
                backward_rows_onto(rows_base[rows], *gradient)

    launch_ranges(program, grid)
    return dx, add_lanes(dgain), dweight.total()
