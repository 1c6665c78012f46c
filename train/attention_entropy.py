"""How spread out attention's weights are, computed again in NumPy from what the operation had."""

from __future__ import annotations

import numpy as np
import torch

from engine import Op
from engine.ops.fused import Attention
from engine.ops.talking_heads import TalkingHeads

Array = np.ndarray


def mean_entropy(op: Op) -> float | None:
    """Mean over rows, heads and queries of -sum_j p_j ln p_j, in nats, of an operation that has just run; float64.

    None for what is no attention. Of talking heads p is what the softmax gives, before it is mixed again.
    """
    known = {Attention: _of_attention, TalkingHeads: _of_talking_heads}
    return known[type(op)](op) if type(op) in known else None


def _of_attention(op: Attention) -> float:
    """ValueError for attention that is not causal, or has a window or a cap on its scores."""
    qkv = _array(op.saved[2])
    n_heads, n_kv_heads, cos, sin, q_gain, k_gain, eps, doc_start = op.arguments
    unknown = [name for name in ("causal", "window", "softcap")
               if op.options[name] is not (True if name == "causal" else None)]
    if unknown:
        raise ValueError(f"entropy of attention with {', '.join(unknown)} is not known here")
    slopes = np.zeros(n_heads) if op.options["alibi"] is None else _array(op.options["alibi"])
    reach, offset = (0.0, 0.0) if op.options["distance"] is None else map(_array, op.options["distance"])
    batch, tokens, width = qkv.shape
    heads = qkv.reshape(batch, tokens, n_heads + 2 * n_kv_heads, width // (n_heads + 2 * n_kv_heads))
    q, k = (_placed(part, gain, cos, sin, eps)
            for part, gain in ((heads[:, :, :n_heads], q_gain), (heads[:, :, n_heads: n_heads + n_kv_heads], k_gain)))
    positions = np.arange(tokens)
    ahead = positions[:, None] - positions
    starts = np.zeros((batch, tokens), int) if doc_start is None else _array(doc_start)
    total = 0.0
    for row in range(batch):
        seen = (positions <= positions[:, None]) & (positions >= starts[row][:, None])
        for head in range(n_heads):
            scores = q[row, :, head] @ k[row, :, head // (n_heads // n_kv_heads)].T / np.sqrt(q.shape[-1])
            scores = scores / (1 + reach * np.abs(ahead)) - offset * (ahead > 0) - slopes[head] * np.abs(ahead)
            total += _entropy(np.where(seen, scores, -np.inf)).sum()
    return float(total / (batch * n_heads * tokens))


def _of_talking_heads(op: TalkingHeads) -> float:
    (_, qkv, n_heads, *numbers), doc_start = op.saved, op.arguments
    reach, offset, before, _ = map(_array, numbers)
    batch, tokens, width = qkv.shape
    q, k, _ = _array(qkv).reshape(batch, tokens, 3, n_heads, -1).transpose(2, 0, 3, 1, 4)
    ahead = np.arange(tokens)[:, None] - np.arange(tokens)
    starts = np.zeros((batch, tokens), int) if doc_start is None else _array(doc_start)
    total = 0.0
    for row in range(batch):
        scores = q[row] @ k[row].swapaxes(1, 2) / np.sqrt(width / (3 * n_heads)) / (1 + reach * np.abs(ahead))
        mixed = np.tensordot(before, scores - offset * (ahead > 0), axes=1)
        seen = (ahead >= 0) & (np.arange(tokens) >= starts[row][:, None])
        total += sum(_entropy(np.where(seen, head, -np.inf)).sum() for head in mixed)
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
