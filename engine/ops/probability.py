"""Softmax, log-softmax, log-sum-exp and cross-entropy."""

from __future__ import annotations

import torch

import kernels

from ..errors import UserError
from ..autograd import Op, Tensor
from .checks import as_ids, dimension, floating
from .fused import loss_settings


class _AlongDim(Op):
    """An operation on the rows of one dimension, which is moved to the end and back."""

    def forward(self, x, *, dim):
        self.dim = dim
        self.y = self.rows(x.movedim(dim, -1) if x.ndim else x.view(1, 1))
        return self.y.movedim(-1, dim) if x.ndim else self.y.view(())

    def backward(self, dy):
        dx = self.rows_backward(dy.movedim(self.dim, -1) if dy.ndim else dy.reshape(1, 1), self.y)
        return dx.movedim(-1, self.dim) if dy.ndim else dx.view(())


class Softmax(_AlongDim):
    rows, rows_backward = staticmethod(kernels.softmax.forward), staticmethod(kernels.softmax.backward)


class LogSoftmax(_AlongDim):
    rows, rows_backward = staticmethod(kernels.softmax.log_forward), staticmethod(kernels.softmax.log_backward)


class LogSumExp(Op):
    def forward(self, x, *, dim, keepdim):
        lse = kernels.softmax.logsumexp(x.movedim(dim, -1)).unsqueeze(dim)
        self.saved = x, lse
        return lse if keepdim else lse.squeeze(dim)

    def backward(self, dy):
        x, lse = self.saved
        return kernels.elementwise.apply("exp_shifted", dy.reshape(lse.shape), x, lse)


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """e^x over the sum of e^x along a dimension; an element of -inf gets 0."""
    return Softmax.apply(floating(x), dim=_row_dimension("softmax", x, dim))


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """The logarithm of softmax along a dimension."""
    return LogSoftmax.apply(floating(x), dim=_row_dimension("log_softmax", x, dim))


def logsumexp(x: Tensor, dim: int = -1, keepdim: bool = False) -> Tensor:
    """log of the sum of e^x along a dimension, without overflow."""
    if x.ndim == 0:
        raise UserError("logsumexp: x needs at least one dimension, got none")
    return LogSumExp.apply(floating(x), dim=_row_dimension("logsumexp", x, dim), keepdim=keepdim)


def _row_dimension(name: str, x: Tensor, dim: int) -> int:
    dim = dimension(name, dim, max(x.ndim, 1))
    if x.ndim and x.shape[dim] == 0:
        raise UserError(f"{name}: dimension {dim} must not be empty, got shape {x.shape}")
    return dim


class CrossEntropy(Op):
    exact = True

    def forward(self, logits, *, targets, normalizer, ignore_index, z_loss, softcap):
        settings = normalizer, ignore_index, z_loss, softcap
        loss, top, total = kernels.cross_entropy.forward(logits, targets, *settings)
        self.saved = logits, targets, top, total, *settings
        return loss

    def backward(self, dloss):
        return kernels.cross_entropy.backward(dloss, *self.saved)


def cross_entropy(logits: Tensor, targets, ignore_index: int = -100, normalizer: float | torch.Tensor | None = None,
                  z_loss: float = 0.0, softcap: float | None = None) -> Tensor:
    """Sum of -log softmax(logits)[target] over the targets that count, divided by `normalizer`.

    Args:
        logits: (..., classes): the classes come last, unlike in torch for more than two dimensions.
        targets: int64 (...); rows whose target is `ignore_index` count nothing.
        normalizer: divisor, a number or a tensor with one element; the number of targets that count when left out, so
            that the result is their mean.
        z_loss: adds z_loss log(sum e^logit)^2 to each row's loss (PaLM: arXiv 2204.02311, section 5).
        softcap: replaces logits by softcap tanh(logits / softcap) (Gemma 2: arXiv 2408.00118, section 2).

    Returns:
        A scalar, in nats; 0 when no target counts.
    """
    logits, targets = floating(logits), as_ids(targets)
    if logits.ndim == 0 or tuple(targets.shape) != logits.shape[:-1] or logits.shape[-1] == 0:
        raise UserError("cross_entropy: logits must be (..., classes) and targets (...), "
                        f"got {logits.shape} and {tuple(targets.shape)}")
    settings = loss_settings("cross_entropy", targets, logits.shape[-1], ignore_index, normalizer, z_loss, softcap)
    return CrossEntropy.apply(logits, **settings)
