"""Where norms are: before each part of a layer, or after the layer."""

from __future__ import annotations

import numpy as np

from engine import RMSNorm
from models.cache import rms_norm
from models.config import ModelConfig


def before_part(config: ModelConfig) -> RMSNorm | None:
    """The norm that a part puts before itself; None in blocks that have theirs elsewhere."""
    return RMSNorm(config.d_model, config.norm_eps) if config.block == "pre_norm" else None


def normed(norm: RMSNorm | None, x: np.ndarray) -> np.ndarray:
    """x [..., d] through a norm, if there is one, on arrays."""
    return x if norm is None else rms_norm(x, norm.gain, norm.eps)
