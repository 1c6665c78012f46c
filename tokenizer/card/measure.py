"""Numbers about how tokenizers cut a text: all of them see the same stretches of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from tokenizer.card.pieces import script, visible, whole
from tokenizer.card.sides import Side
from tokenizer.card.text import KINDS, Block, blocks, code_points, is_han
from tokenizer.card.vocabulary import LISTED, by_length, entry
from tokenizer.interface import to_utf8

BATCH = 1 << 21  # characters encoded at once
HARDEST = 5
HARD_BYTES = 200  # a stretch shorter than this says little
HARD_CHARACTERS = 60  # of a stretch's beginning, by which it is known
POINTS = 80  # of a curve
SHARES = (0.5, 0.9, 0.99)
RENYI_ORDER = 2.5
LETTER_BYTES = np.array([byte >= 0x80 or chr(byte).isalpha() for byte in range(256)])

T = TypeVar("T")


@dataclass
class Amount:
    bytes: int = 0
    characters: int = 0
    words: int = 0

    def add(self, text: str) -> None:
        self.bytes += len(text.encode())
        self.characters += len(text)
        self.words += len(text.split())


@dataclass
class Text:
    """What was read: by file and kind, and how often each character occurs."""

    amounts: dict[str, dict[str, Amount]] = field(default_factory=dict)
    characters: np.ndarray = field(default_factory=lambda: np.zeros(0x110000, np.int64))

    def add(self, file: str, block: Block) -> None:
        """Count a stretch, all but its single characters."""
        self.amounts.setdefault(file, {}).setdefault(block.kind, Amount()).add(block.text)

    def total(self, file: str | None = None, kind: str | None = None) -> Amount:
        """Of a file or all, of a kind or all."""
        chosen = list(_chosen(self.amounts, file, kind))
        return Amount(sum(a.bytes for a in chosen), sum(a.characters for a in chosen), sum(a.words for a in chosen))

    def kinds(self) -> list[str]:
        """Those that occur, in the order of KINDS."""
        return [kind for kind in KINDS if any(kind in kinds for kinds in self.amounts.values())]


def _chosen(table: Mapping[str, Mapping[str, T]], file: str | None, kind: str | None) -> Iterator[T]:
    for kinds in table.values() if file is None else [table[file]]:
        yield from (value for its, value in kinds.items() if kind in (None, its))


class Tally:
    """What one tokenizer made of a text."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.tokens: dict[str, Counter[str]] = {}
        self.uses = np.zeros(len(side.pieces), np.int64)
        self.stretches = self.changed = self.cuts_in_words = 0
        self._lengths = np.array([len(piece or b"") for piece in side.pieces])
        self.hardest: list[tuple[float, str, str]] = []

    def add(self, batch: Sequence[tuple[str, Block]]) -> None:
        """Cut the stretches of a batch, each with its file's name, and count."""
        ids, starts = self.side.encode([block.text for _, block in batch])
        self.uses += np.bincount(ids, minlength=len(self.uses))
        for (file, block), start, end in zip(batch, starts[:-1].tolist(), starts[1:].tolist()):
            self.tokens.setdefault(file, Counter())[block.kind] += end - start
            self.stretches += 1
            self.changed += self.side.decode(ids[start:end]) != block.text
            size = len(block.text.encode())
            if block.kind == "latin":
                self.cuts_in_words += self._cuts_in_words(block.text.encode(), ids[start:end])
            if size >= HARD_BYTES:
                self.hardest.append((size / max(1, end - start), file, block.text[:HARD_CHARACTERS]))
        by_start = {start: (rate, file, start) for rate, file, start in sorted(self.hardest, reverse=True)}
        self.hardest = sorted(by_start.values())[:HARDEST]

    def _cuts_in_words(self, text: bytes, ids: np.ndarray) -> int:
        """Cuts with a letter on both sides; none where the tokenizer changed the text, so that places are not known."""
        places = np.cumsum(self._lengths[ids])
        if not len(places) or places[-1] != len(text):
            return 0
        letters = LETTER_BYTES[np.frombuffer(text, np.uint8)]
        return int(np.count_nonzero(letters[places[:-1] - 1] & letters[places[:-1]]))

    def total(self, file: str | None = None, kind: str | None = None) -> int:
        """Tokens of a file or all, of a kind or all."""
        return sum(_chosen(self.tokens, file, kind))


def measure(documents: Iterable[tuple[str, str]], sides: Sequence[Side],
            on_block: Callable[[str, Block], None] = lambda file, block: None) -> tuple[Text, list[Tally]]:
    """Read a text once and let every tokenizer cut it.

    Args:
        documents: (name of the file, stretch of text). Line ends and all else stay as they are.
        on_block: told of every file's stretches of one kind.
    """
    text, tallies = Text(), [Tally(side) for side in sides]
    held: list[tuple[str, Block]] = []
    size = 0

    def flush() -> None:
        joined = "".join(block.text for _, block in held)
        text.characters += np.bincount(code_points(joined), minlength=len(text.characters))
        for tally in tallies:
            tally.add(held)
        held.clear()

    for file, stretch in documents:
        for block in blocks(to_utf8(stretch).decode()):
            text.add(file, block)
            held.append((file, block))
            size += len(block.text)
            on_block(file, block)
        if size > BATCH:
            flush()
            size = 0
    flush()
    return text, tallies


