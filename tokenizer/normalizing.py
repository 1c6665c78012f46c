"""From text to the bytes that are encoded, at once or in chunks: UTF-8, and before it the vocabulary's normalizer.

A normalizer changes a str, never bytes (Unicode Standard Annex #15).
"""

from __future__ import annotations

import re
import unicodedata

from tokenizer.interface import Tokenizer, to_utf8

# Characters that neither join nor reorder with those before them, so that both sides can be normalized apart: all
# below the first combining one (U+0300), white space and ideographs among them.
_APART = re.compile("[\0-\u02ff\u3400-\u9fff]")


def text_bytes(tokenizer: Tokenizer, text: str | bytes) -> bytes:
    """The bytes that `tokenizer.encode` encodes; bytes are left as they are."""
    return _normalized(text, _normalizer(tokenizer)) if isinstance(text, str) else text


class TextBytes:
    """The bytes of a text that comes in chunks: what all `push` calls and `flush` return, joined, is `text_bytes` of
    the whole.

    A str that ends in the first half of a surrogate pair waits for the second, at the start of the next str; if none
    comes it is a lone surrogate, which becomes U+FFFD. With a normalizer the end of a str waits for a character that
    does not join with it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._normalizer = _normalizer(tokenizer)
        self._held: list[str] = []

    def push(self, text: str | bytes) -> bytes:
        """The bytes that became certain."""
        if not text:
            return b""
        if not isinstance(text, str):
            return self.flush() + text
        cut = self._certain(text)
        if cut < 0:
            self._held.append(text)
            return b""
        ready, self._held = "".join([*self._held, text[:cut]]), [text[cut:]]
        return _normalized(ready, self._normalizer)

    def flush(self) -> bytes:
        """The bytes of the rest. Ready for a new text afterwards."""
        rest, self._held = "".join(self._held), []
        return _normalized(rest, self._normalizer)

    def _certain(self, text: str) -> int:
        """How many characters at the start of `text` no later text can change; -1 if what is held is open too."""
        if not self._normalizer:
            return len(text) - ("\ud800" <= text[-1] <= "\udbff")
        last = _APART.search(text[::-1])
        return len(text) - last.end() if last else -1


def _normalizer(tokenizer: Tokenizer) -> str:
    within = getattr(tokenizer, "tokenizer", tokenizer)
    return getattr(getattr(within, "vocabulary", None), "normalizer", "").upper()


def _normalized(text: str, normalizer: str) -> bytes:
    data = to_utf8(text)
    return unicodedata.normalize(normalizer, data.decode()).encode() if normalizer and not text.isascii() else data
