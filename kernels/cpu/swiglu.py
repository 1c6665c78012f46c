"""SwiGLU's activation alone (Shazeer 2020, arXiv 2002.05202): silu(gate) * up for h = [gate | up]."""

from __future__ import annotations

import torch

from .. import memory
from .launch import scratch
from .rows import as_rows, launch_blocks, launch_rows
from .swiglu_linear import activate_rows, backward_rows


def forward(h: torch.Tensor) -> torch.Tensor:
    width = h.shape[-1] // 2
    y = memory.empty((*h.shape[:-1], width), h.dtype)
    rows_h, rows_y = as_rows(h), as_rows(y)
    launch_rows(lambda part: activate_rows(rows_h[part], rows_y[part]), len(rows_h), 2 * width)
    return y


def backward(dy: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    dh = memory.empty(h.shape, h.dtype)
    rows_dy, rows_h, rows_dh = as_rows(dy), as_rows(h), as_rows(dh)

    def program(part: slice):
        active = scratch("active", rows_dy[part].shape, h.dtype)
        backward_rows(rows_dy[part], rows_h[part], active.numpy(), rows_dh[part])

    launch_blocks(program, *rows_h.shape)
    return dh
