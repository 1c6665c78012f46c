"""Attention over the tokens decoded so far: keys and values are kept, so a new token costs one row, not all.

Shapes: T new tokens, S tokens in all, H query heads, K key heads, G = H / K, D features per head.
"""

from __future__ import annotations

import numpy as np
import torch

from models.config import ModelConfig


class KVCache:
    """Keys (normed and rotated) and values of one sequence, for every layer.

    Args:
        config: of the model; the cache holds `max_seq_len` tokens.

    Attributes:
        length: tokens that every layer has seen.
    """

    def __init__(self, config: ModelConfig):
        shape = (config.n_layers, 2, config.n_kv_heads, config.max_seq_len, config.head_dim)
        self.store = torch.empty(shape, dtype=getattr(torch, config.dtype))
        self.capacity = config.max_seq_len
        self.length = 0

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
               rope: tuple[torch.Tensor, torch.Tensor], q_gain: torch.Tensor | None, k_gain: torch.Tensor | None,
               eps: float) -> torch.Tensor:
        """Puts k and v at the end of the layer's part, and lets every new token see all up to itself.

        Args:
            q: [T, H, D] as projected; k, v: [T, K, D].
            rope: cos and sin [capacity, D / 2].
            q_gain, k_gain: [D] of the QK-norm, or None.
        Returns:
            [1, T, H D].
        """
        new, n_heads, head_dim = q.shape
        start, stop = self.length, self.length + new
        keys, values = self.store[layer]
        cos, sin = (table[start:stop, None].numpy() for table in rope)
        rotated = _rotate(_rms_norm(q.numpy(), q_gain, eps), cos, sin)
        keys[:, start:stop] = torch.from_numpy(_rotate(_rms_norm(k.numpy(), k_gain, eps), cos, sin)).transpose(0, 1)
        values[:, start:stop] = v.transpose(0, 1)

        group = n_heads // len(keys)
        queries = torch.from_numpy(rotated).view(new, len(keys), group, head_dim)
        queries = queries.permute(1, 2, 0, 3).reshape(len(keys), group * new, head_dim)
        scores = torch.bmm(queries, keys[:, :stop].transpose(1, 2)).view(len(keys), group, new, stop).numpy()
        scores *= scores.dtype.type(head_dim**-0.5)
        if new > 1:
            scores[..., np.arange(stop) > np.arange(start, stop)[:, None]] = -np.inf
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = torch.bmm(torch.from_numpy(scores).view(len(keys), group * new, stop), values[:, :stop])
        return mixed.view(n_heads, new, head_dim).transpose(0, 1).reshape(1, new, n_heads * head_dim)


def _rms_norm(x: np.ndarray, gain: torch.Tensor | None, eps: float) -> np.ndarray:
    if gain is None:
        return x
    mean_square = np.einsum("...d,...d->...", x, x)[..., None] / x.dtype.type(x.shape[-1])
    return x / np.sqrt(mean_square + x.dtype.type(eps)) * gain.numpy()


def _rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
