"""The common layers."""

from __future__ import annotations

import kernels

from . import init, ops
from .module import Module, Parameter
from .autograd import Tensor


class Linear(Module):
    """y = x W^T, without bias.

    Args:
        d_in, d_out: features in and out; the weight is (d_out, d_in), drawn from N(0, 1 / d_in).
        rng: numpy.random.Generator for the initial values.
    """

    def __init__(self, d_in: int, d_out: int, rng=None):
        self.weight = Parameter(kernels.empty((d_out, d_in)))
        init.normal_(self.weight, d_in**-0.5, rng)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return ops.linear(x, self.weight, residual)


class Embedding(Module):
    """Rows of a (n, d) table, drawn from N(0, 1); no weight decay."""

    def __init__(self, n: int, d: int, rng=None):
        self.weight = Parameter(kernels.empty((n, d)), decay=False)
        init.normal_(self.weight, 1.0, rng)

    def forward(self, ids) -> Tensor:
        return ops.embedding(ids, self.weight)


class RMSNorm(Module):
    """y = x / sqrt(mean(x^2) + eps) * gain over the last dimension of d features (arXiv 1910.07467)."""

    def __init__(self, d: int, eps: float = 1e-6):
        self.gain, self.eps = Parameter(kernels.empty((d,))), eps
        init.ones_(self.gain)

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.gain, self.eps)


class Dropout(Module):
    """In training, zeroes each element with probability p and scales the others by 1 / (1 - p)."""

    def __init__(self, p: float):
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.p, self.training)
