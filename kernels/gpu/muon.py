"""Muon over stacks of matrices: momentum in one pass, orthogonalising stack by stack, and an update for each stack."""

from __future__ import annotations

import math
from typing import Sequence

import torch
import triton
import triton.language as tl

from .. import memory
from ..stacks import Stack
from .launch import launch
from .newton_schulz import orthogonalise
from .tuning import tuned

EPS, ROW_EPS = 1e-7, 1e-8


@triton.jit
def _momentum(grads, momentum, direction, control, count, beta, kept, own, BLOCK: tl.constexpr):
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < count
    gradient = tl.load(grads + offset, mask=mask, other=0.0) * tl.load(control + 5).to(tl.float32)
    m = beta * tl.load(momentum + offset, mask=mask, other=0.0) + (1 - beta) * gradient
    tl.store(momentum + offset, m, mask=mask & (tl.load(control + 4) != 0.0))
    tl.store(direction + offset, (kept * m + own * gradient).to(direction.dtype.element_ty), mask=mask)


@triton.jit
def _row_squares(direction, squares, sums, control, start, stride, rows, beta, COLUMNS: tl.constexpr,
                 BLOCK: tl.constexpr):
    """Of row program_id(0) of matrix program_id(1): the sum of squares, which also moves the running mean."""
    row, matrix = tl.program_id(0), tl.program_id(1)
    direction += start + matrix.to(tl.int64) * stride + row.to(tl.int64) * COLUMNS
    total = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, COLUMNS, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        values = tl.load(direction + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
        total += values * values
    place = matrix * rows + row
    result = tl.sum(total)
    before = tl.load(squares + place)
    after = beta * before + (1 - beta) * (result / COLUMNS)
    tl.store(squares + place, tl.where(tl.load(control + 4) != 0.0, after, before))
    tl.store(sums + place, result)


@triton.jit
def _row_factors(squares, sums, factors, rows, size, eps, BLOCK: tl.constexpr):
    """Of matrix program_id(0): what each row is multiplied with, so that the whole has the norm `size`."""
    first = tl.program_id(0) * rows
    total = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, rows, BLOCK):
        row = begin + tl.arange(0, BLOCK)
        factor = 1 / (tl.sqrt(tl.load(squares + first + row, mask=row < rows, other=1.0)) + eps)
        total += tl.load(sums + first + row, mask=row < rows, other=0.0) * factor * factor
    rest = size / (tl.sqrt(tl.sum(total)) + eps)
    for begin in range(0, rows, BLOCK):
        row = begin + tl.arange(0, BLOCK)
        factor = 1 / (tl.sqrt(tl.load(squares + first + row, mask=row < rows, other=1.0)) + eps)
        tl.store(factors + first + row, factor * rest, mask=row < rows)


@triton.jit
def _move(weights, direction, factors, working, control, start, stride, rows, lr_factor, decay, scale,
          SIZE: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    if tl.load(control + 4) != 0.0:
        lr = tl.load(control).to(tl.float32) * lr_factor
        matrix = tl.program_id(1)
        inner = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        mask = inner < SIZE
        offset = start + matrix.to(tl.int64) * stride + inner
        update = lr * scale * tl.load(direction + offset, mask=mask, other=0.0).to(tl.float32)
        if factors is not None:
            update *= tl.load(factors + matrix * rows + inner // COLUMNS, mask=mask, other=0.0)
        w = tl.load(weights + offset, mask=mask, other=0.0) * (1 - lr * decay) - update
        tl.store(weights + offset, w, mask=mask)
        if working is not None:
            tl.store(working + offset, w.to(working.dtype.element_ty), mask=mask)


def step(weights: torch.Tensor, grads: torch.Tensor, momentum: torch.Tensor, stacks: tuple[Stack, ...],
         control: torch.Tensor, working: torch.Tensor | None = None, squares: Sequence[torch.Tensor] | None = None, *,
         lr_factor: float, decay: float, beta: float, row_beta: float, nesterov: bool,
         coefficients: tuple[tuple[float, float, float], ...], margin: float, dtype: torch.dtype) -> None:
    direction = memory.empty(weights.shape, dtype, weights.device)
    options = tuned("flat", weights.dtype)
    kept, own = (beta, 1 - beta) if nesterov else (1.0, 0.0)
    launch(_momentum, (triton.cdiv(len(weights), options["BLOCK"]),), grads, momentum, direction, control, len(weights),
           beta, kept, own, **options)
    for place, stack in enumerate(stacks):
        update = stack.of(direction)
        orthogonalise(update, coefficients, EPS, margin, out=update)
        factors = None if squares is None else _factors(direction, stack, squares[place], control, row_beta)
        launch(_move, (triton.cdiv(stack.size, options["BLOCK"]), stack.count), weights, direction, factors, working,
               control, stack.start, stack.stride, stack.rows, lr_factor, decay, stack.scale, SIZE=stack.size,
               COLUMNS=stack.columns, **options)


def _factors(direction: torch.Tensor, stack: Stack, squares: torch.Tensor, control: torch.Tensor,
             row_beta: float) -> torch.Tensor:
    """Float32 (count, rows): what NorMuon multiplies the rows of a stack with; moves `squares` on."""
    sums, factors = (memory.empty(squares.shape, torch.float32, squares.device) for _ in range(2))
    options = tuned("muon_rows", direction.dtype)
    block = min(options["BLOCK"], triton.next_power_of_2(stack.columns))
    launch(_row_squares, (stack.rows, stack.count), direction, squares, sums, control, stack.start, stack.stride,
           stack.rows, row_beta, COLUMNS=stack.columns, BLOCK=block, num_warps=options["num_warps"])
    launch(_row_factors, (stack.count,), squares, sums, factors, stack.rows,
           math.sqrt(min(stack.rows, stack.columns)), ROW_EPS,
           BLOCK=min(options["BLOCK"], triton.next_power_of_2(stack.rows)))
    return factors
