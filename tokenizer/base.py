"""What tokenizers have in common: everything that follows from encoding a batch and from the bytes of each id."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence

import numpy as np

from tokenizer.interface import TokenizerError
from tokenizer.normalizing import text_bytes

PADDING = "<|pad|>"
UNITS = ("byte", "character")
SIDES = ("left", "right")


class BaseTokenizer(ABC):
    """Text to ids and back, lossless on any bytes.

    Attributes:
        pattern: "", or the rule at whose matches a text is cut before it is encoded (patterns.py).
    """

    vocab_size: int
    special: dict[str, int]
    dtype: np.dtype
    pattern = ""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str | bytes], threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts joined, and int64 [texts + 1] where each text's begin and where the last one's end."""

    @abstractmethod
    def token_bytes(self) -> np.ndarray:
        """int32 [vocab_size]: how many bytes of text each id stands for (0 for special ids)."""

    @abstractmethod
    def _joined(self, ids: np.ndarray) -> bytes:
        """The bytes of ids that are in range."""

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, uint16 when `vocab_size` <= 65,536, else uint32; lone surrogates become U+FFFD."""
        return self.encode_bytes(text_bytes(self, text))

    def encode_bytes(self, data: bytes) -> np.ndarray:
        """Ids of any bytes, valid UTF-8 or not."""
        return self.encode_batch([data])[0]

    def encode_with_offsets(self, text: str | bytes, unit: str = "byte") -> tuple[np.ndarray, np.ndarray]:
        """Ids, and int64 [ids + 1] where each begins in the text and where the last one ends.

        Args:
            unit: "byte" counts bytes of UTF-8, "character" Unicode code points. A character that several ids share
                belongs to the first of them. A normalizer, if there is one, comes before counting.
        """
        _check_one_of("unit", unit, UNITS)
        data = text_bytes(self, text)
        ids = self.encode_bytes(data)
        starts = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(self.token_bytes()[ids], out=starts[1:])
        if unit == "byte" or data.isascii():
            return ids, starts
        characters = np.zeros(len(data) + 1, np.int64)
        np.cumsum(np.frombuffer(data, np.int8) >= -64, out=characters[1:])
        return ids, characters[starts]

    def encode_padded(
        self, texts: Sequence[str | bytes], length: int, side: str = "right", truncate: str = "right", threads: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of one length: ids [texts, length], and bool [texts, length], true where an id is of the text.

        Args:
            side: where <|pad|> fills what is missing.
            truncate: where ids of a longer text are left out.
        Raises:
            TokenizerError: the vocabulary has no <|pad|>, or an argument is not as it must be.
        """
        _check_one_of("side", side, SIDES)
        _check_one_of("truncate", truncate, SIDES)
        check_count("length", length)
        if PADDING not in self.special:
            raise TokenizerError(f"padding needs the special token {PADDING}, got {list(self.special)}")
        ids, starts = self.encode_batch(texts, threads)
        sizes = np.minimum(np.diff(starts), length)[:, None]
        first = starts[:-1, None] if truncate == "right" else starts[1:, None] - sizes
        column = np.arange(length) - (0 if side == "right" else length - sizes)
        mask = (column >= 0) & (column < sizes)
        rows = np.full(mask.shape, self.special[PADDING], self.dtype)
        rows[mask] = ids[(first + column)[mask]]
        return rows, mask

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of `ids` without special tokens; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The bytes that `ids` stand for; special tokens stand for none. TokenizerError for an id out of range."""
        return self._joined(self._in_range(self._integers(ids)))

    def decode_batch(self, ids: Sequence[int] | np.ndarray, starts: Sequence[int] | np.ndarray) -> list[str]:
        """Texts of ids that stand one after the other, as `encode_batch` returns them.

        Args:
            starts: [texts + 1], not falling, in 0..len(ids): where each text's ids begin and where the last one's end.
        """
        ids, starts = self._in_range(self._integers(ids)), np.asarray(starts)
        if starts.ndim != 1 or not len(starts) or starts.dtype.kind not in "iu" or (np.diff(starts) < 0).any():
            raise TokenizerError(f"starts must be a list of integers that never fall, got {starts!r}")
        if starts[0] < 0 or starts[-1] > len(ids):
            raise TokenizerError(f"starts must be in 0..{len(ids)}, got {starts[0]}..{starts[-1]}")
        ids = ids[starts[0] : starts[-1]]
        ends = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(self.token_bytes()[ids], out=ends[1:])
        data, cuts = self._joined(ids), ends[starts - starts[0]].tolist()
        return [data[a:b].decode("utf-8", errors="replace") for a, b in zip(cuts[:-1], cuts[1:], strict=True)]

    def _integers(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Ids in one dimension, in range or not."""
        if isinstance(ids, list):
            try:
                return np.frombuffer(array("q", ids), np.int64)  # in a third of the time of np.asarray
            except (TypeError, OverflowError):
                pass
        ids = np.asarray(ids)
        if ids.size == 0:
            return np.empty(0, self.dtype)
        if ids.dtype.kind not in "iu":
            raise TokenizerError(f"token ids must be integers, got {ids.dtype}")
        return ids.reshape(-1)

    def _in_range(self, ids: np.ndarray) -> np.ndarray:
        if len(ids):
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high >= self.vocab_size:
                raise TokenizerError(f"token ids must be in 0..{self.vocab_size - 1}, got {low if low < 0 else high}")
        return ids


def check_count(name: str, value: int) -> None:
    """TokenizerError unless `value` is an integer from 1 on."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise TokenizerError(f"{name} must be an integer from 1 on, got {value!r}")


def batch_bytes(tokenizer: BaseTokenizer, texts: Sequence[str | bytes]) -> tuple[bytes, np.ndarray]:
    """The bytes of all texts joined, and int64 [texts + 1] where each begins and where the last one ends."""
    if isinstance(texts, (str, bytes)):
        raise TokenizerError(f"a batch must be a list of texts, got a {type(texts).__name__}")
    data = [text_bytes(tokenizer, text) for text in texts]
    starts = np.zeros(len(data) + 1, np.int64)
    np.cumsum([len(text) for text in data], out=starts[1:])
    return b"".join(data), starts


def _check_one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise TokenizerError(f"{name} must be one of {list(allowed)}, got {value!r}")
