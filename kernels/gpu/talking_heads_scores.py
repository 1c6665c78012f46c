"""What the talking-heads programs share: tiles of all heads, their mixing, and one call's arguments.

A tile of scores is (PADDED, ROWS, COLUMNS), every head of some queries and keys, as the mixing needs all of them.
PADDED is the number of heads rounded up to a power of two, at least 16; what is not a head is zeros. Such tiles fill
the registers at few tokens, so the features that a product adds up come CHUNK at a time. The mixing is a product of
tensor cores, of the mixing matrix with the tile as (PADDED, ROWS * COLUMNS).

A distance does the same to every head, so it may follow the mixing: before s = f (before product) - offset [j < i] (row
sums of `before`), f = scale / (1 + reach (i - j)). So the tile is mixed as the product leaves it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .attention_scores import LOG2E, document_ends
from .launch import float32_precision
from .rows import contiguous
from .tuning import tuned

LEAST_HEADS = 16  # the inner dimension of a product of tensor cores


@triton.jit
def load_heads(base, first, start, tokens, WIDTH: tl.constexpr, DIM: tl.constexpr, HEADS: tl.constexpr,
               PADDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Features `start` to `start` + COLUMNS of every head of ROWS tokens from `first`, (PADDED, ROWS, COLUMNS); 0 past
    the last head, token and feature."""
    head = tl.arange(0, PADDED)[:, None, None]
    row = tl.arange(0, ROWS)[None, :, None]
    column = start + tl.arange(0, COLUMNS)[None, None, :]
    inside = (head < HEADS) & (first + row < tokens)
    if DIM % COLUMNS != 0:
        inside = inside & (column < DIM)
    place = base + tl.full((), WIDTH, tl.int64) * first + (row * WIDTH + head * DIM + column)
    return tl.load(place, mask=inside, other=0.0)


