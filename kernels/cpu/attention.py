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
from .launch import launch, launch_ranges, prepared, scratch, threads

QUERY_BLOCK = 64
SCORE_ELEMENTS = 200_000  # of a program's score block: a program should do more than call kernels


@compiled
def _softmax_rows(s, n, heads, first, low, doc_start, inverse, lse):
    """exp(s - max) in place where a query sees the key, 0 elsewhere; the reciprocal sums and log-sum-exps."""
    one = s.dtype.type(1)
    for part in range(lse.shape[0]):
        for i in range(n):
            row, query = s[part * n + i], first + i
            start, stop = doc_start[part // heads, query] - low, query + 1 - low
            row[:start] = 0
            row[stop:] = 0
            seen = row[start:stop]
            top = seen[0]
            for j in range(seen.shape[0]):
                top = maximum(top, seen[j])
            total = s.dtype.type(0)
            for j in range(seen.shape[0]):
                e = exp(seen[j] - top)
                seen[j] = e
                total += e
            inverse[part * n + i] = one / total
            lse[part, query] = top + np.log(total)


@compiled
def _softmax_backward_rows(s, dp, n, heads, first, low, doc_start, lse, delta):
    """Turns scores s into probabilities p, and dp into the gradient of the scores, p * (dp - delta)."""
    for part in range(lse.shape[0]):
        for i in range(n):
            row, d_row, query = s[part * n + i], dp[part * n + i], first + i
            start, stop = doc_start[part // heads, query] - low, query + 1 - low
            row[:start] = 0
            row[stop:] = 0
            d_row[:start] = 0
            d_row[stop:] = 0
            p, ds = row[start:stop], d_row[start:stop]
            shift, mean = lse[part, query], delta[part * n + i]
            for j in range(p.shape[0]):
                e = exp(p[j] - shift)
                p[j] = e
                ds[j] = e * (ds[j] - mean)


@dataclass
class _Block:
    """A block of queries against the keys they can see, and the working memory of its products.

    Stacks of tensors for the products; the same memory as arrays ("rows") for the compiled loops.
    """

    first: int  # query
    queries: int
    low: int  # first key
    q: torch.Tensor  # [b K, G n, D]
    k: torch.Tensor  # [b K, keys, D]
    v: torch.Tensor
    s: torch.Tensor  # [b K, G n, keys]
    out: torch.Tensor  # [b K, G n, D]: output, or dq

    def __post_init__(self):
        self.k_columns, self.v_columns = self.k.transpose(1, 2), self.v.transpose(1, 2)
        self.s_columns = self.s.transpose(1, 2)
        self.q_rows, self.out_rows = self.q.numpy(), self.out.numpy()
        self.s_rows = self.s.view(-1, self.s.shape[-1]).numpy()


class _Memory:
    """The working memory of a thread for some sequences, with the views that the products take."""

    def __init__(self, setting: _Setting, count: int, lows: list[int], backward: bool):
        tokens, dtype = setting.packed.shape[1], setting.dtype
        stacks, group, dim = count * setting.key_heads, setting.group, setting.dim
        k, v = (scratch(name, (stacks, tokens, dim), dtype) for name in "kv")
        self.k_rows, self.v_rows = k.numpy(), v.numpy()
        self.rstd_q = scratch("rstd_q", (count, tokens, setting.heads), dtype).numpy()
        self.rstd_k = scratch("rstd_k", (count, tokens, setting.key_heads), dtype).numpy()
        self.blocks: list[_Block] = []
        for first, low in reversed(list(zip(range(0, tokens, QUERY_BLOCK), lows))):  # largest first: they share memory
            n = min(QUERY_BLOCK, tokens - first)
            q, out = (scratch(name, (stacks, group * n, dim), dtype) for name in ("q", "out"))
            s = scratch("s", (stacks, group * n, first + n - low), dtype)
            self.blocks.insert(0, _Block(first, n, low, q, k[:, low: first + n], v[:, low: first + n], s, out))
        most = count * setting.heads * min(QUERY_BLOCK, tokens)
        self.inverse = scratch("inverse", (most,), dtype).numpy()
        if backward:
            self._for_backward(k, v, group, dtype)

    def _for_backward(self, k, v, group, dtype):
        self.dk, self.dv = (scratch(name, tuple(k.shape), dtype) for name in ("dk", "dv"))
        self.dk_rows, self.dv_rows = self.dk.numpy(), self.dv.numpy()
        self.work = scratch("work", (k.shape[-1],), dtype).numpy()
        for block in reversed(self.blocks):
            seen = slice(block.low, block.first + block.queries)
            block.dk, block.dv = self.dk[:, seen], self.dv[:, seen]
            block.ds, block.do = scratch("ds", tuple(block.s.shape), dtype), scratch("do", tuple(block.q.shape), dtype)
            block.ds_columns = block.ds.transpose(1, 2)
            block.ds_rows = block.ds.view(-1, block.ds.shape[-1]).numpy()
            block.do_rows = block.do.numpy()


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
    documents: bool
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
            np.zeros((batch, tokens), np.int32) if doc_start is None else doc_start.contiguous().numpy(),
            doc_start is not None, qkv.dtype,
        )

    @property
    def group(self) -> int:
        return self.heads // self.key_heads

    @property
    def value_column(self) -> int:
        return (self.heads + self.key_heads) * self.dim

    def programs(self) -> list[slice]:
        """The sequences of each program: so many that their scores of a query block fill SCORE_ELEMENTS."""
        batch, tokens = self.packed.shape[:2]
        fitting = max(1, SCORE_ELEMENTS // (self.heads * min(QUERY_BLOCK, tokens) * tokens))
        count = min(fitting, -(-batch // threads()))
        return [slice(b, min(b + count, batch)) for b in range(0, batch, count)]

    def memory(self, part: slice, backward: bool) -> _Memory:
        """Working memory for some sequences."""
        count, tokens = part.stop - part.start, self.packed.shape[1]
        starts = range(0, tokens, QUERY_BLOCK)
        if self.documents:
            return _Memory(self, count, [int(self.doc_start[part, first].min()) for first in starts], backward)
        key = "attention", QUERY_BLOCK, count, tokens, self.heads, self.key_heads, self.dim, self.dtype, backward
        return prepared(key, lambda: _Memory(self, count, [0 for _ in starts], backward))

    def take_queries(self, part: slice, block: _Block, rstd: np.ndarray) -> None:
        scale = self.eps.dtype.type(1 / math.sqrt(self.dim))
        take_heads(self.packed[part], block.first, self.heads, 0, self.group, self.normed, self.eps, self.q_gain,
                   self.cos, self.sin, scale, block.q_rows, rstd)

    def take_keys_values(self, part: slice, memory: _Memory) -> None:
        packed, key_column, value_column = self.packed[part], self.heads * self.dim, self.value_column
        take_heads(packed, 0, self.key_heads, key_column, 1, self.normed, self.eps, self.k_gain,
                   self.cos, self.sin, self.eps.dtype.type(1), memory.k_rows, memory.rstd_k)
        copy_heads(packed, 0, self.key_heads, value_column, 1, memory.v_rows)


def forward(qkv: torch.Tensor, n_heads: int, n_kv_heads: int, cos=None, sin=None, q_gain=None, k_gain=None,
            eps: float = 1e-6, doc_start=None) -> tuple[torch.Tensor, torch.Tensor]:
    setting = _Setting.of(qkv, n_heads, n_kv_heads, cos, sin, q_gain, k_gain, eps, doc_start)
    batch, tokens = qkv.shape[:2]
    group, parts = setting.group, setting.programs()
    out = memory.empty((batch, tokens, n_heads * setting.dim), qkv.dtype)
    lse = memory.empty((batch, n_heads, tokens), qkv.dtype)
    out_rows, lse_rows = out.numpy(), lse.numpy()

    def program(index: int):
        part = parts[index]
        work = setting.memory(part, backward=False)
        part_out, starts = out_rows[part], setting.doc_start[part]
        part_lse = lse_rows[part].reshape(-1, tokens)
        setting.take_keys_values(part, work)
        for block in work.blocks:
            setting.take_queries(part, block, work.rstd_q)
            multiply(block.q, block.k_columns, block.s)
            _softmax_rows(block.s_rows, block.queries, n_heads, block.first, block.low, starts, work.inverse, part_lse)
            multiply(block.s, block.v, block.out)
            store_output(block.out_rows, work.inverse, block.queries, block.first, n_heads, group, part_out)

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

    def sequences(part: slice, dgain: np.ndarray):
        work = setting.memory(part, backward=True)
        part_dout, part_out, part_packed, part_d = dout_rows[part], out_rows[part], setting.packed[part], d_packed[part]
        part_lse, starts, delta = lse_rows[part].reshape(-1, tokens), setting.doc_start[part], work.inverse
        setting.take_keys_values(part, work)
        work.dk.zero_()
        work.dv.zero_()
        for block in work.blocks:
            first, n = block.first, block.queries
            setting.take_queries(part, block, work.rstd_q)
            copy_heads(part_dout, first, n_heads, 0, group, block.do_rows)
            delta_rows(part_dout, part_out, n, first, n_heads, dim, delta)
            multiply(block.q, block.k_columns, block.s)
            multiply(block.do, block.v_columns, block.ds)
            _softmax_backward_rows(block.s_rows, block.ds_rows, n, n_heads, first, block.low, starts, part_lse, delta)
            multiply(block.s_columns, block.do, block.dv, accumulate=True)
            multiply(block.ds_columns, block.q, block.dk, accumulate=True)
            multiply(block.ds, block.k, block.out)
            give_heads(block.out_rows, first, n_heads, 0, group, setting.normed, setting.q_gain, setting.cos,
                       setting.sin, scale, part_packed, work.rstd_q, part_d, dgain[0], work.work)
        give_heads(work.dk_rows, 0, n_kv_heads, n_heads * dim, 1, setting.normed, setting.k_gain, setting.cos,
                   setting.sin, one, part_packed, work.rstd_k, part_d, dgain[1], work.work)
        store_heads(work.dv_rows, setting.value_column, part_d)

    def program(lane: int, start: int, stop: int):
        dgain = dgains[lane].zero_().numpy()
        for index in range(start, stop):
            sequences(parts[index], dgain)

    launch_ranges(program, len(parts))
    dgain = add_lanes(dgains)
    return (dqkv, dgain[0], dgain[1]) if setting.normed else (dqkv, None, None)
