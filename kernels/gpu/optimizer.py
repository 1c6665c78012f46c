"""Passes over flat parameter buffers: the norm, AdamW, and the mean of the weights.

What changes from step to step lies on the device, in `control`: a captured CUDA graph is replayed with new values, and
nothing waits to learn whether the gradients are finite.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import memory
from .launch import launch, target
from .rows import contiguous
from .tuning import tuned

CHUNK = 64
"""Borders of segments are multiples of this: a chunk has one learning rate."""


@triton.jit
def _adamw(weights, grads, exp_avg, exp_avg_sq, working, bounds, factors, control, segments, count, beta1, beta2, eps,
           CHUNK: tl.constexpr, CHUNKS: tl.constexpr):
    if tl.load(control + 4) != 0.0:
        rate = tl.load(control).to(tl.float32)
        scale, correction1, correction2 = _as_float32(control + 5), _as_float32(control + 6), _as_float32(control + 7)
        begin = (tl.program_id(0).to(tl.int64) * CHUNKS + tl.arange(0, CHUNKS)) * CHUNK
        lr, decay = tl.zeros((CHUNKS,), tl.float32), tl.zeros((CHUNKS,), tl.float32)
        used = begin < 0
        for segment in range(segments):
            inside = (begin >= tl.load(bounds + 2 * segment)) & (begin < tl.load(bounds + 2 * segment + 1))
            decay = tl.where(inside, tl.load(factors + 2 * segment), decay)
            lr = tl.where(inside, rate * tl.load(factors + 2 * segment + 1), lr)
            used |= inside
        offset = begin[:, None] + tl.arange(0, CHUNK)[None, :]
        mask = used[:, None] & (offset < count)
        gradient = tl.load(grads + offset, mask=mask, other=0.0) * scale
        m = beta1 * tl.load(exp_avg + offset, mask=mask, other=0.0) + (1 - beta1) * gradient
        v = beta2 * tl.load(exp_avg_sq + offset, mask=mask, other=0.0) + (1 - beta2) * gradient * gradient
        w = tl.load(weights + offset, mask=mask, other=0.0) * (1 - lr * decay)[:, None]
        w -= lr[:, None] * (m * correction1) / (tl.sqrt(v * correction2) + eps)
        tl.store(exp_avg + offset, m, mask=mask)
        tl.store(exp_avg_sq + offset, v, mask=mask)
        tl.store(weights + offset, w, mask=mask)
        if working is not None:
            tl.store(working + offset, w.to(working.dtype.element_ty), mask=mask)


@triton.jit
def _as_float32(address):
    return tl.load(address).to(tl.float32)


def adamw(weights: torch.Tensor, grads: torch.Tensor, exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor,
          segments: tuple[torch.Tensor, torch.Tensor], control: torch.Tensor, working: torch.Tensor | None = None, *,
          beta1: float, beta2: float, eps: float) -> None:
    bounds, factors = segments
    options = tuned("adamw", weights.dtype)
    launch(_adamw, (triton.cdiv(len(weights), CHUNK * options["CHUNKS"]),), weights, grads, exp_avg, exp_avg_sq,
           working, bounds, factors, control, len(bounds), len(weights), beta1, beta2, eps, CHUNK=CHUNK, **options)


@triton.jit
def _begin_step(control, norm, beta1, beta2, clip_norm):
    length = tl.load(norm)
    tl.store(control + 3, length)
    finite = tl.abs(length) < float("inf")
    tl.store(control + 4, finite.to(tl.float64))
    if finite:
        step = tl.load(control + 1) + 1
        tl.store(control + 1, step)
        clips = (clip_norm > 0.0) & (length > clip_norm)
        tl.store(control + 5, tl.where(clips, clip_norm / length, 1.0))
        tl.store(control + 6, _bias_correction(beta1, step))
        tl.store(control + 7, _bias_correction(beta2, step))
    else:
        tl.store(control + 2, tl.load(control + 2) + 1)


@triton.jit
def _bias_correction(beta, step):
    return 1 / (1 - tl.exp2(step * tl.log2(tl.cast(beta, tl.float64))))


def begin_step(control: torch.Tensor, norm: torch.Tensor, *, beta1: float, beta2: float,
               clip_norm: float = 0.0) -> None:
    launch(_begin_step, (1,), control, norm, beta1, beta2, clip_norm, num_warps=1)


@triton.jit
def _average(mean, weights, control, count, decay, BLOCK: tl.constexpr):
    if tl.load(control + 4) != 0.0:
        rate = ((1 - decay) * _bias_correction(decay, tl.load(control + 1))).to(tl.float32)
        offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        mask = offset < count
        before = tl.load(mean + offset, mask=mask, other=0.0)
        tl.store(mean + offset, before + rate * (tl.load(weights + offset, mask=mask, other=0.0) - before), mask=mask)


def average(mean: torch.Tensor, weights: torch.Tensor, control: torch.Tensor, *, decay: float) -> None:
    options = tuned("flat", weights.dtype)
    launch(_average, (triton.cdiv(len(mean), options["BLOCK"]),), mean, weights, control, len(mean), decay, **options)


@triton.jit
def _sums_of_squares(x, sums, count, BLOCK: tl.constexpr):
    """Squares in float64, which neither overflow nor lose what is small: memory is what this waits for."""
    total = tl.zeros((BLOCK,), tl.float64)
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    for start in range(tl.program_id(0).to(tl.int64) * BLOCK, count, step):
        offset = start + tl.arange(0, BLOCK)
        values = tl.load(x + offset, mask=offset < count, other=0.0).to(tl.float64)
        total += values * values
    tl.store(sums + tl.program_id(0), tl.sum(total))


@triton.jit
def _root_of_sum(sums, out, count, BLOCK: tl.constexpr):
    part = tl.arange(0, BLOCK)
    tl.store(out, tl.sqrt(tl.sum(tl.load(sums + part, mask=part < count, other=0.0))))


def norm(x: torch.Tensor, out: torch.Tensor | None = None) -> float | torch.Tensor:
    options = tuned("norm", x.dtype)
    flat, block = contiguous(x).view(-1), options["BLOCK"]
    programs = max(1, min(triton.cdiv(len(flat), block), options["PER_MULTIPROCESSOR"] * target().multiprocessors))
    sums = memory.empty((programs,), torch.float64, x.device)
    result = memory.empty((1,), torch.float64, x.device) if out is None else out
    launch(_sums_of_squares, (programs,), flat, sums, len(flat), BLOCK=block, num_warps=options["num_warps"])
    launch(_root_of_sum, (1,), sums, result, programs, BLOCK=triton.next_power_of_2(programs))
    return float(result) if out is None else out
