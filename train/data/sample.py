"""A sample of a corpus's training documents, for a vocabulary to be trained on. No text held out is in it."""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections.abc import Callable, Sequence

import numpy as np

from tokenizer import to_utf8
from tokenizer.documents import Piece, ReadOptions, Source, read_source
from train.data.build import Progress, ToldProgress, no_text
from train.data.split import held_out, hash_limit, kept_bytes, text_hash


class Sample:
    """Of all texts offered those with the smallest hashes, as many as `room` bytes hold, and at least one.

    It does not depend on the order in which they come.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.bytes = 0
        self._texts: list[tuple[int, int, str]] = []  # a heap, the largest hash first
        self._limit = 1 << 64

    def offer(self, hash64: int, size: int, text: str) -> None:
        """`size` is the text's in bytes of UTF-8."""
        if hash64 >= self._limit:
            return
        heapq.heappush(self._texts, (-hash64, size, text))
        self.bytes += size
        while self.bytes > self.room and len(self._texts) > 1:
            negative, dropped, _ = heapq.heappop(self._texts)
            self._limit = -negative
            self.bytes -= dropped

    def add(self, other: Sample) -> None:
        """Offer all that is in another one."""
        for negative, size, text in other._texts:
            self.offer(-negative, size, text)

    def pieces(self) -> list[Piece]:
        """The texts in the order of their hashes."""
        return [Piece(text, True) for _, _, text in sorted(self._texts, reverse=True)]


class _Survey:
    """What one reading of a corpus finds: each document's hash and size, and a sample of those for training.

    Args:
        is_for_training: of a document's number and hash.
        upto: of each document only so many bytes are offered; None for all.
    """

    def __init__(self, room: int, is_for_training: Callable[[int, int], bool], upto: int | None = None) -> None:
        self.hashes, self.text_bytes = array("Q"), array("q")
        self.sample = Sample(room)
        self._is_for_training, self._upto = is_for_training, upto
        self._new_document()

    def _new_document(self) -> None:
        self._size, self._digest, self._texts = 0, hashlib.blake2b(digest_size=8), Sample(self.sample.room)

    def push(self, text: str, last: bool) -> None:
        """The next piece of text, with which a document may end."""
        data = to_utf8(text)
        if last and not self._size and self._upto is None:
            if data:
                hash64 = text_hash(data)
                if self._is_for_training(len(self.hashes), hash64):
                    self.sample.offer(hash64, len(data), text)
                self._note(hash64, len(data))
            return
        self._digest.update(data)
        offered = data if self._upto is None else data[: max(0, self._upto - self._size)]
        if offered:
            self._texts.offer(text_hash(data), len(offered), offered.decode("utf-8", "ignore"))
        self._size += len(data)
        if last and self._size:
            hash64 = int.from_bytes(self._digest.digest(), "little")
            if self._is_for_training(len(self.hashes), hash64):
                self.sample.add(self._texts)
            self._note(hash64, self._size)
            self._new_document()

    def _note(self, hash64: int, size: int) -> None:
        self.hashes.append(hash64)
        self.text_bytes.append(size)


def training_sample(
    sources: Sequence[Source],
    options: ReadOptions,
    val_fraction: float,
    room: int,
    on_progress: Progress | None = None,
) -> list[Piece]:
    """About `room` bytes of the documents that `train.data.prepare` trains on, or all of them if they are fewer.

    Documents are drawn by their hash, those that come in several pieces piece by piece. The files are read once from
    beginning to end, which finds out what is held out; where that was not what the hashes alone say, twice.

    Args:
        val_fraction: 0 when nothing is held out.
        on_progress: told (bytes of source read, bytes in all).

    Returns:
        Texts, each a document, in an order that does not depend on that of the files.

    Raises:
        UserError: there is no text at all.
        TokenizerError: as `read_source`.
    """

    def survey(is_for_training: Callable[[int, int], bool], upto: int | None = None) -> _Survey:
        result, told = _Survey(room, is_for_training, upto), ToldProgress(sources, on_progress)
        for source in sources:
            for text, last in read_source(source, options, told):
                result.push(text, last)
        told.finish()
        return result

    limit = hash_limit(val_fraction)
    found = survey(lambda _, hash64: hash64 >= limit)
    hashes, text_bytes = np.array(found.hashes, np.uint64), np.array(found.text_bytes, np.int64)
    if not len(hashes):
        raise no_text(sources)
    if val_fraction > 0 and len(hashes) == 1:
        found = survey(lambda *_: True, kept_bytes(int(text_bytes[0]), val_fraction))
    elif val_fraction > 0:
        chosen = held_out(hashes, text_bytes, val_fraction)
        if (chosen != (hashes < np.uint64(limit))).any():
            found = survey(lambda number, _: not chosen[number])
    return found.sample.pieces()
