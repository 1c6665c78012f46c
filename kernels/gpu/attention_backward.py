"""Attention, backward: one kernel for the gradients of queries, one for those of keys and values.

FlashAttention-2 (arXiv 2307.08691, algorithm 2) with its loops parted: each program adds up in registers all that
goes into its own tile, in one order, so there are no atomics and results are the same from run to run. The price is
that scores are made twice: seven products instead of five.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .attention_scores import (
    LOG2E, Setting, add_distance_gradients, load_rows, load_tile, log2_scores, loop_bounds, seeing_queries,
    store_distance_gradients, store_tile, visible_keys,
)
from .launch import launch


@triton.jit
def _add_queries(dq, sums, q, do, shift, delta, keys, values, query, low, high, start, stop, tokens, softcap, scale,
                 slope, reach, offset, DIM: tl.constexpr, COLUMNS: tl.constexpr, QK_WIDTH: tl.constexpr,
                 WIDTH: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr):
    """Adds what keys `start` to `stop` give to the gradients of queries, and of reach and offset."""
    for first in tl.range(start, stop, KEYS):
        k = load_tile(keys, first, tokens, QK_WIDTH, DIM, COLUMNS, KEYS, MASKED)
        v = load_tile(values, first, tokens, WIDTH, DIM, COLUMNS, KEYS, MASKED)
        key = first + tl.arange(0, KEYS)
        product = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        away = query[:, None] - key[None, :]
        scores, inner, fall = log2_scores(product, away, scale, softcap, slope, reach, offset)
        weights = tl.exp2(scores - shift[:, None])
        if MASKED:
            seen = (key[None, :] >= low[:, None]) & (key[None, :] < high[:, None])
            weights = tl.where(seen, weights, 0.0)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        ds = weights * (dp - delta[:, None])
        if reach is not None:
            sums = add_distance_gradients(sums, ds, fall, away, 1)
        if softcap is not None or reach is not None:
            ds *= inner
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    return dq, sums


@triton.jit
def _query_gradients(qk, qkv, doc_start, doc_end, slopes, reach, offset, dout, out, lse, dqkv, deltas, partials, tokens,
                     window, softcap, scale, HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, DIM: tl.constexpr,
                     COLUMNS: tl.constexpr, QK_WIDTH: tl.constexpr, WIDTH: tl.constexpr, CAUSAL: tl.constexpr,
                     PRECISION: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """Also writes delta, the row sums of dout * out, for the kernel that comes after."""
    blocks = tl.cdiv(tokens, QUERIES)
    block = tl.program_id(0) % blocks
    if CAUSAL:
        block = blocks - 1 - block
    head = tl.program_id(0) // blocks % HEADS
    sequence = (tl.program_id(0) // blocks // HEADS).to(tl.int64)
    key_head = head // (HEADS // KEY_HEADS)
    keys = qk + sequence * tokens * QK_WIDTH + (HEADS + key_head) * DIM
    values = qkv + sequence * tokens * WIDTH + (HEADS + KEY_HEADS + key_head) * DIM
    if doc_start is not None:
        doc_start += sequence * tokens
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
    of_head = sequence * tokens * (HEADS * DIM) + head * DIM
    do = load_tile(dout + of_head, block * QUERIES, tokens, HEADS * DIM, DIM, COLUMNS, QUERIES, True)
    o = load_tile(out + of_head, block * QUERIES, tokens, HEADS * DIM, DIM, COLUMNS, QUERIES, True)
    delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), axis=1)
    of_rows = (sequence * HEADS + head) * tokens
    tl.store(deltas + of_rows + row, delta, mask=row < tokens)
    shift = load_rows(lse + of_rows, row, tokens, True) * LOG2E
    q = load_tile(qk + sequence * tokens * QK_WIDTH + head * DIM, block * QUERIES, tokens, QK_WIDTH, DIM, COLUMNS,
                  QUERIES, True)
    dq = tl.zeros((QUERIES, COLUMNS), tl.float32)
    sums = tl.zeros((QUERIES,), tl.float32), tl.zeros((QUERIES,), tl.float32)
    if doc_start is not None or window is not None:
        dq, sums = _add_queries(dq, sums, q, do, shift, delta, keys, values, query, low, high, start, clear, tokens,
                                softcap, scale, slope, reach, offset, DIM, COLUMNS, QK_WIDTH, WIDTH, KEYS, PRECISION,
                                True)
    dq, sums = _add_queries(dq, sums, q, do, shift, delta, keys, values, query, low, high, clear, clear_stop, tokens,
                            softcap, scale, slope, reach, offset, DIM, COLUMNS, QK_WIDTH, WIDTH, KEYS, PRECISION, False)
    dq, sums = _add_queries(dq, sums, q, do, shift, delta, keys, values, query, low, high, clear_stop, stop, tokens,
                            softcap, scale, slope, reach, offset, DIM, COLUMNS, QK_WIDTH, WIDTH, KEYS, PRECISION, True)
    if reach is not None:
        store_distance_gradients(partials, sums)
    store_tile(dqkv + sequence * tokens * WIDTH + head * DIM, block * QUERIES, dq * scale, tokens, WIDTH, DIM, COLUMNS,
               QUERIES)


@triton.jit
def _add_keys(dk, dv, k, v, queries, douts, lse, deltas, key, low, high, start, stop, tokens, softcap, scale, slope,
              reach, offset, DIM: tl.constexpr, COLUMNS: tl.constexpr, QK_WIDTH: tl.constexpr, OUT_WIDTH: tl.constexpr,
              QUERIES: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr):
    """Adds what queries `start` to `stop` of one head give to the gradients of keys and values."""
    for first in tl.range(start, stop, QUERIES):
        q = load_tile(queries, first, tokens, QK_WIDTH, DIM, COLUMNS, QUERIES, MASKED)
        query = first + tl.arange(0, QUERIES)
        shift = load_rows(lse, query, tokens, MASKED) * LOG2E
        product = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        scores, inner, _ = log2_scores(product, query[None, :] - key[:, None], scale, softcap, slope, reach, offset)
        weights = tl.exp2(scores - shift[None, :])
        if MASKED:
            seen = (query[None, :] >= low[:, None]) & (query[None, :] < high[:, None])
            weights = tl.where(seen, weights, 0.0)
        do = load_tile(douts, first, tokens, OUT_WIDTH, DIM, COLUMNS, QUERIES, MASKED)
        dv = tl.dot(weights.to(do.dtype), do, dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        ds = weights * (dp - load_rows(deltas, query, tokens, MASKED)[None, :])
        if softcap is not None or reach is not None:
            ds *= inner
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def _key_gradients(qk, qkv, doc_start, doc_end, slopes, reach, offset, dout, lse, deltas, dqkv, tokens, window, softcap,
                   scale, HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr,
                   QK_WIDTH: tl.constexpr, WIDTH: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
                   QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """A program takes a block of keys of one key head, and all query heads that use it, one after the other."""
    blocks = tl.cdiv(tokens, KEYS)
    block = tl.program_id(0) % blocks
    key_head = tl.program_id(0) // blocks % KEY_HEADS
    sequence = (tl.program_id(0) // blocks // KEY_HEADS).to(tl.int64)
    if doc_start is not None:
        doc_start += sequence * tokens
        doc_end += sequence * tokens
    key = tl.minimum(block * KEYS + tl.arange(0, KEYS), tokens - 1)
    low, high = seeing_queries(key, tokens, doc_start, doc_end, window, CAUSAL)
    start, clear, clear_stop, stop = loop_bounds(low, high, QUERIES)
    of_keys = (HEADS + key_head) * DIM
    of_values = of_keys + KEY_HEADS * DIM
    k = load_tile(qk + sequence * tokens * QK_WIDTH + of_keys, block * KEYS, tokens, QK_WIDTH, DIM, COLUMNS, KEYS, True)
    v = load_tile(qkv + sequence * tokens * WIDTH + of_values, block * KEYS, tokens, WIDTH, DIM, COLUMNS, KEYS, True)
    if reach is not None:
        reach, offset = tl.load(reach).to(tl.float32), tl.load(offset).to(tl.float32)
    dk = tl.zeros((KEYS, COLUMNS), tl.float32)
    dv = tl.zeros((KEYS, COLUMNS), tl.float32)
    for head in range(key_head * (HEADS // KEY_HEADS), (key_head + 1) * (HEADS // KEY_HEADS)):
        slope = None
        if slopes is not None:
            slope = tl.load(slopes + head)
        queries = qk + sequence * tokens * QK_WIDTH + head * DIM
        douts = dout + sequence * tokens * (HEADS * DIM) + head * DIM
        of_rows = (sequence * HEADS + head) * tokens
        # where every query sees every key, one loop with masks takes fewer registers than two
        rest = start
        if CAUSAL or doc_start is not None or window is not None:
            dk, dv = _add_keys(dk, dv, k, v, queries, douts, lse + of_rows, deltas + of_rows, key, low, high, start,
                               clear, tokens, softcap, scale, slope, reach, offset, DIM, COLUMNS, QK_WIDTH,
                               HEADS * DIM, QUERIES, PRECISION, True)
            dk, dv = _add_keys(dk, dv, k, v, queries, douts, lse + of_rows, deltas + of_rows, key, low, high, clear,
                               clear_stop, tokens, softcap, scale, slope, reach, offset, DIM, COLUMNS, QK_WIDTH,
                               HEADS * DIM, QUERIES, PRECISION, False)
            rest = clear_stop
        dk, dv = _add_keys(dk, dv, k, v, queries, douts, lse + of_rows, deltas + of_rows, key, low, high, rest, stop,
                           tokens, softcap, scale, slope, reach, offset, DIM, COLUMNS, QK_WIDTH, HEADS * DIM, QUERIES,
                           PRECISION, True)
    dqkv += sequence * tokens * WIDTH
    store_tile(dqkv + of_keys, block * KEYS, dk * scale, tokens, WIDTH, DIM, COLUMNS, KEYS)
    store_tile(dqkv + of_values, block * KEYS, dv, tokens, WIDTH, DIM, COLUMNS, KEYS)


def run(setting: Setting, dout: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, deltas: torch.Tensor,
        dqkv: torch.Tensor) -> torch.Tensor | None:
    """Returns what the programs leave of the gradients of reach and offset, (programs, 2), if there are any."""
    sequences, tokens, constants = len(setting.qkv), setting.tokens, setting.constants
    config = setting.tile("attention_query_gradients", head_dim=setting.dim, **setting.falling)
    programs = triton.cdiv(tokens, config["QUERIES"]) * sequences * setting.heads
    partials = setting.partials(programs)
    launch(_query_gradients, (programs,), *setting.inputs, dout, out, lse, dqkv, deltas, partials, *setting.numbers,
           **constants, **config)
    config = setting.tile("attention_key_gradients", head_dim=setting.dim, plain=setting.plain, **setting.falling)
    programs = triton.cdiv(tokens, config["KEYS"]) * sequences * setting.key_heads
    launch(_key_gradients, (programs,), *setting.inputs, dout, lse, deltas, dqkv, *setting.numbers,
           **constants, **config)
    return partials
