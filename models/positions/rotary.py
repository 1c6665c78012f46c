"""Rotary position embedding: the table of angles (RoFormer, arXiv 2104.09864, section 3.4.2)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch


@lru_cache(maxsize=8)
def rotary_table(length: int, head_dim: int, base: float, dtype: torch.dtype,
                 device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of position * base^(-2 i / head_dim), each [length, head_dim / 2]; computed in float64.

    Cached, so that the layers of a model share one table: nobody writes into it.
    """
    frequency = base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    angle = np.outer(np.arange(length, dtype=np.float64), frequency)
    return tuple(torch.from_numpy(table).to(device, dtype) for table in (np.cos(angle), np.sin(angle)))
