"""The mixture of experts: every token goes to a few SwiGLU experts of many, and to the shared ones."""

from __future__ import annotations

import numpy as np
import torch

import kernels
from engine import Dropout, Linear, Module, Parameter, Tensor, ops
from models.balance import Tally
from models.cache import KVCache, project, silu
from models.config import ModelConfig
from models.norms import before_part, normed
from models.router import Router


class MixtureOfExperts(Module):
    """x + sum over the chosen e of gate_e expert_e(h) + shared(h), h = norm(x) (arXiv 1701.06538; shared experts: arXiv
    2401.06066, section 3.2). Every chosen expert runs: there is no capacity, and no token is dropped.

    A chain of C steps (arXiv 2506.18945) has one gate for each step and the same experts in all:
        h_t = h_(t-1) + sum over the chosen e of gate_e^(t) expert_e(h_(t-1)) + shared(h_(t-1)),  h_0 = norm(x)
    and h_C is what goes on in place of x, or x + h_C with `outer_residual`.

    The shared experts are one of their total width, which is the same function. An expert that no token came to has a
    gradient of zero, as has every value that a loss does not reach.

    Attributes:
        gate_up, down: the routed experts' matrices, (experts, 2 width, d_model) and (experts, d_model, width).
    """

    residual_outputs = ("down", "shared_down.weight")

    def __init__(self, config: ModelConfig):
        self.config = config
        n, width, shared = config.experts.n, config.expert_width, config.experts.shared * config.expert_width
        self.norm = before_part(config)
        self.routers = [Router(config) for _ in range(config.experts.chain)]
        self.gate_up = Parameter(kernels.zeros((n, 2 * width, config.d_model)))
        self.down = Parameter(kernels.zeros((n, config.d_model, width)))
        self.shared_gate_up = Linear(config.d_model, 2 * shared) if shared else None
        self.shared_down = Linear(shared, config.d_model) if shared else None
        self.dropout = Dropout(config.dropout)

    @staticmethod
    def n_parameters(config: ModelConfig) -> dict[str, int]:
        """Trained values of one."""
        return _counted(config, config.experts.n)

    @staticmethod
    def n_active(config: ModelConfig) -> dict[str, int]:
        """Of these, what a token meets; in a chain, when no two steps choose the same expert."""
        return _counted(config, min(config.experts.n, config.experts.chain * config.experts.top_k))

    def packed(self, per_head: bool) -> dict[str, tuple[int, ...]]:
        """The rows of each matrix in a parameter that holds several, by the parameter's name; of each expert's."""
        width = self.config.expert_width
        found = {"gate_up": (width,) * 2}
        if self.shared_down is not None:
            found["shared_gate_up.weight"] = (self.config.experts.shared * width,) * 2
        return found

    def forward(self, x: Tensor, doc_start: torch.Tensor | None = None, tally: Tally | None = None):
        """x [B, T, d_model] -> [B, T, d_model]; every token by itself, so documents do not matter.

        Args:
            tally: counts the tokens of each expert; then a tuple of the result and the tally's tensors.
        """
        h = x if self.norm is None else self.norm(x)
        counted: tuple[Tensor, ...] = ()
        y = x
        for router in self.routers:
            routing = router(h)
            if tally is not None:
                counted += tally.of(routing)
            y = self._mixed(h, h if len(self.routers) > 1 else x, routing.gates, routing.experts)
            h = y
        if len(self.routers) > 1 and self.config.experts.outer_residual:
            y = x + y
        return y if tally is None else (y, *counted)

    def _mixed(self, h: Tensor, residual: Tensor, gates: Tensor, experts: Tensor) -> Tensor:
        dropped = self.training and self.config.dropout
        y = ops.experts(h, gates, experts, self.gate_up, self.down, None if dropped else residual)
        if self.shared_down is not None:
            y = ops.swiglu_linear(self.shared_gate_up(h), self.shared_down.weight, y)
        return residual + self.dropout(y) if dropped else y

    def step(self, x: np.ndarray, cache: KVCache, layer: int) -> np.ndarray:
        """x [T, d_model] -> [T, d_model]; nothing to remember."""
        h = normed(self.norm, x)
        if len(self.routers) == 1:
            return x + self._mixed_step(h, *self.routers[0].step(h))
        for router in self.routers:
            h = h + self._mixed_step(h, *router.step(h))
        return x + h if self.config.experts.outer_residual else h

    def _mixed_step(self, h: np.ndarray, gates: np.ndarray, experts: np.ndarray) -> np.ndarray:
        y = np.zeros_like(h)
        gate_up, down = self.gate_up.data.numpy(), self.down.data.numpy()
        for expert in np.unique(experts):
            rows, choices = np.nonzero(experts == expert)
            y[rows] += gates[rows, choices, None] * (_activated(h[rows] @ gate_up[expert].T) @ down[expert].T)
        if self.shared_down is not None:
            y += project(_activated(project(h, self.shared_gate_up.weight)), self.shared_down.weight)
        return y


def _activated(h: np.ndarray) -> np.ndarray:
    width = h.shape[-1] // 2
    return silu(h[:, :width]) * h[:, width:]


def _counted(config: ModelConfig, routed: int) -> dict[str, int]:
    settings = config.experts
    return {"feed-forward": 3 * config.d_model * config.expert_width * (routed + settings.shared),
            "routers": settings.chain * settings.n * config.d_model}
