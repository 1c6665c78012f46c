"""Picking elements by position and, for the gradient, adding values up at positions.

A position that is out of range picks NaN (the largest number of an integer type) and counts nothing in the gradient:
to raise an error one would have to wait for the GPU.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from .. import memory
from .elementwise import as_numbers
from .launch import launch
from .rows import contiguous
from .segments import add_rows
from .strides import INT32, block, row_offset, walk
from .tuning import tuned


@triton.jit
def _add_position(index, total, count, size, factor, FIRST: tl.constexpr, BLOCK: tl.constexpr):
    """total += factor * index, an index below 0 counting from the end; -1 where some index is out of range."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    number = tl.load(index + place, mask=place < count, other=0).to(tl.int64)
    number = tl.where(number < 0, number + size, number)
    there = (number >= 0) & (number < size)
    result = number * factor
    if not FIRST:
        sum_so_far = tl.load(total + place, mask=place < count, other=0)
        there = there & (sum_so_far >= 0)
        result += sum_so_far
    tl.store(total + place, tl.where(there, result, -1), mask=place < count)


@triton.jit
def _pick(x, positions, y, rows, columns, size, factor, size1, size2, x0, x1, x2, x3, p0, p1, p2, p3,
          OUTSIDE: tl.constexpr, DIMS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    """Elements of x at factor * position, from where their other dimensions say; positions lie in [0, size).

    Others give OUTSIDE, or NaN if that is None (as a constant NaN would not find its own compiled kernel again).
    """
    row, column = block(rows, columns, ROWS, COLUMNS, WIDE)
    where = row_offset(row, size1, size2, p0, p1, p2, DIMS)[:, None]
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    if p3 is None:
        position = tl.load(positions + where, mask=(row < rows)[:, None], other=0)
    else:
        position = tl.load(positions + where + (column * p3)[None, :], mask=inside, other=0)
    there = (position >= 0) & (position < size)
    offset = row_offset(row, size1, size2, x0, x1, x2, DIMS)[:, None] + position * factor + (column * x3)[None, :]
    values = tl.load(x + offset, mask=inside & there, other=float("nan") if OUTSIDE is None else OUTSIDE)
    tl.store(y + row.to(tl.int64)[:, None] * columns + column[None, :], values, mask=inside)


@triton.jit
def _gather_backward(dy, index, dx, count, size, inner, picks, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """dx[o, m, i]: sum over j of dy[o, j, i] where index[o, j, i] is m, in order."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if WIDE:
        place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    line = place // inner
    number = line % size
    source = (line // size).to(tl.int64) * picks * inner + place % inner
    sums = tl.zeros((BLOCK,), tl.float32)
    for _ in range(picks):
        found = inside & (tl.load(index + source, mask=inside, other=-1) == number)
        sums += tl.load(dy + source, mask=found, other=0.0).to(tl.float32)
        source += inner
    tl.store(dx + place, sums.to(dx.dtype.element_ty), mask=inside)


def take(x: torch.Tensor, index: tuple) -> torch.Tensor:
    table, arrays, place = _parsed(index, x)
    rest = table.shape[len(arrays):]
    y = memory.empty((*rest[:place], *arrays[0].shape, *rest[place:]), x.dtype, x.device)
    if y.numel() and not table.numel():
        raise IndexError("an index picks from a dimension of size 0")
    if y.numel():
        picked = _spread(table, arrays, place, y.shape)
        if walk(y.shape, picked[:2]) is None:
            picked = _spread(memory.copy(table), arrays, place, y.shape)
        _pick_into(y, *picked)
    return y


def _spread(table, arrays, place: int, shape) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """What `_pick_into` takes: row 0 of the table and the positions to add, as views of the result's shape."""
    steps = table.stride()[:len(arrays)]
    factor = math.gcd(*steps) or 1
    positions = _positions(arrays, table.shape, [step // factor for step in steps])
    size = 1 + sum((n - 1) * step // factor for n, step in zip(table.shape, steps))
    row = table[(0,) * len(arrays)]
    row = row[(*[slice(None)] * place, *[None] * positions.ndim)]
    positions = positions[(..., *[None] * (len(shape) - place - positions.ndim))]
    return row.expand(shape), positions.expand(shape), size, factor


def take_backward(dy: torch.Tensor, index: tuple, shape: tuple[int, ...]) -> torch.Tensor:
    dx = memory.zeros(shape, dy.dtype, dy.device)
    table, arrays, place = _parsed(index, dx)
    if dy.numel():
        count, sizes = arrays[0].ndim, table.shape[:len(arrays)]
        positions = _positions(arrays, sizes, [math.prod(sizes[i + 1:]) for i in range(len(sizes))])
        values = contiguous(dy.movedim(tuple(range(place, place + count)), tuple(range(count))))
        sums = table if table.is_contiguous() else memory.zeros(table.shape, dy.dtype, dy.device)
        add_rows(values.view(positions.numel(), -1), positions.view(-1), sums.view(math.prod(sizes), -1), False)
        if sums is not table:
            table.copy_(sums)
    return dx


def _parsed(index: tuple, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """x after the index's slices, with the dimensions that arrays pick from in front; the arrays, broadcast; and how
    many of the other dimensions come before theirs in the result.

    Booleans become positions, of which the host must know the number: it waits for them.
    """
    used = sum(part.ndim if _boolean(part) else 1 for part in index if part is not None and part is not Ellipsis)
    rest = [slice(None)] * (x.ndim - used)
    parts = []
    for part in index:
        if part is Ellipsis:
            parts += rest
            rest = []
        elif _boolean(part):
            parts += [torch.from_numpy(numbers).to(x.device) for numbers in part.cpu().numpy().nonzero()]
        else:
            parts.append(part)
    parts += rest
    picked = [dim for dim, part in enumerate(parts) if isinstance(part, torch.Tensor)]
    try:
        shape = torch.broadcast_shapes(*(parts[dim].shape for dim in picked))
    except RuntimeError as error:
        raise IndexError(str(error)) from None
    view = x[tuple(slice(None) if isinstance(part, torch.Tensor) else part for part in parts)]
    adjacent = picked[-1] - picked[0] == len(picked) - 1
    table = view.movedim(tuple(picked), tuple(range(len(picked))))
    return table, [parts[dim].expand(shape) for dim in picked], picked[0] if adjacent else 0


def _boolean(part) -> bool:
    return isinstance(part, torch.Tensor) and part.dtype == torch.bool


def _positions(arrays: list[torch.Tensor], sizes, factors: list[int]) -> torch.Tensor:
    """The sum of factor * index over the arrays; -1 where an index is out of range."""
    total = memory.empty(arrays[0].shape, torch.int64, arrays[0].device)
    options = tuned("positions", torch.int64)
    grid = (triton.cdiv(total.numel(), options["BLOCK"]),)
    for number, (array, size, factor) in enumerate(zip(arrays, sizes, factors)):
        launch(_add_position, grid, contiguous(array), total, total.numel(), size, factor, FIRST=number == 0, **options)
    return total


def gather(x: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    y = memory.empty(index.shape, x.dtype, x.device)
    if y.numel():
        x = x[tuple(slice(None) if i == dim else slice(size) for i, size in enumerate(index.shape))]
        if walk(y.shape, (x.narrow(dim, 0, 1), index)) is None:
            x, index = memory.copy(x), contiguous(index)
        _pick_into(y, x.narrow(dim, 0, 1).expand(y.shape), index, x.shape[dim], x.stride(dim))
    return y


def _pick_into(y: torch.Tensor, x: torch.Tensor, positions: torch.Tensor, size: int, factor: int) -> None:
    """y[i] = x[i] moved on by factor * positions[i] elements, with positions in [0, size); all have the shape of y."""
    plan = walk(y.shape, (x, positions))
    options = tuned("pick", x.dtype)
    tile = plan.tile(options["ELEMENTS"])
    around, at = plan.strides
    outside = None if x.dtype.is_floating_point else 1 if x.dtype == torch.bool else torch.iinfo(x.dtype).max
    launch(_pick, plan.programs(tile), as_numbers(x), positions, as_numbers(y), plan.rows, plan.columns, size, factor,
           *plan.sizes, *around, *at[:3], at[3] or None, OUTSIDE=outside, **tile, num_warps=options["num_warps"])


def gather_backward(dy: torch.Tensor, index: torch.Tensor, dim: int, shape: tuple[int, ...]) -> torch.Tensor:
    size, picks = shape[dim], index.shape[dim]
    reached = (*index.shape[:dim], size, *index.shape[dim + 1:])
    dx = memory.empty(reached, dy.dtype, dy.device)
    if dx.numel():
        options = tuned("gather_backward", dy.dtype)
        grid = (triton.cdiv(dx.numel(), options["BLOCK"]),)
        launch(_gather_backward, grid, contiguous(dy), contiguous(index), dx, dx.numel(), size,
               math.prod(reached[dim + 1:]), picks, WIDE=dx.numel() >= INT32, **options)
    return dx if reached == tuple(shape) else put(dx, tuple(slice(n) for n in reached), shape)


def put(x: torch.Tensor, index: tuple, shape: tuple[int, ...]) -> torch.Tensor:
    y = memory.zeros(shape, x.dtype, x.device)
    y[index].copy_(x)
    return y


def cat(*tensors: torch.Tensor, dim: int) -> torch.Tensor:
    sizes = [tensor.shape[dim] for tensor in tensors]
    first = tensors[0]
    y = memory.empty((*first.shape[:dim], sum(sizes), *first.shape[dim + 1:]), first.dtype, first.device)
    for part, tensor in zip(y.split(sizes, dim), tensors):
        part.copy_(tensor)
    return y
