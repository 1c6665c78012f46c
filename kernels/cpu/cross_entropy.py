"""Cross-entropy of logits against target classes: the log-softmax is never stored."""

from __future__ import annotations

import numpy as np
import torch

from .. import memory
from .compiled import compiled
from .rows import as_rows, as_vector, launch_rows
from .softmax import exp_to_zero, row_top


@compiled
def _forward_rows(logits, targets, ignore_index, tops, totals, losses):
    """Each row's largest logit, its sum of exp(logit - largest), and its loss."""
    for i in range(logits.shape[0]):
        row = logits[i]
        top = row_top(row)
        total = logits.dtype.type(0)
        for j in range(row.shape[0]):
            total += exp_to_zero(row[j] - top)
        tops[i], totals[i] = top, total
        losses[i] = 0
        if targets[i] != ignore_index:
            losses[i] = np.float64(top) - np.float64(row[targets[i]]) + np.log(np.float64(total))


@compiled
def _backward_rows(logits, targets, ignore_index, tops, totals, scale, dlogits):
    for i in range(logits.shape[0]):
        row, out = logits[i], dlogits[i]
        if targets[i] == ignore_index:
            for j in range(row.shape[0]):
                out[j] = 0
            continue
        top, share = tops[i], scale / totals[i]
        for j in range(row.shape[0]):
            out[j] = exp_to_zero(row[j] - top) * share
        out[targets[i]] -= scale


def forward(logits: torch.Tensor, targets: torch.Tensor, normalizer: float,
            ignore_index: int = -100) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    top, total = (memory.empty(logits.shape[:-1], logits.dtype) for _ in range(2))
    rows, classes, tops, totals = as_rows(logits), as_vector(targets), as_vector(top), as_vector(total)
    losses = np.empty(len(rows))
    launch_rows(lambda part: _forward_rows(rows[part], classes[part], ignore_index, tops[part], totals[part],
                                           losses[part]), *rows.shape)
    return torch.tensor(losses.sum() / normalizer, dtype=logits.dtype), top, total


def backward(dloss: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor, top: torch.Tensor, total: torch.Tensor,
             normalizer: float, ignore_index: int = -100) -> torch.Tensor:
    dlogits = memory.empty(logits.shape, logits.dtype)
    rows, classes, out = as_rows(logits), as_vector(targets), as_rows(dlogits)
    tops, totals = as_vector(top), as_vector(total)
    scale = rows.dtype.type(dloss.item() / normalizer)
    launch_rows(lambda part: _backward_rows(rows[part], classes[part], ignore_index, tops[part], totals[part], scale,
                                            out[part]), *rows.shape)
    return dlogits
