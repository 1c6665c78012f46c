"""Root-mean-square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467): y = x / sqrt(mean(x^2) + eps) * gain.

A program holds whole rows, so x is read once. In backward a fixed number of programs stay for all rows and add up the
gain's gradient in registers: the sum has one order, and needs no atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import memory
from .launch import launch, target
from .rows import as_rows, contiguous, sum_rows
from .tuning import tuned


@triton.jit
def _forward(x, residual, gain, total, y, rstd, rows, eps,
             WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    used = column < WIDTH
    inside = (row < rows)[:, None] & used[None, :]
    offset = row[:, None] * WIDTH + column[None, :]
    values = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        values += tl.load(residual + offset, mask=inside, other=0.0).to(tl.float32)
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + offset, rounded, mask=inside)
        values = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=1) * (1.0 / WIDTH) + eps)
    tl.store(rstd + row, scale, mask=row < rows)
    gains = tl.load(gain + column, mask=used, other=0.0).to(tl.float32)
    result = values * scale[:, None] * gains[None, :]
    tl.store(y + offset, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward(dy, x, gain, rstd, dtotal, dx, y, dgain, rows,
              WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    column = tl.arange(0, COLUMNS)
    used = column < WIDTH
    gains = tl.load(gain + column, mask=used, other=0.0).to(tl.float32)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < rows)[:, None] & used[None, :]
        offset = row[:, None] * WIDTH + column[None, :]
        d = tl.load(dy + offset, mask=inside, other=0.0).to(tl.float32)
        normed = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(rstd + row, mask=row < rows, other=0.0)
        normed *= scale[:, None]
        sums += d * normed
        if y is not None:
            tl.store(y + offset, (normed * gains[None, :]).to(y.dtype.element_ty), mask=inside)
        d *= gains[None, :]
        dot = tl.sum(d * normed, axis=1) * (1.0 / WIDTH)
        result = (d - normed * dot[:, None]) * scale[:, None]
        if dtotal is not None:
            result += tl.load(dtotal + offset, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + offset, result.to(dx.dtype.element_ty), mask=inside)
    tl.store(dgain + tl.program_id(0) * WIDTH + column, tl.sum(sums, axis=0), mask=used)


def forward(x: torch.Tensor, gain: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    _, y, rstd = _normalise(x, None, gain, eps)
    return y, rstd


def add_forward(x: torch.Tensor, residual: torch.Tensor, gain: torch.Tensor,
                eps: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _normalise(x, contiguous(residual), gain, eps)


def _normalise(x, residual, gain, eps):
    rows = as_rows(x)
    total = None if residual is None else memory.empty(x.shape, x.dtype, x.device)
    y, rstd = memory.empty(x.shape, x.dtype, x.device), memory.empty(x.shape[:-1], torch.float32, x.device)
    count, width = rows.shape
    tile, options = _tile("rms_norm_forward", x.dtype, width)
    launch(_forward, (triton.cdiv(count, tile["ROWS"]),), rows, residual, contiguous(gain), total, y, rstd, count, eps,
           **tile, num_warps=options["num_warps"])
    return total, y, rstd


def backward(dy: torch.Tensor, x: torch.Tensor, gain: torch.Tensor,
             rstd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    dx, dgain, _ = backward_rows(dy, x, gain, rstd)
    return dx, dgain


def add_backward(dy: torch.Tensor, dtotal: torch.Tensor, total: torch.Tensor, gain: torch.Tensor,
                 rstd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    dx, dgain, _ = backward_rows(dy, total, gain, rstd, dtotal)
    return dx, dgain


def backward_rows(dy: torch.Tensor, x: torch.Tensor, gain: torch.Tensor, rstd: torch.Tensor,
                  dtotal: torch.Tensor | None = None, with_result: bool = False):
    """dx (+ dtotal), dgain, and the normalised rows again if asked for, which come for free here."""
    rows = as_rows(x)
    count, width = rows.shape
    dx = memory.empty(x.shape, x.dtype, x.device)
    y = memory.empty(x.shape, x.dtype, x.device) if with_result else None
    tile, options = _tile("rms_norm_backward", x.dtype, width)
    programs = max(1, min(triton.cdiv(count, tile["ROWS"]), options["PER_MULTIPROCESSOR"] * target().multiprocessors))
    parts = memory.empty((programs, width), torch.float32, x.device)
    launch(_backward, (programs,), contiguous(dy), rows, contiguous(gain), rstd,
           None if dtotal is None else contiguous(dtotal), dx, y, parts, count, **tile, num_warps=options["num_warps"])
    return dx, sum_rows(parts, gain.shape, gain.dtype), y


def _tile(kernel: str, dtype: torch.dtype, width: int):
    """Block sizes for rows of `width` elements, and the table's entry."""
    columns = triton.next_power_of_2(width)
    options = tuned(kernel, dtype, width=width)
    return {"WIDTH": width, "COLUMNS": columns, "ROWS": max(1, options["ELEMENTS"] // columns)}, options
