"""Elementary functions and activations, element by element."""

from __future__ import annotations

import torch

import kernels

from ..errors import UserError
from ..autograd import Op, Tensor
from .checks import floating

_apply = kernels.elementwise.apply


class _Unary(Op):
    """result = name(x); the gradient is made by `gradient`(dy, x or the result, as `saves` says)."""

    name: str
    gradient: str
    saves = "result"

    def forward(self, x):
        y = _apply(self.name, x)
        self.saved = y if self.saves == "result" else x
        return y

    def backward(self, dy):
        return _apply(self.gradient, dy, self.saved)


class Neg(Op):
    def forward(self, x):
        return _apply("neg", x)

    def backward(self, dy):
        return _apply("neg", dy)


class Abs(_Unary):
    name, gradient, saves = "abs", "abs_backward", "input"


class Exp(_Unary):
    name, gradient = "exp", "mul"


class Log(_Unary):
    name, gradient, saves = "log", "div", "input"


class Sqrt(_Unary):
    name, gradient = "sqrt", "sqrt_backward"


class Tanh(_Unary):
    name, gradient = "tanh", "tanh_backward"


class Sigmoid(_Unary):
    name, gradient = "sigmoid", "sigmoid_backward"


class ReLU(_Unary):
    name, gradient = "relu", "relu_backward"


class ReLUSquared(_Unary):
    name, gradient, saves = "relu_squared", "relu_squared_backward", "input"


class SiLU(_Unary):
    name, gradient, saves = "silu", "silu_backward", "input"


class GELU(_Unary):
    name, gradient, saves = "gelu", "gelu_backward", "input"


class GELUTanh(_Unary):
    name, gradient, saves = "gelu_tanh", "gelu_tanh_backward", "input"


def neg(x: Tensor) -> Tensor:
    """-x."""
    return Neg.apply(x)


def abs(x: Tensor) -> Tensor:
    """The absolute value; its gradient at 0 is 0."""
    return Abs.apply(x)


def exp(x: Tensor) -> Tensor:
    """e to the power x; of whole numbers as float32, like all functions below."""
    return Exp.apply(floating(x))


def log(x: Tensor) -> Tensor:
    """The natural logarithm: -inf at 0, NaN below."""
    return Log.apply(floating(x))


def sqrt(x: Tensor) -> Tensor:
    """The square root: NaN below 0."""
    return Sqrt.apply(floating(x))


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return Tanh.apply(floating(x))


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x)."""
    return Sigmoid.apply(floating(x))


def relu(x: Tensor) -> Tensor:
    """max(x, 0); the gradient at 0 is 0."""
    return ReLU.apply(x)


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2 (squared ReLU, Primer: arXiv 2109.08668)."""
    return ReLUSquared.apply(floating(x))


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x) (arXiv 1606.08415, section 2)."""
    return SiLU.apply(floating(x))


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x times the standard normal distribution function (arXiv 1606.08415).

    Args:
        approximate: "none" for the exact form with erf, "tanh" for
            0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
    """
    if approximate not in ("none", "tanh"):
        raise UserError(f'gelu: approximate must be "none" or "tanh", got {approximate!r}')
    return (GELU if approximate == "none" else GELUTanh).apply(floating(x))


class Clamp(Op):
    def forward(self, x, *, low, high):
        self.saved = x, *(torch.full((), bound, dtype=x.dtype, device=x.device) for bound in (low, high))
        return _apply("clamp", *self.saved)

    def backward(self, dy):
        return _apply("clamp_backward", dy, *self.saved)


def clamp(x: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    """x limited to [min, max]; the gradient is 0 outside. At least one bound; floating-point x."""
    if min is None and max is None:
        raise UserError("clamp: give min or max or both, got neither")
    low, high = -float("inf") if min is None else min, float("inf") if max is None else max
    return Clamp.apply(floating(x), low=low, high=high)
