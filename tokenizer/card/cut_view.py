"""How texts are cut, as HTML: every piece coloured, its id, bytes and cost at the foot of the page when pointed at."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from tokenizer.card.pieces import shown, visible
from tokenizer.card.sides import Cut, Side

COLOURS = 6
HEX_BYTES = 24


class Sample(NamedTuple):
    """A text to look at; `cuts` of each tokenizer; `is_code` for letters of one width."""

    name: str
    text: str
    cuts: list[list[Cut]]
    is_code: bool


def piece_html(piece: bytes, after: bytes = b"") -> str:
    """A piece with spaces, line ends, invisible characters and parts of characters made visible.

    Args:
        after: the text behind it, which tells what character the piece's last bytes begin.
    """
    parts = shown(piece)
    begun = max((i for i, part in enumerate(parts) if part.sign == "byte" and part.text >= "C0"), default=-1)
    marks = []
    for i, part in enumerate(parts):
        if part.sign == "space":
            marks.append('<i class="sign">·</i><wbr>')
        elif part.sign == "line":
            marks.append('<i class="sign">⏎</i>\n')
        elif part.sign == "tab":
            marks.append('<i class="sign">⇥\u2003</i>')
        elif part.sign == "byte":
            character = _character(bytes.fromhex("".join(part.text for part in parts[i:])), after) if i == begun else ""
            marks.append(f'<i class="byte">{escape(character)}<s>{part.text}</s></i>')
        elif part.sign:
            marks.append(f'<i class="escape"><s>{escape(part.text)}</s></i>')
        else:
            marks.append(escape(part.text))
    return "".join(marks)


def _character(begun: bytes, after: bytes) -> str:
    """The character whose first bytes are `begun`, if the bytes behind complete it to something that can be seen."""
    size = 2 if begun[0] < 0xE0 else 3 if begun[0] < 0xF0 else 4
    found = (begun + after)[:size].decode("utf-8", "ignore")
    return found if found.isprintable() and not found.isspace() else ""


def _told(side: Side, cut: Cut) -> str:
    """What the foot of the page says about a token."""
    size = len(cut.text)
    told = [visible(cut.text), f"id {cut.id:,}", f"{size} byte{'s' if size != 1 else ''} "
            f"{cut.text[:HEX_BYTES].hex(' ').upper()}{' …' if size > HEX_BYTES else ''}"]
    if side.costs is not None:
        told.append(f"cost {side.costs[cut.id]:.2f} nats")
    if side.counts is not None:
        told.append(f"{int(side.counts[cut.id]):,} times in training")
    return " · ".join(told)


def cut_html(side: Side, sample: Sample, cuts: Sequence[Cut]) -> str:
    """One tokenizer's cut of one sample."""
    behind = [*(cut.text for cut in cuts[1:]), *[b""] * 3]
    tokens = "".join(
        f'<b class="c{i % COLOURS}" data-t="{escape(_told(side, cut), quote=True)}">'
        f'{piece_html(cut.text, b"".join(behind[i : i + 3]))}</b>' for i, cut in enumerate(cuts))
    rate = f"{len(sample.text.encode()) / max(1, len(cuts)):.2f} bytes per token"
    style = "text code" if sample.is_code else "text"
    return (f'<div class="cut"><header><strong>{escape(side.name)}</strong><span class="soft">{len(cuts):,} tokens, '
            f'{rate}</span></header><div class="{style}">{tokens}</div></div>')


def samples_html(sides: Sequence[Side], samples: Sequence[Sample]) -> str:
    """All samples, the tokenizers beside each other."""
    return "".join(
        f'<h3>{escape(sample.name)}</h3><div class="cuts">'
        + "".join(cut_html(side, sample, cuts) for side, cuts in zip(sides, sample.cuts)) + "</div>"
        for sample in samples)
