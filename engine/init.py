"""Initial values, drawn by NumPy so that they are the same on every device."""

from __future__ import annotations

import math

import numpy as np
import torch

from .autograd import Tensor


def _generator(rng: np.random.Generator | None) -> np.random.Generator:
    return np.random.default_rng(0) if rng is None else rng


def _fill(p: Tensor, values: np.ndarray) -> Tensor:
    p.data.copy_(torch.from_numpy(values))
    return p


def normal_(p: Tensor, std: float = 1.0, rng: np.random.Generator | None = None) -> Tensor:
    """Draw from N(0, std^2)."""
    return _fill(p, _generator(rng).standard_normal(p.shape) * std)


def uniform_(p: Tensor, bound: float = 1.0, rng: np.random.Generator | None = None) -> Tensor:
    """Draw from [-bound, bound)."""
    return _fill(p, _generator(rng).uniform(-bound, bound, p.shape))


def xavier_uniform_(p: Tensor, rng: np.random.Generator | None = None) -> Tensor:
    """Draw a (fan_out, fan_in) matrix from U(-a, a), a = sqrt(6 / (fan_in + fan_out)).

    Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks", equation 16.
    """
    fan_out, fan_in = p.shape
    return uniform_(p, math.sqrt(6 / (fan_in + fan_out)), rng)


def zeros_(p: Tensor) -> Tensor:
    """Fill with 0."""
    p.data.fill_(0)
    return p


def ones_(p: Tensor) -> Tensor:
    """Fill with 1."""
    p.data.fill_(1)
    return p
