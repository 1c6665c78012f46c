"""Rows of tokens, ready for the model."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from engine.errors import UserError
from tokenizer import Tokenizer
from train.data.mixture import MixedStream
from train.data.stream import TokenStream

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Rows of consecutive tokens.

    Attributes:
        ids, targets: int64 [rows, length]; targets that do not count are -100.
        doc_start: int32 [rows, length], where in its row each token's document begins (0 when in an earlier row), or
            None when attention may cross documents.
        first_token: cursor of the first token.
        predicted: number of targets that count.
        bytes: of text in the targets that count.
        row_bytes: int64 [rows], the same for each row.
        row_sources: int64 [rows, sources], tokens of each row by source, or None when there is one source.
    """

    ids: np.ndarray
    targets: np.ndarray
    doc_start: np.ndarray | None
    first_token: int
    predicted: int
    bytes: int
    row_bytes: np.ndarray
    row_sources: np.ndarray | None = None

    @property
    def sources(self) -> np.ndarray | None:
        """int64 [sources], tokens by source; None when there is one source."""
        return None if self.row_sources is None else self.row_sources.sum(axis=0)

    def split(self, micro_rows: int) -> list[Batch]:
        """Batches of `micro_rows` rows (the last may have fewer) that are views of this one."""
        if micro_rows < 1:
            raise ValueError(f"a micro-batch needs at least one row, got {micro_rows}")
        return [self._rows(slice(row, row + micro_rows)) for row in range(0, len(self.ids), micro_rows)]

    def _rows(self, rows: slice) -> Batch:
        targets = self.targets[rows]
        return Batch(
            ids=self.ids[rows],
            targets=targets,
            doc_start=None if self.doc_start is None else self.doc_start[rows],
            first_token=self.first_token + rows.start * self.ids.shape[1],
            predicted=int(np.count_nonzero(targets != IGNORED)),
            bytes=int(self.row_bytes[rows].sum()),
            row_bytes=self.row_bytes[rows],
            row_sources=None if self.row_sources is None else self.row_sources[rows],
        )


class Batches:
    """Cuts a stream into batches.

    Args:
        seq_len: tokens in a row where none are named.
        doc_mask: keep documents apart: fill `doc_start`, and do not count targets in another document.

    Raises:
        UserError: the stream was tokenised by another tokenizer.
    """

    def __init__(self, stream: TokenStream | MixedStream, seq_len: int, tokenizer: Tokenizer,
                 doc_mask: bool = False) -> None:
        if seq_len < 1:
            raise ValueError(f"a row needs at least one token, got {seq_len}")
        if {part.shards.fingerprint for part in stream.parts} != {tokenizer.fingerprint()}:
            raise UserError("the data was tokenised with another tokenizer than the model's")
        self.stream = stream
        self.seq_len = seq_len
        self.doc_mask = doc_mask
        self._eod = tokenizer.eod
        self._token_bytes = tokenizer.token_bytes().astype(np.int64)

    def batch(self, cursor: int, rows: int, seq_len: int | None = None) -> Batch:
        """The `rows` * `seq_len` tokens from `cursor` on.

        Past the end of a stream that is not shuffled, ids are end-of-document tokens and targets -100.
        """
        shape = rows, self.seq_len if seq_len is None else seq_len
        count = shape[0] * shape[1]
        ids, targets, begins, ends = self.stream.read(cursor, count)
        if self.doc_mask:
            targets[ends] = IGNORED
        missing = count - len(ids)
        if missing:
            ids = np.concatenate([ids, np.full(missing, self._eod)])
            targets = np.concatenate([targets, np.full(missing, IGNORED)])
            begins = np.concatenate([begins, np.ones(missing, bool)])
        ids, targets = ids.reshape(shape), targets.reshape(shape)
        counts = targets != IGNORED
        row_bytes = (self._token_bytes[np.where(counts, targets, self._eod)] * counts).sum(axis=1)
        doc_start = None
        if self.doc_mask:
            places = np.where(begins.reshape(shape), np.arange(shape[1], dtype=np.int32), np.int32(0))
            doc_start = np.maximum.accumulate(places, axis=1)
        predicted, size = int(np.count_nonzero(counts)), int(row_bytes.sum())
        return Batch(ids, targets, doc_start, cursor, predicted, size, row_bytes, self._row_sources(cursor, shape))

    def _row_sources(self, cursor: int, shape: tuple[int, int]) -> np.ndarray | None:
        if not isinstance(self.stream, MixedStream):
            return None
        sources = self.stream.sources(cursor, shape[0] * shape[1]).reshape(shape)
        return np.stack([np.count_nonzero(sources == i, axis=1) for i in range(len(self.stream.parts))], axis=1)

    def sweep(self, rows: int) -> Iterator[Batch]:
        """All of a stream that is not shuffled, in batches of `rows` rows; the last has as few as it needs."""
        if self.stream.shuffle:
            raise ValueError("sweep needs a stream that is not shuffled")
        for cursor in range(0, self.stream.tokens, rows * self.seq_len):
            left = -(-(self.stream.tokens - cursor) // self.seq_len)
            yield self.batch(cursor, min(rows, left))


class Prefetch:
    """Makes the next batch in a thread while the current one is in use.

    `batch` gives exactly what `Batches.batch` gives, whatever is asked for; only consecutive batches come sooner.
    """

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._next: tuple[tuple[int, int, int | None], Future] | None = None

    def batch(self, cursor: int, rows: int, seq_len: int | None = None) -> Batch:
        ready = self._next[1].result() if self._next and self._next[0] == (cursor, rows, seq_len) else None
        batch = ready or self._batches.batch(cursor, rows, seq_len)
        following = (cursor + batch.ids.size, rows, seq_len)
        self._next = (following, self._thread.submit(self._batches.batch, *following))
        return batch

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
