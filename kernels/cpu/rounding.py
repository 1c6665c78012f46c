"""bfloat16 emulated on the CPU: float32 buffers whose values are rounded where a GPU program stores bfloat16.

Between those points both compute in float32, so a run with emulation shows what a run in bfloat16 would do, as far as
rounding goes: the order of sums still differs.
"""

from __future__ import annotations

import contextlib
from typing import Iterator

import numpy as np
import torch

from .compiled import compiled
from .rows import launch_rows

_emulating = False


@contextlib.contextmanager
def bfloat16() -> Iterator[None]:
    """Within this context `rounded` rounds."""
    global _emulating
    before, _emulating = _emulating, True
    try:
        yield
    finally:
        _emulating = before


def emulating() -> bool:
    """Whether `rounded` rounds."""
    return _emulating


@compiled
def _round_bits(bits):
    """To nearest, ties to even, on the bits of float32. A NaN stays one, as the quiet bit is in the upper half."""
    for i in range(bits.shape[0]):
        for j in range(bits.shape[1]):
            word = bits[i, j]
            odd = (word >> np.uint32(16)) & np.uint32(1)
            up = word + np.uint32(0x7FFF) + odd
            is_nan = (word & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
            bits[i, j] = (word | np.uint32(0x400000) if is_nan else up) & np.uint32(0xFFFF0000)


def rounded(buffer: torch.Tensor) -> torch.Tensor:
    """The buffer, its float32 values rounded in place to bfloat16 when emulating. A view with gaps is left as it is."""
    if _emulating and buffer.dtype == torch.float32 and buffer.is_contiguous():
        bits = buffer.view(-1).numpy().view(np.uint32)
        bits = bits.reshape(-1, buffer.shape[-1] if buffer.ndim else 1)
        launch_rows(lambda rows: _round_bits(bits[rows]), *bits.shape)
    return buffer
