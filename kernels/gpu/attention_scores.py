"""What the attention programs share: tiles of heads, which tokens see each other, scores, and one call's arguments.

Every query sees an interval of keys, and every key is seen by an interval of queries: causality, sliding window and
document borders each bound it from one side or both. A program takes the union of its rows' intervals as the range of
its loop, and masks only the blocks that reach outside of their intersection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .. import memory
from . import qk_norm_rope
from .launch import float32_precision, launch
from .rows import contiguous
from .tuning import tuned

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
MOST_FEATURES = 256


@triton.jit
def load_tile(base, first, tokens, WIDTH: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
              BOUNDED: tl.constexpr):
    """One head of ROWS tokens from `first`, (ROWS, COLUMNS); zeros past DIM and, if BOUNDED, past the last token."""
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    place = base + tl.full((), WIDTH, tl.int64) * first + (row[:, None] * WIDTH + column[None, :])
    if BOUNDED:
        inside = (first + row < tokens)[:, None]
        if DIM < COLUMNS:
            inside = inside & (column < DIM)[None, :]
        tile = tl.load(place, mask=inside, other=0.0)
    elif DIM < COLUMNS:
        tile = tl.load(place, mask=(column < DIM)[None, :], other=0.0)
    else:
        tile = tl.load(place)
    return tile


@triton.jit
def load_rows(base, row, tokens, BOUNDED: tl.constexpr):
    """A number per token; 0 past the last if BOUNDED."""
    if BOUNDED:
        numbers = tl.load(base + row, mask=row < tokens, other=0.0)
    else:
        numbers = tl.load(base + row)
    return numbers


@triton.jit
def store_tile(base, first, values, tokens, WIDTH: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr,
               ROWS: tl.constexpr):
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    place = base + tl.full((), WIDTH, tl.int64) * first + (row[:, None] * WIDTH + column[None, :])
    inside = (first + row < tokens)[:, None]
    if DIM < COLUMNS:
        inside = inside & (column < DIM)[None, :]
    tl.store(place, values.to(base.dtype.element_ty), mask=inside)


@triton.jit
def visible_keys(query, tokens, doc_start, doc_end, window, CAUSAL: tl.constexpr):
    """[low, high) of the keys that each query sees."""
    low = tl.zeros_like(query)
    high = low + tokens
    if CAUSAL:
        high = query + 1
    if window is not None:
        low = tl.maximum(low, query + 1 - window)
        high = tl.minimum(high, query + window)
    if doc_start is not None:
        low = tl.maximum(low, tl.load(doc_start + query))
        if not CAUSAL:
            high = tl.minimum(high, tl.load(doc_end + query))
    return low, high


@triton.jit
def seeing_queries(key, tokens, doc_start, doc_end, window, CAUSAL: tl.constexpr):
    """[low, high) of the queries that see each key."""
    low = tl.zeros_like(key)
    high = low + tokens
    if CAUSAL:
        low = key
    if window is not None:
        low = tl.maximum(low, key + 1 - window)
        high = tl.minimum(high, key + window)
    if doc_start is not None:
        high = tl.minimum(high, tl.load(doc_end + key))
        if not CAUSAL:
            low = tl.maximum(low, tl.load(doc_start + key))
    return low, high


@triton.jit
def loop_bounds(low, high, STEP: tl.constexpr):
    """Of a loop in steps of STEP over the union of intervals: start, first and end of what needs no mask, stop."""
    start = tl.min(low, axis=0) // STEP * STEP
    stop = tl.max(high, axis=0)
    clear = tl.minimum(tl.cdiv(tl.max(low, axis=0), STEP), tl.cdiv(stop, STEP)) * STEP
    clear = tl.maximum(clear, start)
    clear_stop = tl.maximum(clear, tl.min(high, axis=0) // STEP * STEP)
    return start, clear, clear_stop, stop


@triton.jit
def log2_scores(product, distance, scale, softcap, slope, reach, offset):
    """Scores times log2(e), what their gradient is multiplied with on the way back to product * scale, and how much
    they fall with reach."""
    inner = 1.0
    fall = 0.0
    if softcap is not None:
        capped = 1.0 - 2.0 / (1.0 + tl.exp2(product * (scale * 2.0 * LOG2E / softcap)))
        inner = 1.0 - capped * capped
        scores = capped * (softcap * LOG2E)
    else:
        scores = product * (scale * LOG2E)
    if reach is not None:
        away = tl.abs(distance).to(tl.float32)
        factor = 1.0 / (1.0 + reach * away)
        scores *= factor
        fall = scores * (away * factor * LN2)
        inner *= factor
        scores -= tl.where(distance > 0, offset * LOG2E, 0.0)
    if slope is not None:
        scores -= tl.abs(distance).to(tl.float32) * (slope * LOG2E)
    return scores, inner, fall


@triton.jit
def add_distance_gradients(sums, ds, fall, distance, AXIS: tl.constexpr):
    """Sums for the gradients of reach and offset along an axis: (falls, of keys in the past) with those of a tile."""
    return sums[0] + tl.sum(ds * fall, axis=AXIS), sums[1] + tl.sum(tl.where(distance > 0, ds, 0.0), axis=AXIS)


@triton.jit
def store_distance_gradients(partials, sums):
    """This program's part of the gradients of reach and offset."""
    tl.store(partials + 2 * tl.program_id(0), -tl.sum(sums[0], axis=0))
    tl.store(partials + 2 * tl.program_id(0) + 1, -tl.sum(sums[1], axis=0))


