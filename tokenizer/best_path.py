"""The cheapest cut of a text into pieces, in linear time, in two passes over a window of text.

The first pass runs the automaton and leaves, for each byte, the longest piece that ends there; the second takes the
pieces that end there, longest first, and keeps the cheapest way to arrive (dynamic programming). Of equally cheap ways
to reach a position the one whose last piece is longest is kept; costs are integers. So the cut depends on the text
alone, not on how the text came.

What makes it fast:
- The automaton's state follows from the last bytes alone, as many as the longest piece has. So four parts of the window
  are searched side by side, and one waits for memory while the others go on.
- A state is one number of 64 bits: the byte that leads into it, the base of its children, its longest piece. A state
  without children behaves as the longest state that ends it and has some, so it has the base of that one.
- The second pass knows all it will read from memory beforehand. It takes three pieces of more than one byte without
  asking whether there are so many; a mispredicted branch costs more than the work.

Linear time: each byte takes one step and as many fallbacks as the state has lost bytes, and at most 254 pieces end at a
position. A position that no piece crosses divides the text: what lies before it is decided, written and forgotten.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tokenizer.automaton import BASE, COST, FAIL, LENGTH, LINK, PARENT, PIECE, ROOT
from tokenizer.compiled import compiled

WINDOW = 4096  # bytes
OUTPUTS = 3  # in a row of `Tables.outputs`, before the piece whose row goes on

# Sums of costs are multiples of 256. Below stands 255 - length of the last piece: the least sum is the cheapest way,
# and of several the one whose last piece is longest; and best[at + that] is the sum at the piece's start, if the sums
# of a text begin with best[255].
_SHIFT = 8
_BEFORE = 255
_SUM = ~_BEFORE
_NEVER = 1 << 61
_NARROW_COST, _WIDE_COST = 1 << 23, 1 << 32

_LABEL_BITS, _BASE_BITS = np.uint64(9), np.uint64(27)
_LABEL, _BASE_MASK = np.uint64((1 << 9) - 1), np.uint64((1 << 27) - 1)
_PIECE_SHIFT = np.uint64(36)
_NO_LABEL = np.uint64(256)
_ONE, _TWO, _THREE, _FOUR = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
_WORTH_IT = np.uint64(32)  # steps side by side
_LOW, _BASE_INDEX = np.uint32(_BEFORE), np.uint64(_BEFORE)


class Tables(NamedTuple):
    """What the search for best paths reads of an automaton.

    Attributes:
        steps: uint64 [states]: the byte that leads into a state (9 bits, 256: none), the base of its children or of
            the longest state that ends it and has some (27 bits), its longest piece (28 bits).
        fallback: uint32 [states], by base: the base to try when a byte does not follow.
        outputs: uint32, or uint64 for costs of 256 nats and more [pieces, 4], of a piece as the longest that ends at a
            position: this and the next two of more than one byte, longest first, each cost << 8 | 255 - length; then
            the piece whose row has the others, 0 for none.
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
    kind, unused = (np.uint32, _NARROW_COST) if rows[:, COST].max() < _NARROW_COST else (np.uint64, _WIDE_COST)
    steps, fallback = np.empty(len(rows), np.uint64), np.zeros(len(rows), np.uint32)
    outputs = np.zeros((pieces, OUTPUTS + 1), kind)
    outputs[:, :OUTPUTS] = 2 * unused - 1 << _SHIFT | _BEFORE - 2
    byte_costs, shorter = np.zeros(256, kind), np.empty((pieces, 2), np.int32)
    longest = _fill(rows, steps, fallback, outputs, byte_costs, shorter)
    return Tables(steps, fallback, outputs, byte_costs, shorter, longest)


@compiled
def _fill(rows, steps, fallback, outputs, byte_costs, shorter):
    """Writes tables. Returns the length of the longest piece."""
    longest = 1
    for state in range(len(rows)):
        parent = rows[state, PARENT]
        if parent < 0 and state != ROOT:
            steps[state] = _NO_LABEL
            continue
        label = np.int64(_NO_LABEL) if parent < 0 else state - rows[parent, BASE]
        output = state if rows[state, LENGTH] > 0 else rows[state, LINK]
        base = rows[_with_children(rows, state), BASE]
        steps[state] = np.uint64(label) | np.uint64(base) << _LABEL_BITS | np.uint64(rows[output, PIECE]) << _PIECE_SHIFT
        if rows[state, BASE] > 0 and state != ROOT:
            fallback[rows[state, BASE]] = rows[_with_children(rows, rows[state, FAIL]), BASE]
        if rows[state, LENGTH] == 0:
            continue
        piece, link = rows[state, PIECE], rows[state, LINK]
        longest = max(longest, rows[state, LENGTH])
        shorter[piece, 0], shorter[piece, 1] = rows[state, LENGTH], -1 if link == ROOT else rows[link, PIECE]
        if rows[state, LENGTH] == 1:
            byte_costs[label] = _packed(rows, state)
        for column in range(OUTPUTS):
            if rows[output, LENGTH] > 1:
                outputs[piece, column] = _packed(rows, output)
                output = rows[output, LINK]
            elif column > 0:
                outputs[piece, column] = outputs[piece, 0]
        if rows[output, LENGTH] > 1:
            outputs[piece, OUTPUTS] = rows[output, PIECE]
    return longest