def _ratio(above: float, below: float) -> float | None:
    return round(above / below, 4) if below else None


def _rates(amount: Amount, tokens: int) -> dict:
    return {"tokens": tokens, "bytes_per_token": _ratio(amount.bytes, tokens),
            "characters_per_token": _ratio(amount.characters, tokens), "tokens_per_word": _ratio(tokens, amount.words)}


def describe_text(text: Text) -> dict:
    """Sizes of what was read."""
    def sizes(amount: Amount) -> dict:
        return {"bytes": amount.bytes, "characters": amount.characters, "words": amount.words}

    return {
        **sizes(text.total()),
        "kinds": {kind: sizes(text.total(kind=kind)) for kind in text.kinds()},
        "files": [{"name": file, **sizes(text.total(file))} for file in text.amounts],
    }


def describe_cut(tally: Tally, text: Text) -> dict:
    """How a tokenizer cut the text.

    `entropy` is of the tokens' frequencies, in bits per token; times tokens per byte it is `bits_per_byte`, what the
    text costs when every token is guessed by its frequency alone. `evenness` is the Rényi efficiency of order 2.5
    (Zouhar et al., "Tokenization and the noiseless channel", ACL 2023): 1 where all ids are used alike.
    """
    side, uses, total = tally.side, tally.uses, int(tally.uses.sum())
    known = np.array([piece is not None for piece in side.pieces], bool)
    share = uses[uses > 0] / max(1, total)
    entropy = float(-(share * np.log2(share)).sum())
    renyi = float(np.log2((share**RENYI_ORDER).sum()) / (1 - RENYI_ORDER)) if total else 0.0
    ranked = np.sort(uses[uses > 0])[::-1]
    covered = np.cumsum(ranked) / max(1, total)
    order = np.lexsort((np.arange(len(uses)), -uses))
    known_used = np.flatnonzero((uses > 0) & known).tolist()
    everything = text.total()
    half = np.array([piece is not None and not whole(piece) for piece in side.pieces], bool)
    return {
        **_rates(everything, total),
        "kinds": {kind: _rates(text.total(kind=kind), tally.total(kind=kind)) for kind in text.kinds()},
        "files": [{"name": file, **_rates(text.total(file), tally.total(file))} for file in text.amounts],
        "used": len(known_used),
        "used_share": _ratio(len(known_used), int(known.sum())),
        "ids_for_share": {f"{part:.0%}": int(np.searchsorted(covered, part) + 1) if total else 0 for part in SHARES},
        "entropy": round(entropy, 4),
        "bits_per_byte": _ratio(entropy * total, everything.bytes),
        "evenness": _ratio(renyi, np.log2(max(2, len(side.pieces)))),
        "cuts_in_words": _ratio(tally.cuts_in_words, text.total(kind="latin").words),
        "half_character_share": _ratio(int(uses[half].sum()), total),
        "own_han_share": _own_han(side, text),
        "token_lengths": _token_lengths(side, uses),
        "rank_frequency": _curve(ranked),
        "most_used": [entry(side, i, uses[i]) for i in order[:LISTED].tolist() if uses[i] and side.pieces[i]],
        "longest_used": [entry(side, i, uses[i]) for i in by_length(side, known_used)[:LISTED]],
        "stretches": tally.stretches,
        "changed_stretches": tally.changed,
        "hardest": [{"bytes_per_token": round(rate, 3), "file": file, "text": visible(start.encode())}
                    for rate, file, start in tally.hardest],
    }


def _own_han(side: Side, text: Text) -> dict:
    """How many of the text's Chinese characters are pieces by themselves: different ones, and all occurrences."""
    points = np.flatnonzero(text.characters)
    points = points[is_han(points)]
    own = {ord(piece.decode()) for piece in side.pieces if piece and 3 <= len(piece) <= 4 and script(piece) == "Han"
           and len(piece.decode()) == 1}
    mine = np.array([point in own for point in points.tolist()], bool)
    return {"different": len(points), "own": int(mine.sum()),
            "share_of_text": _ratio(int(text.characters[points[mine]].sum()), int(text.characters[points].sum()))}


def _token_lengths(side: Side, uses: np.ndarray) -> dict[str, int]:
    found: Counter[int] = Counter()
    for i in np.flatnonzero(uses).tolist():
        found[len(side.pieces[i] or b"")] += int(uses[i])
    return {str(length): found[length] for length in sorted(found)}


def _curve(ranked: np.ndarray) -> list[list[int]]:
    """[rank, uses] at about POINTS ranks, evenly spaced on a logarithmic scale."""
    if not len(ranked):
        return []
    ranks = np.unique(np.rint(np.geomspace(1, len(ranked), POINTS)).astype(int))
    return [[int(rank), int(ranked[rank - 1])] for rank in ranks]
