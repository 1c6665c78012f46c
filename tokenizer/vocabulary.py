"""A vocabulary: pieces of bytes with counts and costs, the rule that shaped them, and special tokens apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np

from tokenizer.boundaries import checked
from tokenizer.interface import SPECIAL_NAMES, TokenizerError
from tokenizer.patterns import is_pattern

BYTES = 256
COST_UNIT = 1 << 16  # costs are natural logarithms in steps of 1/65,536
NORMALIZERS = ("", "nfc", "nfkc")


class Pieces(Sequence[bytes]):
    """Pieces one after the other in one array; `bytes` objects are made when the first of them is asked for.

    Attributes:
        text: uint8 [bytes], the pieces joined.
        starts: int64 [pieces + 1], where each begins, and where the last ends.
    """

    def __init__(self, text: np.ndarray, starts: np.ndarray) -> None:
        self.text, self.starts = text, starts

    @classmethod
    def joined(cls, pieces: Sequence[bytes]) -> Pieces:
        """`pieces` in this form."""
        if isinstance(pieces, cls):
            return pieces
        starts = np.zeros(len(pieces) + 1, np.int64)
        np.cumsum([len(piece) for piece in pieces], out=starts[1:])
        return cls(np.frombuffer(b"".join(pieces), np.uint8), starts)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [pieces], in bytes."""
        return np.diff(self.starts)

    @cached_property
    def _list(self) -> list[bytes]:
        text, starts = self.text.tobytes(), self.starts.tolist()
        return [text[start:end] for start, end in pairwise(starts)]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index):
        return self._list[index]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._list)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._list == list(other)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Ids 0..255 are the bytes, then come the other pieces (those of a trained vocabulary by falling count), then the
    special tokens.

    Attributes:
        pieces: different, not empty; the first 256 are the single bytes in order. Any sequence of bytes, kept as
            `Pieces`.
        counts: int64 [pieces], how often training text used each.
        costs: int32 [pieces], >= 0: -log(probability) in 1/65,536 nats. What encoding goes by.
        boundaries: the rule that no piece breaks, a name of `tokenizer.boundaries`; or "pattern:REGEX", at whose
            matches text is cut before it is encoded (patterns.py).
        special: names of the special tokens, in the order of their ids.
        normalizer: what happens to a str before encoding: "" nothing, which alone is lossless; "nfc" or "nfkc" the
            Unicode form of that name. Bytes are never normalized.
        made_by: free-form, what JSON can hold: settings of the training, versions, sources.
    """

    pieces: Sequence[bytes]
    counts: np.ndarray
    costs: np.ndarray
    boundaries: str = "none"
    special: Sequence[str] = field(default=SPECIAL_NAMES)
    normalizer: str = ""
    made_by: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """TokenizerError when a rule above is broken."""
        if not len(self.pieces) == len(self.counts) == len(self.costs):
            raise TokenizerError(f"a vocabulary needs a count and a cost for each of its {len(self.pieces)} pieces, "
                                 f"got {len(self.counts)} and {len(self.costs)}")
        if list(self.pieces[:BYTES]) != [bytes([byte]) for byte in range(BYTES)]:
            raise TokenizerError("the first 256 pieces of a vocabulary must be the bytes in order")
        if repeated := _repeated(self.pieces):
            raise TokenizerError(f"a vocabulary's pieces must be different, got {repeated!r} twice")
        if b"" in self.pieces:
            raise TokenizerError("a vocabulary's pieces must not be empty")
        costs = np.asarray(self.costs)
        if costs.min() < 0 or costs.max() > np.iinfo(np.int32).max:
            raise TokenizerError(f"costs must be in 0..{np.iinfo(np.int32).max}, got {costs.min()}..{costs.max()}")
        if repeated := _repeated(self.special):
            raise TokenizerError(f"the names of special tokens must be different, got {repeated!r} twice")
        if SPECIAL_NAMES[0] not in self.special:
            raise TokenizerError(f"the special tokens must include {SPECIAL_NAMES[0]!r}, got {list(self.special)}")
        if self.normalizer not in NORMALIZERS:
            raise TokenizerError(f"the normalizer must be one of {list(NORMALIZERS)}, got {self.normalizer!r}")
        self._keep(pieces=Pieces.joined(self.pieces), counts=np.ascontiguousarray(self.counts, np.int64),
                   costs=np.ascontiguousarray(costs, np.int32), special=tuple(self.special),
                   boundaries=checked(self.boundaries))

    @classmethod
    def unchecked(cls, **values) -> Vocabulary:
        """A vocabulary that has been checked before: all attributes, of the types they are kept in."""
        vocabulary = object.__new__(cls)
        vocabulary._keep(**values)
        return vocabulary

    def _keep(self, **values) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.pieces)

    def fingerprint(self) -> str:
        """32 hexadecimal digits, equal exactly when ids are equal for every text: counts play no part."""
        digest = hashlib.blake2b(digest_size=16)
        pattern = [self.boundaries] if is_pattern(self.boundaries) else []
        digest.update(json.dumps([len(self), list(self.special), self.normalizer, *pattern]).encode())
        digest.update(self.pieces.lengths.astype("<i4").tobytes())
        digest.update(self.pieces.text.tobytes())
        digest.update(self.costs.astype("<i4").tobytes())
        return digest.hexdigest()


def costs_of(counts: np.ndarray) -> np.ndarray:
    """int32 costs, -log(count / total) in 1/65,536 nats; a count of 0 counts as half an occurrence."""
    counts = np.maximum(np.asarray(counts, np.float64), 0.5)
    return np.rint(np.log(counts.sum() / counts) * COST_UNIT).astype(np.int32)


def _repeated(values: Sequence) -> object:
    """The first value that comes a second time, None if there is none."""
    if len(set(values)) == len(values):
        return None
    seen = set()
    return next(value for value in values if value in seen or seen.add(value))