@compiled
def _with_children(rows, state):
    """This state, or the longest that ends it and has children."""
    while rows[state, BASE] == 0:
        state = rows[state, FAIL]
    return state


@compiled
def _packed(rows, state):
    return np.int64(rows[state, COST]) << _SHIFT | _BEFORE - rows[state, LENGTH]


def encode(
    tables: Tables, text: np.ndarray, starts: np.ndarray, ids: np.ndarray, counts: np.ndarray, window: int = WINDOW
) -> int:
    """Ids of many texts.

    Args:
        text: uint8 [bytes], the texts joined.
        starts: int64 [texts + 1], where each begins, and where the last ends.
        ids: int32 [at least bytes], written: the ids of all texts, one after the other.
        counts: int64 [texts], written: the number of ids of each.
        window: bytes searched at once; the ids do not depend on it.
    Returns:
        How many ids were written.
    """
    return _encode(*tables, text, starts, ids, counts, window)  # a call with a tuple would take Numba 10 us longer


@compiled
def _encode(steps, fallback, outputs, byte_costs, shorter, most, text, starts, ids, counts, window):
    outputs, shorter, overlap = outputs.ravel(), shorter.ravel(), most - 1
    done, end = starts[0], starts[len(starts) - 1]
    room = min(window, end - done)
    sums = np.empty(_BEFORE + room + 1, np.int64)
    _begin(sums, 0, _BEFORE)
    lengths = np.empty(room, np.uint8)
    longest = np.empty(room, np.uint32)
    base = (steps[ROOT] >> _LABEL_BITS) & _BASE_MASK
    total = before = row = first = held = tried = 0
    while row < len(counts):
        size = min(window, end - done)
        if held + size > room:
            sums, lengths, longest = _larger(sums, lengths, longest, room, held + size)
            room = len(lengths)
        base = _search(steps, fallback, text[done:], base, overlap, longest[held : held + size])
        at, last = held, held + size
        while row < len(counts):
            stop = min(last, held + starts[row + 1] - done)
            _arrive(outputs, byte_costs, text[done + at - held :], longest[at:stop], sums[at:], lengths[at:])
            at = stop
            if done + at - held < starts[row + 1]:
                break
            total = _write(shorter, longest, lengths, first, at, ids, total)
            counts[row] = total - before
            before, row, first = total, row + 1, at
            _begin(sums, at, overlap)
        done += size
        cut = _last_cut(shorter, longest, max(first, tried), last, overlap)
        if cut > first:
            total = _write(shorter, longest, lengths, first, cut, ids, total)
            first = cut
        held, tried = last - first, last - overlap - first
        if first > 0:
            least = sums[_BEFORE + first]
            for i in range(held):
                longest[i], lengths[i] = longest[first + i], lengths[first + i]
            for i in range(held + 1):
                sums[_BEFORE + i] = sums[_BEFORE + first + i] - least
            first = 0
    return total


@compiled
def _begin(sums, at, overlap):
    """A text begins at `at`: no piece comes from before."""
    for i in range(min(at + _BEFORE, overlap)):
        sums[at + _BEFORE - 1 - i] = _NEVER
    sums[at + _BEFORE] = 0


@compiled
def _larger(sums, lengths, longest, room, least):
    """Working memory for twice as much text, or for `least` bytes."""
    wider = max(2 * room, least)
    wider_sums = np.empty(_BEFORE + wider + 1, np.int64)
    wider_lengths = np.empty(wider, np.uint8)
    wider_longest = np.empty(wider, np.uint32)
    for i in range(len(sums)):
        wider_sums[i] = sums[i]
    for i in range(room):
        wider_lengths[i], wider_longest[i] = lengths[i], longest[i]
    return wider_sums, wider_lengths, wider_longest


