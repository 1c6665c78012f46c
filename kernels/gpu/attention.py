"""Attention on the packed projection: chooses the programs for a call's lengths, and allocates what they write."""

from __future__ import annotations

import torch

from .. import memory
from . import attention_backward, attention_forward, attention_short, qk_norm_rope
from .attention_scores import Setting
from .rows import contiguous


def forward(qkv: torch.Tensor, n_heads: int, n_kv_heads: int, cos=None, sin=None, q_gain=None, k_gain=None,
            eps: float = 1e-6, doc_start=None, causal: bool = True, window: int | None = None, alibi=None,
            softcap: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    setting = Setting.of(qkv, n_heads, n_kv_heads, cos, sin, q_gain, k_gain, eps, doc_start, causal, window, alibi,
                         softcap, backward=False)
    batch, tokens = qkv.shape[:2]
    out = memory.empty((batch, tokens, n_heads * setting.dim), qkv.dtype, qkv.device)
    lse = memory.empty((batch, n_heads, tokens), torch.float32, qkv.device)
    run = attention_short.run_forward if attention_short.takes(setting) else attention_forward.run
    run(setting, out, lse)
    return out, lse


def backward(dout: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, qkv: torch.Tensor, n_heads: int,
             n_kv_heads: int, cos=None, sin=None, q_gain=None, k_gain=None, eps: float = 1e-6, doc_start=None,
             causal: bool = True, window: int | None = None, alibi=None, softcap: float | None = None):
    setting = Setting.of(qkv, n_heads, n_kv_heads, cos, sin, q_gain, k_gain, eps, doc_start, causal, window, alibi,
                         softcap, backward=True)
    dout, dqkv = contiguous(dout), memory.empty(qkv.shape, qkv.dtype, qkv.device)
    if attention_short.takes(setting):
        attention_short.run_backward(setting, dout, lse, dqkv)
    else:
        deltas = memory.empty(lse.shape, torch.float32, qkv.device)
        attention_backward.run(setting, dout, out, lse, deltas, dqkv)
    if cos is None and q_gain is None:
        return dqkv, None, None
    gradients = qk_norm_rope.backward_in_place(dqkv, setting.qkv, n_heads, n_kv_heads, setting.dim, cos, sin, q_gain,
                                               k_gain, eps)
    return dqkv, *gradients
