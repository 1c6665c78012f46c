"""SwiGLU experts on the tokens routed to them: six products, the tokens' rows gathered while they are loaded.

The up projection computes gate and up in alternating columns, so that a thread holds both and makes the activation
from its registers. Backward makes da = W_down^T dy without the gate, so that da · a is the gate's gradient: experts'
outputs are not kept. That product does not make the activation's gradient itself, as this takes twice the registers it
has left. What experts add to a token is summed by the token, in the order of its choices.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import memory
from . import grouped_linear
from .grouped_linear import product, tile_and_block
from .launch import float32_precision, launch
from .rows import as_rows, contiguous
from .tuning import tuned

Groups = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@triton.jit
def _up(x, order, weight, h, active, tiles, tile_count, EXPERTS: tl.constexpr, CHOICES: tl.constexpr,
        SIZE: tl.constexpr, INNER: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
        DEPTH: tl.constexpr, GROUP: tl.constexpr):
    HALF: tl.constexpr = COLUMNS // 2
    tile, block = tile_and_block(tile_count, tl.cdiv(INNER, HALF), GROUP)
    expert = tl.load(tiles + tile * 4)
    if expert == EXPERTS:
        return
    first = tl.load(tiles + tile * 4 + 1).to(tl.int64)
    row = tl.arange(0, ROWS)
    there = row < tl.load(tiles + tile * 4 + 2) - first
    token = (tl.load(order + first + row, mask=there, other=0) // CHOICES).to(tl.int64)
    both = tl.arange(0, COLUMNS)
    feature = block * HALF + both // 2
    depth = tl.arange(0, DEPTH)
    left = x + token[:, None] * SIZE + depth[None, :]
    right = weight + expert.to(tl.int64) * (2 * INNER * SIZE)
    right += (feature + both % 2 * INNER)[None, :] * SIZE + depth[:, None]
    total = product(left, right, there[:, None], (feature < INNER)[None, :], DEPTH, DEPTH, SIZE, DEPTH, PRECISION)
    gate, up = tl.split(tl.reshape(total.to(h.dtype.element_ty), (ROWS, HALF, 2)))
    column = block * HALF + tl.arange(0, HALF)
    inside = there[:, None] & (column < INNER)[None, :]
    to = row[:, None] * INNER + column[None, :]
    wide = row[:, None] * (2 * INNER) + column[None, :]
    h += first * (2 * INNER)
    tl.store(h + wide, gate, mask=inside)
    tl.store(h + wide + INNER, up, mask=inside)
    value = gate.to(tl.float32)
    result = value * up.to(tl.float32) / (1 + tl.exp(-value))
    tl.store(active + first * INNER + to, result.to(active.dtype.element_ty), mask=inside)


@triton.jit
def _activation_backward(da, order, gates, h, dh, dgates, rows, INNER: tl.constexpr, ROWS: tl.constexpr,
                         COLUMNS: tl.constexpr):
    """dh and dgates; da becomes the activation times its gate."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    pair = tl.load(order + row, mask=there, other=0)
    weighting = tl.load(gates + pair, mask=there, other=0.0).to(tl.float32)[:, None]
    dgate = tl.zeros((ROWS,), tl.float32)
    for start in range(0, INNER, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = there[:, None] & (column < INNER)[None, :]
        place = row[:, None] * INNER + column[None, :]
        wide = row[:, None] * (2 * INNER) + column[None, :]
        d = tl.load(da + place, mask=inside, other=0.0).to(tl.float32)
        gate = tl.load(h + wide, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(h + wide + INNER, mask=inside, other=0.0).to(tl.float32)
        sigmoid = 1 / (1 + tl.exp(-gate))
        silu = gate * sigmoid
        dgate += tl.sum(d * silu * up, axis=1)
        tl.store(da + place, (silu * up * weighting).to(da.dtype.element_ty), mask=inside)
        d *= weighting
        tl.store(dh + wide, (d * up * (sigmoid + silu * (1 - sigmoid))).to(dh.dtype.element_ty), mask=inside)
        tl.store(dh + wide + INNER, (d * silu).to(dh.dtype.element_ty), mask=inside)
    tl.store(dgates + pair, dgate.to(dgates.dtype.element_ty), mask=there)


@triton.jit
def _combine(rows, place, gates, residual, y, tokens, CHOICES: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
             COLUMNS: tl.constexpr):
    """y[t] = (residual[t] +) the sum over choices, in order, of (gate *) rows[place]."""
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = token < tokens
    inside = there[:, None] & (column < WIDTH)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for choice in tl.static_range(CHOICES):
        pair = token.to(tl.int64) * CHOICES + choice
        row = tl.load(place + pair, mask=there, other=0).to(tl.int64)
        part = tl.load(rows + row[:, None] * WIDTH + column[None, :], mask=inside, other=0.0).to(tl.float32)
        if gates is not None:
            part *= tl.load(gates + pair, mask=there, other=0.0).to(tl.float32)[:, None]
        total += part
    to = token.to(tl.int64)[:, None] * WIDTH + column[None, :]
    if residual is not None:
        total += tl.load(residual + to, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + to, total.to(y.dtype.element_ty), mask=inside)


def forward(x: torch.Tensor, gates: torch.Tensor, groups: Groups, gate_up: torch.Tensor, down: torch.Tensor,
            residual: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    offsets, order, place = groups
    experts, width, inner = down.shape
    rows, size = len(order), grouped_linear.tile_rows(x.dtype, len(order), experts)
    tiles = grouped_linear.row_tiles(offsets, rows, size)
    h = memory.empty((rows, 2 * inner), x.dtype, x.device)
    active = memory.empty((rows, inner), x.dtype, x.device)
    config = tuned("experts_up", x.dtype, rows=size)
    launch(_up, (len(tiles) * triton.cdiv(inner, config["COLUMNS"] // 2),), as_rows(x), order, contiguous(gate_up), h,
           active, tiles, len(tiles), EXPERTS=experts, CHOICES=place.shape[-1], SIZE=width, INNER=inner,
           PRECISION=float32_precision(), ROWS=size, **config)
    z = grouped_linear.forward(active, contiguous(down), tiles, size)
    return _combined(z, place, x, contiguous(gates), None if residual is None else contiguous(residual)), h


def backward(dy: torch.Tensor, x: torch.Tensor, gates: torch.Tensor, groups: Groups, gate_up: torch.Tensor,
             down: torch.Tensor, h: torch.Tensor,
             into: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)):
    offsets, order, place = groups
    experts, width, inner = down.shape
    rows, size = len(order), grouped_linear.tile_rows(x.dtype, len(order), experts)
    tiles = grouped_linear.row_tiles(offsets, rows, size)
    dy, choices = as_rows(dy), place.shape[-1]
    dh = memory.empty(h.shape, h.dtype, h.device)
    dgates = memory.empty(gates.shape, gates.dtype, gates.device)
    active = grouped_linear.input_gradient(dy, contiguous(down), tiles, size, order, choices)
    config = tuned("experts_activation_backward", x.dtype, inner=inner)
    columns = min(config["COLUMNS"], triton.next_power_of_2(inner))
    count = max(1, config["ELEMENTS"] // columns)
    launch(_activation_backward, (triton.cdiv(rows, count),), active, order, contiguous(gates), h, dh, dgates, rows,
           INNER=inner, ROWS=count, COLUMNS=columns, num_warps=config["num_warps"])
    ddown = grouped_linear.weight_gradient(dy, active, order, offsets, choices, "dy", down, into[1])
    dgate_up = grouped_linear.weight_gradient(dh, as_rows(x), order, offsets, choices, "x", gate_up, into[0])
    dx = _combined(grouped_linear.input_gradient(dh, contiguous(gate_up), tiles, size), place, x)
    return dx, dgates, dgate_up, ddown


def _combined(rows, place, x, gates=None, residual=None):
    """The tokens' sums over their rows, like x."""
    y = memory.empty(x.shape, x.dtype, x.device)
    width, choices = x.shape[-1], place.shape[-1]
    tokens = place.numel() // choices
    config = tuned("experts_combine", x.dtype, width=width)
    columns = min(config["COLUMNS"], triton.next_power_of_2(width))
    count = max(1, config["ELEMENTS"] // columns)
    launch(_combine, (triton.cdiv(tokens, count), triton.cdiv(width, columns)), rows, place, gates, residual, y, tokens,
           CHOICES=choices, WIDTH=width, ROWS=count, COLUMNS=columns, num_warps=config["num_warps"])
    return y
