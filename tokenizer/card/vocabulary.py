"""Numbers about a vocabulary by itself, without a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from tokenizer.card.pieces import DOUBLES, SCRIPTS, doubles, lengths, script, several_words, visible, whole
from tokenizer.card.sides import Side

LISTED = 24  # pieces in a list
LONGEST_NUMBER = 8  # digits
NUMBERS = 500  # of each length
NUMBER_EXAMPLES = ("7", "42", "365", "2024", "3.14159", "1,000,000", "31415926535")
SELDOM = ("10", "100", "1000")  # times in training
WIDTH = 768  # of the embedding whose weights are counted


def entry(side: Side, i: int, uses: int | None = None) -> dict:
    """A piece in a list: id, visible form, bytes, and what is known of its count, its cost and its uses in a text."""
    found = {"id": int(i), "piece": visible(side.pieces[i]), "bytes": len(side.pieces[i])}
    if side.counts is not None:
        found["count"] = int(side.counts[i])
    if side.costs is not None:
        found["cost"] = round(float(side.costs[i]), 3)
    if uses is not None:
        found["uses"] = int(uses)
    return found


def describe(side: Side) -> dict:
    """What a vocabulary holds.

    `beaten` are pieces that no text is ever cut into: encoding a piece's own bytes gives another cut. Where the
    cheapest cut is taken this is exact, because a cut that is cheaper for the piece alone is cheaper inside any text.
    For other tokenizers it only says that a piece does not come back from its own text.
    """
    ids = [i for i, piece in enumerate(side.pieces) if piece]
    pieces = [side.pieces[i] for i in ids]
    in_bytes, in_characters = lengths(pieces)
    scripts = Counter(script(piece) for piece in pieces)
    by_size = by_length(side, ids)
    longer = [i for i in ids if len(side.pieces[i]) > 1]
    halves = [i for i in longer if not whole(side.pieces[i])]
    beaten = _beaten(side)
    return {
        "size": len(side.pieces),
        "special": side.special,
        "pieces": len(ids),
        "family": side.family,
        "boundaries": side.boundaries,
        "made_by": side.made_by,
        "weights": len(side.pieces) * WIDTH,
        "bits_per_id": 16 if len(side.pieces) <= 1 << 16 else 32,
        "lengths_in_bytes": {str(length): in_bytes[length] for length in sorted(in_bytes)},
        "lengths_in_characters": {str(length): in_characters[length] for length in sorted(in_characters)},
        "scripts": {name: scripts[name] for name in SCRIPTS},
        "han_characters": sum(1 for piece in pieces if script(piece) == "Han" and len(piece.decode()) == 1),
        "several_words": sum(several_words(piece) for piece in pieces),
        "several_digits": sum(piece.isdigit() for piece in pieces if len(piece) > 1),
        "longest": [entry(side, i) for i in by_size[:LISTED]],
        "longest_by_script": {name: [entry(side, i) for i in _first(by_size, side, name)] for name in ("Han", "Latin")},
        "rarest": [entry(side, i) for i in _rarest(side, longer)],
        "seldom": None if side.counts is None else
        {limit: int(np.count_nonzero(side.counts[longer] < int(limit))) for limit in SELDOM},
        "half_characters": {"pieces": len(halves), "examples": [entry(side, i) for i in halves[:LISTED]]},
        "doubled": _doubled(side, pieces),
        "beaten": {"pieces": len(beaten), "exact": side.costs is not None,
                   "examples": [entry(side, i) for i in beaten[:LISTED]]},
        "forgeable": _forgeable(side),
        "numbers": _numbers(side),
    }


def by_length(side: Side, ids: Iterable[int]) -> list[int]:
    """Ids of pieces from the longest on; without those of white space alone, whose runs would fill every list."""
    return sorted((i for i in ids if not side.pieces[i].isspace()), key=lambda i: (-len(side.pieces[i]), i))


def _first(by_size: list[int], side: Side, name: str) -> Iterable[int]:
    return [i for i in by_size if script(side.pieces[i]) == name][: LISTED // 2]


def _rarest(side: Side, longer: list[int]) -> list[int]:
    """Of the pieces beyond the single bytes, which stay whatever their count."""
    if side.counts is None:
        return []
    return sorted(longer, key=lambda i: (int(side.counts[i]), i))[:LISTED]


def _doubled(side: Side, pieces: list[bytes]) -> dict:
    pairs = doubles(pieces)
    return {
        "pieces": len({piece for found in pairs.values() for piece, _ in found}),
        "by": {key: {"what": DOUBLES[key][0], "pieces": len(found),
                     "examples": [[visible(piece), visible(other)] for piece, other in found[:LISTED]]}
               for key, found in pairs.items()},
    }


def _beaten(side: Side) -> list[int]:
    ids = [i for i, piece in enumerate(side.pieces) if piece and (side.costs is not None or whole(piece))]
    found, starts = side.encode([side.pieces[i] for i in ids])
    alone = np.diff(starts) == 1
    alone[alone] = found[starts[:-1][alone]] == np.array(ids)[alone]
    return [i for i, fine in zip(ids, alone) if not fine]


def _forgeable(side: Side) -> bool:
    """Whether text can hold special tokens, by spelling their names."""
    ids, _ = side.encode(side.special)
    return any(side.pieces[i] is None for i in ids.tolist())


def _numbers(side: Side) -> dict:
    """How numbers are cut: by number of digits, the mean tokens of evenly spaced numbers of that length, and the share
    of them that is cut in the commonest way."""
    rows = []
    for digits in range(1, LONGEST_NUMBER + 1):
        low, high = 10 ** (digits - 1) if digits > 1 else 0, 10**digits
        texts = [str(low + (high - low) * k // NUMBERS) for k in range(NUMBERS)]
        texts = sorted(set(texts))
        ids, starts = side.encode(texts)
        shapes = Counter(tuple(len(side.pieces[i] or b"") for i in ids[start:end].tolist())
                         for start, end in zip(starts[:-1], starts[1:]))
        rows.append({"digits": digits, "tokens": round(len(ids) / len(texts), 3),
                     "cut_alike": round(shapes.most_common(1)[0][1] / len(texts), 4)})
    examples = {text: [visible(cut.text) for cut in side.cuts(text)] for text in NUMBER_EXAMPLES}
    return {"by_digits": rows, "examples": examples}
