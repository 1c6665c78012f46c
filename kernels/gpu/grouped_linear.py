"""Products of rows grouped by expert, each group with its expert's own matrix.

The grid is that of the worst case, as the host does not know how many rows each expert has: tiles of ROWS rows of one
expert, for which `row_tiles` writes down the expert and the first row; programs of tiles that are not there return.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import memory
from .launch import float32_precision, launch
from .tuning import tuned


@triton.jit
def _row_tiles(offsets, tiles, count, EXPERTS: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
               BLOCK: tl.constexpr):
    """(expert, first row, end of the expert's rows) of each tile; EXPERTS for a tile that is not there."""
    column = tl.arange(0, COLUMNS)
    start = tl.load(offsets + column, mask=column < EXPERTS, other=0)
    stop = tl.load(offsets + column + 1, mask=column < EXPERTS, other=0)
    needed = (stop - start + ROWS - 1) // ROWS
    last = tl.cumsum(needed, axis=0)
    tile = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (last - needed)[None, :] <= tile[:, None]
    mine = inside & (tile[:, None] < last[None, :])
    first = tl.sum(tl.where(mine, start[None, :] + (tile[:, None] - (last - needed)[None, :]) * ROWS, 0), axis=1)
    end = tl.sum(tl.where(mine, stop[None, :], 0), axis=1)
    expert = tl.sum(tl.where(mine, column[None, :], 0), axis=1)
    there = tl.sum(mine.to(tl.int32), axis=1) == 1
    tl.store(tiles + tile * 4, tl.where(there, expert, EXPERTS), mask=tile < count)
    tl.store(tiles + tile * 4 + 1, first, mask=tile < count)
    tl.store(tiles + tile * 4 + 2, end, mask=tile < count)


@triton.jit
def tile_and_block(tiles, blocks, GROUP: tl.constexpr):
    """Which row tile and which block of columns a program takes: GROUP tiles share a block's weights in the cache."""
    program = tl.program_id(0)
    first = program // (GROUP * blocks) * GROUP
    together = tl.minimum(tiles - first, GROUP)
    within = program % (GROUP * blocks)
    return first + within % together, within // together


@triton.jit
def product(left, right, inside, used, left_step, right_step, SIZE: tl.constexpr, DEPTH: tl.constexpr,
            PRECISION: tl.constexpr):
    """float32 sum over SIZE of left (rows, DEPTH) times right (DEPTH, columns), pointers that move by the steps.

    Args:
        inside, used: (rows, 1) and (1, columns), which of them exist.
    """
    total = tl.zeros((left.shape[0], right.shape[1]), tl.float32)
    depth = tl.arange(0, DEPTH)
    for start in range(0, SIZE, DEPTH):
        if SIZE % DEPTH == 0:
            a = tl.load(left, mask=inside, other=0.0)
            b = tl.load(right, mask=used, other=0.0)
        else:
            a = tl.load(left, mask=inside & (depth < SIZE - start)[None, :], other=0.0)
            b = tl.load(right, mask=used & (depth < SIZE - start)[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
        left += left_step
        right += right_step
    return total


@triton.jit
def _linear(x, order, weight, y, tiles, tile_count, EXPERTS: tl.constexpr, CHOICES: tl.constexpr, SIZE: tl.constexpr,
            WIDTH: tl.constexpr, TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
            COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr):
    """y[r] = x[r] W[e]^T, or x[r] W[e]; with `order` the rows of x are those of tokens."""
    tile, block = tile_and_block(tile_count, tl.cdiv(WIDTH, COLUMNS), GROUP)
    expert = tl.load(tiles + tile * 4)
    if expert == EXPERTS:
        return
    first = tl.load(tiles + tile * 4 + 1).to(tl.int64)
    row = tl.arange(0, ROWS)[:, None]
    inside = row < tl.load(tiles + tile * 4 + 2) - first
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    used = (column < WIDTH)[None, :]
    depth = tl.arange(0, DEPTH)
    if order is None:
        left = x + first * SIZE + row * SIZE + depth[None, :]
    else:
        token = tl.load(order + first + row, mask=inside, other=0) // CHOICES
        left = x + token.to(tl.int64) * SIZE + depth[None, :]
    right = weight + expert.to(tl.int64) * (SIZE * WIDTH)
    if TRANSPOSED:
        total = product(left, right + column[None, :] * SIZE + depth[:, None], inside, used, DEPTH, DEPTH, SIZE, DEPTH,
                        PRECISION)
    else:
        total = product(left, right + depth[:, None] * WIDTH + column[None, :], inside, used, DEPTH, DEPTH * WIDTH,
                        SIZE, DEPTH, PRECISION)
    to = y + first * WIDTH + row * WIDTH + column[None, :]
    tl.store(to, total.to(y.dtype.element_ty), mask=inside & used)


@triton.jit
def _weight_gradient(left, right, order, offsets, dweight, EXPERTS: tl.constexpr, CHOICES: tl.constexpr,
                     HEIGHT: tl.constexpr, WIDTH: tl.constexpr, GATHER_LEFT: tl.constexpr, ADD: tl.constexpr,
                     PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    """dweight[e] (+)= left^T right over an expert's rows; of one factor the rows are the tokens'.

    Starts from what is there: read at the end it would take as many registers again as the sum.
    """
    blocks = tl.cdiv(HEIGHT, ROWS) * tl.cdiv(WIDTH, COLUMNS)
    expert = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    row = block // tl.cdiv(WIDTH, COLUMNS) * ROWS + tl.arange(0, ROWS)
    column = block % tl.cdiv(WIDTH, COLUMNS) * COLUMNS + tl.arange(0, COLUMNS)
    stop = tl.load(offsets + expert + 1)
    to = dweight + expert.to(tl.int64) * (HEIGHT * WIDTH) + row[:, None] * WIDTH + column[None, :]
    inside = (row < HEIGHT)[:, None] & (column < WIDTH)[None, :]
    if ADD:
        total = tl.load(to, mask=inside, other=0.0).to(tl.float32)
    else:
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(tl.load(offsets + expert), stop, DEPTH):
        place = start + tl.arange(0, DEPTH)
        there = place < stop
        token = (tl.load(order + place, mask=there, other=0) // CHOICES).to(tl.int64)
        if GATHER_LEFT:
            from_left = token
            from_right = place.to(tl.int64)
        else:
            from_left = place.to(tl.int64)
            from_right = token
        a = tl.load(left + from_left[:, None] * HEIGHT + row[None, :], mask=there[:, None] & (row < HEIGHT)[None, :],
                    other=0.0)
        b = tl.load(right + from_right[:, None] * WIDTH + column[None, :],
                    mask=there[:, None] & (column < WIDTH)[None, :], other=0.0)
        total = tl.dot(tl.trans(a), b, total, input_precision=PRECISION)
    tl.store(to, total.to(dweight.dtype.element_ty), mask=inside)


def tile_rows(dtype: torch.dtype, rows: int, experts: int) -> int:
    """Rows of a tile, when each expert has rows / experts of them."""
    return tuned("row_tiles", dtype, rows=max(1, rows // experts))["ROWS"]


def row_tiles(offsets: torch.Tensor, rows: int, size: int) -> torch.Tensor:
    """int32 (tiles, 4): (expert, first row, end of the expert's rows, unused) for tiles of at most `size` rows.

    Enough tiles for every way of sharing `rows` rows out; behind those that are needed the expert is their number.
    """
    experts = len(offsets) - 1
    count = min(rows, rows // size + experts)
    tiles = memory.empty((count, 4), torch.int32, offsets.device)
    config = tuned("row_tiles", torch.int32)
    columns = triton.next_power_of_2(experts)
    block = max(1, config["ELEMENTS"] // columns)
    launch(_row_tiles, (triton.cdiv(count, block),), offsets, tiles, count, EXPERTS=experts, COLUMNS=columns, ROWS=size,
           BLOCK=block, num_warps=config["num_warps"])
    return tiles


def forward(x: torch.Tensor, weight: torch.Tensor, tiles: torch.Tensor, size: int) -> torch.Tensor:
    """y[r] = x[r] weight[e]^T for grouped rows x (rows, d_in) and weight (experts, d_out, d_in)."""
    return _multiplied(x, None, 1, weight, tiles, size, len(x), True)


def input_gradient(dy: torch.Tensor, weight: torch.Tensor, tiles: torch.Tensor, size: int,
                   order: torch.Tensor | None = None, choices: int = 1) -> torch.Tensor:
    """dx[r] = dy[r] weight[e] for grouped rows dy, or with `order` dy[order[r] // choices] of tokens' rows."""
    return _multiplied(dy, order, choices, weight, tiles, size, len(dy) if order is None else len(order), False)


def _multiplied(x, order, choices, weight, tiles, size, rows, transposed):
    width = weight.shape[1 if transposed else 2]
    y = memory.empty((rows, width), x.dtype, x.device)
    config = tuned("grouped_linear", x.dtype, rows=size)
    launch(_linear, (len(tiles) * triton.cdiv(width, config["COLUMNS"]),), x, order, weight, y, tiles, len(tiles),
           EXPERTS=len(weight), CHOICES=choices, SIZE=x.shape[1], WIDTH=width, TRANSPOSED=transposed,
           PRECISION=float32_precision(), ROWS=size, **config)
    return y


def weight_gradient(dy: torch.Tensor, x: torch.Tensor, order: torch.Tensor, offsets: torch.Tensor, choices: int,
                    tokens: str, weight: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor | None:
    """dweight[e] = the sum over the expert's rows of dy[r]^T x[r]; None after adding it to `into`, if given.

    Args:
        tokens: "dy" or "x", the one whose rows are those of tokens and are gathered by `order`.
    """
    experts, height, width = weight.shape
    dweight = memory.empty(weight.shape, weight.dtype, weight.device) if into is None else into
    config = tuned("grouped_weight_gradient", x.dtype)
    grid = experts * triton.cdiv(height, config["ROWS"]) * triton.cdiv(width, config["COLUMNS"])
    launch(_weight_gradient, (grid,), dy, x, order, offsets, dweight, EXPERTS=experts, CHOICES=choices, HEIGHT=height,
           WIDTH=width, GATHER_LEFT=tokens == "dy", ADD=into is not None, PRECISION=float32_precision(), **config)
    return dweight if into is None else None
