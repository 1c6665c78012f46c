"""Dropout whose mask is computed from a counter, forward and backward alike, and never stored.

The generator is Philox-4x32-10 (Salmon et al. 2011), first word: the numbers are those of the CPU's programs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import memory
from .launch import launch
from .rows import contiguous
from .tuning import tuned

NUMBERS = ("seed", "seed_high", "offset", "offset_high")


@triton.jit
def _number(low, high):
    """A number of 64 bits from two words, or from memory."""
    if high is None:
        number = tl.load(low)
    else:
        number = (high.to(tl.int64) << 32) | (low.to(tl.int64) & 0xFFFFFFFF)
    return number


@triton.jit(do_not_specialize=NUMBERS)
def _draw(x, y, count, p, scale, stride, seed, seed_high, offset, offset_high, BLOCK: tl.constexpr):
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    uniform = tl.rand(_number(seed, seed_high), _number(offset, offset_high) * stride + element)
    if x is None:
        result = uniform
    else:
        values = tl.load(x + element, mask=element < count, other=0.0)
        if values.dtype.primitive_bitwidth < 32:
            values = values.to(tl.float32)
        result = tl.where(uniform >= p, values * scale, 0.0)
    tl.store(y + element, result.to(y.dtype.element_ty), mask=element < count)


def apply(x: torch.Tensor, p: float, seed: int | torch.Tensor, offset: int | torch.Tensor,
          stride: int = 1) -> torch.Tensor:
    y = memory.empty(x.shape, x.dtype, x.device)
    _launch(contiguous(x), y, p, 0.0 if p == 1 else 1 / (1 - p), seed, offset, stride)
    return y


def uniform(like: torch.Tensor, seed: int | torch.Tensor, offset: int | torch.Tensor) -> torch.Tensor:
    u = memory.empty(like.shape, torch.float32, like.device)
    _launch(None, u, 0.0, 1.0, seed, offset, 1)
    return u


def _launch(x: torch.Tensor | None, y: torch.Tensor, p: float, scale: float, seed, offset,
            stride: int) -> None:
    options = tuned("dropout", y.dtype)
    launch(_draw, (triton.cdiv(y.numel(), options["BLOCK"]),), x, y, y.numel(), float(p), scale, stride,
           *_words(seed), *_words(offset), **options)


def _words(number: int | torch.Tensor) -> tuple[int, int] | tuple[torch.Tensor, None]:
    """Two signed words of 32 bits, the lower first: the compiled kernel is the same for any number."""
    if isinstance(number, torch.Tensor):
        return number, None
    return tuple((number >> shift & 0xFFFFFFFF ^ 0x80000000) - 0x80000000 for shift in (0, 32))
