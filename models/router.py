"""Which experts a token goes to, and with what weight."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

import kernels
from engine import Buffer, Module, Parameter, Tensor, ops, random
from models.cache import project
from models.config import ModelConfig

SMALLEST_SUM = 1e-20
"""Added to a sum of sigmoid scores before dividing, as kernels.routing does."""


class Routing(NamedTuple):
    """What a router says of tokens: `gates` (..., k) and `experts` int64 (..., k) of those chosen, `scores` and
    `logits` (..., experts) of all."""

    gates: Tensor
    experts: Tensor
    scores: Tensor
    logits: Tensor


class Router(Module):
    """Scores of the experts for each token, and the choice of the best, in float32 whatever the model computes with.

    Its rows belong to one expert each, like those of the head to one token, so AdamW moves them and not Muon.

    Attributes:
        weight: (experts, d_model).
        bias: (experts,), added to the scores for the choice alone (arXiv 2408.15664, equation 3), or None.
    """

    def __init__(self, config: ModelConfig):
        self.settings = config.experts
        self.weight = Parameter(kernels.empty((self.settings.n, config.d_model)), precise=True)
        self.bias = None
        if self.settings.bias_rate:
            self.bias = Buffer(kernels.zeros((self.settings.n,), getattr(torch, config.dtype)))

    def packed(self, per_head: bool) -> dict[str, tuple[int, ...]]:
        """No matrix for Muon."""
        return {"weight": ()}

    def forward(self, h: Tensor) -> Routing:
        """h [..., d_model]."""
        settings = self.settings
        logits = ops.router_logits(h, self.weight, 1.0 / settings.temperature)
        noise = self._noise(logits) if settings.sampled and self.training else None
        bias = None if self.bias is None else self.bias.data
        gates, scores, experts = ops.route(logits, settings.top_k, settings.score, settings.normalised, bias, noise)
        return Routing(gates, experts, scores, logits)

    def _noise(self, logits: Tensor) -> torch.Tensor:
        """Gumbel noise -ln(-ln u), of a token the same however the batch is cut (arXiv 1903.06059, section 3)."""
        seed, first_token, numbers = random.next_stream(self.settings.n)
        first = (Tensor(first_token) * numbers).data if isinstance(first_token, torch.Tensor) else first_token * numbers
        uniform = Tensor(kernels.dropout.uniform(logits.data, seed, first))
        return ops.to(-ops.log(-ops.log(uniform)), logits.dtype).data

    def step(self, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gates and experts [T, k] of h [T, d_model], as `forward` gives them in evaluation."""
        settings, kind = self.settings, h.dtype.type
        logits = project(h, self.weight) * kind(1.0 / settings.temperature)
        if settings.score == "softmax":
            scores = _softmax(logits)
        else:
            scores = kind(0.5) * (1 + np.tanh(kind(0.5) * logits))
        ranked = logits if self.bias is None else scores + self.bias.numpy()
        experts = np.argsort(-ranked, axis=-1, kind="stable")[:, : settings.top_k]
        gates = np.take_along_axis(scores, experts, -1)
        if settings.normalised and settings.score == "softmax":
            gates = _softmax(np.take_along_axis(logits, experts, -1))
        elif settings.normalised:
            gates = gates / (gates.sum(axis=-1, keepdims=True) + kind(SMALLEST_SUM))
        return gates, experts


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
