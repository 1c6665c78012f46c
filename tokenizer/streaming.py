"""Encoding text and decoding ids as they come."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

import numpy as np

from tokenizer.automaton import BASE, DEPTH, FAIL, PARENT, ROOT
from tokenizer.compiled import compiled
from tokenizer.interface import Tokenizer
from tokenizer.normalizing import TextBytes
from tokenizer.sampling import SampledTokenizer

TAIL = 1024  # bytes at the end of a long chunk in which there is nearly always a place to cut
_ROOT = np.uint32(ROOT)


class StretchCutter:
    """Cuts a text that comes in chunks into stretches whose ids, joined, are those of the whole text.

    Wherever the automaton's state is one byte deep no piece crosses the position before that byte (best_path.py).
    What lies before the last such position is handed out, the rest is held back. Each byte is looked at once, or twice
    in a long chunk; memory is the longest stretch without such a position, and one chunk. With a pattern
    (patterns.py) there is none but the text's end: no match is certain before.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._longest = int(tokenizer.token_bytes().max())
        self._rows = tokenizer.automaton_rows.view(np.uint32) if self._longest > 1 else None
        self._whole = bool(getattr(tokenizer, "pattern", ""))
        self._text = TextBytes(tokenizer)
        self._state = _ROOT
        self._held = bytearray()

    def push(self, text: str | bytes) -> bytes:
        """The stretch that this chunk completes; often empty."""
        data = self._text.push(text)
        cut = -1 if self._whole else self._last_cut(np.frombuffer(data, np.uint8))
        if cut < 0:
            self._held += data
            return b""
        stretch = bytes(self._held) + data[:cut]
        self._held = bytearray(data[cut:])
        return stretch

    def flush(self) -> bytes:
        """The end of the text. Ready for a new one afterwards."""
        stretch = bytes(self._held) + self._text.flush()
        self._held, self._state = bytearray(), _ROOT
        return stretch

    def _last_cut(self, text: np.ndarray) -> int:
        """The last position to cut at, -1 if there is none. A search from the root knows the state after as many bytes
        as the longest piece has."""
        if self._rows is None:
            return len(text)
        tail = len(text) - TAIL
        if tail > 0:
            state, cut = _scan(self._rows, text, tail, tail + self._longest, _ROOT)
            if cut >= 0:
                self._state = state
                return cut
        self._state, cut = _scan(self._rows, text, 0, 0, np.uint32(self._state))
        return cut


class StreamEncoder:
    """Turns text into ids as it arrives.

    What all `push` calls and the final `flush` return, joined, equals the ids of the whole text, for any chunks, in
    time linear in the text and memory for the longest stretch that is undecided (with a pattern the whole text).

    Args:
        tokenizer: any; of a SampledTokenizer the whole text is document `document`.
        document: the first text's number; `flush` adds one.
    """

    def __init__(self, tokenizer: Tokenizer, document: int = 0) -> None:
        self._tokenizer = tokenizer
        self._cutter = StretchCutter(tokenizer)
        self._document, self._position = document, 0

    def push(self, text: str | bytes) -> np.ndarray:
        """The ids that became certain. A character that comes in two halves is whole (`normalizing.TextBytes`)."""
        return self._encode(self._cutter.push(text))

    def flush(self) -> np.ndarray:
        """The ids of the rest. Ready for a new text afterwards."""
        ids = self._encode(self._cutter.flush())
        self._document, self._position = self._document + 1, 0
        return ids

    def _encode(self, stretch: bytes) -> np.ndarray:
        if not isinstance(self._tokenizer, SampledTokenizer):
            return self._tokenizer.encode_bytes(stretch)
        position = self._position
        self._position += len(stretch)
        return self._tokenizer.encode_parts([stretch], [self._document], [position])[0]


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


@compiled
def _scan(rows, text, start, trusted, state):
    """Run the automaton over text[start:].

    Args:
        rows: uint32 [states, 8], the automaton. Unsigned numbers are the faster indices.
    Returns:
        The state at the end, and the last position from `trusted` on whose byte leads into a state of depth 1; -1 for
        none.
    """
    cut = -1
    for position in range(start, len(text)):
        byte = np.uint32(text[position])
        while True:
            target = rows[state, BASE] + byte
            if rows[target, PARENT] == state:
                state = np.uint32(target)
                break
            state = rows[state, FAIL]
        if rows[state, DEPTH] == 1 and position >= trusted:
            cut = position
    return state, cut
