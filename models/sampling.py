"""From logits to the next token, in float64 on the CPU, so that a seed gives the same text whatever made the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

import kernels
from engine.errors import UserError

NOT_FINITE = "the model's logits are not finite: its weights are damaged"


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The filters apply in the order of the fields below, `temperature` second.

    repetition_penalty: above 1 makes ids already in the context less likely (CTRL, arXiv 1909.05858, section 4.1).
    temperature: divides the logits; 0 always takes the likeliest id.
    top_k: keeps the k likeliest ids; 0 keeps all.
    top_p: of these keeps the fewest ids whose probabilities sum to at least p (arXiv 1904.09751, section 3.1).
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.repetition_penalty > 0.0:
            raise UserError(f"repetition penalty must be above 0: got {self.repetition_penalty}")
        if not self.temperature >= 0.0:
            raise UserError(f"temperature must be at least 0: got {self.temperature}")
        if self.top_k < 0:
            raise UserError(f"top-k must be at least 0: got {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"top-p must be above 0 and at most 1: got {self.top_p}")


def probabilities(logits: np.ndarray, context: Sequence[int], sampling: Sampling) -> np.ndarray:
    """Probability of every id being next.

    Args:
        logits: floats [vocab_size].
        context: ids the model has seen, for the repetition penalty.
    Returns:
        float64 [vocab_size] with sum 1. Equal logits are kept or dropped lower id first.
    """
    scores = torch.from_numpy(np.array(logits, dtype=np.float64))[None]
    seen = torch.from_numpy(np.array(context, dtype=np.int64))[None]
    weights = kernels.sampling.probabilities(
        scores, seen, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p,
        repetition_penalty=sampling.repetition_penalty)[0].numpy()
    if np.isnan(weights[0]):
        raise FloatingPointError(NOT_FINITE)
    return weights


def draw(weights: np.ndarray, rng: np.random.Generator) -> int:
    """One id by inverting the cumulative distribution at one uniform number."""
    number = torch.tensor([rng.random()], dtype=torch.float64)
    return int(kernels.sampling.draw(torch.from_numpy(weights)[None], number))
