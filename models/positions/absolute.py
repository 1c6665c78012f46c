"""Positions that are added to the embeddings: each token's place in its document."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

import kernels
from engine import Module, Parameter, Tensor, ops
from engine.errors import UserError
from models.config import ModelConfig


class StreamPosition(Module):
    """Adds a vector for its place to each token. A document that shares its row begins anew at place 0."""

    def __init__(self, config: ModelConfig):
        self.config = config

    @staticmethod
    def n_parameters(config: ModelConfig) -> int:
        """Trained values."""
        return 0

    def rows(self, places: torch.Tensor, like: Tensor) -> Tensor:
        """[..., d_model] for int64 places [...], in the dtype of `like`."""
        raise NotImplementedError

    def forward(self, x: Tensor, doc_start: torch.Tensor | None = None, first: int = 0) -> Tensor:
        """x [B, T, d_model], doc_start int32 [B, T] or None, the place of the first token -> [B, T, d_model]."""
        batch, tokens, _ = x.shape
        if first + tokens > self.config.max_seq_len:
            raise UserError(f"positions by {self.config.position} end at max_seq_len {self.config.max_seq_len}: "
                            f"got {first + tokens} tokens")
        places = torch.arange(first, first + tokens, device=x.device).expand(batch, tokens)
        if doc_start is not None:
            places = kernels.elementwise.apply("sub", places, doc_start.to(torch.int64))
        return x + self.rows(places, x)

    def step(self, x: np.ndarray, first: int) -> np.ndarray:
        """x [T, d_model] of the tokens from place `first` on -> [T, d_model]."""
        places = torch.arange(first, first + len(x))
        return x + self.rows(places, Tensor(torch.from_numpy(x))).data.numpy()


class Sinusoidal(StreamPosition):
    """sin and cos of position * 10000^(-2 i / d_model), interleaved (arXiv 1706.03762, section 3.5)."""

    def rows(self, places: torch.Tensor, like: Tensor) -> Tensor:
        table = sinusoids(self.config.max_seq_len, self.config.d_model, like.dtype, like.device)
        return ops.embedding(places, Tensor(table))


class Learned(StreamPosition):
    """A vector for each place up to `max_seq_len`; past that there is none."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.weight = Parameter(kernels.empty((config.max_seq_len, config.d_model)), decay=False)

    @staticmethod
    def n_parameters(config: ModelConfig) -> int:
        return config.max_seq_len * config.d_model

    def rows(self, places: torch.Tensor, like: Tensor) -> Tensor:
        return ops.embedding(places, self.weight)


@lru_cache(maxsize=8)
def sinusoids(length: int, width: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
    """[length, width], computed in float64; nobody writes into it."""
    angle = np.outer(np.arange(length), 10_000.0 ** (-np.arange(0, width, 2) / width))
    table = np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, -1)[:, :width]
    return torch.from_numpy(table).to(device, dtype)
