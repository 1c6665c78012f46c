"""Small vocabularies that several tests use, and slow readable references of other systems' cutting."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from tokenizer.vocabulary import Vocabulary, costs_of

SINGLES = [bytes([byte]) for byte in range(256)]
AWKWARD = [b"\n\n", b" the", b'"', b"\\", b"\\n", b'{"hex": "e4"}', b"\xe4\xbd", b"\xbd\xa0", b"\xff\x00\xff",
           "你好".encode(), "\u2028a".encode(), "\u200bb".encode(), "\U0001f600".encode(), b"\xed\xa0\x80", b"  "]


def sample(extra: Sequence[bytes] = (), seed: int = 0, **settings) -> Vocabulary:
    """A vocabulary of the bytes, awkward pieces, random ones and `extra`, with random counts."""
    rng = np.random.default_rng(seed)
    random = [rng.integers(0, 256, rng.integers(2, 7)).astype(np.uint8).tobytes() for _ in range(40)]
    random += [bytes(rng.choice(list(b"ab \n"), rng.integers(2, 6)).astype(np.uint8)) for _ in range(40)]
    pieces = list(dict.fromkeys([*SINGLES, *(piece for piece in [*AWKWARD, *random, *extra] if len(piece) > 1)]))
    counts = rng.integers(0, 1000, len(pieces))
    return Vocabulary(pieces, counts, costs_of(counts), **settings)


def seed_pieces(counts: dict[str, int], text: str) -> list[str]:
    """The seed system's own cut (its tokenizer.py with alpha >= 5), characters in place of bytes, scores in float64.

    A position where no word ends has no record; what lies between it and the record before costs nothing. A record is
    replaced by a better one only if that starts at a position with a record.
    """
    totals: dict[int, int] = {}
    for word, count in counts.items():
        totals[len(word)] = totals.get(len(word), 0) + count
    longest = max(totals)
    value: list[float | None] = [0.0] + [None] * len(text)
    start = list(range(-1, len(text)))
    for end in range(1, len(text) + 1):
        for begin in range(max(end - longest, 0), end):
            word = text[begin:end]
            if word in counts:
                known = next(at for at in range(begin, -1, -1) if value[at] is not None)
                arrived = value[known] + math.log(counts[word] / totals[len(word)])
                if value[end] is None or arrived > value[end] and known == begin:
                    value[end], start[end] = arrived, begin
    cut, end = [], len(text)
    while end:
        cut.append(text[start[end] : end])
        end = start[end]
    return cut[::-1]


def best_cut(costs: dict[str, float], text: str, uncovered: float) -> list[str]:
    """The cheapest cut into words, a character that is no word costing `uncovered`; of equals the longest last word."""
    longest = max(map(len, costs))
    value, start = [0.0], [0]
    for end in range(1, len(text) + 1):
        ways = [(value[begin] + costs.get(text[begin:end], uncovered), begin)
                for begin in range(max(end - longest, 0), end) if text[begin:end] in costs or begin == end - 1]
        best = min(ways)
        value.append(best[0])
        start.append(best[1])
    cut, end = [], len(text)
    while end:
        cut.append(text[start[end] : end])
        end = start[end]
    return cut[::-1]


def bytepiece_pieces(counts: dict[bytes, int], text: str) -> list[bytes]:
    """bytepiece 0.6.3's cut: NFC, cut after newlines, best path in float64."""
    total = math.log(sum(counts.values()))
    longest = max(map(len, counts))
    cut = []
    for line in re.findall(".*\n+|.+", unicodedata.normalize("NFC", text)):
        data = line.encode()
        value, start = [0.0], [0]
        for end in range(1, len(data) + 1):
            value.append(-math.inf)
            start.append(end - 1)
            for begin in range(max(end - longest, 0), end):
                count = counts.get(data[begin:end])
                if count and value[begin] + math.log(count) - total > value[end]:
                    value[end], start[end] = value[begin] + math.log(count) - total, begin
        end, pieces = len(data), []
        while end:
            pieces.append(data[start[end] : end])
            end = start[end]
        cut += pieces[::-1]
    return cut
