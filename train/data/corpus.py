"""From files to a training part and a validation part."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from engine.errors import UserError
from tokenizer import Tokenizer
from tokenizer.documents import ReadOptions, Source, find_sources, standard_library_files
from train.data.cache import cached_shards
from train.data.shards import Shards
from train.data.split import check_fraction, held_out, kept_bytes

Paths = Iterable[str | os.PathLike]
COUNT_TOKENS = 1 << 22


@dataclass(frozen=True)
class Part:
    """Some of a corpus's documents, in its order.

    Attributes:
        starts, lengths: int64 [documents], in tokens of `shards`. A document's last token is the end-of-document one,
            except where a single document was cut in two.
        bytes: of text (UTF-8).
        fingerprint: equal exactly when the parts have the same tokens in the same order.
    """

    shards: Shards
    starts: np.ndarray
    lengths: np.ndarray
    bytes: int
    fingerprint: str

    @property
    def documents(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())


@dataclass(frozen=True)
class Corpus:
    """`validation` is None when none was asked for (`val_fraction` 0 and no `val_paths`)."""

    train: Part
    validation: Part | None


def prepare(
    paths: Paths,
    tokenizer: Tokenizer,
    text_field: str = "text",
    document_separator: str | None = None,
    val_paths: Paths = (),
    val_fraction: float = 0.02,
    cache_dir: str | os.PathLike[str] | None = None,
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
    train_tokenizer: Tokenizer | None = None,
) -> Corpus:
    """Tokenises files once, into a cache, and holds out documents for validation.

    `train.data.split` says which documents are held out: it depends on their texts alone, whatever the tokenizer. A
    corpus of one document is cut: its last `val_fraction` is held out.

    Args:
        paths: files and folders (see `find_sources`); empty for the Python standard library's own sources.
        text_field: of JSON rows, and the column of Parquet files.
        document_separator: cuts text files into documents; it belongs to none of them.
        val_paths: files and folders to validate on; then nothing is held out of `paths`.
        val_fraction: 0 <= val_fraction < 1, expected share of the documents.
        cache_dir: default $LOAM_CACHE, else $XDG_CACHE_HOME/loam, else ~/.cache/loam.
        workers: processes to tokenise with; 0 lets the size of the corpus decide.
        on_progress: told (bytes read, bytes in all) as tokenising goes on; never called when the cache has it all.
        train_tokenizer: for the training part, where that is to be cut otherwise than the validation part.

    Raises:
        UserError: a mistake in the arguments, or a cache that cannot be written, in one line.
        TokenizerError: a mistake in the files.
    """
    check_fraction(val_fraction)
    paths, val_paths = list(paths), list(val_paths)

    def read(some: Paths, with_tokenizer: Tokenizer) -> Part:
        return prepare_part(some, with_tokenizer, text_field, document_separator, cache_dir, workers, on_progress)

    corpus = _split(read(paths, train_tokenizer or tokenizer), 0.0 if val_paths else val_fraction, tokenizer)
    if val_paths:
        return Corpus(corpus.train, read(val_paths, tokenizer))
    if train_tokenizer and corpus.validation:
        return Corpus(corpus.train, _split(read(paths, tokenizer), val_fraction, tokenizer).validation)
    return corpus


def corpus_sources(paths: Paths) -> list[Source]:
    """The files of a corpus; without `paths` the Python standard library's own sources. TokenizerError as
    `find_sources`."""
    return find_sources(list(paths) or standard_library_files())


def prepare_part(
    paths: Paths,
    tokenizer: Tokenizer,
    text_field: str = "text",
    document_separator: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Part:
    """All documents of files and folders, in order; arguments and errors as `prepare`."""
    if document_separator == "":
        raise UserError("the document separator must not be empty")
    options = ReadOptions(text_field, document_separator)
    shards = cached_shards(corpus_sources(paths), tokenizer, options, cache_dir, workers, on_progress)
    starts = np.cumsum(shards.lengths) - shards.lengths
    return _part(shards, starts, shards.lengths, int(shards.text_bytes.sum()))


def _split(whole: Part, fraction: float, tokenizer: Tokenizer) -> Corpus:
    if fraction == 0:
        return Corpus(whole, None)
    if whole.documents == 1:
        return _cut(whole, fraction, tokenizer)
    chosen = held_out(whole.shards.hashes, whole.shards.text_bytes, fraction)
    return Corpus(_select(whole, ~chosen), _select(whole, chosen))


def _part(shards: Shards, starts: np.ndarray, lengths: np.ndarray, text_bytes: int) -> Part:
    digest = hashlib.blake2b(shards.folder.name.encode(), digest_size=16)
    digest.update(np.ascontiguousarray(starts))
    digest.update(np.ascontiguousarray(lengths))
    return Part(shards, starts, lengths, text_bytes, digest.hexdigest())


def _select(whole: Part, chosen: np.ndarray) -> Part:
    text_bytes = int(whole.shards.text_bytes[chosen].sum())
    return _part(whole.shards, whole.starts[chosen], whole.lengths[chosen], text_bytes)


def _cut(whole: Part, fraction: float, tokenizer: Tokenizer) -> Corpus:
    """Tokens that begin within the first `kept_bytes` are for training, the others for validation; each gets one."""
    tokens, per_token = whole.tokens, tokenizer.token_bytes()
    room = whole.bytes - kept_bytes(whole.bytes, fraction)
    start, size, count, fitting = tokens, 0, 0, 0
    while start > 0 and fitting == count:
        count = min(COUNT_TOKENS, start)
        ids = whole.shards.gather(np.array([start - count]), np.array([count]))
        sums = size + np.cumsum(per_token[ids[::-1]])
        fitting = int(np.searchsorted(sums, room, side="right"))
        start, size = start - fitting, int(sums[fitting - 1]) if fitting else size
    if start == 0:
        start, size = 1, size - int(per_token[whole.shards.gather(np.array([0]), np.array([1]))[0]])
    sizes = ((0, start, whole.bytes - size), (start, tokens - start, size))
    return Corpus(*(_part(whole.shards, np.array([start]), np.array([n]), size) for start, n, size in sizes))
