"""Candidates for the vocabulary: words that the text's own byte n-gram model finds in it.

n-grams -> model -> the text cut into words -> words counted. Each arrow is a job over parts of the text or ranges of
keys, so it runs on all workers, its memory is bounded, and a killed training goes on after the last result.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tokenizer.train import language_model, ngrams, words
from tokenizer.train.blocks import PART_BYTES, Part, parts, read
from tokenizer.train.engines import worker_count
from tokenizer.train.language_model import LanguageModel
from tokenizer.train.segmentation import Steps, steps_of, word_starts
from tokenizer.train.settings import Settings
from tokenizer.train.spool import open_arrays, save_arrays
from tokenizer.vocabulary import Pieces

SAMPLE_BYTES = 2 << 30
PIECES_FACTOR = 12  # measured: at 4,096 to 65,536 pieces and 10 to 60 MB compression is flat from 6 to 25
VERSION = 1  # of the work files: counted up when what is in them changes its meaning
LEAST_SEEN = 2  # of words and characters
BYTES = 256
RANGE_BYTES = 64 << 20
BLOCK_WORKING_BYTES = 32  # working memory for each byte of a block, at most

Run = Callable[..., "list[Path]"]
"""`engines.run` with engine and workers settled: run(job, tasks, folder, name)."""


class Plan(NamedTuple):
    """What text and settings come to. The first two shape the result; the others bound memory only.

    Attributes:
        share: of the documents that are looked at.
        least: an n-gram seen less often cannot be in a word that a vocabulary of this size keeps; leaving it out keeps
            the model small and its words from being quotations.
        block_bytes, range_bytes: of text, and of a range of keys, that a task has in memory.
    """

    share: float
    least: int
    block_bytes: int
    range_bytes: int


def plan(settings: Settings, text_bytes: int) -> Plan:
    each = settings.memory // worker_count(settings.workers)
    least = min(text_bytes, SAMPLE_BYTES) // (PIECES_FACTOR * settings.vocab_size)
    return Plan(share=min(1.0, SAMPLE_BYTES / max(1, text_bytes)), least=max(LEAST_SEEN, least),
                block_bytes=min(PART_BYTES, each // (2 * BLOCK_WORKING_BYTES)), range_bytes=min(RANGE_BYTES, each // 8))


class Segment(NamedTuple):
    """A part to be cut into words of at most `most_bytes` by the model in a file."""

    part: Part
    model: Path
    most_bytes: int


def discover(shards: Sequence[Path], folder: Path, settings: Settings, run: Run) -> tuple[list[bytes], np.ndarray]:
    """The candidates in the text of shards.

    They are the 256 bytes, the characters seen twice or more, and the words seen twice or more of the best
    segmentation by a model of n-grams of up to six bytes; each is valid UTF-8 (the bytes apart), at most
    `settings.max_piece_bytes` long, and crosses no border. Of a corpus of more than 2 GB as many documents are looked
    at, evenly spread. The result depends on the text, the vocabulary's size, its longest piece and its borders only.

    Args:
        shards: of `spool`. Their size does not matter if no document is longer than a shard.
        folder: for work files, about four bytes for each byte of text at most; the result and the model stay.
        run: `engines.run` with engine and workers settled.
    Returns:
        The candidates sorted by their bytes, and int64 counts, how often each is a word.
    """
    text_bytes = sum(path.stat().st_size for path in shards)
    planned = plan(settings, text_bytes)
    shaping = (VERSION, settings.boundaries, settings.max_piece_bytes, planned.share, planned.least)
    folder = Path(folder) / f"candidates-{_digest(shaping)}"
    result = folder / "candidates-00000.npy"
    if not result.exists():
        every = parts(shards, planned.share, settings.boundaries, planned.block_bytes)
        model, characters = _model(every, folder, planned, run)
        try:
            tables = run(count_words, [Segment(part, model, settings.max_piece_bytes) for part in every],
                         folder / "words", "words")
        finally:
            _loaded.clear()
        ranges = words.ranges(tables, planned.range_bytes, LEAST_SEEN)
        merged = run(words.merge_words, ranges, folder / f"merged-{len(ranges)}", "merged words")
        run(collect, [Collection(merged, characters, settings.max_piece_bytes)], folder, "candidates")
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    counts, starts, text = open_arrays(result)
    return words.strings(starts, text), np.array(counts)


def _model(every: list[Part], folder: Path, planned: Plan, run: Run) -> tuple[Path, Path]:
    """The files of the model and of the characters; n-grams are counted only where these are not there yet."""
    model, characters = folder / "model-00000.npy", folder / "characters-00000.npy"
    if not (model.exists() and characters.exists()):
        tables = run(ngrams.count_windows, every, folder / "windows", "windows")
        ranges = ngrams.ranges(tables, planned.range_bytes, planned.least)
        merged = run(ngrams.merge_windows, ranges, folder / f"merged-{_digest([r.low for r in ranges])}", "n-grams")
        run(find_characters, [merged], folder, "characters")
        run(language_model.build, [language_model.Ngrams(merged, planned.least)], folder, "model")
        shutil.rmtree(folder / "windows")
    return model, characters


def _digest(value: object) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=6).hexdigest()


def find_characters(paths: list[Path], path: Path) -> None:
    """A job: the characters seen at least twice, in merged n-grams: one array for each length in bytes, as windows."""
    save_arrays(path, (_characters(paths, order) for order in range(1, ngrams.CHARACTER + 1)))


def _characters(paths: list[Path], order: int) -> np.ndarray:
    """An n-gram as long as its first byte says is a character, for no window begins a character that it cuts off."""
    low, high = ((0, 0x80), (0xC0, 0xE0), (0xE0, 0xF0), (0xF0, 0x100))[order - 1]
    found, _ = ngrams.level(paths, order, LEAST_SEEN)
    first = found >> np.uint64(56)
    return found[(first >= low) & (first < high)]


_loaded: dict[Path, tuple[LanguageModel, Steps]] = {}
_loading = threading.Lock()


def _open(path: Path) -> tuple[LanguageModel, Steps]:
    """The model and its steps, in memory once for all threads: random reads of mapped files are slower."""
    with _loading:
        if path not in _loaded:
            model = LanguageModel(*map(np.array, LanguageModel.open(path)))
            _loaded[path] = model, steps_of(model)
        return _loaded[path]


def count_words(task: Segment, path: Path) -> None:
    """A job: the words of a part's blocks and their counts, a table of `words` for each block."""
    model, steps = _open(task.model)
    save_arrays(path, (array for text, forced in read(task.part)
                       for array in words.count(text, word_starts(model, text, forced, task.most_bytes, steps))))


