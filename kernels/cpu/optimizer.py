"""Passes over flat parameter buffers: AdamW and the sum of squares."""

from __future__ import annotations

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


def adamw(weights: torch.Tensor, grads: torch.Tensor, exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor, *, lr: float,
          beta1: float, beta2: float, eps: float, weight_decay: float, step: int, grad_scale: float = 1.0) -> None:
    arrays = [t.numpy() for t in (weights, grads, exp_avg, exp_avg_sq)]
    scalar = arrays[0].dtype.type
    numbers = [scalar(x) for x in (lr, beta1, beta2, eps, weight_decay, 1 / (1 - beta1**step), 1 / (1 - beta2**step),
                                   grad_scale)]

    def program(block: int):
        part = slice(block * STEP, block * STEP + STEP)
        _adamw(*(array[part] for array in arrays), *numbers)

    launch(program, blocks(len(arrays[0]), STEP))


@compiled
def _sum_of_squares(x):
    total = np.float64(0)
    for i in range(x.shape[0]):
        total += np.float64(x[i]) * np.float64(x[i])
    return total


def sum_of_squares(x: torch.Tensor) -> float:
    array = x.reshape(-1).numpy()
    partial = np.zeros(blocks(array.size, STEP))

    def program(block: int):
        partial[block] = _sum_of_squares(array[block * STEP: block * STEP + STEP])

    launch(program, len(partial))
    return float(partial.sum())
