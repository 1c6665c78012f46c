"""A pre-norm SwiGLU feed-forward part with its residual, a block of rows at a time.

Of the wide intermediate values only [gate | up] goes to memory, once, for backward; its gradient never does.
"""

from __future__ import annotations

import torch

from .. import memory
from .gemm import block_rows, blocks, multiply, multiply_add
from .lanes import WeightGradient, add_lanes, lane_buffers
from .launch import launch, launch_ranges, scratch
from .rms_norm import backward_rows_onto, normalise_rows, scale_rows
from .rounding import rounded
from .rows import as_rows, as_vector
from .swiglu_linear import activate_rows
from .swiglu_linear import backward_rows as activation_backward_rows


def forward(x: torch.Tensor, gain: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor,
            eps: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    width, inner = down.shape
    y = memory.empty(x.shape, x.dtype)
    h, rstd = memory.empty((*x.shape[:-1], 2 * inner), x.dtype), memory.empty(x.shape[:-1], x.dtype)
    rows_x, rows_y, rows_h = x.reshape(-1, width), y.view(-1, width), h.view(-1, 2 * inner)
    array_x, array_h, rows_rstd, gains = as_rows(x), as_rows(h), as_vector(rstd), as_vector(gain)
    eps = gains.dtype.type(eps)
    n = block_rows(width + 3 * inner)

    def program(block: int):
        rows = slice(block * n, block * n + n)
        normed = scratch("normed", array_x[rows].shape, x.dtype)
        active = scratch("active", (len(normed), inner), x.dtype)
        normalise_rows(array_x[rows], gains, eps, normed.numpy(), rows_rstd[rows])
        multiply(rounded(normed), gate_up.t(), rows_h[rows])
        rounded(rows_h[rows])
        activate_rows(array_h[rows], active.numpy())
        multiply_add(rows_x[rows], rounded(active), down.t(), rows_y[rows])

    launch(program, blocks(len(array_x), n))
    return y, h, rstd


def backward(dy: torch.Tensor, x: torch.Tensor, gain: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor,
             h: torch.Tensor, rstd: torch.Tensor, into: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)):
    width, inner = down.shape
    dx = memory.empty(x.shape, x.dtype)
    rows_dy, array_dy, array_dx = dy.reshape(-1, width), as_rows(dy), as_rows(dx)
    array_x, array_h, rows_rstd, gains = as_rows(x), as_rows(h), as_vector(rstd), as_vector(gain)
    n = min(128, block_rows(width + 4 * inner))  # less than forward: five products share the second-level cache
    grid = blocks(len(array_x), n)
    dgain = lane_buffers(grid, gain.shape, gain)
    dgate_up, ddown = WeightGradient(grid, gate_up, into[0]), WeightGradient(grid, down, into[1])

    def program(lane: int, start: int, stop: int):
        gain_part = dgain[lane].zero_().numpy()
        for block in range(start, stop):
            rows = slice(block * n, block * n + n)
            part, count = array_x[rows], len(array_x[rows])
            active, d_active = (scratch(name, (count, inner), x.dtype) for name in ("active", "d_active"))
            normed, d_normed = (scratch(name, (count, width), x.dtype) for name in ("normed", "d_normed"))
            dh = scratch("dh", (count, 2 * inner), x.dtype)
            multiply(rows_dy[rows], down, d_active)
            activation_backward_rows(rounded(d_active).numpy(), array_h[rows], active.numpy(), dh.numpy())
            ddown.add(lane, rows_dy[rows], rounded(active))
            scale_rows(part, gains, rows_rstd[rows], normed.numpy())
            dgate_up.add(lane, rounded(dh), rounded(normed))
            multiply(dh, gate_up, d_normed)
            backward_rows_onto(array_dy[rows], rounded(d_normed).numpy(), part, gains, rows_rstd[rows], array_dx[rows],
                               gain_part)

    launch_ranges(program, grid)
    return dx, add_lanes(dgain), dgate_up.total(), ddown.total()
