"""Softmax, log-softmax and log-sum-exp over the last dimension.

Short rows are held whole, several to a program. Long rows have a program each, which goes over them in blocks: once for
the statistics, and backwards for the result, as the last blocks read are those the cache still has.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import memory
from .launch import launch
from .rows import as_rows
from .tuning import tuned

LOWEST = tl.constexpr(-3.0e38)  # below any logit, yet finite: the distance to it is never inf - inf


@triton.jit
def add_block(top, total, x):
    """Running maximum and sum of e^(x - maximum), per lane, with one more element each."""
    distance = x - top
    e = tl.exp(-tl.abs(distance))
    total = tl.where(distance > 0.0, total * e + 1.0, total + e)
    return tl.maximum(top, x), total


@triton.jit
def joined(tops, totals):
    """Maximum and sum of a row from those of its lanes."""
    top = tl.max(tops, axis=0)
    return top, tl.sum(totals * tl.where(tops == top, 1.0, tl.exp(tops - top)), axis=0)


@triton.jit
def _normalise(x, y, lse, rows, LOG: tl.constexpr,
               WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """Whole rows. Softmax, or with LOG log-softmax, into `y`; or only log-sum-exp into `lse`."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    offset = row[:, None] * WIDTH + column[None, :]
    values = tl.load(x + offset, mask=inside, other=-float("inf")).to(tl.float32)
    top = tl.max(values, axis=1)
    if lse is not None:
        shift = tl.where(tl.abs(top) == float("inf"), 0.0, top)
        tl.store(lse + row, (shift + tl.log(tl.sum(tl.exp(values - shift[:, None]), axis=1))).to(lse.dtype.element_ty),
                 mask=row < rows)
    else:
        values -= top[:, None]
        e = tl.exp(values)
        total = tl.sum(e, axis=1)
        result = values - tl.log(total)[:, None] if LOG else e / total[:, None]
        tl.store(y + offset, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _normalise_long(x, y, lse, LOG: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    x += tl.program_id(0).to(tl.int64) * WIDTH
    tops = tl.full((COLUMNS,), LOWEST, tl.float32)
    totals = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, WIDTH, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        values = tl.load(x + column, mask=column < WIDTH, other=-float("inf")).to(tl.float32)
        tops, totals = add_block(tops, totals, values)
    top, total = joined(tops, totals)
    if lse is not None:
        tl.store(lse + tl.program_id(0), (top + tl.log(total)).to(lse.dtype.element_ty))
    else:
        y += tl.program_id(0).to(tl.int64) * WIDTH
        for block in range(0, (WIDTH + COLUMNS - 1) // COLUMNS):
            column = ((WIDTH - 1) // COLUMNS - block) * COLUMNS + tl.arange(0, COLUMNS)
            values = tl.load(x + column, mask=column < WIDTH, other=-float("inf")).to(tl.float32) - top
            result = values - tl.log(total) if LOG else tl.exp(values) * (1.0 / total)
            tl.store(y + column, result.to(y.dtype.element_ty), mask=column < WIDTH)


@triton.jit
def _backward(dy, y, dx, rows, LOG: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    offset = row[:, None] * WIDTH + column[None, :]
    d = tl.load(dy + offset, mask=inside, other=0.0).to(tl.float32)
    values = tl.load(y + offset, mask=inside, other=0.0).to(tl.float32)
    if LOG:
        result = d - tl.exp(values) * tl.sum(d, axis=1)[:, None]
    else:
        result = values * (d - tl.sum(d * values, axis=1)[:, None])
    tl.store(dx + offset, result.to(dx.dtype.element_ty), mask=inside)


@triton.jit
def _backward_long(dy, y, dx, LOG: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * WIDTH
    dy += start
    y += start
    dx += start
    sums = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, WIDTH, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        d = tl.load(dy + column, mask=column < WIDTH, other=0.0).to(tl.float32)
        if LOG:
            sums += d
        else:
            sums += d * tl.load(y + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    total = tl.sum(sums, axis=0)
    for block in range(0, (WIDTH + COLUMNS - 1) // COLUMNS):
        column = ((WIDTH - 1) // COLUMNS - block) * COLUMNS + tl.arange(0, COLUMNS)
        d = tl.load(dy + column, mask=column < WIDTH, other=0.0).to(tl.float32)
        values = tl.load(y + column, mask=column < WIDTH, other=0.0).to(tl.float32)
        result = d - tl.exp(values) * total if LOG else values * (d - total)
        tl.store(dx + column, result.to(dx.dtype.element_ty), mask=column < WIDTH)


def forward(x: torch.Tensor) -> torch.Tensor:
    return _result(x, log=False)


def log_forward(x: torch.Tensor) -> torch.Tensor:
    return _result(x, log=True)


def logsumexp(x: torch.Tensor) -> torch.Tensor:
    lse = memory.empty(x.shape[:-1], x.dtype, x.device)
    _launch(_normalise, _normalise_long, as_rows(x), None, lse, log=False)
    return lse


def backward(dy: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return _gradient(dy, y, log=False)


def log_backward(dy: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return _gradient(dy, y, log=True)


def _result(x, log):
    y = memory.empty(x.shape, x.dtype, x.device)
    _launch(_normalise, _normalise_long, as_rows(x), y, None, log=log)
    return y


def _gradient(dy, y, log):
    dx = memory.empty(y.shape, y.dtype, y.device)
    _launch(_backward, _backward_long, as_rows(dy), as_rows(y), dx, log=log)
    return dx


def _launch(whole, long, rows, *others, log: bool) -> None:
    """`whole` for rows that fit a block, `long` for others."""
    count, width = rows.shape
    options = tuned("softmax", rows.dtype, width=width)
    columns = triton.next_power_of_2(width)
    constants = {"LOG": log, "WIDTH": width, "num_warps": options["num_warps"]}
    if columns <= options["COLUMNS"]:
        height = max(1, options["ELEMENTS"] // columns)
        launch(whole, (triton.cdiv(count, height),), rows, *others, count, COLUMNS=columns, ROWS=height, **constants)
    else:
        launch(long, (count,), rows, *others, COLUMNS=options["COLUMNS"], **constants)
