"""Reductions over any dimensions.

A reduction is taken over one run of adjacent dimensions at a time, as the middle of (outer, n, inner). Long runs are
cut into pieces whose results are reduced again: all threads have work, and rounding errors of sums grow slowly.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from .. import memory
from .rows import STEP, launch_rows

NARROW = 16  # fewer inner elements than this are brought to the outside: NumPy is slow on short inner loops
FEW = 8  # fewer blocks than this are not enough to share out evenly
PIECE = 32  # elements added one after the other; a longer chain would lose digits

_FUNCTIONS = {"sum": np.add, "max": np.maximum, "min": np.minimum}


def reduce(x: torch.Tensor, name: str, dims: tuple[int, ...]) -> torch.Tensor:
    shape = list(x.shape)
    for first, stop in _runs(dims):
        x = _reduce_run(x.contiguous(), name, first, stop)
    return x.view([1 if i in dims else extent for i, extent in enumerate(shape)])


def _runs(dims: tuple[int, ...]) -> list[tuple[int, int]]:
    """Adjacent dimensions as (first, stop), the last first, so that earlier numbers stay valid."""
    runs: list[tuple[int, int]] = []
    for dim in sorted(dims, reverse=True):
        if runs and runs[-1][0] == dim + 1:
            runs[-1] = (dim, runs[-1][1])
        else:
            runs.append((dim, dim + 1))
    return runs


def _reduce_run(x: torch.Tensor, name: str, first: int, stop: int) -> torch.Tensor:
    outer, n, inner = (math.prod(part) for part in (x.shape[:first], x.shape[first:stop], x.shape[stop:]))
    block = x.view(outer, n, inner)
    if 1 < inner < NARROW:
        block = block.transpose(1, 2).contiguous().view(outer * inner, n, 1)
    return _reduce_middle(block, name).view(*x.shape[:first], *(1,) * (stop - first), *x.shape[stop:])


def _reduce_middle(x: torch.Tensor, name: str) -> torch.Tensor:
    """(outer, n, inner) -> (outer, inner)."""
    outer, n, inner = x.shape
    piece = STEP if inner == 1 else PIECE
    if n <= piece:
        out = memory.empty((outer, inner), x.dtype)
        _reduce_axis(name, x.numpy(), 1, out.numpy())
        return out
    array, whole = x.numpy(), n // piece
    partial = memory.empty((outer, -(-n // piece), inner), x.dtype)
    parts = partial.numpy()
    pieces = array[:, : whole * piece].reshape(outer, whole, piece, inner)
    if outer < FEW:
        for i in range(outer):
            _reduce_axis(name, pieces[i], 1, parts[i, :whole])
    else:
        _reduce_axis(name, pieces, 2, parts[:, :whole])
    if whole * piece < n:
        _reduce_axis(name, array[:, whole * piece:], 1, parts[:, whole])
    return _reduce_middle(partial, name)


def _reduce_axis(name: str, array: np.ndarray, axis: int, out: np.ndarray) -> None:
    """Over an axis between the first and the last, in blocks of the first, or of the last if the first is short."""
    function, initial = _FUNCTIONS[name], array.dtype.type(0) if name == "sum" else None
    if len(array) >= FEW or array.shape[-1] == 1:
        launch_rows(lambda part: function.reduce(array[part], axis=axis, out=out[part], initial=initial),
                    len(array), array[0].size if len(array) else 0)
    else:
        launch_rows(lambda part: function.reduce(array[..., part], axis=axis, out=out[..., part], initial=initial),
                    array.shape[-1], math.prod(array.shape[:-1]))


def argmax(x: torch.Tensor) -> torch.Tensor:
    return _argument(x, np.argmax)


def argmin(x: torch.Tensor) -> torch.Tensor:
    return _argument(x, np.argmin)


def _argument(x: torch.Tensor, function) -> torch.Tensor:
    out = memory.empty(x.shape[:-1], torch.int64)
    rows, result = x.contiguous().view(-1, x.shape[-1]).numpy(), out.view(-1).numpy()
    launch_rows(lambda part: function(rows[part], axis=1, out=result[part]), *rows.shape)
    return out