class Collection(NamedTuple):
    """Merged tables of words, a file of characters, and the longest piece."""

    words: list[Path]
    characters: Path
    most_bytes: int


def collect(task: Collection, path: Path) -> None:
    """A job: all candidates, sorted: counts, where each begins, and their bytes joined."""
    tables = [table for file in task.words for table in words.open_words(file)]
    pieces = [word for table in tables for word in words.strings(table.starts, table.text)]
    counts = np.concatenate([np.empty(0, np.int64), *(table.counts for table in tables)])
    fine = np.array([len(word) <= task.most_bytes and _is_text(word) for word in pieces], bool)
    pieces, counts = list(itertools.compress(pieces, fine)), counts[fine]
    single = {bytes([byte]) for byte in range(BYTES)}
    for order, found in enumerate(open_arrays(task.characters), 1):
        if order <= task.most_bytes:
            data = found.astype(">u8").tobytes()
            single.update(data[i : i + order] for i in range(0, len(data), found.itemsize))
    single.difference_update(word for word in pieces if len(word) <= ngrams.CHARACTER)
    pieces += single
    counts = np.append(counts, np.zeros(len(single), np.int64))
    order = sorted(range(len(pieces)), key=pieces.__getitem__)
    pieces, counts = [pieces[i] for i in order], counts[order]
    joined = Pieces.joined(pieces)
    save_arrays(path, (counts, joined.starts, joined.text))


def _is_text(word: bytes) -> bool:
    try:
        word.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
