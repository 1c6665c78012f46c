"""Passes over flat parameter buffers: the norm, AdamW, and the mean of the weights."""

from __future__ import annotations

import math

import numpy as np
import torch

from .compiled import compiled
from .gemm import blocks
from .launch import launch

STEP = 1 << 16


@compiled
def _adamw(w, g, m, v, lr, beta1, beta2, eps, decay, correction1, correction2, grad_scale):
    one = w.dtype.type(1)
    for i in range(w.shape[0]):
        gradient = g[i] * grad_scale
        m[i] = beta1 * m[i] + (one - beta1) * gradient
        v[i] = beta2 * v[i] + (one - beta2) * gradient * gradient
        w[i] = w[i] * (one - lr * decay) - lr * (m[i] * correction1) / (np.sqrt(v[i] * correction2) + eps)


def adamw(weights: torch.Tensor, grads: torch.Tensor, exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor,
          segments: tuple[torch.Tensor, torch.Tensor], control: torch.Tensor, working: torch.Tensor | None = None, *,
          beta1: float, beta2: float, eps: float) -> None:
    lr, _, _, _, made, *corrections = control.tolist()
    if not made:
        return
    scale, correction1, correction2 = corrections
    scalar = weights.numpy().dtype.type
    for (start, stop), (decay, factor) in zip(*(part.tolist() for part in segments)):
        arrays = [t[start:stop].numpy() for t in (weights, grads, exp_avg, exp_avg_sq)]
        numbers = [scalar(x) for x in (lr * factor, beta1, beta2, eps, decay, correction1, correction2, scale)]

        def program(block: int):
            part = slice(block * STEP, block * STEP + STEP)
            _adamw(*(array[part] for array in arrays), *numbers)

        launch(program, blocks(stop - start, STEP))
        if working is not None:
            working[start:stop].copy_(weights[start:stop])


def begin_step(control: torch.Tensor, norm: torch.Tensor, *, beta1: float, beta2: float,
               clip_norm: float = 0.0) -> None:
    numbers, length = control.numpy(), float(norm)
    numbers[3] = length
    if not math.isfinite(length):
        numbers[2] += 1
        numbers[4] = 0
        return
    numbers[1] += 1
    steps = int(numbers[1])
    scale = clip_norm / length if 0.0 < clip_norm < length else 1.0
    numbers[4:] = 1, scale, 1 / (1 - beta1**steps), 1 / (1 - beta2**steps)


@compiled
def _approach(mean, w, rate):
    for i in range(w.shape[0]):
        mean[i] += rate * (w[i] - mean[i])


def average(mean: torch.Tensor, weights: torch.Tensor, control: torch.Tensor, *, decay: float) -> None:
    _, steps, _, _, made, *_ = control.tolist()
    if not made:
        return
    means, values = mean.numpy(), weights.numpy()
    rate = values.dtype.type((1 - decay) / (1 - decay**steps))

    def program(block: int):
        part = slice(block * STEP, block * STEP + STEP)
        _approach(means[part], values[part], rate)

    launch(program, blocks(len(means), STEP))


@compiled
def sum_of_squares(x):
    """In float64, of a flat array."""
    total = np.float64(0)
    for i in range(x.shape[0]):
        total += np.float64(x[i]) * np.float64(x[i])
    return total


def norm(x: torch.Tensor, out: torch.Tensor | None = None) -> float | torch.Tensor:
    array = x.reshape(-1).numpy()
    partial = np.zeros(blocks(array.size, STEP))

    def program(block: int):
        partial[block] = sum_of_squares(array[block * STEP: block * STEP + STEP])

    launch(program, len(partial))
    result = float(partial.sum()) ** 0.5
    return result if out is None else out.fill_(result)
