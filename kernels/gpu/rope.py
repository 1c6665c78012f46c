"""Rotary position embedding on its own: heads without norm."""

from __future__ import annotations

import torch

from . import qk_norm_rope
from .rows import contiguous


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    batch, tokens, heads, dim = x.shape
    packed = contiguous(x).view(batch, tokens, heads * dim)
    return qk_norm_rope.forward(packed, heads, 0, dim, cos, sin, None, None, 0.0).view(x.shape)
