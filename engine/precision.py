"""Precision as a policy: which dtype weights and activations have while a model computes.

Master weights, optimizer moments, gradients of weights, statistics and losses are float32 (or float64, for checks)
under every policy.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Iterator

import torch

import kernels

from .errors import UserError


@dataclass(frozen=True)
class Precision:
    """One policy.

    Args:
        working: dtype of the weights that the model computes with, and so of its activations; None: the masters' own.
        emulated: float32 buffers rounded to bfloat16 at the points where a GPU stores bfloat16. For CPUs.
        products: how float32 matrices are multiplied on a GPU, "ieee" or "tf32".
        device: "cuda" or "cpu" if it works on that only.
    """

    name: str
    working: torch.dtype | None = None
    emulated: bool = False
    products: str = "ieee"
    device: str | None = None

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The policy holds within this context."""
        with contextlib.ExitStack() as stack:
            if self.emulated:
                stack.enter_context(kernels.emulated_bfloat16())
            if self.working == torch.bfloat16:
                stack.enter_context(kernels.float32_sums())
            if self.products == "tf32":
                stack.enter_context(kernels.tf32_products())
            yield


PRECISIONS = {policy.name: policy for policy in (
    Precision("float32"),
    Precision("tf32", products="tf32", device="cuda"),
    Precision("bf16", working=torch.bfloat16, device="cuda"),
    Precision("bf16-emulated", working=torch.float32, emulated=True, device="cpu"),
)}


def precision(name: str, device: str) -> Precision:
    """The policy called `name`; "auto" is bf16 on a GPU and float32 on a CPU. UserError when it does not fit the
    device."""
    if name == "auto":
        name = "bf16" if device == "cuda" else "float32"
    if name not in PRECISIONS:
        raise UserError(f"precision must be auto or one of {', '.join(PRECISIONS)}: got {name!r}")
    policy = PRECISIONS[name]
    if policy.device not in (None, device):
        instead = "bf16-emulated follows its rounding on a CPU" if name == "bf16" else f"it is for {policy.device}"
        raise UserError(f"precision {name} does not run on {device}: {instead}")
    return policy
