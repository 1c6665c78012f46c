"""Attention's scores: which keys a query sees, softmax over those, cap, ALiBi and distances, and their gradients.

Score rows are (b H n, keys): for each sequence and head of a stack, the n queries of a block against the keys from
`low` on. Logit cap c tanh(s / c): arXiv 2408.00118, section 2. ALiBi, -slope |i - j|: arXiv 2108.12409.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from .compiled import compiled, exp, maximum


def visible_keys(batch: int, tokens: int, doc_start: np.ndarray | None, causal: bool,
                 window: int | None) -> tuple[np.ndarray, np.ndarray]:
    """int32 (B, T): the first key that each query sees, and the one after the last; the same if it sees none."""
    starts, stops = _without_documents(batch, tokens, causal, window)
    if doc_start is None:
        return starts, stops
    if not causal:
        position = np.arange(tokens, dtype=np.int32)
        ends = [np.searchsorted(row, position, side="right") for row in doc_start]
        stops = np.minimum(stops, np.array(ends, np.int32).reshape(stops.shape))
    return np.minimum(np.maximum(starts, doc_start), stops), stops


@functools.lru_cache(maxsize=16)
def _without_documents(batch: int, tokens: int, causal: bool, window: int | None) -> tuple[np.ndarray, np.ndarray]:
    position = np.arange(tokens, dtype=np.int32)
    start, stop = np.zeros_like(position), position + 1 if causal else np.full_like(position, tokens)
    if window is not None:
        reach = min(window, tokens)
        start, stop = np.maximum(start, position + 1 - reach), np.minimum(stop, position + reach)
    return tuple(np.ascontiguousarray(np.broadcast_to(row, (batch, tokens)), np.int32) for row in (start, stop))


@compiled
def softmax_rows(s, n, heads, first, low, starts, stops, inverse, lse):
    """exp(s - max) in place where a query sees the key, 0 elsewhere; the reciprocal sums and log-sum-exps."""
    one = s.dtype.type(1)
    for part in range(lse.shape[0]):
        for i in range(n):
            row, query = s[part * n + i], first + i
            start, stop = starts[part // heads, query] - low, stops[part // heads, query] - low
            row[:start] = 0
            row[stop:] = 0
            if start == stop:
                inverse[part * n + i] = 0
                lse[part, query] = -np.inf
                continue
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
def softmax_backward_rows(s, dp, n, heads, first, low, starts, stops, lse, delta):
    """Turns scores s into probabilities p, and dp into the gradient of the scores, p * (dp - delta)."""
    for part in range(lse.shape[0]):
        for i in range(n):
            row, d_row, query = s[part * n + i], dp[part * n + i], first + i
            start, stop = starts[part // heads, query] - low, stops[part // heads, query] - low
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


@compiled
def shape_rows(s, n, heads, first, low, starts, stops, slopes, cap, reach, offset):
    """What the scores that count become, in place: capped, if `cap` is not 0, divided by 1 + reach |i - j|, and less
    slope |i - j|, and less `offset` for keys in the past."""
    one = s.dtype.type(1)
    for part in range(starts.shape[0] * heads):
        slope = slopes[part % heads]
        for i in range(n):
            query = first + i
            start, stop = starts[part // heads, query] - low, stops[part // heads, query] - low
            seen, distance = s[part * n + i][start:stop], query - low - start
            if cap != 0:  # a loop of its own: tanh is a call per element
                for j in range(seen.shape[0]):
                    seen[j] = cap * math.tanh(seen[j] / cap)
            for j in range(seen.shape[0]):
                away = s.dtype.type(abs(distance - j))
                x = seen[j] / (one + reach * away) - slope * away
                seen[j] = x - offset if j < distance else x


@compiled
def shaped_backward_rows(s, dp, n, heads, first, low, starts, stops, slopes, cap, reach, offset, lse, delta, sums):
    """`softmax_backward_rows` for the scores that `shape_rows` makes of s; dp becomes the gradient of s. Adds the
    gradients of reach and offset to sums."""
    one = s.dtype.type(1)
    for part in range(lse.shape[0]):
        slope = slopes[part % heads]
        for i in range(n):
            row, d_row, query = s[part * n + i], dp[part * n + i], first + i
            start, stop = starts[part // heads, query] - low, stops[part // heads, query] - low
            row[:start] = 0
            row[stop:] = 0
            d_row[:start] = 0
            d_row[stop:] = 0
            p, ds, distance = row[start:stop], d_row[start:stop], query - low - start
            shift, mean = lse[part, query], delta[part * n + i]
            if cap != 0:
                for j in range(p.shape[0]):
                    p[j] = cap * math.tanh(p[j] / cap)
            past, shrunk = s.dtype.type(0), s.dtype.type(0)
            for j in range(p.shape[0]):
                away, capped = s.dtype.type(abs(distance - j)), p[j]
                factor = one / (one + reach * away)
                x = capped * factor
                lowered = offset if j < distance else 0 * one
                p[j] = exp(x - slope * away - lowered - shift)
                gradient = p[j] * (ds[j] - mean)
                past += gradient if j < distance else 0 * one
                shrunk += gradient * x * (away * factor)
                inner = one - (capped / cap) * (capped / cap) if cap != 0 else one
                ds[j] = gradient * inner * factor
            sums[0] -= shrunk
            sums[1] -= past
