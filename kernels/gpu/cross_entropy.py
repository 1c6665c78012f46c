"""Cross-entropy of logits, with z-loss and softcap. The log-softmax is never stored.

A program owns a row. One that fits a block is read once; a longer one is read in blocks for maximum and sum, and then
again for the gradient, which may take the logits' place: backwards, as the last blocks are those the cache still has.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import memory
from .formulas import LOG2_E, tanh
from .launch import launch
from .rows import as_rows, contiguous
from .softmax import LOWEST, add_block, joined
from .tuning import tuned


@triton.jit
def _capped(x, softcap):
    return x if softcap is None else softcap * tanh(x * (1.0 / softcap))


@triton.jit
def _padded(row, column, softcap, WIDTH: tl.constexpr, STRIDE: tl.constexpr):
    """A row's last logits; -inf from WIDTH on, where there is only padding up to STRIDE."""
    x = tl.load(row + column, mask=column < STRIDE, other=-float("inf")).to(tl.float32)
    return tl.where(column < WIDTH, _capped(x, softcap), -float("inf"))


@triton.jit
def _statistics(row, softcap, WIDTH: tl.constexpr, STRIDE: tl.constexpr,
                FULL: tl.constexpr, COLUMNS: tl.constexpr, TAIL: tl.constexpr):
    """Largest logit and sum of e^(logit - largest) of a row: FULL blocks without padding, and one of TAIL."""
    top = LOWEST
    total = 0.0
    if FULL > 0:
        tops = tl.full((COLUMNS,), LOWEST, tl.float32)
        totals = tl.zeros((COLUMNS,), tl.float32)
        for block in range(0, FULL):
            x = tl.load(row + block * COLUMNS + tl.arange(0, COLUMNS)).to(tl.float32)
            tops, totals = add_block(tops, totals, _capped(x, softcap))
        top, total = joined(tops, totals)
    if TAIL > 0:
        x = _padded(row, FULL * COLUMNS + tl.arange(0, TAIL), softcap, WIDTH, STRIDE)
        before = top
        top = tl.maximum(tl.max(x, axis=0), before)
        total = total * tl.exp(before - top) + tl.sum(tl.exp(x - top), axis=0)
    return top, total


@triton.jit
def _gradient(x, column, target, top, factor, scale, softcap):
    """factor e^(x - top), minus `scale` at the target, by the chain rule through the softcap."""
    gradient = tl.exp2(x * LOG2_E - top * LOG2_E) * factor
    gradient = tl.where(column == target, gradient - scale, gradient)
    if softcap is not None:
        ratio = x * (1.0 / softcap)
        gradient *= 1.0 - ratio * ratio
    return gradient


@triton.jit
def _store_gradient(row, out, target, top, factor, scale, softcap,
                    WIDTH: tl.constexpr, STRIDE: tl.constexpr,
                    FULL: tl.constexpr, COLUMNS: tl.constexpr, TAIL: tl.constexpr):
    """The blocks of `_statistics` in reverse; 0 for padding. `out` may be `row`."""
    if TAIL > 0:
        last = FULL * COLUMNS + tl.arange(0, TAIL)
        x_last = _padded(row, last, softcap, WIDTH, STRIDE)
        rest = tl.where(last < WIDTH, _gradient(x_last, last, target, top, factor, scale, softcap), 0.0)
        tl.store(out + last, rest.to(out.dtype.element_ty), mask=last < STRIDE)
    for block in range(0, FULL):
        column = (FULL - 1 - block) * COLUMNS + tl.arange(0, COLUMNS)
        x = _capped(tl.load(row + column).to(tl.float32), softcap)
        gradient = _gradient(x, column, target, top, factor, scale, softcap)
        tl.store(out + column, gradient.to(out.dtype.element_ty))


