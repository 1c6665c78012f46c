"""Stochastic segmentation: any cut of a text into pieces, the likelier the more often.

A cut has probability proportional to exp(alpha * sum of its pieces' log-probabilities) = exp(-alpha * cost), exactly
(drawing.py). alpha = 0 makes all cuts equally likely, alpha = infinity is the best path; the seed system counted with 1
and took 5 for infinity. The ids depend on the text, the seed and the document's number alone, not on chunks, batches or
threads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from tokenizer.automaton import COST
from tokenizer.base import BaseTokenizer, batch_bytes, check_count
from tokenizer.drawing import draw, weights_of
from tokenizer.interface import TokenizerError
from tokenizer.patterns import divided

BEST_PATH_FROM = 1 << 22  # cuts one step of cost apart then differ e^64 in probability


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
        self.dtype, self.pattern = tokenizer.dtype, tokenizer.pattern
        self._one_cut = tokenizer.token_bytes().max() == 1 or alpha >= BEST_PATH_FROM
        if not self._one_cut:
            self._weights, self._shifts = weights_of(tokenizer.automaton_rows[:, COST], self.alpha)

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
        parts = None
        if self.pattern:
            parts = divided(text, starts, self.pattern)
            texts = np.repeat(np.arange(len(starts) - 1), np.diff(parts.first, append=len(parts.starts) - 1))
            documents, positions = documents[texts], positions[texts] + parts.starts[:-1] - starts[texts]
            starts = parts.starts
        ends = np.zeros(len(starts), np.int64)
        shares = np.searchsorted(starts, np.linspace(0, len(text), threads + 1))
        shares[0], shares[-1] = 0, len(starts) - 1

        def work(first: int, last: int) -> np.ndarray:
            ids = np.empty(starts[last] - starts[first], np.int32)
            total = draw(rows, self._weights, self._shifts, text, starts[first : last + 1], documents[first:last],
                         positions[first:last], np.uint64(self.seed), ids, ends[first + 1 : last + 1])
            return ids[:total].astype(self.dtype)

        if threads == 1:
            ids = work(0, len(starts) - 1)
        else:
            with ThreadPoolExecutor(threads) as pool:
                ids = np.concatenate(list(pool.map(work, shares[:-1].tolist(), shares[1:].tolist())))
        if parts:
            ends = np.append(0, parts.added_up(ends[1:]))
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
