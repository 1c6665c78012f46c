"""What kind of text something is, told by its characters: Chinese, English, code, other.

A paragraph (lines up to an empty one) is the unit. A short one says little and takes the kind of the one before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

KINDS = {
    "chinese": "Chinese",
    "latin": "English and other Latin text",
    "code": "code and markup",
    "other": "other text",
}
SHORT = 32  # visible characters
CHINESE_SHARE = 0.15  # of the visible characters; a Chinese word is written in fewer characters than an English one
CODE_SHARE = 0.07
UNIT = 1 << 10  # characters
BLOCK = 1 << 14

_SPACE, _LATIN, _DIGIT, _CODE, _HAN, _KANA, _MARK, _LETTER = range(8)
_CLASSES = 8

HAN_RANGES = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x33480))


def _table() -> np.ndarray:
    """uint8 [code points]: the class of each character, by ranges of Unicode."""
    table = np.full(0x110000, _LETTER, np.uint8)
    table[:0xC0] = _MARK
    table[[0xD7, 0xF7]] = _MARK
    table[[9, 10, 11, 12, 13, 32, 0xA0, 0x3000]] = _SPACE
    table[ord("0") : ord("9") + 1] = _DIGIT
    for letters in ((0x41, 0x5B), (0x61, 0x7B), (0xC0, 0xD7), (0xD8, 0xF7), (0xF8, 0x250), (0x1E00, 0x1F00)):
        table[slice(*letters)] = _LATIN
    table[[ord(mark) for mark in "(){}[]<>=+*/\\|&^%$#@_~;`:"]] = _CODE
    for marks in ((0x2000, 0x2C00), (0x3001, 0x3040), (0xFF00, 0xFF66), (0x1F000, 0x20000)):
        table[slice(*marks)] = _MARK
    table[0x3040:0x3100] = table[0xFF66:0xFFA0] = _KANA
    for han in HAN_RANGES:
        table[slice(*han)] = _HAN
    return table


_CLASS = _table()


def code_points(text: str) -> np.ndarray:
    """uint32 [characters]."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _units(text: str) -> Iterator[str]:
    """The text cut after each run of empty lines, and after line ends where that leaves more than UNIT characters."""
    for paragraph in re.split(r"(?:(?<=\n\n)|(?<=\n\r\n))(?![\r\n])", text):
        while len(paragraph) > UNIT:
            cut = paragraph.rfind("\n", 0, UNIT) + 1 or paragraph.find("\n") + 1 or len(paragraph)
            yield paragraph[:cut]
            paragraph = paragraph[cut:]
        if paragraph:
            yield paragraph


def kind_of(text: str) -> str | None:
    """A key of KINDS, or None where the text is too short to tell."""
    counts = np.bincount(_CLASS[code_points(text)], minlength=_CLASSES)
    visible = len(text) - counts[_SPACE]
    if counts[_HAN] >= max(1, CHINESE_SHARE * visible) and counts[_KANA] * 4 < counts[_HAN]:
        return "chinese"
    if visible < SHORT:
        return None
    if counts[_CODE] >= CODE_SHARE * visible:
        return "code"
    return "latin" if 2 * counts[_LATIN] >= visible else "other"


class Block(NamedTuple):
    """A stretch of a document that is of one kind."""

    kind: str
    text: str


def blocks(text: str) -> Iterator[Block]:
    """A text cut into stretches of one kind, of about BLOCK characters at most; joined they are the text."""
    units = list(_units(text))
    kinds = [kind_of(unit) for unit in units]
    current = next((kind for kind in kinds if kind), "latin" if text.isascii() else "other")
    held, size = [], 0
    for unit, kind in zip(units, kinds):
        kind = kind or current
        if held and (kind != current or size + len(unit) > BLOCK):
            yield Block(current, "".join(held))
            held, size = [], 0
        current = kind
        held.append(unit)
        size += len(unit)
    if held:
        yield Block(current, "".join(held))


def is_han(points: np.ndarray) -> np.ndarray:
    """bool: which code points are Chinese characters."""
    return _CLASS[points] == _HAN
