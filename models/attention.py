"""Grouped-query attention with positions of any kind and optional QK-norm."""

from __future__ import annotations

import numpy as np
import torch

import kernels
from engine import Dropout, Linear, Module, RMSNorm, Tensor, ops
from models import positions
from models.cache import DeviceCache, KVCache, project, rms_norm
from models.config import ModelConfig
from models.norms import before_part, normed


class GroupedQueryAttention(Module):
    """x + W_out attention(W_qkv rms_norm(x)), causal.

    Grouped-query: arXiv 2305.13245. QK-norm, an RMS norm of each query and key head before the rotation:
    arXiv 2302.05442, section 2. The rows of W_qkv are the queries of all heads, then the keys, then the values.
    """

    residual_outputs = ("out.weight",)
    caches = ("keys",)

    def __init__(self, config: ModelConfig):
        self.config = config
        self.norm = before_part(config)
        self.qkv = Linear(config.d_model, (config.n_heads + 2 * config.n_kv_heads) * config.head_dim)
        self.out = Linear(config.n_heads * config.head_dim, config.d_model)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.position = positions.in_attention(config)
        self.dropout = Dropout(config.dropout)

    @staticmethod
    def n_parameters(config: ModelConfig) -> dict[str, int]:
        """Trained values of one, without its positions: of matrices, and of all else."""
        matrices = 2 * config.d_model * config.head_dim * (config.n_heads + config.n_kv_heads)
        return {"attention": matrices, "norms": 2 * config.head_dim * config.qk_norm}

    def packed(self, per_head: bool) -> dict[str, tuple[int, ...]]:
        """The rows of each matrix in a parameter that holds several, by the parameter's name."""
        c = self.config
        if per_head:
            return {"qkv.weight": (c.head_dim,) * (c.n_heads + 2 * c.n_kv_heads)}
        return {"qkv.weight": tuple(heads * c.head_dim for heads in (c.n_heads, c.n_kv_heads, c.n_kv_heads))}

    def forward(self, x: Tensor, doc_start: torch.Tensor | None = None) -> Tensor:
        """x [B, T, d_model], doc_start int32 [B, T] or None -> [B, T, d_model]."""
        c = self.config
        if self.position.chunked:
            y = self.position.whole(*self._heads(x), self.qkv.weight, doc_start)
        else:
            y = ops.attention(self._projected(x), c.n_heads, c.n_kv_heads,
                              q_gain=self.q_norm.gain if self.q_norm else None,
                              k_gain=self.k_norm.gain if self.k_norm else None, eps=c.norm_eps, doc_start=doc_start,
                              **self.position.options(self.qkv.weight))
        if self.training and c.dropout:
            return x + self.dropout(self.out(y))
        return self.out(y, residual=x)

    def _projected(self, x: Tensor) -> Tensor:
        if self.norm is None:
            return self.qkv(x)
        return ops.rms_norm_linear(x, self.norm.gain, self.qkv.weight, self.config.norm_eps)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, T, H, D], keys and values [B, T, K, D] after QK-norm, before any rotation."""
        c = self.config
        heads = self._projected(x).reshape(*x.shape[:2], -1, c.head_dim)
        q, k, v = ops.split(heads, (c.n_heads, c.n_kv_heads, c.n_kv_heads), dim=2)
        return (self.q_norm(q), self.k_norm(k), v) if c.qk_norm else (q, k, v)

    def step(self, x: np.ndarray, cache: KVCache, layer: int) -> np.ndarray:
        """x [T, d_model] of the T tokens after those in the cache -> [T, d_model]."""
        c, first = self.config, cache.length
        heads = project(normed(self.norm, x), self.qkv.weight).reshape(len(x), -1, c.head_dim)
        first_key, first_value = c.n_heads, c.n_heads + c.n_kv_heads
        q, k, v = heads[:, :first_key], heads[:, first_key:first_value], heads[:, first_value:]
        if c.qk_norm:
            q, k = rms_norm(q, self.q_norm.gain, c.norm_eps), rms_norm(k, self.k_norm.gain, c.norm_eps)
        keys, values = cache.put(layer, self.position.turn(k, first), v)
        return x + project(self.position.attend(q, keys, values, first), self.out.weight)

    def decode(self, x: Tensor, cache: DeviceCache, layer: int) -> Tensor:
        """`step` on a GPU: x [1, T, d_model], T = 1 unless the cache is empty -> [1, T, d_model]."""
        c, first = self.config, cache.length
        if self.position.chunked:
            q, k, v = self._heads(x)
            keys, values = cache.put(layer, self.position.keys(k, self.qkv.weight, first), v)
            return self.out(self.position.newest(q, keys, values, self.qkv.weight, first), residual=x)
        packed, options = self._projected(x), self.position.options(self.qkv.weight)
        cos, sin = (table[first:] for table in options.pop("rope")) if "rope" in options else (None, None)
        gains = (self.q_norm.gain.data, self.k_norm.gain.data) if c.qk_norm else (None, None)
        if c.qk_norm or cos is not None:
            kernels.qk_norm_rope.in_place(packed.data, c.n_heads, c.n_kv_heads, c.head_dim, cos, sin, *gains,
                                          c.norm_eps)
        return self.out(cache.attend(layer, packed, options), residual=x)
