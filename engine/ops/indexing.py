"""Parts of tensors by position: slices, indices, masks, gather and embedding."""

from __future__ import annotations

import numpy as np
import torch

import kernels

from ..errors import UserError
from ..autograd import Op, Tensor
from .checks import as_ids, check_range, dimension


class Slice(Op):
    def forward(self, x, *, index):
        self.index, self.shape = index, x.shape
        return x[index]

    def backward(self, dy):
        return kernels.indexing.put(dy, self.index, self.shape)


class Take(Op):
    def forward(self, x, *, index):
        self.index, self.shape = index, x.shape
        return kernels.indexing.take(x, index)

    def backward(self, dy):
        return kernels.indexing.take_backward(dy, self.index, self.shape)


def index(x: Tensor, key) -> Tensor:
    """x[key]: whole numbers, slices, ... and None give views; integer and boolean tensors pick elements.

    Where an element is picked several times its gradients add up. Integer arrays broadcast against each other and
    boolean arrays match the dimensions they stand for, by NumPy's rules; whole numbers come before arrays, as in torch.
    On a GPU a position out of range picks NaN, or the largest whole number, instead of raising IndexError.
    """
    parts = tuple(_part(part) for part in (key if isinstance(key, tuple) else (key,)))
    if not any(isinstance(part, torch.Tensor) for part in parts):
        return Slice.apply(x, index=parts)
    used = sum(_consumed(part) for part in parts)
    if used > x.ndim:
        raise UserError(f"index: a tensor of {x.ndim} dimensions takes at most {x.ndim} indices, got {used}")
    if any(isinstance(part, (int, np.integer)) for part in parts):
        x, parts = _whole_numbers_first(x, parts)
    try:
        return Take.apply(x, index=tuple(_beside(x, part) for part in parts))
    except IndexError as error:
        raise IndexError(f"{error} (indexing shape {x.shape})") from None


def _beside(x: Tensor, part):
    """Arrays on the device of x."""
    return part.to(x.device) if isinstance(part, torch.Tensor) else part


def _consumed(part) -> int:
    """How many dimensions of the tensor an index part stands for."""
    if part is None or part is Ellipsis:
        return 0
    return part.ndim if isinstance(part, torch.Tensor) and part.dtype == torch.bool else 1


def _whole_numbers_first(x: Tensor, parts: tuple) -> tuple[Tensor, tuple]:
    """Like torch, and unlike NumPy, a whole number takes its slice before arrays pick elements."""
    first, rest = [], []
    for part in parts:
        if isinstance(part, torch.Tensor):
            first += [slice(None)] * _consumed(part)
            rest.append(part)
        else:
            first.append(part)
            if not isinstance(part, (int, np.integer)):
                rest.append(part if part is Ellipsis else slice(None))
    return Slice.apply(x, index=tuple(first)), tuple(rest)


def _part(part):
    """An index part as None, ..., a whole number, a slice, or a torch tensor of int64 or bool."""
    if part is None or part is Ellipsis or (isinstance(part, (int, np.integer)) and not isinstance(part, bool)):
        return part
    if isinstance(part, slice):
        if part.step is not None and part.step < 1:
            raise UserError(f"index: the step of a slice must be positive, got {part.step}")
        return part
    buffer = part.data if isinstance(part, Tensor) else part
    if not isinstance(buffer, torch.Tensor):
        buffer = torch.from_numpy(np.asarray(buffer))
    if buffer.dtype == torch.bool:
        return buffer
    buffer = as_ids(buffer)
    return buffer if buffer.ndim or buffer.device.type != "cpu" else buffer.item()


class Gather(Op):
    def forward(self, x, *, index, dim):
        self.index, self.dim, self.shape = index, dim, x.shape
        return kernels.indexing.gather(x, index, dim)

    def backward(self, dy):
        return kernels.indexing.gather_backward(dy, self.index, self.dim, self.shape)


def gather(x: Tensor, dim: int, index) -> Tensor:
    """Elements picked along one dimension: y[i][j][k] = x[i][index[i][j][k]][k] for dim 1.

    An index that lies on a GPU is not checked: out of range it picks NaN, or the largest whole number.

    Args:
        index: int64, as many dimensions as x, and none larger than that of x except `dim`.
    """
    index, dim = as_ids(index), dimension("gather", dim, x.ndim)
    if index.ndim != x.ndim or any(n > m for i, (n, m) in enumerate(zip(index.shape, x.shape)) if i != dim):
        raise UserError(f"gather: the index needs {x.ndim} dimensions, none but {dim} larger than that of x, "
                        f"got {tuple(index.shape)} for x {x.shape}")
    check_range("gather", index, x.shape[dim])
    return Gather.apply(x, index=_beside(x, index), dim=dim)


class Embedding(Op):
    def forward(self, weight, *, ids):
        self.ids, self.rows = ids, weight.shape[0]
        return kernels.embedding.forward(ids, weight)

    def backward(self, dy):
        return kernels.embedding.backward(dy, self.ids, self.rows, self.gradient_of(0))


def embedding(ids, weight: Tensor) -> Tensor:
    """Rows of a table.

    Args:
        ids: whole numbers (...), each in [0, rows); where they lie on a GPU, another one gives a row of NaN.
        weight: (rows, d).

    Returns:
        (..., d).
    """
    ids = as_ids(ids)
    if weight.ndim != 2:
        raise UserError(f"embedding: the weight must be (rows, features), got shape {weight.shape}")
    check_range("embedding", ids, weight.shape[0])
    return Embedding.apply(weight, ids=_beside(weight, ids))
