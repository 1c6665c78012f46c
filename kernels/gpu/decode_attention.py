"""Attention of one new token per sequence, over a cache of keys and values: memory is all it waits for.

A sequence's keys are split over several programs, as sequences alone are too few for a GPU. The queries that share a
key head stay together, so that a key is read once. A second program puts the splits together, in their order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import memory
from .attention_scores import log2_scores
from .launch import float32_precision, launch, target
from .rows import contiguous
from .tuning import tuned

SMALLEST_ROWS = 16  # of a tile of a tensor-core product
SPLITS_AT_ONCE = 16


@triton.jit
def _partial(q, keys, values, lengths, alibi, reach, offset, tops, totals, out, window, softcap, scale, capacity,
             HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr,
             ROWS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    split, key_head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    splits = tl.num_programs(0)
    GROUP: tl.constexpr = HEADS // KEY_HEADS
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (row < GROUP)[:, None] & (column < DIM)[None, :]
    head = sequence * HEADS + key_head * GROUP + row
    query = tl.load(q + head[:, None] * DIM + column[None, :], mask=inside, other=0.0)
    slope = None
    if alibi is not None:
        slope = tl.load(alibi + key_head * GROUP + row, mask=row < GROUP, other=0.0).to(tl.float32)[:, None]

    near, behind = None, None
    if reach is not None:
        near, behind = tl.load(reach).to(tl.float32), tl.load(offset).to(tl.float32)
    length = tl.load(lengths + sequence)
    low = length * 0
    if window is not None:
        low = tl.maximum(low, length - window)
    share = tl.cdiv(tl.cdiv(length - low, BLOCK), splits) * BLOCK
    start = low + split * share
    stop = tl.minimum(start + share, length)
    top, total = tl.full((ROWS,), float("-inf"), tl.float32), tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, COLUMNS), tl.float32)
    cache = sequence.to(tl.int64) * capacity * KEY_HEADS * DIM + key_head * DIM
    for first in range(start, stop, BLOCK):
        key = first + tl.arange(0, BLOCK)
        known = (key < stop)[:, None] & (column < DIM)[None, :]
        place = cache + key.to(tl.int64)[:, None] * (KEY_HEADS * DIM) + column[None, :]
        product = tl.dot(query, tl.trans(tl.load(keys + place, mask=known, other=0.0)), input_precision=PRECISION)
        scores, _, _ = log2_scores(product, (length - 1 - key)[None, :], scale, softcap, slope, near, behind)
        scores = tl.where((key < stop)[None, :], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        weight, shrunk = tl.exp2(scores - higher[:, None]), tl.exp2(top - higher)
        total = total * shrunk + tl.sum(weight, axis=1)
        value = tl.load(values + place, mask=known, other=0.0)
        mixed = tl.dot(weight.to(value.dtype), value, mixed * shrunk[:, None], input_precision=PRECISION)
        top = higher
    part = head.to(tl.int64) * splits + split
    tl.store(tops + part, top, mask=row < GROUP)
    tl.store(totals + part, total, mask=row < GROUP)
    tl.store(out + part[:, None] * DIM + column[None, :], mixed, mask=inside)


@triton.jit
def _together(tops, totals, parts, out, splits, DIM: tl.constexpr, COLUMNS: tl.constexpr, SPLITS: tl.constexpr,
              ROWS: tl.constexpr):
    head = tl.program_id(0).to(tl.int64)
    tops += head * splits
    totals += head * splits
    parts += head * splits * DIM
    every, column = tl.arange(0, SPLITS), tl.arange(0, COLUMNS)
    highest = tl.max(tl.load(tops + every, mask=every < splits, other=float("-inf")))
    mixed, total = tl.zeros((COLUMNS,), tl.float32), tl.full((), 0.0, tl.float32)
    for first in range(0, splits, ROWS):
        split = first + tl.arange(0, ROWS)
        there = split < splits
        part = tl.load(totals + split, mask=there, other=0.0)
        weight = tl.exp2(tl.load(tops + split, mask=there, other=float("-inf")) - highest)
        weight = tl.where(part > 0, weight, 0.0)
        rows = tl.load(parts + split[:, None] * DIM + column[None, :], mask=there[:, None] & (column < DIM)[None, :],
                       other=0.0)
        mixed += tl.sum(rows * weight[:, None], axis=0)
        total += tl.sum(part * weight)
    result = tl.where(total == 0, 0.0, mixed / total)
    tl.store(out + head * DIM + column, result.to(out.dtype.element_ty), mask=column < DIM)


def forward(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, lengths: torch.Tensor,
            window: int | None = None, alibi: torch.Tensor | None = None, softcap: float | None = None,
            distance: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
    sequences, heads, dim = q.shape
    _, capacity, key_heads, _ = k_cache.shape
    options = dict(tuned("decode_attention", q.dtype, head_dim=dim))
    columns = triton.next_power_of_2(dim)
    blocks = triton.cdiv(capacity if window is None else min(window, capacity), options["BLOCK"])
    wanted = triton.cdiv(options.pop("PER_MULTIPROCESSOR") * target().multiprocessors, sequences * key_heads)
    splits = max(1, min(blocks, wanted))
    tops, totals = (memory.empty((sequences, heads, splits), torch.float32, q.device) for _ in range(2))
    parts = memory.empty((sequences, heads, splits, dim), torch.float32, q.device)
    out = memory.empty(q.shape, q.dtype, q.device)
    launch(_partial, (splits, key_heads, sequences), contiguous(q), contiguous(k_cache), contiguous(v_cache), lengths,
           alibi, *(distance or (None, None)), tops, totals, parts, window,
           None if softcap is None else float(softcap), dim**-0.5, capacity, HEADS=heads, KEY_HEADS=key_heads,
           DIM=dim, COLUMNS=columns, ROWS=max(SMALLEST_ROWS, triton.next_power_of_2(heads // key_heads)),
           PRECISION=float32_precision(), **options)
    launch(_together, (sequences * heads,), tops, totals, parts, out, splits, DIM=dim, COLUMNS=columns,
           SPLITS=triton.next_power_of_2(splits), ROWS=SPLITS_AT_ONCE)
    return out
