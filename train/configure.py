"""From flags to the settings of a run: a new one's, and those of one that goes on."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import kernels
from engine.precision import precision
from models.run_folder import checkpoints, vocabulary_file
from tokenizer import Tokenizer
from train.config import Config
from train.curriculum import parse_shares
from train.errors import UserError
from train.presets import preset

AUTOMATIC = ("run.device", "run.precision")
MICRO_TOKENS = 4096
LARGE_GPU = 40 << 30  # bytes
CHANGEABLE_ON_RESUME = {"run.steps", "run.minutes", "run.tokens", "run.log_every", "run.eval_every", "run.eval_tokens",
                        "run.sample_every", "run.sample_prompt", "run.sample_tokens", "run.threads", "run.non_finite",
                        "run.statistics", "run.loggers", "checkpoint.every", "checkpoint.keep", "checkpoint.best",
                        "checkpoint.asynchronous", "data.micro_tokens", "data.cache_dir"}
SWITCH = "optim.switch_to_muon_at"


def new_config(arguments: argparse.Namespace, values: dict[str, object]) -> Config:
    """The settings of a new run: preset, then flags and --set; the model of --init-from when no preset is named.

    `with_vocabulary` completes them.
    """
    config = preset(arguments.preset or "demo")
    if arguments.init_from and not values.get("tokenizer.path"):
        if values.get("tokenizer.vocab_size"):
            raise UserError(f"--init-from {arguments.init_from} brings its own vocabulary: leave out --vocab-size "
                            f"{values['tokenizer.vocab_size']}")
        values = {**values, "tokenizer.path": os.path.abspath(vocabulary_file(arguments.init_from))}
    if arguments.init_from and not arguments.preset:
        other = Config.load(arguments.init_from / "config.toml")
        shape = {name: value for name, value in other.flat().items() if name.startswith("model.")}
        config = preset(other.run.preset).with_values(shape)
    config = config.with_values(values)
    config = on_device(with_lengths(config, values))
    if not config.data.micro_tokens:
        config = config.with_values({"data.micro_tokens": micro_tokens(config.run.device)})
    if not config.run.threads:
        config = config.with_values({"run.threads": kernels.threads()})
    return config.validated()


def with_lengths(config: Config, values: dict[str, object]) -> Config:
    """What follows from the lengths of rows and steps, where it is not among `values`."""
    lengths = [length for length, _ in parse_shares(config.data.lengths, "data.lengths")]
    sizes = [size for size, _ in parse_shares(config.data.batch_ramp, "data.batch_ramp")]
    implied = {"data.seq_len": lengths[-1]} if lengths else {}
    implied |= {"data.batch_tokens": sizes[-1]} if sizes else {}
    longest = max(lengths, default=implied.get("data.seq_len", config.data.seq_len))
    if not config.data.window:
        implied["data.window"] = longest
    if longest > config.model.max_seq_len:
        implied["model.max_seq_len"] = longest
    return config.with_values({name: value for name, value in implied.items() if name not in values})


def with_vocabulary(config: Config, tokenizer: Tokenizer, fixed: bool) -> Config:
    """The settings of a run that has this vocabulary.

    Args:
        fixed: the model's number of ids is given; it may be larger than the vocabulary's.
    Raises:
        UserError: it is smaller, or the settings want a vocabulary with another fingerprint.
    """
    fingerprint = tokenizer.fingerprint()
    if config.tokenizer.fingerprint not in ("", fingerprint):
        raise UserError(f"tokenizer.fingerprint must be the vocabulary's, {fingerprint}: "
                        f"got {config.tokenizer.fingerprint}")
    config = config.with_values({"tokenizer.fingerprint": fingerprint})
    if not fixed:
        config = config.with_values({"model.vocab_size": tokenizer.vocab_size})
    if config.model.vocab_size < tokenizer.vocab_size:
        raise UserError(f"model.vocab_size must be at least the tokenizer's {tokenizer.vocab_size}: "
                        f"got {config.model.vocab_size}")
    return config


def on_device(config: Config) -> Config:
    """With `auto` for device and precision decided. UserError when the device is not there."""
    device = config.run.device
    if device == "auto":
        device = "cuda" if kernels.gpu_memory() else "cpu"
    elif device == "cuda" and not kernels.gpu_memory():
        raise UserError("run.device is cuda: PyTorch finds no GPU here")
    if device == "cuda" and config.model.context.kind == "dca":  # asks for documents' lengths, which no graph can do
        raise UserError("model.context.kind dca is trained on a CPU: run.device must be cpu, got cuda")
    name = config.run.precision
    return config.with_values({"run.device": device, "run.precision": precision(name, device).name})


def micro_tokens(device: str) -> int:
    """Tokens of a micro-batch: what keeps the device busy and fits the memory."""
    if device == "cpu":
        return MICRO_TOKENS
    return MICRO_TOKENS * (16 if kernels.gpu_memory() > LARGE_GPU else 4)


def resumed_config(run: Path, arguments: argparse.Namespace, values: dict[str, object]) -> Config:
    """The settings of a run that goes on. UserError for a change that would make it another run."""
    old = Config.load(run / "config.toml")
    before = old.flat()
    values = {name: value for name, value in values.items() if value != before[name]}
    if arguments.preset and arguments.preset != old.run.preset:
        raise UserError(f"--resume cannot change run.preset from {old.run.preset!r} to {arguments.preset!r}")
    new = on_device(old.with_values(values)).validated()
    before |= {name: new.flat()[name] for name in AUTOMATIC if before[name] == "auto"}
    after = new.flat()
    for name in before:
        if before[name] != after[name] and name not in CHANGEABLE_ON_RESUME:
            if name == SWITCH and old.optim.optimizer == "adamw" and _comes_later(run, before[name], after[name]):
                continue
            raise UserError(f"--resume cannot change {name} from {before[name]!r} to {after[name]!r}: "
                            f"start a new run, with --init-from {run} to keep its weights")
    return new


def _comes_later(run: Path, *steps: int) -> bool:
    """Whether a run has not come to any of these steps; 0 stands for none."""
    last = max(checkpoints(run), default=0)
    return all(step == 0 or step >= last for step in steps)
