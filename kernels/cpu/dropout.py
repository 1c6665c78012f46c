"""Dropout whose mask is computed from a counter, forward and backward alike, and never stored.

The generator is Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), first word, turned
into a float32 as `triton.language.rand(seed, offset)` does, so that a GPU program draws the same mask.
"""

from __future__ import annotations

import numpy as np
import torch

from .. import memory
from .compiled import compiled
from .launch import scratch
from .rows import as_vector, launch_blocks, launch_rows

_KEY_A, _KEY_B = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_ROUND_A, _ROUND_B = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_LOW, _SHIFT, _ZERO = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(0)
_TO_UNIT, _SIGN = np.float32(4.6566127342e-10), np.int32(31)


@compiled
def _uniform(seed, offset, u):
    """Words of 32 bits in registers of 64, whose products LLVM vectorises; one function, as a call would stop it."""
    for i in range(u.shape[0]):
        counter = offset + np.uint64(i)
        c0, c1, c2, c3 = counter & _LOW, counter >> _SHIFT, _ZERO, _ZERO
        k0, k1 = seed & _LOW, seed >> _SHIFT
        for _ in range(10):
            left, right = _ROUND_B * c2, _ROUND_A * c0
            c0 = (left >> _SHIFT) ^ c1 ^ k0
            c2 = (right >> _SHIFT) ^ c3 ^ k1
            c1, c3 = left & _LOW, right & _LOW
            k0, k1 = (k0 + _KEY_A) & _LOW, (k1 + _KEY_B) & _LOW
        word = np.int32(np.uint32(c0))
        u[i] = np.float32(word ^ (word >> _SIGN)) * _TO_UNIT


@compiled
def _drop(x, u, p, scale, y):
    for i in range(x.shape[0]):
        y[i] = x[i] * scale if u[i] >= p else x.dtype.type(0)


def apply(x: torch.Tensor, p: float, seed: int, offset: int, stride: int = 1) -> torch.Tensor:
    y = memory.empty(x.shape, x.dtype)
    source, out = as_vector(x), as_vector(y)
    threshold, scale, key = np.float32(p), source.dtype.type(0 if p == 1 else 1 / (1 - p)), np.uint64(seed)
    first = offset * stride

    def program(part: slice):
        u = scratch("uniform", (part.stop - part.start,), torch.float32).numpy()
        _uniform(key, np.uint64(first + part.start), u)
        _drop(source[part], u, threshold, scale, out[part])

    launch_blocks(program, len(source), 1)
    return y


def uniform(like: torch.Tensor, seed: int, offset: int) -> torch.Tensor:
    u = memory.empty(like.shape, torch.float32)
    out, key = as_vector(u), np.uint64(seed)
    launch_rows(lambda part: _uniform(key, np.uint64(offset + part.start), out[part]), len(out), 1)
    return u
