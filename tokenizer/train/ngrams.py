"""How often each string of up to six bytes occurs, by sorting: one sort gives all lengths.

At every position of the text stands a window: the six bytes from there on, fewer before a place where a word must
start. A window is a number: its bytes in the upper 48 bits, the first one highest, then 3 bits of length, then 13 bits
of count. So a sorted table of windows is one array of uint64, and tables are merged by sorting them together; a count
too large for its bits takes several entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tokenizer.compiled import compiled
from tokenizer.train.blocks import Part, read
from tokenizer.train.spool import open_arrays, save_arrays

ORDER = 6
CHARACTER = 4  # the longest character's bytes
LEAST_CHARACTER = 2  # n-grams of as few bytes as a character's are kept from this count on
BYTES_SHIFT = 16
LENGTH_SHIFT = 13
SAMPLE = 1 << 16  # entries looked at to find ranges of about equal size
FIRST_BYTE = np.uint64(56)  # how far up a window's first byte stands

_BYTE = np.uint64(8)
_BYTES = np.uint64((1 << 64) - (1 << BYTES_SHIFT))
_LENGTH = np.uint64(LENGTH_SHIFT)
_LENGTH_MASK = np.uint64(7)
_COUNT = np.uint64((1 << LENGTH_SHIFT) - 1)
_ONE = np.uint64(1)
_NONE = np.uint64(0)


def windows(text: np.ndarray, forced: np.ndarray) -> np.ndarray:
    """The sorted table of a text's windows, uint64 [entries].

    Args:
        text: uint8 [bytes].
        forced: bool [bytes], no window goes on over the place before this byte.
    """
    table = np.empty(len(text), np.uint64)
    _fill_windows(text, forced, table)
    return _summed(table)


def _summed(table: np.ndarray) -> np.ndarray:
    table.sort()
    return table[: _add_equal(table)]


@compiled
def _fill_windows(text, forced, table):
    window, length = _NONE, _NONE
    for i in range(len(text) - 1, -1, -1):
        window = ((window >> _BYTE) & _BYTES) | (np.uint64(text[i]) << FIRST_BYTE)
        length = min(length + _ONE, np.uint64(ORDER))
        table[i] = window | (length << _LENGTH) | _ONE
        if forced[i]:
            window, length = _NONE, _NONE


@compiled
def _add_equal(table):
    """Adds up the counts of equal windows, in place. Returns the number of entries left."""
    written = 0
    i = 0
    while i < len(table):
        key = table[i] & ~_COUNT
        total = _NONE
        while i < len(table) and table[i] & ~_COUNT == key:
            total += table[i] & _COUNT
            i += 1
        while total > _NONE:
            part = min(total, _COUNT)
            table[written] = key | part
            total -= part
            written += 1
    return written


def count_windows(part: Part, path: Path) -> None:
    """A job: the tables of a part's blocks."""
    save_arrays(path, (windows(text, forced) for text, forced in read(part)))


class Range(NamedTuple):
    """Windows from `low` to below `high` (0: to the end) as numbers, to be merged out of the tables in `paths`; longer
    n-grams than characters are kept if they are seen `least` times."""

    paths: list[Path]
    low: int
    high: int
    least: int


def ranges(paths: list[Path], range_bytes: int, least: int) -> list[Range]:
    """Ranges that hold about `range_bytes` of all tables' entries each."""
    edges = range_edges(lambda: (table for path in paths for table in open_arrays(path)), range_bytes // 8, _BYTES)
    return [Range(paths, low, high, least) for low, high in zip([0, *edges], [*edges, 0])]


def range_edges(tables: Callable[[], Iterable[np.ndarray]], entries_each: int, mask: np.uint64) -> list[int]:
    """Numbers above 0 that part sorted tables, uint64, into ranges of about so many of all tables' entries each; the
    bits outside `mask` are left out."""
    entries = sum(len(table) for table in tables())
    step = entries // SAMPLE + 1
    sample = [np.array(table[::step]) for table in tables()]
    sample = np.sort(np.concatenate([np.empty(0, np.uint64), *sample])) & mask
    count = entries // entries_each + 1
    edges = np.unique(sample[np.arange(1, count) * len(sample) // count]).tolist()
    return [edge for edge in edges if edge > 0]


def merge_windows(task: Range, path: Path) -> None:
    """A job: n-grams of 1 to 6 bytes and their counts, two arrays for each length, sorted, uint64 (as windows, without
    length and count) and int64. Those at the range's ends are there whatever their count: they may go on outside."""
    found = [np.empty(0, np.uint64)]
    for table in (table for path in task.paths for table in open_arrays(path)):
        low, high = np.searchsorted(table, np.array([task.low, task.high], np.uint64))
        found.append(np.array(table[low : high if task.high else len(table)]))
    merged = _summed(np.concatenate(found))
    save_arrays(path, (array for order in range(1, ORDER + 1) for array in _ngrams_of(merged, order, task.least)))


def _ngrams_of(table: np.ndarray, order: int, least: int) -> tuple[np.ndarray, np.ndarray]:
    least = min(LEAST_CHARACTER, least) if order <= CHARACTER else least
    ngrams, counts = np.empty(0, np.uint64), np.empty(0, np.int64)
    found = _select(table, order, least, ngrams, counts)
    ngrams, counts = np.empty(found, np.uint64), np.empty(found, np.int64)
    _select(table, order, least, ngrams, counts)
    return ngrams, counts


@compiled
def _select(table, order, least, ngrams, counts):
    """The n-grams of `order` bytes seen at least `least` times, the first and the last in any case. Writes as many as
    there is room for, and returns how many there are."""
    mask = (_ONE << (np.uint64(8) * np.uint64(order))) - _ONE
    mask <<= np.uint64(64) - np.uint64(8) * np.uint64(order)
    room = len(ngrams)
    found = 0
    current = _NONE
    total = 0
    closed = 0
    for i in range(len(table)):
        if np.int64((table[i] >> _LENGTH) & _LENGTH_MASK) < order:
            continue
        ngram = table[i] & mask
        if total > 0 and ngram != current:
            if total >= least or closed == 0:
                if found < room:
                    ngrams[found], counts[found] = current, total
                found += 1
            closed += 1
            total = 0
        current = ngram
        total += np.int64(table[i] & _COUNT)
    if total > 0:
        if found < room:
            ngrams[found], counts[found] = current, total
        found += 1
    return found


def level(paths: Sequence[Path], order: int, least: int) -> tuple[np.ndarray, np.ndarray]:
    """The n-grams of `order` bytes in files of `merge_windows` seen at least `least` times, sorted; their counts."""
    found = list(_joined(paths, order, least))
    return (np.concatenate([np.empty(0, np.uint64), *(ngrams for ngrams, _ in found)]),
            np.concatenate([np.empty(0, np.int64), *(counts for _, counts in found)]))


def _joined(paths: Sequence[Path], order: int, least: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What stands at the end of one range and at the start of the next is added up."""
    ngram, count = 0, 0
    for path in paths:
        ngrams, counts = (np.array(array) for array in open_arrays(path)[2 * order - 2 : 2 * order])
        if not len(ngrams):
            continue
        if count and int(ngrams[0]) == ngram:
            counts[0] += count
        elif count >= least:
            yield np.array([ngram], np.uint64), np.array([count], np.int64)
        ngram, count = int(ngrams[-1]), int(counts[-1])
        kept = counts[:-1] >= least
        yield ngrams[:-1][kept], counts[:-1][kept]
    if count >= least:
        yield np.array([ngram], np.uint64), np.array([count], np.int64)
