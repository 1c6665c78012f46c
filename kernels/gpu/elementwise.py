"""Operations element by element, with broadcasting: one kernel, whose formula is a constant of the compiler."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import memory
from .formulas import of_four, of_one, of_three, of_two
from .launch import launch
from .strides import block, row_offset, walk
from .tuning import tuned

TO_BOOL = {"eq", "ne", "lt", "le", "gt", "ge", "logical_not"}


@triton.jit
def _operand(pointer, row, column, rows, columns, size1, size2, stride0, stride1, stride2, stride3, DIMS: tl.constexpr):
    """An operand's elements, half precision as float32; one for each row if it has no stride within rows."""
    offset = row_offset(row, size1, size2, stride0, stride1, stride2, DIMS)[:, None]
    inside = (row < rows)[:, None]
    if stride3 is not None:
        offset = offset + (column * stride3)[None, :]
        inside = inside & (column < columns)[None, :]
    values = tl.load(pointer + offset, mask=inside, other=0)
    if values.dtype.is_floating() and values.dtype.primitive_bitwidth < 32:
        values = values.to(tl.float32)
    return values


@triton.jit
def _apply(a, b, c, d, y, rows, columns, size1, size2, a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3,
           NAME: tl.constexpr, TRUTH: tl.constexpr, DIMS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
           WIDE: tl.constexpr):
    row, column = block(rows, columns, ROWS, COLUMNS, WIDE)
    first = _operand(a, row, column, rows, columns, size1, size2, a0, a1, a2, a3, DIMS)
    if b is None:
        result = of_one(NAME, first)
    else:
        second = _operand(b, row, column, rows, columns, size1, size2, b0, b1, b2, b3, DIMS)
        if c is None:
            result = of_two(NAME, first, second)
        else:
            third = _operand(c, row, column, rows, columns, size1, size2, c0, c1, c2, c3, DIMS)
            if d is None:
                result = of_three(NAME, first, second, third)
            else:
                fourth = _operand(d, row, column, rows, columns, size1, size2, d0, d1, d2, d3, DIMS)
                result = of_four(NAME, first, second, third, fourth)
    if TRUTH:
        result = result != 0
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(y + row.to(tl.int64)[:, None] * columns + column[None, :], result.to(y.dtype.element_ty), mask=inside)


def apply(name: str, *operands: torch.Tensor) -> torch.Tensor:
    shape = operands[0].shape
    if any(operand.shape != shape for operand in operands):
        shape = torch.broadcast_shapes(*(operand.shape for operand in operands))
    kind = torch.bool if name in TO_BOOL else operands[-1].dtype
    y = memory.empty(shape, kind, operands[0].device)
    _launch(name, operands, y)
    return y


def accumulate(into: torch.Tensor, x: torch.Tensor) -> None:
    _launch("add", (into, x), into)


def scale(x: torch.Tensor, factor: torch.Tensor) -> None:
    _launch("mul", (x, factor), x)


def cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return memory.empty(x.shape, dtype, x.device).copy_(x)


def _launch(name: str, operands: tuple[torch.Tensor, ...], y: torch.Tensor) -> None:
    """Write the operation's result to contiguous `y`."""
    if not y.numel():
        return
    plan = walk(y.shape, operands)
    if plan is None:
        operands = [operand if operand.numel() == 1 else memory.copy(operand.expand(y.shape)) for operand in operands]
        plan = walk(y.shape, operands)
    options = tuned("elementwise", y.dtype)
    tile = plan.tile(options["ELEMENTS"])
    absent = 4 - len(operands)
    strides = [number for *outer, inner in (*plan.strides, *[(0,) * 4] * absent) for number in (*outer, inner or None)]
    launch(_apply, plan.programs(tile), *map(as_numbers, operands), *[None] * absent, as_numbers(y),
           plan.rows, plan.columns, *plan.sizes, *strides, NAME=name, TRUTH=y.dtype == torch.bool, **tile,
           num_warps=options["num_warps"])


def as_numbers(tensor: torch.Tensor) -> torch.Tensor:
    """Booleans as bytes 0 and 1."""
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor
