"""Choosing experts for tokens, and the chosen (token, choice) pairs grouped by expert, without waiting for the GPU.

Grouping is a counting sort whose order does not depend on timing: a fixed number of programs each own a stretch of the
pairs; they count, one program adds up the counts, and each then places its pairs in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import memory
from .launch import launch, target
from .rows import as_rows, contiguous
from .tuning import tuned

SMALLEST_SUM = tl.constexpr(1e-20)  # added to a sum of sigmoid scores: gates of 0 instead of 0 / 0 where all vanish


@triton.jit
def _forward(logits, bias, noise, indices, gates, scores, rows, EXPERTS: tl.constexpr, CHOICES: tl.constexpr,
             SOFTMAX: tl.constexpr, NORMALISED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
             SLOTS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    real = (column < EXPERTS)[None, :]
    inside = (row < rows)[:, None] & real
    offset = row[:, None] * EXPERTS + column[None, :]
    value = tl.load(logits + offset, mask=inside, other=0.0).to(tl.float32)
    if SOFTMAX:
        top = tl.max(tl.where(real, value, float("-inf")), axis=1, keep_dims=True)
        power = tl.where(real, tl.exp(value - top), 0.0)
        score = power / tl.sum(power, axis=1, keep_dims=True)
    else:
        score = 1 / (1 + tl.exp(-value))
    tl.store(scores + offset, score, mask=inside)
    rank = value
    if noise is not None:
        rank += tl.load(noise + offset, mask=inside, other=0.0).to(tl.float32)
    elif bias is not None:
        rank = score
    if bias is not None:
        rank += tl.load(bias + column, mask=column < EXPERTS, other=0.0).to(tl.float32)[None, :]
    rank = tl.where(rank == rank, rank, float("-inf"))
    slot = tl.arange(0, SLOTS)
    used = (slot < CHOICES)[None, :]
    chosen = tl.zeros((ROWS, SLOTS), tl.int32)
    gate = tl.zeros((ROWS, SLOTS), tl.float32)
    free = real & (row >= 0)[:, None]
    for choice in tl.static_range(CHOICES):
        best = tl.max(tl.where(free, rank, float("-inf")), axis=1, keep_dims=True)
        pick = tl.min(tl.where(free & (rank == best), column[None, :], COLUMNS), axis=1, keep_dims=True)
        hit = column[None, :] == pick
        free = free & (hit == 0)
        if SOFTMAX and NORMALISED:
            weight = tl.sum(tl.where(hit, value, 0.0), axis=1, keep_dims=True)
        else:
            weight = tl.sum(tl.where(hit, score, 0.0), axis=1, keep_dims=True)
        here = slot[None, :] == choice
        chosen = tl.where(here, pick, chosen)
        gate = tl.where(here, weight, gate)
    if NORMALISED:
        if SOFTMAX:
            highest = tl.max(tl.where(used, gate, float("-inf")), axis=1, keep_dims=True)
            gate = tl.where(used, tl.exp(gate - highest), 0.0)
            gate = gate / tl.sum(gate, axis=1, keep_dims=True)
        else:
            gate = gate / (tl.sum(gate, axis=1, keep_dims=True) + SMALLEST_SUM)
    kept = (row < rows)[:, None] & used
    place = row[:, None] * CHOICES + slot[None, :]
    tl.store(indices + place, chosen.to(tl.int64), mask=kept)
    tl.store(gates + place, gate, mask=kept)


@triton.jit
def _backward(dgates, dscores, indices, gates, scores, dlogits, rows, EXPERTS: tl.constexpr, CHOICES: tl.constexpr,
              SOFTMAX: tl.constexpr, NORMALISED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
              SLOTS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < EXPERTS)[None, :]
    offset = row[:, None] * EXPERTS + column[None, :]
    score = tl.load(scores + offset, mask=inside, other=0.0)
    d = tl.load(dscores + offset, mask=inside, other=0.0).to(tl.float32)
    late = tl.zeros((ROWS, COLUMNS), tl.float32)
    dot = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    if NORMALISED:
        for choice in tl.static_range(CHOICES):
            place = row * CHOICES + choice
            gate = tl.load(gates + place, mask=row < rows, other=0.0)
            dot += gate * tl.load(dgates + place, mask=row < rows, other=0.0).to(tl.float32)
            pick = tl.load(indices + place, mask=row < rows, other=0)
            total += tl.sum(tl.where(column[None, :] == pick[:, None], score, 0.0), axis=1)
    for choice in tl.static_range(CHOICES):
        place = row * CHOICES + choice
        pick = tl.load(indices + place, mask=row < rows, other=0)
        change = tl.load(dgates + place, mask=row < rows, other=0.0).to(tl.float32)
        hit = column[None, :] == pick[:, None]
        if not NORMALISED:
            d += tl.where(hit, change[:, None], 0.0)
        elif SOFTMAX:
            gate = tl.load(gates + place, mask=row < rows, other=0.0)
            late += tl.where(hit, (gate * (change - dot))[:, None], 0.0)
        else:
            d += tl.where(hit, ((change - dot) / (total + SMALLEST_SUM))[:, None], 0.0)
    if SOFTMAX:
        result = score * (d - tl.sum(score * d, axis=1, keep_dims=True)) + late
    else:
        result = d * score * (1 - score)
    tl.store(dlogits + offset, result.to(dlogits.dtype.element_ty), mask=inside)


@triton.jit
def _one_hot(indices, start, pairs, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """int32 (BLOCK, COLUMNS): which expert each of the pairs from `start` chose."""
    pair = start + tl.arange(0, BLOCK)
    expert = tl.load(indices + pair, mask=pair < pairs, other=-1)
    return (expert[:, None] == tl.arange(0, COLUMNS)[None, :]).to(tl.int32)


@triton.jit
def _count(indices, parts, pairs, stretch, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    counts = tl.zeros((COLUMNS,), tl.int32)
    for start in range(program * stretch, tl.minimum(program * stretch + stretch, pairs), BLOCK):
        counts += tl.sum(_one_hot(indices, start, pairs, COLUMNS, BLOCK), axis=0)
    tl.store(parts + program * COLUMNS + tl.arange(0, COLUMNS), counts)


@triton.jit
def _add_up(parts, starts, counts, offsets, programs, EXPERTS: tl.constexpr, COLUMNS: tl.constexpr,
            BLOCK: tl.constexpr):
    """counts and offsets of the experts, and where each program's pairs of each expert start."""
    column = tl.arange(0, COLUMNS)
    totals = tl.zeros((COLUMNS,), tl.int32)
    for start in range(0, programs, BLOCK):
        program = start + tl.arange(0, BLOCK)
        place = program[:, None] * COLUMNS + column[None, :]
        totals += tl.sum(tl.load(parts + place, mask=(program < programs)[:, None], other=0), axis=0)
    ends = tl.cumsum(totals, axis=0)
    tl.store(counts + column, totals, mask=column < EXPERTS)
    if offsets is not None:
        tl.store(offsets + column, ends - totals, mask=column < EXPERTS)
        tl.store(offsets + column + 1, ends, mask=column == EXPERTS - 1)
        before = ends - totals
        for start in range(0, programs, BLOCK):
            program = start + tl.arange(0, BLOCK)
            place = program[:, None] * COLUMNS + column[None, :]
            part = tl.load(parts + place, mask=(program < programs)[:, None], other=0)
            tl.store(starts + place, before[None, :] + tl.cumsum(part, axis=0) - part,
                     mask=(program < programs)[:, None])
            before += tl.sum(part, axis=0)


