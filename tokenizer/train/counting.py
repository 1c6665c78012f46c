"""A pass over the text: how often each piece is used, in how much of the text, and what stands side by side."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tokenizer import best_path, drawing
from tokenizer.automaton import BASE, COST, FAIL, LENGTH, LINK, PARENT, ROOT
from tokenizer.compiled import compiled
from tokenizer.patterns import divided
from tokenizer.train.pairs import BLOCK_NUMBER_BITS, ID_BITS, MOST_BLOCKS
from tokenizer.train.spool import LINE_BYTES, each_array, open_arrays, open_shard, save_arrays

STRETCH_BYTES = 2 << 20  # text in memory at once
BLOCK_BITS = 14  # the spread of a piece is the number of blocks of 16 KB it occurs in
MOST_TASKS = 128  # each leaves a count of every piece on the disk
PAIR_SAMPLE_BYTES = 32 << 20  # pairs only propose pieces, so in a large corpus a sample of the text will do


class Stretch(NamedTuple):
    """Bytes `first` to `last` of a shard; in one of every few stretches pairs are counted too. `number` counts
    stretches, `block` the blocks of those before it where pairs are counted."""

    shard: Path
    first: int
    last: int
    pairs: bool
    number: int
    block: int


class Pass(NamedTuple):
    """The task of `count_pieces`: `tables` is a file of `write_tables`; pairs are counted if `pairs` says so; `cuts` is
    the result of `find_cuts` if there is a pattern; `drawn` is true for tables of `write_weights`, whose cuts are drawn
    by `seed`."""

    stretches: Sequence[Stretch]
    tables: Path
    pairs: bool
    cuts: Path | None = None
    drawn: bool = False
    seed: int = 0


class Counts(NamedTuple):
    """What passes found, added up.

    Attributes:
        counts: int64 [pieces], how often the best path uses each.
        spread: int64 [pieces], in how many blocks of text it does.
    """

    counts: np.ndarray
    spread: np.ndarray


def stretches(shards: Sequence[Path]) -> tuple[list[list[Stretch]], int, int]:
    """The corpus in tasks, the same for any number of workers; its bytes; and the bytes in which pairs are counted."""
    found = []
    for shard in shards:
        text, _ = open_shard(shard)
        first = 0
        while first < len(text):
            last = first + STRETCH_BYTES
            last = len(text) if last + STRETCH_BYTES // 2 > len(text) else _line_start(text, last)
            found.append((shard, first, last))
            first = last
    total = sum(last - first for _, first, last in found)
    stride = max(1, -(-total // PAIR_SAMPLE_BYTES))
    sampled = [number % stride == 0 for number in range(len(found))]
    before = np.cumsum([0, *(_blocks(last - first) * pairs for (_, first, last), pairs in zip(found, sampled))])
    found = [Stretch(*place, sampled[number], number, int(before[number])) for number, place in enumerate(found)]
    sampled = sum(place.last - place.first for place in found if place.pairs)
    edges = np.linspace(0, len(found), min(len(found), MOST_TASKS) + 1).astype(int)
    return [found[first:last] for first, last in zip(edges[:-1], edges[1:])], total, sampled


def _blocks(size: int) -> int:
    return (size >> BLOCK_BITS) + 1


def _line_start(text: np.ndarray, at: int) -> int:
    """The start of a line at or soon after a position, else of a character."""
    newlines = np.flatnonzero(text[at : at + LINE_BYTES] == 10)
    if len(newlines):
        return at + int(newlines[0]) + 1
    while at < len(text) and text[at] & 0xC0 == 0x80:
        at += 1
    return at


def write_tables(path: Path, rows: np.ndarray, lengths: np.ndarray, frequent: np.ndarray) -> None:
    """A file of what all tasks of a pass read: of the automaton, int64 [pieces] bytes of each piece, and bool [pieces]
    the pieces whose pairs are counted."""
    *arrays, longest = best_path.tables(rows)
    save_arrays(path, [lengths, frequent, *arrays])


def write_weights(path: Path, rows: np.ndarray, lengths: np.ndarray, frequent: np.ndarray, alpha: float) -> None:
    """As `write_tables`, for cuts drawn at random with strength `alpha` (drawing.py)."""
    save_arrays(path, [lengths, frequent, rows.view(np.uint32), *drawing.weights_of(rows[:, COST], alpha)])


def count_pieces(task: Pass, path: Path) -> None:
    """Job: the Counts of some stretches and, sorted, each occurrence of a pair of frequent pieces (pairs.py), as arrays
    in one file."""
    lengths, frequent, *arrays = _opened(task.tables)
    tables = () if task.drawn else best_path.Tables(*arrays, int(lengths.max()))
    counts, spread = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    seen = np.full(len(lengths), -1, np.int32)
    found = [np.empty(0, np.uint64)]
    block = 0
    cuts = each_array(task.cuts) if task.cuts else [None] * len(task.stretches)
    for stretch, cut in zip(task.stretches, cuts):
        text, starts = texts_of(stretch)
        starts = starts if cut is None else np.array(cut)
        ids, tokens = np.empty(len(text), np.int32), np.empty(len(starts) - 1, np.int64)
        if task.drawn:
            used = drawing.draw(*arrays, text, starts, np.full(len(tokens), stretch.number, np.uint64), starts[:-1],
                                np.uint64(task.seed), ids, tokens)
        else:
            used = best_path.encode(tables, text, starts, ids, tokens)
        ids = ids[:used]
        pairs = np.empty(len(ids) if task.pairs and stretch.pairs else 0, np.uint64)
        found.append(pairs[: _tally(ids, tokens, lengths, frequent, counts, spread, seen, block, pairs, stretch.block)])
        block += _blocks(len(text))
    pairs = np.concatenate(found)
    pairs.sort()
    save_arrays(path, [counts, spread, pairs])


_loaded: dict[tuple, list[np.ndarray]] = {}
_loading = threading.Lock()


def _opened(path: Path) -> list[np.ndarray]:
    """The arrays of a pass's tables, in memory once for all threads: random reads of mapped files are slower."""
    with _loading:
        file = path.stat()
        key = path, file.st_ino, file.st_mtime_ns
        if key not in _loaded:
            _loaded.clear()
            _loaded[key] = list(map(np.array, open_arrays(path)))
        return _loaded[key]


