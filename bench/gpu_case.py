"""How a row of the table of GPU cases is written: inputs at the size of a training step, and calls of the contract."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Callable, Mapping

import torch

from .case import Sizes, extent


def normal(shape: tuple[int, ...], _sizes: Sizes, device: str) -> torch.Tensor:
    return torch.randn(shape, device=device)


def positive(shape: tuple[int, ...], _sizes: Sizes, device: str) -> torch.Tensor:
    return torch.rand(shape, device=device) + 0.5


def below(name: str) -> Callable:
    """Whole numbers below a dimension's size."""
    return lambda shape, sizes, device: torch.randint(sizes[name], shape, device=device)


@dataclass(frozen=True)
class Buffer:
    """One tensor: its dimensions, each a name or a product such as "2*f", and how it is filled.

    Args:
        values: values(shape, sizes, device) -> tensor.
        dtype: None for that of the case.
    """

    shape: str
    values: Callable[[tuple[int, ...], Sizes, str], torch.Tensor] = normal
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class GpuCase:
    """One kernel at one size.

    Args:
        buffers: name -> tensor; the calls find them by name, `b.x`.
        forward: forward(b) -> result, a tensor or a tuple.
        backward: backward(b, result) -> gradients, or None.
        sizes: the size of each dimension.
        dtypes: dtypes of the buffers that have none of their own.
        narrow: names of Triton functions that cannot read 16 bytes at once, as what they read is not that long.
        traffic: traffic(n, itemsize) -> (forward, backward): bytes that must be read and written, n.d being a size.
        flops: flops(n) -> (forward, backward), of matrix products.
        rivals: name -> the same as `forward` in PyTorch; its backward is PyTorch's.
        tf32: whether it is compiled for products of float32 with TF32 factors, too.
    """

    name: str
    buffers: Mapping[str, Buffer]
    forward: Callable[[SimpleNamespace], Any]
    backward: Callable[[SimpleNamespace, Any], Any] | None
    sizes: Sizes
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    narrow: tuple[str, ...] = ()
    traffic: Callable[[SimpleNamespace, int], tuple[int, int]] | None = None
    flops: Callable[[SimpleNamespace], tuple[int, int]] | None = None
    rivals: Mapping[str, Callable[[SimpleNamespace], Any]] = field(default_factory=dict)
    tf32: bool = False

    def tensors(self, dtype: str, device: str) -> SimpleNamespace:
        """The buffers on a device, the same values every time; on "meta" they have none."""
        if device != "meta":
            torch.manual_seed(0)
        return SimpleNamespace(**{name: self._tensor(entry, dtype, device) for name, entry in self.buffers.items()})

    def _tensor(self, entry: Buffer, dtype: str, device: str) -> torch.Tensor:
        shape, kind = tuple(extent(word, self.sizes) for word in entry.shape.split()), entry.dtype
        kind = kind or getattr(torch, dtype)
        if device == "meta":
            return torch.empty(shape, dtype=kind, device=device)
        return entry.values(shape, self.sizes, device).to(kind)

    def run(self, dtype: str, device: str) -> None:
        """Forward and, if there is one, backward."""
        tensors = self.tensors(dtype, device)
        result = self.forward(tensors)
        if self.backward:
            self.backward(tensors, result)
