"""The SwiGLU feed-forward part."""

from __future__ import annotations

import numpy as np
import torch

from engine import Dropout, Linear, Module, RMSNorm, Tensor, ops
from models.cache import KVCache, project, rms_norm, silu
from models.config import ModelConfig


class SwiGLU(Module):
    """x + W_down (silu(gate) * up), [gate | up] = W_gate_up rms_norm(x) (arXiv 2002.05202, equation 6)."""

    residual_outputs = ("down.weight",)

    def __init__(self, config: ModelConfig):
        self.config = config
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.gate_up = Linear(config.d_model, 2 * config.d_ff)
        self.down = Linear(config.d_ff, config.d_model)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, doc_start: torch.Tensor | None = None) -> Tensor:
        """x [B, T, d_model] -> [B, T, d_model]; every token by itself, so documents do not matter."""
        norm, eps = self.norm.gain, self.config.norm_eps
        if self.training and self.config.dropout:
            h = ops.rms_norm_linear(x, norm, self.gate_up.weight, eps)
            return x + self.dropout(ops.swiglu_linear(h, self.down.weight))
        return ops.feed_forward(x, norm, self.gate_up.weight, self.down.weight, eps)

    def step(self, x: np.ndarray, cache: KVCache, layer: int) -> np.ndarray:
        """x [T, d_model] -> [T, d_model]; nothing to remember."""
        h = project(rms_norm(x, self.norm.gain, self.config.norm_eps), self.gate_up.weight)
        return x + project(silu(h[:, :self.config.d_ff]) * h[:, self.config.d_ff:], self.down.weight)
