"""Embedding lookup, and its gradient by adding rows in the order of the ids: no atomics, the same sum every time."""

from __future__ import annotations

import torch

from .. import memory
from .compiled import compiled
from .gemm import blocks
from .launch import launch, threads
from .rows import as_rows, as_vector


@compiled
def _gather(ids, weight, out):
    for i in range(ids.shape[0]):
        row, source = out[i], weight[ids[i]]
        for j in range(row.shape[0]):
            row[j] = source[j]


@compiled
def _scatter(ids, dout, dweight, start, stop):
    for i in range(ids.shape[0]):
        row, source = dweight[ids[i]][start:stop], dout[i, start:stop]
        for j in range(row.shape[0]):
            row[j] += source[j]


def forward(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    out = memory.empty((*ids.shape, weight.shape[1]), weight.dtype)
    rows, flat, table = as_rows(out), as_vector(ids), as_rows(weight)
    n = 1024
    launch(lambda block: _gather(flat[block * n: block * n + n], table, rows[block * n: block * n + n]),
           blocks(len(flat), n))
    return out


def backward(dout: torch.Tensor, ids: torch.Tensor, rows: int, into: torch.Tensor | None = None) -> torch.Tensor | None:
    width = dout.shape[-1]
    dweight = memory.zeros((rows, width), dout.dtype) if into is None else into
    flat, grads, table = as_vector(ids), as_rows(dout), dweight.numpy()
    columns = blocks(width, threads())
    launch(lambda block: _scatter(flat, grads, table, block * columns, min(block * columns + columns, width)),
           blocks(width, columns))
    return dweight if into is None else None
