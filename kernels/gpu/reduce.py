"""Reductions over any dimensions, in two stages where one would leave the GPU idle.

Kept and reduced dimensions each become at most two, an outer and an inner one, of any stride. A program holds a block
(KEPT, REDUCED) and adds up along the second side; pieces of a long reduction go to several programs, whose results are
reduced again. The number of pieces depends on shapes and the card only, so a sum has one order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .. import memory
from .elementwise import as_numbers
from .launch import launch, target
from .tuning import tuned

WAVES = 4  # programs for each multiprocessor that are enough


@triton.jit
def _offset(index, inner, outer_stride, inner_stride):
    """Where elements lie that have this number along an outer and an inner dimension."""
    return (index // inner).to(tl.int64) * outer_stride + (index % inner).to(tl.int64) * inner_stride


@triton.jit
def _reduce(x, y, kept, reduced, piece, kept_inner, kept_outer_stride, kept_inner_stride,
            reduced_inner, reduced_outer_stride, reduced_inner_stride,
            NAME: tl.constexpr, START: tl.constexpr, UNIT: tl.constexpr, KEPT: tl.constexpr, REDUCED: tl.constexpr):
    reduced *= UNIT
    kept_outer_stride *= UNIT
    place = tl.program_id(0).to(tl.int64) * KEPT + tl.arange(0, KEPT)
    base = x + _offset(place, kept_inner, kept_outer_stride, kept_inner_stride)
    dtype = x.dtype.element_ty
    if dtype.is_floating() and dtype.primitive_bitwidth < 32:
        dtype = tl.float32
    totals = tl.full((KEPT, REDUCED), START, dtype)
    first = tl.program_id(1) * piece
    for start in range(first, tl.minimum(first + piece, reduced), REDUCED):
        number = start + tl.arange(0, REDUCED)
        offset = _offset(number, reduced_inner, reduced_outer_stride, reduced_inner_stride)
        inside = (place < kept)[:, None] & (number < reduced)[None, :]
        values = tl.load(base[:, None] + offset[None, :], mask=inside, other=START).to(dtype)
        if NAME == "sum":
            totals += values
        elif NAME == "max":
            totals = tl.where((values > totals) | (values != values), values, totals)
        else:
            totals = tl.where((values < totals) | (values != values), values, totals)
    if NAME == "sum":
        result = tl.sum(totals, axis=1)
    else:
        result = tl.max(totals, axis=1) if NAME == "max" else tl.min(totals, axis=1)
        if dtype.is_floating():
            lost = tl.max((totals != totals).to(tl.int32), axis=1)
            result = tl.where(lost > 0, float("nan"), result)
    tl.store(y + tl.program_id(1).to(tl.int64) * kept + place, result.to(y.dtype.element_ty), mask=place < kept)


@triton.jit
def _rank(values, SMALLEST: tl.constexpr):
    """Whole numbers in the order of the values, or if SMALLEST against it, with NaN above all."""
    if values.dtype.is_floating():
        if values.dtype.primitive_bitwidth < 32:
            values = values.to(tl.float32)
        if SMALLEST:
            values = -values
        if values.dtype == tl.float32:
            bits = values.to(tl.int32, bitcast=True)
            rank = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
            rank = tl.where(values != values, 0x7FFFFFFF, tl.where(values == 0, 0, rank))
        else:
            bits = values.to(tl.int64, bitcast=True)
            rank = tl.where(bits < 0, bits ^ 0x7FFFFFFFFFFFFFFF, bits)
            rank = tl.where(values != values, 0x7FFFFFFFFFFFFFFF, tl.where(values == 0, 0, rank))
    else:
        rank = values if values.dtype.primitive_bitwidth > 32 else values.to(tl.int32)
        if SMALLEST:
            rank = ~rank
    return rank


@triton.jit
def _argument(x, positions, best, y, kept, reduced, piece, kept_inner, kept_outer_stride, kept_inner_stride, stride,
              SMALLEST: tl.constexpr, LOWEST: tl.constexpr, UNIT: tl.constexpr, KEPT: tl.constexpr,
              REDUCED: tl.constexpr):
    """Largest ranks and the first positions that have them; `positions`, like x, are those of an earlier stage."""
    reduced *= UNIT
    kept_outer_stride *= UNIT
    place = tl.program_id(0).to(tl.int64) * KEPT + tl.arange(0, KEPT)
    base = _offset(place, kept_inner, kept_outer_stride, kept_inner_stride)
    top = tl.full((KEPT, REDUCED), LOWEST, best.dtype.element_ty)
    at = tl.full((KEPT, REDUCED), 0x7FFFFFFFFFFFFFFF, tl.int64)
    first = tl.program_id(1) * piece
    for start in range(first, tl.minimum(first + piece, reduced), REDUCED):
        number = start + tl.arange(0, REDUCED)
        inside = (place < kept)[:, None] & (number < reduced)[None, :]
        offset = base[:, None] + (number.to(tl.int64) * stride)[None, :]
        rank = _rank(tl.load(x + offset, mask=inside, other=0), SMALLEST)
        if positions is None:
            position = tl.zeros((KEPT, REDUCED), tl.int64) + number[None, :]
        else:
            position = tl.load(positions + offset, mask=inside, other=0)
        better = inside & ((rank > top) | ((rank == top) & (position < at)))
        top = tl.where(better, rank, top)
        at = tl.where(better, position, at)
    result = tl.max(top, axis=1)
    chosen = tl.min(tl.where(top == result[:, None], at, 0x7FFFFFFFFFFFFFFF), axis=1)
    out = tl.program_id(1).to(tl.int64) * kept + place
    tl.store(best + out, result, mask=place < kept)
    tl.store(y + out, chosen, mask=place < kept)


@dataclass(frozen=True)
class Side:
    """The kept or the reduced dimensions: their number of elements, and how these lie."""

    count: int
    inner: int
    outer_stride: int
    inner_stride: int

    def numbers(self, unit: int = 1) -> tuple[int, int, int]:
        return self.inner, self.outer_stride // unit, self.inner_stride


def _side(sizes, strides) -> Side | None:
    """The dimensions as at most two, or None."""
    merged: list[tuple[int, int]] = []
    for size, stride in zip(sizes, strides):
        if size == 1:
            continue
        if merged and merged[-1][1] == size * stride:
            merged[-1] = merged[-1][0] * size, stride
        else:
            merged.append((size, stride))
    if len(merged) > 2:
        return None
    count = math.prod(sizes)
    if len(merged) < 2:
        return Side(count, 1, merged[0][1] if merged else 0, 0)
    return Side(count, merged[1][0], merged[0][1], merged[1][1])


def _tile(kernel: str, kept: Side, reduced: Side, dtype: torch.dtype):
    """Grid, length of a piece, and block sizes.

    UNIT is a factor of the number of reduced elements and of the stride of rows: of itself the compiler only sees a
    factor of 16, and a vocabulary of 65,544 has but 8, enough for 16 bytes of half precision.
    """
    options = tuned(kernel, dtype)
    elements = options["ELEMENTS"]
    nearest = kept.inner_stride if kept.inner > 1 else kept.outer_stride
    if nearest == 1 and kept.count > 1:
        rows = min(triton.next_power_of_2(kept.count), options["SIDE"])
        columns = min(triton.next_power_of_2(reduced.count), elements // rows)
    else:
        columns = min(triton.next_power_of_2(reduced.count), elements)
        rows = min(triton.next_power_of_2(kept.count), elements // columns)
    programs = triton.cdiv(kept.count, rows)
    blocks = triton.cdiv(reduced.count, columns)
    pieces = max(1, min(WAVES * target().multiprocessors // programs, blocks // options["BLOCKS"]))
    piece = triton.cdiv(blocks, pieces) * columns
    even = kept.inner == 1 and reduced.inner == 1 and kept.outer_stride % 8 == 0 and reduced.count % 8 == 0
    tile = {"UNIT": 8 if even else 1, "KEPT": rows, "REDUCED": columns, "num_warps": options["num_warps"]}
    return (programs, triton.cdiv(reduced.count, piece)), piece, tile


def reduce(x: torch.Tensor, name: str, dims: tuple[int, ...]) -> torch.Tensor:
    shape = [1 if i in dims else size for i, size in enumerate(x.shape)]
    y = memory.empty(shape, x.dtype, x.device)
    if y.numel() and not x.numel():
        return y.zero_()
    if y.numel():
        kept, reduced = [i for i in range(x.ndim) if i not in dims], sorted(dims, key=x.stride, reverse=True)
        ordered = as_numbers(x).permute((*kept, *reduced))
        sides = _sides(ordered, len(kept))
        if None in sides:
            ordered = memory.copy(ordered)
            sides = _sides(ordered, len(kept))
        _reduce_sides(ordered, name, *sides, as_numbers(y))
    return y


def _sides(x: torch.Tensor, kept: int) -> tuple[Side | None, Side | None]:
    return _side(x.shape[:kept], x.stride()[:kept]), _side(x.shape[kept:], x.stride()[kept:])


def _reduce_sides(x: torch.Tensor, name: str, kept: Side, reduced: Side, y: torch.Tensor) -> None:
    grid, piece, tile = _tile("reduce", kept, reduced, x.dtype)
    pieces = grid[1]
    half = x.dtype.is_floating_point and x.dtype.itemsize < 4
    result = y if pieces == 1 else memory.empty((pieces, kept.count), torch.float32 if half else y.dtype, y.device)
    unit = tile["UNIT"]
    launch(_reduce, grid, x, result, kept.count, reduced.count // unit, piece, *kept.numbers(unit), *reduced.numbers(),
           NAME=name, START=0 if name == "sum" else _extreme(x.dtype, name == "max"), **tile)
    if pieces > 1:
        _reduce_sides(result, name, Side(kept.count, 1, 1, 0), Side(pieces, 1, kept.count, 0), y)


def _extreme(dtype: torch.dtype, lowest: bool) -> float | int:
    if dtype.is_floating_point:
        return -math.inf if lowest else math.inf
    limits = torch.iinfo(dtype)
    return limits.min if lowest else limits.max


def argmax(x: torch.Tensor) -> torch.Tensor:
    return _position(x, False)


def argmin(x: torch.Tensor) -> torch.Tensor:
    return _position(x, True)


def _position(x: torch.Tensor, smallest: bool) -> torch.Tensor:
    y = memory.empty(x.shape[:-1], torch.int64, x.device)
    if y.numel():
        values = as_numbers(x)
        kept = _side(values.shape[:-1], values.stride()[:-1])
        if kept is None:
            values = memory.copy(values)
            kept = _side(values.shape[:-1], values.stride()[:-1])
        rank = torch.int64 if x.dtype in (torch.int64, torch.float64) else torch.int32
        _find(values, None, kept, x.shape[-1], values.stride(-1), rank, smallest, y)
    return y


def _find(x, positions, kept: Side, count: int, stride: int, rank: torch.dtype, smallest: bool, y) -> None:
    grid, piece, tile = _tile("argument", kept, Side(count, 1, stride, 0), x.dtype)
    pieces = grid[1]
    best = memory.empty((pieces, kept.count), rank, y.device)
    found = y if pieces == 1 else memory.empty((pieces, kept.count), torch.int64, y.device)
    unit = tile["UNIT"]
    launch(_argument, grid, x, positions, best, found, kept.count, count // unit, piece, *kept.numbers(unit), stride,
           SMALLEST=smallest, LOWEST=torch.iinfo(rank).min, **tile)
    if pieces > 1:
        _find(best, found, Side(kept.count, 1, 1, 0), pieces, kept.count, rank, False, y)
