"""Pretrain a language model: python -m train.pretrain --help"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

import torch

import kernels
from engine import random
from engine.precision import precision
from models.decoder import Decoder
from models.generate import generate_text
from models.run_folder import load_run, read_tokenizer, vocabulary_file
from tokenizer import Tokenizer
from train import checkpoint, folder as folders
from train.arguments import arguments_from, given_values
from train.command import run_command
from train.config import Config
from train.data import Batches, Corpus, Prefetch, TokenStream
from train.errors import UserError
from train.evaluate import evaluate, evaluation_batches
from train.files import write_text
from train.folder import RunFolder
from train.inputs import check_vocabulary, new_tokenizer, read_corpus, training_tokenizer
from train.loop import Loop, next_token_loss
from train.optim.adamw import AdamW
from train.presets import preset
from train.progress import clock
from train.session import Identity, Session

RUNS = Path("runs")
AUTOMATIC = ("run.device", "run.precision")
MICRO_TOKENS = 4096
LARGE_GPU = 40 << 30  # bytes
CHANGEABLE_ON_RESUME = {"run.steps", "run.minutes", "run.tokens", "run.log_every", "run.eval_every", "run.eval_tokens",
                        "run.sample_every", "run.sample_prompt", "run.sample_tokens", "run.threads", "checkpoint.every",
                        "checkpoint.keep", "data.cache_dir"}


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
        config = preset(other.run.preset).with_values({f"model.{k}": v for k, v in vars(other.model).items()})
    config = config.with_values(values)
    if config.data.seq_len > config.model.max_seq_len and "model.max_seq_len" not in values:
        config = config.with_values({"model.max_seq_len": config.data.seq_len})
    if not config.data.window:
        config = config.with_values({"data.window": config.data.seq_len})
    config = on_device(config)
    if not config.data.micro_rows and config.data.seq_len > 0:
        fitting = micro_tokens(config.run.device) // config.data.seq_len
        config = config.with_values({"data.micro_rows": max(1, min(config.rows, fitting))})
    if not config.run.threads:
        config = config.with_values({"run.threads": kernels.threads()})
    return config.validated()


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
            raise UserError(f"--resume cannot change {name} from {before[name]!r} to {after[name]!r}: "
                            f"start a new run, with --init-from {run} to keep its weights")
    return new


def initialise_from(model: Decoder, tokenizer: Tokenizer, run: Path) -> None:
    """Copy the weights of another run's last checkpoint. UserError when vocabulary or shapes differ."""
    other = load_run(run, device="cpu")
    if other.tokenizer.fingerprint() != tokenizer.fingerprint():
        raise UserError(f"--init-from {run}: its vocabulary is not this run's "
                        f"({other.tokenizer.fingerprint()[:12]} and {tokenizer.fingerprint()[:12]})")
    checkpoint.restore(model.state_dict(), other.model.state_dict(), f"--init-from {run}, step {other.step}")


def describe(config: Config, corpus: Corpus, model: Decoder, path: Path, first_step: int) -> str:
    """The lines printed before the first step."""
    data, part = config.data, corpus.train
    source = ", ".join(data.paths[:3]) + (" ..." if len(data.paths) > 3 else "")
    source = source or "the Python standard library's source"
    held_out = f"{corpus.validation.tokens:,} tokens for validation" if corpus.validation else "no validation"
    steps = config.planned_steps()
    length = f"{steps:,} steps" if steps else f"as many steps as fit in {config.run.minutes:g} minutes"
    if first_step:
        length += f", going on after step {first_step:,}"
    return "\n".join((
        f"data    {source}: {part.tokens:,} tokens in {part.documents:,} documents, {held_out}",
        f"vocab   {config.model.vocab_size:,} ids, {part.bytes / max(1, part.tokens - part.documents):.2f} bytes of "
        "text per token",
        f"model   {config.run.preset}: {config.model.n_parameters():,} parameters, "
        + (f"{config.model.dtype}, " if config.run.precision == "float32" else f"{config.run.precision}, ")
        + (f"cpu, {kernels.threads()} threads" if config.run.device == "cpu" else config.run.device),
        f"step    {data.batch_tokens:,} tokens: {config.rows} rows of {data.seq_len}, {data.micro_rows} at a time",
        f"length  {length}",
        f"folder  {path}",
    ))


def routing_text(optimizer: AdamW) -> str:
    """The optimizer's routing as lines of columns."""
    return "\n".join(f"{route.parameter:40} {str(list(route.shape)):16} {route.group:16} lr x {route.lr_factor:g}  "
                     f"decay {route.weight_decay:g}" for route in optimizer.routing())


def main(argv: list[str] | None = None) -> int:
    arguments = arguments_from(argv)
    return resume(arguments) if arguments.resume else start(arguments)


