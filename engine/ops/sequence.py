"""Rotary positions, attention on separate queries, keys and values, and SwiGLU's activation."""

from __future__ import annotations

import torch

import kernels

from ..errors import UserError
from ..autograd import Op, Tensor
from .checks import operands
from .fused import attention
from .layout import cat, reshape


class RoPE(Op):
    def forward(self, x, *, cos, sin):
        self.angles = cos, sin
        return kernels.rope.rotate(x, cos, sin)

    def backward(self, dy):
        cos, sin = self.angles
        return kernels.rope.rotate(dy, cos, kernels.elementwise.apply("neg", sin))


def rope(x: Tensor, cos: torch.Tensor, sin: torch.Tensor, first: int = 0) -> Tensor:
    """Rotates the feature pairs (i, i + R/2) of each head by the angles of its position (arXiv 2104.09864).

    Features from R on stay as they are.

    Args:
        x: (B, T, H, D).
        cos, sin: buffers (positions, R / 2), R at most D, in the dtype of x, or in float32 beside half precision.
        first: position of the first token.
    """
    tokens = x.shape[1] if x.ndim == 4 else -1
    if x.ndim != 4 or cos.shape != sin.shape or cos.ndim != 2 or not 0 < 2 * cos.shape[1] <= x.shape[3]:
        raise UserError("rope: x must be (B, T, H, D) and cos and sin (positions, D / 2) or narrower, "
                        f"got {x.shape}, {tuple(cos.shape)} and {tuple(sin.shape)}")
    fits = cos.dtype == x.dtype or x.dtype.itemsize < cos.dtype.itemsize == 4
    if not (fits and 0 <= first <= len(cos) - tokens):
        raise UserError(f"rope: positions {first} to {first + tokens - 1} in {x.dtype} need a table that holds them, "
                        f"got {len(cos)} positions in {cos.dtype}")
    part = slice(first, first + tokens)
    return RoPE.apply(x, cos=cos[part], sin=sin[part])


def causal_attention(q: Tensor, k: Tensor, v: Tensor, doc_start: torch.Tensor | None = None,
                     window: int | None = None, alibi: torch.Tensor | None = None,
                     softcap: float | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, each query seeing the keys up to its own position, per head.

    Args:
        q: (B, T, H, D).
        k, v: (B, T, K, D), H a multiple of K; query head h uses key head h // (H / K).
        doc_start: int32 (B, T), position in the row of the first token of each token's document; keys before it
            are invisible.
        window, alibi, softcap: as in `attention`.

    Returns:
        (B, T, H, D).
    """
    q, k, v = operands(q, k, v)
    if q.ndim != 4 or k.shape != v.shape or k.ndim != 4 or (*q.shape[:2], q.shape[3]) != (*k.shape[:2], k.shape[3]):
        raise UserError("causal_attention: q must be (B, T, H, D), k and v (B, T, K, D) with the same B, T and D, "
                        f"got {q.shape}, {k.shape} and {v.shape}")
    batch, tokens, heads, dim = q.shape
    packed = cat([reshape(t, batch, tokens, -1) for t in (q, k, v)], dim=2)
    out = attention(packed, heads, k.shape[2], doc_start=doc_start, window=window, alibi=alibi, softcap=softcap)
    return reshape(out, batch, tokens, heads, dim)


class SwiGLU(Op):
    def forward(self, h):
        self.h = h
        return kernels.swiglu.forward(h)

    def backward(self, dy):
        return kernels.swiglu.backward(dy, self.h)


def swiglu(h: Tensor) -> Tensor:
    """silu(gate) * up for h = [gate | up] along the last dimension (arXiv 2002.05202).

    Args:
        h: (..., 2 f).

    Returns:
        (..., f).
    """
    if h.ndim == 0 or h.shape[-1] % 2:
        raise UserError(f"swiglu: the last dimension must be even, gate then up, got shape {h.shape}")
    return SwiGLU.apply(h)
