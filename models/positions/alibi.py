"""Attention with linear biases (arXiv 2108.12409)."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch

from engine import Parameter
from models.positions.none import AttentionPosition


@lru_cache(maxsize=8)
def slopes(heads: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """float32 [heads]: 2^(-8 / n), 2^(-16 / n), ... for n = heads, a power of two; for other numbers those of the power
    of two below, and then every other one of the power above, as in the paper's code."""
    power = 2 ** math.floor(math.log2(heads))

    def geometric(count: int) -> np.ndarray:
        return 2.0 ** (-8.0 / count * np.arange(1, count + 1))

    found = np.concatenate([geometric(power), geometric(2 * power)[::2]])[:heads]
    return torch.from_numpy(found.astype(np.float32)).to(device)


class ALiBi(AttentionPosition):
    """Takes slope |i - j| from the score of query i and key j, a slope for each head."""

    def options(self, weight: Parameter) -> dict:
        return {"alibi": slopes(self.config.n_heads, weight.device)}

    def shape(self, scores: np.ndarray, first: int) -> np.ndarray:
        heads, new, keys = scores.shape
        away = np.abs(np.arange(first, first + new)[:, None] - np.arange(keys)).astype(scores.dtype)
        return scores - slopes(heads).numpy().astype(scores.dtype)[:, None, None] * away
