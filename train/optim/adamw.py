"""AdamW over the flat parameter arena."""

from __future__ import annotations

import contextlib
import math
from typing import NamedTuple

import torch

import kernels
from engine import Arena, Module
from train.checkpoint import restore


class Route(NamedTuple):
    """Which treatment a parameter gets."""

    parameter: str
    shape: tuple[int, ...]
    group: str
    lr_factor: float
    weight_decay: float


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv 1711.05101, algorithm 2).

    Moves the model's parameters into an arena, those with decay first, so that each group is one contiguous range.
    No decay on parameters with `decay` False (embeddings) or fewer than two dimensions.

    Args:
        betas, eps, weight_decay: as in the paper; the decay is multiplied by the learning rate.
        clip_norm: largest global gradient norm; larger gradients are scaled down to it. 0: never.
        working: dtype of the rounded copy of the weights that the model computes with; None: no copy.

    Attributes:
        arena: flat weights and gradients.
        exp_avg, exp_avg_sq: flat moments in the arena's layout.
        control, segments: see kernels.optimizer.
    """

    def __init__(self, model: Module, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
                 weight_decay: float = 0.1, clip_norm: float = 0.0, working: torch.dtype | None = None):
        named = list(model.named_parameters())
        decayed = [(name, p) for name, p in named if p.decay and p.data.ndim >= 2]
        names = {name for name, _ in decayed}
        self.arena = Arena(decayed + [(name, p) for name, p in named if name not in names], working)
        self.betas, self.eps, self.weight_decay, self.clip_norm = betas, eps, weight_decay, clip_norm
        weights = self.arena.weights
        self.exp_avg, self.exp_avg_sq = (torch.zeros_like(weights) for _ in range(2))
        self.control = torch.zeros(8, dtype=torch.float64, device=weights.device)
        self._norm = torch.zeros(1, dtype=torch.float64, device=weights.device)
        self._zero = torch.zeros(1, dtype=torch.float32, device=weights.device)
        self._decayed = names
        plain_starts = [part.start for name, part in self.arena.slices.items() if name not in names]
        border = plain_starts[0] if plain_starts else len(weights)
        self.segments = (
            torch.tensor([[0, border], [border, len(weights)]], device=weights.device),
            torch.tensor([[weight_decay, 1.0], [0.0, 1.0]], dtype=weights.dtype, device=weights.device),
        )

    @property
    def updates(self) -> int:
        """Number of steps taken."""
        return int(self.control[1])

    def routing(self) -> list[Route]:
        """One row per parameter, in the order of the arena."""
        return [Route(name, tuple(p.data.shape), *(("adamw", 1.0, self.weight_decay) if name in self._decayed
                                                   else ("adamw-no-decay", 1.0, 0.0)))
                for name, p in self.arena.parameters.items()]

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

    def first_bad_weight(self) -> str | None:
        """Name of the first parameter with a value that is not finite."""
        if math.isfinite(kernels.optimizer.norm(self.arena.weights)):
            return None
        return next(name for name, part in self.arena.slices.items()
                    if not math.isfinite(kernels.optimizer.norm(self.arena.weights[part])))

    def first_bad_gradient(self) -> str | None:
        """Name of the first parameter whose gradient is not finite."""
        return next((name for name, part in self.arena.slices.items()
                     if not math.isfinite(kernels.optimizer.norm(self.arena.grads[part]))), None)

    def step(self, lr: float) -> None:
        """Update every weight with the gradients measured last, at learning rate `lr`; not if their norm is not finite."""
        self.set_learning_rate(lr)
        self.apply()

    def set_learning_rate(self, lr: float) -> None:
        """Of the steps that follow."""
        self.control[:1].fill_(lr)

    def apply(self) -> None:
        """The update alone, at the learning rate set before. The same work each time, so that it can be captured."""
        arena, (beta1, beta2) = self.arena, self.betas
        kernels.optimizer.begin_step(self.control, self._norm, beta1=beta1, beta2=beta2, clip_norm=self.clip_norm)
        kernels.optimizer.adamw(arena.weights, arena.grads, self.exp_avg, self.exp_avg_sq, self.segments, self.control,
                                arena.working, beta1=beta1, beta2=beta2, eps=self.eps)
        if arena.working is not None:
            kernels.rounded(arena.working)

    @contextlib.contextmanager
    def unchanged(self):
        """What is done to weights, moments and counters within this context is undone after it."""
        buffers = [self.arena.weights, self.exp_avg, self.exp_avg_sq, self.control]
        before = [kernels.copy(buffer) for buffer in buffers]
        yield
        for buffer, values in zip(buffers, before):
            buffer.copy_(values)
        for parameter in self.arena.parameters.values():
            parameter.refresh()

    def state(self) -> dict[str, torch.Tensor]:
        """The moments by `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`, as views: copying into them loads them."""
        return {f"{moment}.{name}": view for moment in ("exp_avg", "exp_avg_sq")
                for name, view in self.arena.views(getattr(self, moment)).items()}

    def load_state(self, state: dict[str, torch.Tensor], updates: int) -> None:
        """Take over moments saved by `state` after `updates` steps. UserError when they do not fit."""
        restore(self.state(), state, "optimizer state")
        self.control[1] = updates
