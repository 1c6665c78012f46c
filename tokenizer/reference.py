"""The best path in a page of Python: what the compiled loops are tested against, and what serves without Numba."""

from __future__ import annotations

import math
from collections.abc import Sequence

import ahocorasick
import numpy as np


class Reference:
    """Best paths over an ordinary Aho-Corasick automaton of strings, with bytes as the characters U+0000 to U+00FF.

    Args:
        pieces: different, not empty, all 256 bytes among them.
        costs: integers [pieces], what using a piece costs.
    """

    def __init__(self, pieces: Sequence[bytes], costs: Sequence[int] | np.ndarray) -> None:
        self._pieces = pieces
        self._automaton = ahocorasick.Automaton()
        for number, (piece, cost) in enumerate(zip(pieces, costs, strict=True)):
            self._automaton.add_word(piece.decode("latin-1"), (len(piece), int(cost), number))
        self._automaton.make_automaton()

    def encode(self, data: bytes) -> list[int]:
        """Ids of the cheapest cut; of equally cheap ways to a position the one whose last piece is longest."""
        best = [(math.inf, 0, -1)] * (len(data) + 1)  # cost, -length and id of the last piece
        best[0] = (0, 0, -1)
        for last, (length, cost, number) in self._automaton.iter(data.decode("latin-1")):
            way = (best[last + 1 - length][0] + cost, -length, number)
            best[last + 1] = min(best[last + 1], way)
        ids, at = [], len(data)
        while at > 0:
            _, back, number = best[at]
            ids.append(number)
            at += back
        return ids[::-1]

    def decode(self, ids: Sequence[int]) -> bytes:
        """The bytes of ids; those from the number of pieces on are special tokens, which have none."""
        return b"".join(self._pieces[number] for number in ids if number < len(self._pieces))
