"""The kinds of part that a config can name. A new architecture is one file with one class, and one line here.

An attention or feed-forward part takes the config, holds its own norm and parameters, and adds its result to the
residual stream: `forward(x, doc_start)` for training and `step(x, cache, layer)` for decoding with a cache.
"""

from __future__ import annotations

from engine.errors import UserError
from engine.module import Module
from models.attention import GroupedQueryAttention
from models.config import ModelConfig
from models.feed_forward import SwiGLU

ATTENTION: dict[str, type[Module]] = {"grouped_query": GroupedQueryAttention}
FEED_FORWARD: dict[str, type[Module]] = {"swiglu": SwiGLU}


def attention(config: ModelConfig) -> Module:
    """The attention part that `config.attention` names."""
    return _named(ATTENTION, "attention", config.attention)(config)


def feed_forward(config: ModelConfig) -> Module:
    """The feed-forward part that `config.feed_forward` names."""
    return _named(FEED_FORWARD, "feed_forward", config.feed_forward)(config)


def _named(kinds: dict[str, type[Module]], setting: str, name: str) -> type[Module]:
    if name not in kinds:
        raise UserError(f"model.{setting} must be one of {', '.join(kinds)}: got {name!r}")
    return kinds[name]
