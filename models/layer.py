"""The kinds of layer that a config can name: one attention part, one feed-forward part, and where the norms are."""

from __future__ import annotations

import numpy as np
import torch

from engine import Module, RMSNorm, Tensor
from models import parts
from models.balance import Tally
from models.cache import DeviceCache, KVCache
from models.config import ModelConfig
from models.norms import normed


class PreNorm(Module):
    """Both parts add to the residual stream themselves, each from its own norm of it."""

    def __init__(self, config: ModelConfig, index: int):
        self.attention = parts.attention(config)
        self.feed_forward = parts.feed_forward(config, index)
        self.has_experts = config.feed_forward_of(index) == "moe"

    def forward(self, x: Tensor, doc_start: torch.Tensor | None = None, tally: Tally | None = None):
        """x [B, T, d_model], doc_start int32 [B, T] or None -> [B, T, d_model].

        Args:
            tally: of layers with experts alone; then a tuple of the result and the tally's tensors.
        """
        x = self.attention(x, doc_start)
        return self.feed_forward(x, doc_start) if tally is None else self.feed_forward(x, doc_start, tally)

    def step(self, x: np.ndarray, cache: KVCache, layer: int) -> np.ndarray:
        """x [T, d_model] of the T tokens after those in the cache -> [T, d_model]."""
        return self.feed_forward.step(self.attention.step(x, cache, layer), cache, layer)

    def decode(self, x: Tensor, cache: DeviceCache, layer: int) -> Tensor:
        """`step` on a GPU: x [1, T, d_model], T = 1 unless the cache is empty -> [1, T, d_model]."""
        return self.feed_forward(self.attention.decode(x, cache, layer))


class PostNorm(PreNorm):
    """The seed system's: both parts add to the stream as it is, which is normed after them."""

    def __init__(self, config: ModelConfig, index: int):
        super().__init__(config, index)
        self.norm = RMSNorm(config.d_model, config.norm_eps)

    def forward(self, x: Tensor, doc_start: torch.Tensor | None = None, tally: Tally | None = None):
        if tally is None:
            return self.norm(super().forward(x, doc_start))
        x, *counted = super().forward(x, doc_start, tally)
        return self.norm(x), *counted

    def step(self, x: np.ndarray, cache: KVCache, layer: int) -> np.ndarray:
        return normed(self.norm, super().step(x, cache, layer))

    def decode(self, x: Tensor, cache: DeviceCache, layer: int) -> Tensor:
        return self.norm(super().decode(x, cache, layer))


BLOCKS: dict[str, type[PreNorm]] = {"pre_norm": PreNorm, "post_norm": PostNorm}


def new_layer(config: ModelConfig, index: int) -> PreNorm:
    """The layer that `config.block` names; `index` counts from 0."""
    return BLOCKS[config.block](config, index)
