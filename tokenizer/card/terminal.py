"""The card on the terminal; without colours and at a fixed width where the output is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from tokenizer.card import tables
from tokenizer.card.pieces import visible
from tokenizer.card.tables import Table

PLAIN_WIDTH = 120
SHOWN = 8  # pieces of a list
SAMPLE_TOKENS = 24


def console() -> Console:
    """Standard output, as a terminal or as plain text."""
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)


def show(card: dict, cuts: Sequence[tuple[str, Sequence[Sequence[bytes]]]], out: Console) -> None:
    """Print a card.

    Args:
        cuts: of each sample: its name, and the pieces that each tokenizer cuts it into.
    """
    ours = card["tokenizers"][0]
    if card["data"]["built_in"]:
        out.print(Text("No --data given: measured on a few built-in paragraphs, too little to choose by.", "yellow"))
    first = [tables.at_a_glance(card), tables.by_kind(card), tables.by_file(card), tables.by_unit(card)]
    for table in (*first, *tables.by_length(card), tables.by_script(card), tables.waste(card), tables.numbers(card)):
        _print(table, out)
    hardest = tables.hardest(ours)
    for table in (*tables.piece_lists(ours), tables.doubled(ours, SHOWN), *([hardest] if hardest else [])):
        _print(table._replace(title=f"{ours['name']}: {table.title[0].lower()}{table.title[1:]}",
                              rows=table.rows[:SHOWN]), out)
    for name, sides in cuts:
        out.print(Text(f"\n{name}, how it begins", "bold"))
        for tokenizer, pieces in zip(card["tokenizers"], sides):
            line = Text(f"{tokenizer['name']}: ", "dim")
            for i, piece in enumerate(pieces[:SAMPLE_TOKENS]):
                line.append("|" if i else "", "dim")
                line.append(visible(piece), ("cyan", "green")[i % 2])
            out.print(line, no_wrap=True, overflow="ellipsis")


def _print(table: Table, out: Console) -> None:
    shown = RichTable(box=box.SIMPLE)
    for i, column in enumerate(table.columns):
        left = i == 0 or i in table.pieces
        shown.add_column(Text(column), justify="left" if left else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(cell) for cell in row))
    out.print(Text(table.title, "bold"))
    if table.says:
        out.print(Text(table.says, "dim"))
    out.print(shown)
