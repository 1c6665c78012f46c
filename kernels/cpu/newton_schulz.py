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


def orthogonalise(x: torch.Tensor, coefficients: Sequence[tuple[float, float, float]], eps: float = 1e-7,
                  margin: float = 1.0, dtype: torch.dtype | None = None) -> torch.Tensor:
    result = memory.empty(x.shape, dtype or x.dtype)
    launch(lambda i: _orthogonalise(x[i], result[i], coefficients, eps, margin), len(x))
    return result


def _orthogonalise(x: torch.Tensor, result: torch.Tensor, coefficients, eps: float, margin: float) -> None:
    x, result = (x.t(), result.t()) if len(x) > x.shape[1] else (x, result)
    height, width = x.shape
    normalised = scratch("newton_schulz_normalised", (height, width), x.dtype)
    np.copyto(normalised.numpy(), x.numpy())
    norm = math.sqrt(sum_of_squares(normalised.view(-1).numpy()))
    np.multiply(normalised.numpy(), 1 / (margin * norm + eps), out=normalised.numpy())
    current, following = (scratch(f"newton_schulz_{name}", (height, width), result.dtype) for name in ("even", "odd"))
    gram, factor = (scratch(f"newton_schulz_{name}", (height, height), result.dtype) for name in ("gram", "factor"))
    current.copy_(normalised)
    for a, b, c in coefficients:
        multiply(current, current.t(), gram)
        torch.addmm(gram, gram, gram, beta=b, alpha=c, out=factor)
        torch.addmm(current, factor, current, beta=a, out=following)
        current, following = following, current
    result.copy_(current)
