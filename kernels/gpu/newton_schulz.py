"""Orthogonalising matrices by Newton-Schulz steps: X <- a X + (b A + c A A) X with A = X X^T.

A and the polynomial in it are symmetric: only blocks on and below the diagonal are computed, and written twice. One
launch per product for the whole stack.
"""

from __future__ import annotations

from typing import Sequence

import torch
import triton
import triton.language as tl

from .. import memory
from .launch import float32_precision, launch
from .rows import contiguous
from .tuning import tuned


@triton.jit
def _sums_of_squares(x, sums, SIZE: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr):
    matrix, part = tl.program_id(1), tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, PART, BLOCK):
        offset = part * PART + start + tl.arange(0, BLOCK)
        values = tl.load(x + matrix.to(tl.int64) * SIZE + offset, mask=offset < SIZE, other=0.0).to(tl.float32)
        total += values * values
    tl.store(sums + matrix * tl.num_programs(0) + part, tl.sum(total))


@triton.jit
def _normalised(x, sums, y, eps, margin, parts, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
                PARTS: tl.constexpr, TRANSPOSED: tl.constexpr):
    matrix = tl.program_id(2)
    part = tl.arange(0, PARTS)
    total = tl.sum(tl.load(sums + matrix * parts + part, mask=part < parts, other=0.0))
    row, column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    start = matrix.to(tl.int64) * HEIGHT * WIDTH
    inside = (row < HEIGHT)[:, None] & (column < WIDTH)[None, :]
    values = tl.load(x + start + row[:, None] * WIDTH + column[None, :], mask=inside, other=0.0).to(tl.float32)
    values *= 1 / (margin * tl.sqrt(total) + eps)
    if TRANSPOSED:
        inside = (column < WIDTH)[:, None] & (row < HEIGHT)[None, :]
        offset = column[:, None] * HEIGHT + row[None, :]
        values = tl.trans(values)
    else:
        offset = row[:, None] * WIDTH + column[None, :]
    tl.store(y + start + offset, values.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _symmetric(x, base, out, b, c, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr,
               PRECISION: tl.constexpr):
    """out (n, h, h) = c x x^T (+ b base), x (n, h, w): program p is the block p of the lower triangle, row by row."""
    matrix, place = tl.program_id(1).to(tl.int64), tl.program_id(0)
    i = ((tl.sqrt(8.0 * place + 1.0) - 1.0) * 0.5).to(tl.int32)
    i = tl.where(i * (i + 1) // 2 > place, i - 1, i)
    i = tl.where((i + 1) * (i + 2) // 2 <= place, i + 1, i)
    j = place - i * (i + 1) // 2
    row, column, k = i * BLOCK + tl.arange(0, BLOCK), j * BLOCK + tl.arange(0, BLOCK), tl.arange(0, DEPTH)
    x += matrix * HEIGHT * WIDTH
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, WIDTH, DEPTH):
        used = start + k < WIDTH
        left = tl.load(x + row[:, None] * WIDTH + (start + k)[None, :],
                       mask=(row < HEIGHT)[:, None] & used[None, :], other=0.0)
        right = tl.load(x + column[:, None] * WIDTH + (start + k)[None, :],
                        mask=(column < HEIGHT)[:, None] & used[None, :], other=0.0)
        total = tl.dot(left, tl.trans(right), total, input_precision=PRECISION)
    total *= c
    offset = matrix * HEIGHT * HEIGHT + row[:, None] * HEIGHT + column[None, :]
    inside = (row < HEIGHT)[:, None] & (column < HEIGHT)[None, :]
    if base is not None:
        total += b * tl.load(base + offset, mask=inside, other=0.0).to(tl.float32)
    result = total.to(out.dtype.element_ty)
    tl.store(out + offset, result, mask=inside)
    if i != j:
        mirrored = matrix * HEIGHT * HEIGHT + column[:, None] * HEIGHT + row[None, :]
        tl.store(out + mirrored, tl.trans(result), mask=(column < HEIGHT)[:, None] & (row < HEIGHT)[None, :])


@triton.jit
def _combined(x, factor, out, a, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr,
              TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr):
    """out = a x + factor x, transposed if so wished; x (n, h, w), factor (n, h, h) symmetric."""
    matrix, i, j = tl.program_id(2).to(tl.int64), tl.program_id(0), tl.program_id(1)
    row, column, k = i * BLOCK + tl.arange(0, BLOCK), j * BLOCK + tl.arange(0, BLOCK), tl.arange(0, DEPTH)
    x += matrix * HEIGHT * WIDTH
    factor += matrix * HEIGHT * HEIGHT
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, HEIGHT, DEPTH):
        used = start + k < HEIGHT
        left = tl.load(factor + row[:, None] * HEIGHT + (start + k)[None, :],
                       mask=(row < HEIGHT)[:, None] & used[None, :], other=0.0)
        right = tl.load(x + (start + k)[:, None] * WIDTH + column[None, :],
                        mask=used[:, None] & (column < WIDTH)[None, :], other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    inside = (row < HEIGHT)[:, None] & (column < WIDTH)[None, :]
    offset = row[:, None] * WIDTH + column[None, :]
    total += a * tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    result = total.to(out.dtype.element_ty)
    out += matrix * HEIGHT * WIDTH
    if TRANSPOSED:
        inside = (column < WIDTH)[:, None] & (row < HEIGHT)[None, :]
        tl.store(out + column[:, None] * HEIGHT + row[None, :], tl.trans(result), mask=inside)
    else:
        tl.store(out + offset, result, mask=inside)


def orthogonalise(x: torch.Tensor, coefficients: Sequence[tuple[float, float, float]], eps: float = 1e-7,
                  margin: float = 1.0, dtype: torch.dtype | None = None,
                  out: torch.Tensor | None = None) -> torch.Tensor:
    count, rows, columns = x.shape
    dtype = out.dtype if out is not None else dtype or x.dtype
    tall = rows > columns and len(coefficients) > 0
    height, width = min(rows, columns), max(rows, columns)
    current, following = (memory.empty((count, height, width), dtype, x.device) for _ in range(2))
    gram, factor = (memory.empty((count, height, height), dtype, x.device) for _ in range(2))
    _normalise(contiguous(x), current, eps, margin, tall)
    options = {**tuned("newton_schulz", dtype), "PRECISION": float32_precision()}
    high, wide = triton.cdiv(height, options["BLOCK"]), triton.cdiv(width, options["BLOCK"])
    triangle = high * (high + 1) // 2, count
    for step, (a, b, c) in enumerate(coefficients, 1):
        launch(_symmetric, triangle, current, None, gram, 0.0, 1.0, HEIGHT=height, WIDTH=width, **options)
        launch(_symmetric, triangle, gram, gram, factor, b, c, HEIGHT=height, WIDTH=height, **options)
        last = step == len(coefficients)
        following = out if last and out is not None and out.is_contiguous() else following
        launch(_combined, (high, wide, count), current, factor, following, a, HEIGHT=height, WIDTH=width,
               TRANSPOSED=tall and last, **options)
        current, following = following, current
    if out is None:
        return current.view(x.shape)
    return out if current is out else out.copy_(current.view(x.shape))


def _normalise(x: torch.Tensor, y: torch.Tensor, eps: float, margin: float, tall: bool) -> None:
    """y = x / (margin ||x|| + eps) with the Frobenius norm of each matrix, transposed if x is tall."""
    count, rows, columns = x.shape
    options = tuned("newton_schulz_normalise", x.dtype)
    part, block = options["PART"], options["BLOCK"]
    parts = triton.cdiv(rows * columns, part)
    sums = memory.empty((count, parts), torch.float32, x.device)
    launch(_sums_of_squares, (parts, count), x, sums, SIZE=rows * columns, PART=part, BLOCK=min(part, block * block))
    launch(_normalised, (triton.cdiv(columns, block), triton.cdiv(rows, block), count), x, sums, y, eps, margin, parts,
           HEIGHT=rows, WIDTH=columns, BLOCK=block, PARTS=triton.next_power_of_2(parts), TRANSPOSED=tall)
