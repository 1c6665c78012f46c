"""Decoding ids as they come, character by character."""

import codecs
from collections.abc import Sequence

import numpy as np

from tokenizer.interface import Tokenizer


class StreamDecoder:
    """Turns ids into text as they arrive and holds back a character until its last byte is there.

    What all `push` calls and the final `flush` return, joined, equals `tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: int | Sequence[int] | np.ndarray) -> str:
        """The text that became certain with these ids; often empty in the middle of a character."""
        return self._decoder.decode(self._tokenizer.decode_bytes(np.atleast_1d(np.asarray(ids))))

    def flush(self) -> str:
        """The end of the text: an unfinished character becomes U+FFFD. Ready for a new text afterwards."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
