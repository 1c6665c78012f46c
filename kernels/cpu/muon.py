"""Muon over stacks of matrices: momentum, orthogonalising and update of a matrix on one thread, while it is warm."""

from __future__ import annotations

import functools
import math
from typing import Sequence

import numpy as np
import torch

from ..stacks import Stack
from .compiled import compiled
from .launch import launch, scratch, threads
from .newton_schulz import orthogonalised

EPS, ROW_EPS = 1e-7, 1e-8


@compiled
def _momentum(g, m, direction, grad_scale, beta, kept, own):
    one = m.dtype.type(1)
    for i in range(m.shape[0]):
        gradient = g[i] * grad_scale
        m[i] = beta * m[i] + (one - beta) * gradient
        direction[i] = kept * m[i] + own * gradient


@compiled
def _row_factors(update, squares, factors, beta, eps, size):
    """What each row is multiplied with, so that all have equal size in the mean and the matrix has the norm `size`."""
    one, total = update.dtype.type(1), update.dtype.type(0)
    for i in range(update.shape[0]):
        row, row_sum = update[i], update.dtype.type(0)
        for j in range(row.shape[0]):
            row_sum += row[j] * row[j]
        squares[i] = beta * squares[i] + (one - beta) * (row_sum / row.shape[0])
        factors[i] = one / (np.sqrt(squares[i]) + eps)
        total += row_sum * factors[i] * factors[i]
    rest = size / (np.sqrt(total) + eps)
    for i in range(update.shape[0]):
        factors[i] *= rest


@compiled
def _scale_rows(update, factors):
    for i in range(update.shape[0]):
        row, factor = update[i], factors[i]
        for j in range(row.shape[0]):
            row[j] *= factor


@compiled
def _move(w, update, remaining, rate):
    for i in range(w.shape[0]):
        w[i] = w[i] * remaining - rate * update[i]


@functools.lru_cache(maxsize=8)
def _dealt(stacks: tuple[Stack, ...], hands: int) -> list[list[tuple[int, int]]]:
    """(stack, matrix) for each thread, in turn from the most work to the least."""
    every = [(place, i) for place, stack in enumerate(stacks) for i in range(stack.count)]
    every.sort(key=lambda entry: -stacks[entry[0]].size * min(stacks[entry[0]].rows, stacks[entry[0]].columns))
    return [every[hand::hands] for hand in range(hands)]


def step(weights: torch.Tensor, grads: torch.Tensor, momentum: torch.Tensor, stacks: tuple[Stack, ...],
         control: torch.Tensor, working: torch.Tensor | None = None, squares: Sequence[torch.Tensor] | None = None, *,
         lr_factor: float, decay: float, beta: float, row_beta: float, nesterov: bool,
         coefficients: tuple[tuple[float, float, float], ...], margin: float, dtype: torch.dtype) -> None:
    lr, _, _, _, made, grad_scale, *_ = control.tolist()
    if not made:
        return
    number = weights.numpy().dtype.type
    lr *= lr_factor
    kept, own = (beta, 1 - beta) if nesterov else (1.0, 0.0)
    numbers = [number(x) for x in (grad_scale, beta, kept, own)]

    def move(place: int, i: int) -> None:
        stack = stacks[place]
        start = stack.start + i * stack.stride
        part = slice(start, start + stack.size)
        shape = stack.rows, stack.columns
        update = scratch("muon_update", shape, weights.dtype)
        flat = update.view(-1)
        _momentum(grads[part].numpy(), momentum[part].numpy(), flat.numpy(), *numbers)
        update.copy_(orthogonalised(update, coefficients, EPS, margin, dtype))
        if squares is not None:
            factors = scratch("muon_factors", (stack.rows,), weights.dtype).numpy()
            _row_factors(update.numpy(), squares[place][i].numpy(), factors, number(row_beta), number(ROW_EPS),
                         number(math.sqrt(min(shape))))
            _scale_rows(update.numpy(), factors)
        _move(weights[part].numpy(), flat.numpy(), number(1 - lr * decay), number(lr * stack.scale))
        if working is not None:
            working[part].copy_(weights[part])

    hands = _dealt(stacks, threads())
    launch(lambda hand: [move(*entry) for entry in hands[hand]], len(hands))
