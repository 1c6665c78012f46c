"""RMS norm of each query and key head and rotation by its position, in place on the packed projection.

Training has these inside of attention (kernels/cpu/heads.py); this is for decoding.
"""

from __future__ import annotations

import numpy as np
import torch

from .compiled import compiled


@compiled
def _heads(packed, first, count, dim, normed, gain, eps, cos, sin):
    """Heads `first` to `first + count` of packed (b, T, columns)."""
    half, one = cos.shape[1], packed.dtype.type(1)
    for b in range(packed.shape[0]):
        for token in range(packed.shape[1]):
            for head in range(first, first + count):
                x = packed[b, token, head * dim: head * dim + dim]
                if normed:
                    total = packed.dtype.type(0)
                    for j in range(dim):
                        total += x[j] * x[j]
                    r = one / np.sqrt(total / packed.dtype.type(dim) + eps)
                    for j in range(dim):
                        x[j] *= gain[j] * r
                for j in range(half):
                    u, v = x[j], x[j + half]
                    x[j] = u * cos[token, j] - v * sin[token, j]
                    x[j + half] = v * cos[token, j] + u * sin[token, j]


def in_place(packed: torch.Tensor, heads: int, key_heads: int, dim: int, cos, sin, q_gain, k_gain, eps: float) -> None:
    array = packed.numpy()
    ones, no_turns = np.ones(dim, array.dtype), np.empty((packed.shape[1], 0), array.dtype)
    turns = [no_turns if table is None else table.contiguous().numpy() for table in (cos, sin)]
    for first, count, gain in ((0, heads, q_gain), (heads, key_heads, k_gain)):
        gains = ones if gain is None else gain.numpy()
        _heads(array, first, count, dim, gain is not None, gains, array.dtype.type(eps), *turns)