def start(arguments: argparse.Namespace) -> int:
    """Train a new run. The folder is made last, so that bad input leaves none."""
    path = arguments.out
    if path is not None:
        _refuse_old_run(path)
    if arguments.init_from:
        _need_run(arguments.init_from, "--init-from")
    values = given_values(arguments)
    config = new_config(arguments, values)
    kernels.set_threads(config.run.threads)
    tokenizer = new_tokenizer(config)
    as_the_other = arguments.init_from is not None and not arguments.preset
    config = with_vocabulary(config, tokenizer, as_the_other or "model.vocab_size" in values)
    corpus = read_corpus(config, tokenizer)
    model = Decoder(config.model, config.run.seed)
    if arguments.init_from:
        initialise_from(model, tokenizer, arguments.init_from)
    path = path or folders.numbered(RUNS, config.run.preset)
    with RunFolder(path) as folder:
        _refuse_old_run(path)
        tokenizer.save(folder.vocabulary)
        config.save(folder.config)
        return train(config, folder, model, tokenizer, corpus, arguments)


def resume(arguments: argparse.Namespace) -> int:
    """Go on with a run from its last checkpoint, or from the beginning when it has none."""
    path = arguments.out or folders.latest(RUNS)
    _need_run(path, "--resume")
    with RunFolder(path) as folder:
        tokenizer = read_tokenizer(path)
        config = resumed_config(path, arguments, given_values(arguments))
        check_vocabulary(path, tokenizer, config.tokenizer.fingerprint)
        kernels.set_threads(config.run.threads)
        corpus = read_corpus(config, tokenizer)
        return train(config, folder, Decoder(config.model, config.run.seed), tokenizer, corpus, arguments)


def train(config: Config, folder: RunFolder, model: Decoder, tokenizer: Tokenizer, corpus: Corpus,
          arguments: argparse.Namespace) -> int:
    """Set up the session in a folder that is held, and run it. Returns the exit code."""
    policy = precision(config.run.precision, config.run.device)
    with policy.active():
        return run_session(config, folder, model.to(config.run.device), tokenizer, corpus, arguments, policy.working)


def run_session(config: Config, folder: RunFolder, model: Decoder, tokenizer: Tokenizer, corpus: Corpus,
                arguments: argparse.Namespace, working: torch.dtype | None) -> int:
    """`train`, the model being where it is trained."""
    data, optim, run = config.data, config.optim, config.run
    random.set_seed(run.seed)
    optimizer = AdamW(model, optim.betas, optim.eps, optim.weight_decay, optim.clip_norm, working)
    stream = TokenStream(corpus.train, data.window, run.seed)
    batches = Prefetch(Batches(stream, data.seq_len, training_tokenizer(config, tokenizer), data.doc_mask))
    loop = Loop(model, optimizer, partial(batches.batch, rows=config.rows), next_token_loss, micro_rows=data.micro_rows)
    validation = corpus.validation

    def validate():
        return evaluate(model, evaluation_batches(validation, tokenizer, data.seq_len, data.doc_mask, run.eval_tokens))

    def sample() -> str:
        new = generate_text(model, tokenizer, run.sample_prompt, run.sample_tokens, seed=run.seed)
        return run.sample_prompt + "".join(new)

    identity = Identity(tokenizer.fingerprint(), corpus.train.fingerprint)
    session = Session(config, folder, model, optimizer, loop, identity, validate if validation else None, sample)
    checkpoint.remove_leftovers(folder.path)
    restored = session.restore() if arguments.resume else False
    if arguments.resume and not restored:
        print(f"{folder.path} has no checkpoint yet: starting from the beginning")
    if session.total is not None and loop.position.step >= session.total:
        print(f"{folder.path} is finished: step {loop.position.step} of {session.total}; "
              f"go on with --resume --steps {2 * session.total}")
        return 0
    config.save(folder.config)
    print(describe(config, corpus, model, folder.path, loop.position.step), flush=True)
    write_text(folder.routing, routing_text(optimizer) + "\n", durable=False)
    try:
        code = session.run(arguments.profile)
    finally:
        batches.close()
    finish(session, folder.path, code)
    return code


def finish(session: Session, path: Path, code: int) -> None:
    """Print how it ended and what to do next."""
    position = session.position
    if code:
        print(f"saved at step {position.step}; go on with: python -m train.pretrain --out {path} --resume")
        return
    print(f"done: {position.step:,} steps, {position.cursor:,} tokens in {clock(position.wall_seconds)}")
    if session.last_evaluation:
        result = session.last_evaluation
        print(f"validation loss {result.loss:.4f} nats per token, {result.bits_per_byte:.4f} bits per byte")
    print(f"next:  python -m models.generate {path} --prompt TEXT\n"
          f"       python -m models.chat {path}\n"
          f"       python -m train.evaluate {path} --data FILE\n"
          f"       python -m train.pretrain --out {path} --resume --steps {2 * position.step}")


def _refuse_old_run(path: Path) -> None:
    if RunFolder(path).holds_run():
        raise UserError(f"{path} holds a run already: go on with --resume, or name another --out")


def _need_run(path: Path, flag: str) -> None:
    if not RunFolder(path).holds_run():
        raise UserError(f"{flag}: {path} holds no run (config.toml is missing)")


if __name__ == "__main__":
    run_command(main)
