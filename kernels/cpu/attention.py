"""Causal attention on the packed projection, one or a few sequences per program.

A program normalises and rotates its queries and keys in the cache, then takes blocks of queries against the keys
they can see: scores, softmax and both products of a block never leave the cache, and the T x T matrix never exists.
Queries of heads that share a key head are stacked, so grouped-query attention is a taller product.

QK-norm: arXiv 2302.05442, section 2. RoPE: arXiv 2104.09864, section 3.4.2, pairing feature i with i + D/2.
Backward: FlashAttention-2, arXiv 2307.08691, algorithm 2.

Shapes: T tokens, H query heads, K key heads, G = H / K, D features per head, n queries in a block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from .. import memory
from .compiled import compiled, exp, maximum
from .gemm import multiply
from .heads import copy_heads, delta_rows, give_heads, store_heads, store_output, take_heads
from .lanes import add_lanes, lane_buffers
from .launch import launch, launch_ranges, scratch, threads

QUERY_BLOCK = 128
SCORE_ELEMENTS = 200_000  # of a program's score block: a program should do more than call kernels


@compiled
def _softmax_rows(s, n, heads, first, low, doc_start, inverse, lse):
    """exp(s - max) in place where a query sees the key, 0 elsewhere; the reciprocal sums and log-sum-exps."""
    one = s.dtype.type(1)
    for i in range(s.shape[0]):
        query = first + i % n
        start, stop = doc_start[i // (n * heads), query] - low, query + 1 - low
        s[i, :start] = 0
        s[i, stop:] = 0
        seen = s[i, start:stop]
        top = seen[0]
        for j in range(seen.shape[0]):
            top = maximum(top, seen[j])
        total = s.dtype.type(0)
        for j in range(seen.shape[0]):
            e = exp(seen[j] - top)
            seen[j] = e
            total += e
        inverse[i] = one / total
        lse[i // n, query] = top + np.log(total)


@compiled
def _softmax_backward_rows(s, dp, n, heads, first, low, doc_start, lse, delta):
    """Turns scores s into probabilities p, and dp into the gradient of the scores, p * (dp - delta)."""
    for i in range(s.shape[0]):
        query = first + i % n
        start, stop = doc_start[i // (n * heads), query] - low, query + 1 - low
        s[i, :start] = 0
        s[i, stop:] = 0
        dp[i, :start] = 0
        dp[i, stop:] = 0
        p, ds = s[i, start:stop], dp[i, start:stop]
        shift, mean = lse[i // n, query], delta[i]
        for j in range(p.shape[0]):
            e = exp(p[j] - shift)
            p[j] = e
            ds[j] = e * (ds[j] - mean)


@dataclass
class _Setting:
    """The arguments of one call in the form the programs use."""

    packed: np.ndarray  # [B, T, (H + 2K) D]
    heads: int
    key_heads: int
    dim: int
    cos: np.ndarray  # [>= T, D/2]
    sin: np.ndarray
    q_gain: np.ndarray  # [D]
    k_gain: np.ndarray
    normed: bool
    eps: np.floating
    doc_start: np.ndarray  # [B, T]
    dtype: torch.dtype

    @classmethod
    def of(cls, qkv, n_heads, n_kv_heads, cos, sin, q_gain, k_gain, eps, doc_start):
        batch, tokens, width = qkv.shape
        dim = width // (n_heads + 2 * n_kv_heads)
        scalar = np.dtype(str(qkv.dtype).removeprefix("torch.")).type
        ones = np.ones(dim, scalar)
        return cls(
            qkv.contiguous().numpy(), n_heads, n_kv_heads, dim,
            np.ones((tokens, dim // 2), scalar) if cos is None else cos.contiguous().numpy(),
            np.zeros((tokens, dim // 2), scalar) if sin is None else sin.contiguous().numpy(),
            ones if q_gain is None else q_gain.contiguous().numpy(),
            ones if k_gain is None else k_gain.contiguous().numpy(),
            q_gain is not None, scalar(eps),
            np.zeros((batch, tokens), np.int32) if doc_start is None else doc_start.contiguous().numpy(), qkv.dtype,
        )

    @property
    def group(self) -> int:
        return self.heads // self.key_heads

    def programs(self) -> list[slice]:
        """The sequences of each program: so many that their scores of a query block fill SCORE_ELEMENTS."""
        batch, tokens = self.packed.shape[:2]
        fitting = max(1, SCORE_ELEMENTS // (self.heads * min(QUERY_BLOCK, tokens) * tokens))
        count = min(fitting, -(-batch // threads()))
        return [slice(b, min(b + count, batch)) for b in range(0, batch, count)]

    def query_blocks(self, part: slice):
        """(first query, queries, first visible key) of each block of some sequences."""
        tokens = self.packed.shape[1]
        for first in range(0, tokens, QUERY_BLOCK):
            yield first, min(QUERY_BLOCK, tokens - first), int(self.doc_start[part, first].min())

    def queries(self, part: slice, first: int, n: int, rstd: np.ndarray) -> torch.Tensor:
        """[b K, G n, D] queries of a block, ready for the product."""
        q = scratch("q", ((part.stop - part.start) * self.key_heads, self.group * n, self.dim), self.dtype)
        scale = self.eps.dtype.type(1 / math.sqrt(self.dim))
        take_heads(self.packed[part], first, self.heads, 0, self.group, self.normed, self.eps, self.q_gain,
                    self.cos, self.sin, scale, q.numpy(), rstd)
        return q

    def keys_values(self, part: slice, rstd: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """[b K, T, D] keys and values of some sequences."""
        shape = ((part.stop - part.start) * self.key_heads, self.packed.shape[1], self.dim)
        k, v = scratch("k", shape, self.dtype), scratch("v", shape, self.dtype)
        key_column, value_column = self.heads * self.dim, (self.heads + self.key_heads) * self.dim
        take_heads(self.packed[part], 0, self.key_heads, key_column, 1, self.normed, self.eps, self.k_gain,
                    self.cos, self.sin, self.eps.dtype.type(1), k.numpy(), rstd)
        copy_heads(self.packed[part], 0, self.key_heads, value_column, 1, v.numpy())
        return k, v


def forward(qkv: torch.Tensor, n_heads: int, n_kv_heads: int, cos=None, sin=None, q_gain=None, k_gain=None,
            eps: float = 1e-6, doc_start=None) -> tuple[torch.Tensor, torch.Tensor]:
    setting = _Setting.of(qkv, n_heads, n_kv_heads, cos, sin, q_gain, k_gain, eps, doc_start)
    batch, tokens = qkv.shape[:2]
    group, dim, parts = setting.group, setting.dim, setting.programs()
    out = memory.empty((batch, tokens, n_heads * dim), qkv.dtype)
    lse = memory.empty((batch, n_heads, tokens), qkv.dtype)
    out_rows, lse_rows = out.numpy(), lse.numpy()

    def program(index: int):
        part = parts[index]
        count = part.stop - part.start
        rstd = scratch("rstd", (count, tokens, n_heads), qkv.dtype).numpy()
        part_lse = lse_rows[part].reshape(count * n_heads, tokens)
        k, v = setting.keys_values(part, rstd)
        for first, n, low in setting.query_blocks(part):
            q = setting.queries(part, first, n, rstd)
            seen, rows = slice(low, first + n), count * n_heads * n
            s = scratch("s", (*q.shape[:2], first + n - low), qkv.dtype)
            multiply(q, k[:, seen].transpose(1, 2), s)
            inverse = scratch("inverse", (rows,), qkv.dtype).numpy()
            _softmax_rows(s.view(rows, -1).numpy(), n, n_heads, first, low, setting.doc_start[part], inverse, part_lse)
            o = scratch("o", tuple(q.shape), qkv.dtype)
            multiply(s, v[:, seen], o)
            store_output(o.numpy(), inverse, n, first, n_heads, group, out_rows[part])

    launch(program, len(parts))
    return out, lse


def backward(dout: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, qkv: torch.Tensor, n_heads: int,
             n_kv_heads: int, cos=None, sin=None, q_gain=None, k_gain=None, eps: float = 1e-6, doc_start=None):
    setting = _Setting.of(qkv, n_heads, n_kv_heads, cos, sin, q_gain, k_gain, eps, doc_start)
    tokens, group, dim, parts = qkv.shape[1], setting.group, setting.dim, setting.programs()
    dqkv = memory.empty(qkv.shape, qkv.dtype)
    d_packed, dout_rows, out_rows, lse_rows = dqkv.numpy(), dout.contiguous().numpy(), out.numpy(), lse.numpy()
    dgains = lane_buffers(len(parts), (2, dim), qkv)
    one = setting.eps.dtype.type(1)
    scale = one / setting.eps.dtype.type(math.sqrt(dim))
    key_column, value_column = n_heads * dim, (n_heads + n_kv_heads) * dim

    def sequences(part: slice, dgain: np.ndarray):
        count = part.stop - part.start
        rstd_q = scratch("rstd_q", (count, tokens, n_heads), qkv.dtype).numpy()
        rstd_k = scratch("rstd_k", (count, tokens, n_heads), qkv.dtype).numpy()
        work = scratch("work", (dim,), qkv.dtype).numpy()
        part_lse = lse_rows[part].reshape(count * n_heads, tokens)
        k, v = setting.keys_values(part, rstd_k)
        dk, dv = (scratch(name, tuple(k.shape), qkv.dtype).zero_() for name in ("dk", "dv"))
        for first, n, low in setting.query_blocks(part):
            q = setting.queries(part, first, n, rstd_q)
            seen, rows = slice(low, first + n), count * n_heads * n
            s, dp = (scratch(name, (*q.shape[:2], first + n - low), qkv.dtype) for name in ("s", "dp"))
            do, dq = (scratch(name, tuple(q.shape), qkv.dtype) for name in ("do", "dq"))
            delta = scratch("delta", (rows,), qkv.dtype).numpy()
            copy_heads(dout_rows[part], first, n_heads, 0, group, do.numpy())
            delta_rows(dout_rows[part], out_rows[part], n, first, n_heads, dim, delta)
            multiply(q, k[:, seen].transpose(1, 2), s)
            multiply(do, v[:, seen].transpose(1, 2), dp)
            _softmax_backward_rows(s.view(rows, -1).numpy(), dp.view(rows, -1).numpy(), n, n_heads, first, low,
                                   setting.doc_start[part], part_lse, delta)
            multiply(s.transpose(1, 2), do, dv[:, seen], accumulate=True)
            multiply(dp.transpose(1, 2), q, dk[:, seen], accumulate=True)
            multiply(dp, k[:, seen], dq)
            give_heads(dq.numpy(), first, n_heads, 0, group, setting.normed, setting.q_gain, setting.cos, setting.sin,
                        scale, setting.packed[part], rstd_q, d_packed[part], dgain[0], work)
        give_heads(dk.numpy(), 0, n_kv_heads, key_column, 1, setting.normed, setting.k_gain, setting.cos, setting.sin,
                    one, setting.packed[part], rstd_k, d_packed[part], dgain[1], work)
        store_heads(dv.numpy(), value_column, d_packed[part])

    def program(lane: int, start: int, stop: int):
        dgain = dgains[lane].zero_().numpy()
        for index in range(start, stop):
            sequences(parts[index], dgain)

    launch_ranges(program, len(parts))
    dgain = add_lanes(dgains)
    return (dqkv, dgain[0], dgain[1]) if setting.normed else (dqkv, None, None)
