"""The seed system's own method, for comparison: fragments of 1 to 7 characters, pruned by how often they are used.

A fragment is a candidate if it makes up 1e-6 of the text's fragments of its length. A piece of n characters costs
-log(count / count of all pieces of n characters), so length is free. Each round drops the least frequent, by the same
factor. The seed system drew segmentations at random while counting (strength alpha = 1); here the best path is counted,
which is half the work and changes bytes per token by a thousandth.

Candidates are added up in memory, some gigabytes for some hundred megabytes of text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tokenizer.boundaries import borders
from tokenizer.train import engines
from tokenizer.train.counting import Stretch, stretches, summed, texts_of
from tokenizer.train.rounds import Run, Way, geometric
from tokenizer.train.settings import Settings
from tokenizer.train.spool import open_arrays, save_arrays, write_whole
from tokenizer.vocabulary import COST_UNIT

LONGEST = 7  # characters
LEAST_SHARE = 1e-6
RARE = -1
NAME = "fragments"


class Seed(Way):
    """Rounds that prune by count alone and propose nothing."""

    schedule = staticmethod(geometric)
    candidates_for_each = 1 << 24

    def weights(self, counts: np.ndarray, spread: np.ndarray) -> np.ndarray:
        return counts.astype(np.float64)

    def costs(self, weights: np.ndarray, characters: np.ndarray) -> np.ndarray:
        weights = np.maximum(weights, 0.5)
        same_length = np.bincount(characters, weights)[characters]
        return np.rint(np.log(same_length / weights) * COST_UNIT).astype(np.int32)

    def worth(self, weights: np.ndarray, without: np.ndarray) -> np.ndarray:
        return weights.copy()


def fragments(shards: Sequence[Path], folder: Path, settings: Settings, run: Run) -> tuple[list[bytes], np.ndarray]:
    """The candidates and int64 counts of all their occurrences, sorted by bytes.

    Every part of a frequent fragment is frequent (Agrawal and Srikant, "Fast algorithms for mining association rules",
    1994), so a fragment of n characters is a pair of numbers of frequent ones of n - 1.
    """
    tasks, _, _ = stretches(shards)
    found: dict[str, int] = {}
    before: list = [None] * len(tasks)
    table, texts = folder / f"{NAME}-table.npy", []
    for length in range(1, LONGEST + 1):
        name = f"{NAME}-{length}"
        job = partial(_count, boundaries=settings.boundaries, length=length)
        results = run(job, [(task, path, table) for task, path in zip(tasks, before)], folder, name)
        keys, counts = summed([open_arrays(path)[1:3] for path in results])
        if length == 1:
            least = max(2, math.ceil(LEAST_SHARE * counts.sum()))
        keys, counts = keys[counts >= least], counts[counts >= least]
        if length == 1:
            texts = [chr(key) for key in keys.tolist()]
        else:
            texts = [texts[key >> 32] + texts[key & 0xFFFFFFFF][-1] for key in keys.tolist()]
        found.update(zip(texts, counts.tolist()))
        write_whole(table, lambda to: np.save(to, keys))
        engines.remove(folder, f"{NAME}-{length - 1}")
        before = results
    engines.remove(folder, f"{NAME}-{LONGEST}")
    table.unlink()
    whole = {text.encode(): count for text, count in found.items()}
    pieces = sorted(piece for piece in whole if len(piece) <= settings.max_piece_bytes)
    return pieces, np.array([whole[piece] for piece in pieces], np.int64)


def _count(task: tuple[Sequence[Stretch], Path | None, Path], path: Path, boundaries: str, length: int) -> None:
    """Job: from each character of the text the key of the fragment of `length` characters, int64 [characters], RARE
    where a part of it is rare or a border lies inside; then the sorted keys and their counts. A character's key is its
    code point; a longer fragment's, the numbers of its first and last `length` - 1 characters in the frequent ones."""
    places, before, table = task
    if length == 1:
        found = [_characters(stretch, boundaries) for stretch in places]
        keys, apart = (np.concatenate(columns) for columns in zip(*found))
        rest = [apart]
    else:
        numbers = _numbers(open_arrays(before)[0], np.load(table))
        left, right = numbers[:-1], numbers[1:]
        fine = (left >= 0) & (right >= 0)
        if length == 2:
            fine &= ~open_arrays(before)[3][1:]
        keys, rest = np.append(np.where(fine, (left << 32) | right, RARE), RARE), []
    save_arrays(path, [keys, *np.unique(keys[keys >= 0], return_counts=True), *rest])


def _numbers(keys: np.ndarray, frequent: np.ndarray) -> np.ndarray:
    """The place of each key in the sorted frequent ones, RARE where it is not there."""
    if not len(frequent):
        return np.full(len(keys), RARE)
    places = np.minimum(np.searchsorted(frequent, keys), len(frequent) - 1)
    return np.where(frequent[places] == keys, places, RARE)


def _characters(stretch: Stretch, boundaries: str) -> tuple[np.ndarray, np.ndarray]:
    """int64 code points of a stretch, and bool: whether a piece must begin with this character."""
    text, starts = texts_of(stretch)
    forced = borders(text, boundaries)
    forced[starts[:-1][starts[:-1] < len(text)]] = True
    points = np.frombuffer(text.tobytes().decode().encode("utf-32-le"), np.uint32).astype(np.int64)
    return points, forced[(text & 0xC0) != 0x80]
