"""Cross-entropy of logits against target classes, with z-loss and softcap: the log-softmax is never stored.

The plain loss has loops of its own, which are spared the others' work.
"""

from __future__ import annotations

import numpy as np
import torch

from .. import memory
from .compiled import compiled, exp, maximum
from .launch import scratch
from .rows import as_rows, as_vector, launch_blocks, launch_rows
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


@compiled
def loss_rows(logits, targets, ignore_index, scale, losses, with_gradient):
    """Each row's cross-entropy in nats; turns its logits into their gradient times `scale`."""
    for i in range(logits.shape[0]):
        row, target = logits[i], targets[i]
        if target == ignore_index:
            losses[i] = 0
            if with_gradient:
                for j in range(row.shape[0]):
                    row[j] = 0
            continue
        top = row[0]
        for j in range(row.shape[0]):
            top = maximum(top, row[j])
        picked = row[target]
        total = logits.dtype.type(0)
        for j in range(row.shape[0]):
            e = exp(row[j] - top)
            row[j] = e
            total += e
        losses[i] = np.float64(top) - np.float64(picked) + np.log(np.float64(total))
        if with_gradient:
            factor = scale / total
            for j in range(row.shape[0]):
                row[j] *= factor
            row[target] -= scale


@compiled
def _regularised_loss_rows(logits, targets, ignore_index, z_loss, tops, totals, losses):
    """`_forward_rows` with z_loss lse^2 added to the losses."""
    for i in range(logits.shape[0]):
        row = logits[i]
        top = row_top(row)
        total = logits.dtype.type(0)
        for j in range(row.shape[0]):
            total += exp_to_zero(row[j] - top)
        tops[i], totals[i] = top, total
        losses[i] = 0
        if targets[i] != ignore_index:
            lse = np.float64(top) + np.log(np.float64(total))
            losses[i] = lse - np.float64(row[targets[i]]) + z_loss * lse * lse


@compiled
def _regularised_gradient_rows(logits, targets, ignore_index, z_loss, cap, tops, totals, scale, dlogits):
    """Gradient of the losses, times `scale`, by the uncapped logits; `logits` are capped ones where `cap` is not 0."""
    one = logits.dtype.type(1)
    inverse = one / cap if cap > 0 else logits.dtype.type(0)
    for i in range(logits.shape[0]):
        row, out = logits[i], dlogits[i]
        if targets[i] == ignore_index:
            for j in range(row.shape[0]):
                out[j] = 0
            continue
        top = tops[i]
        lse = np.float64(top) + np.log(np.float64(totals[i]))
        share = logits.dtype.type(scale * (1 + 2 * z_loss * lse) / totals[i])
        for j in range(row.shape[0]):
            ratio = row[j] * inverse
            out[j] = exp_to_zero(row[j] - top) * share * (one - ratio * ratio)
        ratio = row[targets[i]] * inverse
        out[targets[i]] -= scale * (one - ratio * ratio)


def regularised_loss_rows(logits: np.ndarray, targets: np.ndarray, ignore_index: int, scale: float, z_loss: float,
                          softcap: float | None, losses: np.ndarray, with_gradient: bool) -> None:
    """`loss_rows` with z-loss and softcap, for a block of rows."""
    capped = _capped(logits, softcap)
    kind = torch.from_numpy(logits).dtype
    tops, totals = (scratch(name, (len(logits),), kind).numpy() for name in ("tops", "totals"))
    _regularised_loss_rows(capped, targets, ignore_index, z_loss, tops, totals, losses)
    if with_gradient:
        source = capped if softcap else _copied(logits)
        _regularised_gradient_rows(source, targets, ignore_index, z_loss, logits.dtype.type(softcap or 0), tops, totals,
                                   logits.dtype.type(scale), logits)


def _capped(logits: np.ndarray, softcap: float | None) -> np.ndarray:
    """softcap tanh(logits / softcap), in scratch memory; the logits themselves without a softcap."""
    if not softcap:
        return logits
    capped = scratch("capped", logits.shape, torch.from_numpy(logits).dtype).numpy()
    np.divide(logits, logits.dtype.type(softcap), out=capped)
    np.tanh(capped, out=capped)
    return np.multiply(capped, logits.dtype.type(softcap), out=capped)


def _copied(logits: np.ndarray) -> np.ndarray:
    copy = scratch("capped", logits.shape, torch.from_numpy(logits).dtype).numpy()
    copy[...] = logits
    return copy


def forward(logits: torch.Tensor, targets: torch.Tensor, normalizer: float | torch.Tensor, ignore_index: int = -100,
            z_loss: float = 0.0, softcap: float | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    top, total = (memory.empty(logits.shape[:-1], logits.dtype) for _ in range(2))
    rows, classes, tops, totals = as_rows(logits), as_vector(targets), as_vector(top), as_vector(total)
    losses = np.empty(len(rows))

    def program(part: slice):
        if z_loss or softcap:
            _regularised_loss_rows(_capped(rows[part], softcap), classes[part], ignore_index, z_loss, tops[part],
                                   totals[part], losses[part])
        else:
            _forward_rows(rows[part], classes[part], ignore_index, tops[part], totals[part], losses[part])

    (launch_blocks if softcap else launch_rows)(program, *rows.shape)
    return torch.tensor(losses.sum() / float(normalizer), dtype=logits.dtype), top, total


def backward(dloss: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor, top: torch.Tensor, total: torch.Tensor,
             normalizer: float | torch.Tensor, ignore_index: int = -100, z_loss: float = 0.0,
             softcap: float | None = None) -> torch.Tensor:
    dlogits = memory.empty(logits.shape, logits.dtype)
    rows, classes, out = as_rows(logits), as_vector(targets), as_rows(dlogits)
    tops, totals = as_vector(top), as_vector(total)
    scale, cap = rows.dtype.type(dloss.item() / float(normalizer)), rows.dtype.type(softcap or 0)

    def program(part: slice):
        if z_loss or softcap:
            _regularised_gradient_rows(_capped(rows[part], softcap), classes[part], ignore_index, z_loss, cap,
                                       tops[part], totals[part], scale, out[part])
        else:
            _backward_rows(rows[part], classes[part], ignore_index, tops[part], totals[part], scale, out[part])

    (launch_blocks if softcap else launch_rows)(program, *rows.shape)
    return dlogits


def in_place(logits: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor, normalizer: float | torch.Tensor,
             ignore_index: int = -100, z_loss: float = 0.0, softcap: float | None = None, classes: int | None = None,
             with_gradient: bool = True) -> None:
    if not logits.is_contiguous():
        raise ValueError(f"cross_entropy.in_place: logits must be contiguous, got strides {logits.stride()}")
    classes = classes or logits.shape[1]
    rows, row_targets, row_losses = logits.numpy(), as_vector(targets), losses.numpy()
    scale = rows.dtype.type(1 / float(normalizer))

    def program(part: slice):
        used = np.ascontiguousarray(rows[part, :classes])
        if z_loss or softcap:
            regularised_loss_rows(used, row_targets[part], ignore_index, scale, z_loss, softcap, row_losses[part],
                                  with_gradient)
        else:
            loss_rows(used, row_targets[part], ignore_index, scale, row_losses[part], with_gradient)
        if with_gradient and classes < rows.shape[1]:
            rows[part, :classes], rows[part, classes:] = used, 0

    launch_blocks(program, *rows.shape)


def count(targets: torch.Tensor, ignore_index: int = -100) -> torch.Tensor:
    return torch.tensor(max(np.count_nonzero(targets.numpy() != ignore_index), 1), dtype=torch.float32)
