"""Launching over rows: one range per thread, or blocks that stay in the cache if a program passes over them often.

A block costs some ten microseconds, as its thread has to get the interpreter lock back; so no more blocks than needed.
"""

from __future__ import annotations

import math
from typing import Callable

import numpy as np
import torch

from .launch import launch, launch_ranges

STEP = 1 << 16  # elements of a block, and the fewest worth a thread of their own


def as_rows(tensor: torch.Tensor) -> np.ndarray:
    """The tensor as contiguous (rows, last dimension), copied only if it is not contiguous."""
    return tensor.contiguous().view(math.prod(tensor.shape[:-1]), tensor.shape[-1]).numpy()


def as_vector(tensor: torch.Tensor) -> np.ndarray:
    """All elements in order, copied only if the tensor is not contiguous."""
    return tensor.contiguous().view(-1).numpy()


def launch_rows(program: Callable[[slice], None], rows: int, width: int) -> None:
    """Run `program(part)` on every thread, over slices that cover `rows` rows of `width` elements."""
    n = max(1, STEP // max(width, 1))
    launch_ranges(lambda _lane, start, stop: program(slice(start * n, min(stop * n, rows))), -(-rows // n))


def launch_blocks(program: Callable[[slice], None], rows: int, width: int) -> None:
    """Run `program(part)` over slices of about STEP elements that cover `rows` rows of `width` elements."""
    n = max(1, STEP // max(width, 1))
    launch(lambda block: program(slice(block * n, min(block * n + n, rows))), -(-rows // n))
