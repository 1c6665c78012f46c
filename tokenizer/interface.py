"""What every tokenizer offers, and the special tokens they share."""

import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np

SPECIAL_NAMES = (
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|turn_end|>",
    "<|pad|>",
    "<|reserved_0|>",
    "<|reserved_1|>",
)


class TokenizerError(ValueError):
    """A tokenizer file that cannot be used, or ids that are no tokens; told in one line."""


class Tokenizer(Protocol):
    """Text to ids and back. Text never yields a special id; special ids stand for no text."""

    vocab_size: int
    special: dict[str, int]
    eod: int

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, uint16 when `vocab_size` <= 65,536, else uint32."""

    def encode_bytes(self, data: bytes) -> np.ndarray:
        """Ids of any bytes, valid UTF-8 or not."""

    def encode_batch(self, texts: Sequence[str | bytes], threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts joined, and int64 [texts + 1] where each text's begin and where the last one's end."""

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD."""

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """Exactly the bytes that `ids` stand for."""

    def token_bytes(self) -> np.ndarray:
        """int32 [vocab_size]: how many bytes of text each id stands for (0 for special ids)."""

    def fingerprint(self) -> str:
        """Equal for two tokenizers exactly when they give equal ids."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one JSON file that `tokenizer.load` reads."""


def to_utf8(text: str) -> bytes:
    """UTF-8 bytes of `text`; lone surrogates, which JSON escapes can smuggle in, become U+FFFD."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode("utf-8")
