"""The kinds of part that a config can name. A new architecture is one file with one class, and one line here.

An attention or feed-forward part takes the config, holds its own norm and parameters, and adds its result to the
residual stream: `forward(x, doc_start)` for training and `step(x, cache, layer)` for decoding with a cache.
"""

from __future__ import annotations

from engine.errors import UserError
from engine.module import Module
from models import positions
from models.attention import GroupedQueryAttention
from models.config import ModelConfig
from models.experts import MixtureOfExperts
from models.feed_forward import SwiGLU
from models.jerry_attention import JerryAttention
from models.relu_feed_forward import ReLUFeedForward

ATTENTION: dict[str, type[Module]] = {"grouped_query": GroupedQueryAttention, "jerry": JerryAttention}
FEED_FORWARD: dict[str, type[Module]] = {"swiglu": SwiGLU, "relu": ReLUFeedForward, "moe": MixtureOfExperts}


def attention(config: ModelConfig) -> Module:
    """The attention part that `config.attention` names."""
    return _named(ATTENTION, "attention", config.attention)(config)


def feed_forward(config: ModelConfig, layer: int) -> Module:
    """The feed-forward part that `config.feed_forward` names for a layer, counted from 0."""
    return _named(FEED_FORWARD, "feed_forward", config.feed_forward_of(layer))(config)


def n_parameters(config: ModelConfig, active: bool = False) -> dict[str, int]:
    """Exact numbers of trained values by kind; a tied head counts once. With `active`, of those that a token meets."""
    c, outer = config, 2 if config.parametrisation == "affine" else 0
    found = {"embedding": c.vocab_size * c.d_model, "positions": positions.n_parameters(c)}
    used = [_named(ATTENTION, "attention", c.attention)] * c.n_layers
    used += [_named(FEED_FORWARD, "feed_forward", c.feed_forward_of(layer)) for layer in range(c.n_layers)]
    for part in used:
        count_values = part.n_active if active and hasattr(part, "n_active") else part.n_parameters
        for kind, count in count_values(c).items():
            found[kind] = found.get(kind, 0) + count
    norms_of_a_layer = 2 if c.block == "pre_norm" else 1
    found["norms"] = found.get("norms", 0) + (c.n_layers * norms_of_a_layer + c.final_norm) * c.d_model
    found["scalars"] = found.get("scalars", 0) + 2 * outer
    found["head"] = 0 if c.tie_embeddings else c.vocab_size * c.d_model
    return {kind: count for kind, count in found.items() if count}


def _named(kinds: dict[str, type[Module]], setting: str, name: str) -> type[Module]:
    if name not in kinds:
        raise UserError(f"model.{setting} must be one of {', '.join(kinds)}: got {name!r}")
    return kinds[name]
