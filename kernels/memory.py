"""Buffers for kernels: a pool on the CPU, PyTorch's own caching allocator elsewhere.

A training step asks for the same few hundred buffers every time. Handing large blocks back to the operating
system costs a page fault per 4 KiB when they are asked for again, so freed blocks are kept by size and reused.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict

import numpy as np
import torch

POOLED_FROM = 1 << 16  # bytes; smaller blocks stay with malloc, which never returns them to the system
ALIGNMENT = 64

_free: dict[int, list[np.ndarray]] = defaultdict(list)
_poison = False
allocated_bytes = 0
"""Bytes of pooled blocks in use now."""
peak_bytes = 0
"""Largest value of `allocated_bytes` since `reset_peak`."""


class _Lease:
    """Owns one block for as long as any array or tensor looks into it, then returns it to the pool."""

    __slots__ = ("block", "__array_interface__")

    def __init__(self, block: np.ndarray):
        global allocated_bytes, peak_bytes
        self.block = block
        address = block.ctypes.data
        aligned = -(-address // ALIGNMENT) * ALIGNMENT
        self.__array_interface__ = {
            "version": 3, "typestr": "|u1", "shape": (block.nbytes - ALIGNMENT,), "data": (aligned, False),
        }
        allocated_bytes += block.nbytes
        peak_bytes = max(peak_bytes, allocated_bytes)

    def __del__(self):
        global allocated_bytes
        allocated_bytes -= self.block.nbytes
        _free[self.block.nbytes].append(self.block)


def block_size(nbytes: int) -> int:
    """Sizes in eighths of a power of two: at most 12.5 % waste, and nearby sizes share blocks."""
    step = 1 << max(nbytes.bit_length() - 4, 12)
    return -(-nbytes // step) * step + ALIGNMENT


def empty(shape, dtype: torch.dtype = torch.float32, device="cpu") -> torch.Tensor:
    """An uninitialised contiguous tensor of `shape`."""
    shape = tuple(shape)
    count = math.prod(shape)
    nbytes = count * dtype.itemsize
    if torch.device(device).type != "cpu" or nbytes < POOLED_FROM:
        tensor = torch.empty(shape, dtype=dtype, device=device)
    else:
        size = block_size(nbytes)
        blocks = _free[size]
        lease = _Lease(blocks.pop() if blocks else np.empty(size, np.uint8))
        tensor = torch.from_numpy(np.asarray(lease)[:nbytes]).view(dtype).view(shape)
    poison(tensor)
    return tensor


def empty_like(tensor: torch.Tensor) -> torch.Tensor:
    """An uninitialised contiguous tensor with the shape, dtype and device of `tensor`."""
    return empty(tensor.shape, tensor.dtype, tensor.device)


def zeros(shape, dtype: torch.dtype = torch.float32, device="cpu") -> torch.Tensor:
    """A tensor of zeros."""
    return empty(shape, dtype, device).zero_()


def copy(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy in a fresh buffer."""
    return empty_like(tensor).copy_(tensor)


def free_bytes() -> int:
    """Bytes of pooled blocks that wait to be used again."""
    return sum(size * len(blocks) for size, blocks in _free.items())


def release() -> None:
    """Give every unused block back to the operating system."""
    _free.clear()


def reset_peak() -> None:
    """Start a new measurement of `peak_bytes`."""
    global peak_bytes
    peak_bytes = allocated_bytes


def poison(tensor: torch.Tensor) -> None:
    """Within `poisoned`, fill memory that is about to be handed out; elsewhere do nothing."""
    if _poison:
        kind = tensor.dtype
        tensor.fill_(float("nan") if kind.is_floating_point else 1 if kind == torch.bool else torch.iinfo(kind).max)


def poisoning() -> bool:
    """Whether memory is being poisoned."""
    return _poison


@contextlib.contextmanager
def poisoned():
    """Within this context fresh buffers and scratch hold NaN (the largest integer for integer types).

    A kernel that reads memory it never wrote then shows it in its result. For tests.
    """
    global _poison
    before, _poison = _poison, True
    try:
        yield
    finally:
        _poison = before
