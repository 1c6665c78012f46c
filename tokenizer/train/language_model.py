"""A byte n-gram model as an automaton: what each byte costs after up to five bytes before it, in one step a byte.

Nodes are n-grams, level by level, sorted within a level; the root is the empty one. So a node's children stand together
and in the order of their last bytes, and no node needs more than their range. A node's suffix link (Aho and Corasick,
1975) is its n-gram without the first byte: every part of an n-gram is at least as frequent as the n-gram, so it is a
node too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tokenizer.compiled import compiled
from tokenizer.train.ngrams import FIRST_BYTE, ORDER, level
from tokenizer.train.spool import open_arrays, save_arrays
from tokenizer.vocabulary import BYTES, COST_UNIT

# Columns of a row: the range of nodes to look for the next byte in (a whole n-gram has no children, so it has those of
# its suffix), the node to go on with if the byte is not there, and what the node's last byte costs after 1, 2, ...
# bytes before it.
FIRST, LAST, SUFFIX, COST = 0, 1, 2, 3
COLUMNS = COST + ORDER - 1
ROOT = 0
MISSING = 1 << 28  # the cost of an unseen n-gram: more than any path of seen ones saves, and sums of it fit 64 bits


class LanguageModel(NamedTuple):
    """Attributes:
        rows: int32 [nodes, 8], see the columns above.
        last_byte: uint8 [nodes], of each node's n-gram.
        cost: int32 [256], of each byte with nothing before it. All costs in 1/65,536 nats.
    """

    rows: np.ndarray
    last_byte: np.ndarray
    cost: np.ndarray

    @classmethod
    def open(cls, path: Path) -> LanguageModel:
        return cls(*open_arrays(path))


class Ngrams(NamedTuple):
    """The n-grams of `merge_windows` in the files `paths` that are seen at least `least` times."""

    paths: Sequence[Path]
    least: int


def build(task: Ngrams, path: Path) -> None:
    """A job: the model of the n-grams, as `LanguageModel.open` reads it."""
    save_arrays(path, language_model(task))


def language_model(task: Ngrams) -> LanguageModel:
    """cost(w_k | w_1 ... w_k-1) = log(count(w_1 ... w_k-1) / count(w_1 ... w_k)).

    A byte never seen counts as seen once.
    """
    above, above_counts = _bytes(task.paths)
    cost = np.rint(np.log(above_counts.sum() / above_counts) * COST_UNIT).astype(np.int32)
    levels = [level(task.paths, order, task.least) for order in range(2, ORDER + 1)]
    nodes = 1 + BYTES + sum(len(ngrams) for ngrams, _ in levels)
    rows = np.zeros((nodes, COLUMNS), np.int32)
    rows[:, COST:] = MISSING
    last_byte = np.zeros(nodes, np.uint8)
    first, last = 1, 1 + BYTES
    last_byte[first:last] = np.arange(BYTES)
    for order, (ngrams, counts) in enumerate(levels, 2):
        _link(ngrams, counts, above, above_counts, order, first, last, rows, last_byte)
        above, above_counts, first, last = ngrams, counts, last, last + len(ngrams)
    leaves, suffixes = rows[first:last], rows[rows[first:last, SUFFIX]]
    leaves[:, :COST] = suffixes[:, :COST]
    return LanguageModel(rows, last_byte, cost)


def _bytes(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    ngrams, seen = level(paths, 1, 1)
    counts = np.ones(BYTES, np.int64)
    counts[ngrams >> FIRST_BYTE] = seen
    return np.arange(BYTES, dtype=np.uint64) << FIRST_BYTE, counts


@compiled
def _link(ngrams, counts, above, above_counts, order, first, last, rows, last_byte):
    """Adds the level of n-grams of `order` bytes, nodes from `last` on, below the level whose nodes are `first` to
    `last`; both are sorted, so parents and the children of suffixes are found by going along."""
    shift = np.uint64(64 - 8 * order)
    parent_mask = ~((np.uint64(1) << (shift + np.uint64(8))) - np.uint64(1))
    parent = 0
    candidate = 0
    for i in range(len(ngrams)):
        node = last + i
        byte = np.uint8((ngrams[i] >> shift) & np.uint64(255))
        while above[parent] != ngrams[i] & parent_mask:
            parent += 1
        row = rows[node]
        above_row = rows[first + parent]
        suffix_of_parent = above_row[SUFFIX]
        if above_row[LAST] == 0:
            above_row[FIRST] = node
            candidate = rows[suffix_of_parent, FIRST]
        above_row[LAST] = node + 1
        last_byte[node] = byte
        if suffix_of_parent == ROOT:
            candidate = 1 + np.int64(byte)
        while last_byte[candidate] != byte:
            candidate += 1
        row[SUFFIX] = candidate
        for k in range(COST, COLUMNS):
            row[k] = rows[candidate, k]
        row[COST + order - 2] = np.int32(np.rint(np.log(above_counts[parent] / counts[i]) * COST_UNIT))
