"""Softmax, log-softmax and log-sum-exp over the last dimension, each row in one visit to the cache."""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import types
from numba.extending import overload

from .. import memory
from .compiled import FAST, compiled, exp, inlined, maximum
from .rows import as_rows, as_vector, launch_rows

_ZERO, _LOWEST = np.float32(0), np.float32(-87)  # where the float32 exp stops falling


def exp_to_zero(x):
    """e**x that reaches 0 in float32 too, so that a masked element (-inf) weighs nothing."""
    return math.exp(x)


@overload(exp_to_zero, jit_options={"fastmath": FAST, "error_model": "numpy"})
def _exp_to_zero_overload(x):
    if x != types.float32:
        return lambda x: math.exp(x)

    def exp_to_zero32(x):
        e = exp(x)
        return _ZERO if x < _LOWEST else e

    return exp_to_zero32


@inlined
def row_top(row):
    """The largest element."""
    top = row[0]
    for j in range(row.shape[0]):
        top = maximum(top, row[j])
    return top


@compiled
def _softmax_rows(x, y):
    for i in range(x.shape[0]):
        row, out = x[i], y[i]
        top = row_top(row)
        total = x.dtype.type(0)
        for j in range(row.shape[0]):
            e = exp_to_zero(row[j] - top)
            out[j] = e
            total += e
        scale = x.dtype.type(1) / total
        for j in range(row.shape[0]):
            out[j] *= scale


@compiled
def _softmax_backward_rows(dy, y, dx):
    for i in range(y.shape[0]):
        dot = y.dtype.type(0)
        for j in range(y.shape[1]):
            dot += dy[i, j] * y[i, j]
        for j in range(y.shape[1]):
            dx[i, j] = y[i, j] * (dy[i, j] - dot)


@compiled
def _log_softmax_rows(x, y):
    for i in range(x.shape[0]):
        row = x[i]
        top = row_top(row)
        total = x.dtype.type(0)
        for j in range(row.shape[0]):
            y[i, j] = row[j] - top  # stored, as in one expression the compiler would add up top and shift first
            total += exp_to_zero(row[j] - top)
        shift = np.log(total)
        for j in range(row.shape[0]):
            y[i, j] -= shift


@compiled
def _log_softmax_backward_rows(dy, y, dx):
    for i in range(y.shape[0]):
        total = y.dtype.type(0)
        for j in range(y.shape[1]):
            total += dy[i, j]
        for j in range(y.shape[1]):
            dx[i, j] = dy[i, j] - exp_to_zero(y[i, j]) * total


@compiled
def _logsumexp_rows(x, lse):
    for i in range(x.shape[0]):
        row = x[i]
        top = row_top(row)
        if np.isinf(top):
            lse[i] = top
            continue
        total = x.dtype.type(0)
        for j in range(row.shape[0]):
            total += exp_to_zero(row[j] - top)
        lse[i] = top + np.log(total)


def _by_rows(loop, *tensors: torch.Tensor) -> torch.Tensor:
    """loop(*inputs, result) over blocks of rows."""
    out = memory.empty(tensors[0].shape, tensors[0].dtype)
    rows = [as_rows(t) for t in (*tensors, out)]
    launch_rows(lambda part: loop(*(r[part] for r in rows)), *rows[0].shape)
    return out


def forward(x: torch.Tensor) -> torch.Tensor:
    return _by_rows(_softmax_rows, x)


def backward(dy: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return _by_rows(_softmax_backward_rows, dy, y)


def log_forward(x: torch.Tensor) -> torch.Tensor:
    return _by_rows(_log_softmax_rows, x)


def log_backward(dy: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return _by_rows(_log_softmax_backward_rows, dy, y)


def logsumexp(x: torch.Tensor) -> torch.Tensor:
    lse = memory.empty(x.shape[:-1], x.dtype)
    rows, result = as_rows(x), as_vector(lse)
    launch_rows(lambda part: _logsumexp_rows(rows[part], result[part]), *rows.shape)
    return lse
