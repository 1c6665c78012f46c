"""Attention on short sequences: a program owns a key head with all its keys, and the query heads that use it.

At these lengths attention waits for memory, so everything is read once and written once: no partial softmax, five
products instead of seven in backward, and the row sums of dout * out are taken from the weights, which are all there
(sum_j p_ij dp_ij), so that the result is not read again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .attention_scores import (
    LN2, LOG2E, Setting, add_distance_gradients, load_rows, load_tile, log2_scores, seeing_queries,
    store_distance_gradients, store_tile, visible_keys,
)
from .launch import launch


@triton.jit
def _forward(qk, qkv, doc_start, doc_end, slopes, reach, offset, out, lse, tokens, window, softcap, scale,
             HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr,
             QK_WIDTH: tl.constexpr, WIDTH: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
             QUERIES: tl.constexpr, KEYS: tl.constexpr):
    key_head = tl.program_id(0) % KEY_HEADS
    sequence = (tl.program_id(0) // KEY_HEADS).to(tl.int64)
    qk += sequence * tokens * QK_WIDTH
    qkv += sequence * tokens * WIDTH
    out += sequence * tokens * (HEADS * DIM)
    if doc_start is not None:
        doc_start += sequence * tokens
        if not CAUSAL:
            doc_end += sequence * tokens
    k = load_tile(qk + (HEADS + key_head) * DIM, 0, tokens, QK_WIDTH, DIM, COLUMNS, KEYS, True)
    v = load_tile(qkv + (HEADS + KEY_HEADS + key_head) * DIM, 0, tokens, WIDTH, DIM, COLUMNS, KEYS, True)
    key = tl.arange(0, KEYS)
    if reach is not None:
        reach, offset = tl.load(reach).to(tl.float32), tl.load(offset).to(tl.float32)
    for head in range(key_head * (HEADS // KEY_HEADS), (key_head + 1) * (HEADS // KEY_HEADS)):
        slope = None
        if slopes is not None:
            slope = tl.load(slopes + head)
        for first in range(0, tokens, QUERIES):
            row = first + tl.arange(0, QUERIES)
            query = tl.minimum(row, tokens - 1)
            low, high = visible_keys(query, tokens, doc_start, doc_end, window, CAUSAL)
            q = load_tile(qk + head * DIM, first, tokens, QK_WIDTH, DIM, COLUMNS, QUERIES, True)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            scores, _, _ = log2_scores(scores, query[:, None] - key[None, :], scale, softcap, slope, reach, offset)
            seen = (key[None, :] >= low[:, None]) & (key[None, :] < high[:, None])
            scores = tl.where(seen, scores, float("-inf"))
            top = tl.max(scores, axis=1)
            weights = tl.exp2(scores - tl.where(top == float("-inf"), 0.0, top)[:, None]).to(v.dtype)
            total = tl.sum(weights.to(tl.float32), axis=1)
            result = tl.dot(weights, v, input_precision=PRECISION)
            result *= tl.where(total == 0.0, 0.0, 1.0 / total)[:, None]
            store_tile(out + head * DIM, first, result, tokens, HEADS * DIM, DIM, COLUMNS, QUERIES)
            of_rows = (sequence * HEADS + head) * tokens + row
            tl.store(lse + of_rows, (top + tl.log2(total)) * LN2, mask=row < tokens)


@triton.jit
def _backward(qk, qkv, doc_start, doc_end, slopes, reach, offset, dout, lse, dqkv, partials, tokens, window, softcap,
              scale, HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr,
              QK_WIDTH: tl.constexpr, WIDTH: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
              QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """Scores lie with keys in rows: they are then as they must be to be a first factor for dk and dv."""
    key_head = tl.program_id(0) % KEY_HEADS
    sequence = (tl.program_id(0) // KEY_HEADS).to(tl.int64)
    qk += sequence * tokens * QK_WIDTH
    qkv += sequence * tokens * WIDTH
    dqkv += sequence * tokens * WIDTH
    dout += sequence * tokens * (HEADS * DIM)
    if doc_start is not None:
        doc_start += sequence * tokens
        doc_end += sequence * tokens
    of_keys = (HEADS + key_head) * DIM
    of_values = of_keys + KEY_HEADS * DIM
    k = load_tile(qk + of_keys, 0, tokens, QK_WIDTH, DIM, COLUMNS, KEYS, True)
    v = load_tile(qkv + of_values, 0, tokens, WIDTH, DIM, COLUMNS, KEYS, True)
    row = tl.arange(0, KEYS)
    key = tl.minimum(row, tokens - 1)
    low, high = seeing_queries(key, tokens, doc_start, doc_end, window, CAUSAL)
    high = tl.where(row < tokens, high, 0)
    dk = tl.zeros((KEYS, COLUMNS), tl.float32)
    dv = tl.zeros((KEYS, COLUMNS), tl.float32)
    if reach is not None:
        reach, offset = tl.load(reach).to(tl.float32), tl.load(offset).to(tl.float32)
    sums = tl.zeros((KEYS,), tl.float32), tl.zeros((KEYS,), tl.float32)
    for head in range(key_head * (HEADS // KEY_HEADS), (key_head + 1) * (HEADS // KEY_HEADS)):
        slope = None
        if slopes is not None:
            slope = tl.load(slopes + head)
        for first in range(0, tokens, QUERIES):
            query = first + tl.arange(0, QUERIES)
            q = load_tile(qk + head * DIM, first, tokens, QK_WIDTH, DIM, COLUMNS, QUERIES, True)
            do = load_tile(dout + head * DIM, first, tokens, HEADS * DIM, DIM, COLUMNS, QUERIES, True)
            product = tl.dot(k, tl.trans(q), input_precision=PRECISION)
            away = query[None, :] - key[:, None]
            scores, inner, fall = log2_scores(product, away, scale, softcap, slope, reach, offset)
            shift = load_rows(lse + (sequence * HEADS + head) * tokens, query, tokens, True) * LOG2E
            weights = tl.exp2(scores - shift[None, :])
            seen = (query[None, :] >= low[:, None]) & (query[None, :] < high[:, None])
            weights = tl.where(seen, weights, 0.0)
            dv = tl.dot(weights.to(do.dtype), do, dv, input_precision=PRECISION)
            dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
            ds = weights * (dp - tl.sum(weights * dp, axis=0)[None, :])
            if reach is not None:
                sums = add_distance_gradients(sums, ds, fall, away, 1)
            if softcap is not None or reach is not None:
                ds *= inner
            ds = ds.to(q.dtype)
            dk = tl.dot(ds, q, dk, input_precision=PRECISION)
            dq = tl.trans(tl.dot(tl.trans(k), ds, input_precision=PRECISION))
            store_tile(dqkv + head * DIM, first, dq * scale, tokens, WIDTH, DIM, COLUMNS, QUERIES)
    store_tile(dqkv + of_keys, 0, dk * scale, tokens, WIDTH, DIM, COLUMNS, KEYS)
    store_tile(dqkv + of_values, 0, dv, tokens, WIDTH, DIM, COLUMNS, KEYS)
    if reach is not None:
        store_distance_gradients(partials, sums)


def takes(setting: Setting) -> bool:
    """Whether a head's keys are few enough for one program."""
    return setting.tokens <= setting.tile("attention_short", head_dim=setting.dim)["TOKENS"]