@triton.jit
def _place(indices, starts, order, place, pairs, stretch, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    before = tl.load(starts + program * COLUMNS + tl.arange(0, COLUMNS))
    for start in range(program * stretch, tl.minimum(program * stretch + stretch, pairs), BLOCK):
        chosen = _one_hot(indices, start, pairs, COLUMNS, BLOCK)
        row = tl.sum(chosen * (before[None, :] + tl.cumsum(chosen, axis=0) - 1), axis=1)
        before += tl.sum(chosen, axis=0)
        pair = start + tl.arange(0, BLOCK)
        tl.store(place + pair, row, mask=pair < pairs)
        tl.store(order + row, pair, mask=(pair < pairs) & (tl.sum(chosen, axis=1) == 1))


def forward(logits: torch.Tensor, indices: torch.Tensor, score: str, normalised: bool,
            bias: torch.Tensor | None = None, noise: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    rows = as_rows(logits)
    gates = memory.empty(indices.shape, torch.float32, logits.device)
    scores = memory.empty(logits.shape, torch.float32, logits.device)
    grid, shape, warps = _rows_launch(logits, indices, score, normalised)
    launch(_forward, grid, rows, None if bias is None else contiguous(bias), None if noise is None else as_rows(noise),
           indices, gates, scores, len(rows), **shape, num_warps=warps)
    return gates, scores


def backward(dgates: torch.Tensor, dscores: torch.Tensor, logits: torch.Tensor, indices: torch.Tensor,
             gates: torch.Tensor, scores: torch.Tensor, score: str, normalised: bool) -> torch.Tensor:
    dlogits = memory.empty(logits.shape, logits.dtype, logits.device)
    grid, shape, warps = _rows_launch(logits, indices, score, normalised)
    launch(_backward, grid, as_rows(dgates), as_rows(dscores), indices, gates, scores, dlogits,
           scores.numel() // scores.shape[-1], **shape, num_warps=warps)
    return dlogits


def _rows_launch(logits, indices, score, normalised):
    experts, choices = logits.shape[-1], indices.shape[-1]
    columns = triton.next_power_of_2(experts)
    config = tuned("routing", logits.dtype, experts=experts)
    rows = max(1, config["ELEMENTS"] // columns)
    shape = {"EXPERTS": experts, "CHOICES": choices, "SOFTMAX": score == "softmax", "NORMALISED": bool(normalised),
             "ROWS": rows, "COLUMNS": columns, "SLOTS": triton.next_power_of_2(choices)}
    return (triton.cdiv(logits.numel() // experts, rows),), shape, config["num_warps"]


def count(indices: torch.Tensor, experts: int) -> torch.Tensor:
    return _counted(contiguous(indices), experts, None)[0]


def group(indices: torch.Tensor, experts: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    indices = contiguous(indices)
    pairs, device = indices.numel(), indices.device
    offsets = memory.empty((experts + 1,), torch.int32, device)
    order = memory.empty((pairs,), torch.int32, device)
    place = memory.empty(indices.shape, torch.int32, device)
    _, starts, stretch, shape, warps = _counted(indices, experts, offsets)
    launch(_place, (len(starts),), indices, starts, order, place, pairs, stretch, **shape, num_warps=warps)
    return offsets, order, place


def _counted(indices, experts, offsets):
    """How often each expert was chosen; fills `offsets` if given; and how the pairs were shared out for that."""
    pairs, columns, device = indices.numel(), triton.next_power_of_2(experts), indices.device
    config = tuned("group", torch.int64, experts=experts)
    warps, block = config["num_warps"], max(1, config["ELEMENTS"] // columns)
    blocks = triton.cdiv(pairs, block)
    programs = max(1, min(blocks, config["PER_MULTIPROCESSOR"] * target().multiprocessors))
    stretch = triton.cdiv(blocks, programs) * block
    parts, starts = (memory.empty((programs, columns), torch.int32, device) for _ in range(2))
    counts = memory.empty((experts,), torch.int32, device)
    shape = {"COLUMNS": columns, "BLOCK": block}
    launch(_count, (programs,), indices, parts, pairs, stretch, **shape, num_warps=warps)
    adding = {"EXPERTS": experts, "COLUMNS": columns, "BLOCK": max(1, config["ADDED"] // columns)}
    launch(_add_up, (1,), parts, starts, counts, offsets, programs, **adding, num_warps=4 * warps)
    return counts, starts, stretch, shape, warps
