"""The cheapest cut of a text into pieces: one pass of the automaton, one of dynamic programming, in linear time.

Of equally cheap ways to reach a position the one whose last piece is longest is kept; costs are integers. So the cut
depends on the text alone, not on how the text came.

Wherever the automaton's state is one byte deep no piece crosses the position before that byte: what lies before it is
decided, and the working memory is the stretch between two such positions (Aho and Corasick's states are the longest
suffixes that begin a piece).
"""

from __future__ import annotations

import numpy as np

from tokenizer.automaton import BASE, COST, DEPTH, FAIL, LENGTH, LINK, PARENT, PIECE, ROOT
from tokenizer.compiled import compiled

STRETCH = 4096


@compiled
def encode(rows, text, starts, ids, counts):
    """Ids of many texts.

    Args:
        rows: int32 [states, 8], the automaton.
        text: uint8 [bytes], the texts joined.
        starts: int64 [texts + 1], where each begins, and where the last ends.
        ids: [at least bytes], written: the ids of all texts, one after the other.
        counts: int64 [texts], written: the number of ids of each.
    Returns:
        How many ids were written.
    """
    room = STRETCH
    best = np.empty(room + 1, np.int64)
    piece = np.empty(room + 1, np.int32)
    length = np.empty(room + 1, np.int32)
    total = 0
    for row in range(len(starts) - 1):
        before = total
        origin = starts[row]
        best[0] = 0
        state = ROOT
        at = 0
        for position in range(starts[row], starts[row + 1]):
            byte = np.int32(text[position])
            while True:
                target = rows[state, BASE] + byte
                if rows[target, PARENT] == state:
                    state = target
                    break
                state = rows[state, FAIL]
            if rows[state, DEPTH] == 1 and at >= STRETCH // 2:
                total = _write(ids, total, piece, length, at)
                origin, at, best[0] = position, 0, 0
            at += 1
            if at > room:
                best, piece, length = _larger(best, piece, length, room)
                room *= 2
            output = state if rows[state, LENGTH] > 0 else rows[state, LINK]
            cost = best[at - rows[output, LENGTH]] + rows[output, COST]
            chosen = output
            output = rows[output, LINK]
            while output != ROOT:
                other = best[at - rows[output, LENGTH]] + rows[output, COST]
                if other < cost:
                    cost, chosen = other, output
                output = rows[output, LINK]
            best[at], piece[at], length[at] = cost, rows[chosen, PIECE], rows[chosen, LENGTH]
        total = _write(ids, total, piece, length, at)
        counts[row] = total - before
    return total


@compiled
def _larger(best, piece, length, room):
    wider_best = np.empty(2 * room + 1, np.int64)
    wider_piece = np.empty(2 * room + 1, np.int32)
    wider_length = np.empty(2 * room + 1, np.int32)
    wider_best[: room + 1], wider_piece[: room + 1], wider_length[: room + 1] = best, piece, length
    return wider_best, wider_piece, wider_length


@compiled
def _write(ids, total, piece, length, at):
    """Follow the best path back from `at` and write it forwards. Returns the new number of ids."""
    pieces = 0
    back = at
    while back > 0:
        back -= length[back]
        pieces += 1
    where = total + pieces
    while at > 0:
        where -= 1
        ids[where] = piece[at]
        at -= length[at]
    return total + pieces
