"""Time to read the text of a run: tokenising it once, and cutting batches out of it at each step."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import tokenizer as tokenizers
from tokenizer import ByteTokenizer, Tokenizer
from tokenizer.documents import ReadOptions, iter_documents
from train.config import Config
from train.data import Batches, TokenStream, corpus_sources, parse_sources, prepare
from train.data.vocabulary import Recipe, cached_vocabulary
from train.inputs import source_shares
from train.sections import BYTES

SAMPLE_BYTES = 1_000_000
BATCHES_TIMED = 5
MB = 1_000_000


class Reading(NamedTuple):
    """`file_bytes` of all training files; `tokenising` in seconds, on one process, of all of them, by `rate`, bytes of
    text a second; `bytes_per_token` of the sample; `batch` in seconds a step, beside the computing; `vocabulary`:
    whether it is there already."""

    file_bytes: int
    tokenising: float
    rate: float
    bytes_per_token: float
    batch: float
    vocabulary: bool


class _NotThere(Exception):
    pass


def planned_vocabulary(config: Config) -> Tokenizer | None:
    """The vocabulary of a run where it need not be trained first.

    Raises:
        UserError, TokenizerError: no text, or no such vocabulary.
    """
    data, wanted = config.data, config.tokenizer
    if wanted.path and wanted.path != BYTES:
        return tokenizers.load(wanted.path)
    if wanted.path or not wanted.vocab_size:
        return ByteTokenizer()

    def not_there(_progress) -> None:
        raise _NotThere

    recipe = Recipe(source_shares(data.paths), _options(config), 0.0 if data.val_data else data.val_fraction,
                    round(wanted.sample_mb * MB), wanted.training())
    try:
        return cached_vocabulary(recipe, data.cache_dir or None, not_there)
    except _NotThere:
        return None


def measure_reading(config: Config, tokenizer: Tokenizer | None, rows: int) -> Reading:
    """Tokenise the first megabyte of the text and cut batches of `rows` rows out of it. Compressed files count with the
    size that they have on the disk. Without a tokenizer bytes are read instead, which takes less."""
    data, paths = config.data, _paths(config)
    tokenizer_used = tokenizer or ByteTokenizer()
    with tempfile.TemporaryDirectory(prefix="loam-plan-") as folder:
        file = Path(folder) / "sample.txt"
        start = time.perf_counter()
        text = _first_text(paths, config)
        read = time.perf_counter() - start
        file.write_text(text, encoding="utf-8")
        start = time.perf_counter()
        part = prepare([file], tokenizer_used, val_fraction=0.0, cache_dir=Path(folder) / "cache", workers=1).train
        rate = len(text.encode()) / (time.perf_counter() - start + read)
        batches = Batches(TokenStream(part, data.window or data.seq_len), data.seq_len, tokenizer_used, data.doc_mask)
        start = time.perf_counter()
        for step in range(BATCHES_TIMED):
            batches.batch(step * rows * data.seq_len, rows)
        batch = (time.perf_counter() - start) / BATCHES_TIMED
    total = sum(source.size for source in corpus_sources(paths))
    return Reading(total, total / rate, rate, part.bytes / part.tokens, batch, tokenizer is not None)


def _first_text(paths: list[str], config: Config) -> str:
    parts, size = [], 0
    options = _options(config)
    sources = [source.path for source in corpus_sources(paths)]
    for text, _ in iter_documents(sources, options.text_field, options.document_separator):
        parts.append(text)
        size += len(text)
        if size >= SAMPLE_BYTES:
            break
    return "\n".join(parts) or "\n"


def _options(config: Config) -> ReadOptions:
    return ReadOptions(config.data.text_field, config.data.document_separator or None)


def _paths(config: Config) -> list[str]:
    return [path for source in parse_sources(config.data.paths) for path in source.paths]
