"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): keep a section's inputs, run it again in backward."""

from __future__ import annotations

from typing import Callable

from . import random
from .autograd import Op, Tensor, enable_grad, no_grad, run_backward


class _Recompute(Op):
    def forward(self, *buffers, function):
        self.function, self.buffers, self.random = function, buffers, random.state()
        with no_grad():
            result = function(*map(Tensor, buffers))
        return tuple(t.data for t in result) if isinstance(result, tuple) else result.data

    def backward(self, *gradients):
        inputs = [Tensor(buffer, requires_grad=need) for buffer, need in zip(self.buffers, self.needs)]
        with enable_grad(), random.restored(self.random):
            result = self.function(*inputs)
            results = result if isinstance(result, tuple) else (result,)
            run_backward([pair for pair in zip(results, gradients) if pair[0].requires_grad])
        return tuple(t.grad for t in inputs)


def recompute(function: Callable, *inputs: Tensor):
    """function(*inputs), without keeping what its operations would save for backward: it runs once more there.

    Args:
        function: takes and returns tensors (one, or a tuple); may use parameters, which get their gradients.
        inputs: at least one must require a gradient, or nothing before or inside the section gets one.
    """
    return _Recompute.apply(*inputs, function=function)
