"""Stochastic segmentation: any cut of a text into pieces, the likelier the more often.

A cut has probability proportional to exp(alpha * sum of its pieces' log-probabilities) = exp(-alpha * cost). Forward
sums over all cuts up to each position, then pieces drawn from the end backwards, give exactly this distribution
(forward filtering, backward sampling; for words in Kudo, "Subword regularization", 2018, section 3.3). alpha = 0 makes
all cuts equally likely, alpha = infinity is the best path; the seed system counted with 1 and took 5 for infinity.

The number drawn at a position is a function of seed, document and position (SplitMix64, whose state is a counter), and
the sums begin anew at each position that no piece crosses. So the ids depend on the text, the seed and the document's
number alone, not on chunks, batches or threads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from tokenizer.automaton import BASE, COST, DEPTH, FAIL, LENGTH, LINK, PARENT, PIECE, ROOT
from tokenizer.base import BaseTokenizer, batch_bytes, check_count
from tokenizer.compiled import compiled
from tokenizer.interface import TokenizerError
from tokenizer.vocabulary import COST_UNIT

BEST_PATH_FROM = 1 << 22  # cuts one step of cost apart then differ e^64 in probability
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


def sample(tokenizer: BaseTokenizer, text: str | bytes, alpha: float, seed: int, document: int = 0) -> np.ndarray:
    """Ids of one random cut of `text`. `SampledTokenizer` does many texts faster.

    Args:
        alpha: >= 0, how strongly likely cuts are preferred; math.inf is the best path.
        seed: 0 <= seed < 2^64.
        document: 0 <= document < 2^63; another number, another cut.
    """
    return SampledTokenizer(tokenizer, alpha, seed).encode_batch([text], first_document=document)[0]


class SampledTokenizer(BaseTokenizer):
    """A tokenizer that cuts at random; everything but encoding is as that of the tokenizer within.

    To pretrain on sampled text, wrap the run's tokenizer where text becomes ids and nowhere else (the run's folder
    keeps the tokenizer within, and generating uses that):

        source = SampledTokenizer(tokenizer, alpha, seed) if alpha is not None else tokenizer
        stream = StreamEncoder(source, document=shard_number << 32)
        for text, last in pieces:
            ids = stream.push(text)
            if last:
                rest = stream.flush()

    `flush` goes on to the next document's number. Documents that are there as a whole are faster in batches:
    `encode_batch(texts, threads, first_document)`. The fingerprint covers alpha and seed, so shards that were cut
    otherwise are not taken for these.

    Args:
        alpha, seed: as for `sample`.
    """

    def __init__(self, tokenizer: BaseTokenizer, alpha: float, seed: int) -> None:
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not alpha >= 0:
            raise TokenizerError(f"alpha must be a number >= 0: got {alpha!r}")
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 1 << 64:
            raise TokenizerError(f"the seed must be an integer in 0..2^64-1: got {seed!r}")
        self.tokenizer, self.alpha, self.seed = tokenizer, float(alpha), int(seed)
        self.vocab_size, self.special, self.eod = tokenizer.vocab_size, tokenizer.special, tokenizer.eod
        self.dtype = tokenizer.dtype
        self._one_cut = tokenizer.token_bytes().max() == 1 or alpha >= BEST_PATH_FROM
        if not self._one_cut:
            self._weights, self._shifts = _weights(tokenizer.automaton_rows[:, COST], self.alpha)

    def __reduce__(self):
        return SampledTokenizer, (self.tokenizer, self.alpha, self.seed)

    @property
    def automaton_rows(self) -> np.ndarray:
        """Those of the tokenizer within."""
        return self.tokenizer.automaton_rows

    def encode_batch(
        self, texts: Sequence[str | bytes], threads: int = 1, first_document: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts joined, and int64 [texts + 1] where each text's begin and where the last one's end; text i
        is document first_document + i. (A single text, as `encode` takes, is document 0.)"""
        data, starts = batch_bytes(self, texts)
        return self._encode(data, starts, np.arange(len(texts)) + first_document, np.zeros(len(texts), int), threads)

    def encode_parts(
        self, parts: Sequence[bytes], documents: Sequence[int], positions: Sequence[int], threads: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `encode_batch`, for parts of documents that begin where no piece crosses (`streaming.StretchCutter`).

        Args:
            documents: the number of each part's document.
            positions: where in its document each part begins, in bytes.
        """
        return self._encode(*batch_bytes(self, parts), documents, positions, threads)

    def _encode(
        self, data: bytes, starts: np.ndarray, documents: Sequence[int], positions: Sequence[int], threads: int
    ) -> tuple[np.ndarray, np.ndarray]:
        check_count("threads", threads)
        if self._one_cut:
            return self.tokenizer.encode_batch([data[a:b] for a, b in pairwise(starts.tolist())], threads)
        text, rows = np.frombuffer(data, np.uint8), self.automaton_rows.view(np.uint32)
        documents, positions = np.asarray(documents, np.uint64), np.asarray(positions, np.int64)
        ends = np.zeros(len(starts), np.int64)
        shares = np.searchsorted(starts, np.linspace(0, len(text), threads + 1))
        shares[0], shares[-1] = 0, len(starts) - 1

        def work(first: int, last: int) -> np.ndarray:
            ids = np.empty(starts[last] - starts[first], np.int32)
            with np.errstate(over="ignore"):  # numbers of 64 bits that wrap, where Numba is missing
                total = _sample(rows, self._weights, self._shifts, text, starts[first : last + 1],
                                documents[first:last], positions[first:last], np.uint64(self.seed), ids,
                                ends[first + 1 : last + 1])
            return ids[:total].astype(self.dtype)

        if threads == 1:
            ids = work(0, len(starts) - 1)
        else:
            with ThreadPoolExecutor(threads) as pool:
                ids = np.concatenate(list(pool.map(work, shares[:-1].tolist(), shares[1:].tolist())))
        return ids, np.cumsum(ends)

    def _joined(self, ids: np.ndarray) -> bytes:
        return self.tokenizer._joined(ids)

    def token_bytes(self) -> np.ndarray:
        """As the tokenizer within."""
        return self.tokenizer.token_bytes()

    def fingerprint(self) -> str:
        """32 hexadecimal digits, of the tokenizer within, alpha and seed."""
        content = json.dumps([self.tokenizer.fingerprint(), self.alpha, self.seed]).encode()
        return hashlib.blake2b(content, digest_size=16).hexdigest()


def _weights(costs: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """exp(-alpha * cost) as value * 2^(-256 * shift), float64 and int64."""
    bits = costs.astype(np.float64) * (alpha / COST_UNIT / np.log(2))
    shifts = np.floor(bits / _BITS)
    return np.exp2(shifts * _BITS - bits), shifts.astype(np.int64)


@compiled
def _sample(rows, weights, shifts, text, starts, documents, positions, seed, ids, counts):
    """Random cuts of many texts; writes the number of ids of each to `counts` and returns it for all.

    Args:
        rows: uint32 [states, 8], the automaton. Unsigned numbers are the faster indices.
        text: uint8 [bytes], the texts joined.
        starts: int64 [texts + 1], where each begins, and where the last ends.
        ids: int32 [at least bytes], written: the ids of all texts, one after the other.
    """
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
