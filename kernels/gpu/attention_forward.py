"""Attention, forward: one program for a block of queries of one head, over the blocks of keys that these see.

FlashAttention-2 (arXiv 2307.08691, algorithm 1): the softmax is taken as it goes, with exponentials to base 2. In
causal attention the blocks that see most keys come first, so that short programs fill the end; blocks of one head
run next to each other, and find its keys in the cache. The sum of exponentials is that of the rounded ones, which the
product takes: their errors then cancel where values are alike, and the row sums of dout * out stay true.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .attention_scores import LN2, LOG2E, Setting, load_tile, log2_scores, loop_bounds, store_tile, visible_keys
from .launch import launch


@triton.jit
def _attend(result, total, top, q, keys, values, query, low, high, start, stop, tokens, softcap, scale, slope, reach,
            offset, DIM: tl.constexpr, COLUMNS: tl.constexpr, QK_WIDTH: tl.constexpr, WIDTH: tl.constexpr,
            KEYS: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr):
    """Goes over keys `start` to `stop`; `result` and `total` are sums of exponentials less the largest score `top`."""
    for first in tl.range(start, stop, KEYS):
        k = load_tile(keys, first, tokens, QK_WIDTH, DIM, COLUMNS, KEYS, MASKED)
        key = first + tl.arange(0, KEYS)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        factor = scale * LOG2E
        if softcap is not None or slope is not None or reach is not None:
            scores, _, _ = log2_scores(scores, query[:, None] - key[None, :], scale, softcap, slope, reach, offset)
            factor = 1.0
        if MASKED:
            seen = (key[None, :] >= low[:, None]) & (key[None, :] < high[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1) * factor)
        shift = higher
        if MASKED:
            shift = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores * factor - shift[:, None]).to(values.dtype.element_ty)
        decay = tl.exp2(top - shift)
        total = total * decay + tl.sum(weights.to(tl.float32), axis=1)
        v = load_tile(values, first, tokens, WIDTH, DIM, COLUMNS, KEYS, MASKED)
        result = tl.dot(weights, v, result * decay[:, None], input_precision=PRECISION)
        top = higher
    return result, total, top


@triton.jit
def _forward(qk, qkv, doc_start, doc_end, slopes, reach, offset, out, lse, tokens, window, softcap, scale,
             HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr,
             QK_WIDTH: tl.constexpr, WIDTH: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
             QUERIES: tl.constexpr, KEYS: tl.constexpr):
    blocks = tl.cdiv(tokens, QUERIES)
    block = tl.program_id(0) % blocks
    if CAUSAL:
        block = blocks - 1 - block
    head = tl.program_id(0) // blocks % HEADS
    sequence = (tl.program_id(0) // blocks // HEADS).to(tl.int64)
    key_head = head // (HEADS // KEY_HEADS)
    queries = qk + sequence * tokens * QK_WIDTH + head * DIM
    keys = qk + sequence * tokens * QK_WIDTH + (HEADS + key_head) * DIM
    values = qkv + sequence * tokens * WIDTH + (HEADS + KEY_HEADS + key_head) * DIM
    if doc_start is not None:
        doc_start += sequence * tokens
        if not CAUSAL:
            doc_end += sequence * tokens
    slope = None
    if slopes is not None:
        slope = tl.load(slopes + head)
    if reach is not None:
        reach, offset = tl.load(reach).to(tl.float32), tl.load(offset).to(tl.float32)
    row = block * QUERIES + tl.arange(0, QUERIES)
    query = tl.minimum(row, tokens - 1)
    low, high = visible_keys(query, tokens, doc_start, doc_end, window, CAUSAL)
    start, clear, clear_stop, stop = loop_bounds(low, high, KEYS)
    q = load_tile(queries, block * QUERIES, tokens, QK_WIDTH, DIM, COLUMNS, QUERIES, True)
    result = tl.zeros((QUERIES, COLUMNS), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    if doc_start is not None or window is not None:
        result, total, top = _attend(result, total, top, q, keys, values, query, low, high, start, clear, tokens,
                                     softcap, scale, slope, reach, offset, DIM, COLUMNS, QK_WIDTH, WIDTH, KEYS,
                                     PRECISION, True)
    result, total, top = _attend(result, total, top, q, keys, values, query, low, high, clear, clear_stop, tokens,
                                 softcap, scale, slope, reach, offset, DIM, COLUMNS, QK_WIDTH, WIDTH, KEYS,
                                 PRECISION, False)
    result, total, top = _attend(result, total, top, q, keys, values, query, low, high, clear_stop, stop, tokens,
                                 softcap, scale, slope, reach, offset, DIM, COLUMNS, QK_WIDTH, WIDTH, KEYS,
                                 PRECISION, True)
    inverse = tl.where(total == 0.0, 0.0, 1.0 / total)
    out += sequence * tokens * (HEADS * DIM) + head * DIM
    store_tile(out, block * QUERIES, result * inverse[:, None], tokens, HEADS * DIM, DIM, COLUMNS, QUERIES)
    tl.store(lse + (sequence * HEADS + head) * tokens + row, (top + tl.log2(total)) * LN2, mask=row < tokens)


def run(setting: Setting, out: torch.Tensor, lse: torch.Tensor) -> None:
    config = setting.tile("attention_forward", head_dim=setting.dim, **setting.falling)
    programs = triton.cdiv(setting.tokens, config["QUERIES"]) * len(setting.qkv) * setting.heads
    launch(_forward, (programs,), *setting.inputs, out, lse, *setting.numbers, **setting.constants, **config)
