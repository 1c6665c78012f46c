"""The command that trains a run again."""

from __future__ import annotations

import json
import shlex

from train.config import Config
from train.presets import PRESETS

FLAGS = {"data.text_field": "--text-field", "data.document_separator": "--document-separator",
         "tokenizer.path": "--tokenizer", "tokenizer.vocab_size": "--vocab-size", "run.steps": "--steps",
         "run.minutes": "--minutes", "run.tokens": "--tokens", "data.batch_tokens": "--batch-tokens",
         "data.seq_len": "--seq-len", "optim.lr": "--lr", "run.seed": "--seed"}
LISTS = {"data.paths": "--data", "data.val_data": "--val-data"}
LENGTHS = ("run.steps", "run.tokens", "run.minutes")


def arguments(config: Config, started_with: list[str] = ()) -> list[str]:
    """Flags of train.pretrain that give exactly these settings.

    A run by minutes is told by the steps that it took, as time is another on another day.

    Args:
        started_with: the run's own flags; of these --init-from is kept, which no setting tells.
    """
    name = config.run.preset if config.run.preset in PRESETS else "demo"
    base, wanted = PRESETS[name].flat(), config.flat()
    length = next((key for key in LENGTHS if wanted[key]), None)
    result = ["--preset", name]
    if "--init-from" in started_with:
        result += started_with[started_with.index("--init-from"):][:2]
    for key, value in wanted.items():
        if key in LENGTHS:
            named = key == length
        elif key in ("tokenizer.path", "tokenizer.vocab_size"):
            named = bool(value) and base[key] != value
        else:
            named = base[key] != value
        if not named:
            continue
        if key in LISTS and value:
            result += [LISTS[key], *value]
        elif key in FLAGS:
            result += [FLAGS[key], _text(value)]
        else:
            result += ["--set", f"{key}={_text(value)}"]
    return result


def command(config: Config, started_with: list[str] = ()) -> str:
    """The whole command for a shell."""
    return as_typed(arguments(config, started_with))


def as_typed(flags: list[str]) -> str:
    """The command with flags as they were given."""
    return shlex.join(["python", "-m", "train.pretrain", *flags])


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        return ",".join(map(repr, value))
    return value if isinstance(value, str) else repr(value)
