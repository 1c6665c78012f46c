"""The seed system's own method, for comparison: fragments of 1 to 7 characters, pruned by how often they are used.

A fragment is a candidate if it makes up 1e-6 of the text's fragments of its length. A piece of n characters costs
-log(count / count of all pieces of n characters), so length is free. Each round drops the least frequent, by the same
factor. The seed system drew segmentations at random while counting (strength alpha = 1): so does "seed-sampled", each
round anew, the same draws for any number of workers. "seed" counts the best path, which is half the work and changes
bytes per token by a thousandth.

Fragments are counted block by block, and added up and thinned out range by range, both as large as memory allows. The
candidates themselves, at most a million of each length, are in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tokenizer.train import engines
from tokenizer.train.blocks import PART_BYTES, blocks, forced_starts
from tokenizer.train.counting import Stretch, stretches, summed, texts_of
from tokenizer.train.engines import worker_count
from tokenizer.train.ngrams import range_edges
from tokenizer.train.rounds import Run, Way, geometric
from tokenizer.train.settings import Settings
from tokenizer.train.spool import each_array, open_arrays, save_arrays, write_whole
from tokenizer.vocabulary import COST_UNIT, Pieces

LONGEST = 7  # characters
LEAST_SHARE = 1e-6
RARE = -1
NAME = "fragments"
BLOCK_WORKING_BYTES = 100  # working memory for each byte of a block, at most
ENTRY_BYTES = 80  # of working memory for each entry of a merge, about
RANGE_BYTES = 512 << 20
ALL_BITS = np.uint64((1 << 64) - 1)


class Seed(Way):
    """Rounds that prune by count alone and propose nothing.

    Args:
        alpha: the strength of sampling while counting; None counts the best path.
    """

    schedule = staticmethod(geometric)
    candidates_for_each = 1 << 24

    def __init__(self, alpha: float | None = None) -> None:
        self.alpha = alpha

    def weights(self, counts: np.ndarray, spread: np.ndarray) -> np.ndarray:
        return counts.astype(np.float64)

    def costs(self, weights: np.ndarray, characters: np.ndarray) -> np.ndarray:
        weights = np.maximum(weights, 0.5)
        same_length = np.bincount(characters, weights)[characters]
        return np.rint(np.log(same_length / weights) * COST_UNIT).astype(np.int32)

    def worth(self, weights: np.ndarray, without: np.ndarray) -> np.ndarray:
        return weights.copy()


def fragments(shards: Sequence[Path], folder: Path, settings: Settings, run: Run) -> tuple[Pieces, np.ndarray]:
    """The candidates and int64 counts of all their occurrences, sorted by bytes. Neither depends on the memory.

    Every part of a frequent fragment is frequent (Agrawal and Srikant, "Fast algorithms for mining association rules",
    1994), so a fragment of n characters is a pair of numbers of frequent ones of n - 1.
    """
    each = settings.memory // worker_count(settings.workers)
    block_bytes = min(PART_BYTES, each // (2 * BLOCK_WORKING_BYTES))
    tasks, _, _ = stretches(shards)
    kept = [folder / f"{NAME}-{length}-kept.npy" for length in range(LONGEST + 1)]
    points, found, least = np.empty((0, 0), np.uint32), [], 0
    for length in range(1, LONGEST + 1):
        name, shorter = f"{NAME}-{length}", f"{NAME}-{length - 1}"
        if not kept[length].exists():
            job = partial(_count, boundaries=settings.boundaries, length=length, block_bytes=block_bytes)
            before = zip(tasks, engines.results(folder, shorter, len(tasks)))
            results = run(job, [(task, path, kept[length - 1]) for task, path in before], folder, name)
            if length == 1:
                least = max(2, math.ceil(LEAST_SHARE * sum(int(counts.sum()) for _, counts in _tables(results))))
            merged = _merged(results, min(RANGE_BYTES, each // 2), least, folder, f"merged-{name}", run)
            write_whole(kept[length], lambda to: save_arrays(to, [*merged, np.array([least])]))
        engines.remove(folder, shorter)
        keys, counts, (least,) = map(np.array, open_arrays(kept[length]))
        if length == 1:
            points = keys.astype(np.uint32)[:, None]
        else:
            points = np.concatenate((points[keys >> 32], points[keys & 0xFFFFFFFF, -1:]), 1)
        found.append((points, counts))
    engines.remove(folder, f"{NAME}-{LONGEST}")
    for path in kept[1:]:
        path.unlink()
    return _sorted(found, settings.max_piece_bytes)


def _count(task: tuple[Sequence[Stretch], Path, Path], path: Path, boundaries: str, length: int,
           block_bytes: int) -> None:
    """Job: of each block of text four arrays: from each character the key of the fragment of `length` characters, int64
    [characters], RARE where a part of it is rare or a border lies inside; the sorted keys; their counts; and for one
    character bool: whether a piece must begin with it. A character's key is its code point; a longer fragment's, the
    numbers of its first and last `length` - 1 characters in the frequent ones. The task: where the text is, and what
    was left of it and of all text for one character less."""
    places, before, kept = task
    if length == 1:
        found = (_characters(text, forced) for stretch in places for text, forced in _blocks(stretch, boundaries,
                                                                                             block_bytes))
    else:
        frequent = np.array(open_arrays(kept)[0])
        found = (_longer(_numbers(keys, frequent), apart) for keys, _, _, apart in _of_blocks(before))
    save_arrays(path, (array for keys, apart in found
                       for array in (keys, *np.unique(keys[keys >= 0], return_counts=True), apart)))


def _blocks(stretch: Stretch, boundaries: str, block_bytes: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    text, starts = texts_of(stretch)
    return blocks(text, forced_starts(text, starts, boundaries), block_bytes)


def _characters(text: np.ndarray, forced: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 code points of a block, and bool: whether a piece must begin with this character."""
    points = np.frombuffer(text.tobytes().decode().encode("utf-32-le"), np.uint32).astype(np.int64)
    return points, forced[(text & 0xC0) != 0x80]


