"""The cheapest cut of a text into pieces, in linear time, in two passes over a window of text.

The first pass runs the automaton and leaves, for each byte, the longest piece that ends there; the second takes the
pieces that end there, longest first, and keeps the cheapest way to arrive (dynamic programming). Of equally cheap ways
to reach a position the one whose last piece is longest is kept; costs are integers. So the cut depends on the text
alone, not on how the text came.

What makes it fast:
- The automaton's state follows from the last bytes alone, as many as the longest piece has. So four parts of the window
  are searched side by side, and one waits for memory while the others go on.
- A mispredicted branch costs more than the work it saves. So there is none where a state falls back, and the second
  pass takes three pieces of more than one byte without asking whether there are so many.
- The second pass knows beforehand all it will read, so memory does not make it wait.

Linear time: a state gains one byte for each byte of text and loses at least one in each fallback, so there are at most
as many of those; and at most 254 pieces end at a position (36 where training made them). A position that no piece
crosses divides the text: what lies before it is decided, written and forgotten.
"""

from __future__ import annotations

import numpy as np

from tokenizer.automaton import ROOT
from tokenizer.best_path_tables import BASE_MASK, BASE_SHIFT, BYTE_MASK, LENGTH_MASK, PIECE_SHIFT, Tables, tables
from tokenizer.compiled import compiled

__all__ = ["Tables", "encode", "tables"]

WINDOW = 4096  # bytes

# Sums of costs have 255 - length of the last piece in their lowest bits. So the least is the cheapest way, and of
# several the one whose last piece is longest; and sums[at + those bits] is the sum at the start of that piece, if the
# sum at the start of the window is sums[255].
_FIRST = LENGTH_MASK
_SUM_MASK = ~LENGTH_MASK
_NEVER = 1 << 61

_LOW, _FIRST_INDEX = np.uint32(LENGTH_MASK), np.uint64(LENGTH_MASK)
_ONE, _TWO, _THREE, _FOUR = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
_WORTH_IT = np.uint64(32)  # steps side by side


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
    shorter, overlap = shorter.ravel(), most - 1
    done, end = starts[0], starts[len(starts) - 1]
    room = min(window, end - done)
    sums = np.empty(_FIRST + room + 1, np.int64)
    _begin(sums, 0, _FIRST)
    lengths = np.empty(room, np.uint8)
    longest = np.empty(room, np.uint32)
    base = (steps[ROOT] >> BASE_SHIFT) & BASE_MASK
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
            _shorten(shorter, longest, at, stop, held + starts[row] - done, overlap)
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
            least = sums[_FIRST + first]
            for i in range(held):
                longest[i], lengths[i] = longest[first + i], lengths[first + i]
            for i in range(held + 1):
                sums[_FIRST + i] = sums[_FIRST + first + i] - least
            first = 0
    return total


@compiled
def _begin(sums, at, overlap):
    """A text begins at `at`: no piece comes from before."""
    for i in range(min(at + _FIRST, overlap)):
        sums[at + _FIRST - 1 - i] = _NEVER
    sums[at + _FIRST] = 0


@compiled
def _shorten(shorter, longest, at, stop, begin, overlap):
    """Near the beginning of a text: the longest pieces that do not begin before it."""
    for i in range(at, min(stop, begin + overlap)):
        while shorter[np.uint64(longest[i]) << _ONE] > i + 1 - begin:
            longest[i] = shorter[(np.uint64(longest[i]) << _ONE) + _ONE]


@compiled
def _larger(sums, lengths, longest, room, least):
    """Working memory for twice as much text, or for `least` bytes."""
    wider = max(2 * room, least)
    wider_sums = np.empty(_FIRST + wider + 1, np.int64)
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
    bytes early, at the root; what they write there is wrong, and written again by the part before, which comes there
    later: a part takes at most two tries for each of its first bytes, and has four times as many to go."""
    size, overlap = np.uint64(len(longest)), np.uint64(overlap)
    part = size // _FOUR
    root = (steps[ROOT] >> BASE_SHIFT) & BASE_MASK
    if part < _FOUR * overlap or part <= _WORTH_IT:
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
    above = (step >> BASE_SHIFT) & BASE_MASK
    longest[at] = step >> PIECE_SHIFT
    taken = step & BYTE_MASK == byte
    return above if taken else below, at + np.uint64(taken)


@compiled
def _search_on(steps, fallback, text, base, at, end, longest):
    """The bytes from `at` to `end` one after the other. Returns the base of the state after them."""
    while at < end:
        byte = np.uint64(text[at])
        step = steps[base + byte]
        while step & BYTE_MASK != byte:
            base = np.uint64(fallback[base])
            step = steps[base + byte]
        base, longest[at] = (step >> BASE_SHIFT) & BASE_MASK, step >> PIECE_SHIFT
        at += _ONE
    return base


@compiled
def _arrive(outputs, byte_costs, text, longest, sums, lengths):
    """The second pass: the least sum at each byte's end, and how long the last piece is."""
    least = sums[_FIRST]
    for i in range(len(longest)):
        at = np.uint64(i)
        row = np.uint64(longest[at]) << _TWO
        start = at + _ONE
        first, second, third = outputs[row], outputs[row + _ONE], outputs[row + _TWO]
        best = sums[start + np.uint64(first & _LOW)] + np.int64(first)
        best = min(best, sums[start + np.uint64(second & _LOW)] + np.int64(second))
        best = min(best, sums[start + np.uint64(third & _LOW)] + np.int64(third))
        others = np.uint64(outputs[row + _THREE])
        if others > 0:
            first = outputs[others]
            while first != 0:
                second = outputs[others + _ONE]
                more = sums[start + np.uint64(first & _LOW)] + np.int64(first)
                best = min(best, min(more, sums[start + np.uint64(second & _LOW)] + np.int64(second)))
                others += _TWO
                first = outputs[others]
        best = min(best, least + np.int64(byte_costs[np.uint64(text[at])]))
        least = best & _SUM_MASK
        sums[start + _FIRST_INDEX] = least
        lengths[at] = LENGTH_MASK - (best & LENGTH_MASK)


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
