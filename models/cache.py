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


class KVCache:
    """Keys (as scores take them) and values of one sequence, for every layer.

    Args:
        config: of the model; the cache holds `max_seq_len` tokens.

    Attributes:
        length: tokens that every layer has seen.
    """

    def __init__(self, config: ModelConfig):
        dtype = getattr(torch, config.dtype)
        shape = (config.n_layers, 2, config.n_kv_heads, config.max_seq_len, config.head_dim)
        self.store = torch.empty(shape, dtype=dtype).numpy()
        self.capacity = config.max_seq_len
        self.length = 0

    def put(self, layer: int, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Puts k and v [T, K, D] at the end of the layer's part; returns all it has, [K, S, D] each."""
        start, stop = self.length, self.length + len(k)
        keys, values = self.store[layer]
        keys[:, start:stop] = k.swapaxes(0, 1)
        values[:, start:stop] = v.swapaxes(0, 1)
        return keys[:, :stop], values[:, :stop]


class InputCache:
    """What each layer's attention was given, for every layer: its keys and values are made of that when they are
    wanted.

    EL-attention (arXiv 2105.04779): d_model numbers for a token and layer in place of its keys and values.

    Attributes:
        length: tokens that every layer has seen.
    """

    def __init__(self, config: ModelConfig):
        self.store = torch.empty((config.n_layers, config.max_seq_len, config.d_model),
                                 dtype=getattr(torch, config.dtype)).numpy()
        self.capacity = config.max_seq_len
        self.length = 0

    def put(self, layer: int, x: np.ndarray) -> np.ndarray:
        """Puts x [T, d_model] at the end of the layer's part; returns all it has, [S, d_model]."""
        stop = self.length + len(x)
        self.store[layer, self.length: stop] = x
        return self.store[layer, :stop]


CACHES: dict[str, type] = {"keys": KVCache, "inputs": InputCache}
"""What a decoder can keep of a text on the CPU."""


def attend(q: np.ndarray, keys: np.ndarray, values: np.ndarray, shape=None) -> np.ndarray:
    """Attention of the newest tokens: each sees all up to itself.

    Args:
        q: [T, H, D]; keys, values: [K, S, D].
        shape: what becomes of the scores [H, T, S] before the softmax.
    Returns:
        [T, H D].
    """
    new, n_heads, head_dim = q.shape
    stop, group = keys.shape[1], n_heads // len(keys)
    queries = (q * q.dtype.type(head_dim**-0.5)).reshape(new, len(keys), group, head_dim).transpose(1, 2, 0, 3)
    queries = queries.reshape(len(keys), group * new, head_dim)
    scores = np.matmul(queries, keys.swapaxes(1, 2)).reshape(n_heads, new, stop)
    weights = softmax(scores if shape is None else shape(scores))
    mixed = np.matmul(weights.reshape(len(keys), group * new, stop), values)
    return mixed.reshape(n_heads, new, head_dim).swapaxes(0, 1).reshape(new, n_heads * head_dim)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Of scores [H, T, S] of the newest T of S tokens along the last dimension, up to each token itself; in place."""
    new, stop = scores.shape[1:]
    if new > 1:
        scores[:, np.arange(stop) > np.arange(stop - new, stop)[:, None]] = -np.inf
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


class DeviceCache:
    """Keys (as scores take them) and values of one sequence on a GPU, for every layer.

    Attributes:
        length: tokens that every layer has seen.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device):
        shape = (config.n_layers, 2, 1, config.max_seq_len, config.n_kv_heads, config.head_dim)
        self.store = kernels.empty(shape, dtype, device)
        self.lengths = kernels.zeros((1,), torch.int32, device)
        self.capacity = config.max_seq_len
        self.length = 0

    def put(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Puts k and v [1, T, K, D] at the end of the layer's part; returns all it has, [1, S, K, D] each."""
        start, stop = self.length, self.length + k.shape[1]
        keys, values = self.store[layer]
        keys[:, start:stop].copy_(k.data)
        values[:, start:stop].copy_(v.data)
        return Tensor(keys[:, :stop]), Tensor(values[:, :stop])

    def attend(self, layer: int, packed: Tensor, options: dict) -> Tensor:
        """Puts keys and values at the end of the layer's part, and lets every new token see all up to itself.

        Args:
            packed: [1, T, (H + 2 K) D], queries and keys normed and rotated; T is 1, or the cache is empty.
            options: of `ops.attention` that shape the scores.
        Returns:
            [1, T, H D].
        """
        keys, values = self.store[layer]
        new, key_heads, head_dim = packed.shape[1], *keys.shape[2:]
        n_heads = packed.shape[2] // head_dim - 2 * key_heads
        q, k, v = packed.data.view(1, new, -1, head_dim).split((n_heads, key_heads, key_heads), 2)
        self.put(layer, Tensor(k), Tensor(v))
        if new > 1:
            return ops.attention(packed, n_heads, key_heads, **options)
        self.lengths.fill_(self.length + new)
        if "distance" in options:
            options = {**options, "distance": tuple(number.data for number in options["distance"])}
        mixed = kernels.decode_attention.forward(q.reshape(1, n_heads, head_dim), keys, values, self.lengths, **options)
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

