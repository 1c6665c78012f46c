"""All parameters in one flat buffer, and all gradients in another."""

from __future__ import annotations

from typing import Iterable

import torch

import kernels

from .errors import UserError
from .module import Parameter

ALIGNMENT = 64  # elements, so that every parameter starts on a 256-byte border in float32


class Arena:
    """Moves parameters into one flat buffer: one optimizer pass, one norm, one all-reduce, one file.

    Every parameter's `data` becomes a view of `weights` and its `grad` a view of `grads`. Backward adds into those
    views, so a parameter that got no gradient has a zero one. Gaps between parameters hold zeros.

    Args:
        named_parameters: (name, parameter) pairs, laid out in this order; all of one dtype and device.
        working: dtype of a second copy of the weights, which `data` then looks into: the model computes with that one,
            while `weights`, each parameter's `master`, keeps every digit. None: there is one copy, as always of a
            parameter that is `precise`.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, Parameter]], working: torch.dtype | None = None):
        parameters = dict(named_parameters)
        if not parameters:
            raise UserError("an arena needs at least one parameter, got none")
        kinds = {(p.dtype, p.device) for p in parameters.values()}
        if len(kinds) > 1:
            raise UserError(f"an arena's parameters must share one dtype and device, got {sorted(map(str, kinds))}")
        (dtype, device), = kinds
        self.parameters = parameters
        self.slices: dict[str, slice] = {}
        end = 0
        for name, parameter in parameters.items():
            self.slices[name] = slice(end, end + parameter.data.numel())
            end = -(-(end + parameter.data.numel()) // ALIGNMENT) * ALIGNMENT
        self.weights, self.grads = kernels.zeros((end,), dtype, device), kernels.zeros((end,), dtype, device)
        for name, parameter in parameters.items():
            place = self.weights[self.slices[name]].view(parameter.data.shape)
            place.copy_(parameter.data)
            parameter.data = place
            parameter.grad = self.grads[self.slices[name]].view(place.shape)
        self.working = None if working is None else kernels.zeros((end,), working, device)
        if self.working is not None:
            views = self.views(self.working)
            for name, parameter in parameters.items():
                if not parameter.precise:
                    parameter.master, parameter.data = parameter.data, views[name]
                    parameter.refresh()

    def zero_grad(self) -> None:
        """Set every gradient to zero."""
        self.grads.zero_()

    def views(self, flat) -> dict:
        """Views of another flat buffer of the same layout, shaped like the parameters, by name."""
        return {name: flat[self.slices[name]].view(p.data.shape) for name, p in self.parameters.items()}
