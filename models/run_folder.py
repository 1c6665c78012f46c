"""Reading a run folder: config.toml, vocabulary.json, checkpoints/step-000600/{model.safetensors, state.json}."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

import kernels
import tokenizer as tokenizers
from engine import UserError
from models.config import ModelConfig
from models.decoder import Decoder
from tokenizer import Tokenizer, TokenizerError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CHECKPOINT_FORMAT = 1
FACTS = "facts.json"
"""What settings do not tell of a run: what it was made of, its text, where and when it trained (train/report)."""
_STEP = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Run:
    """A trained model as it was after `step` optimizer steps, in evaluation mode."""

    config: ModelConfig
    model: Decoder
    tokenizer: Tokenizer
    step: int
    path: Path


def load_run(path: str | Path, checkpoint: int | None = None, device: str = "auto",
             settings: Sequence[str] = ()) -> Run:
    """Reads a run folder.

    Args:
        checkpoint: the step to read; default the last. Where the run kept an average of its weights, that is read.
        device: where the model is put; "auto": on the GPU where there is one.
        settings: texts such as `model.context.kind=yarn`, which change how far the model reads and none of its
            weights; other names are UserErrors.
    Raises:
        UserError: not a run folder, no checkpoint yet, another format version, weights that do not fit the config,
            another vocabulary than the checkpoint's.
    """
    path = Path(path)
    config = read_model_config(path)
    if settings:
        config = config.with_(context=config.context.changed(settings))
    tokenizer = read_tokenizer(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"{path}: the model's vocabulary must hold the tokenizer's {tokenizer.vocab_size} ids: "
                        f"got {config.vocab_size}")
    folder = latest_checkpoint(path) if checkpoint is None else checkpoint_at(path, checkpoint)
    state = read_state(folder)
    if state.get("tokenizer", tokenizer.fingerprint()) != tokenizer.fingerprint():
        raise UserError(f"{vocabulary_file(path)}: the vocabulary has changed: fingerprint "
                        f"{tokenizer.fingerprint()[:12]}, {folder.name} has {state['tokenizer'][:12]}")
    model = Decoder(config, seed=None)
    weights = folder / "model.safetensors"
    try:
        model.load_state_dict(_weights(folder))
    except OSError as error:
        raise UserError(f"{weights}: cannot read ({error.strerror or error})") from None
    except SafetensorError as error:
        raise UserError(f"{weights}: not a safetensors file ({error})") from None
    except UserError as error:
        raise UserError(f"{weights}: {error}") from None
    if device == "auto":
        device = "cuda" if kernels.gpu_memory() else "cpu"
    model.to(device).eval()
    return Run(config, model, tokenizer, state["step"], path)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint, or their average, and what has none."""
    found = load_file(folder / "model.safetensors")
    try:
        with safe_open(folder / "optimizer.safetensors", "pt") as file:
            there = set(file.keys())
            found |= {name: file.get_tensor(f"average.{name}") for name in found if f"average.{name}" in there}
    except FileNotFoundError:
        pass
    return found


def read_tables(path: Path) -> dict[str, dict]:
    """RUN/config.toml, which has a [model] table."""
    file = path / "config.toml"
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} is not a run folder: {file} is missing") from None
    except OSError as error:
        raise UserError(f"{file}: cannot read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{file}: not TOML ({error})") from None
    if not isinstance(tables.get("model"), dict):
        raise UserError(f"{file}: must have a [model] table, got {', '.join(sorted(tables)) or 'nothing'}")
    return tables


def read_model_config(path: Path) -> ModelConfig:
    """The `[model]` table of RUN/config.toml."""
    return ModelConfig.from_dict(read_tables(path)["model"])


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a run."""
    try:
        return tokenizers.load(vocabulary_file(path))
    except TokenizerError as error:
        raise UserError(str(error)) from None


def vocabulary_file(path: Path) -> Path:
    """RUN/vocabulary.json; runs of version 0.1 have it as tokenizer.json."""
    file, older = path / "vocabulary.json", path / "tokenizer.json"
    return older if older.is_file() and not file.exists() else file


def read_state(checkpoint: Path) -> dict:
    """state.json of a checkpoint, its format version checked."""
    file = checkpoint / "state.json"
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{file}: broken JSON ({error})") from None
    known = isinstance(state, dict) and state.get("format") == CHECKPOINT_FORMAT
    if not known or not isinstance(state.get("step"), int):
        got = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise UserError(f"{file}: checkpoint format must be {CHECKPOINT_FORMAT} with a step, got {got!r}")
    return state


def checkpoints(path: Path) -> dict[int, Path]:
    """Complete checkpoints of a run by step, oldest first."""
    folder = path / "checkpoints"
    found = [(int(match[1]), entry) for entry in (folder.iterdir() if folder.is_dir() else ())
             if (match := _STEP.fullmatch(entry.name)) and (entry / "state.json").is_file()]
    return dict(sorted(found))


def latest_checkpoint(path: str | Path) -> Path:
    """Folder of the run's last checkpoint."""
    found = list(checkpoints(Path(path)).values())
    if not found:
        raise UserError(f"{path} has no checkpoint yet: train it further, or wait for its first save")
    return found[-1]


def checkpoint_at(path: str | Path, step: int) -> Path:
    """Folder of the checkpoint of one step."""
    found = checkpoints(Path(path))
    if step not in found:
        raise UserError(f"{path} has no checkpoint of step {step}: it has {', '.join(map(str, found)) or 'none'}")
    return found[step]


def run_folders(root: str | Path = "runs") -> list[Path]:
    """Runs below `root` that have a checkpoint, the one saved last at the end."""
    root = Path(root)
    runs = [entry for entry in (root.iterdir() if root.is_dir() else ()) if (entry / "config.toml").is_file()]
    saved = [((latest_checkpoint(run) / "state.json").stat().st_mtime, run) for run in runs if checkpoints(run)]
    return [run for _, run in sorted(saved)]
