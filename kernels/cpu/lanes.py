"""Sums over a thread's blocks: one accumulator per lane, added up at the end in lane order."""

from __future__ import annotations

import torch

from .. import memory
from .compiled import compiled
from .launch import launch, ranges


@compiled
def _add(total, part):
    for i in range(total.shape[0]):
        total[i] += part[i]


def lane_buffers(grid: int, shape: tuple[int, ...], like: torch.Tensor) -> list[torch.Tensor]:
    """One uninitialised accumulator per lane that a launch over `grid` blocks uses."""
    return [memory.empty(shape, like.dtype) for _ in ranges(grid)]


def add_lanes(parts: list[torch.Tensor]) -> torch.Tensor:
    """The sum of the lanes' accumulators, left in the first one."""
    total = parts[0].view(-1).numpy()
    step = 1 << 16
    for part in parts[1:]:
        values = part.view(-1).numpy()
        launch(lambda j: _add(total[j * step: j * step + step], values[j * step: j * step + step]),
               -(-total.size // step))
    return parts[0]
