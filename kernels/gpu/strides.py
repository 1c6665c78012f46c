"""Walking over the elements of a result, in order, beside operands of any strides.

Dimensions that lie in order in every operand are one; what remains are rows, found by division, and the elements of a
row. A tensor without gaps is one row.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Sequence

import torch
import triton
import triton.language as tl

DIMENSIONS = 4  # that programs can walk over
INT32 = 2**31  # numbers of rows up to here are divided as int32, which is several times faster
SQUARE = 64  # columns of a block some of whose operands lie by columns


@dataclass(frozen=True)
class Walk:
    """How programs walk over a result.

    Args:
        dims: number of dimensions left.
        rows, columns: of the result.
        sizes: of the second and third of DIMENSIONS; the first has the rest of the rows, the last is the columns.
        strides: for each operand DIMENSIONS numbers, 0 for dimensions that are not there.
    """

    dims: int
    rows: int
    columns: int
    sizes: tuple[int, int]
    strides: tuple[tuple[int, int, int, int], ...]

    def tile(self, elements: int) -> dict[str, int | bool]:
        """The block of one program with so many elements, and what else about the walk is a `tl.constexpr`."""
        by_columns = any(stride[-2] == 1 and stride[-1] not in (0, 1) for stride in self.strides)
        width = elements if self.dims == 1 else triton.next_power_of_2(self.columns)
        columns = min(width, SQUARE if by_columns else elements, elements)
        return {"DIMS": self.dims, "COLUMNS": columns, "ROWS": elements // columns, "WIDE": self.rows >= INT32}

    def programs(self, tile) -> tuple[int]:
        return (triton.cdiv(self.rows, tile["ROWS"]) * triton.cdiv(self.columns, tile["COLUMNS"]),)


def walk(shape: torch.Size, operands: Sequence[torch.Tensor]) -> Walk | None:
    """How to walk over a result of `shape` beside operands that broadcast to it; None if that takes more dimensions
    than programs have."""
    return merged(tuple(shape), tuple((t if t.shape == shape else t.expand(shape)).stride() for t in operands))


@functools.lru_cache(4096)
def merged(shape: tuple[int, ...], strides: tuple[tuple[int, ...], ...]) -> Walk | None:
    """The walk with as few dimensions as possible, from the strides of each operand."""
    sizes, steps = [], []
    for size, *step in zip(shape, *strides):
        if size == 1:
            continue
        if sizes and all(outer == size * inner for outer, inner in zip(steps[-1], step)):
            sizes[-1] *= size
            steps[-1] = step
        else:
            sizes.append(size)
            steps.append(step)
    if not sizes:
        sizes, steps = [1], [[0] * len(strides)]
    dims = len(sizes)
    if dims > DIMENSIONS:
        return None
    missing = DIMENSIONS - dims
    columns, rows = sizes[-1], math.prod(sizes[:-1])
    sizes = [1] * missing + sizes
    by_operand = zip(*([[0] * len(strides)] * missing + steps))
    return Walk(dims, rows, columns, (sizes[1], sizes[2]), tuple(tuple(stride) for stride in by_operand))


@triton.jit
def block(rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    """Rows and columns of this program; columns as int64, and rows if they do not fit in int32."""
    across = tl.cdiv(columns, COLUMNS)
    row_block, column_block = tl.program_id(0) // across, tl.program_id(0) % across
    row = row_block * ROWS + tl.arange(0, ROWS)
    if WIDE:
        row = row_block.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return row, column_block.to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)


@triton.jit
def row_offset(row, size1, size2, stride0, stride1, stride2, DIMS: tl.constexpr):
    """Where rows begin in an operand, as int64."""
    if DIMS < 3:
        offset = row.to(tl.int64) * stride2
    else:
        offset = (row % size2).to(tl.int64) * stride2
        if DIMS == 3:
            offset += (row // size2).to(tl.int64) * stride1
        else:
            outer = row // size2
            offset += (outer % size1).to(tl.int64) * stride1 + (outer // size1).to(tl.int64) * stride0
    return offset