@triton.jit
def _document_ends(doc_start, doc_end, tokens, steps, BLOCK: tl.constexpr):
    """doc_end[i] = the number of tokens j with doc_start[j] <= i: the first that may not see token i, by bisection."""
    blocks = tl.cdiv(tokens, BLOCK)
    token = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    sequence = (tl.program_id(0) // blocks).to(tl.int64) * tokens
    low = tl.zeros((BLOCK,), tl.int32)
    high = low + tokens
    for _ in range(steps):
        open = low < high
        middle = (low + high) // 2
        past = tl.load(doc_start + sequence + middle, mask=open, other=0) > token
        high = tl.where(open & past, middle, high)
        low = tl.where(open & (past == 0), middle + 1, low)
    tl.store(doc_end + sequence + token, low, mask=token < tokens)


@dataclass(frozen=True)
class Setting:
    """The arguments of a call in the form the programs take them.

    `qk` holds the queries and keys that scores are made of: the packed projection itself, or its normed and rotated
    copy. `doc_end` is there where the programs need it.
    """

    qkv: torch.Tensor
    qk: torch.Tensor
    heads: int
    key_heads: int
    dim: int
    causal: bool
    doc_start: torch.Tensor | None
    doc_end: torch.Tensor | None
    slopes: torch.Tensor | None
    window: int | None
    softcap: float | None
    distance: tuple[torch.Tensor, torch.Tensor] | tuple[None, None]

    @classmethod
    def of(cls, qkv, n_heads, n_kv_heads, cos, sin, q_gain, k_gain, eps, doc_start, causal, window, alibi, softcap,
           distance, backward: bool) -> Setting:
        qkv = contiguous(qkv)
        tokens, dim = qkv.shape[1], qkv.shape[2] // (n_heads + 2 * n_kv_heads)
        if dim > MOST_FEATURES:
            raise ValueError(f"attention on a GPU takes heads of at most {MOST_FEATURES} features, got {dim}")
        changed = cos is not None or q_gain is not None
        qk = qk_norm_rope.forward(qkv, n_heads, n_kv_heads, dim, cos, sin, q_gain, k_gain, eps) if changed else qkv
        doc_start = None if doc_start is None else contiguous(doc_start)
        doc_end = document_ends(doc_start) if doc_start is not None and (backward or not causal) else None
        return cls(qkv, qk, n_heads, n_kv_heads, dim, causal, doc_start, doc_end,
                   None if alibi is None else contiguous(alibi),
                   window if window is not None and window < tokens else None,
                   None if softcap is None else float(softcap), distance or (None, None))

    @property
    def tokens(self) -> int:
        return self.qkv.shape[1]

    @property
    def inputs(self) -> tuple:
        """Run-time parameters that every program begins with."""
        return self.qk, self.qkv, self.doc_start, self.doc_end, self.slopes, *self.distance

    @property
    def numbers(self) -> tuple:
        """Run-time parameters that every program ends with."""
        return self.tokens, self.window, self.softcap, 1 / math.sqrt(self.dim)

    @property
    def constants(self) -> dict:
        return {"HEADS": self.heads, "KEY_HEADS": self.key_heads, "DIM": self.dim,
                "COLUMNS": max(16, triton.next_power_of_2(self.dim)), "QK_WIDTH": self.qk.shape[2],
                "WIDTH": self.qkv.shape[2], "CAUSAL": self.causal, "PRECISION": float32_precision()}

    @property
    def plain(self) -> bool:
        """Whether scores are products of queries and keys and nothing else, seen by all or by causality alone."""
        shaping = self.doc_start, self.slopes, self.window, self.softcap, self.distance[0]
        return all(part is None for part in shaping)

    @property
    def falling(self) -> dict:
        """What the tuning table is told beside sizes: the distances of a tile take registers."""
        return {} if self.distance[0] is None else {"distance": True}

    def partials(self, programs: int) -> torch.Tensor | None:
        """Where each program of a backward pass leaves its part of the gradients of reach and offset."""
        if self.distance[0] is None:
            return None
        return memory.empty((programs, 2), torch.float32, self.qkv.device)

    def tile(self, kernel: str, **shape):
        """The entry of the tuning table for the element size and `shape`, heads of fewer than 32 counting as 32."""
        if "head_dim" in shape:
            shape["head_dim"] = max(32, shape["head_dim"])
        return tuned(kernel, self.qkv.dtype, bits=8 * self.qkv.itemsize, **shape)


def document_ends(doc_start: torch.Tensor) -> torch.Tensor:
    """int32 (B, T): for each token the first later one that may not see it."""
    batch, tokens = doc_start.shape
    doc_end = memory.empty(doc_start.shape, torch.int32, doc_start.device)
    config = tuned("document_ends", torch.int32)
    launch(_document_ends, (batch * triton.cdiv(tokens, config["BLOCK"]),), doc_start, doc_end, tokens,
           tokens.bit_length(), **config)
    return doc_end
