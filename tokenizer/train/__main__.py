"""Train a vocabulary: python -m tokenizer.train --help"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path

from tokenizer.boundaries import RULES
from tokenizer.command import Parser, run_command
from tokenizer.documents import find_sources, iter_documents
from tokenizer.documents.sources import KINDS
from tokenizer.interface import TokenizerError
from tokenizer.patterns import NAMED, PREFIX
from tokenizer.piece import PieceTokenizer
from tokenizer.storage import NAME
from tokenizer.train import Progress, Round, Settings, TooLittleText, parse_bytes, train_vocabulary, unfinished
from tokenizer.train.progress import Display
from tokenizer.train.report import write_report
from tokenizer.train.settings import ENGINES, METHODS

WORK = "work"


def arguments_from(argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags; a bad one ends the process with code 2."""
    parser = Parser(prog="python -m tokenizer.train", description="Train a vocabulary on text. The same command again "
                    "goes on with a training that was interrupted.")
    add = parser.add_argument
    add("--data", nargs="+", metavar="PATH", required=True, help=f"{' '.join(KINDS)} files, also .gz or .zst, and "
        "folders of them")
    add("--vocab-size", type=int, metavar="N", required=True, help="pieces, the 256 bytes included; special tokens "
        "come on top")
    add("--out", type=Path, metavar="DIR", required=True, help="folder for the vocabulary, rounds.jsonl and rounds.png")
    add("--rounds", type=int, default=Settings.rounds, metavar="R", help="segment, count, prune so often (default: "
        "%(default)s)")
    add("--max-piece-bytes", type=int, default=Settings.max_piece_bytes, metavar="B", help="default: %(default)s")
    add("--boundaries", default=Settings.boundaries, metavar="RULE", help=f"what pieces may not cross: one of "
        f"{', '.join(RULES)}; or {PREFIX}REGEX, the matches of a regular expression, of which {', '.join(NAMED)} has a "
        "name (default: %(default)s)")
    add("--memory", default="4GB", metavar="M", help="what is larger goes to disk (default: %(default)s)")
    add("--engine", default=Settings.engine, metavar="E", help=f"one of {', '.join(ENGINES)} (default: %(default)s)")
    add("--workers", type=int, default=Settings.workers, metavar="W", help="tasks at once (default: one for each "
        "processor)")
    add("--method", default=Settings.method, metavar="M", help=f"one of {', '.join(METHODS)}: seed is the seed "
        "system's own way, for comparison, seed-sampled the same with random cuts (default: %(default)s)")
    add("--text-field", default="text", metavar="F", help="field of JSON and Parquet rows (default: text)")
    add("--document-separator", metavar="S", help="cuts text files into documents (default: a file is a document)")
    return parser.parse_args(argv)


def corpus_name(arguments: argparse.Namespace) -> str:
    """Changes whenever a file of the corpus does, or how it is read."""
    files = [(str(Path(source.path).absolute()), source.size, source.mtime_ns)
             for source in find_sources(arguments.data)]
    content = json.dumps([files, arguments.text_field, arguments.document_separator])
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()


def main(argv: list[str] | None = None) -> int:
    arguments = arguments_from(argv)
    settings = Settings(arguments.vocab_size, arguments.rounds, arguments.max_piece_bytes, arguments.boundaries,
                        parse_bytes(arguments.memory), arguments.method, arguments.engine, arguments.workers)
    corpus = corpus_name(arguments)
    out, work = arguments.out, arguments.out / WORK
    if (out / NAME).exists():
        if unfinished(work, settings, corpus):
            shutil.rmtree(work)
            return 0
        raise TokenizerError(f"{out}: holds a vocabulary already; give another folder by --out")
    rows: list[Round] = []
    made = not out.exists()
    with Display() as display:
        def show(progress: Progress) -> None:
            display.progress(*progress)

        def keep(row: Round) -> None:
            rows.append(row)
            display.round(row, settings.rounds)

        documents = iter_documents(arguments.data, arguments.text_field, arguments.document_separator)
        try:
            vocabulary = train_vocabulary(documents, settings, work, show, keep, corpus)
        except TooLittleText:
            shutil.rmtree(work)
            if made:
                out.rmdir()
            raise
        except KeyboardInterrupt:
            print(f"interrupted; the same command goes on from {work}", file=sys.stderr)
            return 130
        write_report(out, rows)
        tokenizer = PieceTokenizer(vocabulary)
        tokenizer.save(out)
        shutil.rmtree(work)
        display.say(f"{out}: {len(vocabulary):,} pieces and {len(vocabulary.special)} special tokens, "
                    f"fingerprint {tokenizer.fingerprint()}")
    return 0


if __name__ == "__main__":
    run_command(main)
