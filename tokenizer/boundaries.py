"""Where pieces must end, whatever the text's counts say: rules by the kinds of two neighbouring characters.

A rule shapes training only: no candidate crosses a border, so no piece of the vocabulary does, and encoding need not
look. Every byte belongs to a kind; a border lies between two characters of kinds that the rule keeps apart. Inside a
character of UTF-8 there is none.
"""

from __future__ import annotations

import numpy as np

OTHER, SPACE, NEWLINE, DIGIT, LETTER, MARK = range(6)
INSIDE = 6  # a continuation byte of UTF-8

_KINDS = np.full(256, MARK, np.uint8)
_KINDS[[9, 32]] = SPACE
_KINDS[[10, 13]] = NEWLINE
_KINDS[48:58] = DIGIT
_KINDS[65:91] = _KINDS[97:123] = LETTER
_KINDS[0x80:0xC0] = INSIDE
_KINDS[0xC0:] = OTHER


def _apart(*pairs: tuple[int, int]) -> np.ndarray:
    table = np.zeros((6, 6), bool)
    for left, right in pairs:
        table[left, right] = True
    return table


ALL = range(6)
_SINGLE_DIGITS = [(DIGIT, kind) for kind in ALL] + [(kind, DIGIT) for kind in ALL]
_NEWLINE_LAST = [(NEWLINE, kind) for kind in ALL if kind != NEWLINE]
_WORDS = [(a, b) for a in ALL for b in ALL if a != b and (a, b) not in {
    (SPACE, OTHER), (SPACE, LETTER), (SPACE, MARK), (SPACE, NEWLINE), (MARK, NEWLINE), (OTHER, LETTER), (LETTER, OTHER)}]

RULES = {
    # Pieces may hold anything.
    "none": _apart(),
    # Digits one by one, a newline only at the end of a piece; pieces may cross words. The recommended one.
    "default": _apart(*_SINGLE_DIGITS, *_NEWLINE_LAST),
    # At most one word, with the spaces before it.
    "words": _apart(*_SINGLE_DIGITS, *_NEWLINE_LAST, *_WORDS),
    # Letters and digits one by one, white space and marks alone: the seed system's rule, made for Chinese.
    "characters": _apart(*_SINGLE_DIGITS, *[(a, b) for a in (LETTER, SPACE, NEWLINE, MARK) for b in ALL],
                         *[(a, b) for a in ALL for b in (LETTER, SPACE, NEWLINE, MARK)]),
}


def kinds(text: np.ndarray) -> np.ndarray:
    """uint8 [bytes]: the kind of the character that each byte begins, INSIDE for the other bytes of a character.

    Punctuation beyond ASCII is MARK: U+2000..U+206F, U+3000..U+303F and the full-width forms U+FF00..U+FF7F.
    """
    found = _KINDS[text]
    second = np.empty_like(text)
    second[:-1], second[-1:] = text[1:], 0
    found[(text == 0xE2) & ((second == 0x80) | (second == 0x81))] = MARK
    found[(text == 0xE3) & (second == 0x80)] = MARK
    found[(text == 0xEF) & ((second == 0xBC) | (second == 0xBD))] = MARK
    return found


def borders(text: np.ndarray, rule: str) -> np.ndarray:
    """bool [bytes]: no piece may go on over the position before this byte.

    Args:
        text: uint8 [bytes].
        rule: a key of RULES.
    """
    found = kinds(text)
    starts = np.flatnonzero(found != INSIDE)
    result = np.zeros(len(text), bool)
    if len(starts) > 1:
        result[starts[1:]] = RULES[rule][found[starts[:-1]], found[starts[1:]]]
    return result


def allows(piece: bytes, rule: str) -> bool:
    """Whether a piece keeps to a rule."""
    return not borders(np.frombuffer(piece, np.uint8), rule)[1:].any()
