"""What a piece is: how to show it, its script, whether it is whole characters; and numbers about many of them."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

SCRIPTS = ("Han", "Latin", "other letters", "several scripts", "digits", "marks", "white space", "half characters",
           "raw bytes")
LONG_RUN = 8
_HALF = re.compile("[\udc80-\udcff]+")
_WORDS = re.compile(r"[^\W\d_].*\s.*[^\W\d_]", re.DOTALL)
_SIGNS = {" ": "␣", "\n": "⏎", "\t": "⇥"}
_UNSEEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"}


class Shown(NamedTuple):
    """A stretch of a piece as it is shown: `sign` is empty for text as it stands, else says what it stands for: space,
    line, tab, escape (an invisible character) or byte (a part of a character, in hexadecimal)."""

    text: str
    sign: str


def shown(piece: bytes) -> list[Shown]:
    """A piece as something visible."""
    result: list[Shown] = []
    for character in piece.decode("utf-8", "surrogateescape"):
        if "\udc80" <= character <= "\udcff":
            part = Shown(f"{ord(character) - 0xDC00:02X}", "byte")
        elif character in _SIGNS:
            part = Shown(_SIGNS[character], {" ": "space", "\n": "line", "\t": "tab"}[character])
        elif unicodedata.category(character) in _UNSEEN or character in _SIGNS.values():
            part = Shown(f"\\u{{{ord(character):X}}}", "escape")
        elif unicodedata.combining(character) and (not result or result[-1].sign):
            part = Shown("\u25cc" + character, "")
        else:
            part = Shown(character, "")
        if result and not part.sign and not result[-1].sign:
            part = Shown(result.pop().text + part.text, "")
        result.append(part)
    return result


def visible(piece: bytes) -> str:
    """A piece in one line of plain text: ␣ a space, ⏎ a line end, <E4> a byte that is part of a character, and ␣×36 for
    long runs of the same."""
    marks = []
    for part in shown(piece):
        marks.extend([f"<{part.text}>"] if part.sign == "byte" else [part.text] if part.sign else part.text)
    runs = [(mark, len(list(same))) for mark, same in itertools.groupby(marks)]
    return "".join(f"{mark}×{count}" if count >= LONG_RUN else mark * count for mark, count in runs)


def whole(piece: bytes) -> bool:
    """Whether a piece is whole characters of UTF-8."""
    return not _HALF.search(piece.decode("utf-8", "surrogateescape"))


@lru_cache(maxsize=1 << 16)
def _script_of_letter(letter: str) -> str:
    name = unicodedata.name(letter, "")
    if name.startswith("CJK"):
        return "Han"
    return "Latin" if "LATIN" in name else name.split(" ")[0] or "?"


def script(piece: bytes) -> str:
    """One of SCRIPTS, by the piece's letters; without letters by its digits, then by its other characters."""
    text = piece.decode("utf-8", "surrogateescape")
    if _HALF.search(text):
        return "raw bytes" if len(piece) == 1 else "half characters"
    letters = {_script_of_letter(character) for character in text if character.isalpha()}
    if len(letters) > 1:
        return "several scripts"
    if letters:
        only = letters.pop()
        return only if only in ("Han", "Latin") else "other letters"
    if any(character.isdigit() for character in text):
        return "digits"
    return "white space" if text.isspace() else "marks"


def lengths(pieces: Iterable[bytes]) -> tuple[Counter, Counter]:
    """How many pieces have each length, in bytes, and (of those that are whole characters) in characters."""
    in_bytes, in_characters = Counter(), Counter()
    for piece in pieces:
        in_bytes[len(piece)] += 1
        if whole(piece):
            in_characters[len(piece.decode())] += 1
    return in_bytes, in_characters


def _folded(piece: bytes, fold) -> bytes | None:
    """What a piece is the same as but for what `fold` takes away, if that is something else and not nothing."""
    try:
        other = fold(piece.decode()).encode()
    except UnicodeDecodeError:
        return None
    return other if other and other != piece else None


DOUBLES = {
    "space": ("a space before", lambda text: text.removeprefix(" ") if text.strip() else ""),
    "case": ("capital letters", str.lower),
    "line": ("line ends or spaces behind", lambda text: text.rstrip()),
    "form": ("another form (full width, ligature)", lambda text: unicodedata.normalize("NFKC", text)),
}


def doubles(pieces: Sequence[bytes]) -> dict[str, list[tuple[bytes, bytes]]]:
    """By what sets them apart, a key of DOUBLES: pieces whose plainer twin is a piece too, in the order of `pieces`."""
    there = set(pieces)
    found: dict[str, list[tuple[bytes, bytes]]] = {}
    for key, (_, fold) in DOUBLES.items():
        pairs = ((piece, _folded(piece, fold)) for piece in pieces if len(piece) > 1)
        found[key] = [(piece, other) for piece, other in pairs if other in there]
    return found


def several_words(piece: bytes) -> bool:
    """Whether a piece holds letters on both sides of white space."""
    return whole(piece) and _WORDS.search(piece.decode()) is not None
