"""How a row of the table of cases is written: an operation, its rival, and how its inputs are drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Callable

import numpy as np

Sizes = dict[str, int]


@dataclass(frozen=True)
class Input:
    """One argument: its dimensions, each a name or a product such as "2*d", and values(rng, shape, sizes) -> array.

    With a gradient it reaches our call as a Tensor, without one as a torch tensor.
    """

    shape: str
    values: Callable[[np.random.Generator, tuple[int, ...], Sizes], np.ndarray]
    gradient: bool = True


@dataclass(frozen=True)
class Case:
    """One operation.

    Args:
        ours, torch: called with the inputs in order and one value of each option; return one tensor or a tuple.
        inputs: in the order of the arguments.
        dims: name -> (smallest and largest size in tests, size in the benchmark).
        options: name -> values to draw from; the benchmark takes the first.
        broadcasts: whether tests may give an input fewer or smaller dimensions, to be broadcast.
    """

    name: str
    ours: Callable
    torch: Callable
    inputs: tuple[Input, ...]
    dims: dict[str, tuple[int, int, int]]
    options: dict[str, tuple] = field(default_factory=dict)
    broadcasts: bool = False

    def arrays(self, rng: np.random.Generator, shapes: list[tuple[int, ...]], sizes: Sizes) -> list[np.ndarray]:
        """Values for each input, floats in float32."""
        return [entry.values(rng, shape, sizes) for entry, shape in zip(self.inputs, shapes)]

    def shapes(self, sizes: Sizes) -> list[tuple[int, ...]]:
        """The full shape of each input."""
        return [tuple(extent(word, sizes) for word in entry.shape.split()) for entry in self.inputs]

    def benchmark_sizes(self) -> Sizes:
        """The size of each dimension in the benchmark."""
        return {name: size for name, (_, _, size) in self.dims.items()}


def extent(word: str, sizes: Sizes) -> int:
    """"d" or "2*d" or "g*k" in numbers."""
    return math.prod(int(factor) if factor.isdigit() else sizes[factor] for factor in word.split("*"))


def normal(rng, shape, _sizes):
    return rng.standard_normal(shape).astype(np.float32)


def positive(rng, shape, _sizes):
    return rng.uniform(0.5, 2.0, shape).astype(np.float32)


def apart(rng, shape, _sizes):
    """Distinct values at least 0.1 from each other and from 0, where functions with a kink have it."""
    count = int(np.prod(shape))
    return ((rng.permutation(count) - count // 2 + 0.5) * 0.2).reshape(shape).astype(np.float32)


def between(rng, shape, sizes):
    """Values at least 0.1 from those of `apart`."""
    return apart(rng, shape, sizes) + np.float32(0.1)


def shifts(rng, shape, sizes):
    """Distinct values that added to those of `apart`, or to 0 or 1, leave no two equal."""
    return np.float32(0.37) * between(rng, shape, sizes)


def below(name: str):
    """Whole numbers below a dimension's size."""
    return lambda rng, shape, sizes: rng.integers(0, sizes[name], shape)


def some_experts(rng, shape, sizes):
    """Experts of each token, from a few or all: some have no token, one may have all; a token may have one twice."""
    few = rng.permutation(sizes["e"])[: rng.integers(1, sizes["e"] + 1)]
    return few[rng.integers(0, len(few), shape)]


def signed_below(name: str):
    """Positions from either end of a dimension."""
    return lambda rng, shape, sizes: rng.integers(-sizes[name], sizes[name], shape)


def targets(rng, shape, sizes):
    """Classes, about a fifth of them ignored."""
    return np.where(rng.random(shape) < 0.2, -100, rng.integers(0, sizes["v"], shape))


def coin(rng, shape, _sizes):
    return rng.random(shape) < 0.5


def document_starts(rng, shape, _sizes):
    """Every token with a chance of a quarter begins a document."""
    begins = np.where(rng.random(shape) < 0.25, np.arange(shape[1]), 0)
    return np.maximum.accumulate(begins, axis=1).astype(np.int32)


def cosine(_rng, shape, _sizes):
    return np.cos(_angles(shape)).astype(np.float32)


def sine(_rng, shape, _sizes):
    return np.sin(_angles(shape)).astype(np.float32)


def _angles(shape):
    return np.outer(np.arange(shape[0]), 10_000.0 ** (-np.arange(shape[1]) / shape[1]))
