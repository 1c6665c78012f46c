"""The trained tokenizer: the cheapest cut of a text into pieces of a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenizer import automaton, best_path
from tokenizer.interface import TokenizerError, to_utf8
from tokenizer.vocabulary import Vocabulary


class PieceTokenizer:
    """Text to ids and back, lossless on any bytes."""

    kind = "pieces"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.special = {name: len(vocabulary) + i for i, name in enumerate(vocabulary.special)}
        self.vocab_size = len(vocabulary) + len(self.special)
        self.eod = self.special["<|end|>"]
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)
        self._rows = automaton.build(vocabulary.pieces, vocabulary.costs)
        self._lengths = np.array([len(piece) for piece in vocabulary.pieces] + [0] * len(self.special), np.int32)

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, uint16 when `vocab_size` <= 65,536, else uint32; lone surrogates become U+FFFD."""
        return self.encode_bytes(to_utf8(text))

    def encode_bytes(self, data: bytes) -> np.ndarray:
        """Ids of any bytes, valid UTF-8 or not."""
        return self.encode_batch([data])[0]

    def encode_batch(self, texts: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts joined, and int64 [texts + 1] where each text's begin and where the last one's end."""
        data = [to_utf8(text) if isinstance(text, str) else text for text in texts]
        starts = np.cumsum([0] + [len(text) for text in data])
        text = np.frombuffer(b"".join(data), np.uint8)
        ids = np.empty(len(text), self.dtype)
        counts = np.empty(len(data), np.int64)
        total = best_path.encode(self._rows, text, starts, ids, counts)
        return ids[:total].copy(), np.concatenate(([0], np.cumsum(counts)))

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of `ids` without special tokens; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The bytes that `ids` stand for; special tokens stand for none. TokenizerError for an id out of range."""
        ids = np.asarray(ids).reshape(-1)
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab_size):
            raise TokenizerError(f"token ids must be in 0..{self.vocab_size - 1}, got {ids.min()}..{ids.max()}")
        pieces = self.vocabulary.pieces
        return b"".join(pieces[i] for i in ids.tolist() if i < len(pieces))

    def token_bytes(self) -> np.ndarray:
        """int32 [vocab_size]: how many bytes of text each id stands for (0 for special ids)."""
        return self._lengths

    def fingerprint(self) -> str:
        """32 hexadecimal digits."""
        return self.vocabulary.fingerprint()
