"""The SwiGLU feed-forward part."""

from __future__ import annotations

import numpy as np
import torch

from engine import Dropout, Linear, Module, Tensor, ops
from models.cache import KVCache, project, silu
from models.config import ModelConfig
from models.norms import before_part, normed


class SwiGLU(Module):
    """x + W_down (silu(gate) * up), [gate | up] = W_gate_up rms_norm(x) (arXiv 2002.05202, equation 6)."""

    residual_outputs = ("down.weight",)

    def __init__(self, config: ModelConfig):
        self.config = config
        self.norm = before_part(config)
        self.gate_up = Linear(config.d_model, 2 * config.d_ff)
        self.down = Linear(config.d_ff, config.d_model)
        self.dropout = Dropout(config.dropout)

    @staticmethod
    def n_parameters(config: ModelConfig) -> dict[str, int]:
        """Trained values of one."""
        return {"feed-forward": 3 * config.d_model * config.d_ff}

    def packed(self, per_head: bool) -> dict[str, tuple[int, ...]]:
        """The rows of each matrix in a parameter that holds several, by the parameter's name."""
        return {"gate_up.weight": (self.config.d_ff,) * 2}

    def forward(self, x: Tensor, doc_start: torch.Tensor | None = None) -> Tensor:
        """x [B, T, d_model] -> [B, T, d_model]; every token by itself, so documents do not matter."""
        eps, dropped = self.config.norm_eps, self.training and self.config.dropout
        if self.norm is not None and not dropped:
            return ops.feed_forward(x, self.norm.gain, self.gate_up.weight, self.down.weight, eps)
        h = self.gate_up(x) if self.norm is None else ops.rms_norm_linear(x, self.norm.gain, self.gate_up.weight, eps)
        return x + self.dropout(ops.swiglu_linear(h, self.down.weight))

    def step(self, x: np.ndarray, cache: KVCache, layer: int) -> np.ndarray:
        """x [T, d_model] -> [T, d_model]; nothing to remember."""
        h = project(normed(self.norm, x), self.gate_up.weight)
        return x + project(silu(h[:, :self.config.d_ff]) * h[:, self.config.d_ff:], self.down.weight)