def forget(tables: Path) -> None:
    """Deletes the tables of a pass."""
    _loaded.clear()
    tables.unlink()


def find_cuts(task: tuple[Sequence[Stretch], str], path: Path) -> None:
    """Job: of each stretch where a pattern cuts it, int64 as `divided` has it. Once for all passes."""
    places, pattern = task
    save_arrays(path, [divided(*texts_of(stretch), pattern).starts for stretch in places])


def texts_of(stretch: Stretch) -> tuple[np.ndarray, np.ndarray]:
    """A stretch's text, uint8 [bytes], and int64 [documents + 1], where each document begins and the last one ends."""
    text, starts = open_shard(stretch.shard)
    first, last = np.searchsorted(starts, [stretch.first, stretch.last], "right")
    inside = starts[first:last]
    starts = np.concatenate(([stretch.first], inside[inside < stretch.last], [stretch.last])) - stretch.first
    return text[stretch.first : stretch.last], starts.astype(np.int64)


def added_up(paths: Sequence[Path]) -> Counts:
    """The sum of what the tasks of a pass left."""
    parts = [open_arrays(path) for path in paths]
    return Counts(*(sum(part[i] for part in parts) for i in (0, 1)))


def summed(found: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Several lists of keys, each with columns of numbers, as one: sorted, with the sums of what equal keys had."""
    keys, *columns = (np.concatenate(parts) for parts in zip(*found))
    if not len(keys):
        return [keys, *columns]
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return [keys[first], *(np.add.reduceat(column[order], first) for column in columns)]


@compiled
def _tally(ids, tokens, lengths, frequent, counts, spread, seen, block, pairs, pair_block):
    """Adds a stretch to `counts` and `spread`; `seen` is the block where each piece was last seen. Writes the pairs of
    frequent pieces to `pairs` (piece, next piece, block), if that has room, and returns how many. Blocks are counted
    from `block` on, for pairs from `pair_block` on."""
    at = 0
    token = 0
    used = 0
    with_pairs = len(pairs) > 0
    for length in tokens:
        before = np.int64(-1)
        end = token + length
        while token < end:
            piece = np.int64(ids[token])
            here = block + (at >> BLOCK_BITS)
            counts[piece] += 1
            if seen[piece] != here:
                seen[piece] = here
                spread[piece] += 1
            if with_pairs:
                if not frequent[piece]:
                    piece = np.int64(-1)
                elif before >= 0:
                    pair = np.uint64((before << ID_BITS) | piece)
                    number = np.uint64(here - block + pair_block)
                    pairs[used] = (pair << np.uint64(BLOCK_NUMBER_BITS)) | (number & np.uint64(MOST_BLOCKS - 1))
                    used += 1
                before = piece
            at += lengths[ids[token]]
            token += 1
    return used


@compiled
def tokens_without(rows, text, starts):
    """int64 [pieces]: into how many other pieces the best path cuts each piece if it could not use the piece itself.

    Args:
        rows: the automaton of the pieces.
        text, starts: the pieces joined, uint8, and int64 [pieces + 1], where each begins. A byte gives 1.
    """
    longest = 0
    for i in range(len(starts) - 1):
        longest = max(longest, starts[i + 1] - starts[i])
    best = np.zeros(longest + 1, np.int64)
    tokens = np.zeros(longest + 1, np.int64)
    result = np.empty(len(starts) - 1, np.int64)
    for i in range(len(starts) - 1):
        whole = starts[i + 1] - starts[i]
        state = ROOT
        for at in range(1, whole + 1):
            byte = np.int32(text[starts[i] + at - 1])
            while True:
                target = rows[state, BASE] + byte
                if rows[target, PARENT] == state:
                    state = target
                    break
                state = rows[state, FAIL]
            output = state if rows[state, LENGTH] > 0 else rows[state, LINK]
            if rows[output, LENGTH] == whole and whole > 1:
                output = rows[output, LINK]
            chosen = at - rows[output, LENGTH]
            cost = best[chosen] + rows[output, COST]
            output = rows[output, LINK]
            while output != ROOT:
                start = at - rows[output, LENGTH]
                if best[start] + rows[output, COST] < cost:
                    chosen, cost = start, best[start] + rows[output, COST]
                output = rows[output, LINK]
            best[at], tokens[at] = cost, tokens[chosen] + 1
        result[i] = tokens[whole]
    return result
