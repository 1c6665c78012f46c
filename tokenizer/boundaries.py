"""Where pieces must end, whatever the text's counts say: rules by the kinds of two neighbouring characters.

A rule of kinds shapes training only: no candidate crosses a border, so no piece of the vocabulary does, and encoding
need not look. Every byte belongs to a kind; a border lies between two characters of kinds that the rule keeps apart.
Inside a character of UTF-8 there is none. A rule may also be a regular expression, which shapes encoding, too
(patterns.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenizer.interface import TokenizerError
from tokenizer.patterns import PREFIX, divided, is_pattern, written_out

SPACE, NEWLINE, DIGIT, LETTER, HAN, MARK = range(6)
INSIDE = 6  # a continuation byte of UTF-8

_BY_FIRST_BYTE = np.full(256, MARK, np.uint8)
_BY_FIRST_BYTE[[9, 32]] = SPACE
_BY_FIRST_BYTE[[10, 13]] = NEWLINE
_BY_FIRST_BYTE[48:58] = DIGIT
_BY_FIRST_BYTE[65:91] = _BY_FIRST_BYTE[97:123] = LETTER
_BY_FIRST_BYTE[0x80:0xC0] = INSIDE
_BY_FIRST_BYTE[0xC3:0xE2] = LETTER
_BY_FIRST_BYTE[0xE3:0xEA] = _BY_FIRST_BYTE[0xF0] = HAN
_BY_FIRST_BYTE[0xEA:0xEE] = LETTER

# Code points whose kind is another than that of most with the same first byte: first, last, kind.
_EXCEPTIONS = ((0xA0, 0xA0, SPACE), (0xD7, 0xD7, MARK), (0xF7, 0xF7, MARK),
               (0x660, 0x669, DIGIT), (0x6F0, 0x6F9, DIGIT), (0x966, 0x96F, DIGIT),
               (0x3000, 0x3000, SPACE), (0x3001, 0x3004, MARK), (0x3008, 0x3020, MARK), (0x3030, 0x3030, MARK),
               (0x303D, 0x303F, MARK), (0x30A0, 0x30A0, MARK), (0x30FB, 0x30FB, MARK), (0xF900, 0xFAFF, HAN),
               (0xFF10, 0xFF19, DIGIT), (0xFF21, 0xFF3A, LETTER), (0xFF41, 0xFF5A, LETTER), (0xFF66, 0xFF9F, HAN),
               (0x1F000, 0x1FAFF, MARK))
_EXCEPTIONS_TABLE = np.array(_EXCEPTIONS)
_HAS_EXCEPTIONS = np.zeros(256, bool)
_HAS_EXCEPTIONS[[chr(point).encode()[0] for first, last, _ in _EXCEPTIONS for point in (first, last)]] = True


def _apart(*joined: tuple[int, int]) -> np.ndarray:
    """bool [6, 6]: the pairs of kinds that are kept apart, given those that are not."""
    table = np.ones((6, 6), bool)
    table[tuple(np.transpose(joined))] = False
    return table


_ALL = [(left, right) for left in range(6) for right in range(6)]
_DEFAULT = [(left, right) for left, right in _ALL
            if DIGIT not in (left, right) and (left != NEWLINE or right == NEWLINE)]
_WORDS = [(SPACE, SPACE), (NEWLINE, NEWLINE), (LETTER, LETTER), (HAN, HAN), (MARK, MARK), (SPACE, LETTER), (SPACE, HAN),
          (SPACE, MARK), (MARK, LETTER), (SPACE, NEWLINE), (MARK, NEWLINE)]

RULES = {
    # Digits one by one, newlines only at the end of a piece; pieces may cross words. The recommended one.
    "default": _apart(*_DEFAULT),
    # Pieces may hold anything.
    "none": _apart(*_ALL),
    # At most one word, with the spaces and marks before it: " (word", "'t"; a run of Han characters is a word.
    "words": _apart(*_WORDS),
    # Everything but Han characters one by one: the seed system's rule, made for Chinese.
    "characters": _apart((HAN, HAN)),
}


def kinds(text: np.ndarray) -> np.ndarray:
    """uint8 [bytes]: the kind of the character that each byte begins, INSIDE for the other bytes of a character.

    Kinds follow from Unicode's blocks, not from a property of each character. SPACE: blank, tab, no-break space,
    ideographic space. NEWLINE: CR, LF. DIGIT: ASCII, full-width, Arabic and Devanagari ones. LETTER: alphabets,
    syllables with spaces between words (Hangul), full-width letters. HAN: ideographs and kana. MARK: all else,
    punctuation, symbols and emoji in any script.
    """
    from tokenizer.border_loops import write_kinds  # Numba: not before text is to be cut
    found = np.empty(len(text), np.uint8)
    write_kinds(text, _BY_FIRST_BYTE, _HAS_EXCEPTIONS, _EXCEPTIONS_TABLE, found)
    return found


def checked(rule: str) -> str:
    """A rule as a vocabulary keeps it: a key of RULES, or a pattern that is written out.

    Raises:
        TokenizerError: it is neither, or the pattern cannot be used.
    """
    if is_pattern(rule):
        return written_out(rule)
    if rule not in RULES:
        raise TokenizerError(f"boundaries must be one of {', '.join(RULES)}, or {PREFIX}REGEX: got {rule}")
    return rule


def borders(text: np.ndarray, rule: str) -> np.ndarray:
    """bool [bytes]: no piece may go on over the position before this byte.

    Args:
        text: uint8 [bytes], a whole text if the rule is a pattern.
        rule: a key of RULES, or a pattern.
    """
    if is_pattern(rule):
        result = np.zeros(len(text), bool)
        result[divided(text, np.array([0, len(text)]), written_out(rule)).starts[1:-1]] = True
        return result
    from tokenizer.border_loops import mark_borders
    result = np.zeros(len(text), bool)
    mark_borders(kinds(text), INSIDE, RULES[rule], result)
    return result


def allowed(pieces: Sequence[bytes], rule: str) -> np.ndarray:
    """bool [pieces]: which keep to a rule. Pieces must not be empty. Of a pattern all do: where it matches depends on
    the text around a piece."""
    if is_pattern(rule):
        return np.ones(len(pieces), bool)
    starts = np.cumsum([0] + [len(piece) for piece in pieces])[:-1]
    found = borders(np.frombuffer(b"".join(pieces), np.uint8), rule)
    found[starts] = False
    return ~np.logical_or.reduceat(found, starts) if len(pieces) else np.zeros(0, bool)


def allows(piece: bytes, rule: str) -> bool:
    """Whether a piece keeps to a rule."""
    return bool(allowed([piece], rule)[0])
