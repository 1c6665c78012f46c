"""What an allocator would hold: the requests of a run, replayed without memory and without arithmetic."""

from __future__ import annotations

from collections import Counter

from kernels import memory

CUDA_ROUNDING = 512  # bytes; PyTorch's caching allocator


class Pool:
    """The blocks that have been made so far.

    Args:
        device: "cpu" keeps freed blocks by size, as kernels.memory does, and one serves only requests of its own size;
            "cuda" is taken to reuse all that is free.

    Attributes:
        bytes: of all blocks made; on the CPU they stay with the process.
        made: the same by purpose; a block bears the purpose that it was first made for.
        purpose: of the requests that follow.
    """

    def __init__(self, device: str = "cpu"):
        self.device, self.purpose = device, "activations"
        self.made: Counter[str] = Counter()
        self._live: Counter[int] = Counter()
        self._most: Counter[int] = Counter()
        self._in_use = 0

    @property
    def bytes(self) -> int:
        return sum(self.made.values())

    def take(self, nbytes: int) -> int:
        """A buffer; returns the size of its block, which `give` wants back."""
        if self.device != "cpu":
            size = -(-nbytes // CUDA_ROUNDING) * CUDA_ROUNDING
            self._in_use += size
            self.made[self.purpose] += max(0, self._in_use - self.bytes)
            return size
        if nbytes < memory.POOLED_FROM:
            return 0
        size = memory.block_size(nbytes)
        self._live[size] += 1
        if self._live[size] > self._most[size]:
            self._most[size] += 1
            self.made[self.purpose] += size
        return size

    def give(self, *blocks: int) -> None:
        """Free blocks."""
        for size in blocks:
            self._live[size] -= bool(size)
            self._in_use -= size
