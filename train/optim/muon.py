"""Muon for the matrices of a model, AdamW for the rest; from the first step, or from a later one on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

import kernels
from engine import Module
from train.errors import UserError
from train.optim.adamw import AdamW
from train.optim.coefficients import polynomials
from train.optim.router import Route, muon_matrices, stacks


@dataclass(frozen=True)
class MuonSettings:
    """Muon's part.

    Args:
        lr_factor: of the learning rate of a step.
        weight_decay: multiplied by the learning rate.
        momentum, nesterov: m = momentum m + (1 - momentum) g; with nesterov, momentum m + (1 - momentum) g is what is
            orthogonalised.
        steps, coefficients: see train.optim.coefficients.
        scale: of an update: "match_rms" 0.2 sqrt(max(rows, columns)), the usual size of Adam's (arXiv 2502.16982,
            section 2.2), or "aspect" sqrt(max(1, rows / columns)) (Jordan et al. 2024).
        per_head, head: see train.optim.router.muon_matrices.
        row_beta: NorMuon's decay of the rows' mean squares (arXiv 2510.05491, algorithm 1); 0: Muon.
    """

    lr_factor: float = 1.0
    weight_decay: float = 0.1
    momentum: float = 0.95
    nesterov: bool = True
    steps: int = 5
    coefficients: str = "quintic"
    scale: str = "match_rms"
    per_head: bool = False
    head: bool = False
    row_beta: float = 0.0

    def size(self, rows: int, columns: int) -> float:
        """What an orthogonal matrix of this shape is multiplied with."""
        sizes = {"match_rms": 0.2 * math.sqrt(max(rows, columns)), "aspect": math.sqrt(max(1.0, rows / columns))}
        if self.scale not in sizes:
            raise UserError(f"optim.muon_scale must be one of {', '.join(sizes)}: got {self.scale!r}")
        return sizes[self.scale]


class Muon(AdamW):
    """Muon (Jordan et al. 2024) and AdamW.

    Muon's matrices lie first in the arena, equal shapes together. Both keep a running mean of the gradients, so where
    Muon takes over from AdamW it goes on with that; AdamW's second moments of the matrices are dropped then.

    Args:
        settings: Muon's; the others are AdamW's.
        switch_at: the last step of AdamW for all parameters; 0: Muon from the start.
        betas, eps, weight_decay, clip_norm, working, ema: see AdamW.

    Attributes:
        kind: "adamw", and "muon" when Muon has begun.
    """

    def __init__(self, model: Module, settings: MuonSettings = MuonSettings(), switch_at: int = 0,
                 betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.1,
                 clip_norm: float = 0.0, working: torch.dtype | None = None, ema: float = 0.0):
        matrices = muon_matrices(model, settings.head, settings.per_head)
        super().__init__(model, betas, eps, weight_decay, clip_norm, working, ema, tuple(matrices))
        self.settings, self.switch_at = settings, switch_at
        self.coefficients, self.margin = polynomials(settings.coefficients, settings.steps)
        self.stacks = stacks(self.arena, matrices, settings.size)
        self._matrices, self._squares = matrices, None
        later = [part.start for name, part in self.arena.slices.items() if name not in matrices]
        self._border = later[0] if later else len(self.arena.weights)
        if not switch_at:
            self._take_over()

    def advance_to(self, step: int) -> bool:
        begins = self.kind == "adamw" and step > self.switch_at
        if begins:
            self._take_over()
        return begins

    def _take_over(self) -> None:
        self.kind = "muon"
        self._begin_at(self._border)
        if self.settings.row_beta:
            kind = {"dtype": self.arena.weights.dtype, "device": self.arena.weights.device}
            self._squares = [torch.zeros(stack.count, stack.rows, **kind) for stack in self.stacks]

    def routing(self) -> list[Route]:
        """One row per parameter. Where Muon comes later, its matrices are AdamW's until then, and have its numbers."""
        settings, routes = self.settings, []
        for route in super().routing():
            if route.parameter in self._matrices:
                pieces = tuple((rows, route.shape[-1]) for rows in self._matrices[route.parameter])
                pieces *= math.prod(route.shape[:-2])
                if self.kind == "muon":
                    route = route._replace(group="muon", lr_factor=settings.lr_factor,
                                           weight_decay=settings.weight_decay, pieces=pieces)
                else:
                    route = route._replace(group=f"adamw, from {self.switch_at + 1} muon", pieces=pieces)
            routes.append(route)
        return routes

    def _move(self) -> None:
        super()._move()
        if self.kind == "adamw":
            return
        arena, settings, own = self.arena, self.settings, slice(0, self._border)
        weights, working = arena.weights, arena.working
        # bfloat16 is what orthogonalising needs (Jordan et al. 2024), where the device multiplies it faster.
        dtype = torch.bfloat16 if working is not None and working.itemsize == 2 else weights.dtype
        kernels.muon.step(weights[own], arena.grads[own], self.exp_avg[own], self.stacks, self.control,
                          None if working is None else working[own], self._squares, lr_factor=settings.lr_factor,
                          decay=settings.weight_decay, beta=settings.momentum, row_beta=settings.row_beta,
                          nesterov=settings.nesterov, coefficients=self.coefficients, margin=self.margin, dtype=dtype)

    def _buffers(self) -> list[torch.Tensor]:
        return [*super()._buffers(), *(self._squares or [])]

    def state(self) -> dict[str, torch.Tensor]:
        """Views, as AdamW's; Muon's momentum is `exp_avg.<parameter>`; NorMuon's rows by the place of their stack."""
        return {**super().state(), **{f"row_squares.{i}": rows for i, rows in enumerate(self._squares or [])}}

    def load_state(self, state: dict[str, torch.Tensor] | None, updates: int) -> None:
        """Take over what `state` gave, before or after the switch. UserError when it does not fit."""
        adams = state is None or any(f"exp_avg_sq.{name}" in state for name in self._matrices)
        if self.kind == "adamw" and not adams:
            self._take_over()
        super().load_state(state, updates)
