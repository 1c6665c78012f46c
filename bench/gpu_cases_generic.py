"""GPU cases of the generic kernels: element by element, reductions, dropout, indexing and embedding."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

import kernels

from .gpu_case import Buffer, GpuCase, below, positive

TOKENS, WIDTH, VOCABULARY, HEADS, HEAD = 65_536, 768, 65_544, 12, 64
SIZES = {"t": TOKENS, "d": WIDTH}
X = Buffer("t d")
SEED, OFFSET = 0x9E3779B97F4A7C15, 7 << 32
KEY = Buffer("one", below("t"), torch.int64)


def _elementwise(name: str, operation: str, rival, arrange=lambda *x: x, moved=None, **buffers) -> GpuCase:
    """One operation; `arrange` makes its operands of the buffers, of which there are `moved` elements per token."""
    operands = lambda b: arrange(*(getattr(b, key) for key in buffers))  # noqa: E731
    return GpuCase(
        name, buffers, lambda b: kernels.elementwise.apply(operation, *operands(b)), None,
        {**SIZES, "one": 1, "h": HEADS, "e": HEAD, "b": TOKENS // 1024, "s": 1024},
        traffic=lambda n, size: ((moved or len(buffers) + 1) * n.t * n.d * size, 0),
        rivals={"torch": lambda b: rival(*operands(b))},
    )


ELEMENTWISE = [
    _elementwise("add", "add", torch.add, a=X, b=X),
    _elementwise("exp", "exp", torch.exp, a=X),
    _elementwise("add_row", "add", torch.add, moved=2, a=X, b=Buffer("d")),
    _elementwise("mul_scalar", "mul", torch.mul, moved=2, a=X, b=Buffer("one")),
    _elementwise("add_transposed", "add", torch.add, lambda a, b: (a, b.T), a=X, b=Buffer("d t")),
    _elementwise("add_heads", "add", torch.add, lambda a, b: (a, b.transpose(1, 2)),
                 a=Buffer("b h s e"), b=Buffer("b s h e")),
    _elementwise("where", "where", torch.where, lambda a, b, c: (c > 0, a, b), moved=4, a=X, b=X, c=X),
    _elementwise("clamp_backward", "clamp_backward", lambda dy, x, low, high: dy * ((x >= low) & (x <= high)), moved=3,
                 dy=X, x=X, low=Buffer("one"), high=Buffer("one")),
    GpuCase("accumulate", {"into": Buffer("t d", dtype=torch.float32), "x": X},
            lambda b: kernels.elementwise.accumulate(b.into, b.x), None, SIZES,
            traffic=lambda n, size: ((8 + size) * n.t * n.d, 0), rivals={"torch": lambda b: b.into.add_(b.x)}),
    GpuCase("scale", {"x": X, "factor": Buffer("one", positive, torch.float32)},
            lambda b: kernels.elementwise.scale(b.x, b.factor), None, {**SIZES, "one": 1},
            traffic=lambda n, size: (2 * n.t * n.d * size, 0), rivals={"torch": lambda b: b.x.mul_(b.factor)}),
]


def _reduction(name: str, dims: tuple[int, ...], rival, shape="t d", narrow=(), operation="sum") -> GpuCase:
    return GpuCase(name, {"x": Buffer(shape)}, lambda b: kernels.reduce.reduce(b.x, operation, dims), None,
                   {**SIZES, "b": TOKENS // 1024, "s": 1024}, narrow=narrow,
                   traffic=lambda n, size: (n.t * n.d * size, 0), rivals={"torch": lambda b: rival(b.x, dims)})


REDUCTIONS = [
    _reduction("sum_rows", (1,), torch.sum),
    _reduction("sum_columns", (0,), torch.sum),
    _reduction("sum_tokens", (1,), torch.sum, "b s d"),
    _reduction("sum_all", (0, 1), torch.sum, narrow=("reduce",)),
    _reduction("max_outer_and_inner", (0, 2), torch.amax, "b s d", operation="max"),
    GpuCase("argmax", {"x": Buffer("t v")}, lambda b: kernels.reduce.argmax(b.x), None, {"t": 4096, "v": VOCABULARY},
            traffic=lambda n, size: (n.t * n.v * size, 0), rivals={"torch": lambda b: b.x.argmax(-1)}),
    GpuCase("argmax_row", {"x": Buffer("v")}, lambda b: kernels.reduce.argmax(b.x), None, {"v": 1 << 20},
            dtypes=("float32",), narrow=("argument",), traffic=lambda n, size: (n.v * size, 0),
            rivals={"torch": lambda b: b.x.argmax(-1)}),
]

DROPOUT = [
    GpuCase("dropout", {"x": X, "dy": X}, lambda b: kernels.dropout.apply(b.x, 0.1, SEED, OFFSET),
            lambda b, y: kernels.dropout.apply(b.dy, 0.1, SEED, OFFSET), SIZES,
            traffic=lambda n, size: (2 * n.t * n.d * size, 2 * n.t * n.d * size),
            rivals={"torch": lambda b: F.dropout(b.x, 0.1)}),
    GpuCase("dropout_captured", {"x": X, "key": KEY}, lambda b: kernels.dropout.apply(b.x, 0.1, b.key, b.key), None,
            {**SIZES, "one": 1}, dtypes=("bfloat16",), traffic=lambda n, size: (2 * n.t * n.d * size, 0)),
    GpuCase("uniform", {"x": X}, lambda b: kernels.dropout.uniform(b.x, SEED, OFFSET), None, SIZES, ("float32",),
            narrow=("draw",), traffic=lambda n, _: (4 * n.t * n.d, 0)),
]


def _different(n) -> int:
    """How many different ids n.t ids drawn evenly from n.v are expected to be."""
    return round(n.v * -math.expm1(-n.t / n.v))


def _take(name: str, key, backward: bool, **index) -> GpuCase:
    shape = TOKENS // 1024, 1024, WIDTH
    return GpuCase(
        name, {"x": Buffer("b s d"), **index}, lambda b: kernels.indexing.take(b.x, key(b)),
        (lambda b, y: kernels.indexing.take_backward(y, key(b), shape)) if backward else None,
        {"b": shape[0], "s": shape[1], "d": shape[2], "n": 512, "m": 64}, dtypes=("bfloat16",),
        rivals={"torch": lambda b: b.x[key(b)]})


INDEXING = [
    GpuCase("embedding", {"ids": Buffer("t", below("v"), torch.int64), "weight": Buffer("v d"), "dy": X,
                          "into": Buffer("v d", dtype=torch.float32)},
            lambda b: kernels.embedding.forward(b.ids, b.weight),
            lambda b, y: kernels.embedding.backward(b.dy, b.ids, len(b.weight), b.into),
            {**SIZES, "v": VOCABULARY}, ("bfloat16", "float16", "float32"),
            traffic=lambda n, size: (2 * n.t * n.d * size, n.t * n.d * size + 8 * _different(n) * n.d),
            rivals={"torch": lambda b: F.embedding(b.ids, b.weight)}),
    GpuCase("embedding_fresh", {"ids": Buffer("t", below("v"), torch.int64), "dy": X},
            lambda b: kernels.embedding.backward(b.dy, b.ids, VOCABULARY), None, {**SIZES, "v": VOCABULARY},
            ("bfloat16",), traffic=lambda n, size: ((n.t + n.v + _different(n)) * n.d * size, 0)),
    _take("take_rows", lambda b: (b.rows, b.columns), True,
          rows=Buffer("n", below("b"), torch.int64), columns=Buffer("n", below("s"), torch.int64)),
    _take("take_middle", lambda b: (slice(None), b.columns), True, columns=Buffer("n", below("s"), torch.int64)),
    GpuCase("gather", {"x": X, "index": Buffer("n d", below("t"), torch.int64), "dy": Buffer("n d")},
            lambda b: kernels.indexing.gather(b.x, b.index, 0),
            lambda b, y: kernels.indexing.gather_backward(b.dy, b.index, 0, b.x.shape), {**SIZES, "n": 8},
            ("bfloat16",),
            traffic=lambda n, size: (n.n * n.d * (8 + 2 * size), n.n * n.d * (8 + size) + n.t * n.d * size)),
]

GENERIC = [*ELEMENTWISE, *REDUCTIONS, *DROPOUT, *INDEXING]
