"""Bytes as printable characters, one for each: the alphabet of byte-level vocabularies (GPT-2's `bytes_to_unicode`).

Printable Latin-1 stands for itself; the other bytes, in order, are the characters from U+0100.
"""

from __future__ import annotations

_SHOWN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _SHOWN]
CHARACTERS = {**{byte: chr(byte) for byte in _SHOWN}, **{byte: chr(0x100 + i) for i, byte in enumerate(_HIDDEN)}}
_BYTES = {character: byte for byte, character in CHARACTERS.items()}


def to_characters(data: bytes) -> str:
    """One character for each byte."""
    return "".join(map(CHARACTERS.__getitem__, data))


def from_characters(text: str) -> bytes:
    """The inverse of `to_characters`; KeyError for a character that stands for no byte."""
    return bytes(map(_BYTES.__getitem__, text))
