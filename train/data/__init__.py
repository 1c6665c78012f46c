"""From files to batches: documents -> vocabulary and shards (cached) -> parts -> token stream -> batches."""

from train.data.batches import Batch, Batches, Prefetch
from train.data.corpus import Corpus, Part, corpus_sources, prepare, prepare_part
from train.data.mixture import MixedStream, MixtureSource, parse_sources
from train.data.stream import TokenStream

__all__ = [
    "Batch",
    "Batches",
    "Corpus",
    "MixedStream",
    "MixtureSource",
    "Part",
    "Prefetch",
    "TokenStream",
    "corpus_sources",
    "parse_sources",
    "prepare",
    "prepare_part",
]
