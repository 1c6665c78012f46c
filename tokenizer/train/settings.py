"""What shapes a vocabulary, checked before any work."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tokenizer.boundaries import checked
from tokenizer.interface import TokenizerError

METHODS = ("discover", "seed", "seed-sampled")
ENGINES = ("local", "ray")
FEWEST_PIECES = 257
LONGEST_PIECE = 254  # bytes
LEAST_MEMORY = 64 << 20
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([KMGT]?)(?:I?B)?", re.IGNORECASE)


class TooLittleText(TokenizerError):
    """The text cannot give the vocabulary that is wanted: there is nothing to go on with."""


@dataclass(frozen=True)
class Settings:
    """How a vocabulary is trained.

    Attributes:
        vocab_size: pieces, the 256 bytes included, special tokens apart.
        rounds: how often the text is segmented, counted and pruned.
        max_piece_bytes: the longest piece.
        boundaries: the rule of `tokenizer.boundaries` that pieces keep to, or "pattern:REGEX" (`tokenizer.patterns`).
        memory: bytes that a training may use; what is larger goes to disk.
        method: where candidates come from and what is pruned: "discover", or for the seed system's own way "seed" or
            "seed-sampled" (`tokenizer.train.seed_method`).
        engine: "local" for threads of this process, "ray" for a Ray cluster. The vocabulary is the same.
        workers: how many tasks at once; 0 for as many as there are processors. The vocabulary is the same.
        allow_fewer: fewer pieces where the text gives no more, instead of an error.
    Raises:
        TokenizerError: a value outside its range.
    """

    vocab_size: int
    rounds: int = 12
    max_piece_bytes: int = 36
    boundaries: str = "default"
    memory: int = 4 << 30
    method: str = "discover"
    engine: str = "local"
    workers: int = 0
    allow_fewer: bool = False

    def __post_init__(self) -> None:
        _check(self.vocab_size >= FEWEST_PIECES, f"vocab_size must be at least {FEWEST_PIECES}, the 256 bytes and a "
               "piece", self.vocab_size)
        _check(self.vocab_size <= 1 << 24, f"vocab_size must be at most {1 << 24}", self.vocab_size)
        _check(1 <= self.rounds <= 100, "rounds must be in 1..100", self.rounds)
        _check(2 <= self.max_piece_bytes <= LONGEST_PIECE, f"max_piece_bytes must be in 2..{LONGEST_PIECE}",
               self.max_piece_bytes)
        object.__setattr__(self, "boundaries", checked(self.boundaries))
        _check(self.memory >= LEAST_MEMORY, f"memory must be at least {LEAST_MEMORY >> 20}MB", f"{self.memory} bytes")
        _check(self.method in METHODS, f"method must be one of {', '.join(METHODS)}", self.method)
        _check(self.engine in ENGINES, f"engine must be one of {', '.join(ENGINES)}", self.engine)
        _check(self.workers >= 0, "workers must be 0 (one for each processor) or more", self.workers)


def _check(fine: bool, rule: str, value: object) -> None:
    if not fine:
        raise TokenizerError(f"{rule}: got {value}")


def parse_bytes(text: str) -> int:
    """Bytes of a size such as 4GB, 512M or 1.5 GiB; units are powers of 1,024. TokenizerError for anything else."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise TokenizerError(f"a size must be a number with K, M, G or T behind, such as 4GB: got {text!r}")
    return int(float(found[1]) * (1 << _UNITS[found[2].upper()]))
