"""What torch has no single call for, written with torch as a good user would."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE of x (B, T, H, D) with cos and sin (>= T, R/2), pairing feature i with i + R/2 of the first R."""
    half = cos.shape[1]
    a, b, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    cos, sin = (t[: x.shape[1], None] for t in (cos, sin))
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def visible(tokens: int, doc_start: torch.Tensor | None = None, causal: bool = True,
            window: int | None = None) -> torch.Tensor:
    """(B or 1, 1, T, T): whether a query may see a key."""
    position = torch.arange(tokens)
    query, key = position[:, None], position[None, :]
    seen = (key <= query) if causal else torch.ones(tokens, tokens, dtype=torch.bool)
    if window is not None:
        seen = seen & ((query - key).abs() < window)
    if doc_start is not None:
        seen = seen & (key >= doc_start[:, :, None]) & (query >= doc_start[:, None, :])
    return seen.view(-1, 1, tokens, tokens)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, doc_start: torch.Tensor | None = None,
           causal: bool = True, window: int | None = None, alibi: torch.Tensor | None = None,
           softcap: float | None = None, distance: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
    """Grouped-query attention of q (B, T, H, D), k and v (B, T, K, D)."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    tokens, grouped = q.shape[2], {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    if alibi is not None or softcap is not None or distance is not None:
        seen = visible(tokens, doc_start, causal, window).to(q.device)
        return _attend_by_hand(q, k, v, seen, alibi, softcap, distance).transpose(1, 2)
    if doc_start is None and window is None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, **grouped)
    else:
        seen = visible(tokens, doc_start, causal, window)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, **grouped)
    return out.transpose(1, 2)


def _attend_by_hand(q, k, v, seen, alibi, softcap, distance):
    """As gemma-2 and the ALiBi paper write it: softmax of the masked scores in float32 at least."""
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    position = torch.arange(q.shape[2], device=q.device)
    away = position[:, None] - position
    if distance is not None:
        reach, offset = distance
        scores = scores / (1 + reach * away.abs()) - offset * (away > 0)
    if alibi is not None:
        scores = scores - alibi.to(scores.dtype)[:, None, None] * away.abs()
    scores = scores.masked_fill(~seen, float("-inf"))
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype) @ v


def packed_attention(qkv, q_gain=None, k_gain=None, cos=None, sin=None, doc_start=None, reach=None, offset=None, *,
                     heads, key_heads, **options):
    """engine.ops.attention."""
    batch, tokens, width = qkv.shape
    dim = width // (heads + 2 * key_heads)
    q, k, v = (part.reshape(batch, tokens, -1, dim) for part in
               qkv.split([heads * dim, key_heads * dim, key_heads * dim], dim=-1))
    if q_gain is not None:
        q, k = F.rms_norm(q, (dim,), q_gain, 1e-6), F.rms_norm(k, (dim,), k_gain, 1e-6)
    if cos is not None:
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    distance = None if reach is None else (reach, offset)
    return attend(q, k, v, doc_start, distance=distance, **options).reshape(batch, tokens, heads * dim)


def talking_heads(qkv, reach, offset, before, after, doc_start=None, *, heads):
    """engine.ops.talking_heads, the mixing as einsum."""
    batch, tokens, width = qkv.shape
    q, k, v = (part.view(batch, tokens, heads, -1).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    position = torch.arange(tokens, device=qkv.device)
    distance = position[:, None] - position
    scores = q @ k.transpose(-1, -2) / math.sqrt(width // (3 * heads)) / (1 + reach * distance.clamp(min=0))
    scores = torch.einsum("gh,bhij->bgij", before, scores - offset * (distance > 0))
    weights = scores.masked_fill(~visible(tokens, doc_start).to(qkv.device), float("-inf")).softmax(-1)
    out = torch.einsum("gh,bhij->bgij", after, weights) @ v
    return out.transpose(1, 2).reshape(batch, tokens, -1)


def swiglu(h: torch.Tensor) -> torch.Tensor:
    gate, up = h.chunk(2, dim=-1)
    return F.silu(gate) * up


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, normalizer: float | None = None, z_loss: float = 0.0,
                  softcap: float | None = None) -> torch.Tensor:
    """The classes come last; no target that counts gives 0."""
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    total = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction="sum")
    if z_loss:
        total = total + z_loss * (logits.logsumexp(-1).square() * (targets != -100)).sum()
    return total / (normalizer or max(int((targets != -100).sum()), 1))


def route(logits: torch.Tensor, bias: torch.Tensor | None = None, noise: torch.Tensor | None = None, *, k: int,
          score: str, normalised: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """engine.ops.route."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scores = logits.softmax(-1) if score == "softmax" else logits.sigmoid()
    ranked = scores if bias is not None else logits
    ranked = ranked if noise is None else logits + noise
    ranked = ranked if bias is None else ranked + bias
    indices = ranked.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    if normalised and score == "softmax":
        return logits.gather(-1, indices).softmax(-1), scores, indices
    gates = scores.gather(-1, indices)
    return gates / (gates.sum(-1, keepdim=True) + 1e-20) if normalised else gates, scores, indices


def experts(x, gates, indices, gate_up, down, residual=None) -> torch.Tensor:
    """engine.ops.experts: a loop over experts, as written by hand."""
    rows, weights, chosen = x.flatten(0, -2), gates.flatten(0, -2), indices.flatten(0, -2)
    y = torch.zeros_like(rows)
    for expert in range(len(down)):
        token, choice = (chosen == expert).nonzero(as_tuple=True)
        out = F.linear(swiglu(F.linear(rows[token], gate_up[expert])), down[expert])
        y = y.index_add(0, token, (out * weights[token, choice, None]).to(y.dtype))
    y = y.view(x.shape)
    return y if residual is None else residual + y