def _longer(numbers: np.ndarray, apart: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    left, right = numbers[:-1], numbers[1:]
    fine = (left >= 0) & (right >= 0)
    if len(apart):
        fine &= ~apart[1:]
    return np.append(np.where(fine, (left << 32) | right, RARE), RARE), np.empty(0, bool)


def _numbers(keys: np.ndarray, frequent: np.ndarray) -> np.ndarray:
    """The place of each key in the sorted frequent ones, RARE where it is not there."""
    if not len(frequent):
        return np.full(len(keys), RARE)
    places = np.minimum(np.searchsorted(frequent, keys), len(frequent) - 1)
    return np.where(frequent[places] == keys, places, RARE)


def _of_blocks(path: Path) -> Iterator[tuple[np.ndarray, ...]]:
    """What `_count` left of each block."""
    arrays = each_array(path)
    return zip(arrays, arrays, arrays, arrays)


def _tables(paths: Sequence[Path]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The sorted keys of each block and their counts."""
    return ((keys, counts) for path in paths for _, keys, counts, _ in _of_blocks(path))


class Range(NamedTuple):
    """Keys from `low` to below `high` (0: to the end), to be added up from the results of `_count` in `paths`; those
    seen less often than `least` are left out."""

    paths: Sequence[Path]
    low: int
    high: int
    least: int


def _merged(paths: Sequence[Path], range_bytes: int, least: int, folder: Path, name: str,
            run: Run) -> tuple[np.ndarray, np.ndarray]:
    """The keys seen at least `least` times, sorted, and their counts."""
    edges = range_edges(lambda: (keys.view(np.uint64) for keys, _ in _tables(paths)), range_bytes // ENTRY_BYTES,
                        ALL_BITS)
    engines.remove(folder, name)  # a killed training may have had other ranges
    ranges = [Range(paths, low, high, least) for low, high in zip([0, *edges], [*edges, 0])]
    parts = [list(map(np.array, open_arrays(path))) for path in run(_merge, ranges, folder, name)]
    engines.remove(folder, name)
    return np.concatenate([keys for keys, _ in parts]), np.concatenate([counts for _, counts in parts])


def _merge(task: Range, path: Path) -> None:
    """Job: the keys of a range and their counts."""
    found = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    for keys, counts in _tables(task.paths):
        low, high = np.searchsorted(keys, (task.low, task.high))
        high = high if task.high else len(keys)
        found.append((np.array(keys[low:high]), np.array(counts[low:high])))
    keys, counts = summed(found)
    save_arrays(path, [keys[counts >= task.least], counts[counts >= task.least]])


def _sorted(found: Sequence[tuple[np.ndarray, np.ndarray]], most_bytes: int) -> tuple[Pieces, np.ndarray]:
    """Fragments as pieces of at most `most_bytes`, sorted, and their counts.

    Args:
        found: code points, uint32 [fragments, length], and int64 counts, of each length.
    """
    counts = np.concatenate([counts for _, counts in found])
    rows = np.zeros((len(counts), LONGEST), ">u4")  # code points and one, so that 0 is no character
    at = 0
    for points, _ in found:
        rows[at : at + len(points), : points.shape[1]] = points + 1
        at += len(points)
    sizes = sum((rows > least).sum(1) for least in (0, 0x80, 0x800, 0x10000))
    order = np.argsort(rows.view(f"S{rows.itemsize * LONGEST}").ravel(), kind="stable")  # bytes sort as code points do
    order = order[sizes[order] <= most_bytes]
    rows = rows[order]
    text = (rows[rows > 0] - 1).astype("<u4").tobytes().decode("utf-32-le").encode()
    return Pieces(np.frombuffer(text, np.uint8), np.append(0, np.cumsum(sizes[order]))), counts[order]
