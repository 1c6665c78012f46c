"""From logits to the next token, without sorting and without waiting.

One program per row. Top-k and top-p keep all scores above a threshold and some of those equal to it, lowest ids first.
The threshold is exact: it is found bit by bit, in the order that the bits of a float32 have as a whole number, by
counting (top-k) or adding up the weights of (top-p) what is not below a candidate.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from .. import memory
from .launch import launch
from .rows import contiguous
from .tuning import tuned

LOWEST = tl.constexpr(-(2**31))
LARGEST_SHARPNESS = 3e38  # a float32: 0 times it is 0
PADDING = 128


@triton.jit
def _scores(logits, scores, VOCABULARY: tl.constexpr, STRIDE: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr):
    row, column = tl.program_id(1).to(tl.int64), tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = column < VOCABULARY
    values = tl.load(logits + row * STRIDE + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(scores + row * PADDED + column, values + 0.0, mask=inside)  # -0 becomes 0, which it equals


@triton.jit
def _penalise(logits, context, scores, length, penalty, inverse, VOCABULARY: tl.constexpr, STRIDE: tl.constexpr,
              PADDED: tl.constexpr, TILE: tl.constexpr):
    """An id that occurs twice is stored twice, with the same score."""
    row, place = tl.program_id(1).to(tl.int64), tl.program_id(0) * TILE + tl.arange(0, TILE)
    ids = tl.load(context + row * length + place, mask=place < length, other=-1)
    known = (ids >= 0) & (ids < VOCABULARY)
    values = tl.load(logits + row * STRIDE + ids, mask=known, other=0.0).to(tl.float32)
    values *= tl.where(values > 0, inverse, penalty)
    tl.store(scores + row * PADDED + ids, values + 0.0, mask=known)


@triton.jit
def _key(score):
    """A whole number that orders as the score does."""
    bits = score.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _threshold(scores, top, sharpness, floor, target, COUNTING: tl.constexpr, VOCABULARY: tl.constexpr,
               TILE: tl.constexpr):
    """Largest key such that the scores with it or a larger one, all above `floor`, are `target` many or weigh it."""
    key = tl.full((), LOWEST, tl.int32)
    for digit in range(16):
        step = 1 << (30 - 2 * digit)
        first = key + step
        second = first + step
        third = second + step
        a, b, c = tl.zeros((TILE,), tl.float32), tl.zeros((TILE,), tl.float32), tl.zeros((TILE,), tl.float32)
        for start in range(0, VOCABULARY, TILE):
            column = start + tl.arange(0, TILE)
            score = tl.load(scores + column, mask=column < VOCABULARY, other=float("-inf"))
            found = _key(score)
            if COUNTING:
                value = tl.where(column < VOCABULARY, 1.0, 0.0)
            else:
                value = tl.where(found > floor, tl.exp2((score - top) * sharpness), 0.0)
            a += tl.where(found >= first, value, 0.0)
            b += tl.where(found >= second, value, 0.0)
            c += tl.where(found >= third, value, 0.0)
        digits = (tl.sum(a) >= target).to(tl.int32) + (tl.sum(b) >= target).to(tl.int32)
        key += step * (digits + (tl.sum(c) >= target).to(tl.int32))
    return key


@triton.jit
def _above(scores, top, sharpness, key, VOCABULARY: tl.constexpr, TILE: tl.constexpr):
    """Weight and number of the scores above a key, number of those equal to it, weight of one of these."""
    weight, count, equal = tl.zeros((TILE,), tl.float32), tl.zeros((TILE,), tl.float32), tl.zeros((TILE,), tl.float32)
    for start in range(0, VOCABULARY, TILE):
        column = start + tl.arange(0, TILE)
        score = tl.load(scores + column, mask=column < VOCABULARY, other=float("-inf"))
        found = _key(score)
        above = (found > key) & (column < VOCABULARY)
        weight += tl.where(above, tl.exp2((score - top) * sharpness), 0.0)
        count += tl.where(above, 1.0, 0.0)
        equal += tl.where((found == key) & (column < VOCABULARY), 1.0, 0.0)
    score = (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    one = tl.where(key == LOWEST, 0.0, tl.exp2((score - top) * sharpness))
    return tl.sum(weight), tl.sum(count), tl.sum(equal), one


@triton.jit
def _sample(scores, weights, ids, counter, seed, offset, sharpness, top_k, top_p, GREEDY: tl.constexpr,
            TOP_K: tl.constexpr, TOP_P: tl.constexpr, VOCABULARY: tl.constexpr, PADDED: tl.constexpr,
            TILE: tl.constexpr):
    row = tl.program_id(0)
    scores += row.to(tl.int64) * PADDED
    tops, bad = tl.full((TILE,), float("-inf"), tl.float32), tl.zeros((TILE,), tl.int32)
    for start in range(0, VOCABULARY, TILE):
        column = start + tl.arange(0, TILE)
        score = tl.load(scores + column, mask=column < VOCABULARY, other=float("-inf"))
        tops = tl.maximum(tops, score)
        bad += ((column < VOCABULARY) & ~(tl.abs(score) < float("inf"))).to(tl.int32)
    top, damaged = tl.max(tops), tl.sum(bad) > 0

    if GREEDY:
        threshold, keep, mass = _key(top), tl.full((), 1.0, tl.float32), tl.full((), 1.0, tl.float32)
    else:
        threshold, keep = tl.full((), LOWEST, tl.int32), tl.full((), 0.0, tl.float32)
        if TOP_K:
            threshold = _threshold(scores, top, sharpness, threshold, top_k, True, VOCABULARY, TILE)
        mass, above, _, one = _above(scores, top, sharpness, threshold, VOCABULARY, TILE)
        if TOP_K:
            keep = top_k - above
        mass += keep * one
        if TOP_P:
            target = top_p * mass
            smallest = _threshold(scores, top, sharpness, threshold, target, False, VOCABULARY, TILE)
            smallest = tl.maximum(smallest, threshold)
            mass, _, equal, one = _above(scores, top, sharpness, smallest, VOCABULARY, TILE)
            keep = tl.minimum(tl.where(smallest == threshold, keep, equal), tl.ceil((target - mass) / one))
            threshold = smallest
            mass += keep * one

    if ids is not None:
        place = offset + row.to(tl.int64)
        if counter is not None:
            place += tl.load(counter)
        aim = tl.rand(seed, place) * mass
    passed, equals = tl.full((), 0.0, tl.float32), tl.full((), 0.0, tl.float32)
    chosen, last = tl.full((), VOCABULARY, tl.int32), tl.full((), -1, tl.int32)
    for start in range(0, VOCABULARY, TILE):
        column = start + tl.arange(0, TILE)
        score = tl.load(scores + column, mask=column < VOCABULARY, other=float("-inf"))
        found = _key(score)
        same = tl.where((found == threshold) & (column < VOCABULARY), 1.0, 0.0)
        rank = equals + tl.cumsum(same) - same
        kept = (column < VOCABULARY) & ((found > threshold) | ((same > 0) & (rank < keep)))
        weight = tl.where(kept, tl.exp2((score - top) * sharpness), 0.0)
        if weights is not None:
            value = tl.where(damaged, float("nan"), weight / mass)
            tl.store(weights + row.to(tl.int64) * VOCABULARY + column, value, mask=column < VOCABULARY)
        if ids is not None:
            reached = passed + tl.cumsum(weight) > aim
            chosen = tl.minimum(chosen, tl.min(tl.where(reached & (weight > 0), column, VOCABULARY)))
            last = tl.maximum(last, tl.max(tl.where(weight > 0, column, -1)))
        passed += tl.sum(weight)
        equals += tl.sum(same)
    if ids is not None:
        tl.store(ids + row, tl.where(damaged, -1, tl.minimum(chosen, last)).to(tl.int64))


def probabilities(logits: torch.Tensor, context: torch.Tensor | None = None, **settings: float) -> torch.Tensor:
    weights = memory.empty(logits.shape, torch.float32, logits.device)
    _run(logits, context, weights, None, 0, 0, **settings)
    return weights


def sample(logits: torch.Tensor, seed: int, offset: int | torch.Tensor, context: torch.Tensor | None = None,
           **settings: float) -> torch.Tensor:
    ids = memory.empty((len(logits),), torch.int64, logits.device)
    _run(logits, context, None, ids, seed, offset, **settings)
    return ids


def _run(logits, context, weights, ids, seed, offset, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
         repetition_penalty: float = 1.0) -> None:
    logits = logits if logits.stride(-1) == 1 else contiguous(logits)
    rows, vocabulary = logits.shape
    options = tuned("sampling", logits.dtype)
    shape = {"VOCABULARY": vocabulary, "STRIDE": logits.stride(0), "TILE": options["TILE"],
             "PADDED": triton.cdiv(vocabulary, PADDING) * PADDING}
    scores = memory.empty((rows, shape["PADDED"]), torch.float32, logits.device)
    launch(_scores, (triton.cdiv(vocabulary, options["TILE"]), rows), logits, scores, **shape)
    if context is not None and context.shape[1] and repetition_penalty != 1.0:
        length = context.shape[1]
        launch(_penalise, (triton.cdiv(length, options["TILE"]), rows), logits, contiguous(context), scores, length,
               repetition_penalty, 1 / repetition_penalty, **shape)
    sharpness = min(math.log2(math.e) / temperature, LARGEST_SHARPNESS) if temperature else 1.0
    counter = offset if isinstance(offset, torch.Tensor) else None
    del shape["STRIDE"]
    launch(_sample, (rows,), scores, weights, ids, counter, seed - (seed >> 63 << 64), 0 if counter is not None
           else offset, sharpness, float(top_k), float(top_p), GREEDY=temperature == 0, TOP_K=0 < top_k < vocabulary,
           TOP_P=top_p < 1, num_warps=options["num_warps"], **shape)
