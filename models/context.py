"""How a model with rotary positions reads texts longer than those it was trained on: settings and their rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from engine.errors import UserError
from models.settings import check_keys, check_types, from_texts

KINDS = ("none", "linear", "ntk", "abf", "yarn", "dca")
PREFIX = "model.context."


@dataclass(frozen=True)
class ContextConfig:
    """Context extension; models/positions/scaling.py and dual_chunk.py have the formulas. UserError for a bad value.

    Attributes:
        kind: "none", "linear" (position interpolation), "ntk" (a base that follows from the factor), "abf" (a base that
            is given), "yarn" or "dca" (dual chunk attention).
        factor: by which the context grows: the model's `max_seq_len` becomes `trained_length` times this.
        trained_length: tokens of the context without extension; 0 means the model's `max_seq_len` before it grows.
        base: of the rotation with "abf".
        chunk: tokens of a chunk with "dca", below `trained_length`; 0 means three quarters of that.
        slow_turns, fast_turns: with "yarn", pairs of features that turn no more than so often within the trained length
            are slowed by the whole factor, and those that turn at least so often are left alone.
    """

    kind: str = "none"
    factor: float = 1.0
    trained_length: int = 0
    base: float = 500_000.0
    chunk: int = 0
    slow_turns: float = 1.0
    fast_turns: float = 32.0

    def __post_init__(self) -> None:
        check_types(self, PREFIX)
        if self.kind not in KINDS:
            raise UserError(f"{PREFIX}kind must be one of {', '.join(KINDS)}: got {self.kind!r}")
        if not 1.0 <= self.factor < math.inf:
            raise UserError(f"{PREFIX}factor must be a finite number from 1 on: got {self.factor}")
        if self.kind == "none" and self.factor != 1.0:
            raise UserError(f"{PREFIX}factor must be 1 while {PREFIX}kind is none: got {self.factor}")
        if not 0.0 < self.base < math.inf:
            raise UserError(f"{PREFIX}base must be a finite number above 0: got {self.base}")
        if not 0.0 <= self.slow_turns < self.fast_turns < math.inf:
            raise UserError(f"{PREFIX}slow_turns must be from 0 on and below {PREFIX}fast_turns ({self.fast_turns:g}): "
                            f"got {self.slow_turns:g}")
        for name in ("trained_length", "chunk"):
            if getattr(self, name) < 0:
                raise UserError(f"{PREFIX}{name} must be at least 0: got {getattr(self, name)}")
        if self.kind == "dca" and self.trained_length and not 1 <= self.chunk_tokens < self.trained_length:
            raise UserError(f"{PREFIX}chunk must be below the trained length ({self.trained_length}): "
                            f"got {self.chunk_tokens}")

    @classmethod
    def from_dict(cls, table: dict) -> ContextConfig:
        """From a `[model.context]` table; an unknown key is a UserError."""
        check_keys(cls, table, f"setting '{PREFIX}{{}}'")
        return cls(**table)

    def changed(self, settings: Sequence[str]) -> ContextConfig:
        """A copy with texts such as `model.context.kind=yarn` applied."""
        keys = [field.name for field in fields(self)]
        changes = from_texts(type(self), settings, PREFIX, keys, f"{PREFIX}{'|'.join(keys)}=value here")
        return replace(self, **changes)

    def of_length(self, max_seq_len: int) -> ContextConfig:
        """With the trained length known: that of a model that holds so many tokens where it is not given."""
        return self if self.kind == "none" or self.trained_length else replace(self, trained_length=max_seq_len)

    @property
    def length(self) -> int:
        """Tokens of the extended context."""
        return math.floor(self.trained_length * self.factor)

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a chunk; three quarters of the trained length are the choice of arXiv 2402.17463."""
        return self.chunk or 3 * self.trained_length // 4
