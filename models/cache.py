"""Keys and values of a text that grows: a cache for the CPU with the arithmetic of a few new rows, one for a GPU.

On the CPU a kernel's launch costs more than the few hundred numbers of one token, so a step calls none: NumPy arrays
in, arrays out.

Shapes: T new tokens, S tokens in all, H query heads, K key heads, G = H / K, D features per head.
"""

from __future__ import annotations

import numpy as np
import torch

import kernels
from engine import Parameter, Tensor, ops
from models.config import ModelConfig
from models.rotary import rotary_table


class KVCache:
    """Keys (normed and rotated) and values of one sequence, for every layer.

    Args:
        config: of the model; the cache holds `max_seq_len` tokens.

    Attributes:
        length: tokens that every layer has seen.
    """

    def __init__(self, config: ModelConfig):
        dtype = getattr(torch, config.dtype)
        shape = (config.n_layers, 2, config.n_kv_heads, config.max_seq_len, config.head_dim)
        self.store = torch.empty(shape, dtype=dtype).numpy()
        cos, sin = rotary_table(config.max_seq_len, config.head_dim, config.rope_base, dtype)
        self.cos, self.sin = cos.numpy()[:, None], sin.numpy()[:, None]
        self.capacity = config.max_seq_len
        self.length = 0

    def attend(self, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Puts k and v at the end of the layer's part, and lets every new token see all up to itself.

        Args:
            q: [T, H, D], normed but not rotated; k, v: [T, K, D].
        Returns:
            [T, H D].
        """
        new, n_heads, head_dim = q.shape
        start, stop = self.length, self.length + new
        keys, values = self.store[layer]
        cos, sin = self.cos[start:stop], self.sin[start:stop]
        keys[:, start:stop] = rotate(k, cos, sin).swapaxes(0, 1)
        values[:, start:stop] = v.swapaxes(0, 1)

        group = n_heads // len(keys)
        queries = rotate(q, cos, sin) * q.dtype.type(head_dim**-0.5)
        queries = queries.reshape(new, len(keys), group, head_dim).transpose(1, 2, 0, 3)
        queries = queries.reshape(len(keys), group * new, head_dim)
        scores = np.matmul(queries, keys[:, :stop].swapaxes(1, 2))
        if new > 1:
            hidden = np.arange(stop) > np.arange(start, stop)[:, None]
            scores.reshape(len(keys), group, new, stop)[..., hidden] = -np.inf
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = np.matmul(scores, values[:, :stop])
        return mixed.reshape(n_heads, new, head_dim).swapaxes(0, 1).reshape(new, n_heads * head_dim)


class DeviceCache:
    """Keys (normed and rotated) and values of one sequence on a GPU, for every layer.

    Attributes:
        length: tokens that every layer has seen.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device):
        shape = (config.n_layers, 2, 1, config.max_seq_len, config.n_kv_heads, config.head_dim)
        self.store = kernels.empty(shape, dtype, device)
        self.lengths = kernels.zeros((1,), torch.int32, device)
        self.capacity = config.max_seq_len
        self.length = 0

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Puts k and v at the end of the layer's part, and lets every new token see all up to itself.

        Args:
            q: [1, T, H, D], k and v [1, T, K, D], normed and rotated; T is 1, or the cache is empty.
        Returns:
            [1, T, H D].
        """
        new, n_heads, head_dim = q.shape[1:]
        keys, values = self.store[layer]
        part = slice(self.length, self.length + new)
        keys[:, part].copy_(k.data)
        values[:, part].copy_(v.data)
        if new > 1:
            packed = ops.cat([t.reshape(1, new, -1) for t in (q, k, v)], -1)
            return ops.attention(packed, n_heads, k.shape[2])
        self.lengths.fill_(part.stop)
        mixed = kernels.decode_attention.forward(q.data.reshape(1, n_heads, head_dim), keys, values, self.lengths)
        return Tensor(mixed.view(1, 1, n_heads * head_dim))


def rms_norm(x: np.ndarray, gain: Parameter, eps: float) -> np.ndarray:
    """x [..., d] / sqrt(mean(x^2) + eps) * gain (arXiv 1910.07467)."""
    mean_square = np.einsum("...d,...d->...", x, x)[..., None] / x.dtype.type(x.shape[-1])
    return x / np.sqrt(mean_square + x.dtype.type(eps)) * gain.data.numpy()


def project(x: np.ndarray, weight: Parameter) -> np.ndarray:
    """x [T, d_in] W^T."""
    return x @ weight.data.numpy().T


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x), as x (1 + tanh(x / 2)) / 2, which cannot overflow."""
    half = x.dtype.type(0.5)
    return half * x * (1 + np.tanh(half * x))


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotates features i and i + D/2 of x [T, H, D] by the angles of cos, sin [T, 1, D/2] (arXiv 2104.09864)."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
