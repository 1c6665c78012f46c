"""Attention on the packed projection, one or a few sequences per program.

A program normalises and rotates its queries and keys in the cache, then takes blocks of queries against the keys
they can see: scores, softmax and both products of a block never leave the cache, and the T x T matrix never exists.
Queries of heads that share a key head are stacked, so grouped-query attention is a taller product.

QK-norm: arXiv 2302.05442, section 2. RoPE: arXiv 2104.09864, section 3.4.2, pairing feature i with i + R/2 among
the first R, R/2 being the width of the tables.
Backward: FlashAttention-2, arXiv 2307.08691, algorithm 2.

Shapes: T tokens, H query heads, K key heads, G = H / K, D features per head, n queries in a block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from .. import memory
from .attention_scores import shape_rows, shaped_backward_rows, softmax_backward_rows, softmax_rows, visible_keys
from .gemm import multiply
from .heads import copy_heads, delta_rows, give_heads, give_heads_partly, store_heads, store_output, take_heads
from .lanes import add_lanes, lane_buffers
from .launch import launch, launch_ranges, prepared, scratch, threads
from .rounding import emulating, rounded

QUERY_BLOCK = 64
SCORE_ELEMENTS = 200_000  # of a program's score block: a program should do more than call kernels


@dataclass(frozen=True)
class _Span:
    """A block of queries, and the range of keys that some of them see."""

    first: int  # query
    queries: int
    low: int  # first key
    high: int

    @property
    def scores(self) -> int:
        return self.queries * (self.high - self.low)


@dataclass
class _Block:
    """A block of queries against the keys they can see, and the working memory of its products.

    Stacks of tensors for the products; the same memory as arrays ("rows") for the compiled loops.
    """

    span: _Span
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

    def __init__(self, setting: _Setting, count: int, spans: list[_Span], backward: bool):
        tokens, dtype = setting.packed.shape[1], setting.dtype
        stacks, group, dim = count * setting.key_heads, setting.group, setting.dim
        k, v = (scratch(name, (stacks, tokens, dim), dtype) for name in "kv")
        self.k, self.k_rows, self.v_rows = k, k.numpy(), v.numpy()
        self.rstd_q = scratch("rstd_q", (count, tokens, setting.heads), dtype).numpy()
        self.rstd_k = scratch("rstd_k", (count, tokens, setting.key_heads), dtype).numpy()
        ordered = []
        for span in sorted(spans, key=lambda span: -span.scores):  # largest first: they share memory
            n, seen = span.queries, slice(span.low, span.high)
            q, out = (scratch(name, (stacks, group * n, dim), dtype) for name in ("q", "out"))
            s = scratch("s", (stacks, group * n, span.high - span.low), dtype)
            ordered.append(_Block(span, q, k[:, seen], v[:, seen], s, out))
        self.blocks = sorted(ordered, key=lambda block: block.span.first)
        most = count * setting.heads * min(QUERY_BLOCK, tokens)
        self.inverse = scratch("inverse", (most,), dtype).numpy()
        if backward:
            self._for_backward(ordered, k, dtype)

    def _for_backward(self, ordered: list[_Block], k: torch.Tensor, dtype: torch.dtype):
        self.dk, self.dv = (scratch(name, tuple(k.shape), dtype) for name in ("dk", "dv"))
        self.dk_rows, self.dv_rows = self.dk.numpy(), self.dv.numpy()
        self.work = scratch("work", (k.shape[-1],), dtype).numpy()
        for block in ordered:
            seen = slice(block.span.low, block.span.high)
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
    cos: np.ndarray  # [>= T, R/2]
    sin: np.ndarray
    q_gain: np.ndarray  # [D]
    k_gain: np.ndarray
    normed: bool
    eps: np.floating
    starts: np.ndarray  # [B, T], the first key that a query sees
    stops: np.ndarray  # [B, T], the key after the last
    rule: tuple | None  # what starts and stops depend on, if not on documents
    slopes: np.ndarray  # [H], of ALiBi
    cap: np.floating  # 0 for none
    reach: np.floating
    offset: np.floating
    shaped: bool  # whether scores are more than products
    dtype: torch.dtype

    @classmethod
    def of(cls, qkv, n_heads, n_kv_heads, cos, sin, q_gain, k_gain, eps, doc_start, causal, window, alibi, softcap,
           distance):
        batch, tokens, width = qkv.shape
        dim = width // (n_heads + 2 * n_kv_heads)
        scalar = np.dtype(str(qkv.dtype).removeprefix("torch.")).type
        ones = np.ones(dim, scalar)
        documents = None if doc_start is None else doc_start.contiguous().numpy()
        return cls(
            qkv.contiguous().numpy(), n_heads, n_kv_heads, dim,
            np.ones((tokens, dim // 2), scalar) if cos is None else cos.contiguous().numpy(),
            np.zeros((tokens, dim // 2), scalar) if sin is None else sin.contiguous().numpy(),
            ones if q_gain is None else q_gain.contiguous().numpy(),
            ones if k_gain is None else k_gain.contiguous().numpy(),
            q_gain is not None, scalar(eps), *visible_keys(batch, tokens, documents, causal, window),
            (causal, window) if documents is None else None,
            np.zeros(n_heads, scalar) if alibi is None else alibi.numpy().astype(scalar),
            scalar(softcap or 0), *((scalar(0), scalar(0)) if distance is None else (t.numpy()[0] for t in distance)),
            any(shaping is not None for shaping in (alibi, softcap, distance)), qkv.dtype,
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
        if self.rule is None:
            return _Memory(self, count, self.spans(part), backward)
        key = ("attention", QUERY_BLOCK, count, tokens, self.heads, self.key_heads, self.dim, self.dtype, backward,
               self.rule)
        return prepared(key, lambda: _Memory(self, count, self.spans(part), backward))

    def spans(self, part: slice) -> list[_Span]:
        """The blocks of queries, each with at least one key."""
        spans, tokens = [], self.packed.shape[1]
        for first in range(0, tokens, QUERY_BLOCK):
            n = min(QUERY_BLOCK, tokens - first)
            low = min(int(self.starts[part, first: first + n].min()), tokens - 1)
            spans.append(_Span(first, n, low, max(low + 1, int(self.stops[part, first: first + n].max()))))
        return spans

    def take_queries(self, part: slice, block: _Block, rstd: np.ndarray) -> None:
        scale = self.eps.dtype.type(1 / math.sqrt(self.dim))
        late = emulating()  # a GPU stores queries as they are, and scales scores
        take_heads(self.packed[part], block.span.first, self.heads, 0, self.group, self.normed, self.eps, self.q_gain,
                   self.cos, self.sin, self.eps.dtype.type(1) if late else scale, block.q_rows, rstd)
        if late:
            rounded(block.q)
            block.q_rows *= scale

    def take_keys_values(self, part: slice, memory: _Memory) -> None:
        packed, key_column, value_column = self.packed[part], self.heads * self.dim, self.value_column
        take_heads(packed, 0, self.key_heads, key_column, 1, self.normed, self.eps, self.k_gain,
                   self.cos, self.sin, self.eps.dtype.type(1), memory.k_rows, memory.rstd_k)
        rounded(memory.k)
        copy_heads(packed, 0, self.key_heads, value_column, 1, memory.v_rows)


def forward(qkv: torch.Tensor, n_heads: int, n_kv_heads: int, cos=None, sin=None, q_gain=None, k_gain=None,
            eps: float = 1e-6, doc_start=None, causal: bool = True, window: int | None = None, alibi=None,
            softcap: float | None = None, distance=None) -> tuple[torch.Tensor, torch.Tensor]:
    setting = _Setting.of(qkv, n_heads, n_kv_heads, cos, sin, q_gain, k_gain, eps, doc_start, causal, window, alibi,
                          softcap, distance)
    batch, tokens = qkv.shape[:2]
    group, parts = setting.group, setting.programs()
    out = memory.empty((batch, tokens, n_heads * setting.dim), qkv.dtype)
    lse = memory.empty((batch, n_heads, tokens), qkv.dtype)
    out_rows, lse_rows = out.numpy(), lse.numpy()

    def program(index: int):
        part = parts[index]
        work = setting.memory(part, backward=False)
        part_out, part_lse = out_rows[part], lse_rows[part].reshape(-1, tokens)
        starts, stops = setting.starts[part], setting.stops[part]
        setting.take_keys_values(part, work)
        for block in work.blocks:
            first, n, low = block.span.first, block.span.queries, block.span.low
            setting.take_queries(part, block, work.rstd_q)
            multiply(block.q, block.k_columns, block.s)
            if setting.shaped:
                shape_rows(block.s_rows, n, n_heads, first, low, starts, stops, setting.slopes, setting.cap,
                           setting.reach, setting.offset)
            softmax_rows(block.s_rows, n, n_heads, first, low, starts, stops, work.inverse, part_lse)
            if emulating():
                _sum_rounded(rounded(block.s), n, first, work.inverse, part_lse)
            multiply(block.s, block.v, block.out)
            store_output(block.out_rows, work.inverse, n, first, n_heads, group, part_out)

    launch(program, len(parts))
    return out, lse


def _sum_rounded(weights: torch.Tensor, n: int, first: int, inverse: np.ndarray, lse: np.ndarray) -> None:
    """What `softmax_rows` says of sums, for weights that were rounded since, as a GPU sums those it multiplies."""
    total = weights.numpy().sum(axis=-1).reshape(-1, n)
    before = inverse[: total.size].reshape(total.shape)
    np.copyto(total, 1, where=total == 0)
    lse[:, first: first + n] += np.log(total * before, where=before > 0, out=np.zeros_like(total))
    np.divide(1, total, out=before, where=before > 0)


def backward(dout: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, qkv: torch.Tensor, n_heads: int,
             n_kv_heads: int, cos=None, sin=None, q_gain=None, k_gain=None, eps: float = 1e-6, doc_start=None,
             causal: bool = True, window: int | None = None, alibi=None, softcap: float | None = None, distance=None):
    setting = _Setting.of(qkv, n_heads, n_kv_heads, cos, sin, q_gain, k_gain, eps, doc_start, causal, window, alibi,
                          softcap, distance)
    tokens, group, dim, parts = qkv.shape[1], setting.group, setting.dim, setting.programs()
    dqkv = memory.empty(qkv.shape, qkv.dtype)
    d_packed, dout_rows, out_rows, lse_rows = dqkv.numpy(), dout.contiguous().numpy(), out.numpy(), lse.numpy()
    dgains = lane_buffers(len(parts), (2, dim), qkv)
    sums = np.zeros((len(dgains), 2))  # float64: of as many terms as there are scores
    give = give_heads if 2 * setting.cos.shape[1] == dim else give_heads_partly
    one = setting.eps.dtype.type(1)
    scale = one / setting.eps.dtype.type(math.sqrt(dim))

    def sequences(part: slice, dgain: np.ndarray, dscalars: np.ndarray):
        work = setting.memory(part, backward=True)
        part_dout, part_out, part_packed, part_d = dout_rows[part], out_rows[part], setting.packed[part], d_packed[part]
        part_lse, delta = lse_rows[part].reshape(-1, tokens), work.inverse
        starts, stops = setting.starts[part], setting.stops[part]
        setting.take_keys_values(part, work)
        work.dk.zero_()
        work.dv.zero_()
        for block in work.blocks:
            first, n, low = block.span.first, block.span.queries, block.span.low
            setting.take_queries(part, block, work.rstd_q)
            copy_heads(part_dout, first, n_heads, 0, group, block.do_rows)
            delta_rows(part_dout, part_out, n, first, n_heads, dim, delta)
            multiply(block.q, block.k_columns, block.s)
            multiply(block.do, block.v_columns, block.ds)
            if setting.shaped:
                shaped_backward_rows(block.s_rows, block.ds_rows, n, n_heads, first, low, starts, stops,
                                     setting.slopes, setting.cap, setting.reach, setting.offset, part_lse, delta,
                                     dscalars)
            else:
                softmax_backward_rows(block.s_rows, block.ds_rows, n, n_heads, first, low, starts, stops, part_lse,
                                      delta)
            rounded(block.s)
            rounded(block.ds)
            multiply(block.s_columns, block.do, block.dv, accumulate=True)
            multiply(block.ds_columns, block.q, block.dk, accumulate=True)
            multiply(block.ds, block.k, block.out)
            if emulating():
                block.out_rows *= scale
                rounded(block.out)
            give(block.out_rows, first, n_heads, 0, group, setting.normed, setting.q_gain, setting.cos, setting.sin,
                 one if emulating() else scale, part_packed, work.rstd_q, part_d, dgain[0], work.work)
        rounded(work.dk)
        give(work.dk_rows, 0, n_kv_heads, n_heads * dim, 1, setting.normed, setting.k_gain, setting.cos,
                   setting.sin, one, part_packed, work.rstd_k, part_d, dgain[1], work.work)
        store_heads(work.dv_rows, setting.value_column, part_d)

    def program(lane: int, start: int, stop: int):
        dgain = dgains[lane].zero_().numpy()
        for index in range(start, stop):
            sequences(parts[index], dgain, sums[lane])

    launch_ranges(program, len(parts))
    dgain, dscalars = add_lanes(dgains), torch.from_numpy(sums.sum(axis=0)).to(qkv.dtype)
    return (dqkv, *(dgain if setting.normed else (None, None)),
            *((None, None) if distance is None else dscalars.view(2, 1)))
