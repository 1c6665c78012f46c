"""Tile sizes and other choices that change speed and not results: the table `tuning.json`.

    {kernel: {"PLACE [DTYPE] [NAME=SIZE ...]": {"ROWS": 4, "num_warps": 8, ...}}}

PLACE is a card's name as PyTorch gives it ("NVIDIA H100 80GB HBM3"), or an architecture ("sm_90"), or "interpreter",
or "default". DTYPE is that of the tensors ("bfloat16"), and NAME=SIZE one dimension each, in alphabetical order, SIZE
rounded up to a power of two; booleans and words stand as they are. Dtype and sizes may be left out. The entry taken is
the first that exists: card before architecture before default, and for each dtype and sizes, then sizes, then dtype,
then neither. An entry is whole: nothing is added from a less special one. Every kernel has a "default".
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import MappingProxyType
from typing import Mapping

import torch

from .launch import Target, target

TABLE = Path(__file__).with_suffix(".json")


def tuned(kernel: str, dtype: torch.dtype, **shape: int | bool | str) -> Mapping[str, int]:
    """The entry for a kernel on what it runs on now.

    Args:
        kernel: name in the table.
        dtype: of the tensors.
        shape: the sizes that matter to the choice, by name.

    Raises:
        KeyError: the table does not have the kernel.
    """
    return _entry(kernel, dtype, target(), tuple(shape.items()))


@functools.cache
def _entry(kernel: str, dtype: torch.dtype, on: Target, shape: tuple[tuple[str, int | bool | str], ...]):
    entries = table().get(kernel)
    if entries is None:
        raise KeyError(f"{TABLE.name} has no kernel {kernel!r}")
    return MappingProxyType(next(entries[name] for name in names(on, dtype, dict(shape)) if name in entries))


def names(on: Target, dtype: torch.dtype, shape: dict[str, int | bool | str]) -> list[str]:
    """The entries that would do, the most special first."""
    kind = str(dtype).removeprefix("torch.")
    sizes = " ".join(f"{name}={bucket(size)}" for name, size in sorted(shape.items()))
    details = dict.fromkeys(" ".join(filter(None, words)) for words in [(kind, sizes), (sizes,), (kind,), ()])
    places = ["interpreter"] if on.arch == 0 else [on.name, f"sm_{on.arch}"]
    return [f"{place} {detail}".strip() for place in dict.fromkeys([*places, "default"]) for detail in details]


def bucket(size: int | bool | str) -> int | bool | str:
    """A whole number rounded up to a power of two."""
    return size if isinstance(size, (bool, str)) else 1 << max(size - 1, 0).bit_length()


@functools.cache
def table() -> dict[str, dict[str, dict[str, int]]]:
    return json.loads(TABLE.read_text())
