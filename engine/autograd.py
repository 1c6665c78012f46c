"""Tensor, Op and the backward pass: the whole of automatic differentiation.

A Tensor wraps a buffer (a torch.Tensor, used as memory only). Applying an Op to tensors makes a new tensor that
remembers the Op instance; the instance is the graph node and keeps what its backward needs.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
from typing import Any, Callable

import numpy as np
import torch

import kernels

_state = threading.local()
_sequence = itertools.count()

observer: Callable[..., Any] | None = None
"""When set, called as observer(op, phase, run) with phase "forward" or "backward"; must return run()."""


def grad_enabled() -> bool:
    """Whether operations record the graph in this thread."""
    return getattr(_state, "grad", True)


@contextlib.contextmanager
def _grad_mode(enabled: bool):
    before, _state.grad = grad_enabled(), enabled
    try:
        yield
    finally:
        _state.grad = before


def no_grad():
    """Context manager and decorator under which operations do not record the graph."""
    return _grad_mode(False)


def enable_grad():
    """Context manager under which operations record the graph again."""
    return _grad_mode(True)


class Op:
    """An operation applied once: the node of the graph.

    Subclasses define `forward(self, *buffers, **parameters)`, which returns a buffer or a tuple of buffers and
    stores on `self` what `backward(self, *output_gradients)` needs. Backward returns one gradient buffer per
    input, or None where `self.needs[i]` is False, there is none, or it was added to `self.gradient_of(i)`. A gradient
    it returns may be shared with others, so nothing writes into one in place. Backward runs once: the node is emptied
    afterwards.
    """

    exact = False
    """Whether results and gradients are not rounded to the working precision here, as losses never are."""
    inputs: tuple[Tensor | _Edge | None, ...]
    needs: tuple[bool, ...]
    outputs: list[tuple[torch.Size, torch.dtype, torch.device]]
    pending: dict[Op, _Pending]  # during backward: the gradients on their way

    def forward(self, *buffers, **parameters):
        raise NotImplementedError

    def backward(self, *gradients):
        raise NotImplementedError

    def gradient_of(self, index: int) -> torch.Tensor | None:
        """The gradient so far of input `index`, if that is a leaf that has one: backward may add to it in place and
        return None in its stead."""
        leaf = self.inputs[index] if self.needs[index] else None
        return leaf.grad if isinstance(leaf, Tensor) else None

    def take_arrived(self, index: int) -> torch.Tensor | None:
        """The gradient of input `index` that other users of the same tensor have left so far; backward must then add
        it to its own. A residual stream's gradient passes through a part's first kernel that way, in one pass."""
        edge = self.inputs[index] if self.needs[index] else None
        pending = self.pending.get(edge.op) if isinstance(edge, _Edge) else None
        return pending and pending.give_up(edge.position)

    @classmethod
    def apply(cls, *inputs: Tensor, **parameters):
        """Run the operation on tensors; the results require gradients when recording and any input does."""
        op = cls()
        recording = grad_enabled()
        op.needs = tuple(recording and t.requires_grad for t in inputs)
        recording = any(op.needs)

        def run():
            return op.forward(*(t.data for t in inputs), **parameters)

        result = run() if observer is None else observer(op, "forward", run)
        buffers = result if isinstance(result, tuple) else (result,)
        if not cls.exact:
            for buffer in buffers:
                kernels.rounded(buffer)
        tensors = tuple(Tensor(buffer, requires_grad=recording) for buffer in buffers)
        if recording:
            op.inputs = tuple(_edge(t) if need else None for t, need in zip(inputs, op.needs))
            op.outputs = [(b.shape, b.dtype, b.device) for b in buffers]
            op.sequence = next(_sequence)
            for position, tensor in enumerate(tensors):
                tensor.op, tensor.position = op, position
        return tensors if isinstance(result, tuple) else tensors[0]


class _Edge:
    """Where a gradient goes: to an output of an op. Unlike that output's Tensor it does not hold the values."""

    __slots__ = ("op", "position")

    def __init__(self, op: Op, position: int):
        self.op, self.position = op, position


def _edge(tensor: Tensor) -> Tensor | _Edge:
    return tensor if tensor.op is None else _Edge(tensor.op, tensor.position)


