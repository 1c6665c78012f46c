"""SwiGLU and the projection after it (Shazeer 2020, arXiv 2002.05202): y = (silu(gate) * up) W^T (+ residual)."""

from __future__ import annotations

import torch

from .. import memory
from .compiled import compiled, exp
from .gemm import block_rows, blocks, multiply, multiply_add
from .lanes import WeightGradient
from .launch import launch, launch_ranges, scratch
from .rounding import rounded
from .rows import as_rows


@compiled
def activate_rows(h, a):
    """a = silu(gate) * up for rows h = [gate | up]."""
    width = a.shape[1]
    one = a.dtype.type(1)
    for i in range(a.shape[0]):
        gate, up, out = h[i, :width], h[i, width:], a[i]
        for j in range(width):
            out[j] = gate[j] * up[j] / (one + exp(-gate[j]))


@compiled
def backward_rows(da, h, a, dh):
    """The activation a again, and the gradient dh of [gate | up] from da."""
    width = a.shape[1]
    one = a.dtype.type(1)
    for i in range(a.shape[0]):
        gate, up, out, d = h[i, :width], h[i, width:], a[i], da[i]
        dgate, dup = dh[i, :width], dh[i, width:]
        for j in range(width):
            sigmoid = one / (one + exp(-gate[j]))
            silu = gate[j] * sigmoid
            out[j] = silu * up[j]
            dup[j] = d[j] * silu
            dgate[j] = d[j] * up[j] * (sigmoid + silu * (one - sigmoid))


def forward(h: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
    d_out, width = weight.shape
    rows_h = as_rows(h)
    y = memory.empty((*h.shape[:-1], d_out), h.dtype)
    rows_y = y.view(-1, d_out)
    rows_r = None if residual is None else residual.reshape(-1, d_out)
    n = block_rows(3 * width)

    def program(block: int):
        rows = slice(block * n, block * n + n)
        part = rows_h[rows]
        active = scratch("active", (len(part), width), h.dtype)
        activate_rows(part, active.numpy())
        rounded(active)
        if rows_r is None:
            multiply(active, weight.t(), rows_y[rows])
        else:
            multiply_add(rows_r[rows], active, weight.t(), rows_y[rows])

    launch(program, blocks(len(rows_h), n))
    return y


def backward(dy: torch.Tensor, h: torch.Tensor, weight: torch.Tensor,
             into: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
    d_out, width = weight.shape
    dh = memory.empty(h.shape, h.dtype)
    rows_dy, rows_h, rows_dh = dy.reshape(-1, d_out), as_rows(h), as_rows(dh)
    n = block_rows(3 * width)
    grid = blocks(len(rows_h), n)
    dweight = WeightGradient(grid, weight, into)

    def program(lane: int, start: int, stop: int):
        for block in range(start, stop):
            rows = slice(block * n, block * n + n)
            part = rows_h[rows]
            active = scratch("active", (len(part), width), h.dtype)
            d_active = scratch("d_active", (len(part), width), h.dtype)
            multiply(rows_dy[rows], weight, d_active)
            backward_rows(rounded(d_active).numpy(), part, active.numpy(), rows_dh[rows])
            dweight.add(lane, rows_dy[rows], rounded(active))

    launch_ranges(program, grid)
    return dh, dweight.total()
