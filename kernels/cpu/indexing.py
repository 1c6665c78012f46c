"""Picking elements by position and, for the gradient, adding values up at positions."""

from __future__ import annotations

import math

import numpy as np
import torch

from .. import memory
from .compiled import compiled
from .rows import as_vector


@compiled
def _add_at(positions, values, total):
    for i in range(positions.shape[0]):
        total[positions[i]] += values[i]


def _numpy(index: tuple) -> tuple:
    return tuple(part.numpy() if isinstance(part, torch.Tensor) else part for part in index)


def take(x: torch.Tensor, index: tuple) -> torch.Tensor:
    return torch.from_numpy(np.asarray(x.numpy()[_numpy(index)], order="C"))


def take_backward(dy: torch.Tensor, index: tuple, shape: tuple[int, ...]) -> torch.Tensor:
    index = _numpy(index)
    places = [place[index] for place in _places(shape)]
    return _scatter(dy, sum(places, np.zeros(dy.shape, np.int64)), shape)


def gather(x: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    out = memory.empty(index.shape, x.dtype)
    cropped = x.numpy()[tuple(slice(None) if i == dim else slice(n) for i, n in enumerate(index.shape))]
    out.numpy()[...] = np.take_along_axis(cropped, index.numpy(), dim)
    return out


def gather_backward(dy: torch.Tensor, index: torch.Tensor, dim: int, shape: tuple[int, ...]) -> torch.Tensor:
    cropped = tuple(slice(n) for n in index.shape)
    places = [index.numpy() * math.prod(shape[dim + 1:]) if i == dim else
              place[tuple(slice(1) if j == dim else part for j, part in enumerate(cropped))]
              for i, place in enumerate(_places(shape))]
    return _scatter(dy, sum(places, np.zeros(dy.shape, np.int64)), shape)


def _places(shape: tuple[int, ...]) -> list[np.ndarray]:
    """For each dimension an array of `shape`, without memory of its own, of what its index adds to a flat position."""
    return [np.broadcast_to(np.arange(n, dtype=np.int64).reshape(-1, *(1,) * (len(shape) - i - 1))
                            * math.prod(shape[i + 1:]), shape) for i, n in enumerate(shape)]


def _scatter(values: torch.Tensor, positions: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    total = memory.zeros(shape, values.dtype)
    _add_at(positions.reshape(-1), as_vector(values), as_vector(total))
    return total


def cat(*tensors: torch.Tensor, dim: int) -> torch.Tensor:
    sizes = [t.shape[dim] for t in tensors]
    shape = list(tensors[0].shape)
    shape[dim] = sum(sizes)
    out = memory.empty(shape, tensors[0].dtype, tensors[0].device)
    for part, tensor in zip(out.split(sizes, dim), tensors):
        part.copy_(tensor)
    return out


def put(x: torch.Tensor, index: tuple, shape: tuple[int, ...]) -> torch.Tensor:
    out = memory.zeros(shape, x.dtype, x.device)
    out[index].copy_(x)
    return out
