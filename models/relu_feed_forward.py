"""The seed system's feed-forward part: ReLU inside and at its end."""

from __future__ import annotations

import numpy as np
import torch

from engine import Dropout, Linear, Module, Tensor, ops
from models.affine import affine
from models.cache import KVCache, project
from models.config import ModelConfig
from models.norms import before_part, normed


class ReLUFeedForward(Module):
    """x + relu(W_down relu(W_up x)), an Affine before each matrix if the parametrisation has them."""

    residual_outputs = ()  # a zero matrix before a ReLU has no gradient: it would never leave zero

    def __init__(self, config: ModelConfig):
        self.config = config
        self.norm = before_part(config)
        self.up_affine, self.down_affine = affine(config), affine(config)
        self.up = Linear(config.d_model, config.d_ff)
        self.down = Linear(config.d_ff, config.d_model)
        self.dropout = Dropout(config.dropout)

    @staticmethod
    def n_parameters(config: ModelConfig) -> dict[str, int]:
        """Trained values of one."""
        return {"feed-forward": 2 * config.d_model * config.d_ff, "scalars": 4 * (config.parametrisation == "affine")}

    def packed(self, per_head: bool) -> dict[str, tuple[int, ...]]:
        """No parameter holds several matrices."""
        return {}

    def forward(self, x: Tensor, doc_start: torch.Tensor | None = None) -> Tensor:
        """x [B, T, d_model] -> [B, T, d_model]; every token by itself, so documents do not matter."""
        h = x if self.norm is None else self.norm(x)
        h = ops.relu(self.up(h if self.up_affine is None else self.up_affine(h)))
        h = ops.relu(self.down(h if self.down_affine is None else self.down_affine(h)))
        return x + self.dropout(h)

    def step(self, x: np.ndarray, cache: KVCache, layer: int) -> np.ndarray:
        """x [T, d_model] -> [T, d_model]; nothing to remember."""
        h = normed(self.norm, x)
        for scalars, matrix in ((self.up_affine, self.up), (self.down_affine, self.down)):
            h = np.maximum(project(h if scalars is None else scalars.step(h), matrix.weight), 0)
        return x + h
