"""The loops over bytes behind boundaries.py, compiled by Numba: apart, since naming a rule should not import it."""

import numpy as np

from tokenizer.compiled import compiled


@compiled
def write_kinds(text, by_first_byte, has_exceptions, exceptions, found):
    """Write the kind of the character that each byte begins.

    Args:
        text: uint8 [bytes].
        by_first_byte: uint8 [256], the kind of most characters that begin with a byte.
        has_exceptions: bool [256], whether some of those are of another kind.
        exceptions: int64 [ranges, 3]: first code point, last code point, kind.
        found: uint8 [bytes], written.
    """
    for i in range(len(text)):
        found[i] = by_first_byte[text[i]]
        if has_exceptions[text[i]]:
            point = _code_point(text, i)
            for row in range(len(exceptions)):
                if exceptions[row, 0] <= point <= exceptions[row, 1]:
                    found[i] = exceptions[row, 2]


@compiled
def _code_point(text, place):
    """Of the character of two bytes or more that begins there; 0 where it is cut off. Meaningless for what is not
    UTF-8."""
    first = np.int64(text[place])
    length = 2 + np.int64(first >= 0xE0) + np.int64(first >= 0xF0)
    if place + length > len(text):
        return np.int64(0)
    point = first & (0xFF >> (length + 1))
    for step in range(1, length):
        point = point << 6 | np.int64(text[place + step]) & 0x3F
    return point


@compiled
def mark_borders(kinds, inside, apart, result):
    """Mark the bytes before which a piece must end.

    Args:
        kinds: uint8 [bytes], of the character that each byte begins, or inside for its other bytes.
        inside: that kind.
        apart: bool [kinds, kinds]: whether a border lies between a character of one kind and the next of another.
        result: bool [bytes], all False, written.
    """
    before = inside
    for i in range(len(kinds)):
        if kinds[i] != inside:
            if before != inside:
                result[i] = apart[before, kinds[i]]
            before = kinds[i]
