"""Documents out of files: .txt, .jsonl, .json, .parquet, compressed or not, and folders of them."""

from tokenizer.documents.files import Advance, Piece, ReadOptions, Source
from tokenizer.documents.readers import read_source
from tokenizer.documents.sources import find_sources, iter_documents, standard_library_files

__all__ = [
    "Advance",
    "Piece",
    "ReadOptions",
    "Source",
    "find_sources",
    "iter_documents",
    "read_source",
    "standard_library_files",
]
