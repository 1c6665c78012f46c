"""The seed system's scalars: a number, or a whole tensor, goes through factor * (w x + b) with w and b learned.

With w = value / factor, w moves the result `factor` times as far as it would move alone: a learning rate `factor`
times as high where the optimizer takes steps of equal size (Adam), whatever the gradient's.
"""

from __future__ import annotations

import numpy as np

import kernels
from engine import Module, Parameter, Tensor
from models.config import ModelConfig

FACTOR = 100.0


class Affine(Module):
    """y = factor (w x + b) with w = value / factor and b = 0 at the start.

    Args:
        parts: number of w's and b's; x is then (..., parts, columns).
    """

    def __init__(self, value: float = 1.0, factor: float = FACTOR, parts: int = 1):
        self.factor, self.initial = factor, {"weight": value / factor, "bias": 0.0}
        self.weight, self.bias = (Parameter(kernels.empty((parts,))) for _ in range(2))
        self.reset()

    def reset(self) -> None:
        """To the initial values."""
        for name, value in self.initial.items():
            getattr(self, name).data.fill_(value)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.weight.shape[0]
        weight, bias = self.weight * self.factor, self.bias * self.factor
        if parts == 1:
            return x * weight + bias
        split = x.reshape(*x.shape[:-1], parts, x.shape[-1] // parts)
        return (split * weight.reshape(parts, 1) + bias.reshape(parts, 1)).reshape(*x.shape)

    def scaled(self, x: Tensor) -> Tensor:
        """`forward` without the bias, whose gradient is then zero."""
        return x * (self.weight * self.factor + self.bias * 0.0)

    def step(self, x: np.ndarray, biased: bool = True) -> np.ndarray:
        """`forward` on arrays, with the bias or without."""
        weight, bias = (parameter.numpy() * x.dtype.type(self.factor) for parameter in (self.weight, self.bias))
        y = x.reshape(*x.shape[:-1], len(weight), -1) * weight[:, None]
        return (y + bias[:, None] if biased else y).reshape(x.shape)


class Scalar(Module):
    """One learned number; called, it is a Tensor (1,)."""

    def __init__(self, initial: float):
        self.initial, self.weight = {"weight": initial}, Parameter(kernels.empty((1,)))
        self.reset()

    def reset(self) -> None:
        """To the initial value."""
        self.weight.data.fill_(self.initial["weight"])

    def forward(self) -> Tensor:
        return self.weight

    def value(self, dtype: np.dtype) -> np.floating:
        """The number itself."""
        return dtype.type(self.weight.numpy()[0])


class AffineScalar(Affine):
    """A learned number as the seed system has it: w + b, both learned, with a factor of 1."""

    def __init__(self, initial: float):
        super().__init__(initial, factor=1.0)

    def forward(self) -> Tensor:
        return self.weight + self.bias

    def value(self, dtype: np.dtype) -> np.floating:
        """The number itself."""
        return dtype.type(self.weight.numpy()[0] + self.bias.numpy()[0])


def affine(config: ModelConfig, value: float = 1.0, parts: int = 1) -> Affine | None:
    """An Affine where `config.parametrisation` is "affine", else None."""
    return Affine(value, parts=parts) if config.parametrisation == "affine" else None


def scalar(config: ModelConfig, initial: float) -> Scalar | AffineScalar:
    """A learned number of the config's parametrisation."""
    return (AffineScalar if config.parametrisation == "affine" else Scalar)(initial)
