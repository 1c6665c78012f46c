"""The kinds of position that a config can name. A new one is one file with one class, and one line here.

Most act in attention and are made anew for each layer; some are added to the stream of embeddings once. "none" is
neither: a causal decoder can tell positions from what a token sees (arXiv 2305.19466).
"""

from __future__ import annotations

from models.config import ModelConfig
from models.positions.absolute import Learned, Sinusoidal, StreamPosition
from models.positions.alibi import ALiBi
from models.positions.dual_chunk import DualChunk
from models.positions.jerry import ReciprocalDistance
from models.positions.none import AttentionPosition
from models.positions.rotary import Rotary

IN_ATTENTION: dict[str, type[AttentionPosition]] = {"rope": Rotary, "jerry": ReciprocalDistance, "alibi": ALiBi}
IN_STREAM: dict[str, type[StreamPosition]] = {"sinusoidal": Sinusoidal, "learned": Learned}
KINDS = (*IN_ATTENTION, *IN_STREAM, "none")


def in_attention(config: ModelConfig) -> AttentionPosition:
    """What a layer's attention does about positions; nothing unless `config.position` is one of IN_ATTENTION."""
    if config.context.kind == "dca":
        return DualChunk(config)
    return IN_ATTENTION.get(config.position, AttentionPosition)(config)


def in_stream(config: ModelConfig) -> StreamPosition | None:
    """What is added to the embeddings, if `config.position` is one of IN_STREAM."""
    kind = IN_STREAM.get(config.position)
    return kind(config) if kind else None


def n_parameters(config: ModelConfig) -> int:
    """Trained values of all positions of a model."""
    if config.position in IN_ATTENTION:
        return config.n_layers * IN_ATTENTION[config.position].n_parameters(config)
    return IN_STREAM[config.position].n_parameters(config) if config.position in IN_STREAM else 0
