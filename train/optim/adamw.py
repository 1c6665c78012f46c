"""AdamW over the flat parameter arena."""

from __future__ import annotations

import torch

import kernels
from engine import Module
from train.optim.optimizer import Optimizer
from train.optim.router import Route, decayed

__all__ = ["AdamW", "Route"]


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv 1711.05101, algorithm 2).

    Moves the model's parameters into an arena, those with decay first, so that each group is one contiguous range.
    No decay on parameters with `decay` False (embeddings) or fewer than two dimensions.

    Args:
        betas, eps, weight_decay: as in the paper; the decay is multiplied by the learning rate.
        clip_norm: largest global gradient norm; larger gradients are scaled down to it. 0: never.
        working, ema: see Optimizer.
        first: parameters that lie before all others.

    Attributes:
        exp_avg: flat first moments in the arena's layout.
        exp_avg_sq: flat second moments of the arena from element `begin` on; what lies before is not AdamW's.
        segments: see kernels.optimizer; they count from `begin`.
    """

    kind = "adamw"

    def __init__(self, model: Module, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
                 weight_decay: float = 0.1, clip_norm: float = 0.0, working: torch.dtype | None = None,
                 ema: float = 0.0, first: tuple[str, ...] = ()):
        named = dict(model.named_parameters())
        self._decayed = [name for name in named if name in first or decayed(named[name])]
        order = dict.fromkeys([*first, *self._decayed, *named])
        super().__init__(model, order, working, ema)
        self.betas, self.eps, self.weight_decay, self.clip_norm = betas, eps, weight_decay, clip_norm
        self.exp_avg, self.exp_avg_sq = (torch.zeros_like(self.arena.weights) for _ in range(2))
        self._begin_at(0)

    def _begin_at(self, begin: int) -> None:
        """AdamW has the arena from this element on."""
        weights = self.arena.weights
        plain = [part.start for name, part in self.arena.slices.items() if name not in self._decayed]
        border, end = (plain[0] if plain else len(weights)) - begin, len(weights) - begin
        if end < len(self.exp_avg_sq):
            self.exp_avg_sq = kernels.copy(self.exp_avg_sq[len(self.exp_avg_sq) - end:])
        self.begin = begin
        self.segments = (
            torch.tensor([[0, border], [border, end]], device=weights.device),
            torch.tensor([[self.weight_decay, 1.0], [0.0, 1.0]], dtype=weights.dtype, device=weights.device),
        )

    def routing(self) -> list[Route]:
        return [Route(name, tuple(p.data.shape), *(("adamw", 1.0, self.weight_decay) if name in self._decayed
                                                   else ("adamw-no-decay", 1.0, 0.0)))
                for name, p in self.arena.parameters.items()]

    def _move(self) -> None:
        (beta1, beta2), own = self.betas, slice(self.begin, None)
        arena, working = self.arena, self.arena.working
        kernels.optimizer.begin_step(self.control, self._norm, beta1=beta1, beta2=beta2, clip_norm=self.clip_norm)
        kernels.optimizer.adamw(arena.weights[own], arena.grads[own], self.exp_avg[own], self.exp_avg_sq, self.segments,
                                self.control, None if working is None else working[own],
                                beta1=beta1, beta2=beta2, eps=self.eps)

    def _buffers(self) -> list[torch.Tensor]:
        return [self.exp_avg, self.exp_avg_sq, *super()._buffers()]

    def state(self) -> dict[str, torch.Tensor]:
        """Views: `exp_avg.<parameter>`, `exp_avg_sq.<parameter>` of what is AdamW's, and those of Optimizer."""
        state = {f"exp_avg.{name}": view for name, view in self.arena.views(self.exp_avg).items()}
        for name, part in self.arena.slices.items():
            if part.start >= self.begin:
                own = self.exp_avg_sq[part.start - self.begin: part.stop - self.begin]
                state[f"exp_avg_sq.{name}"] = own.view(self.arena.parameters[name].data.shape)
        return {**state, **super().state()}
