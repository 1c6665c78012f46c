"""Talking-heads attention, forward: the log-sum-exps of the mixed scores, then the scores once more for the result.

The second mixing takes weights that are normalised, each head's by its own sum, so the softmax cannot be taken as it
goes. A program holds the results of all heads of its queries, and a tile of all heads beside them; its registers do for
PART features of each head, so as many programs as there are parts make the same scores.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .attention_scores import LN2, LOG2E, loop_bounds, visible_keys
from .launch import launch
from .talking_heads_scores import (
    Setting, fall_off, load_heads, load_mixer, load_statistics, lowered_by, mix, mixed_scores, products, store_heads,
    store_statistics,
)


@triton.jit
def _log_sum_exps(qkv, doc_start, doc_end, reach, offset, before, after, lse, tokens, dim, scale,
                  HEADS: tl.constexpr, PADDED: tl.constexpr, DIM: tl.constexpr, PRECISION: tl.constexpr,
                  MIXING: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr):
    WIDTH: tl.constexpr = 3 * HEADS * DIM
    blocks = tl.cdiv(tokens, QUERIES)
    block = blocks - 1 - tl.program_id(0) % blocks
    sequence = (tl.program_id(0) // blocks).to(tl.int64)
    queries = qkv + sequence * tokens * WIDTH
    keys = queries + HEADS * DIM
    if doc_start is not None:
        doc_start += sequence * tokens
    row = block * QUERIES + tl.arange(0, QUERIES)
    query = tl.minimum(row, tokens - 1)
    low, high = visible_keys(query, tokens, doc_start, doc_end, None, True)
    start, _, _, stop = loop_bounds(low, high, KEYS)
    mixer = load_mixer(before, HEADS, PADDED, False)
    lowered = lowered_by(mixer, offset)
    top = tl.full((PADDED, QUERIES), float("-inf"), tl.float32)
    total = tl.zeros((PADDED, QUERIES), tl.float32)
    for first in tl.range(start, stop, KEYS):
        product = products(queries, block * QUERIES, keys, first, tokens, dim, WIDTH, WIDTH, DIM, HEADS, PADDED,
                           QUERIES, KEYS, CHUNK, PRECISION)
        key = first + tl.arange(0, KEYS)
        away = query[:, None] - key[None, :]
        scores, near = mixed_scores(product, mixer, lowered, away, fall_off(away, reach), scale, PADDED, QUERIES, KEYS,
                                    MIXING)
        seen = (key[None, :] >= low[:, None]) & (key[None, :] < high[:, None])
        scores = tl.where(seen[None, :, :], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=2))
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2(top - shift) + tl.sum(tl.exp2(scores - shift[:, :, None]), axis=2)
        top = higher
    store_statistics(lse + sequence * HEADS * tokens, row, (top + tl.log2(total)) * LN2, tokens, HEADS, PADDED)


@triton.jit
def _forward(qkv, doc_start, doc_end, reach, offset, before, after, lse, out, tokens, dim, scale,
             HEADS: tl.constexpr, PADDED: tl.constexpr, DIM: tl.constexpr, PRECISION: tl.constexpr,
             MIXING: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr, PART: tl.constexpr):
    WIDTH: tl.constexpr = 3 * HEADS * DIM
    PARTS: tl.constexpr = (DIM + PART - 1) // PART
    blocks = tl.cdiv(tokens, QUERIES)
    part = tl.program_id(0) % PARTS * PART
    block = blocks - 1 - tl.program_id(0) // PARTS % blocks
    sequence = (tl.program_id(0) // PARTS // blocks).to(tl.int64)
    queries = qkv + sequence * tokens * WIDTH
    keys, values = queries + HEADS * DIM, queries + 2 * HEADS * DIM
    if doc_start is not None:
        doc_start += sequence * tokens
    row = block * QUERIES + tl.arange(0, QUERIES)
    query = tl.minimum(row, tokens - 1)
    low, high = visible_keys(query, tokens, doc_start, doc_end, None, True)
    start, _, _, stop = loop_bounds(low, high, KEYS)
    mixer, mixer_after = load_mixer(before, HEADS, PADDED, False), load_mixer(after, HEADS, PADDED, False)
    lowered = lowered_by(mixer, offset)
    # an infinite shift: heads and tokens there are not weigh 0
    shift = load_statistics(lse + sequence * HEADS * tokens, row, tokens, float("inf"), HEADS, PADDED) * LOG2E
    result = tl.zeros((PADDED, QUERIES, PART), tl.float32)
    for first in tl.range(start, stop, KEYS):
        product = products(queries, block * QUERIES, keys, first, tokens, dim, WIDTH, WIDTH, DIM, HEADS, PADDED,
                           QUERIES, KEYS, CHUNK, PRECISION)
        key = first + tl.arange(0, KEYS)
        away = query[:, None] - key[None, :]
        scores, near = mixed_scores(product, mixer, lowered, away, fall_off(away, reach), scale, PADDED, QUERIES, KEYS,
                                    MIXING)
        seen = (key[None, :] >= low[:, None]) & (key[None, :] < high[:, None])
        weights = tl.where(seen[None, :, :], tl.exp2(scores - shift[:, :, None]), 0.0)
        v = load_heads(values, first, part, tokens, WIDTH, DIM, HEADS, PADDED, KEYS, PART)
        weights = mix(mixer_after, weights, PADDED, QUERIES, KEYS, MIXING).to(v.dtype)
        result = tl.dot(weights, v, result, input_precision=PRECISION)
    out += sequence * tokens * (HEADS * DIM)
    store_heads(out, block * QUERIES, part, result, tokens, HEADS * DIM, DIM, HEADS, PADDED, QUERIES, PART)


def run(setting: Setting, lse: torch.Tensor, out: torch.Tensor) -> None:
    constants = setting.constants("talking_heads_log_sum_exps")
    launch(_log_sum_exps, (setting.programs(constants["QUERIES"]),), *setting.inputs, lse, *setting.numbers,
           **constants)
    constants = setting.constants("talking_heads_forward")
    programs = setting.programs(constants["QUERIES"], constants["PART"])
    launch(_forward, (programs,), *setting.inputs, lse, out, *setting.numbers, **constants)
