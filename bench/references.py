"""What torch has no single call for, written with torch as a good user would."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE of x (B, T, H, D) with cos and sin (>= T, D/2), pairing feature i with i + D/2."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = (t[: x.shape[1], None] for t in (cos, sin))
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def visible(doc_start: torch.Tensor) -> torch.Tensor:
    """(B, 1, T, T): whether a query may see a key."""
    position = torch.arange(doc_start.shape[1])
    same_document, earlier = position >= doc_start[:, :, None], position <= position[:, None]
    return (same_document & earlier)[:, None]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, doc_start: torch.Tensor | None = None) -> torch.Tensor:
    """Causal grouped-query attention of q (B, T, H, D), k and v (B, T, K, D)."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    grouped = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    if doc_start is None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, **grouped)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible(doc_start), **grouped)
    return out.transpose(1, 2)


def packed_attention(qkv, q_gain=None, k_gain=None, cos=None, sin=None, doc_start=None, *, heads, key_heads):
    """engine.ops.attention."""
    batch, tokens, width = qkv.shape
    dim = width // (heads + 2 * key_heads)
    q, k, v = (part.reshape(batch, tokens, -1, dim) for part in
               qkv.split([heads * dim, key_heads * dim, key_heads * dim], dim=-1))
    if q_gain is not None:
        q, k = F.rms_norm(q, (dim,), q_gain, 1e-6), F.rms_norm(k, (dim,), k_gain, 1e-6)
    if cos is not None:
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    return attend(q, k, v, doc_start).reshape(batch, tokens, heads * dim)


def swiglu(h: torch.Tensor) -> torch.Tensor:
    gate, up = h.chunk(2, dim=-1)
    return F.silu(gate) * up


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, normalizer: float | None = None) -> torch.Tensor:
    """The classes come last; no target that counts gives 0."""
    total = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction="sum")
    return total / (normalizer or max(int((targets != -100).sum()), 1))
