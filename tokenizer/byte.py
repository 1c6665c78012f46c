"""The byte tokenizer: every byte is a token."""

import hashlib
import json
import os
from collections.abc import Sequence

import numpy as np

from tokenizer.interface import SPECIAL_NAMES, TokenizerError, to_utf8
from tokenizer.storage import write_json

BYTES = 256


class ByteTokenizer:
    """Ids 0..255 are the bytes, ids 256..263 the special tokens. Needs no training and loses nothing."""

    kind = "byte"
    vocab_size = BYTES + len(SPECIAL_NAMES)

    def __init__(self) -> None:
        self.special = {name: BYTES + i for i, name in enumerate(SPECIAL_NAMES)}
        self.eod = self.special["<|end|>"]

    def encode(self, text: str) -> np.ndarray:
        """uint16 ids of the text's UTF-8 bytes (lone surrogates become U+FFFD)."""
        return self.encode_bytes(to_utf8(text))

    def encode_bytes(self, data: bytes) -> np.ndarray:
        """uint16 ids, one for each byte."""
        return np.frombuffer(data, dtype=np.uint8).astype(np.uint16)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of `ids` without special tokens; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The bytes that `ids` stand for; special tokens stand for none. TokenizerError for an id out of range."""
        ids = np.asarray(ids)
        if ids.size == 0:
            return b""
        if ids.dtype.kind not in "iu":
            raise TokenizerError(f"token ids must be integers, got {ids.dtype}")
        ids = ids.reshape(-1)
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.vocab_size:
            raise TokenizerError(f"token ids must be in 0..{self.vocab_size - 1}, got {low if low < 0 else high}")
        return ids[ids < BYTES].astype(np.uint8).tobytes()

    def token_bytes(self) -> np.ndarray:
        """int32 [vocab_size]: 1 for every byte, 0 for special tokens."""
        lengths = np.ones(self.vocab_size, dtype=np.int32)
        lengths[BYTES:] = 0
        return lengths

    def to_json(self) -> dict:
        """What the file holds beside the format's name and version."""
        return {"kind": self.kind, "special": self.special}

    @classmethod
    def from_json(cls, content: dict) -> "ByteTokenizer":
        """The inverse of `to_json`; TokenizerError when the file's special tokens are not this version's."""
        tokenizer = cls()
        if content.get("special") != tokenizer.special:
            raise TokenizerError(f"the special tokens must be {tokenizer.special}, got {content.get('special')}")
        return tokenizer

    def fingerprint(self) -> str:
        """32 hexadecimal digits."""
        content = json.dumps(self.to_json(), sort_keys=True).encode()
        return hashlib.blake2b(content, digest_size=16).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON file, whole or not at all."""
        write_json(path, self.to_json())
