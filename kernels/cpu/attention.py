"""Causal attention on the packed projection, one sequence per program.

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
from .lanes import add_lanes, lane_buffers
from .launch import launch, launch_ranges, scratch

QUERY_BLOCK = 128


@compiled
def _take_heads(packed, first, heads, column, group, normed, eps, gain, cos, sin, scale, out, rstd):
    """out[head // group, (head % group) * n + i] = rotated, normed and scaled head of token first + i."""
    n, half = out.shape[1] // group, gain.shape[0] // 2
    dim = 2 * half
    one = packed.dtype.type(1)
    for i in range(n):
        token = first + i
        for head in range(heads):
            x = packed[token, column + head * dim: column + head * dim + dim]
            y = out[head // group, head % group * n + i]
            r = one
            if normed:
                total = packed.dtype.type(0)
                for j in range(dim):
                    total += x[j] * x[j]
                r = one / np.sqrt(total / packed.dtype.type(dim) + eps)
            rstd[token, head] = r
            r *= scale
            for j in range(half):
                a, b = x[j] * gain[j] * r, x[j + half] * gain[j + half] * r
                y[j] = a * cos[token, j] - b * sin[token, j]
                y[j + half] = b * cos[token, j] + a * sin[token, j]


@compiled
def _give_heads(dout, first, heads, column, group, normed, gain, cos, sin, scale, packed, rstd, dpacked, dgain, work):
    """The gradient of `_take_heads`: writes dpacked, adds to dgain. `work` holds one head."""
    n, half = dout.shape[1] // group, gain.shape[0] // 2
    dim = 2 * half
    for i in range(n):
        token = first + i
        for head in range(heads):
            dy = dout[head // group, head % group * n + i]
            x = packed[token, column + head * dim: column + head * dim + dim]
            dx = dpacked[token, column + head * dim: column + head * dim + dim]
            for j in range(half):
                work[j] = (dy[j] * cos[token, j] + dy[j + half] * sin[token, j]) * scale
                work[j + half] = (dy[j + half] * cos[token, j] - dy[j] * sin[token, j]) * scale
            if not normed:
                for j in range(dim):
                    dx[j] = work[j]
                continue
            r = rstd[token, head]
            dot = packed.dtype.type(0)
            for j in range(dim):
                dot += work[j] * gain[j] * x[j]
            dot *= r * r * r / packed.dtype.type(dim)
            for j in range(dim):
                dgain[j] += work[j] * x[j] * r
                dx[j] = work[j] * gain[j] * r - x[j] * dot


@compiled
def _copy_heads(rows, first, heads, column, group, out):
    """out[head // group, (head % group) * n + i] = the head's features of token first + i."""
    n, dim = out.shape[1] // group, out.shape[2]
    for i in range(n):
        for head in range(heads):
            y = out[head // group, head % group * n + i]
            x = rows[first + i, column + head * dim: column + head * dim + dim]
            for j in range(dim):
                y[j] = x[j]


@compiled
def _softmax_rows(s, n, first, low, doc_start, inverse, lse):
    """exp(s - max) in place where a query sees the key, 0 elsewhere; the reciprocal sums and log-sum-exps."""
    one = s.dtype.type(1)
    for i in range(s.shape[0]):
        query = first + i % n
        start, stop = doc_start[query] - low, query + 1 - low
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
def _softmax_backward_rows(s, dp, n, first, low, doc_start, lse, delta):
    """Turns scores s into probabilities p, and dp into the gradient of the scores, p * (dp - delta)."""
    for i in range(s.shape[0]):
        query = first + i % n
        start, stop = doc_start[query] - low, query + 1 - low
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


@compiled
def _store_output(o, inverse, n, first, heads, group, out):
    """out[first + i, head] = o's row times its reciprocal sum."""
    dim = o.shape[2]
    for i in range(n):
        for head in range(heads):
            row = head % group * n + i
            scale = inverse[head // group * group * n + row]
            x, y = o[head // group, row], out[first + i, head * dim: head * dim + dim]
            for j in range(dim):
                y[j] = x[j] * scale


@compiled
def _delta_rows(dout, out, n, first, heads, dim, delta):
    """delta[head * n + i] = dout . out of the head's row of token first + i (heads in stacked order)."""
    for i in range(n):
        for head in range(heads):
            x, y = dout[first + i, head * dim: head * dim + dim], out[first + i, head * dim: head * dim + dim]
            total = out.dtype.type(0)
            for j in range(dim):
                total += x[j] * y[j]
            delta[head * n + i] = total


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

    def query_blocks(self, sequence: int):
        """(first query, queries, first visible key) of each block of a sequence."""
        tokens = self.packed.shape[1]
        for first in range(0, tokens, QUERY_BLOCK):
            yield first, min(QUERY_BLOCK, tokens - first), int(self.doc_start[sequence, first])

    def queries(self, sequence: int, first: int, n: int, rstd: np.ndarray) -> torch.Tensor:
        """[K, G n, D] queries of a block, ready for the product."""
        q = scratch("q", (self.key_heads, self.group * n, self.dim), self.dtype)
        scale = self.eps.dtype.type(1 / math.sqrt(self.dim))
        _take_heads(self.packed[sequence], first, self.heads, 0, self.group, self.normed, self.eps, self.q_gain,
                    self.cos, self.sin, scale, q.numpy(), rstd)
        return q

    def keys_values(self, sequence: int, rstd: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """[K, T, D] keys and values of a sequence."""
        tokens = self.packed.shape[1]
        shape = (self.key_heads, tokens, self.dim)
        k, v = scratch("k", shape, self.dtype), scratch("v", shape, self.dtype)
        key_column, value_column = self.heads * self.dim, (self.heads + self.key_heads) * self.dim
        _take_heads(self.packed[sequence], 0, self.key_heads, key_column, 1, self.normed, self.eps, self.k_gain,
                    self.cos, self.sin, self.eps.dtype.type(1), k.numpy(), rstd)
        _copy_heads(self.packed[sequence], 0, self.key_heads, value_column, 1, v.numpy())
        return k, v


def forward(qkv: torch.Tensor, n_heads: int, n_kv_heads: int, cos=None, sin=None, q_gain=None, k_gain=None,
            eps: float = 1e-6, doc_start=None) -> tuple[torch.Tensor, torch.Tensor]:
    setting = _Setting.of(qkv, n_heads, n_kv_heads, cos, sin, q_gain, k_gain, eps, doc_start)
    batch, tokens = qkv.shape[:2]
    key_heads, group, dim = n_kv_heads, setting.group, setting.dim
    out = memory.empty((batch, tokens, n_heads * dim), qkv.dtype)
    lse = memory.empty((batch, n_heads, tokens), qkv.dtype)
    out_rows, lse_rows = out.numpy(), lse.numpy()

    def program(b: int):
        rstd = scratch("rstd", (tokens, n_heads), qkv.dtype).numpy()
        k, v = setting.keys_values(b, rstd)
        for first, n, low in setting.query_blocks(b):
            q = setting.queries(b, first, n, rstd)
            seen = slice(low, first + n)
            s = scratch("s", (key_heads, group * n, first + n - low), qkv.dtype)
            multiply(q, k[:, seen].transpose(1, 2), s)
            inverse = scratch("inverse", (n_heads * n,), qkv.dtype).numpy()
            _softmax_rows(s.view(n_heads * n, -1).numpy(), n, first, low, setting.doc_start[b], inverse, lse_rows[b])
            o = scratch("o", (key_heads, group * n, dim), qkv.dtype)
            multiply(s, v[:, seen], o)
            _store_output(o.numpy(), inverse, n, first, n_heads, group, out_rows[b])

    launch(program, batch)
    return out, lse


def backward(dout: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, qkv: torch.Tensor, n_heads: int,
             n_kv_heads: int, cos=None, sin=None, q_gain=None, k_gain=None, eps: float = 1e-6, doc_start=None):
    setting = _Setting.of(qkv, n_heads, n_kv_heads, cos, sin, q_gain, k_gain, eps, doc_start)
    batch, tokens = qkv.shape[:2]
    key_heads, group, dim = n_kv_heads, setting.group, setting.dim
    dqkv = memory.empty(qkv.shape, qkv.dtype)
    d_packed, dout_rows, out_rows, lse_rows = dqkv.numpy(), dout.contiguous().numpy(), out.numpy(), lse.numpy()
    dgains = lane_buffers(batch, (2, dim), qkv)
    scale = setting.eps.dtype.type(1 / math.sqrt(dim))
    key_column, value_column = n_heads * dim, (n_heads + n_kv_heads) * dim

    def sequence(b: int, dgain: np.ndarray):
        rstd_q = scratch("rstd_q", (tokens, n_heads), qkv.dtype).numpy()
        rstd_k = scratch("rstd_k", (tokens, n_heads), qkv.dtype).numpy()
        work = scratch("work", (dim,), qkv.dtype).numpy()
        k, v = setting.keys_values(b, rstd_k)
        dk, dv = (scratch(name, tuple(k.shape), qkv.dtype).zero_() for name in ("dk", "dv"))
        for first, n, low in setting.query_blocks(b):
            q = setting.queries(b, first, n, rstd_q)
            seen = slice(low, first + n)
            rows = (key_heads, group * n)
            s, dp = (scratch(name, (*rows, first + n - low), qkv.dtype) for name in ("s", "dp"))
            do = scratch("do", (*rows, dim), qkv.dtype)
            delta = scratch("delta", (n_heads * n,), qkv.dtype).numpy()
            _copy_heads(dout_rows[b], first, n_heads, 0, group, do.numpy())
            _delta_rows(dout_rows[b], out_rows[b], n, first, n_heads, dim, delta)
            multiply(q, k[:, seen].transpose(1, 2), s)
            multiply(do, v[:, seen].transpose(1, 2), dp)
            _softmax_backward_rows(s.view(n_heads * n, -1).numpy(), dp.view(n_heads * n, -1).numpy(), n, first, low,
                                   setting.doc_start[b], lse_rows[b], delta)
            multiply(s.transpose(1, 2), do, dv[:, seen], accumulate=True)
            multiply(dp.transpose(1, 2), q, dk[:, seen], accumulate=True)
            dq = scratch("dq", (*rows, dim), qkv.dtype)
            multiply(dp, k[:, seen], dq)
            _give_heads(dq.numpy(), first, n_heads, 0, group, setting.normed, setting.q_gain, setting.cos, setting.sin,
                        scale, setting.packed[b], rstd_q, d_packed[b], dgain[0], work)
        _give_heads(dk.numpy(), 0, n_kv_heads, key_column, 1, setting.normed, setting.k_gain, setting.cos, setting.sin,
                    setting.eps.dtype.type(1), setting.packed[b], rstd_k, d_packed[b], dgain[1], work)
        _store_heads(dv.numpy(), value_column, d_packed[b])

    def program(lane: int, start: int, stop: int):
        dgain = dgains[lane].zero_().numpy()
        for b in range(start, stop):
            sequence(b, dgain)

    launch_ranges(program, batch)
    dgain = add_lanes(dgains)
    return (dqkv, dgain[0], dgain[1]) if setting.normed else (dqkv, None, None)


@compiled
def _store_heads(heads, column, rows):
    """rows[i, column + head D ...] = heads[head, i]."""
    dim = heads.shape[2]
    for i in range(heads.shape[1]):
        for head in range(heads.shape[0]):
            x, y = heads[head, i], rows[i, column + head * dim: column + head * dim + dim]
            for j in range(dim):
                y[j] = x[j]
