"""Modules: parameters with names."""

from __future__ import annotations

from typing import Iterator

import torch

import kernels

from .errors import UserError
from .autograd import Tensor


class Parameter(Tensor):
    """A tensor that training changes.

    Args:
        data: floating-point buffer.
        decay: whether weight decay applies; by default to everything of two or more dimensions.
        precise: whether the model computes with every digit of it where others are rounded (see Arena).

    Attributes:
        master: the same values with more digits, when `data` is a rounded copy to compute with (see Arena).
    """

    __slots__ = ("decay", "master", "precise")

    def __init__(self, data: torch.Tensor, decay: bool | None = None, precise: bool = False):
        super().__init__(data, requires_grad=True)
        self.decay = data.ndim >= 2 if decay is None else decay
        self.precise = precise
        self.master: torch.Tensor | None = None

    def refresh(self) -> None:
        """Make `data` from `master` again, after that was changed by anything but the optimizer."""
        if self.master is not None:
            kernels.rounded(self.data.copy_(self.master))


class Buffer(Tensor):
    """A tensor that belongs to a module's state, though no gradient moves it."""

    __slots__ = ()


class Module:
    """Something with parameters and a forward. Attributes that are parameters, modules or lists of modules count."""

    training = True

    def __call__(self, *arguments, **options):
        return self.forward(*arguments, **options)

    def forward(self, *arguments, **options):
        raise NotImplementedError

    def _children(self) -> Iterator[tuple[str, Module]]:
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, (list, tuple)):
                for index, item in enumerate(value):
                    if isinstance(item, Module):
                        yield f"{name}.{index}", item

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below it, with dotted names; the root's name is the prefix."""
        yield prefix, self
        for name, child in self._children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Module]:
        """This module and all below it."""
        return (module for _, module in self.named_modules())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter once, with its dotted name; one that is shared bears its first name."""
        seen: set[int] = set()
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield (f"{prefix}.{name}" if prefix else name), value

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter once."""
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, Buffer]]:
        """Every `Buffer` with its dotted name."""
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Buffer):
                    yield (f"{prefix}.{name}" if prefix else name), value

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The parameters' values by name, not copied, the masters' where there are such, and those of the buffers."""
        found = {name: parameter.data if parameter.master is None else parameter.master
                 for name, parameter in self.named_parameters()}
        return found | {name: buffer.data for name, buffer in self.named_buffers()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Copy values into the buffers of `state_dict`; names, shapes and dtypes must all agree."""
        buffers = self.state_dict()
        missing, unexpected = sorted(buffers.keys() - state.keys()), sorted(state.keys() - buffers.keys())
        if missing or unexpected:
            raise UserError(f"state dict does not fit the module: missing {missing or 'none'}, "
                            f"unexpected {unexpected or 'none'}")
        for name, own in buffers.items():
            value = state[name]
            if value.shape != own.shape or value.dtype != own.dtype:
                raise UserError(f"{name} must be {own.dtype} of shape {tuple(own.shape)}, "
                                f"got {value.dtype} of shape {tuple(value.shape)}")
        for name, own in buffers.items():
            own.copy_(state[name])
        for parameter in self.parameters():
            parameter.refresh()

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def to(self, device: str) -> Module:
        """Move every parameter and buffer to a device, before they join an arena. Returns itself."""
        for tensor in (*self.parameters(), *(buffer for _, buffer in self.named_buffers())):
            tensor.data = tensor.data.to(device)
        return self

    def train(self, mode: bool = True) -> Module:
        """Switch to training mode (dropout on), or with False to evaluation mode. Returns itself."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Switch to evaluation mode (dropout off). Returns itself."""
        return self.train(False)
