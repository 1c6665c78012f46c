"""From files to batches: sources -> shards (cached) -> parts -> token stream -> batches."""

from train.data.batches import Batch, Batches, Prefetch
from train.data.corpus import Corpus, Part, prepare, prepare_part
from train.data.sources import iter_documents, standard_library_files
from train.data.stream import TokenStream

__all__ = [
    "Batch",
    "Batches",
    "Corpus",
    "Part",
    "Prefetch",
    "TokenStream",
    "iter_documents",
    "prepare",
    "prepare_part",
    "standard_library_files",
]
