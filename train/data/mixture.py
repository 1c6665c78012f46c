"""Mixtures: the texts of several sources read as one stream, by weight."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from engine.errors import UserError
from train.data.corpus import Part
from train.data.stream import Tokens, TokenStream

LONGEST_PERIOD = 100_000
NAMED = re.compile(r"([\w.-]+)=(.+):([^:/]*)")


@dataclass(frozen=True)
class MixtureSource:
    """A text with a name and a weight, by tokens. One that is a plain path has the name "" and is no mixture's."""

    name: str
    paths: tuple[str, ...]
    weight: float = 1.0

    def __str__(self) -> str:
        (path,) = self.paths
        return f"{self.name}={path}:{self.weight:.15g}" if self.name else path

    def moved(self, change: Callable[[str], str]) -> MixtureSource:
        """The same with other paths."""
        return replace(self, paths=tuple(map(change, self.paths)))


def parse_sources(items: Sequence[str]) -> list[MixtureSource]:
    """Plain paths, or the `name=PATH:weight` of a mixture, which `str` gives back.

    Raises:
        UserError: plain paths among the sources of a mixture, a name that is there twice, or weights that cannot be.
    """
    found = [NAMED.fullmatch(item) for item in items]
    if not any(found):
        return [MixtureSource("", (item,)) for item in items]
    for item, match in zip(items, found, strict=True):
        if not match or not _is_weight(match[3]):
            raise UserError(f"each source of a mixture must be name=PATH:weight, its weight above 0: got {item!r}")
    sources = [MixtureSource(match[1], (match[2],), float(match[3])) for match in found if match]
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise UserError(f"the sources of a mixture must have different names: got {', '.join(names)}")
    whole_weights([source.weight for source in sources])
    return sources


def _is_weight(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def whole_weights(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers in the ratios of `weights`.

    Raises:
        UserError: they add up to more than LONGEST_PERIOD.
    """
    total = sum(map(Fraction, weights))
    shares = [(Fraction(weight) / total).limit_denominator(LONGEST_PERIOD) for weight in weights]
    period = math.lcm(*(share.denominator for share in shares))
    if period > LONGEST_PERIOD or sum(shares) != 1 or not all(shares):
        raise UserError(f"the weights of a mixture must be in ratios of whole numbers that add up to at most "
                        f"{LONGEST_PERIOD:,}: got {', '.join(f'{weight:.15g}' for weight in weights)}")
    return [int(share * period) for share in shares]


def turns(weights: Sequence[int]) -> np.ndarray:
    """Whose turn it is: the source of each window of a period, int64 [sum of weights].

    With n the sum, window j of a source of weight a has its place in floor(j n / a) <= place < ceil((j + 1) n / a).
    Then after k windows every source has had more than k a / n - 1 and fewer than k a / n + 1 of them. Such places
    exist (Baruah, Cohen, Plaxton and Varvel, "Proportionate progress", 1996, section 3), and whoever must be done
    first goes first finds them.
    """
    period, taken, order = sum(weights), [0] * len(weights), []
    for place in range(period):
        ready = [i for i, weight in enumerate(weights) if taken[i] * period // weight <= place]
        first = min(ready, key=lambda i: -(-(taken[i] + 1) * period // weights[i]))
        taken[first] += 1
        order.append(first)
    return np.array(order)


class MixedStream:
    """Parts read as one stream that has no end.

    The cursor's windows of `window` tokens go to the sources in `turns`. A source's windows, one after the other, are
    those of its own `TokenStream`, epoch after epoch of its own. So each source's share of the tokens before any
    cursor is its weight to within a window, and what stands at a cursor follows from (parts, weights, window, seed,
    cursor) alone.

    Args:
        weights: by tokens, relative to each other; see `whole_weights`.
        window, seed: as `TokenStream`.
    """

    shuffle = True

    def __init__(self, parts: Sequence[Part], weights: Sequence[float], window: int = 1, seed: int = 0) -> None:
        if not parts or len(parts) != len(weights):
            raise ValueError(f"a mixture needs a weight for each of its sources, got {len(weights)} for {len(parts)}")
        if not all(0 < weight < math.inf for weight in weights):
            raise ValueError(f"the weights of a mixture must be above 0, got {list(weights)}")
        self.parts = tuple(parts)
        self.window = window
        self.streams = [TokenStream(part, window, seed) for part in parts]
        self._weights = np.array(whole_weights(weights))
        self._turns = turns(self._weights.tolist())

    def sources(self, cursor: int, count: int) -> np.ndarray:
        """Number of the source of each of the `count` places from `cursor` on; int64 [count]."""
        windows = np.arange(cursor // self.window, -(-(cursor + count) // self.window))
        skipped = cursor % self.window
        return np.repeat(self._turns[windows % len(self._turns)], self.window)[skipped : skipped + count]

    def tokens_before(self, cursor: int) -> np.ndarray:
        """Tokens of each source before `cursor`; int64 [sources]."""
        windows, rest = divmod(cursor, self.window)
        periods, place = divmod(windows, len(self._turns))
        full = periods * self._weights + np.bincount(self._turns[:place], minlength=len(self.parts))
        tokens = full * self.window
        tokens[self._turns[place]] += rest
        return tokens

    def read(self, cursor: int, count: int) -> Tokens:
        """The `count` tokens from place `cursor` on."""
        if cursor < 0:
            raise ValueError(f"the cursor must not be negative, got {cursor}")
        sources, before = self.sources(cursor, count), self.tokens_before(cursor).tolist()
        mixed = Tokens(*(np.empty(count, dtype) for dtype in (np.int64, np.int64, bool, bool)))
        for source, stream in enumerate(self.streams):
            places = np.flatnonzero(sources == source)
            for column, values in zip(mixed, stream.read(before[source], len(places)), strict=True):
                column[places] = values
        mixed.begins[1:] |= sources[1:] != sources[:-1]
        return mixed
