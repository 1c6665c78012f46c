"""From files to batches: documents -> shards (cached) -> parts -> token stream -> batches."""

from train.data.batches import Batch, Batches, Prefetch
from train.data.corpus import Corpus, Part, prepare, prepare_part
from train.data.stream import TokenStream

__all__ = [
    "Batch",
    "Batches",
    "Corpus",
    "Part",
    "Prefetch",
    "TokenStream",
    "prepare",
    "prepare_part",
]
