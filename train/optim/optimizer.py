"""What every optimizer does: the arena, the gradients' norms, the average of the weights, and going back."""

from __future__ import annotations

import contextlib
import math
from typing import Iterable, Iterator

import torch

import kernels
from engine import Arena, Module
from train.checkpoint import restore
from train.optim.router import Route, group_of

SWAPPED = 1 << 20  # elements that change places at a time


class Optimizer:
    """Base of the optimizers; a subclass says in `_move` how the weights move.

    Args:
        order: names of all parameters, as they are to lie in the arena.
        working: dtype of the rounded copy of the weights that the model computes with; None: no copy.
        ema: decay of the average of the weights, the mean of all weights there were, weighted by ema^age; 0: none.

    Attributes:
        arena: flat weights and gradients.
        average: flat average of the weights, or None.
        control: see kernels.optimizer.
        kind: name of the work that `apply` does; work captured under another kind is not to be run.
    """

    kind = ""

    def __init__(self, model: Module, order: Iterable[str], working: torch.dtype | None = None, ema: float = 0.0):
        named = dict(model.named_parameters())
        self._groups = list(dict.fromkeys(map(group_of, named)))
        self.arena, self.ema = Arena([(name, named[name]) for name in order], working), ema
        weights = self.arena.weights
        self.average = torch.zeros_like(weights) if ema else None
        self.control = torch.zeros(8, dtype=torch.float64, device=weights.device)
        self._norm = torch.zeros(1, dtype=torch.float64, device=weights.device)
        self._zero = torch.zeros(1, dtype=torch.float32, device=weights.device)

    @property
    def updates(self) -> int:
        """Number of steps taken."""
        return int(self.control[1])

    def routing(self) -> list[Route]:
        """One row per parameter, in the order of the arena."""
        raise NotImplementedError

    def advance_to(self, step: int) -> bool:
        """To be called before each step of a run, the first being 1. Whether another kind of work begins with it."""
        return False

    @property
    def last_norm(self) -> float:
        """Global 2-norm of the gradients, before clipping, when they were last measured."""
        return float(self._norm)

    def measure(self) -> float:
        """Take the gradients' norm, for the step that follows; returns it."""
        kernels.optimizer.norm(self.arena.grads, out=self._norm)
        return self.last_norm

    def measure_on_device(self, loss: torch.Tensor) -> None:
        """Take the gradients' norm without waiting for it; a `loss`, float32 (1), that is not finite spoils it."""
        kernels.optimizer.norm(self.arena.grads, out=self._norm)
        nothing = kernels.elementwise.apply("mul", loss, self._zero)
        kernels.elementwise.accumulate(self._norm, kernels.elementwise.cast(nothing, self._norm.dtype))

    def group_norms(self) -> dict[str, float]:
        """2-norm of the gradients in the arena, before clipping, by group: embedding, layers.0, ..., norm, head."""
        norms = torch.zeros(len(self.arena.slices), dtype=torch.float64, device=self.control.device)
        for place, part in enumerate(self.arena.slices.values()):
            kernels.optimizer.norm(self.arena.grads[part], out=norms[place: place + 1])
        squares = dict.fromkeys(self._groups, 0.0)
        for name, norm in zip(self.arena.slices, norms.tolist()):
            squares[group_of(name)] += norm * norm
        return {group: math.sqrt(total) for group, total in squares.items()}

    def first_bad_weight(self) -> str | None:
        """Name of the first parameter with a value that is not finite."""
        return self._first_bad(self.arena.weights)

    def first_bad_gradient(self) -> str | None:
        """Name of the first parameter whose gradient is not finite."""
        return self._first_bad(self.arena.grads)

    def _first_bad(self, flat: torch.Tensor) -> str | None:
        if math.isfinite(kernels.optimizer.norm(flat)):
            return None
        return next((name for name, part in self.arena.slices.items()
                     if not math.isfinite(kernels.optimizer.norm(flat[part]))), None)

    def step(self, lr: float) -> None:
        """Update every weight with the gradients measured last, at learning rate `lr`; none if their norm is not
        finite."""
        self.set_learning_rate(lr)
        self.apply()

    def set_learning_rate(self, lr: float) -> None:
        """Of the steps that follow."""
        self.control[:1].fill_(lr)

    def apply(self) -> None:
        """The update alone, at the learning rate set before. The same work each time, so that it can be captured, until
        `kind` changes."""
        self._move()
        if self.arena.working is not None:
            kernels.rounded(self.arena.working)
        if self.average is not None:
            kernels.optimizer.average(self.average, self.arena.weights, self.control, decay=self.ema)

    def _move(self) -> None:
        """Count the step in `control`, and move the weights and their working copy."""
        raise NotImplementedError

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this context the model holds the average of its weights, where there is one. No step is taken in it,
        and `state` is not that of the optimizer."""
        present = self.average is not None and self.updates > 0
        if present:
            self._swap()
        try:
            yield
        finally:
            if present:
                self._swap()

    def _swap(self) -> None:
        for ours, theirs in zip(_parts(self.arena.weights), _parts(self.average)):
            kept = kernels.copy(ours)
            ours.copy_(theirs)
            theirs.copy_(kept)
        self._refresh()

    def _refresh(self) -> None:
        for parameter in self.arena.parameters.values():
            parameter.refresh()

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """What is done to weights, state and counters within this context is undone after it."""
        buffers = [self.arena.weights, self.control, *self._buffers()]
        before = [kernels.copy(buffer) for buffer in buffers]
        yield
        for buffer, values in zip(buffers, before):
            buffer.copy_(values)
        self._refresh()

    def _buffers(self) -> list[torch.Tensor]:
        """What a step changes beside weights and `control`."""
        return [] if self.average is None else [self.average]

    def state(self) -> dict[str, torch.Tensor]:
        """Tensors by name, as views: copying into them loads them. `average.<parameter>` where there is one."""
        if self.average is None:
            return {}
        return {f"average.{name}": view for name, view in self.arena.views(self.average).items()}

    def load_state(self, state: dict[str, torch.Tensor] | None, updates: int) -> None:
        """Take over what `state` gave after `updates` steps; None: nothing, before the first. UserError when it does
        not fit."""
        if state is not None:
            restore(self.state(), state, "optimizer state")
        self.control[1] = updates


def _parts(flat: torch.Tensor) -> Iterator[torch.Tensor]:
    return (flat[start: start + SWAPPED] for start in range(0, len(flat), SWAPPED))