@triton.jit
def _store_zeros(out, STRIDE: tl.constexpr, COLUMNS: tl.constexpr):
    for start in range(0, STRIDE, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        tl.store(out + column, tl.zeros((COLUMNS,), out.dtype.element_ty), mask=column < STRIDE)


@triton.jit
def _forward(logits, targets, losses, tops, totals, gradients, scale, normalizer, ignore_index, z_loss, softcap,
             WIDTH: tl.constexpr, STRIDE: tl.constexpr,
             FULL: tl.constexpr, COLUMNS: tl.constexpr, TAIL: tl.constexpr):
    """A row's loss; its maximum and sum if `tops` is given; its gradient if `gradients`, which may be `logits`, is.

    The gradient is for a loss gradient of `scale`, divided by `normalizer`, if there is one: a tensor with one element.
    A target that is no class gives NaN.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * STRIDE
    if gradients is not None:
        gradients += row * STRIDE
    target = tl.load(targets + row)
    if target == ignore_index:
        tl.store(losses + row, 0.0)
        if tops is not None:
            tl.store(tops + row, 0.0)
            tl.store(totals + row, 1.0)
        if gradients is not None:
            _store_zeros(gradients, STRIDE, COLUMNS)
    else:
        known = (target >= 0) & (target < WIDTH)
        picked = _capped(tl.load(logits + target, mask=known, other=float("nan")).to(tl.float32), softcap)
        if FULL == 0:
            column = tl.arange(0, TAIL)
            x = _padded(logits, column, softcap, WIDTH, STRIDE)
            top = tl.maximum(tl.max(x, axis=0), LOWEST)
            total = tl.sum(tl.exp(x - top), axis=0)
        else:
            top, total = _statistics(logits, softcap, WIDTH, STRIDE, FULL, COLUMNS, TAIL)
        lse = top + tl.log(total)
        tl.store(losses + row, top - picked + tl.log(total) + z_loss * lse * lse)
        if tops is not None:
            tl.store(tops + row, top)
            tl.store(totals + row, total)
        if gradients is not None:
            if normalizer is not None:
                scale = scale / tl.load(normalizer).to(tl.float32)
            factor = scale * (1.0 + 2.0 * z_loss * lse) / total
            place = target.to(tl.int32)
            if FULL == 0:
                gradient = tl.where(column < WIDTH, _gradient(x, column, place, top, factor, scale, softcap), 0.0)
                tl.store(gradients + column, gradient.to(gradients.dtype.element_ty), mask=column < STRIDE)
            else:
                _store_gradient(logits, gradients, place, top, factor, scale, softcap, WIDTH, STRIDE, FULL, COLUMNS,
                                TAIL)


@triton.jit
def _backward(dloss, logits, targets, tops, totals, dlogits, scale, normalizer, ignore_index, z_loss, softcap,
              WIDTH: tl.constexpr, FULL: tl.constexpr, COLUMNS: tl.constexpr, TAIL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    if target == ignore_index:
        _store_zeros(dlogits + row * WIDTH, WIDTH, COLUMNS)
    else:
        top, total = tl.load(tops + row), tl.load(totals + row)
        scale = scale * tl.load(dloss).to(tl.float32)
        if normalizer is not None:
            scale = scale / tl.load(normalizer).to(tl.float32)
        factor = scale * (1.0 + 2.0 * z_loss * (top + tl.log(total))) / total
        _store_gradient(logits + row * WIDTH, dlogits + row * WIDTH, target.to(tl.int32), top, factor, scale, softcap,
                        WIDTH, WIDTH, FULL, COLUMNS, TAIL)


@triton.jit
def _sum(losses, scale, normalizer, loss, rows, COLUMNS: tl.constexpr):
    sums = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, rows, COLUMNS):
        row = start + tl.arange(0, COLUMNS)
        sums += tl.load(losses + row, mask=row < rows, other=0.0)
    if normalizer is not None:
        scale = scale / tl.load(normalizer).to(tl.float32)
    tl.store(loss, tl.sum(sums, axis=0) * scale)


@triton.jit
def _count(targets, number, ignore_index, rows, COLUMNS: tl.constexpr):
    counts = tl.zeros((COLUMNS,), tl.int32)
    for start in range(0, rows, COLUMNS):
        row = start + tl.arange(0, COLUMNS)
        target = tl.load(targets + row, mask=row < rows, other=ignore_index)
        counts += (target != ignore_index).to(tl.int32)
    tl.store(number, tl.maximum(tl.sum(counts, axis=0), 1).to(tl.float32))


def forward(logits: torch.Tensor, targets: torch.Tensor, normalizer: float | torch.Tensor, ignore_index: int = -100,
            z_loss: float = 0.0, softcap: float | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    losses, top, total = (memory.empty(logits.shape[:-1], torch.float32, logits.device) for _ in range(3))
    rows = as_rows(logits)
    _launch_forward(rows, targets, losses, (top, total), None, normalizer, ignore_index, z_loss, softcap, rows.shape[1])
    return sum_losses(losses, normalizer), top, total


def in_place(logits: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor, normalizer: float | torch.Tensor,
             ignore_index: int = -100, z_loss: float = 0.0, softcap: float | None = None, classes: int | None = None,
             with_gradient: bool = True) -> None:
    if not logits.is_contiguous():
        raise ValueError(f"cross_entropy.in_place: logits must be contiguous, got strides {logits.stride()}")
    _launch_forward(logits, targets, losses, (None, None), logits if with_gradient else None, normalizer, ignore_index,
                    z_loss, softcap, classes or logits.shape[1])


def _launch_forward(logits, targets, losses, statistics, gradients, normalizer, ignore_index, z_loss, softcap, classes):
    rows, stride = logits.shape
    launch(_forward, (rows,), logits, contiguous(targets), losses, *statistics, gradients, *_scale(normalizer),
           ignore_index, float(z_loss), softcap and float(softcap), WIDTH=classes, STRIDE=stride,
           **_blocks(classes, stride, logits.dtype))


def backward(dloss: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor, top: torch.Tensor, total: torch.Tensor,
             normalizer: float | torch.Tensor, ignore_index: int = -100, z_loss: float = 0.0,
             softcap: float | None = None) -> torch.Tensor:
    dlogits = memory.empty(logits.shape, logits.dtype, logits.device)
    rows = as_rows(logits)
    count, classes = rows.shape
    launch(_backward, (count,), dloss, rows, contiguous(targets), top, total, dlogits, *_scale(normalizer),
           ignore_index, float(z_loss), softcap and float(softcap), WIDTH=classes,
           **_blocks(classes, classes, logits.dtype))
    return dlogits


def sum_losses(losses: torch.Tensor, normalizer: float | torch.Tensor) -> torch.Tensor:
    """The sum of contiguous float32 losses, in one fixed order, over the normalizer."""
    loss = memory.empty((), torch.float32, losses.device)
    launch(_sum, (1,), losses, *_scale(normalizer), loss, losses.numel(), **tuned("sum_losses", torch.float32))
    return loss


def count(targets: torch.Tensor, ignore_index: int = -100) -> torch.Tensor:
    number = memory.empty((), torch.float32, targets.device)
    launch(_count, (1,), contiguous(targets), number, ignore_index, targets.numel(),
           **tuned("sum_losses", torch.float32))
    return number


def _scale(normalizer: float | torch.Tensor) -> tuple[float, torch.Tensor | None]:
    """1 / normalizer, and what it is still to be divided by: a tensor with one element, which nobody waits for."""
    return (1.0, normalizer) if isinstance(normalizer, torch.Tensor) else (1.0 / normalizer, None)


def _blocks(classes: int, stride: int, dtype: torch.dtype) -> dict[str, int]:
    """Number and columns of full blocks, columns of the last, which has the padding, and warps in proportion.

    A row that fits is one last block.
    """
    options = tuned("cross_entropy", dtype, classes=classes)
    most = options["COLUMNS"]
    full = classes // most if stride > most else 0
    rest = stride - full * most
    tail = rest and triton.next_power_of_2(rest)
    columns = most if full else tail
    return {"FULL": full, "COLUMNS": columns, "TAIL": tail, "num_warps": max(1, options["num_warps"] * columns // most)}
