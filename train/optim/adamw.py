"""AdamW over the flat parameter arena."""

from __future__ import annotations

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

    Attributes:
        arena: flat weights and gradients.
        exp_avg, exp_avg_sq: flat moments in the arena's layout.
        updates: number of steps taken.
    """

    def __init__(self, model: Module, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
                 weight_decay: float = 0.1, clip_norm: float = 0.0):
        named = list(model.named_parameters())
        decayed = [(name, p) for name, p in named if p.decay and p.data.ndim >= 2]
        names = {name for name, _ in decayed}
        self.arena = Arena(decayed + [(name, p) for name, p in named if name not in names])
        self.betas, self.eps, self.weight_decay, self.clip_norm = betas, eps, weight_decay, clip_norm
        self.exp_avg, self.exp_avg_sq = (torch.zeros_like(self.arena.weights) for _ in range(2))
        self.updates = 0
        self._decayed = names
        plain_starts = [part.start for name, part in self.arena.slices.items() if name not in names]
        self._border = plain_starts[0] if plain_starts else len(self.arena.weights)

    def routing(self) -> list[Route]:
        """One row per parameter, in the order of the arena."""
        return [Route(name, tuple(p.data.shape), *(("adamw", 1.0, self.weight_decay) if name in self._decayed
                                                   else ("adamw-no-decay", 1.0, 0.0)))
                for name, p in self.arena.parameters.items()]

    def grad_norm(self) -> float:
        """Global 2-norm of the gradients, before clipping."""
        return kernels.sum_of_squares(self.arena.grads) ** 0.5

    def first_bad_weight(self) -> str | None:
        """Name of the first parameter with a value that is not finite."""
        if math.isfinite(kernels.sum_of_squares(self.arena.weights)):
            return None
        return next(name for name, part in self.arena.slices.items()
                    if not math.isfinite(kernels.sum_of_squares(self.arena.weights[part])))

    def first_bad_gradient(self) -> str | None:
        """Name of the first parameter whose gradient is not finite."""
        return next((name for name, part in self.arena.slices.items()
                     if not math.isfinite(kernels.sum_of_squares(self.arena.grads[part]))), None)

    def step(self, lr: float, grad_norm: float) -> None:
        """Update every weight with the gradients in the arena.

        Args:
            lr: learning rate of this step.
            grad_norm: what `grad_norm()` gave.
        """
        self.updates += 1
        scale = self.clip_norm / grad_norm if 0.0 < self.clip_norm < grad_norm else 1.0
        for part, decay in ((slice(0, self._border), self.weight_decay), (slice(self._border, None), 0.0)):
            if self.arena.weights[part].numel():
                kernels.adamw(self.arena.weights[part], self.arena.grads[part], self.exp_avg[part],
                              self.exp_avg_sq[part], lr=lr, beta1=self.betas[0], beta2=self.betas[1], eps=self.eps,
                              weight_decay=decay, step=self.updates, grad_scale=scale)

    def state(self) -> dict[str, torch.Tensor]:
        """The moments by `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`, as views: copying into them loads them."""
        return {f"{moment}.{name}": view for moment in ("exp_avg", "exp_avg_sq")
                for name, view in self.arena.views(getattr(self, moment)).items()}

    def load_state(self, state: dict[str, torch.Tensor], updates: int) -> None:
        """Take over moments saved by `state` after `updates` steps. UserError when they do not fit."""
        restore(self.state(), state, "optimizer state")
        self.updates = updates
