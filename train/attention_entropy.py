"""How spread out attention's weights are, computed again in NumPy from what the operation had."""

from __future__ import annotations

import numpy as np
import torch

from engine.ops.fused import Attention

Array = np.ndarray


def mean_entropy(op: Attention) -> float:
    """Mean over rows, heads and queries of -sum_j p_j ln p_j, in nats, of an attention that has just run; float64.

    ValueError for attention that is not causal, or has a window, ALiBi or a cap on its scores.
    """
    qkv = _array(op.saved[2])
    n_heads, n_kv_heads, cos, sin, q_gain, k_gain, eps, doc_start = op.arguments
    shaped = {name: value for name, value in op.options.items() if value is not (True if name == "causal" else None)}
    if shaped:
        raise ValueError(f"entropy of attention with {', '.join(shaped)} is not known here")
    batch, tokens, width = qkv.shape
    heads = qkv.reshape(batch, tokens, n_heads + 2 * n_kv_heads, width // (n_heads + 2 * n_kv_heads))
    q, k = (_placed(part, gain, cos, sin, eps)
            for part, gain in ((heads[:, :, :n_heads], q_gain), (heads[:, :, n_heads: n_heads + n_kv_heads], k_gain)))
    positions = np.arange(tokens)
    starts = np.zeros((batch, tokens), int) if doc_start is None else _array(doc_start)
    total = 0.0
    for row in range(batch):
        seen = (positions <= positions[:, None]) & (positions >= starts[row][:, None])
        for head in range(n_heads):
            scores = q[row, :, head] @ k[row, :, head // (n_heads // n_kv_heads)].T / np.sqrt(q.shape[-1])
            total += _entropy(np.where(seen, scores, -np.inf)).sum()
    return float(total / (batch * n_heads * tokens))


def _entropy(scores: Array) -> Array:
    """Of softmax along the last dimension; -inf has no weight."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    weights = np.exp(shifted)
    total = weights.sum(axis=-1)
    return np.log(total) - (weights * np.where(weights > 0, shifted, 0.0)).sum(axis=-1) / total


def _placed(x: Array, gain: torch.Tensor | None, cos: torch.Tensor | None, sin: torch.Tensor | None,
            eps: float) -> Array:
    """Heads [B, T, heads, D] after QK-norm and rotation, those of them that there are."""
    if gain is not None:
        x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * _array(gain)
    if cos is None:
        return x
    c, s = (_array(table[: x.shape[1]])[:, None] for table in (cos, sin))
    half = c.shape[-1]
    u, v = x[..., :half], x[..., half: 2 * half]
    return np.concatenate([u * c - v * s, v * c + u * s, x[..., 2 * half:]], axis=-1)


def _array(tensor: torch.Tensor) -> Array:
    return tensor.detach().cpu().to(torch.float64).numpy()
