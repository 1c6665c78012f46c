"""The compiled loops that draw random cuts of text into pieces.

Forward sums over all cuts up to each position, then pieces drawn from the end backwards, give exactly the probability
proportional to exp(-alpha * cost) (forward filtering, backward sampling; for words in Kudo, "Subword regularization",
2018, section 3.3).

The number drawn at a position is a function of seed, document and position (SplitMix64, whose state is a counter), and
the sums begin anew at each position that no piece crosses. So a document's cut depends on nothing else.
"""

from __future__ import annotations

import numpy as np

from tokenizer.automaton import BASE, DEPTH, FAIL, LENGTH, LINK, PARENT, PIECE, ROOT
from tokenizer.compiled import compiled
from tokenizer.vocabulary import COST_UNIT

STRETCH = 4096

# Numbers too small or large for a float64 are value * 2^(256 * power) with 2^-128 <= value < 2^128. A weight is
# value * 2^(-256 * shift) with 2^-256 < value <= 1: of a product three powers further down nothing is left.
_BITS = 256
_DOWN, _UP = 2.0**-_BITS, 2.0**_BITS
_SMALL, _LARGE = 2.0 ** (-_BITS // 2), 2.0 ** (_BITS // 2)
_NEGLIGIBLE = 3

_STEP = np.uint64(0x9E3779B97F4A7C15)  # of SplitMix64's counter
_DROPPED, _UNIT = np.uint64(11), 2.0**-53
_ROOT, _NONE, _ONE = np.uint32(ROOT), np.uint64(0), np.uint64(1)


def weights_of(costs: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """exp(-alpha * cost) as value * 2^(-256 * shift), float64 and int64."""
    bits = costs.astype(np.float64) * (alpha / COST_UNIT / np.log(2))
    shifts = np.floor(bits / _BITS)
    return np.exp2(shifts * _BITS - bits), shifts.astype(np.int64)


def draw(
    rows: np.ndarray, weights: np.ndarray, shifts: np.ndarray, text: np.ndarray, starts: np.ndarray,
    documents: np.ndarray, positions: np.ndarray, seed: np.uint64, ids: np.ndarray, counts: np.ndarray,
) -> int:
    """Random cuts of many texts; writes the number of ids of each to `counts` and returns it for all.

    Args:
        rows: uint32 [states, 8], the automaton. Unsigned numbers are the faster indices.
        weights, shifts: `weights_of` the costs in `rows`.
        text: uint8 [bytes], the texts joined.
        starts: int64 [texts + 1], where each begins, and where the last ends.
        documents, positions: uint64 and int64 [texts], the number of each text's document and where in it it begins.
        ids: int32 [at least bytes], written: the ids of all texts, one after the other.
    """
    with np.errstate(over="ignore"):  # numbers of 64 bits that wrap, where Numba is missing
        return _sample(rows, weights, shifts, text, starts, documents, positions, seed, ids, counts)


@compiled
def _sample(rows, weights, shifts, text, starts, documents, positions, seed, ids, counts):
    sums = np.empty(STRETCH, np.float64)
    powers = np.empty(STRETCH, np.int64)
    states = np.empty(STRETCH, np.uint32)
    total = 0
    for row in range(len(starts) - 1):
        before = total
        key = _mix(_mix(seed) + documents[row])
        position, end, state = starts[row], starts[row + 1], _ROOT
        origin = position
        while position < end:
            at = position - origin
            if at == len(sums) - 1:
                sums, powers, states = _larger(sums, powers, states)
            stop = min(end, origin + len(sums) - 1)
            state, cut = _forward(rows, weights, shifts, text[position:stop], np.uint64(at), state,
                                  sums, powers, states)
            position = stop
            if stop == end:
                cut = end - origin
            if cut > 0:
                shift = np.uint64(positions[row] + origin - starts[row])
                total = _draw(rows, weights, shifts, sums, powers, states, np.uint64(cut), key, shift, ids, total)
                rest = stop - origin - cut + 1
                sums[:rest], powers[:rest] = sums[cut : cut + rest], powers[cut : cut + rest]
                states[:rest] = states[cut : cut + rest]
                origin += cut
        counts[row] = total - before
    return total


@compiled
def _forward(rows, weights, shifts, text, at, state, sums, powers, states):
    """Go on from position `at` of a stretch, 0 at its beginning. sums[i] * 2^(256 * powers[i]) becomes the sum over all
    cuts of the stretch up to i, states[i] the automaton's state there.

    Returns:
        The state at the end, and the last position that no piece crosses, 0 for none."""
    cut = _NONE
    if at == 0:
        sums[at], powers[at] = 1.0, 0
    for i in range(len(text)):
        byte = np.uint32(text[i])
        while True:
            target = rows[state, BASE] + byte
            if rows[target, PARENT] == state:
                state = np.uint32(target)
                break
            state = rows[state, FAIL]
        if rows[state, DEPTH] == 1:
            sums[at], powers[at] = 1.0, 0
            cut = at
        at += _ONE
        value, power = _sum(rows, weights, shifts, sums, powers, at, state)
        if value < _SMALL:
            value, power = value * _UP, power - 1
        elif value >= _LARGE:
            value, power = value * _DOWN, power + 1
        sums[at], powers[at], states[at] = value, power, state
    return state, np.int64(cut)


@compiled
def _sum(rows, weights, shifts, sums, powers, at, state):
    """The sum over all cuts up to `at` as (value, power), by the pieces that end there."""
    output = state if rows[state, LENGTH] > 0 else rows[state, LINK]
    before = at - rows[output, LENGTH]
    value, power = sums[before] * weights[output], powers[before] - shifts[output]
    output = rows[output, LINK]
    while output != _ROOT:
        before = at - rows[output, LENGTH]
        term, gap = sums[before] * weights[output], power - (powers[before] - shifts[output])
        if gap == 0:
            value += term
        elif gap > 0:
            value += _lowered(term, gap)
        else:
            value, power = term + _lowered(value, -gap), power - gap
        output = rows[output, LINK]
    return value, power


@compiled
def _lowered(value, gap):
    if gap >= _NEGLIGIBLE:
        return 0.0
    for _ in range(gap):
        value *= _DOWN
    return value


@compiled
def _draw(rows, weights, shifts, sums, powers, states, at, key, origin, ids, total):
    """Draw the pieces of a stretch from its end `at` backwards; `origin` is where in its document it begins. Returns
    the new number of ids."""
    first = total
    while at > 0:
        state = states[at]
        value, power = _sum(rows, weights, shifts, sums, powers, at, state)
        left = value * (np.float64(_mix(key + (origin + at) * _STEP) >> _DROPPED) * _UNIT)
        output = state if rows[state, LENGTH] > 0 else rows[state, LINK]
        chosen = output
        while output != _ROOT and left >= 0:
            before = at - rows[output, LENGTH]
            term = _lowered(sums[before] * weights[output], power - (powers[before] - shifts[output]))
            if term > 0:
                chosen = output
            left -= term
            output = rows[output, LINK]
        ids[total] = rows[chosen, PIECE]
        total += 1
        at -= rows[chosen, LENGTH]
    last = total - 1
    while first < last:
        ids[first], ids[last] = ids[last], ids[first]
        first, last = first + 1, last - 1
    return total


@compiled
def _mix(z):
    """The number that SplitMix64 makes of its counter (Steele, Lea and Flood, "Fast splittable pseudorandom number
    generators", 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@compiled
def _larger(sums, powers, states):
    wider_sums = np.empty(2 * len(sums), np.float64)
    wider_powers = np.empty(2 * len(sums), np.int64)
    wider_states = np.empty(2 * len(sums), np.uint32)
    wider_sums[: len(sums)], wider_powers[: len(sums)], wider_states[: len(sums)] = sums, powers, states
    return wider_sums, wider_powers, wider_states
