"""Layer normalisation (Ba et al. 2016, arXiv 1607.06450): y = (x - mean) / sqrt(variance + eps) * gain + bias.

As in rms_norm.py a program holds whole rows, and a fixed number of programs add up the gradients of gain and bias.
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
def _forward(x, gain, bias, y, mean, rstd, rows, eps,
             WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """The mean is taken of distances from the first element, so that rows far from 0 lose no digits."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    used = column < WIDTH
    inside = (row < rows)[:, None] & used[None, :]
    offset = row[:, None] * WIDTH + column[None, :]
    first = tl.load(x + row * WIDTH, mask=row < rows, other=0.0).to(tl.float32)
    distance = tl.where(inside, tl.load(x + offset, mask=inside, other=0.0).to(tl.float32) - first[:, None], 0.0)
    shift = tl.sum(distance, axis=1) * (1.0 / WIDTH)
    centred = tl.where(inside, distance - shift[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=1) * (1.0 / WIDTH) + eps)
    tl.store(mean + row, first + shift, mask=row < rows)
    tl.store(rstd + row, scale, mask=row < rows)
    gains = tl.load(gain + column, mask=used, other=0.0).to(tl.float32)
    biases = tl.load(bias + column, mask=used, other=0.0).to(tl.float32)
    result = centred * scale[:, None] * gains[None, :] + biases[None, :]
    tl.store(y + offset, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward(dy, x, gain, mean, rstd, dx, parts, rows,
              WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """parts (programs, 2, WIDTH): sums of a program's rows for gain and bias."""
    column = tl.arange(0, COLUMNS)
    used = column < WIDTH
    gains = tl.load(gain + column, mask=used, other=0.0).to(tl.float32)
    gain_sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    bias_sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < rows)[:, None] & used[None, :]
        offset = row[:, None] * WIDTH + column[None, :]
        d = tl.load(dy + offset, mask=inside, other=0.0).to(tl.float32)
        normed = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
        middle = tl.load(mean + row, mask=row < rows, other=0.0)
        scale = tl.load(rstd + row, mask=row < rows, other=0.0)
        normed = tl.where(inside, (normed - middle[:, None]) * scale[:, None], 0.0)
        gain_sums += d * normed
        bias_sums += d
        d *= gains[None, :]
        share = tl.sum(d, axis=1) * (1.0 / WIDTH)
        dot = tl.sum(d * normed, axis=1) * (1.0 / WIDTH)
        result = (d - share[:, None] - normed * dot[:, None]) * scale[:, None]
        tl.store(dx + offset, result.to(dx.dtype.element_ty), mask=inside)
    parts += tl.program_id(0) * (2 * WIDTH) + column
    tl.store(parts, tl.sum(gain_sums, axis=0), mask=used)
    tl.store(parts + WIDTH, tl.sum(bias_sums, axis=0), mask=used)


def forward(x: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor,
            eps: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = as_rows(x)
    count, width = rows.shape
    y = memory.empty(x.shape, x.dtype, x.device)
    mean, rstd = (memory.empty(x.shape[:-1], torch.float32, x.device) for _ in range(2))
    tile, options = _tile("layer_norm_forward", x.dtype, width)
    launch(_forward, (triton.cdiv(count, tile["ROWS"]),), rows, contiguous(gain), contiguous(bias), y, mean, rstd,
           count, eps, **tile, num_warps=options["num_warps"])
    return y, mean, rstd


def backward(dy: torch.Tensor, x: torch.Tensor, gain: torch.Tensor, mean: torch.Tensor,
             rstd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = as_rows(x)
    count, width = rows.shape
    dx = memory.empty(x.shape, x.dtype, x.device)
    tile, options = _tile("layer_norm_backward", x.dtype, width)
    programs = max(1, min(triton.cdiv(count, tile["ROWS"]), options["PER_MULTIPROCESSOR"] * target().multiprocessors))
    parts = memory.empty((programs, 2, width), torch.float32, x.device)
    launch(_backward, (programs,), contiguous(dy), rows, contiguous(gain), mean, rstd, dx, parts, count, **tile,
           num_warps=options["num_warps"])
    dgain, dbias = sum_rows(parts, (2, width), gain.dtype).unbind()
    return dx, dgain, dbias


def _tile(kernel: str, dtype: torch.dtype, width: int):
    """Block sizes for rows of `width` elements, and the table's entry."""
    columns = triton.next_power_of_2(width)
    options = tuned(kernel, dtype, width=width)
    return {"WIDTH": width, "COLUMNS": columns, "ROWS": max(1, options["ELEMENTS"] // columns)}, options
