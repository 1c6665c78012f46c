"""The cut of a text into words that a byte n-gram model likes best.

bytepiece's way (https://github.com/bojone/bytepiece, "novel word discovery"): a byte that starts a word has nothing
before it, the second one byte before it, and from the sixth on five. Starting a word costs nothing itself; what it
costs is forgetting. The best cut is found by dynamic programming over the position within a word, at most the sixth.
No word starts inside a character of UTF-8, and one starts wherever the caller forces it.
"""

from __future__ import annotations

import numpy as np

from tokenizer.compiled import compiled
from tokenizer.train.language_model import COST, FIRST, LAST, MISSING, ROOT, SUFFIX, LanguageModel
from tokenizer.train.ngrams import ORDER

NEVER = 1 << 60
FEW = 8  # children that are looked through one by one


def word_starts(model: LanguageModel, text: np.ndarray, forced: np.ndarray, most_bytes: int) -> np.ndarray:
    """bool [bytes]: where the words of the cheapest cut begin.

    Words longer than `most_bytes` are cut once more, by the same model under that bound.

    Args:
        text: uint8 [bytes], UTF-8.
        forced: bool [bytes], where a word must begin.
    """
    starts = np.zeros(len(text), bool)
    _segment(*model, text, forced, starts)
    _cut_again(*model, text, starts, most_bytes)
    return starts


@compiled
def _segment(rows, last_byte, cost, text, forced, starts):
    """Of equally cheap words that end at a byte the one whose last byte is nearest its start is taken."""
    room = 1 << 12
    start_of_best = np.empty(room, np.int32)
    origin = 0
    while origin < len(text):
        end = origin + 1
        while end < len(text) and not forced[end]:
            end += 1
        while end - origin > room:
            room *= 2
            start_of_best = np.empty(room, np.int32)
        # c0..c5: the cheapest path to here whose word began 0, 1, 2, 3, 4, or 5 and more bytes before; s0..s5: where.
        best, best_start = np.int64(0), 0
        c0 = c1 = c2 = c3 = c4 = c5 = np.int64(NEVER)
        s1 = s2 = s3 = s4 = s5 = 0
        s0 = 0
        node = np.int64(ROOT)
        for at in range(end - origin):
            byte = text[origin + at]
            node = _next(rows, last_byte, node, byte)
            row = rows[node]
            if c4 <= c5:
                c5, s5 = c4, s4
            c5 += row[COST + 4]
            c4, s4 = c3 + row[COST + 3], s3
            c3, s3 = c2 + row[COST + 2], s2
            c2, s2 = c1 + row[COST + 1], s1
            c1, s1 = c0 + row[COST], s0
            c0, s0 = best + cost[byte], at
            if at > 0 and byte & 0xC0 == 0x80:
                c0 = np.int64(NEVER)
            best, best_start = c0, s0
            if c1 < best:
                best, best_start = c1, s1
            if c2 < best:
                best, best_start = c2, s2
            if c3 < best:
                best, best_start = c3, s3
            if c4 < best:
                best, best_start = c4, s4
            if c5 < best:
                best, best_start = c5, s5
            start_of_best[at] = best_start
        at = end - origin
        while at > 0:
            at = start_of_best[at - 1]
            starts[origin + at] = True
        origin = end


@compiled
def _next(rows, last_byte, node, byte):
    while node != ROOT:
        low, high = np.int64(rows[node, FIRST]), np.int64(rows[node, LAST])
        while high - low > FEW:
            middle = (low + high) >> 1
            if last_byte[middle] <= byte:
                low = middle
            else:
                high = middle
        while low < high:
            if last_byte[low] == byte:
                return low
            low += 1
        node = np.int64(rows[node, SUFFIX])
    return 1 + np.int64(byte)


@compiled
def _cut_again(rows, last_byte, cost, text, starts, most):
    """Cuts words of more than `most` bytes, adding to `starts`: the cheapest way of all words of at most that length,
    and of equally cheap last words the longest."""
    open_costs = np.empty(most, np.int64)  # of the cheapest way here whose last word began at a place, modulo `most`
    origin = 0
    while origin < len(text):
        end = origin + 1
        while end < len(text) and not starts[end]:
            end += 1
        if end - origin > most:
            start_of_best = np.empty(end - origin, np.int32)
            node = np.int64(ROOT)
            best = np.int64(0)
            for at in range(end - origin):
                byte = text[origin + at]
                node = _next(rows, last_byte, node, byte)
                open_costs[at % most] = np.int64(NEVER) if byte & 0xC0 == 0x80 else best
                first = max(0, at - most + 1)
                best = np.int64(2 * NEVER)
                for start in range(first, at + 1):
                    before = at - start
                    step = cost[byte] if before == 0 else rows[node, COST - 1 + min(before, ORDER - 1)]
                    open_costs[start % most] += step
                    if open_costs[start % most] < best:
                        best = open_costs[start % most]
                        start_of_best[at] = start
            at = end - origin
            while at > 0:
                at = start_of_best[at - 1]
                starts[origin + at] = True
        origin = end
