"""Attention on the packed projection: chooses the programs for a call's lengths, and allocates what they write."""

from __future__ import annotations

import torch

from .. import memory
from . import attention_backward, attention_forward, attention_short, qk_norm_rope, reduce
from .attention_scores import Setting
from .rows import contiguous


def forward(qkv: torch.Tensor, n_heads: int, n_kv_heads: int, cos=None, sin=None, q_gain=None, k_gain=None,
            eps: float = 1e-6, doc_start=None, causal: bool = True, window: int | None = None, alibi=None,
            softcap: float | None = None, distance=None) -> tuple[torch.Tensor, torch.Tensor]:
    setting = Setting.of(qkv, n_heads, n_kv_heads, cos, sin, q_gain, k_gain, eps, doc_start, causal, window, alibi,
                         softcap, distance, backward=False)
    batch, tokens = qkv.shape[:2]
    out = memory.empty((batch, tokens, n_heads * setting.dim), qkv.dtype, qkv.device)
    lse = memory.empty((batch, n_heads, tokens), torch.float32, qkv.device)
    run = attention_short.run_forward if attention_short.takes(setting) else attention_forward.run
    run(setting, out, lse)
    return out, lse


def backward(dout: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, qkv: torch.Tensor, n_heads: int,
             n_kv_heads: int, cos=None, sin=None, q_gain=None, k_gain=None, eps: float = 1e-6, doc_start=None,
             causal: bool = True, window: int | None = None, alibi=None, softcap: float | None = None, distance=None):
    setting = Setting.of(qkv, n_heads, n_kv_heads, cos, sin, q_gain, k_gain, eps, doc_start, causal, window, alibi,
                         softcap, distance, backward=True)
    dout, dqkv = contiguous(dout), memory.empty(qkv.shape, qkv.dtype, qkv.device)
    if attention_short.takes(setting):
        partials = attention_short.run_backward(setting, dout, lse, dqkv)
    else:
        deltas = memory.empty(lse.shape, torch.float32, qkv.device)
        partials = attention_backward.run(setting, dout, out, lse, deltas, dqkv)
    scalars = (None, None) if partials is None else reduce.reduce(partials, "sum", (0,)).to(qkv.dtype).view(2, 1)
    if cos is None and q_gain is None:
        return dqkv, None, None, *scalars
    gradients = qk_norm_rope.backward_in_place(dqkv, setting.qkv, n_heads, n_kv_heads, setting.dim, cos, sin, q_gain,
                                               k_gain, eps)
    return dqkv, *gradients, *scalars