@triton.jit
def store_heads(base, first, start, values, tokens, WIDTH: tl.constexpr, DIM: tl.constexpr, HEADS: tl.constexpr,
                PADDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    head = tl.arange(0, PADDED)[:, None, None]
    row = tl.arange(0, ROWS)[None, :, None]
    column = start + tl.arange(0, COLUMNS)[None, None, :]
    inside = (head < HEADS) & (first + row < tokens)
    if DIM % COLUMNS != 0:
        inside = inside & (column < DIM)
    place = base + tl.full((), WIDTH, tl.int64) * first + (row * WIDTH + head * DIM + column)
    tl.store(place, values.to(base.dtype.element_ty), mask=inside)


@triton.jit
def load_statistics(base, token, tokens, other, HEADS: tl.constexpr, PADDED: tl.constexpr):
    """Of numbers (HEADS, tokens) those of some tokens, (PADDED, tokens given); `other` past the last head and token."""
    head = tl.arange(0, PADDED)[:, None]
    inside = (head < HEADS) & (token < tokens)[None, :]
    return tl.load(base + head * tokens + token[None, :], mask=inside, other=other)


@triton.jit
def store_statistics(base, token, values, tokens, HEADS: tl.constexpr, PADDED: tl.constexpr):
    head = tl.arange(0, PADDED)[:, None]
    tl.store(base + head * tokens + token[None, :], values, mask=(head < HEADS) & (token < tokens)[None, :])


@triton.jit
def load_mixer(matrix, HEADS: tl.constexpr, PADDED: tl.constexpr, TRANSPOSED: tl.constexpr):
    """A mixing matrix (PADDED, PADDED) in float32, or its transpose; 0 past the last head."""
    row, column = tl.arange(0, PADDED)[:, None], tl.arange(0, PADDED)[None, :]
    if TRANSPOSED:
        place = matrix + column * HEADS + row
    else:
        place = matrix + row * HEADS + column
    return tl.load(place, mask=(row < HEADS) & (column < HEADS), other=0.0).to(tl.float32)


@triton.jit
def store_mixer(partials, program, values, HEADS: tl.constexpr, PADDED: tl.constexpr):
    """A program's part of the gradient of a mixing matrix."""
    row, column = tl.arange(0, PADDED)[:, None], tl.arange(0, PADDED)[None, :]
    place = partials + program.to(tl.int64) * (HEADS * HEADS) + (row * HEADS + column)
    tl.store(place, values, mask=(row < HEADS) & (column < HEADS))


@triton.jit
def products(a, first_a, b, first_b, tokens, dim, A_WIDTH: tl.constexpr, B_WIDTH: tl.constexpr, DIM: tl.constexpr,
             HEADS: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
             CHUNK: tl.constexpr, PRECISION: tl.constexpr):
    """a_h(row) . b_h(column) of every head h, (PADDED, ROWS, COLUMNS)."""
    total = tl.zeros((PADDED, ROWS, COLUMNS), tl.float32)
    # up to DIM itself, the compiler would unroll the loop and take registers for all its loads at once
    for start in tl.range(0, dim, CHUNK):
        some_a = load_heads(a, first_a, start, tokens, A_WIDTH, DIM, HEADS, PADDED, ROWS, CHUNK)
        some_b = load_heads(b, first_b, start, tokens, B_WIDTH, DIM, HEADS, PADDED, COLUMNS, CHUNK)
        total = tl.dot(some_a, tl.permute(some_b, (0, 2, 1)), total, input_precision=PRECISION)
    return total


@triton.jit
def mix(matrix, tile, PADDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, MIXING: tl.constexpr):
    """sum over h of matrix[g, h] tile[h]."""
    flat = tl.reshape(tile, (PADDED, ROWS * COLUMNS))
    return tl.reshape(tl.dot(matrix, flat, input_precision=MIXING), (PADDED, ROWS, COLUMNS))


@triton.jit
def add_outer(sums, a, b, MIXING: tl.constexpr):
    """Adds the sum over columns of a[g, r] b[h, r] to sums[r, g, h]: a product per row, so that every warp has some."""
    return tl.dot(tl.permute(a, (1, 0, 2)), tl.permute(b, (1, 2, 0)), sums, input_precision=MIXING)


@triton.jit
def lowered_by(before, offset):
    """By how much the past lowers the mixed scores of each head, times log2(e), (PADDED)."""
    return tl.sum(before, axis=1) * (tl.load(offset).to(tl.float32) * LOG2E)


@triton.jit
def fall_off(away, reach):
    """1 / (1 + reach |i - j|)."""
    return 1.0 / (1.0 + tl.load(reach).to(tl.float32) * tl.abs(away).to(tl.float32))


@triton.jit
def mixed_scores(product, before, lowered, away, fall, scale, PADDED: tl.constexpr, ROWS: tl.constexpr,
                 COLUMNS: tl.constexpr, MIXING: tl.constexpr):
    """The mixed scores, and the same without the offset of the past; both times log2(e)."""
    near = mix(before, product, PADDED, ROWS, COLUMNS, MIXING) * (fall * (scale * LOG2E))[None, :, :]
    return near - tl.where((away > 0)[None, :, :], lowered[:, None, None], 0.0), near


@dataclass(frozen=True)
class Setting:
    """The arguments of a call in the form the programs take them."""

    qkv: torch.Tensor
    heads: int
    reach: torch.Tensor
    offset: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    doc_start: torch.Tensor | None
    doc_end: torch.Tensor | None

    @classmethod
    def of(cls, qkv, n_heads, reach, offset, before, after, doc_start, backward: bool) -> Setting:
        doc_start = None if doc_start is None else contiguous(doc_start)
        return cls(contiguous(qkv), n_heads, reach, offset, contiguous(before), contiguous(after), doc_start,
                   document_ends(doc_start) if doc_start is not None and backward else None)

    @property
    def tokens(self) -> int:
        return self.qkv.shape[1]

    @property
    def dim(self) -> int:
        return self.qkv.shape[2] // (3 * self.heads)

    @property
    def inputs(self) -> tuple:
        """Run-time parameters that every program begins with."""
        return self.qkv, self.doc_start, self.doc_end, self.reach, self.offset, self.before, self.after

    @property
    def numbers(self) -> tuple:
        """Run-time parameters that every program ends with."""
        return self.tokens, self.dim, 1 / math.sqrt(self.dim)

    def constants(self, kernel: str) -> dict:
        """By the element size. Heads of half precision are mixed in TF32: its factors have as many bits as float16."""
        precision = float32_precision()
        config = dict(tuned(kernel, self.qkv.dtype, bits=8 * self.qkv.itemsize))
        columns = max(16, triton.next_power_of_2(self.dim))
        for name in {"CHUNK", "PART"} & config.keys():
            config[name] = min(columns, config[name])
        return {"HEADS": self.heads, "PADDED": max(LEAST_HEADS, triton.next_power_of_2(self.heads)), "DIM": self.dim,
                "PRECISION": precision, "MIXING": "tf32" if self.qkv.itemsize < 4 else precision, **config}

    def programs(self, block: int, part: int | None = None) -> int:
        """For a block of so many tokens each, and so many features of these."""
        parts = 1 if part is None else triton.cdiv(self.dim, part)
        return triton.cdiv(self.tokens, block) * len(self.qkv) * parts
