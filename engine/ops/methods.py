"""Operators and methods of Tensor, by the names that torch uses."""

from __future__ import annotations

import numpy as np
import torch

from ..autograd import Tensor
from . import checks, elementwise, indexing, layout, probability, product, reduction, unary

_NUMBERS = (int, float, np.ndarray, np.generic, torch.Tensor, Tensor)


def _operator(function, swapped: bool = False):
    """A binary operator that leaves what is neither tensor nor number to the other side."""

    def method(self, other):
        if not isinstance(other, _NUMBERS):
            return NotImplemented
        return function(other, self) if swapped else function(self, other)

    return method


def attach() -> None:
    """Give Tensor its operators and methods."""
    for name, function in {"add": elementwise.add, "sub": elementwise.sub, "mul": elementwise.mul,
                           "truediv": elementwise.div, "pow": elementwise.pow, "matmul": product.matmul}.items():
        setattr(Tensor, f"__{name}__", _operator(function))
        setattr(Tensor, f"__r{name}__", _operator(function, swapped=True))
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(Tensor, f"__{name}__", _operator(getattr(elementwise, name)))
        setattr(Tensor, name, getattr(elementwise, name))
    Tensor.__hash__ = object.__hash__  # by identity: == compares elements
    Tensor.__neg__, Tensor.__abs__, Tensor.__invert__ = unary.neg, unary.abs, _invert
    Tensor.__getitem__ = indexing.index
    Tensor.__iter__ = lambda self: iter(layout.unbind(self))
    Tensor.__bool__ = lambda self: bool(self.item())
    Tensor.__float__ = lambda self: float(self.item())
    Tensor.__int__ = lambda self: int(self.item())
    for module, names in {
        elementwise: "add sub mul div pow maximum minimum",
        unary: "neg abs exp log sqrt tanh sigmoid relu clamp",
        reduction: "sum mean var max min amax amin argmax argmin",
        probability: "softmax log_softmax logsumexp",
        product: "matmul",
        layout: "reshape view flatten permute transpose expand squeeze unsqueeze contiguous split chunk unbind",
        indexing: "gather",
        checks: "to",
    }.items():
        for name in names.split():
            setattr(Tensor, name, getattr(module, name))
    Tensor.T = property(lambda self: layout.permute(self, tuple(reversed(range(self.ndim)))))
    Tensor.mT = property(lambda self: layout.transpose(self, -2, -1))
    Tensor.numel = lambda self: self.data.numel()
    Tensor.tolist = lambda self: self.data.tolist()


def _invert(x: Tensor) -> Tensor:
    if x.dtype != torch.bool:
        raise TypeError(f"~ negates boolean tensors, got {x.dtype}")
    return elementwise.logical_not(x)
