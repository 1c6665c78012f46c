"""Words and how often each occurs: counted in a hash table block by block, then merged range by range.

A table of words is four arrays: hashes (sorted, uint64), counts, where each word begins in the fourth and the last one
ends, and the words' bytes joined. Words are told apart by their bytes; the hash only says where to look.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tokenizer.compiled import compiled
from tokenizer.train.spool import open_arrays, save_arrays

ENTRY_BYTES = 96  # of working memory for each entry of a merge, about
HASHES = 1 << 64
ALL_BITS = HASHES - 1

# FNV-1a for 64 bits (Fowler, Noll, Vo), then the last step of MurmurHash3 (Appleby), which spreads it over all bits.
_OFFSET = np.uint64(0xCBF29CE484222325)
_PRIME = np.uint64(0x100000001B3)
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_SHIFT = np.uint64(33)


class Words(NamedTuple):
    """A table of words, in the order of their hashes.

    Attributes:
        hashes: uint64 [words].
        counts: int64 [words].
        starts: int64 [words + 1].
        text: uint8 [bytes].
    """

    hashes: np.ndarray
    counts: np.ndarray
    starts: np.ndarray
    text: np.ndarray


def strings(starts: np.ndarray, text: np.ndarray) -> list[bytes]:
    """The words of a table, or of any text cut at `starts`, the last of which is its end."""
    data = text.tobytes()
    edges = starts.tolist()
    return [data[a:b] for a, b in zip(edges[:-1], edges[1:])]


def count(text: np.ndarray, starts: np.ndarray, mask: int = ALL_BITS) -> Words:
    """The words of a text.

    Args:
        text: uint8 [bytes].
        starts: bool [bytes], where each word begins.
        mask: the bits of the hash to use. Words and counts do not depend on it.
    """
    hashes, where, lengths, counts = _count(text, starts, np.uint64(mask))
    order = np.argsort(hashes, kind="stable")
    return _table(text, hashes[order], counts[order], where[order], lengths[order])


def _table(text, hashes, counts, where, lengths) -> Words:
    starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
    gathered = np.empty(starts[-1], np.uint8)
    _gather(text, where, starts, gathered)
    return Words(hashes, counts, starts, gathered)


@compiled
def _gather(text, where, starts, gathered):
    for i in range(len(where)):
        for k in range(starts[i + 1] - starts[i]):
            gathered[starts[i] + k] = text[where[i] + k]


@compiled
def _count(text, starts, mask):
    room = 1 << 12
    slots = np.zeros(2 * room, np.int32)
    hashes = np.empty(room, np.uint64)
    where = np.empty(room, np.int64)
    lengths = np.empty(room, np.int64)
    counts = np.empty(room, np.int64)
    found = 0
    at = 0
    while at < len(text):
        key = (_OFFSET ^ np.uint64(text[at])) * _PRIME
        end = at + 1
        while end < len(text) and not starts[end]:
            key = (key ^ np.uint64(text[end])) * _PRIME
            end += 1
        key ^= key >> _SHIFT
        key *= _MIX
        key ^= key >> _SHIFT
        key &= mask
        length = end - at
        slot = np.int64(key & np.uint64(len(slots) - 1))
        while True:
            entry = slots[slot] - 1
            if entry < 0:
                break
            if hashes[entry] == key and lengths[entry] == length and _equal(text, where[entry], at, length):
                break
            slot = (slot + 1) & (len(slots) - 1)
        if entry >= 0:
            counts[entry] += 1
        else:
            hashes[found], where[found], lengths[found], counts[found] = key, at, length, 1
            found += 1
            slots[slot] = found
            if found == room:
                room *= 2
                hashes = np.concatenate((hashes, hashes))
                where = np.concatenate((where, where))
                lengths = np.concatenate((lengths, lengths))
                counts = np.concatenate((counts, counts))
                slots = np.zeros(2 * room, np.int32)
                for entry in range(found):
                    slot = np.int64(hashes[entry] & np.uint64(len(slots) - 1))
                    while slots[slot] != 0:
                        slot = (slot + 1) & (len(slots) - 1)
                    slots[slot] = entry + 1
        at = end
    return hashes[:found], where[:found], lengths[:found], counts[:found]


@compiled
def _equal(text, a, b, length):
    for k in range(length):
        if text[a + k] != text[b + k]:
            return False
    return True


class Range(NamedTuple):
    """The `number`-th of `total` equal ranges of hashes, to be merged out of the tables in `paths`; words seen less
    often than `least` times in all are left out."""

    paths: list[Path]
    number: int
    total: int
    least: int


def ranges(paths: list[Path], range_bytes: int, least: int) -> list[Range]:
    """Ranges whose merging takes about `range_bytes` of memory each."""
    entries = sum(len(words.hashes) for path in paths for words in open_words(path))
    total = entries * ENTRY_BYTES // range_bytes + 1
    return [Range(paths, number, total, least) for number in range(total)]


def open_words(path: Path) -> list[Words]:
    """The tables in a file."""
    arrays = open_arrays(path)
    return [Words(*arrays[i : i + len(Words._fields)]) for i in range(0, len(arrays), len(Words._fields))]


def merge_words(task: Range, path: Path) -> None:
    """A job: one table of a range of hashes."""
    save_arrays(path, merged((words for path in task.paths for words in open_words(path)), task))


def merged(tables: Iterable[Words], task: Range) -> Words:
    low, high = (HASHES * i // task.total for i in (task.number, task.number + 1))
    slices = [_slice(words, low, high) for words in tables]
    hashes = np.concatenate([np.empty(0, np.uint64), *(words.hashes for words in slices)])
    counts = np.concatenate([np.empty(0, np.int64), *(words.counts for words in slices)])
    text = np.concatenate([np.empty(0, np.uint8), *(words.text for words in slices)])
    lengths = np.concatenate([np.empty(0, np.int64), *(np.diff(words.starts) for words in slices)])
    del slices
    where = np.cumsum(lengths) - lengths
    order = np.argsort(hashes, kind="stable")
    kept, totals = _add_up(order, hashes, counts, where, lengths, text)
    enough = totals >= task.least
    kept = kept[enough]
    return _table(text, hashes[kept], totals[enough], where[kept], lengths[kept])


def _slice(words: Words, low: int, high: int) -> Words:
    first = int(np.searchsorted(words.hashes, np.uint64(low)))
    last = int(np.searchsorted(words.hashes, np.uint64(high))) if high < HASHES else len(words.hashes)
    starts = np.array(words.starts[first : last + 1])
    return Words(np.array(words.hashes[first:last]), np.array(words.counts[first:last]), starts,
                 np.array(words.text[starts[0] : starts[-1]]))


@compiled
def _add_up(order, hashes, counts, where, lengths, text):
    """One entry of each word, and how often it occurs in all; `order` puts equal hashes side by side."""
    kept = np.empty(len(order), np.int64)
    totals = np.empty(len(order), np.int64)
    found = 0
    first = 0
    for i in range(len(order)):
        entry = order[i]
        if i == 0 or hashes[entry] != hashes[order[i - 1]]:
            first = found
        at = first
        while at < found and not (lengths[kept[at]] == lengths[entry]
                                  and _equal(text, where[kept[at]], where[entry], lengths[entry])):
            at += 1
        if at == found:
            kept[at], totals[at] = entry, 0
            found += 1
        totals[at] += counts[entry]
    return kept[:found], totals[:found]
