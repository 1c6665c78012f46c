"""The text of shards in tasks of a few megabytes, a sample of it where it is large, and in blocks that borders part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tokenizer.boundaries import borders
from tokenizer.patterns import divided, is_pattern
from tokenizer.train.spool import open_shard

PART_BYTES = 2 << 20
BORDER_BYTES = 1 << 18  # borders are looked for in steps of this many bytes, whose working memory fits a cache
CONTEXT_BYTES = 8  # a step's neighbourhood: a border depends on the two characters beside it, of at most 4 bytes
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: multiples of it modulo 2^64 lie evenly


class Part(NamedTuple):
    """Documents `first` to `last` of a shard, the corpus's number `number` being the first, of which a task reads
    `share`; cut by the rule `boundaries` and read in blocks of about `block_bytes`."""

    shard: Path
    first: int
    last: int
    number: int
    share: float
    boundaries: str
    block_bytes: int


def parts(shards: Sequence[Path], share: float, boundaries: str, block_bytes: int) -> list[Part]:
    """The corpus as tasks of about 2 MB of documents, the same for any memory and number of workers.

    Args:
        share: how much of the corpus to take, 0 to 1: that share of the documents, evenly spread.
        block_bytes: bounds the working memory; results do not depend on it.
    """
    found = []
    number = 0
    for shard in shards:
        starts = np.load(shard.with_suffix(".npy"))
        documents = len(starts) - 1
        edges = np.searchsorted(starts[:-1], np.arange(0, starts[-1], PART_BYTES))
        edges = np.unique(np.append(edges, documents)).tolist()
        found += [Part(shard, first, last, number + first, share, boundaries, block_bytes)
                  for first, last in zip(edges[:-1], edges[1:])]
        number += documents
    return found


def read(part: Part) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields text, uint8 [bytes], and where words must start in it, bool [bytes]: at borders and documents' starts.

    A block ends where a word must start, so that what is found in blocks adds up to what is in the part.
    """
    text, starts = open_shard(part.shard)
    starts = starts[part.first : part.last + 1]
    text, starts = np.array(text[starts[0] : starts[-1]]), starts - starts[0]
    if part.share < 1:
        text, starts = _sampled(text, starts, part.number, part.share)
    yield from blocks(text, forced_starts(text, starts, part.boundaries), part.block_bytes)


def blocks(text: np.ndarray, forced: np.ndarray, block_bytes: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A text and its `forced_starts` in blocks of about `block_bytes`, each of which ends where a word must start."""
    at = 0
    while at < len(text):
        end = _block_end(forced, at, block_bytes)
        yield text[at:end], forced[at:end]
        at = end


def _block_end(forced: np.ndarray, at: int, block_bytes: int) -> int:
    """The last place within a block where a word must start; where there is none, the next one."""
    before = np.flatnonzero(forced[at + 1 : at + block_bytes + 1])
    if at + block_bytes >= len(forced):
        return len(forced)
    if len(before):
        return at + 1 + int(before[-1])
    after = at + block_bytes + int(np.argmax(forced[at + block_bytes :]))
    return after if forced[after] else len(forced)


def _sampled(text: np.ndarray, starts: np.ndarray, number: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Every document whose multiple of the golden ratio falls into the share, and where they begin, joined."""
    multiples = (np.arange(number, number + len(starts) - 1, dtype=np.uint64) * GOLDEN) >> np.uint64(32)
    chosen = np.flatnonzero(multiples < int(share * (1 << 32)))
    pieces = [text[starts[i] : starts[i + 1]] for i in chosen]
    lengths = [len(piece) for piece in pieces]
    return np.concatenate([np.empty(0, np.uint8), *pieces]), np.cumsum([0, *lengths])


def forced_starts(text: np.ndarray, starts: np.ndarray, boundaries: str) -> np.ndarray:
    """bool [bytes]: a word must start at this byte, for a border lies before it or a document begins."""
    forced = np.zeros(len(text), bool)
    if is_pattern(boundaries):
        starts = divided(text, starts, boundaries).starts
    else:
        for at in range(0, len(text), BORDER_BYTES):
            first = max(0, at - CONTEXT_BYTES)
            found = borders(text[first : at + BORDER_BYTES + CONTEXT_BYTES], boundaries)
            forced[at : at + BORDER_BYTES] = found[at - first : at - first + BORDER_BYTES]
    forced[starts[starts < len(text)]] = True
    return forced
