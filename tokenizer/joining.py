"""Ids back to bytes: the text of one piece after the other."""

from __future__ import annotations

import numpy as np

from tokenizer.compiled import compiled

STRIDE = 8  # bytes copied at once, wherever a piece ends: most have fewer


class Joiner:
    """The bytes of ids.

    Args:
        text: uint8, all pieces one after the other.
        starts: int64 [pieces + 1], where each begins.
        lengths: int32 [ids there are]: bytes of each, 0 for special tokens, which come after all pieces.
    """

    def __init__(self, text: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> None:
        self._text = np.concatenate((text, np.zeros(STRIDE, np.uint8)))
        self._starts = np.full(len(lengths), len(text), np.int64)
        self._starts[: len(starts) - 1] = starts[:-1]
        self._lengths = lengths

    def joined(self, ids: np.ndarray) -> bytes | None:
        """The bytes of `ids`, integers; None if one of them is no id."""
        ids = ids.astype(np.int64)
        size = _size(self._lengths, ids)
        if size < 0:
            return None
        result = np.empty(size + STRIDE, np.uint8)
        _join(self._text, self._starts, self._lengths, ids, result)
        return result[:size].tobytes()


@compiled
def _size(lengths, ids):
    """Bytes of all ids, -1 if one of them is out of range."""
    total = 0
    for i in range(len(ids)):
        number = np.uint64(ids[i])
        if number >= np.uint64(len(lengths)):
            return -1
        total += lengths[number]
    return total


@compiled
def _join(text, starts, lengths, ids, result):
    at = np.uint64(0)
    for i in range(len(ids)):
        number = np.uint64(ids[i])
        length, start = np.uint64(lengths[number]), np.uint64(starts[number])
        done = np.uint64(0)
        while done < length:
            for k in range(STRIDE):
                result[at + done + np.uint64(k)] = text[start + done + np.uint64(k)]
            done += np.uint64(STRIDE)
        at += length
