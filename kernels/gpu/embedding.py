"""Rows of a table, and the gradient by sorted keys (`segments`): deterministic, without atomics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import memory
from .launch import launch
from .rows import as_rows, contiguous
from .segments import add_rows
from .tuning import tuned


@triton.jit
def _forward(ids, weight, y, count, rows, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """An id that is no row gives a row of NaN: to raise an error one would have to wait for the GPU."""
    place = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.load(ids + place, mask=place < count, other=0).to(tl.int64)
    inside = (place < count)[:, None] & (column < WIDTH)[None, :]
    there = (row >= 0) & (row < rows)
    values = tl.load(weight + row[:, None] * WIDTH + column[None, :], mask=inside & there[:, None], other=float("nan"))
    tl.store(y + place[:, None] * WIDTH + column[None, :], values, mask=inside)


def forward(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    rows, width = weight.shape
    y = memory.empty((*ids.shape, width), weight.dtype, weight.device)
    if y.numel():
        options = tuned("embedding_forward", weight.dtype, width=width)
        columns = min(triton.next_power_of_2(width), options["COLUMNS"])
        tile = {"COLUMNS": columns, "ROWS": max(1, options["ELEMENTS"] // columns), "num_warps": options["num_warps"]}
        grid = triton.cdiv(ids.numel(), tile["ROWS"]), triton.cdiv(width, columns)
        launch(_forward, grid, contiguous(ids), contiguous(weight), y, ids.numel(), rows, WIDTH=width, **tile)
    return y


def backward(dy: torch.Tensor, ids: torch.Tensor, rows: int, into: torch.Tensor | None = None) -> torch.Tensor | None:
    table = memory.zeros((rows, dy.shape[-1]), dy.dtype, dy.device) if into is None else into
    if dy.numel():
        add_rows(as_rows(dy), ids.reshape(-1), table, into is not None)
    return table if into is None else None
