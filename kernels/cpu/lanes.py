"""Sums over a thread's blocks: one accumulator per lane, added up at the end in lane order."""

from __future__ import annotations

import torch

from .. import memory
from .compiled import compiled
from .gemm import multiply
from .launch import launch, ranges


@compiled
def _add(total, part):
    for i in range(total.shape[0]):
        total[i] += part[i]


def lane_buffers(grid: int, shape: tuple[int, ...], like: torch.Tensor) -> list[torch.Tensor]:
    """One uninitialised accumulator per lane that a launch over `grid` blocks uses."""
    return [memory.empty(shape, like.dtype) for _ in ranges(grid)]


class WeightGradient:
    """dW = dy^T x of a weight matrix, summed over the blocks of each lane.

    Args:
        into: a buffer like the weight to add dW to; the first lane then works in it.
    """

    def __init__(self, grid: int, weight: torch.Tensor, into: torch.Tensor | None = None):
        self.into = into
        self.parts = lane_buffers(grid, weight.shape, weight)
        self.started = [False] * len(self.parts)
        if into is not None:
            self.parts[0], self.started[0] = into, True

    def add(self, lane: int, dy: torch.Tensor, x: torch.Tensor) -> None:
        """Add a block's rows, dy (rows, d_out) and x (rows, d_in)."""
        multiply(dy.t(), x, self.parts[lane], accumulate=self.started[lane])
        self.started[lane] = True

    def total(self) -> torch.Tensor | None:
        """The sum over all lanes; None when it was added to `into`."""
        total = add_lanes(self.parts)
        return total if self.into is None else None


def add_lanes(parts: list[torch.Tensor]) -> torch.Tensor:
    """The sum of the lanes' accumulators, left in the first one."""
    total = parts[0].view(-1).numpy()
    step = 1 << 16
    for part in parts[1:]:
        values = part.view(-1).numpy()
        launch(lambda j: _add(total[j * step: j * step + step], values[j * step: j * step + step]),
               -(-total.size // step))
    return parts[0]
