"""SwiGLU's activation alone (Shazeer 2020, arXiv 2002.05202): silu(gate) * up for h = [gate | up]."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import memory
from .formulas import sigmoid
from .launch import launch
from .rows import as_rows
from .tuning import tuned


@triton.jit
def _forward(h, y, rows, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    across: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    row = (tl.program_id(0) // across * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    offset = row[:, None] * (2 * WIDTH) + column[None, :]
    gate = tl.load(h + offset, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(h + offset + WIDTH, mask=inside, other=0.0).to(tl.float32)
    result = gate * sigmoid(gate) * up
    tl.store(y + row[:, None] * WIDTH + column[None, :], result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward(dy, h, dh, y, rows, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """`dh` may be `h`, and `y`, which gets the activation again unless it is None, may be `dy`."""
    across: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    row = (tl.program_id(0) // across * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    offset = row[:, None] * (2 * WIDTH) + column[None, :]
    narrow_offset = row[:, None] * WIDTH + column[None, :]
    gate = tl.load(h + offset, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(h + offset + WIDTH, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(dy + narrow_offset, mask=inside, other=0.0).to(tl.float32)
    share = sigmoid(gate)
    active = gate * share
    tl.store(dh + offset, (d * up * (share + active * (1.0 - share))).to(dh.dtype.element_ty), mask=inside)
    tl.store(dh + offset + WIDTH, (d * active).to(dh.dtype.element_ty), mask=inside)
    if y is not None:
        tl.store(y + narrow_offset, (active * up).to(y.dtype.element_ty), mask=inside)


def forward(h: torch.Tensor) -> torch.Tensor:
    rows = as_rows(h)
    count, width = len(rows), h.shape[-1] // 2
    y = memory.empty((*h.shape[:-1], width), h.dtype, h.device)
    grid, tile = _tile("swiglu_forward", h.dtype, count, width)
    launch(_forward, grid, rows, y, count, **tile)
    return y


def backward(dy: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    dh = memory.empty(h.shape, h.dtype, h.device)
    backward_rows(as_rows(dy), as_rows(h), dh)
    return dh


def backward_rows(dy: torch.Tensor, h: torch.Tensor, dh: torch.Tensor, y: torch.Tensor | None = None) -> None:
    """Gradient of contiguous h (..., 2 f) into `dh`, which may be `h`; the activation (..., f) again into `y`, which
    may be `dy`, for the gradient of the weight after it."""
    width = h.shape[-1] // 2
    count = h.numel() // h.shape[-1]
    grid, tile = _tile("swiglu_backward", h.dtype, count, width)
    launch(_backward, grid, dy, h, dh, y, count, **tile)


def _tile(kernel: str, dtype: torch.dtype, rows: int, width: int):
    """Grid over tiles of rows and columns, and the launch's constants."""
    options = tuned(kernel, dtype, width=width)
    columns = min(triton.next_power_of_2(width), options["COLUMNS"])
    tile = {"WIDTH": width, "COLUMNS": columns, "ROWS": max(1, options["ELEMENTS"] // columns)}
    grid = triton.cdiv(rows, tile["ROWS"]) * triton.cdiv(width, columns)
    return (grid,), {**tile, "num_warps": options["num_warps"]}