class Tensor:
    """An n-dimensional array that knows how it was computed.

    Args:
        data: the buffer, shared and not copied.
        requires_grad: whether backward should leave a gradient in `grad`. Floating-point buffers only.
    """

    __slots__ = ("data", "grad", "requires_grad", "op", "position", "__weakref__")
    __array_priority__ = 1000  # so that ndarray * Tensor comes to us

    def __init__(self, data: torch.Tensor, requires_grad: bool = False):
        if requires_grad and not data.dtype.is_floating_point:
            raise TypeError(f"only floating-point tensors can require a gradient, got {data.dtype}")
        self.data = data
        self.grad: torch.Tensor | None = None
        self.requires_grad = requires_grad
        self.op: Op | None = None
        self.position = 0

    shape = property(lambda self: tuple(self.data.shape))
    ndim = property(lambda self: self.data.ndim)
    dtype = property(lambda self: self.data.dtype)
    device = property(lambda self: self.data.device)

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        origin = f", op={type(self.op).__name__}" if self.op else ", requires_grad" if self.requires_grad else ""
        return f"Tensor({self.data.tolist() if self.data.numel() <= 16 else '...'}, shape={self.shape}{origin})"

    def item(self) -> float | int | bool:
        """The value of a tensor with one element, as a Python number."""
        return self.data.item()

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array, sharing memory when the tensor is on the CPU; bfloat16, which NumPy does not
        have, as float32."""
        values = self.data.detach().cpu()
        return (values.to(torch.float32) if values.dtype == torch.bfloat16 else values).numpy()

    def detach(self) -> Tensor:
        """The same buffer, without its history."""
        return Tensor(self.data)

    def backward(self, grad: torch.Tensor | None = None) -> None:
        """Add the gradient of this tensor to the `grad` of every leaf it was computed from.

        Args:
            grad: gradient of the final result with respect to this tensor, same shape; may be left out for a
                tensor with one element, where it is 1.
        """
        if not self.requires_grad:
            raise RuntimeError("backward needs a tensor that requires a gradient; this one does not")
        if grad is None:
            if self.data.numel() != 1:
                raise RuntimeError("backward without a gradient needs a tensor with one element, "
                                   f"got shape {self.shape}")
            grad = torch.ones_like(self.data)
        if grad.shape != self.data.shape or grad.dtype != self.data.dtype:
            raise ValueError(f"the gradient must be {self.data.dtype} of shape {self.shape}, "
                             f"got {grad.dtype} of shape {tuple(grad.shape)}")
        run_backward([(self, grad)])


class _Pending:
    """Gradients that have arrived at an op's outputs so far."""

    def __init__(self, op: Op):
        self.op = op
        self.gradients: list[torch.Tensor | None] = [None] * len(op.outputs)
        self.owned = [False] * len(op.outputs)

    def __lt__(self, other: _Pending) -> bool:
        return self.op.sequence > other.op.sequence

    def add(self, position: int, gradient: torch.Tensor) -> None:
        held = self.gradients[position]
        if held is None:
            self.gradients[position] = gradient
        elif self.owned[position]:
            kernels.elementwise.accumulate(held, gradient)
            kernels.rounded(held)
        else:
            self.gradients[position] = kernels.rounded(kernels.elementwise.apply("add", held, gradient))
            self.owned[position] = True

    def give_up(self, position: int) -> torch.Tensor | None:
        gradient, self.gradients[position], self.owned[position] = self.gradients[position], None, False
        return gradient

    def take(self) -> list[torch.Tensor]:
        return [kernels.zeros(*spec) if gradient is None else gradient
                for gradient, spec in zip(self.gradients, self.op.outputs)]


def run_backward(roots: list[tuple[Tensor, torch.Tensor]]) -> None:
    """Backward from several tensors at once, each with its gradient.

    Visits ops from the latest to the earliest, as creation order is a topological order, and frees as it goes.
    """
    pending: dict[Op, _Pending] = {}
    queue: list[_Pending] = []

    def deliver(tensor: Tensor | _Edge, gradient: torch.Tensor) -> None:
        if tensor.op is None:
            if tensor.grad is None:
                tensor.grad = kernels.copy(gradient)
            else:
                kernels.elementwise.accumulate(tensor.grad, gradient)
            return
        if not hasattr(tensor.op, "inputs"):
            raise RuntimeError(f"the graph of {type(tensor.op).__name__} was already freed by an earlier backward")
        entry = pending.get(tensor.op)
        if entry is None:
            entry = pending[tensor.op] = _Pending(tensor.op)
            heapq.heappush(queue, entry)
        entry.add(tensor.position, gradient)

    with no_grad():
        for root, grad in roots:
            deliver(root, grad)
        while queue:
            entry = heapq.heappop(queue)
            op = entry.op
            del pending[op]
            gradients = entry.take()
            del entry
            op.pending = pending
            if observer is None:
                result = op.backward(*gradients)
            else:
                result = observer(op, "backward", lambda: op.backward(*gradients))
            del gradients
            inputs, needs, exact = op.inputs, op.needs, op.exact
            op.__dict__.clear()
            results = list(result) if isinstance(result, tuple) else [result]
            del result
            for index in range(len(inputs)):
                gradient, results[index] = results[index], None
                if needs[index] and gradient is not None:
                    deliver(inputs[index], gradient if exact else kernels.rounded(gradient))


def tensor(values, dtype: torch.dtype | None = None, requires_grad: bool = False) -> Tensor:
    """A tensor from numbers, nested lists, a NumPy array or a torch tensor (floats become float32 unless `dtype`
    says otherwise; NumPy and torch arrays keep their dtype)."""
    if isinstance(values, Tensor):
        values = values.data
    if isinstance(values, torch.Tensor):
        buffer = values.detach()
    else:
        array = np.asarray(values)
        if array.dtype == np.float64 and not isinstance(values, (np.ndarray, np.generic)):
            array = array.astype(np.float32)
        buffer = torch.from_numpy(np.array(array, order="C", copy=True))
    if dtype is not None:
        buffer = buffer.to(dtype)
    return Tensor(buffer, requires_grad)
