"""Pieces that stand side by side: how often, and in how many blocks of text, added up range by range.

Each occurrence is a number: the piece in the highest 24 bits, the next piece in 24 bits, the block in 16. So sorting
puts equal pairs side by side, and of those equal blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tokenizer.compiled import compiled
from tokenizer.train.ngrams import range_edges
from tokenizer.train.spool import open_arrays, save_arrays

ID_BITS, BLOCK_NUMBER_BITS = 24, 16
MOST_BLOCKS = 1 << BLOCK_NUMBER_BITS
RANGE_OCCURRENCES = 1 << 19  # a task takes a few times their 4 MB
LEAST_SEEN = 2
_BLOCK_BITS = np.uint64(BLOCK_NUMBER_BITS)
_PAIRS = np.uint64((1 << 64) - MOST_BLOCKS)

Weigh = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Range(NamedTuple):
    """The task of `add_up`: the occurrences from `low` to below `high` (0: to the end) that stand sorted at the end of
    the files `paths`. The weight of a pair is what `weigh` says of how often it is there and in how many blocks, times
    `scale`; pairs are kept if they are seen twice and weigh `least` or more."""

    paths: Sequence[Path]
    low: int
    high: int
    weigh: Weigh
    scale: float
    least: float


def ranges(paths: Sequence[Path], weigh: Weigh, scale: float, least: float) -> list[Range]:
    """Ranges of about `RANGE_OCCURRENCES` each; a pair is in one of them."""
    edges = range_edges(lambda: _occurrences(paths), RANGE_OCCURRENCES, _PAIRS)
    return [Range(paths, low, high, weigh, scale, least) for low, high in zip([0, *edges], [*edges, 0])]


def _occurrences(paths: Sequence[Path]) -> Iterator[np.ndarray]:
    return (open_arrays(path)[-1] for path in paths)


def add_up(task: Range, path: Path) -> None:
    """Job: of a range the pairs, sorted, and their weights, as `joined` has them."""
    found = [np.empty(0, np.uint64)]
    for occurrences in _occurrences(task.paths):
        low, high = np.searchsorted(occurrences, np.array([task.low, task.high], np.uint64))
        found.append(np.array(occurrences[low : high if task.high else len(occurrences)]))
    occurrences = np.concatenate(found)
    occurrences.sort()
    pairs, counts, spread = _runs(occurrences)
    weights = task.weigh(counts, spread) * task.scale
    kept = (counts >= LEAST_SEEN) & (weights >= task.least)
    pairs = pairs[kept].astype(np.int64)
    save_arrays(path, [np.stack((pairs >> ID_BITS, pairs & (1 << ID_BITS) - 1), 1), weights[kept]])


def joined(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """The results of `add_up` as one: int64 [pairs, 2], numbers of pieces, sorted, and float64 [pairs], weights."""
    return tuple(map(np.concatenate, zip(*map(open_arrays, paths))))


@compiled
def _runs(occurrences):
    """Different pairs of sorted occurrences, with their number and the number of their blocks."""
    pairs = np.empty_like(occurrences)
    counts, spread = np.empty(len(occurrences), np.int64), np.empty(len(occurrences), np.int64)
    used = 0
    for i in range(len(occurrences)):
        pair = occurrences[i] >> _BLOCK_BITS
        if i == 0 or pairs[used - 1] != pair:
            pairs[used], counts[used], spread[used] = pair, 1, 1
            used += 1
        else:
            counts[used - 1] += 1
            spread[used - 1] += occurrences[i] != occurrences[i - 1]
    return pairs[:used], counts[:used], spread[:used]
