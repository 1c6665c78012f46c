"""The seed system's positions: scores shrink with the distance, and all but a token's own are lowered."""

from __future__ import annotations

import numpy as np

from engine import Parameter
from models.affine import scalar
from models.config import ModelConfig
from models.positions.none import AttentionPosition


class ReciprocalDistance(AttentionPosition):
    """A score s of query i and key j becomes s / (1 + r |i - j|), less a if j < i; a layer learns r and a.

    They begin at 0.1 and 1.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.reach, self.offset = scalar(config, 0.1), scalar(config, 1.0)

    @staticmethod
    def n_parameters(config: ModelConfig) -> int:
        return 2 * (2 if config.parametrisation == "affine" else 1)

    def options(self, weight: Parameter) -> dict:
        return {"distance": (self.reach(), self.offset())}

    def shape(self, scores: np.ndarray, first: int) -> np.ndarray:
        _, new, keys = scores.shape
        ahead = np.arange(first, first + new)[:, None] - np.arange(keys)
        reach, offset = self.reach.value(scores.dtype), self.offset.value(scores.dtype)
        return scores / (1 + reach * np.abs(ahead).astype(scores.dtype)) - offset * (ahead > 0)
