"""The flags of train.pretrain, and the settings that they name."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from tokenizer.documents.sources import KINDS
from train.command import Parser
from train.config import parse_settings
from train.data import parse_sources
from train.errors import UserError
from train.presets import PRESETS
from train.sections import BYTES


def arguments_from(argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags; a bad one ends the process with code 2."""
    parser = Parser(prog="python -m train.pretrain", description="Train a language model on text and keep everything "
                    "about it in a run folder.", epilog="Every setting of RUN/config.toml can be given by --set.")
    add = parser.add_argument
    add("--preset", metavar="P", help=f"one of {', '.join(PRESETS)} (default: demo)")
    add("--data", nargs="+", metavar="PATH", help=f"{' '.join(KINDS)} files, also .gz or .zst, and folders of "
        "them; NAME=PATH:WEIGHT mixes sources by tokens (default: the Python standard library's source)")
    add("--val-data", nargs="+", metavar="PATH", help="validate on these (default: documents held out of --data)")
    add("--text-field", metavar="F", help="field of JSON and Parquet rows (default: text)")
    add("--document-separator", metavar="S", help="cuts text files into documents (default: a file is a document)")
    add("--doc-mask", action="store_true", default=None, help="attention and loss stop at document borders")
    vocabulary = parser.add_mutually_exclusive_group()
    vocabulary.add_argument("--tokenizer", metavar="DIR", help="a vocabulary that is there, or bytes (default: one is "
                            "trained on the training text)")
    vocabulary.add_argument("--vocab-size", type=int, metavar="N", help="pieces of the vocabulary that is trained")
    add("--out", type=Path, metavar="RUN", help="run folder (default: the next free runs/PRESET-N)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, metavar="N", help="train for N optimizer steps")
    length.add_argument("--minutes", type=float, metavar="M", help="train for about M minutes")
    length.add_argument("--tokens", type=int, metavar="T", help="train on T tokens")
    add("--batch-tokens", type=int, metavar="N", help="tokens of one optimizer step")
    add("--seq-len", type=int, metavar="S", help="tokens of one row")
    add("--lr", type=float, metavar="X", help="peak learning rate")
    add("--seed", type=int, metavar="K", help="of weights, order and dropout (default: 0)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="go on with the run in --out (default: the latest run)")
    start.add_argument("--init-from", type=Path, metavar="RUN", help="start a new run from another's weights")
    add("--dashboard", action="store_true", help="show the run in a browser while it goes on")
    add("--profile", action="store_true", help="table time and memory per operation and layer of some steps")
    add("--set", action="extend", nargs="+", default=[], dest="settings", metavar="section.key=value",
        help="any other setting")
    return parser.parse_args(argv)


def given_values(arguments: argparse.Namespace) -> dict[str, object]:
    """The settings that the flags name, `section.key` -> value."""
    flags = {"data.paths": _absolute(arguments.data), "data.val_data": _absolute(arguments.val_data),
             "data.text_field": arguments.text_field, "data.document_separator": arguments.document_separator,
             "data.doc_mask": arguments.doc_mask, "data.batch_tokens": arguments.batch_tokens,
             "data.seq_len": arguments.seq_len, "tokenizer.path": _vocabulary_path(arguments.tokenizer),
             "tokenizer.vocab_size": arguments.vocab_size, "optim.lr": arguments.lr, "run.seed": arguments.seed,
             "run.steps": arguments.steps, "run.minutes": arguments.minutes, "run.tokens": arguments.tokens}
    for name in ("steps", "minutes", "tokens", "batch_tokens", "seq_len", "vocab_size", "lr"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name.replace('_', '-')} must be above 0: got {value}")
    values = {name: value for name, value in flags.items() if value is not None}
    return {**values, **parse_settings(arguments.settings)}


def _vocabulary_path(path: str | None) -> str | None:
    return path if path in (None, BYTES) else os.path.abspath(os.path.expanduser(path))


def _absolute(paths: list[str] | None) -> list[str] | None:
    return [str(source.moved(_absolute_path)) for source in parse_sources(paths)] if paths else None


def _absolute_path(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))
