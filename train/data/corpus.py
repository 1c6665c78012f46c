"""From files to a training part and a validation part."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from engine.errors import UserError
from tokenizer import Tokenizer
from tokenizer.documents import ReadOptions, find_sources, standard_library_files
from train.data.cache import cached_shards
from train.data.shards import Shards

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
) -> Corpus:
    """Tokenises files once, into a cache, and holds out documents for validation.

    A document is held out when the 64-bit hash of its text falls below `val_fraction`: which side it is on depends on
    nothing else, and equal documents are on the same side. Where that leaves a part empty or holds out more than half
    of the tokens (few documents, very unequal ones), the one document whose length comes closest to `val_fraction` of
    all is held out instead. A corpus of one document is cut: its last `val_fraction` is held out.

    Args:
        paths: files and folders (see `find_sources`); empty for the Python standard library's own sources.
        text_field: of JSON rows, and the column of Parquet files.
        document_separator: cuts text files into documents; it belongs to none of them.
        val_paths: files and folders to validate on; then nothing is held out of `paths`.
        val_fraction: 0 <= val_fraction < 1, expected share of the documents.
        cache_dir: default $LOAM_CACHE, else $XDG_CACHE_HOME/loam, else ~/.cache/loam.
        workers: processes to tokenise with; 0 lets the size of the corpus decide.
        on_progress: told (bytes read, bytes in all) as tokenising goes on; never called when the cache has it all.

    Raises:
        UserError: a mistake in the arguments or the files, or a cache that cannot be written, in one line.
    """
    if not 0 <= val_fraction < 1:
        raise UserError(f"the validation fraction must be at least 0 and below 1, got {val_fraction}")
    paths, val_paths = list(paths), list(val_paths)
    rest = (text_field, document_separator, cache_dir, workers, on_progress)
    whole = prepare_part(paths or standard_library_files(), tokenizer, *rest)
    if val_paths:
        return Corpus(whole, prepare_part(val_paths, tokenizer, *rest))
    if val_fraction == 0:
        return Corpus(whole, None)
    if whole.documents == 1:
        return _cut(whole, val_fraction, tokenizer)
    held_out = _held_out(whole.shards.hashes, whole.lengths, val_fraction)
    return Corpus(_select(whole, ~held_out), _select(whole, held_out))


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
    shards = cached_shards(find_sources(paths), tokenizer, options, cache_dir, workers, on_progress)
    starts = np.cumsum(shards.lengths) - shards.lengths
    return _part(shards, starts, shards.lengths, int(shards.text_bytes.sum()))


def _part(shards: Shards, starts: np.ndarray, lengths: np.ndarray, text_bytes: int) -> Part:
    digest = hashlib.blake2b(shards.folder.name.encode(), digest_size=16)
    digest.update(np.ascontiguousarray(starts))
    digest.update(np.ascontiguousarray(lengths))
    return Part(shards, starts, lengths, text_bytes, digest.hexdigest())


def _select(whole: Part, chosen: np.ndarray) -> Part:
    text_bytes = int(whole.shards.text_bytes[chosen].sum())
    return _part(whole.shards, whole.starts[chosen], whole.lengths[chosen], text_bytes)


def _held_out(hashes: np.ndarray, lengths: np.ndarray, fraction: float) -> np.ndarray:
    """bool [documents], at least two of them: True for validation. See `prepare`."""
    held_out = hashes < np.uint64(fraction * 2.0**64)
    tokens = int(lengths.sum())
    if held_out.any() and not held_out.all() and lengths[held_out].sum() * 2 <= tokens:
        return held_out
    # Ties are broken by hash, so that the order of the files plays no part; equal documents go together.
    nearest = np.lexsort((hashes, np.abs(lengths - fraction * tokens)))[0]
    held_out = hashes == hashes[nearest]
    if held_out.all():
        held_out[:] = False
        held_out[-1] = True
    return held_out


def _cut(whole: Part, fraction: float, tokenizer: Tokenizer) -> Corpus:
    tokens = whole.tokens
    kept = min(max(int((1 - fraction) * (tokens - 1)), 1), tokens - 1)
    per_token = tokenizer.token_bytes()
    held_out_bytes = 0
    for start in range(kept, tokens, COUNT_TOKENS):
        count = min(COUNT_TOKENS, tokens - start)
        held_out_bytes += int(per_token[whole.shards.gather(np.array([start]), np.array([count]))].sum())
    sizes = ((0, kept, whole.bytes - held_out_bytes), (kept, tokens - kept, held_out_bytes))
    return Corpus(*(_part(whole.shards, np.array([start]), np.array([n]), size) for start, n, size in sizes))
