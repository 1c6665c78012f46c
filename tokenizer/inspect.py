"""python -m tokenizer.inspect DIR: the card of a vocabulary, on the terminal and as a page."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from tokenizer.card import terminal
from tokenizer.card.cut_view import Sample
from tokenizer.card.measure import Tally, Text, describe_cut, describe_text, measure
from tokenizer.card.page import page
from tokenizer.card.sample import SAMPLES
from tokenizer.card.sides import Side, open_sides
from tokenizer.card.text import KINDS, Block, blocks
from tokenizer.card.vocabulary import describe
from tokenizer.command import Parser, run_command
from tokenizer.documents import ReadOptions, find_sources, read_source
from tokenizer.documents.sources import KINDS as EXTENSIONS
from tokenizer.interface import TokenizerError
from tokenizer.storage import write_whole

FORMAT, VERSION = "loam-tokenizer-card", 1
PAGE, NUMBERS = "card.html", "card.json"
SAMPLE_CHARACTERS = 420
LEAST_LETTERS = 100


def parser() -> Parser:
    """The command's flags."""
    flags = Parser(prog="python -m tokenizer.inspect", description="What a vocabulary holds and how it cuts text: "
                   f"tables here, and a page to look at ({PAGE}) with its numbers ({NUMBERS}).")
    flags.add_argument("dir", type=Path, metavar="DIR", help="the vocabulary: a folder or its vocabulary.json")
    flags.add_argument("--data", nargs="+", default=[], metavar="FILE", help="text to measure on, files or folders: "
                       f"{' '.join(EXTENSIONS)}, also .gz or .zst; without it a few built-in paragraphs")
    flags.add_argument("--against", nargs="+", default=[], type=Path, metavar="RIVAL", help="vocabularies to compare "
                       "with: Hugging Face's tokenizer.json, or other vocabularies' folders")
    flags.add_argument("--text-field", default="text", help="of .jsonl, .json and .parquet rows (default: text)")
    flags.add_argument("--out", type=Path, metavar="FOLDER", help=f"where {PAGE} and {NUMBERS} go (default: beside the "
                       "vocabulary)")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    sides = open_sides([options.dir, *options.against])
    out = options.out or (options.dir if options.dir.is_dir() else options.dir.parent)
    if out.exists() and not out.is_dir():
        raise TokenizerError(f"--out must be a folder: got the file {out}")
    if out.exists() and not os.access(out, os.W_OK):
        raise TokenizerError(f"{out}: the folder must be one that can be written (--out names another)")
    text, tallies, excerpts = _read(options.data, options.text_field, sides)
    card = card_of(sides, text, tallies, built_in=not options.data)
    samples = [Sample(name, excerpt, [side.cuts(excerpt) for side in sides], is_code)
               for name, excerpt, is_code in excerpts]
    terminal.show(card, [(sample.name, [[cut.text for cut in cuts] for cuts in sample.cuts]) for sample in samples],
                  terminal.console())
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / NUMBERS, (json.dumps(card, ensure_ascii=False, indent=1) + "\n").encode())
    write_whole(out / PAGE, page(card, sides, samples).encode())
    print(f"{out / PAGE}  {out / NUMBERS}")
    return 0


def card_of(sides: Sequence[Side], text: Text, tallies: Sequence[Tally], built_in: bool) -> dict:
    """All numbers, as they go into card.json. The first side is the one the card is about."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "data": {"built_in": built_in, **describe_text(text)},
        "tokenizers": [{"name": side.name, "vocabulary": describe(side), "text": describe_cut(tally, text)}
                       for side, tally in zip(sides, tallies)],
    }


def _read(data: Sequence[str], text_field: str, sides: Sequence[Side]) -> tuple[Text, list[Tally], list]:
    """Measure on the data, or on the built-in paragraphs, and pick what to look at: (name, text, whether code)."""
    if not data:
        text, tallies = measure(((f"built-in: {name}", sample) for name, sample in SAMPLES.items()), sides)
        return text, tallies, [(name, sample, name == "Code") for name, sample in SAMPLES.items()]
    sources = find_sources(data)
    first: dict[tuple[str, str], str] = {}

    def look(file: str, block: Block) -> None:
        held, seen = first.get((file, block.kind), ""), block.text[:SAMPLE_CHARACTERS]
        if len(held) < len(seen) and sum(map(str.isalpha, seen)) >= LEAST_LETTERS:
            first[file, block.kind] = seen

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading and cutting", total=sum(source.size for source in sources))

        def documents() -> Iterator[tuple[str, str]]:
            for source in sources:
                options = ReadOptions(text_field=text_field)
                for piece in read_source(source, options, lambda count: progress.advance(task, count)):
                    yield source.path, piece.text

        text, tallies = measure(documents(), sides, look)
    if not text.amounts:
        raise TokenizerError(f"the data must hold some text: got none in {', '.join(data)}")
    return text, tallies, _excerpts(first, text)


def _excerpts(first: dict[tuple[str, str], str], text: Text) -> list[tuple[str, str, bool]]:
    """What to look at of each kind: how it begins in the file that holds little else; built-in paragraphs of the kinds
    that are not there, and mixed ones always."""
    found, kinds = [], {kind for _, kind in first}
    for kind in (kind for kind in KINDS if kind in kinds):
        file = max((file for file, its in first if its == kind),
                   key=lambda file: text.total(file, kind).bytes / text.total(file).bytes)
        name = f"{KINDS[kind][0].upper()}{KINDS[kind][1:]}, from {file}"
        found.append((name, first[file, kind], kind == "code"))
    for name, sample in SAMPLES.items():
        if name == "Mixed" or not kinds & {block.kind for block in blocks(sample)}:
            found.append((f"{name}, built in", sample, name == "Code"))
    return found


if __name__ == "__main__":
    run_command(main)
