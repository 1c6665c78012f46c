"""Attention whose heads are mixed before and after the softmax, a block of queries of all heads at a time.

Talking heads: arXiv 2003.02436. A block holds every key its queries see, so that its rows of the softmax are whole: the
scores of all heads are mixed by one product of the H x H matrix with the block, and the T x T matrix never exists.
Backward makes the block again from the log-sum-exps. There are no parts of a sequence while the batch has a sequence
for every thread; else the blocks of a sequence are dealt out to parts, whose gradients of keys and values are added up.

Shapes: T tokens, H heads, D features per head, n queries in a block. Score rows are (H n, keys), the keys counted from
the first that a query of the block sees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from .. import memory
from .attention_scores import visible_keys
from .compiled import compiled, exp, maximum
from .gemm import multiply
from .lanes import add_lanes, lane_buffers
from .launch import launch, launch_ranges, ranges, scratch, threads
from .rounding import rounded

SCORE_ELEMENTS = 400_000  # of a block of scores, four of which are at work in backward
LEAST_QUERIES, MOST_QUERIES = 8, 64


@compiled
def _near_rows(s, heads, first, low, starts, stops, scale, reach, offset, weight):
    """s * scale / (1 + reach |i - j|), less `offset` for past keys, in place; 0 for what a query does not see."""
    n, one = s.shape[0] // heads, s.dtype.type(1)
    for i in range(n):
        start, stop, own = starts[first + i] - low, stops[first + i] - low, first + i - low
        factor = weight[:max(stop - start, 0)]
        for j in range(factor.shape[0]):
            factor[j] = scale / (one + reach * s.dtype.type(own - start - j))
        for head in range(heads):
            row = s[head * n + i]
            row[:start] = 0
            row[stop:] = 0
            seen = row[start:stop]
            for j in range(seen.shape[0]):
                seen[j] = seen[j] * factor[j] - offset
            if start <= own < stop:
                row[own] += offset


@compiled
def _near_backward_rows(s, ds, heads, first, low, starts, stops, scale, reach, offset, weight, sums):
    """The gradient of `_near_rows`: s is its result, ds becomes the gradient of what it began with. Adds those of reach
    and offset to sums."""
    n, one = s.shape[0] // heads, s.dtype.type(1)
    for i in range(n):
        start, stop, own = starts[first + i] - low, stops[first + i] - low, first + i - low
        factor = weight[:max(stop - start, 0)]
        for j in range(factor.shape[0]):
            factor[j] = one / (one + reach * s.dtype.type(own - start - j))
        for head in range(heads):
            row, seen = s[head * n + i][start:stop], ds[head * n + i][start:stop]
            past, shrunk = s.dtype.type(0), s.dtype.type(0)
            for j in range(min(seen.shape[0], own - start)):
                past += seen[j]
                shrunk += seen[j] * (row[j] + offset) * (s.dtype.type(own - start - j) * factor[j])
            for j in range(seen.shape[0]):
                seen[j] *= scale * factor[j]
            sums[0] -= shrunk
            sums[1] -= past


@compiled
def _softmax_rows(s, heads, first, low, starts, stops, lse):
    """Softmax in place over what a query sees, 0 elsewhere; the log-sum-exps, -inf for a query that sees nothing."""
    n, one = s.shape[0] // heads, s.dtype.type(1)
    for head in range(heads):
        for i in range(n):
            start, stop = starts[first + i] - low, stops[first + i] - low
            row = s[head * n + i]
            row[:start] = 0
            row[stop:] = 0
            if start >= stop:
                lse[head, first + i] = -np.inf
                continue
            seen = row[start:stop]
            top, total = seen[0], s.dtype.type(0)
            for j in range(seen.shape[0]):
                top = maximum(top, seen[j])
            for j in range(seen.shape[0]):
                e = exp(seen[j] - top)
                seen[j] = e
                total += e
            inverse = one / total
            for j in range(seen.shape[0]):
                seen[j] *= inverse
            lse[head, first + i] = top + np.log(total)


@compiled
def _probability_rows(s, heads, first, low, starts, stops, lse):
    """What `_softmax_rows` makes of s, given the log-sum-exps."""
    n = s.shape[0] // heads
    for head in range(heads):
        for i in range(n):
            start, stop = starts[first + i] - low, stops[first + i] - low
            row, shift = s[head * n + i], lse[head, first + i]
            row[:start] = 0
            row[stop:] = 0
            seen = row[start:stop]
            for j in range(seen.shape[0]):
                seen[j] = exp(seen[j] - shift)


@compiled
def _softmax_backward_rows(p, dp, heads, first, low, starts, stops):
    """dp becomes the gradient of the softmax's argument, p (dp - sum p dp), and 0 where a query sees no key."""
    n = p.shape[0] // heads
    for head in range(heads):
        for i in range(n):
            start, stop = starts[first + i] - low, stops[first + i] - low
            d_row = dp[head * n + i]
            d_row[:start] = 0
            d_row[stop:] = 0
            row, seen = p[head * n + i][start:stop], d_row[start:stop]
            mean = p.dtype.type(0)
            for j in range(row.shape[0]):
                mean += row[j] * seen[j]
            for j in range(row.shape[0]):
                seen[j] = row[j] * (seen[j] - mean)


