"""What the search for best paths (best_path.py) reads of an automaton: compact tables, made from its rows."""

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
            ends at a position. Three are this piece and the next shorter ones that end it and have more than one byte,
            each as cost << 8 | 255 - length. The fourth is where in the array the others stand, an even number of them,
            up to a 0; it is 0 if there are none.
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
    longest = _fill(rows, steps, fallback, outputs, byte_costs, shorter)
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
def _fill(rows, steps, fallback, outputs, byte_costs, shorter):
    """Writes tables. Returns the length of the longest piece."""
    longest = 1
    free = len(shorter) * (OUTPUTS + 1)
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
        for column in range(OUTPUTS):
            if rows[output, LENGTH] > 1:
                outputs[first + column] = _packed(rows, output)
                output = rows[output, LINK]
            elif column > 0:
                outputs[first + column] = outputs[first]
        if rows[output, LENGTH] > 1:
            outputs[first + OUTPUTS] = free
            while rows[output, LENGTH] > 1:
                outputs[free] = outputs[free + 1] = _packed(rows, output)
                output = rows[output, LINK]
                if rows[output, LENGTH] > 1:
                    outputs[free + 1], output = _packed(rows, output), rows[output, LINK]
                free += 2
            free += 1
    return longest


@compiled
def _with_children(rows, state):
    """This state, or the longest that ends it and has children."""
    while rows[state, BASE] == 0:
        state = rows[state, FAIL]
    return state


@compiled
def _packed(rows, state):
    return np.int64(rows[state, COST]) << COST_SHIFT | LENGTH_MASK - rows[state, LENGTH]
