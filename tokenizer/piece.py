"""The trained tokenizer: the cheapest cut of a text into pieces of a vocabulary."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np

from tokenizer import automaton, best_path, compiled
from tokenizer.base import BaseTokenizer, batch_bytes, check_count
from tokenizer.joining import Joiner
from tokenizer.patterns import divided, is_pattern, written_out
from tokenizer.reference import Reference
from tokenizer.storage import save_pieces
from tokenizer.vocabulary import Vocabulary


class PieceTokenizer(BaseTokenizer):
    """Text to ids and back, lossless on any bytes.

    A vocabulary with a normalizer changes a str before it is encoded (never bytes): decoding gives the normalized text.
    Many threads may use one object. Without Numba ids are the same, but `reference.py` finds them, much slower.

    Args:
        rows, tables: `automaton_rows` and `tables` of the same vocabulary, if they have been made before.
    """

    kind = "pieces"

    def __init__(
        self, vocabulary: Vocabulary, rows: np.ndarray | None = None, tables: best_path.Tables | None = None
    ) -> None:
        self.vocabulary = vocabulary
        self.special = {name: len(vocabulary) + i for i, name in enumerate(vocabulary.special)}
        self.vocab_size = len(vocabulary) + len(self.special)
        self.eod = self.special["<|end|>"]
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)
        self.pattern = written_out(vocabulary.boundaries) if is_pattern(vocabulary.boundaries) else ""
        self._lengths = np.zeros(self.vocab_size, np.int32)
        self._lengths[: len(vocabulary)] = vocabulary.pieces.lengths
        if rows is not None:
            self.automaton_rows = rows
        if tables is not None:
            self.tables = tables
        elif compiled.AVAILABLE:
            self.tables = best_path.tables(self.automaton_rows)

    def __reduce__(self):
        made = self.__dict__
        return PieceTokenizer, (self.vocabulary, made.get("automaton_rows"), made.get("tables"))

    @cached_property
    def automaton_rows(self) -> np.ndarray:
        """int32 [states, 8], the automaton (automaton.py)."""
        return automaton.build(self.vocabulary.pieces, self.vocabulary.costs)

    @cached_property
    def _joiner(self) -> Joiner:
        return Joiner(self.vocabulary.pieces.text, self.vocabulary.pieces.starts, self._lengths)

    @cached_property
    def _reference(self) -> Reference:
        return Reference(self.vocabulary.pieces, self.vocabulary.costs)

    def encode_bytes(self, data: bytes) -> np.ndarray:
        """Ids of any bytes, valid UTF-8 or not."""
        return self._ids(np.frombuffer(data, np.uint8), np.array([0, len(data)]), np.empty(1, np.int64))

    def encode_batch(self, texts: Sequence[str | bytes], threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts joined, and int64 [texts + 1] where each text's begin and where the last one's end.

        Args:
            threads: how many share the texts, by their bytes; a text is never divided. The ids are the same.
        """
        check_count("threads", threads)
        data, starts = batch_bytes(self, texts)
        text, ends = np.frombuffer(data, np.uint8), np.zeros(len(starts), np.int64)
        if threads == 1:
            ids = self._ids(text, starts, ends[1:])
        else:
            shares = np.searchsorted(starts, np.linspace(0, len(text), threads + 1))
            shares[0], shares[-1] = 0, len(starts) - 1

            def share(first: int, last: int) -> np.ndarray:
                return self._ids(text, starts[first : last + 1], ends[first + 1 : last + 1])

            with ThreadPoolExecutor(threads) as pool:
                ids = np.concatenate(list(pool.map(share, shares[:-1].tolist(), shares[1:].tolist())))
        return ids, np.cumsum(ends)

    def _ids(self, text: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Ids of the texts that `starts` divides `text` into; writes how many each has."""
        if not self.pattern:
            return self._best_path(text, starts, counts)
        parts = divided(text, starts, self.pattern)
        found = np.empty(len(parts.starts) - 1, np.int64)
        ids = self._best_path(text, parts.starts, found)
        counts[:] = parts.added_up(found)
        return ids

    def _best_path(self, text: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
        if not compiled.AVAILABLE:
            found = [self._reference.encode(text[a:b].tobytes()) for a, b in zip(starts[:-1], starts[1:], strict=True)]
            counts[:] = [len(ids) for ids in found]
            return np.array([number for ids in found for number in ids], self.dtype)
        ids = np.empty(starts[-1] - starts[0], np.int32)
        return ids[: best_path.encode(self.tables, text, starts, ids, counts)].astype(self.dtype)

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The bytes that `ids` stand for; special tokens stand for none. TokenizerError for an id out of range."""
        ids = self._integers(ids)
        data = self._joiner.joined(ids) if compiled.AVAILABLE else None
        return self._joined(self._in_range(ids)) if data is None else data

    def _joined(self, ids: np.ndarray) -> bytes:
        return self._joiner.joined(ids) if compiled.AVAILABLE else self._reference.decode(ids.tolist())

    def token_bytes(self) -> np.ndarray:
        """int32 [vocab_size]: how many bytes of text each id stands for (0 for special ids)."""
        return self._lengths

    def fingerprint(self) -> str:
        """32 hexadecimal digits."""
        return self.vocabulary.fingerprint()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes vocabulary.json and vocabulary.tables into the folder `path`, or both under another name if `path`
        ends in .json."""
        save_pieces(path, self)
