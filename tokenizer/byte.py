"""The byte tokenizer: every byte is a token."""

import hashlib
import json
import os
from collections.abc import Sequence

import numpy as np

from tokenizer.base import BaseTokenizer, batch_bytes, check_count
from tokenizer.interface import SPECIAL_NAMES, TokenizerError
from tokenizer.storage import write_json

BYTES = 256


class ByteTokenizer(BaseTokenizer):
    """Ids 0..255 are the bytes, ids 256..263 the special tokens. Needs no training and loses nothing."""

    kind = "byte"
    dtype = np.dtype(np.uint16)
    vocab_size = BYTES + len(SPECIAL_NAMES)

    def __init__(self) -> None:
        self.special = {name: BYTES + i for i, name in enumerate(SPECIAL_NAMES)}
        self.eod = self.special["<|end|>"]

    def encode_bytes(self, data: bytes) -> np.ndarray:
        """uint16 ids, one for each byte."""
        return np.frombuffer(data, np.uint8).astype(self.dtype)

    def encode_batch(self, texts: Sequence[str | bytes], threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts joined, and int64 [texts + 1] where each text's begin and where the last one's end."""
        check_count("threads", threads)
        data, starts = batch_bytes(self, texts)
        return self.encode_bytes(data), starts

    def _joined(self, ids: np.ndarray) -> bytes:
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
