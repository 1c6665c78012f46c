"""What the search for best paths (best_path.py) reads of an automaton: compact tables, made from its rows.

In a long run of one byte a piece ends at each position for each length that pieces of this byte alone have. Most cannot
be the last piece of the best path there, for of equal paths that with the longest last piece wins: whatever came before
such a piece, another two pieces, or one, cover the same bytes for no more and end with a longer one. They are left out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tokenizer.automaton import BASE, COST, FAIL, LENGTH, LINK, PARENT, PIECE, ROOT
from tokenizer.compiled import compiled

OUTPUTS = 3  # of a piece in `Tables.outputs`, before the number that leads to the others

# A cost and a length in one number: cost << 8 | 255 - length.
COST_SHIFT = 8
LENGTH_MASK = 255

# A step: a byte (NO_BYTE for none), a base, a piece, from the lowest bits up.
BASE_SHIFT, PIECE_SHIFT = np.uint64(9), np.uint64(36)
BYTE_MASK, BASE_MASK = np.uint64((1 << 9) - 1), np.uint64((1 << 27) - 1)
NO_BYTE = np.uint64(256)

# Below the first of these, costs fit 32 bits together with lengths. Twice that is more than any two pieces cost: where
# there are fewer outputs than numbers, a piece of that cost and two bytes takes their place and never wins. (With one
# byte the search would wait for the sum it has just written.)
_NARROW, _WIDE = 1 << 23, 1 << 32


class Tables(NamedTuple):
    """A state is known by its base alone, and states without children behave as the longest state that ends them and
    has some, so they have its base.

    Attributes:
        steps: uint64 [states]: the byte that leads into a state (9 bits), the base of its children (27 bits), the
            longest piece that ends in it (28 bits).
        fallback: uint32 [states], by base: the base to try when a byte does not follow.
        outputs: uint32, or uint64 where a cost is 128 nats or more: four numbers for each piece, as the longest that
            ends at a position. Three are this piece and the next shorter ones that end it, have more than one byte and
            can be the last of a best path, each as cost << 8 | 255 - length. The fourth is where in the array the
            others stand, an even number of them, up to a 0; it is 0 if there are none.
        byte_costs: as outputs [256].
        shorter: int32 [pieces, 2]: bytes of a piece; the next shorter piece that ends it, -1 for none.
        longest: bytes of the longest piece.
    """

    steps: np.ndarray
    fallback: np.ndarray
    outputs: np.ndarray
    byte_costs: np.ndarray
    shorter: np.ndarray
    longest: int


def tables(rows: np.ndarray) -> Tables:
    """The tables of an automaton (`automaton.build`)."""
    pieces = int(rows[:, PIECE].max()) + 1
    kind, bound = (np.uint32, _NARROW) if rows[:, COST].max() < _NARROW else (np.uint64, _WIDE)
    steps, fallback = np.empty(len(rows), np.uint64), np.zeros(len(rows), np.uint32)
    outputs = np.zeros(pieces * (OUTPUTS + 1) + _size_of_others(rows), kind)
    never = (2 * bound - 1 << COST_SHIFT) | LENGTH_MASK - 2
    outputs[: pieces * (OUTPUTS + 1)].reshape(pieces, OUTPUTS + 1)[:, :OUTPUTS] = never
    byte_costs, shorter = np.zeros(256, kind), np.empty((pieces, 2), np.int32)
    longest = _fill(rows, *_runs(rows), steps, fallback, outputs, byte_costs, shorter)
    return Tables(steps, fallback, outputs, byte_costs, shorter, longest)


@compiled
def _size_of_others(rows):
    """How much room the lists of others take, each with its 0."""
    size = 0
    for state in range(len(rows)):
        output, others = state if rows[state, LENGTH] > 0 else ROOT, -OUTPUTS
        while rows[output, LENGTH] > 1:
            output, others = rows[output, LINK], others + 1
        size += (others + 1) // 2 * 2 + 1 if others > 0 else 0
    return size


@compiled
def _runs(rows):
    """int64 [256] twice: the length of the longest piece of this byte alone, and of the longest run of it that ends a
    longer piece."""
    alone, behind = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for state in range(len(rows)):
        at, run = np.int64(state), 0
        byte = at - rows[rows[at, PARENT], BASE] if at != ROOT and rows[at, LENGTH] > 0 else -1
        while at != ROOT and at - rows[rows[at, PARENT], BASE] == byte:
            at, run = np.int64(rows[at, PARENT]), run + 1
        if run > 0:
            found = alone if at == ROOT else behind
            found[byte] = max(found[byte], run)
    return alone, behind


@compiled
def _worth_trying(rows, state, behind):
    """bool [bytes of the state's piece + 1]: the lengths that may be the last of a best path, where the state's piece
    is the longest of one byte alone and a run of up to `behind` such bytes ends longer pieces.

    A piece before it that begins outside the run leaves it no more than `behind` bytes shorter than the longest. Each
    other that is not longer than itself must be tried: with two longer ones, the second may as well come last."""
    most = rows[state, LENGTH]
    cost = np.full(most + 1, -1, np.int64)
    output = state
    while output != ROOT:
        cost[rows[output, LENGTH]] = rows[output, COST]
        output = rows[output, LINK]
    cost[0] = 0
    worth = np.zeros(most + 1, np.bool_)
    for last in range(1, most + 1):
        worth[last] = last >= most - behind
        for before in range(1, last + 1):
            beaten = cost[before] < 0
            for longer in range(last + 1, min(most, last + before) + 1):
                rest = last + before - longer
                there = cost[longer] >= 0 and cost[rest] >= 0
                beaten |= there and cost[rest] + cost[longer] <= cost[before] + cost[last]
            worth[last] |= not beaten
    return worth


@compiled
def _fill(rows, alone, behind, steps, fallback, outputs, byte_costs, shorter):
    """Writes tables. Returns the length of the longest piece."""
    longest = 1
    free = len(shorter) * (OUTPUTS + 1)
    every = np.ones(LENGTH_MASK + 1, np.bool_)
    for state in range(len(rows)):
        parent = rows[state, PARENT]
        if parent < 0 and state != ROOT:
            steps[state] = NO_BYTE
            continue
        byte = np.int64(NO_BYTE) if parent < 0 else state - rows[parent, BASE]
        output = state if rows[state, LENGTH] > 0 else rows[state, LINK]
        base = rows[_with_children(rows, state), BASE]
        steps[state] = np.uint64(byte) | np.uint64(base) << BASE_SHIFT | np.uint64(rows[output, PIECE]) << PIECE_SHIFT
        if rows[state, BASE] > 0 and state != ROOT:
            fallback[rows[state, BASE]] = rows[_with_children(rows, rows[state, FAIL]), BASE]
        if rows[state, LENGTH] == 0:
            continue
        piece, link = rows[state, PIECE], rows[state, LINK]
        longest = max(longest, rows[state, LENGTH])
        shorter[piece, 0], shorter[piece, 1] = rows[state, LENGTH], -1 if link == ROOT else rows[link, PIECE]
        if rows[state, LENGTH] == 1:
            byte_costs[byte] = _packed(rows, state)
        first = piece * (OUTPUTS + 1)
        whole_run = rows[state, LENGTH] == alone[byte] and _is_run(rows, state, byte)
        worth = _worth_trying(rows, state, behind[byte]) if whole_run else every
        for column in range(OUTPUTS):
            if rows[output, LENGTH] > 1:
                outputs[first + column] = _packed(rows, output)
                output = _next(rows, output, worth)
            elif column > 0:
                outputs[first + column] = outputs[first]
        if rows[output, LENGTH] > 1:
            outputs[first + OUTPUTS] = free
            while rows[output, LENGTH] > 1:
                outputs[free] = outputs[free + 1] = _packed(rows, output)
                output = _next(rows, output, worth)
                if rows[output, LENGTH] > 1:
                    outputs[free + 1], output = _packed(rows, output), _next(rows, output, worth)
                free += 2
            free += 1
    return longest


@compiled
def _is_run(rows, state, byte):
    while state != ROOT and state - rows[rows[state, PARENT], BASE] == byte:
        state = rows[state, PARENT]
    return state == ROOT


@compiled
def _next(rows, output, worth):
    """The next shorter piece of more than one byte that is worth trying; else a shorter one, or the root."""
    output = rows[output, LINK]
    while rows[output, LENGTH] > 1 and not worth[rows[output, LENGTH]]:
        output = rows[output, LINK]
    return output


@compiled
def _with_children(rows, state):
    """This state, or the longest that ends it and has children."""
    while rows[state, BASE] == 0:
        state = rows[state, FAIL]
    return state


@compiled
def _packed(rows, state):
    return np.int64(rows[state, COST]) << COST_SHIFT | LENGTH_MASK - rows[state, LENGTH]
