"""Attention with heads mixed before and after the softmax: allocates what the programs write, adds up their parts."""

from __future__ import annotations

import torch

from .. import memory
from . import reduce, talking_heads_backward, talking_heads_forward
from .rows import contiguous
from .talking_heads_scores import Setting


def forward(qkv: torch.Tensor, n_heads: int, reach: torch.Tensor, offset: torch.Tensor, before: torch.Tensor,
            after: torch.Tensor, doc_start: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    setting = Setting.of(qkv, n_heads, reach, offset, before, after, doc_start, backward=False)
    batch, tokens = qkv.shape[:2]
    lse = memory.empty((batch, n_heads, tokens), torch.float32, qkv.device)
    out = memory.empty((batch, tokens, n_heads * setting.dim), qkv.dtype, qkv.device)
    talking_heads_forward.run(setting, lse, out)
    return out, lse


def backward(dout: torch.Tensor, lse: torch.Tensor, qkv: torch.Tensor, n_heads: int, reach: torch.Tensor,
             offset: torch.Tensor, before: torch.Tensor, after: torch.Tensor, doc_start: torch.Tensor | None = None):
    setting = Setting.of(qkv, n_heads, reach, offset, before, after, doc_start, backward=True)
    dqkv = memory.empty(qkv.shape, qkv.dtype, qkv.device)
    deltas = memory.empty(lse.shape, torch.float32, qkv.device)
    parts = talking_heads_backward.run(setting, contiguous(dout), lse, deltas, dqkv,
                                       lambda *shape: memory.empty(shape, torch.float32, qkv.device))
    dbefore, dafter, scalars = (reduce.reduce(part, "sum", (0,))[0].to(qkv.dtype) for part in parts)
    return dqkv, scalars[0].view(reach.shape), scalars[1].view(offset.shape), dbefore, dafter
