"""Where pieces must end, by a regular expression: a text's matches, and what lies between them, are cut apart.

A rule is "pattern:REGEX" in the syntax of the package regex (an extra: pip install 'loam[patterns]'), or "pattern:NAME"
for one of NAMED, which a vocabulary writes out. A match of nothing is a border, too. Bytes that are not UTF-8 are one
character each, a lone surrogate (U+DC80 to U+DCFF) for the expression.

A piece may occur across two matches elsewhere, so that text is cut at the matches before it is encoded, too. Hence the
price: the matches are found one by one, at 1 to 4 MB/s of text, twenty times and more what encoding takes; training
finds them three times in all, not in each round. And since no match is certain before the text's end, a stream gives
its ids at the end only and holds the whole text until then. Ids follow the Unicode version that the installed regex
knows.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tokenizer.interface import TokenizerError

if TYPE_CHECKING:
    from regex import Pattern

PREFIX = "pattern:"
NAMED = {
    # tiktoken (https://github.com/openai/tiktoken, tiktoken_ext/openai_public.py), as first published.
    "cl100k": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
              r"|\s+(?!\S)|\s+",
}
_NAME = re.compile(r"[\w-]*", re.ASCII)


class Divided(NamedTuple):
    """Texts cut at the borders of a pattern.

    Attributes:
        starts: int64 [stretches + 1], where each stretch begins, and where the last ends. Each text has one or more.
        first: int64 [texts], the number of each text's first stretch.
    """

    starts: np.ndarray
    first: np.ndarray

    def added_up(self, counts: np.ndarray) -> np.ndarray:
        """int64 [texts]: the sums of what the stretches of each have, int64 [stretches]."""
        return np.add.reduceat(counts, self.first) if len(self.first) else np.zeros(0, np.int64)


def is_pattern(rule: str) -> bool:
    """Whether a rule of borders is a pattern."""
    return rule.startswith(PREFIX)


def written_out(rule: str) -> str:
    """A pattern's rule with the expression in place of its name.

    Raises:
        TokenizerError: no such name; not a regular expression; the package regex is missing.
    """
    text = rule[len(PREFIX) :]
    if _NAME.fullmatch(text) and text not in NAMED:
        raise TokenizerError(f"a pattern must be a regular expression or one of {', '.join(NAMED)}: got {text!r}")
    rule = PREFIX + NAMED.get(text, text)
    _compiled(rule)
    return rule


@lru_cache(maxsize=64)
def _compiled(rule: str) -> Pattern:
    try:
        import regex
    except ImportError:
        raise TokenizerError(f"boundaries by a {PREFIX.rstrip(':')} need the package regex: pip install "
                             "'loam[patterns]'") from None
    try:
        return regex.compile(rule[len(PREFIX) :])
    except (regex.error, ValueError, OverflowError, RecursionError) as error:
        raise TokenizerError(f"a pattern must be a regular expression, {error}: got {rule[len(PREFIX) :]!r}") from None


def divided(text: np.ndarray, starts: np.ndarray, rule: str) -> Divided:
    """Texts cut at the matches of a pattern, each by itself.

    Args:
        text: uint8 [bytes].
        starts: int64 [texts + 1], where each text begins, and where the last one ends.
        rule: "pattern:REGEX".
    """
    pattern = _compiled(rule)
    edges, first, found = [], np.zeros(len(starts) - 1, np.int64), 0
    for number, (begin, end) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist())):
        first[number] = found
        edges.append(np.append(begin, begin + _borders(text[begin:end].tobytes(), pattern)))
        found += len(edges[-1])
    return Divided(np.concatenate([*edges, starts[-1:]]), first)


def _borders(data: bytes, pattern: Pattern) -> np.ndarray:
    """int64, sorted: the places inside a text, in bytes, where a match begins or ends."""
    text = data.decode("utf-8", "surrogateescape")
    places = np.fromiter((place for match in pattern.finditer(text) for place in match.span()), np.int64)
    places = np.unique(places)
    if len(text) < len(data):
        places = _byte_places(text)[places]
    return places[(places > 0) & (places < len(data))]


def _byte_places(text: str) -> np.ndarray:
    """int64 [characters + 1]: where each begins in bytes, and where the last one ends."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    sizes = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000).astype(np.int64)
    sizes[(points >= 0xD800) & (points < 0xE000)] = 1
    return np.concatenate(([0], np.cumsum(sizes)))
