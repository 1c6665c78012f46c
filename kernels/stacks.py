"""Matrices of one shape at even distances in a flat buffer."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Stack(NamedTuple):
    """Matrix i has the elements from start + i stride on, row by row.

    Args:
        start, stride: in elements.
        count, rows, columns: matrices, and the shape of each.
        scale: size of Muon's update of such a matrix.
    """

    start: int
    stride: int
    count: int
    rows: int
    columns: int
    scale: float = 1.0

    @property
    def size(self) -> int:
        """Elements of a matrix."""
        return self.rows * self.columns

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """View (count, rows, columns) of a contiguous flat buffer."""
        strides = self.stride, self.columns, 1
        return flat.as_strided((self.count, self.rows, self.columns), strides, flat.storage_offset() + self.start)