@dataclass(frozen=True)
class _Block:
    """A block of a sequence's queries, and the range of keys that some of them see."""

    first: int  # query
    queries: int
    low: int  # first key
    high: int


@dataclass
class _Setting:
    """The arguments of one call in the form the programs use."""

    packed: torch.Tensor  # [B, T, 3, H, D]
    reach: np.floating
    offset: np.floating
    mixers: tuple[torch.Tensor, torch.Tensor]  # [H, H] each
    starts: np.ndarray  # [B, T], the first key that a query sees
    stops: np.ndarray  # [B, T], the key after the last

    @classmethod
    def of(cls, qkv, n_heads, reach, offset, before, after, doc_start) -> _Setting:
        batch, tokens, width = qkv.shape
        documents = None if doc_start is None else doc_start.contiguous().numpy()
        packed = qkv.contiguous().view(batch, tokens, 3, n_heads, width // (3 * n_heads))
        return cls(packed, reach.numpy().reshape(-1)[0], offset.numpy().reshape(-1)[0],
                   (before.contiguous(), after.contiguous()), *visible_keys(batch, tokens, documents, True, None))

    def __post_init__(self) -> None:
        self.batch, self.tokens, _, self.heads, self.dim = self.packed.shape
        self.dtype, self.scalar = self.packed.dtype, self.reach.dtype.type
        self.scale = self.scalar(1 / math.sqrt(self.dim))
        self.parts = -(-threads() // self.batch)

    def programs(self) -> list[tuple[int, int]]:
        """Sequence and part of each program."""
        return [(b, part) for b in range(self.batch) for part in range(self.parts)]

    def blocks(self, sequence: int, part: int) -> list[_Block]:
        """The blocks of a part: short and long rows alike."""
        size = MOST_QUERIES
        while size > LEAST_QUERIES and size * self.heads * self.tokens > SCORE_ELEMENTS:
            size //= 2
        starts, stops, found = self.starts[sequence], self.stops[sequence], []
        for first in range(part * size, self.tokens, self.parts * size):
            rows = slice(first, min(first + size, self.tokens))
            low = min(int(starts[rows].min()), self.tokens - 1)
            found.append(_Block(first, rows.stop - first, low, max(low + 1, int(stops[rows].max()))))
        return found

    def heads_of(self, packed: torch.Tensor, sequence: int, which: int, rows: slice = slice(None)) -> torch.Tensor:
        """[H, rows, D]: queries (0), keys (1) or values (2) of a sequence, a view."""
        return packed[sequence, rows, which].transpose(0, 1)

    def scores(self, name: str, block: _Block) -> torch.Tensor:
        """Working memory [H, n, keys]."""
        return scratch(name, (self.heads, block.queries, block.high - block.low), self.dtype)

    def seen(self, sequence: int, block: _Block) -> tuple:
        """What the loops over rows take: first query, first key, and what each query sees."""
        return self.heads, block.first, block.low, self.starts[sequence], self.stops[sequence]

    def mix(self, matrix: torch.Tensor, scores: torch.Tensor, out: torch.Tensor) -> None:
        """out[g] = sum over h of matrix[g, h] scores[h]."""
        multiply(matrix, scores.view(self.heads, -1), out.view(self.heads, -1))

    def near(self, sequence: int, block: _Block, weight: np.ndarray) -> torch.Tensor:
        """The scores of a block before they are mixed, in the memory "s"."""
        s = self.scores("s", block)
        q = self.heads_of(self.packed, sequence, 0, slice(block.first, block.first + block.queries))
        k = self.heads_of(self.packed, sequence, 1, slice(block.low, block.high))
        multiply(q, k.transpose(1, 2), s)
        _near_rows(_rows(s), *self.seen(sequence, block), self.scale, self.reach, self.offset, weight)
        return s


def _rows(scores: torch.Tensor) -> np.ndarray:
    return scores.view(-1, scores.shape[-1]).numpy()


def forward(qkv: torch.Tensor, n_heads: int, reach: torch.Tensor, offset: torch.Tensor, before: torch.Tensor,
            after: torch.Tensor, doc_start: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    setting = _Setting.of(qkv, n_heads, reach, offset, before, after, doc_start)
    batch, tokens, heads, dim = setting.batch, setting.tokens, setting.heads, setting.dim
    out = memory.empty((batch, tokens, heads, dim), qkv.dtype)
    lse = memory.empty((batch, heads, tokens), qkv.dtype)
    lse_rows, programs = lse.numpy(), setting.programs()

    def program(index: int):
        b, part = programs[index]
        weight = scratch("weight", (tokens,), qkv.dtype).numpy()
        for block in setting.blocks(b, part):
            s, p = setting.near(b, block, weight), setting.scores("p", block)
            setting.mix(setting.mixers[0], s, p)
            _softmax_rows(_rows(p), *setting.seen(b, block), lse_rows[b])
            setting.mix(setting.mixers[1], p, s)
            rounded(s)
            mixed = scratch("out", (heads, block.queries, dim), qkv.dtype)
            multiply(s, setting.heads_of(setting.packed, b, 2, slice(block.low, block.high)), mixed)
            out[b, block.first: block.first + block.queries].copy_(mixed.transpose(0, 1))

    launch(program, len(programs))
    return out.view(batch, tokens, heads * dim), lse


def backward(dout: torch.Tensor, lse: torch.Tensor, qkv: torch.Tensor, n_heads: int, reach: torch.Tensor,
             offset: torch.Tensor, before: torch.Tensor, after: torch.Tensor, doc_start: torch.Tensor | None = None):
    setting = _Setting.of(qkv, n_heads, reach, offset, before, after, doc_start)
    batch, tokens, heads, dim = setting.batch, setting.tokens, setting.heads, setting.dim
    dqkv, lse_rows, programs = memory.empty(setting.packed.shape, qkv.dtype), lse.numpy(), setting.programs()
    douts = dout.contiguous().view(batch, tokens, heads, dim)
    # Gradients of keys and values of each part; of a part that is a whole sequence they are working memory.
    split = memory.empty((batch, setting.parts, 2, heads, tokens, dim), qkv.dtype) if setting.parts > 1 else None
    dmixers = lane_buffers(len(programs), (2, heads, heads), qkv)
    sums = np.zeros((len(ranges(len(programs))), 2))  # float64: of as many terms as there are scores
    before_columns, after_columns = (mixer.t() for mixer in setting.mixers)

    def one_part(b: int, part: int, dmixer: torch.Tensor, dscalars: np.ndarray):
        weight = scratch("weight", (tokens,), qkv.dtype).numpy()
        dkv = scratch("dkv", (2, heads, tokens, dim), qkv.dtype) if split is None else split[b, part]
        dkv.zero_()
        for block in setting.blocks(b, part):
            rows, keys = slice(block.first, block.first + block.queries), slice(block.low, block.high)
            q, k, v = (setting.heads_of(setting.packed, b, which, where)
                       for which, where in enumerate((rows, keys, keys)))
            do = douts[b, rows].transpose(0, 1)
            seen, s = setting.seen(b, block), setting.near(b, block, weight)
            p, d, e = (setting.scores(name, block) for name in "pde")
            setting.mix(setting.mixers[0], s, p)
            _probability_rows(_rows(p), *seen, lse_rows[b])
            setting.mix(setting.mixers[1], p, e)
            multiply(rounded(e).transpose(1, 2), do, dkv[1][:, keys], accumulate=True)
            multiply(do, v.transpose(1, 2), d)
            multiply(d.view(heads, -1), p.view(heads, -1).t(), dmixer[1], accumulate=True)
            setting.mix(after_columns, d, e)
            _softmax_backward_rows(_rows(p), _rows(e), *seen)
            multiply(e.view(heads, -1), s.view(heads, -1).t(), dmixer[0], accumulate=True)
            setting.mix(before_columns, e, d)
            _near_backward_rows(_rows(s), _rows(d), *seen, setting.scale, setting.reach, setting.offset, weight,
                                dscalars)
            dq = scratch("out", (heads, block.queries, dim), qkv.dtype)
            multiply(rounded(d), k, dq)
            dqkv[b, rows, 0].copy_(dq.transpose(0, 1))
            multiply(d.transpose(1, 2), q, dkv[0][:, keys], accumulate=True)
        if split is None:
            dqkv[b, :, 1:].copy_(dkv.permute(2, 0, 1, 3))

    def program(lane: int, start: int, stop: int):
        dmixer = dmixers[lane].zero_()
        for index in range(start, stop):
            one_part(*programs[index], dmixer, sums[lane])

    launch_ranges(program, len(programs))
    if split is not None:
        launch(lambda b: dqkv[b, :, 1:].copy_(add_lanes(list(split[b])).permute(2, 0, 1, 3)), batch)
    dmixer, dscalars = add_lanes(dmixers), torch.from_numpy(sums.sum(axis=0)).to(qkv.dtype)
    return dqkv.view(qkv.shape), dscalars[0].view(reach.shape), dscalars[1].view(offset.shape), dmixer[0], dmixer[1]
