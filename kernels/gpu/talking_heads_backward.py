"""Talking-heads attention, backward: three kernels, each of which makes the scores again from the log-sum-exps.

With p the softmax of the mixed scores, w = after p and dw_g = dout_g . v_g, they leave

- delta_h(i) = sum over j of p_h dp_h, dp = after^T dw, and dafter = sum dw p^T. The mixing lies between them, so delta
  is not the row sum of dout * out;
- with du = p (dp - delta), the gradients of queries, reach and offset, and dbefore = sum du s^T;
- with the same du, the gradients of keys, and with w those of values.

Each program adds up in registers all that goes into its own tile, in one order; of what is summed over all tokens it
leaves a part, and parts are added up after. So there are no atomics, and results are the same from run to run. Programs
of one block that take PART features each make the same scores, as in the forward pass.
"""

from __future__ import annotations

from typing import Callable

import torch
import triton
import triton.language as tl

from .attention_scores import LN2, LOG2E, loop_bounds, seeing_queries, visible_keys
from .launch import launch
from .talking_heads_scores import (
    Setting, add_outer, fall_off, load_heads, load_mixer, load_statistics, lowered_by, mix, mixed_scores, products,
    store_heads, store_mixer, store_statistics,
)


@triton.jit
def _deltas(qkv, doc_start, doc_end, reach, offset, before, after, lse, dout, deltas, dafter, tokens, dim, scale,
            HEADS: tl.constexpr, PADDED: tl.constexpr, DIM: tl.constexpr, PRECISION: tl.constexpr,
            MIXING: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr):
    WIDTH: tl.constexpr = 3 * HEADS * DIM
    blocks = tl.cdiv(tokens, QUERIES)
    block = blocks - 1 - tl.program_id(0) % blocks
    sequence = (tl.program_id(0) // blocks).to(tl.int64)
    queries = qkv + sequence * tokens * WIDTH
    keys, values = queries + HEADS * DIM, queries + 2 * HEADS * DIM
    dout += sequence * tokens * (HEADS * DIM)
    of_rows = sequence * HEADS * tokens
    if doc_start is not None:
        doc_start += sequence * tokens
    row = block * QUERIES + tl.arange(0, QUERIES)
    query = tl.minimum(row, tokens - 1)
    low, high = visible_keys(query, tokens, doc_start, doc_end, None, True)
    start, _, _, stop = loop_bounds(low, high, KEYS)
    mixer, after_back = load_mixer(before, HEADS, PADDED, False), load_mixer(after, HEADS, PADDED, True)
    lowered = lowered_by(mixer, offset)
    shift = load_statistics(lse + of_rows, row, tokens, float("inf"), HEADS, PADDED) * LOG2E
    delta = tl.zeros((PADDED, QUERIES), tl.float32)
    sums = tl.zeros((QUERIES, PADDED, PADDED), tl.float32)
    for first in tl.range(start, stop, KEYS):
        product = products(queries, block * QUERIES, keys, first, tokens, dim, WIDTH, WIDTH, DIM, HEADS, PADDED,
                           QUERIES, KEYS, CHUNK, PRECISION)
        key = first + tl.arange(0, KEYS)
        away = query[:, None] - key[None, :]
        scores, near = mixed_scores(product, mixer, lowered, away, fall_off(away, reach), scale, PADDED, QUERIES, KEYS,
                                    MIXING)
        seen = (key[None, :] >= low[:, None]) & (key[None, :] < high[:, None])
        weights = tl.where(seen[None, :, :], tl.exp2(scores - shift[:, :, None]), 0.0)
        dmixed = products(dout, block * QUERIES, values, first, tokens, dim, HEADS * DIM, WIDTH, DIM, HEADS, PADDED,
                          QUERIES, KEYS, CHUNK, PRECISION)
        sums = add_outer(sums, dmixed, weights, MIXING)
        delta += tl.sum(weights * mix(after_back, dmixed, PADDED, QUERIES, KEYS, MIXING), axis=2)
    store_statistics(deltas + of_rows, row, delta, tokens, HEADS, PADDED)
    store_mixer(dafter, tl.program_id(0), tl.sum(sums, axis=0), HEADS, PADDED)


@triton.jit
def _query_gradients(qkv, doc_start, doc_end, reach, offset, before, after, lse, dout, deltas, dqkv, dbefore, scalars,
                     tokens, dim, scale, HEADS: tl.constexpr, PADDED: tl.constexpr, DIM: tl.constexpr,
                     PRECISION: tl.constexpr, MIXING: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
                     CHUNK: tl.constexpr, PART: tl.constexpr):
    WIDTH: tl.constexpr = 3 * HEADS * DIM
    PARTS: tl.constexpr = (DIM + PART - 1) // PART
    blocks = tl.cdiv(tokens, QUERIES)
    part = tl.program_id(0) % PARTS * PART
    program = tl.program_id(0) // PARTS
    block = blocks - 1 - program % blocks
    sequence = (program // blocks).to(tl.int64)
    queries = qkv + sequence * tokens * WIDTH
    keys, values = queries + HEADS * DIM, queries + 2 * HEADS * DIM
    dout += sequence * tokens * (HEADS * DIM)
    of_rows = sequence * HEADS * tokens
    if doc_start is not None:
        doc_start += sequence * tokens
    row = block * QUERIES + tl.arange(0, QUERIES)
    query = tl.minimum(row, tokens - 1)
    low, high = visible_keys(query, tokens, doc_start, doc_end, None, True)
    start, _, _, stop = loop_bounds(low, high, KEYS)
    mixer, mixer_back = load_mixer(before, HEADS, PADDED, False), load_mixer(before, HEADS, PADDED, True)
    after_back = load_mixer(after, HEADS, PADDED, True)
    lowered = lowered_by(mixer, offset)
    shift = load_statistics(lse + of_rows, row, tokens, float("inf"), HEADS, PADDED) * LOG2E
    delta = load_statistics(deltas + of_rows, row, tokens, 0.0, HEADS, PADDED)
    dq = tl.zeros((PADDED, QUERIES, PART), tl.float32)
    sums = tl.zeros((QUERIES, PADDED, PADDED), tl.float32)
    falls, past = tl.zeros((PADDED, QUERIES), tl.float32), tl.zeros((PADDED, QUERIES), tl.float32)
    for first in tl.range(start, stop, KEYS):
        dmixed = products(dout, block * QUERIES, values, first, tokens, dim, HEADS * DIM, WIDTH, DIM, HEADS, PADDED,
                          QUERIES, KEYS, CHUNK, PRECISION)
        dp = mix(after_back, dmixed, PADDED, QUERIES, KEYS, MIXING) - delta[:, :, None]
        product = products(queries, block * QUERIES, keys, first, tokens, dim, WIDTH, WIDTH, DIM, HEADS, PADDED,
                           QUERIES, KEYS, CHUNK, PRECISION)
        key = first + tl.arange(0, KEYS)
        away = query[:, None] - key[None, :]
        fall = fall_off(away, reach)
        scores, near = mixed_scores(product, mixer, lowered, away, fall, scale, PADDED, QUERIES, KEYS, MIXING)
        seen = (key[None, :] >= low[:, None]) & (key[None, :] < high[:, None])
        du = tl.where(seen[None, :, :], tl.exp2(scores - shift[:, :, None]), 0.0) * dp
        falls += tl.sum(du * near * (fall * tl.abs(away).to(tl.float32))[None, :, :], axis=2)
        past += tl.sum(tl.where((away > 0)[None, :, :], du, 0.0), axis=2)
        du *= fall[None, :, :]
        sums = add_outer(sums, du, product, MIXING)
        k = load_heads(keys, first, part, tokens, WIDTH, DIM, HEADS, PADDED, KEYS, PART)
        ds = mix(mixer_back, du, PADDED, QUERIES, KEYS, MIXING).to(k.dtype)
        dq = tl.dot(ds, k, dq, input_precision=PRECISION)
    dqkv += sequence * tokens * WIDTH
    store_heads(dqkv, block * QUERIES, part, dq * scale, tokens, WIDTH, DIM, HEADS, PADDED, QUERIES, PART)
    if part == 0:
        of_past = tl.sum(past, axis=1)
        dmixer = tl.sum(sums, axis=0) * scale - (tl.load(offset).to(tl.float32) * of_past)[:, None]
        store_mixer(dbefore, program, dmixer, HEADS, PADDED)
        tl.store(scalars + 2 * program, tl.sum(tl.sum(falls, axis=1), axis=0) * -LN2)
        tl.store(scalars + 2 * program + 1, -tl.sum(of_past * tl.sum(mixer, axis=1), axis=0))


@triton.jit
def _key_gradients(qkv, doc_start, doc_end, reach, offset, before, after, lse, dout, deltas, dqkv, tokens, dim, scale,
                   HEADS: tl.constexpr, PADDED: tl.constexpr, DIM: tl.constexpr, PRECISION: tl.constexpr,
                   MIXING: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
                   PART: tl.constexpr):
    """Tiles lie with keys in rows: they are then as they must be to be a first factor for dk and dv."""
    WIDTH: tl.constexpr = 3 * HEADS * DIM
    PARTS: tl.constexpr = (DIM + PART - 1) // PART
    blocks = tl.cdiv(tokens, KEYS)
    part = tl.program_id(0) % PARTS * PART
    block = tl.program_id(0) // PARTS % blocks
    sequence = (tl.program_id(0) // PARTS // blocks).to(tl.int64)
    queries = qkv + sequence * tokens * WIDTH
    keys, values = queries + HEADS * DIM, queries + 2 * HEADS * DIM
    dout += sequence * tokens * (HEADS * DIM)
    of_rows = sequence * HEADS * tokens
    if doc_start is not None:
        doc_start += sequence * tokens
        doc_end += sequence * tokens
    key = tl.minimum(block * KEYS + tl.arange(0, KEYS), tokens - 1)
    low, high = seeing_queries(key, tokens, doc_start, doc_end, None, True)
    start, _, _, stop = loop_bounds(low, high, QUERIES)
    mixer, mixer_back = load_mixer(before, HEADS, PADDED, False), load_mixer(before, HEADS, PADDED, True)
    mixer_after, after_back = load_mixer(after, HEADS, PADDED, False), load_mixer(after, HEADS, PADDED, True)
    lowered = lowered_by(mixer, offset)
    dk, dv = tl.zeros((PADDED, KEYS, PART), tl.float32), tl.zeros((PADDED, KEYS, PART), tl.float32)
    for first in tl.range(start, stop, QUERIES):
        query = first + tl.arange(0, QUERIES)
        delta = load_statistics(deltas + of_rows, query, tokens, 0.0, HEADS, PADDED)
        dmixed = products(values, block * KEYS, dout, first, tokens, dim, WIDTH, HEADS * DIM, DIM, HEADS, PADDED, KEYS,
                          QUERIES, CHUNK, PRECISION)
        dp = mix(after_back, dmixed, PADDED, KEYS, QUERIES, MIXING) - delta[:, None, :]
        product = products(keys, block * KEYS, queries, first, tokens, dim, WIDTH, WIDTH, DIM, HEADS, PADDED, KEYS,
                           QUERIES, CHUNK, PRECISION)
        away = query[None, :] - key[:, None]
        fall = fall_off(away, reach)
        scores, near = mixed_scores(product, mixer, lowered, away, fall, scale, PADDED, KEYS, QUERIES, MIXING)
        shift = load_statistics(lse + of_rows, query, tokens, float("inf"), HEADS, PADDED) * LOG2E
        seen = (query[None, :] >= low[:, None]) & (query[None, :] < high[:, None])
        weights = tl.where(seen[None, :, :], tl.exp2(scores - shift[:, None, :]), 0.0)
        du = weights * dp * fall[None, :, :]
        do = load_heads(dout, first, part, tokens, HEADS * DIM, DIM, HEADS, PADDED, QUERIES, PART)
        weights = mix(mixer_after, weights, PADDED, KEYS, QUERIES, MIXING).to(do.dtype)
        dv = tl.dot(weights, do, dv, input_precision=PRECISION)
        q = load_heads(queries, first, part, tokens, WIDTH, DIM, HEADS, PADDED, QUERIES, PART)
        ds = mix(mixer_back, du, PADDED, KEYS, QUERIES, MIXING).to(q.dtype)
        dk = tl.dot(ds, q, dk, input_precision=PRECISION)
    dqkv += sequence * tokens * WIDTH + HEADS * DIM
    store_heads(dqkv, block * KEYS, part, dk * scale, tokens, WIDTH, DIM, HEADS, PADDED, KEYS, PART)
    store_heads(dqkv + HEADS * DIM, block * KEYS, part, dv, tokens, WIDTH, DIM, HEADS, PADDED, KEYS, PART)


def run(setting: Setting, dout: torch.Tensor, lse: torch.Tensor, deltas: torch.Tensor, dqkv: torch.Tensor,
        partials: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What each program leaves of dbefore and dafter, (programs, H, H), and of dreach and doffset, (programs, 2).

    Args:
        partials: partials(*shape) allocates float32.
    """
    heads = setting.heads
    constants = setting.constants("talking_heads_deltas")
    programs = setting.programs(constants["QUERIES"])
    dafter = partials(programs, heads, heads)
    launch(_deltas, (programs,), *setting.inputs, lse, dout, deltas, dafter, *setting.numbers, **constants)
    constants = setting.constants("talking_heads_query_gradients")
    programs = setting.programs(constants["QUERIES"])
    dbefore, scalars = partials(programs, heads, heads), partials(programs, 2)
    programs = setting.programs(constants["QUERIES"], constants["PART"])
    launch(_query_gradients, (programs,), *setting.inputs, lse, dout, deltas, dqkv, dbefore, scalars,
           *setting.numbers, **constants)
    constants = setting.constants("talking_heads_key_gradients")
    programs = setting.programs(constants["KEYS"], constants["PART"])
    launch(_key_gradients, (programs,), *setting.inputs, lse, dout, deltas, dqkv, *setting.numbers, **constants)
    return dbefore, dafter, scalars
