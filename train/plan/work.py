"""Parameters by part of the model, and floating-point operations of a training step."""

from __future__ import annotations

from models import parts
from models.config import ModelConfig


def parameters(c: ModelConfig) -> dict[str, int]:
    """Trained values by part; they add up to `ModelConfig.n_parameters`."""
    return parts.n_parameters(c)


def flops_per_token(c: ModelConfig, seq_len: int) -> dict[str, float]:
    """Of forward and backward in rows of `seq_len` tokens, by part.

    A product with a matrix of n weights takes 2 n FLOPs forward and 4 n backward (Kaplan et al. 2020, arXiv 2001.08361,
    section 2.1). Causal attention takes 2 H D S forward, half of a full score matrix for q k^T and for p v each, and
    2.5 times as much backward, where the scores are made again. Under `recompute` the layers' forward pass counts
    twice.
    """
    counts = parameters(c)
    layers = counts["attention"] + counts["feed-forward"]
    scores = float(c.n_layers * c.n_heads * c.head_dim * seq_len)
    found = {"attention": 6.0 * counts["attention"] + 7.0 * scores,
             "feed-forward": 6.0 * counts["feed-forward"],
             "head": 6.0 * c.vocab_size * c.d_model}
    if c.recompute:
        found["recomputed"] = 2.0 * layers + 2.0 * scores
    return found
