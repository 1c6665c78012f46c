"""Normalisation over the last dimension, and dropout."""

from __future__ import annotations

import math

import torch

import kernels

from .. import random
from ..errors import UserError
from ..autograd import Op, Tensor


class RMSNorm(Op):
    def forward(self, x, gain, *, eps):
        y, rstd = kernels.rms_norm.forward(x, gain, eps)
        self.saved = x, gain, rstd
        return y

    def backward(self, dy):
        return kernels.rms_norm.backward(dy, *self.saved)


class AddRMSNorm(Op):
    def forward(self, x, residual, gain, *, eps):
        total, y, rstd = kernels.rms_norm.add_forward(x, residual, gain, eps)
        self.saved = total, gain, rstd
        return total, y

    def backward(self, dtotal, dy):
        dx, dgain = kernels.rms_norm.add_backward(dy, dtotal, *self.saved)
        return dx, dx, dgain


class LayerNorm(Op):
    def forward(self, x, gain, bias, *, eps):
        y, *statistics = kernels.layer_norm.forward(x, gain, bias, eps)
        self.saved = x, gain, *statistics
        return y

    def backward(self, dy):
        return kernels.layer_norm.backward(dy, *self.saved)


def rms_norm(x: Tensor, gain: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """y = x / sqrt(mean(x^2) + eps) * gain over the last dimension (arXiv 1910.07467).

    Args:
        x: (..., d).
        gain: (d,); ones when left out.
    """
    return RMSNorm.apply(x, _vector("rms_norm", "gain", gain, x, 1.0), eps=eps)


def add_rms_norm(x: Tensor, residual: Tensor, gain: Tensor | None = None,
                 eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """(total, y) with total = x + residual and y = rms_norm(total): a residual stream and the norm that reads it.

    Args:
        x, residual: (..., d).
        gain: (d,); ones when left out.
    """
    gain = _vector("add_rms_norm", "gain", gain, x, 1.0)
    if residual.shape != x.shape or residual.dtype != x.dtype:
        raise UserError(f"add_rms_norm: the residual must be {x.dtype} of shape {x.shape} as x is, "
                        f"got {residual.dtype} of shape {residual.shape}")
    return AddRMSNorm.apply(x, residual, gain, eps=eps)


def layer_norm(x: Tensor, gain: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """y = (x - mean) / sqrt(variance + eps) * gain + bias over the last dimension (arXiv 1607.06450).

    Args:
        x: (..., d).
        gain, bias: (d,); ones and zeros when left out.
    """
    gain, bias = _vector("layer_norm", "gain", gain, x, 1.0), _vector("layer_norm", "bias", bias, x, 0.0)
    return LayerNorm.apply(x, gain, bias, eps=eps)


def _vector(name: str, role: str, vector: Tensor | None, x: Tensor, value: float) -> Tensor:
    """The vector after a check, or one that holds `value` everywhere."""
    if x.ndim == 0 or not x.dtype.is_floating_point:
        raise UserError(f"{name}: x must be floating-point with at least one dimension, "
                        f"got {x.dtype} of shape {x.shape}")
    if vector is None:
        return Tensor(torch.full(x.shape[-1:], value, dtype=x.dtype, device=x.device))
    if vector.shape != x.shape[-1:] or vector.dtype != x.dtype:
        raise UserError(f"{name}: the {role} must be {x.dtype} of shape {x.shape[-1:]}, the last dimension of x, "
                        f"got {vector.dtype} of shape {vector.shape}")
    return vector


class Dropout(Op):
    def forward(self, x, *, p, stream):
        self.p, self.stream = p, stream
        return kernels.dropout.apply(x, p, *stream)

    def backward(self, dy):
        return kernels.dropout.apply(dy, self.p, *self.stream)


def dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """In training, zeroes each element with probability p and scales the others by 1 / (1 - p).

    The mask comes from `engine.random`: it depends on the seed, the number of the call in this forward pass and the
    absolute position of a token, not on how a batch is cut.

    Args:
        x: (B, T, ...), or (tokens, features), or (tokens,): tokens in order, each with the same number of elements.
    """
    if not 0 <= p <= 1:
        raise UserError(f"dropout: p must lie in [0, 1], got {p}")
    if not training or p == 0:
        return x
    return Dropout.apply(x, p=p, stream=random.next_stream(math.prod(x.shape[min(2, x.ndim - 1):]) if x.ndim else 1))
