"""Rotary position embedding, of all features or of the first ones (RoFormer, arXiv 2104.09864, section 3.4.2)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from engine import Parameter
from models.context import ContextConfig
from models.positions.none import AttentionPosition
from models.positions.scaling import frequencies, temperature


@lru_cache(maxsize=8)
def rotary_table(length: int, features: int, base: float, context: ContextConfig, dtype: torch.dtype,
                 device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of position * frequency times the temperature, each [length, features / 2]; computed in float64.

    Cached, so that the layers of a model share one table: nobody writes into it.
    """
    angle = np.outer(np.arange(length, dtype=np.float64), frequencies(features, base, context))
    scale = temperature(context)
    return tuple(torch.from_numpy(scale * table).to(device, dtype) for table in (np.cos(angle), np.sin(angle)))


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotates features i and i + R/2 of the first R of x [T, H, D] by the angles of cos, sin [T, 1, R/2]."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half: 2 * half], x[..., 2 * half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


class Rotary(AttentionPosition):
    """Turns pairs of features of queries and keys by angles that grow with the position.

    Of `rope_fraction` of each head's features, the first ones; the others see no position (partial rotary). How fast
    they turn depends on the config's `context`.
    """

    def table(self, weight: Parameter) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin for every position, on the device of a parameter and in its dtype, but not under 32 bits."""
        return self._table(torch.promote_types(weight.dtype, torch.float32), weight.device)

    def options(self, weight: Parameter) -> dict:
        return {"rope": self.table(weight)}

    def turn(self, heads: np.ndarray, first: int) -> np.ndarray:
        rows = slice(first, first + len(heads))
        cos, sin = (table.numpy()[rows, None] for table in self._table(torch.from_numpy(heads[:0]).dtype))
        return rotate(heads, cos, sin)

    def _table(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        c = self.config
        return rotary_table(c.max_seq_len, c.rotary_features, c.rope_base, c.context, dtype, device)
