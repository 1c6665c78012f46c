"""Parameters by part of the model, and floating-point operations of a training step."""

from __future__ import annotations

from models import parts
from models.config import ModelConfig
from train.config import Config


def parameters(c: ModelConfig, active: bool = False) -> dict[str, int]:
    """Trained values by part; they add up to `ModelConfig.n_parameters`. With `active`, of those that a token meets."""
    return parts.n_parameters(c, active)


def flops_per_token(c: ModelConfig, seq_len: int, counted_first: bool = False) -> dict[str, float]:
    """Of forward and backward in rows of `seq_len` tokens, by part.

    A product with a matrix of n weights takes 2 n FLOPs forward and 4 n backward (Kaplan et al. 2020, arXiv 2001.08361,
    section 2.1). Of experts those count that a token goes to, in each step of a chain. Causal attention takes 2 H D S
    forward, half of a full score matrix for q k^T and for p v each, and 2.5 times as much backward, where the scores
    are made again. Under `recompute` the layers' forward pass counts twice.

    Args:
        counted_first: with a forward pass of the layers that counts the tokens of each expert (models.balance).
    """
    counts, experts = parameters(c), _experts_weights(c)
    feed_forward = experts.pop("feed-forward", counts["feed-forward"])
    layers = counts["attention"] + feed_forward + sum(experts.values())
    scores = float(c.n_layers * c.n_heads * c.head_dim * seq_len)
    found = {"attention": 6.0 * counts["attention"] + 7.0 * scores, "feed-forward": 6.0 * feed_forward,
             **{name: 6.0 * weights for name, weights in experts.items()}, "head": 6.0 * c.vocab_size * c.d_model}
    if c.recompute:
        found["recomputed"] = 2.0 * layers + 2.0 * scores
    if counted_first:
        found["counting tokens"] = 2.0 * layers + 2.0 * scores
    return found


def counts_first(config: Config) -> bool:
    """Whether the steps of a run begin with a pass that counts the tokens of each expert."""
    experts, data = config.model.experts, config.data
    balanced = experts.balance == "global" and experts.balance_weight > 0.0 and experts.count == "first_pass"
    return config.model.feed_forward == "moe" and balanced and 0 < data.micro_tokens < data.batch_tokens


def _experts_weights(c: ModelConfig) -> dict[str, int]:
    """Of models with experts: weights of the products of a token, those that it meets twice counted twice."""
    if c.feed_forward != "moe":
        return {}
    experts, with_experts = c.experts, sum(c.experts.here(layer) for layer in range(c.n_layers))
    each = experts.chain * (experts.top_k + experts.shared) * c.expert_width
    return {"feed-forward": 3 * c.d_model * (with_experts * each + (c.n_layers - with_experts) * c.d_ff),
            "routers": with_experts * experts.chain * experts.n * c.d_model}