def run_forward(setting: Setting, out: torch.Tensor, lse: torch.Tensor) -> None:
    launch(_forward, _grid(setting), *setting.inputs, out, lse, *setting.numbers,
           **_constants(setting, "attention_short_forward"))


def run_backward(setting: Setting, dout: torch.Tensor, lse: torch.Tensor, dqkv: torch.Tensor) -> torch.Tensor | None:
    """Returns what the programs leave of the gradients of reach and offset, (programs, 2), if there are any."""
    partials = setting.partials(*_grid(setting))
    launch(_backward, _grid(setting), *setting.inputs, dout, lse, dqkv, partials, *setting.numbers,
           **_constants(setting, "attention_short_backward", plain=setting.plain, **setting.falling))
    return partials


def _grid(setting: Setting) -> tuple[int]:
    return (len(setting.qkv) * setting.key_heads,)


def _constants(setting: Setting, kernel: str, **shape) -> dict:
    """The table has the number of scores that a program makes at a time, by the elements of a head's keys."""
    keys, constants = max(16, triton.next_power_of_2(setting.tokens)), setting.constants
    config = dict(setting.tile(kernel, elements=max(4096, keys * constants["COLUMNS"]), **shape))
    queries = max(16, min(keys, config.pop("SCORES") // keys))
    return {**constants, **config, "KEYS": keys, "QUERIES": queries}
