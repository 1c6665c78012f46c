"""Attention with talking heads and Jerry's positions."""

from __future__ import annotations

import torch

import kernels

from ..autograd import Op, Tensor
from ..errors import UserError
from .checks import expect
from .fused import check_doc_start


class TalkingHeads(Op):
    def forward(self, qkv, reach, offset, before, after, *, n_heads, doc_start):
        out, lse = kernels.talking_heads.forward(qkv, n_heads, reach, offset, before, after, doc_start)
        self.saved, self.arguments = (lse, qkv, n_heads, reach, offset, before, after), doc_start
        return out

    def backward(self, dout):
        return kernels.talking_heads.backward(dout, *self.saved, self.arguments)


def talking_heads(qkv: Tensor, n_heads: int, reach: Tensor, offset: Tensor, before: Tensor, after: Tensor,
                  doc_start: torch.Tensor | None = None) -> Tensor:
    """Causal attention whose heads are mixed before and after the softmax (talking heads, arXiv 2003.02436), with
    positions from a reciprocal distance factor and an offset of the past.

    Query i, key j <= i, head h: s_h = q_h . k_h / sqrt(D) / (1 + reach (i - j)), less `offset` if j < i; then
    p = softmax over j of (before s), and the weights of the values are after p.

    Args:
        qkv: (B, T, 3 H D): the queries of H heads, then the keys, then the values.
        reach, offset: (1,).
        before, after: (H, H).
        doc_start: int32 (B, T), position in the row of the first token of each token's document; keys before it
            are invisible.

    Returns:
        (B, T, H D).
    """
    if qkv.ndim != 3 or not qkv.dtype.is_floating_point or n_heads < 1 or qkv.shape[-1] % (3 * n_heads):
        raise UserError(f"talking_heads: qkv must be floating-point (B, T, 3 * {n_heads} * head size), "
                        f"got {qkv.dtype}, {qkv.shape}")
    for role, value, shape in (("reach", reach, (1,)), ("offset", offset, (1,)), ("before", before, (n_heads, n_heads)),
                               ("after", after, (n_heads, n_heads))):
        expect("talking_heads", role, value, shape, qkv.dtype)
    if doc_start is not None:
        expect("talking_heads", "doc_start", doc_start, qkv.shape[:2], torch.int32)
        check_doc_start("talking_heads", doc_start)
    return TalkingHeads.apply(qkv, reach, offset, before, after, n_heads=n_heads, doc_start=doc_start)
