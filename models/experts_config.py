"""A mixture of experts: settings and their rules."""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.errors import UserError
from models.settings import check_keys, check_types

PREFIX = "model.experts."
CHOICES = {"score": ("softmax", "sigmoid"), "balance": ("none", "micro", "global", "sequence"),
           "load": ("hard", "soft"), "count": ("first_pass", "running")}
_LEAST = {"n": 1, "top_k": 1, "width": 0, "shared": 0, "first_dense": 0, "every": 1, "chain": 1}
_FROM_ZERO = ("balance_weight", "z_loss", "bias_rate")


@dataclass(frozen=True)
class ExpertsConfig:
    """The layers of `feed_forward` "moe" (models/experts.py) and their balance (models/balance.py).

    Attributes:
        n, top_k: routed experts of a layer, and how many of them a token goes to.
        width: inner width of an expert; 0: the model's d_ff.
        shared: experts of the same width that every token goes to.
        score: what the router's logits become: "softmax" or "sigmoid".
        temperature: divides the logits.
        sampled: in training the experts are drawn by their softmax probabilities (Gumbel noise), not the best taken.
        normalised: a token's gates add up to 1; else they are the scores.
        first_dense, every: so many layers at the beginning are dense, and of the others all but every `every`-th.
        chain: steps of a chain of experts (arXiv 2506.18945); 1: none.
        outer_residual: whether the stream is added to what a chain of several steps gives.
        balance: auxiliary loss: "none", "micro", "global" or "sequence", that on whose tokens experts are counted.
        balance_weight, z_loss: of that loss and of the router's z-loss.
        load: how tokens are counted in loss and bias: "hard", those chosen, or "soft", the scores' shares.
        count: with "global", when tokens are counted: in a "first_pass" over the step's micro-batches, which is exact,
            or "running", with those that came so far in the step.
        bias_rate: by which the bias of an expert moves after each step (arXiv 2408.15664); 0: there is none.
    """

    n: int = 8
    top_k: int = 2
    width: int = 0
    shared: int = 0
    score: str = "softmax"
    temperature: float = 1.0
    sampled: bool = False
    normalised: bool = True
    first_dense: int = 0
    every: int = 1
    chain: int = 1
    outer_residual: bool = False
    balance: str = "global"
    balance_weight: float = 0.01
    z_loss: float = 0.0
    load: str = "hard"
    count: str = "first_pass"
    bias_rate: float = 0.0

    def __post_init__(self) -> None:
        check_types(self, PREFIX)
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"{PREFIX}{name} must be one of {', '.join(allowed)}: got {getattr(self, name)!r}")
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"{PREFIX}{name} must be at least {least}: got {getattr(self, name)}")
        if self.top_k > self.n:
            raise UserError(f"{PREFIX}top_k must be at most {PREFIX}n ({self.n}): got {self.top_k}")
        if not 0.0 < self.temperature < math.inf:
            raise UserError(f"{PREFIX}temperature must be a finite number above 0: got {self.temperature}")
        for name in _FROM_ZERO:
            if not 0.0 <= getattr(self, name) < math.inf:
                raise UserError(f"{PREFIX}{name} must be a finite number from 0 on: got {getattr(self, name)}")

    @classmethod
    def from_dict(cls, table: dict) -> ExpertsConfig:
        """From a `[model.experts]` table; an unknown key is a UserError."""
        check_keys(cls, table, f"setting '{PREFIX}{{}}'")
        return cls(**table)

    def here(self, layer: int) -> bool:
        """Whether a layer, counted from 0, has experts."""
        return layer >= self.first_dense and (layer - self.first_dense + 1) % self.every == 0

    @property
    def has_loss(self) -> bool:
        """Whether balance adds to the gradients of a loss."""
        return self.z_loss > 0.0 or (self.balance != "none" and self.balance_weight > 0.0)
