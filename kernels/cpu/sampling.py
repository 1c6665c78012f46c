"""From logits to the next token. Everything is float64 NumPy."""

from __future__ import annotations

import numpy as np
import torch

from .. import memory
from .dropout import uniform


def probabilities(logits: torch.Tensor, context: torch.Tensor | None = None, **settings: float) -> torch.Tensor:
    result = memory.empty(logits.shape, torch.float64)
    for i, row in enumerate(logits.numpy()):
        result.numpy()[i] = _probabilities(row, None if context is None else context[i].numpy(), **settings)
    return result


def _probabilities(logits: np.ndarray, context: np.ndarray | None, *, temperature: float = 1.0, top_k: int = 0,
                   top_p: float = 1.0, repetition_penalty: float = 1.0) -> np.ndarray:
    scores = np.array(logits, dtype=np.float64)
    if not np.isfinite(scores).all():
        return np.full_like(scores, np.nan)
    if repetition_penalty != 1.0 and context is not None:
        seen = np.unique(context)
        seen = seen[(seen >= 0) & (seen < len(scores))]
        factor = np.where(scores[seen] > 0.0, 1.0 / repetition_penalty, repetition_penalty)
        scores[seen] *= factor
    if temperature == 0.0:
        return np.eye(1, len(scores), int(scores.argmax()))[0]
    with np.errstate(over="ignore"):
        scores = (scores - scores.max()) / temperature
    order = np.argsort(-scores, kind="stable")
    if top_k:
        scores[order[top_k:]] = -np.inf
    weights = np.exp(scores)
    weights /= weights.sum()
    if top_p < 1.0:
        before = np.cumsum(weights[order]) - weights[order]
        weights[order[before >= top_p]] = 0.0
        weights /= weights.sum()
    return weights


def draw(weights: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    ids = memory.empty((len(weights),), torch.int64)
    for i, (row, number) in enumerate(zip(weights.numpy(), u.numpy())):
        cumulative = np.cumsum(row)
        index = int(np.searchsorted(cumulative, number * cumulative[-1], side="right"))
        ids[i] = min(index, int(np.flatnonzero(row)[-1])) if cumulative[-1] > 0 else -1
    return ids


def sample(logits: torch.Tensor, seed: int, offset: int | torch.Tensor, context: torch.Tensor | None = None,
           **settings: float) -> torch.Tensor:
    weights = probabilities(logits, context, **settings)
    return draw(weights, uniform(weights[:, 0], seed, int(offset)))
