"""Grouped-query attention with rotary positions and optional QK-norm."""

from __future__ import annotations

import numpy as np
import torch

from engine import Dropout, Linear, Module, RMSNorm, Tensor, ops
from models.cache import DeviceCache, KVCache, project, rms_norm
from models.config import ModelConfig
from models.rotary import rotary_table


class GroupedQueryAttention(Module):
    """x + W_out attention(W_qkv rms_norm(x)), causal.

    Grouped-query: arXiv 2305.13245. QK-norm, an RMS norm of each query and key head before the rotation:
    arXiv 2302.05442, section 2. The rows of W_qkv are the queries of all heads, then the keys, then the values.
    """

    residual_outputs = ("out.weight",)

    def __init__(self, config: ModelConfig):
        self.config = config
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.qkv = Linear(config.d_model, (config.n_heads + 2 * config.n_kv_heads) * config.head_dim)
        self.out = Linear(config.n_heads * config.head_dim, config.d_model)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.dropout = Dropout(config.dropout)

    def rotary(self) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin for every position, on the parameters' device; in their dtype, but not under 32 bits."""
        weight, c = self.qkv.weight, self.config
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return rotary_table(c.max_seq_len, c.head_dim, c.rope_base, dtype, weight.device)

    def forward(self, x: Tensor, doc_start: torch.Tensor | None = None) -> Tensor:
        """x [B, T, d_model], doc_start int32 [B, T] or None -> [B, T, d_model]."""
        c = self.config
        qkv = ops.rms_norm_linear(x, self.norm.gain, self.qkv.weight, c.norm_eps)
        y = ops.attention(qkv, c.n_heads, c.n_kv_heads, self.rotary(), self.q_norm.gain if self.q_norm else None,
                          self.k_norm.gain if self.k_norm else None, c.norm_eps, doc_start)
        if self.training and c.dropout:
            return x + self.dropout(self.out(y))
        return self.out(y, residual=x)

    def step(self, x: np.ndarray, cache: KVCache, layer: int) -> np.ndarray:
        """x [T, d_model] of the T tokens after those in the cache -> [T, d_model]."""
        c = self.config
        heads = project(rms_norm(x, self.norm.gain, c.norm_eps), self.qkv.weight).reshape(len(x), -1, c.head_dim)
        first_key, first_value = c.n_heads, c.n_heads + c.n_kv_heads
        q, k, v = heads[:, :first_key], heads[:, first_key:first_value], heads[:, first_value:]
        if c.qk_norm:
            q, k = rms_norm(q, self.q_norm.gain, c.norm_eps), rms_norm(k, self.k_norm.gain, c.norm_eps)
        return x + project(cache.attend(layer, q, k, v), self.out.weight)

    def decode(self, x: Tensor, cache: DeviceCache, layer: int) -> Tensor:
        """`step` on a GPU: x [1, T, d_model], T = 1 unless the cache is empty -> [1, T, d_model]."""
        c = self.config
        qkv = ops.rms_norm_linear(x, self.norm.gain, self.qkv.weight, c.norm_eps)
        heads = qkv.reshape(1, x.shape[1], -1, c.head_dim)
        first_key, first_value = c.n_heads, c.n_heads + c.n_kv_heads
        q, k, v = heads[:, :, :first_key], heads[:, :, first_key:first_value], heads[:, :, first_value:]
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        cos, sin = self.rotary()
        q, k = ops.rope(q, cos, sin, cache.length), ops.rope(k, cos, sin, cache.length)
        return self.out(cache.attend(layer, q, k, v), residual=x)
