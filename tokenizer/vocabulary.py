"""A vocabulary: pieces of bytes with counts and costs, the rule that shaped them, and special tokens apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tokenizer.interface import SPECIAL_NAMES, TokenizerError

BYTES = 256
COST_UNIT = 1 << 16  # costs are natural logarithms in steps of 1/65,536


@dataclass(frozen=True)
class Vocabulary:
    """Ids 0..255 are the bytes, then come the other pieces (those of a trained vocabulary by falling count), then the
    special tokens.

    Attributes:
        pieces: different, not empty; the first 256 are the single bytes in order.
        counts: int64 [pieces], how often training text used each.
        costs: int32 [pieces], >= 0: -log(probability) in 1/65,536 nats. What encoding goes by.
        boundaries: the rule that no piece breaks, a name of `tokenizer.boundaries`.
        special: names of the special tokens, in the order of their ids.
        normalizer: applied to text before encoding; empty for none, which alone is lossless.
    """

    pieces: Sequence[bytes]
    counts: np.ndarray
    costs: np.ndarray
    boundaries: str = "none"
    special: Sequence[str] = field(default=SPECIAL_NAMES)
    normalizer: str = ""

    def __post_init__(self) -> None:
        if list(self.pieces[:BYTES]) != [bytes([byte]) for byte in range(BYTES)]:
            raise TokenizerError("the first 256 pieces of a vocabulary must be the bytes in order")
        if len(set(self.pieces)) != len(self.pieces) or b"" in self.pieces:
            raise TokenizerError("a vocabulary's pieces must be different and not empty")
        if not len(self.pieces) == len(self.counts) == len(self.costs):
            raise TokenizerError(f"a vocabulary needs a count and a cost for each of its {len(self.pieces)} pieces, "
                                 f"got {len(self.counts)} and {len(self.costs)}")
        if len(set(self.special)) != len(self.special):
            raise TokenizerError("the names of special tokens must be different")

    def __len__(self) -> int:
        return len(self.pieces)

    def fingerprint(self) -> str:
        """32 hexadecimal digits, equal exactly when ids are equal for every text: counts play no part."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(json.dumps([len(self), list(self.special), self.normalizer]).encode())
        digest.update(np.array([len(piece) for piece in self.pieces], "<i4").tobytes())
        digest.update(b"".join(self.pieces))
        digest.update(np.asarray(self.costs, "<i4").tobytes())
        return digest.hexdigest()


def costs_of(counts: np.ndarray) -> np.ndarray:
    """int32 costs, -log(count / total) in 1/65,536 nats; a count of 0 counts as half an occurrence."""
    counts = np.maximum(np.asarray(counts, np.float64), 0.5)
    return np.rint(np.log(counts.sum() / counts) * COST_UNIT).astype(np.int32)
