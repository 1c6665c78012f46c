"""Products of rows grouped by expert, each group with its expert's own matrix: what experts.py is made of.

The grouped rows are cut into one range per thread, whatever experts they belong to, so that threads have equal work
however uneven the experts are. Where a cut goes through an expert, both sides make a gradient of its weights.
"""

from __future__ import annotations

from typing import Iterator

import numpy as np
import torch

from .. import memory
from .compiled import compiled
from .gemm import blocks, multiply
from .lanes import add_lanes
from .launch import ranges

PIECE_ELEMENTS = 1 << 21  # elements of all the rows a piece works on: several MiB, as its matrices are read once more

@compiled
def gather_rows(x, pairs, choices, out):
    """Rows of x (tokens, d) for `pairs` = token * choices + choice."""
    for i in range(pairs.shape[0]):
        row, to = x[pairs[i] // choices], out[i]
        for j in range(to.shape[0]):
            to[j] = row[j]


@compiled
def combine_rows(rows, place, gates, base, with_base, y):
    """y[t] = (base[t] +) the sum over choices c, in order, of gates[t, c] * rows[place[t, c]]."""
    for t in range(y.shape[0]):
        out, first, start = y[t], rows[place[t, 0]], base[t]
        weight = gates[t, 0]
        for j in range(out.shape[0]):
            out[j] = weight * first[j]
        for c in range(1, place.shape[1]):
            row, weight = rows[place[t, c]], gates[t, c]
            for j in range(out.shape[0]):
                out[j] += weight * row[j]
        if with_base:
            for j in range(out.shape[0]):
                out[j] += start[j]


def piece_rows(width: int) -> int:
    """Most rows of a piece, for programs whose rows hold `width` elements; an expert's rows are best left in one."""
    return max(64, min(768, PIECE_ELEMENTS // width))


def pieces(offsets: np.ndarray, start: int, stop: int, most: int) -> Iterator[tuple[int, int, int]]:
    """(expert, first row, end) that cover rows start to stop - 1, each of one expert and of at most `most` rows.

    Args:
        offsets: (experts + 1,) where each expert's rows begin.
    """
    for expert in range(int(np.searchsorted(offsets, start, "right")) - 1, len(offsets) - 1):
        low, high = max(start, int(offsets[expert])), min(stop, int(offsets[expert + 1]))
        if low >= stop:
            return
        parts = blocks(high - low, most)
        for part in range(parts):
            yield expert, low + part * (high - low) // parts, low + (part + 1) * (high - low) // parts


class WeightGradients:
    """dW[e] = dy^T x over the rows of each expert e, for a launch of `ranges(rows)`.

    The lane with an expert's first row works in the result itself, later lanes in buffers that are added in lane order.

    Args:
        weight: (experts, d_out, d_in).
        into: a buffer like the weight to add the gradient to.
    """

    def __init__(self, offsets: np.ndarray, weight: torch.Tensor, into: torch.Tensor | None = None):
        self.into = into
        self.result = memory.empty(weight.shape, weight.dtype) if into is None else into
        self.targets = {}
        self.shared: dict[int, list[torch.Tensor]] = {}
        for lane, (start, stop) in enumerate(ranges(int(offsets[-1]))):
            for expert, first, _ in pieces(offsets, start, stop, stop - start):
                own = first == offsets[expert]
                buffer = self.result[expert] if own else memory.empty(weight.shape[1:], weight.dtype)
                self.targets[lane, expert] = [buffer, own and into is not None]
                if not own:
                    self.shared.setdefault(expert, []).append(buffer)
        self.idle = np.flatnonzero(offsets[1:] == offsets[:-1])

    def add(self, lane: int, expert: int, dy: torch.Tensor, x: torch.Tensor) -> None:
        """Add some rows, dy (rows, d_out) and x (rows, d_in), of one expert."""
        target = self.targets[lane, expert]
        multiply(dy.t(), x, target[0], accumulate=target[1])
        target[1] = True

    def total(self) -> torch.Tensor | None:
        """The gradients, 0 for an expert without rows; None when they were added to `into`."""
        for expert, parts in self.shared.items():
            add_lanes([self.result[expert], *parts])
        if self.into is not None:
            return None
        for expert in self.idle:
            self.result[int(expert)].zero_()
        return self.result
