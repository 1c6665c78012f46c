"""Attention that is told no positions, and what those that are can do."""

from __future__ import annotations

import numpy as np

from engine import Module, Parameter
from models.cache import attend
from models.config import ModelConfig


class AttentionPosition(Module):
    """How a layer's attention knows where tokens stand. This one is no position at all.

    Training takes `options` into the kernel; decoding on the CPU, in NumPy, takes `turn` and `shape`. One that is
    `chunked` says itself how queries attend to keys (models.positions.dual_chunk).
    """

    chunked = False

    def __init__(self, config: ModelConfig):
        self.config = config

    @staticmethod
    def n_parameters(config: ModelConfig) -> int:
        """Trained values of one layer's."""
        return 0

    def options(self, weight: Parameter) -> dict:
        """Arguments of `engine.ops.attention`, on the device of a parameter and in its dtype, but not under 32 bits."""
        return {}

    def turn(self, heads: np.ndarray, first: int) -> np.ndarray:
        """Queries or keys [T, heads, D] of the tokens from position `first` on, as their products need them."""
        return heads

    def shape(self, scores: np.ndarray, first: int) -> np.ndarray:
        """Scores [heads, T, S] of the queries from position `first` on with all keys, as the softmax needs them."""
        return scores

    def attend(self, q: np.ndarray, keys: np.ndarray, values: np.ndarray, first: int) -> np.ndarray:
        """Queries [T, H, D] of the tokens from position `first` on, turned keys and values [K, S, D] -> [T, H D]."""
        return attend(self.turn(q, first), keys, values, lambda scores: self.shape(scores, first))
