"""Orthogonalising matrices by Newton-Schulz steps: X <- a X + (b A + c A A) X with A = X X^T; a thread per matrix."""

from __future__ import annotations

import math
from typing import Sequence

import numpy as np
import torch

from .. import memory
from .gemm import multiply
from .launch import launch, scratch
from .optimizer import sum_of_squares

OBLONG = 1.5  # longer side over shorter one, from which on `_steps_of_gram` has less to multiply
MOST_GROWTH = 1000.0  # of a small singular value: what float32 bears in `_steps_of_gram`


def orthogonalise(x: torch.Tensor, coefficients: Sequence[tuple[float, float, float]], eps: float = 1e-7,
                  margin: float = 1.0, dtype: torch.dtype | None = None,
                  out: torch.Tensor | None = None) -> torch.Tensor:
    result = memory.empty(x.shape, dtype or x.dtype) if out is None else out
    launch(lambda i: result[i].copy_(orthogonalised(x[i], coefficients, eps, margin, result.dtype)), len(x))
    return result


def orthogonalised(x: torch.Tensor, coefficients, eps: float, margin: float, dtype: torch.dtype) -> torch.Tensor:
    """One matrix, contiguous in this thread's scratch memory, valid until the next call."""
    normalised = scratch("newton_schulz_normalised", tuple(x.shape), x.dtype)
    np.copyto(normalised.numpy(), x.numpy())
    norm = math.sqrt(sum_of_squares(normalised.view(-1).numpy()))
    np.multiply(normalised.numpy(), 1 / (margin * norm + eps), out=normalised.numpy())
    current, following = (scratch(f"newton_schulz_{name}", tuple(x.shape), dtype) for name in ("even", "odd"))
    current.copy_(normalised)
    oblong = max(x.shape) >= OBLONG * min(x.shape) and len(coefficients) > 2
    if oblong and dtype.itemsize >= 4 and math.prod(a for a, _, _ in coefficients) <= MOST_GROWTH:
        return _steps_of_gram(current, following, coefficients)
    return _steps(current, following, coefficients)


def _steps(current: torch.Tensor, following: torch.Tensor, coefficients) -> torch.Tensor:
    """On the matrix as it is."""
    tall, (gram, factor) = len(current) > current.shape[1], _squares(current, "gram", "factor")
    for a, b, c in coefficients:
        multiply(*_ordered(tall, current, current.t()), gram)
        torch.addmm(gram, gram, gram, beta=b, alpha=c, out=factor)
        torch.addmm(current, *_ordered(tall, factor, current), beta=a, out=following)
        current, following = following, current
    return current


def _steps_of_gram(x: torch.Tensor, result: torch.Tensor, coefficients) -> torch.Tensor:
    """The same in other order: with R = a + b A + c A A a step makes A into R A R, and the matrix is multiplied once,
    with the product of all R. What rounding does to A grows as the square of a small singular value does."""
    tall = len(x) > x.shape[1]
    gram, factor, product, whole = _squares(x, "gram", "factor", "product", "whole")
    multiply(*_ordered(tall, x, x.t()), gram)
    for step, (a, b, c) in enumerate(coefficients, 1):
        torch.addmm(gram, gram, gram, beta=b, alpha=c, out=factor)
        factor.numpy().reshape(-1)[::len(factor) + 1] += a
        if step == 1:
            whole.copy_(factor)
        else:
            multiply(factor, whole, product)
            whole, product = product, whole
        if step < len(coefficients):
            multiply(factor, gram, product)
            multiply(product, factor, gram)
    multiply(*_ordered(tall, whole, x), result)
    return result


def _ordered(tall: bool, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of a product; of a tall matrix A is made on the other side, which is the shorter one."""
    return (right, left) if tall else (left, right)


def _squares(x: torch.Tensor, *names: str) -> list[torch.Tensor]:
    """Scratch matrices of the size of A."""
    return [scratch(f"newton_schulz_{name}", (min(x.shape),) * 2, x.dtype) for name in names]
