"""The token stream: which token is at which place of a training run.

A place is a cursor: how many tokens were read since the run began. What stands there follows from (part, seed, window,
cursor) alone, so a run resumes from its cursor, and neither micro-batch nor batch size changes what is read.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from train.data.corpus import Part
from train.data.permutation import permutation_key, permute


class Tokens(NamedTuple):
    """A stretch of the stream; all [count].

    Attributes:
        ids: int64.
        targets: int64, the token that follows each one in its epoch's text.
        begins: bool, the token before this one is not its predecessor in the same document (or is not known).
        ends: bool, the target belongs to another document.
    """

    ids: np.ndarray
    targets: np.ndarray
    begins: np.ndarray
    ends: np.ndarray


class _Text(NamedTuple):
    """An epoch's text: documents in its order, and where each ends in it."""

    starts: np.ndarray
    ends: np.ndarray


class TokenStream:
    """Epoch after epoch of a part's tokens, every token once in each.

    An epoch's text is its documents, joined in an order of the epoch's own. It is read in windows of `window` tokens,
    also in an order of the epoch's own, cut so that windows begin at multiples of `window` of the cursor: `window`
    tokens from such a place are one unbroken stretch of text (or the end of an epoch and the beginning of the next).
    The text before the first such place and what is left over at its end are read first and last. The token after
    the text's last one is its first.

    With `shuffle=False` there is one epoch, read from beginning to end in the part's order.

    Args:
        window: tokens, at least 1; a multiple of the sequence length keeps sequences unbroken. Another window is
            another order, so a run keeps its own.
        seed: of both orders.
    """

    def __init__(self, part: Part, window: int = 1, seed: int = 0, shuffle: bool = True) -> None:
        if window < 1:
            raise ValueError(f"the window must be at least 1 token, got {window}")
        if not part.documents:
            raise ValueError("a stream needs at least one document")
        self.part = part
        self.parts = (part,)
        self.tokens = part.tokens
        self.window = window
        self.seed = seed
        self.shuffle = shuffle
        self._text = lru_cache(maxsize=2)(self._make_text)

    def read(self, cursor: int, count: int) -> Tokens:
        """The `count` tokens from place `cursor` on; fewer at the end of a stream that is not shuffled."""
        if cursor < 0:
            raise ValueError(f"the cursor must not be negative, got {cursor}")
        pieces = []
        while count > 0 and (self.shuffle or cursor < self.tokens):
            epoch, place = divmod(cursor, self.tokens)
            taken = min(count, self.tokens - place)
            pieces.append(self._read_epoch(epoch, place, taken))
            cursor += taken
            count -= taken
        if not pieces:
            return Tokens(*(np.empty(0, dtype) for dtype in (np.int64, np.int64, bool, bool)))
        return pieces[0] if len(pieces) == 1 else Tokens(*map(np.concatenate, zip(*pieces, strict=True)))

    def _make_text(self, epoch: int) -> _Text:
        starts, lengths = self.part.starts, self.part.lengths
        if self.shuffle:
            order = permute(np.arange(len(starts)), len(starts), permutation_key(self.seed, epoch, "documents"))
            starts, lengths = starts[order], lengths[order]
        return _Text(starts, np.cumsum(lengths))

    def _read_epoch(self, epoch: int, place: int, count: int) -> Tokens:
        text = self._text(epoch)
        first, lengths = self._stretches(epoch, place, count)
        ids, begins, ends = self._lookup(text, first, lengths)
        stretch_ends = np.cumsum(lengths)
        begins[stretch_ends[:-1]] |= first[1:] != first[:-1] + lengths[:-1]
        begins[0] = True
        after = (first + lengths) % self.tokens
        targets = np.empty_like(ids)
        targets[:-1] = ids[1:]
        targets[stretch_ends - 1] = self._lookup(text, after, np.ones_like(after))[0]
        return Tokens(ids, targets, begins, ends)

    def _stretches(self, epoch: int, place: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """`count` places of an epoch from `place` on, as stretches of its text: (first, length), int64 [stretches]."""
        stop = place + count
        if not self.shuffle:
            return np.array([place]), np.array([count])
        window = self.window
        head = min(-epoch * self.tokens % window, self.tokens)
        windows = (self.tokens - head) // window
        tail = head + windows * window
        first, lengths = [], []
        if place < head:
            first.append([place])
            lengths.append([min(stop, head) - place])
        low, high = max(place, head), min(stop, tail)
        if low < high:
            numbers = np.arange((low - head) // window, (high - 1 - head) // window + 1)
            begin = np.maximum(head + numbers * window, low)
            end = np.minimum(head + (numbers + 1) * window, high)
            read = permute(numbers, windows, permutation_key(self.seed, epoch, "windows"))
            first.append(begin + (read - numbers) * window)
            lengths.append(end - begin)
        if stop > tail:
            first.append([max(place, tail)])
            lengths.append([stop - max(place, tail)])
        return np.concatenate(first).astype(np.int64), np.concatenate(lengths).astype(np.int64)

    def _lookup(
        self, text: _Text, first: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ids (int64), "is the first of its document", "is the last of its document" of stretches of the text."""
        stop = first + lengths
        low = np.searchsorted(text.ends, first, side="right")
        documents_each = np.searchsorted(text.ends, stop, side="left") - low + 1
        before = np.cumsum(documents_each) - documents_each
        documents = np.repeat(low - before, documents_each) + np.arange(int(documents_each.sum()))
        document_ends = text.ends[documents]
        document_firsts = np.where(documents > 0, text.ends[documents - 1], 0)
        begin = np.maximum(document_firsts, np.repeat(first, documents_each))
        end = np.minimum(document_ends, np.repeat(stop, documents_each))
        ids = self.part.shards.gather(text.starts[documents] + begin - document_firsts, end - begin)
        out_ends = np.cumsum(end - begin)
        begins, ends = np.zeros(len(ids), bool), np.zeros(len(ids), bool)
        begins[(out_ends - (end - begin))[begin == document_firsts]] = True
        ends[out_ends[end == document_ends] - 1] = True
        return ids.astype(np.int64), begins, ends