@compiled
def _search(steps, fallback, text, base, overlap, longest):
    """The first pass: the longest piece that ends at each byte of the window `text`, of which `longest` has the length.

    `base` is that of the state before the window. Returns that of the state after it. The later parts begin `overlap`
    bytes early, at the root; what they write there is wrong, and written again by the part before."""
    size, overlap = np.uint64(len(longest)), np.uint64(overlap)
    part = size // _FOUR
    root = (steps[ROOT] >> _LABEL_BITS) & _BASE_MASK
    if part < _FOUR * overlap or part < _WORTH_IT:
        return _search_on(steps, fallback, text, base, np.uint64(0), size, longest)
    end_a, end_b, end_c, end_d = part, _TWO * part, _THREE * part, size
    at_a, at_b, at_c, at_d = np.uint64(0), end_a - overlap, end_b - overlap, end_c - overlap
    base_a, base_b, base_c, base_d = base, root, root, root
    tries = part
    while tries > _WORTH_IT:
        for _ in range(tries):
            base_a, at_a = _try(steps, fallback, text, base_a, at_a, longest)
            base_b, at_b = _try(steps, fallback, text, base_b, at_b, longest)
            base_c, at_c = _try(steps, fallback, text, base_c, at_c, longest)
            base_d, at_d = _try(steps, fallback, text, base_d, at_d, longest)
        tries = min(min(end_a - at_a, end_b - at_b), min(end_c - at_c, end_d - at_d))
    _search_on(steps, fallback, text, base_a, at_a, end_a, longest)
    _search_on(steps, fallback, text, base_b, at_b, end_b, longest)
    _search_on(steps, fallback, text, base_c, at_c, end_c, longest)
    return _search_on(steps, fallback, text, base_d, at_d, end_d, longest)


@compiled
def _try(steps, fallback, text, base, at, longest):
    """Take the byte at `at`, or fall back and stay there; without a branch, which would be mispredicted often: so both
    bases are read before it is known which of them counts."""
    byte = np.uint64(text[at])
    step, below = steps[base + byte], np.uint64(fallback[base])
    above = (step >> _LABEL_BITS) & _BASE_MASK
    longest[at] = step >> _PIECE_SHIFT
    taken = step & _LABEL == byte
    return above if taken else below, at + np.uint64(taken)


@compiled
def _search_on(steps, fallback, text, base, at, end, longest):
    """The bytes from `at` to `end` one after the other. Returns the base of the state after them."""
    while at < end:
        byte = np.uint64(text[at])
        step = steps[base + byte]
        while step & _LABEL != byte:
            base = np.uint64(fallback[base])
            step = steps[base + byte]
        base, longest[at] = (step >> _LABEL_BITS) & _BASE_MASK, step >> _PIECE_SHIFT
        at += _ONE
    return base


@compiled
def _arrive(outputs, byte_costs, text, longest, sums, lengths):
    """The second pass: the least sum at each byte's end, and how long the last piece is."""
    least = sums[_BEFORE]
    for i in range(len(longest)):
        at = np.uint64(i)
        row = np.uint64(longest[at]) << _TWO
        start = at + _ONE
        first, second, third = outputs[row], outputs[row + _ONE], outputs[row + _TWO]
        best = sums[start + np.uint64(first & _LOW)] + np.int64(first)
        best = min(best, sums[start + np.uint64(second & _LOW)] + np.int64(second))
        best = min(best, sums[start + np.uint64(third & _LOW)] + np.int64(third))
        others = outputs[row + _THREE]
        while others != 0:
            row = np.uint64(others) << _TWO
            first, second, third = outputs[row], outputs[row + _ONE], outputs[row + _TWO]
            best = min(best, sums[start + np.uint64(first & _LOW)] + np.int64(first))
            best = min(best, sums[start + np.uint64(second & _LOW)] + np.int64(second))
            best = min(best, sums[start + np.uint64(third & _LOW)] + np.int64(third))
            others = outputs[row + _THREE]
        best = min(best, least + np.int64(byte_costs[np.uint64(text[at])]))
        least = best & _SUM
        sums[start + _BASE_INDEX] = least
        lengths[at] = _BEFORE - (best & _BEFORE)


@compiled
def _last_cut(shorter, longest, lowest, last, overlap):
    """The last position above `lowest` that no piece crosses, whatever follows after `last`; 0 if there is none."""
    cut, end = last - overlap, last
    while lowest < cut < end:
        end -= 1
        cut = min(cut, end + 1 - shorter[np.uint64(longest[end]) << _ONE])
    return cut if cut > lowest else 0


@compiled
def _write(shorter, longest, lengths, first, last, ids, total):
    """The ids of the best path from `first` to `last`. Found backwards, they are written to the end of the room there
    is, one per byte, and then move to `total`. Returns the new number of ids."""
    free = np.uint64(total + last - first)
    at = np.uint64(last)
    while at > np.uint64(first):
        length, piece = lengths[at - _ONE], np.uint64(longest[at - _ONE])
        while shorter[piece << _ONE] != length:
            piece = np.uint64(shorter[(piece << _ONE) + _ONE])
        free -= _ONE
        ids[free] = piece
        at -= np.uint64(length)
    pieces = total + last - first - np.int64(free)
    for i in range(pieces):
        ids[np.uint64(total + i)] = ids[free + np.uint64(i)]
    return total + pieces
