"""Which parameter is moved by what, and how Muon's matrices lie in the arena."""

from __future__ import annotations

import math
from itertools import groupby
from typing import Callable, NamedTuple

from engine import Arena, Module, Parameter
from kernels import Stack

HEAD = "head.weight"


class Route(NamedTuple):
    """Which treatment a parameter gets.

    Args:
        parameter, shape: name and shape.
        group: "muon", "adamw", "adamw-no-decay", or what comes after what.
        lr_factor: of the schedule's learning rate.
        weight_decay: multiplied by the learning rate.
        pieces: matrices (rows, columns) that Muon takes one by one; none for AdamW.
    """

    parameter: str
    shape: tuple[int, ...]
    group: str
    lr_factor: float
    weight_decay: float
    pieces: tuple[tuple[int, int], ...] = ()


def group_of(parameter: str) -> str:
    """The part of the model it belongs to: "layers.3" of layers.3.attention.qkv.weight, else its first word."""
    words = parameter.split(".")
    return ".".join(words[:2]) if words[0] == "layers" else words[0]


def decayed(parameter: Parameter) -> bool:
    """Whether weight decay applies: to matrices, but not to embeddings, which say so themselves."""
    return parameter.decay and parameter.data.ndim >= 2


def muon_matrices(model: Module, head: bool, per_head: bool) -> dict[str, tuple[int, ...]]:
    """The parameters for Muon, each with the rows of the matrices that it is made of, in the order of the arena.

    These are the matrices that decay, without the output matrix unless `head`: a row of that, as one of the embedding,
    belongs to one token (Jordan et al. 2024). Queries, keys and values, packed for speed, are matrices of their own,
    those of each attention head, too, if `per_head`; so are gate and up. A module that packs no rows into a parameter
    keeps it from Muon, as the router of experts does.
    """
    packed = {f"{prefix}.{name}": rows for prefix, module in model.named_modules() if hasattr(module, "packed")
              for name, rows in module.packed(per_head).items()}
    found = {name: (parameter.data.shape, packed.get(name, (parameter.data.shape[-2],)))
             for name, parameter in model.named_parameters()
             if decayed(parameter) and (head or name != HEAD) and packed.get(name) != ()}
    return {name: rows for name, (_, rows) in sorted(found.items(), key=lambda entry: entry[1])}


def stacks(arena: Arena, matrices: dict[str, tuple[int, ...]], scale: Callable[[int, int], float]) -> tuple[Stack, ...]:
    """The matrices of an arena that begins with these parameters, equal ones together."""
    found: list[Stack] = []

    def kind(name: str) -> tuple:
        return tuple(arena.parameters[name].data.shape), matrices[name]

    for (shape, rows), group in groupby(matrices, kind):
        starts = [arena.slices[name].start for name in group]
        columns, copies = shape[-1], math.prod(shape[:-2])
        slot = starts[1] - starts[0] if len(starts) > 1 else math.prod(shape)
        if len(set(rows)) == 1 and slot == math.prod(shape):
            count = len(starts) * copies * len(rows)
            found.append(Stack(starts[0], rows[0] * columns, count, rows[0], columns, scale(rows[0], columns)))
            continue
        first = starts[0]
        for height in rows * copies:
            found.append(Stack(first, slot, len(starts), height, columns, scale(height, columns)))
            first += height * columns
    return tuple(found)
