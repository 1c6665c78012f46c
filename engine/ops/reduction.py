"""Sums, means, extremes and variance over any dimensions."""

from __future__ import annotations

import math
from typing import Sequence

import torch

import kernels

from ..errors import UserError
from ..autograd import Op, Tensor
from .checks import dimension, dimensions, floating, to
from .indexing import gather
from .layout import reshape

_apply = kernels.elementwise.apply


def _result(y: torch.Tensor, dims: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    """Without the reduced dimensions, unless they are kept with size 1."""
    return y if keepdim else y.view([n for i, n in enumerate(y.shape) if i not in dims])


def _number(value: float, like: torch.Tensor) -> torch.Tensor:
    return torch.full((), value, dtype=like.dtype, device=like.device)


class _Reduction(Op):
    """Keeps the reduced dimensions in `self.kept`, the result's shape with 1 in their place."""

    def forward(self, x, *, dims, keepdim, **options):
        self.shape, self.count = x.shape, math.prod(x.shape[d] for d in dims)
        self.kept = [1 if i in dims else n for i, n in enumerate(x.shape)]
        return _result(self.reduce(x, dims, **options), dims, keepdim)

    def reduce(self, x, dims):
        raise NotImplementedError

    def expanded(self, dy):
        return dy.reshape(self.kept).expand(self.shape)


class Sum(_Reduction):
    def reduce(self, x, dims):
        return kernels.reduce.reduce(x, "sum", dims)

    def backward(self, dy):
        return self.expanded(dy)


class Mean(_Reduction):
    def reduce(self, x, dims):
        return _mean(x, dims)

    def backward(self, dy):
        return self.expanded(_apply("div", dy, _number(self.count, dy)))


def _mean(x: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    total = kernels.reduce.reduce(x, "sum", dims)
    return _apply("div", total, _number(math.prod(x.shape[d] for d in dims), x))


class Extreme(_Reduction):
    """The largest or smallest; elements that are equally extreme share the gradient."""

    def reduce(self, x, dims, name):
        self.dims = dims
        y = kernels.reduce.reduce(x, name, dims)
        self.saved = x, y
        return y

    def backward(self, dy):
        x, y = self.saved
        chosen = kernels.elementwise.cast(_apply("eq", x, y), x.dtype)
        share = _apply("div", dy.reshape(self.kept), kernels.reduce.reduce(chosen, "sum", self.dims))
        return _apply("mul", chosen, share)


class Var(_Reduction):
    def reduce(self, x, dims, correction):
        mean = _mean(x, dims)
        self.saved, self.divisor = (x, mean), _number(self.count - correction if self.count > correction else 0, x)
        return _apply("div", kernels.reduce.reduce(_apply("square_difference", x, mean), "sum", dims), self.divisor)

    def backward(self, dy):
        share = _apply("div", dy.reshape(self.kept), self.divisor)
        return _apply("scaled_difference", _apply("add", share, share), *self.saved)


def sum(x: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """The sum over one, several or all dimensions; of booleans, their number."""
    if x.dtype == torch.bool:
        x = to(x, torch.int64)
    return Sum.apply(x, dims=dimensions("sum", dim, x.ndim), keepdim=keepdim)


def mean(x: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """The mean over one, several or all dimensions."""
    return Mean.apply(floating(x), dims=dimensions("mean", dim, x.ndim), keepdim=keepdim)


def var(x: Tensor, dim: int | Sequence[int] | None = None, correction: float = 1, keepdim: bool = False) -> Tensor:
    """The variance over one, several or all dimensions: squared distances from the mean, over n - correction."""
    return Var.apply(floating(x), dims=dimensions("var", dim, x.ndim), keepdim=keepdim, correction=correction)


def amax(x: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """The largest element over one, several or all dimensions; equal ones share the gradient."""
    return _extreme("max", x, dim, keepdim)


def amin(x: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """The smallest element over one, several or all dimensions; equal ones share the gradient."""
    return _extreme("min", x, dim, keepdim)


def _extreme(name: str, x: Tensor, dim, keepdim: bool) -> Tensor:
    dims = dimensions(name, dim, x.ndim)
    _not_empty(name, x, dims)
    return Extreme.apply(x, dims=dims, keepdim=keepdim, name=name)


def _not_empty(name: str, x: Tensor, dims: Sequence[int]) -> None:
    if 0 in (x.shape[d] for d in dims):
        raise UserError(f"{name}: a reduced dimension must not be empty, got shape {x.shape}")


def max(x: Tensor, dim: int | None = None, keepdim: bool = False):
    """The largest of all elements; or, over one dimension, (values, positions of the first largest)."""
    return amax(x) if dim is None else _with_position(argmax, x, dim, keepdim)


def min(x: Tensor, dim: int | None = None, keepdim: bool = False):
    """The smallest of all elements; or, over one dimension, (values, positions of the first smallest)."""
    return amin(x) if dim is None else _with_position(argmin, x, dim, keepdim)


def _with_position(find, x: Tensor, dim: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    if x.ndim == 0:
        return x, find(x)
    positions = find(x, dim, keepdim=True)
    values = gather(x, dim, positions)
    if not keepdim:
        shape = [n for i, n in enumerate(values.shape) if i != dim % x.ndim]
        values, positions = reshape(values, shape), reshape(positions, shape)
    return values, positions


def argmax(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Position (int64) of the first largest element along a dimension, or in the flattened tensor."""
    return _argument("argmax", x, dim, keepdim)


def argmin(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Position (int64) of the first smallest element along a dimension, or in the flattened tensor."""
    return _argument("argmin", x, dim, keepdim)


def _argument(name: str, x: Tensor, dim: int | None, keepdim: bool) -> Tensor:
    if dim is None:
        _not_empty(name, x, range(x.ndim))
        positions = getattr(kernels.reduce, name)(x.data.reshape(1, -1))
        return Tensor(positions.view((1,) * x.ndim if keepdim else ()))
    dim = dimension(name, dim, x.ndim or 1)
    rows = x.data.movedim(dim, -1) if x.ndim else x.data.view(1)
    _not_empty(name, x, [dim] if x.ndim else [])
    positions = getattr(kernels.reduce, name)(rows)
    return Tensor(positions.unsqueeze(dim) if keepdim and x.ndim else positions)
