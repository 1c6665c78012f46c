"""Pretrain a language model: python -m train.pretrain --help"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

import torch

import kernels
from engine import random
from engine.precision import precision
from models.decoder import Decoder
from models.generate import generate_text
from models.run_folder import load_run, read_tokenizer
from tokenizer import Tokenizer
from train import checkpoint, folder as folders
from train.arguments import arguments_from, given_values
from train.command import run_command
from train.config import Config
from train.configure import new_config, resumed_config, with_vocabulary
from train.dashboard import start_dashboard
from train.data import Batches, Prefetch
from train.errors import UserError
from train.files import write_text
from train.folder import RunFolder
from train.inputs import Texts, check_vocabulary, new_tokenizer, read_texts, token_stream, training_tokenizer
from train.loop import Loop, next_token_loss
from train.optim import make_optimizer
from train.optim.table import folded, routing_text
from train.pace import Pace
from train.plan import check_fits
from train.progress import clock
from train.report import recorded, write_report
from train.session import Identity, Session
from train.statistics import Statistics
from train.validation import Validation

RUNS = Path("runs")


def initialise_from(model: Decoder, tokenizer: Tokenizer, run: Path) -> None:
    """Copy the weights of another run's last checkpoint. UserError when vocabulary or shapes differ."""
    other = load_run(run, device="cpu")
    if other.tokenizer.fingerprint() != tokenizer.fingerprint():
        raise UserError(f"--init-from {run}: its vocabulary is not this run's "
                        f"({other.tokenizer.fingerprint()[:12]} and {tokenizer.fingerprint()[:12]})")
    checkpoint.restore(model.state_dict(), other.model.state_dict(), f"--init-from {run}, step {other.step}")


def describe(config: Config, texts: Texts, model: Decoder, path: Path, pace: Pace, first_step: int) -> str:
    """The lines printed before the first step."""
    data = config.data
    source = ", ".join(data.paths[:3]) + (" ..." if len(data.paths) > 3 else "")
    source = source or "the Python standard library's source"
    parts = texts.train.values()
    tokens, documents = (sum(getattr(part, what) for part in parts) for what in ("tokens", "documents"))
    held_out = sum(part.tokens for part in texts.validation.values())
    told = f"{held_out:,} tokens for validation" if held_out else "no validation"
    length = f"{pace.total:,} steps" if pace.total else f"as many steps as fit in {config.run.minutes:g} minutes"
    if first_step:
        length += f", going on after step {first_step:,}"
    active = ""
    if config.model.feed_forward == "moe":
        active = f"{config.model.n_parameters(active=True):,} of them for a token, "
    lines = [
        f"data    {source}: {tokens:,} tokens in {documents:,} documents, {told}",
        f"vocab   {config.model.vocab_size:,} ids, "
        f"{sum(part.bytes for part in parts) / max(1, tokens - documents):.2f} bytes of text per token",
        f"model   {config.run.preset}: {config.model.n_parameters():,} parameters, {active}"
        + (f"{config.model.dtype}, " if config.run.precision == "float32" else f"{config.run.precision}, ")
        + (f"cpu, {kernels.threads()} threads" if config.run.device == "cpu" else config.run.device),
        f"step    {data.batch_tokens:,} tokens: {data.batch_tokens // data.seq_len} rows of {data.seq_len}, "
        f"{max(1, data.micro_tokens // data.seq_len)} at a time",
        f"length  {length}",
        f"folder  {path}"]
    for name, text in (("lengths", data.lengths), ("ramp", data.batch_ramp)):
        if text:
            lines.insert(4, f"{name:7} {text}")
    return "\n".join(lines)


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
    check_fits(config)
    texts = read_texts(config, tokenizer)
    model = Decoder(config.model, config.run.seed)
    if arguments.init_from:
        initialise_from(model, tokenizer, arguments.init_from)
    path = path or folders.numbered(RUNS, config.run.preset)
    with RunFolder(path) as folder:
        _refuse_old_run(path)
        tokenizer.save(folder.vocabulary)
        config.save(folder.config)
        return train(config, folder, model, tokenizer, texts, arguments)


def resume(arguments: argparse.Namespace) -> int:
    """Go on with a run from its last checkpoint, or from the beginning when it has none."""
    path = arguments.out or folders.latest(RUNS)
    _need_run(path, "--resume")
    with RunFolder(path) as folder:
        tokenizer = read_tokenizer(path)
        config = resumed_config(path, arguments, given_values(arguments))
        check_vocabulary(path, tokenizer, config.tokenizer.fingerprint)
        kernels.set_threads(config.run.threads)
        check_fits(config)
        texts = read_texts(config, tokenizer)
        return train(config, folder, Decoder(config.model, config.run.seed), tokenizer, texts, arguments)


def train(config: Config, folder: RunFolder, model: Decoder, tokenizer: Tokenizer, texts: Texts,
          arguments: argparse.Namespace) -> int:
    """Set up the session in a folder that is held, and run it. Returns the exit code."""
    policy = precision(config.run.precision, config.run.device)
    with policy.active():
        session, batches = new_session(config, folder, model.to(config.run.device), tokenizer, texts, policy.working)
        try:
            return run_session(session, texts, arguments)
        finally:
            batches.close()


def new_session(config: Config, folder: RunFolder, model: Decoder, tokenizer: Tokenizer, texts: Texts,
                working: torch.dtype | None) -> tuple[Session, Prefetch]:
    """A session with a model where it is trained, and its batches, which are to be closed."""
    data, run = config.data, config.run
    random.set_seed(run.seed)
    optimizer = make_optimizer(model, config.optim, working)
    batches = Prefetch(Batches(token_stream(texts, data.window, run.seed), data.seq_len,
                               training_tokenizer(config, tokenizer), data.doc_mask))
    measured = Statistics(run.statistics, model, optimizer)
    loop = Loop(model, optimizer, batches.batch, next_token_loss, data.micro_tokens, statistics=measured)
    validation = Validation(model, texts.validation, texts.weights, tokenizer, data, run.eval_tokens, measured)

    def generate(prompt: str) -> str:
        return "".join(generate_text(model, tokenizer, prompt, run.sample_tokens, seed=run.seed))

    identity = Identity(tokenizer.fingerprint(), texts.fingerprint)
    session = Session(config, folder, model, optimizer, loop, identity, validation if texts.validation else None,
                      generate, measured)
    return session, batches


def run_session(session: Session, texts: Texts, arguments: argparse.Namespace) -> int:
    """Go on where the folder's last checkpoint is, to the end. Returns the exit code."""
    config, folder, position = session.config, session.folder, session.position
    checkpoint.remove_leftovers(folder.path)
    restored = session.restore() if arguments.resume else False
    if arguments.resume and not restored:
        print(f"{folder.path} has no checkpoint yet: starting from the beginning")
    if session.total is not None and position.step >= session.total:
        if not folder.report.exists():
            write_report(folder.path)
        print(f"{folder.path} is finished: step {position.step} of {session.total}; "
              f"go on with --resume --steps {2 * session.total}")
        return 0
    config.save(folder.config)
    routes = session.optimizer.routing()
    print(describe(config, texts, session.model, folder.path, session.pace, position.step))
    print(routing_text(folded(routes)), flush=True)
    write_text(folder.routing, routing_text(routes) + "\n", durable=False)
    with contextlib.ExitStack() as stack:
        if arguments.dashboard:
            dashboard = start_dashboard(folder.path.parent)
            stack.callback(dashboard.close)
            print(f"watch   {dashboard.url}", flush=True)
        stack.enter_context(recorded(folder.path, config, texts, position.step))
        code = session.run(arguments.profile)
    finish(session, folder.path, code)
    return code


def finish(session: Session, path: Path, code: int) -> None:
    """Print how it ended and what to do next."""
    position = session.position
    report = write_report(path)
    if code or session.stopping:
        print(f"saved at step {position.step}; go on with: python -m train.pretrain --out {path} --resume")
        return
    print(f"done: {position.step:,} steps, {position.cursor:,} tokens in {clock(position.wall_seconds)}")
    if session.last_evaluation:
        result = session.last_evaluation.total
        print(f"validation loss {result.loss:.4f} nats per token, {result.bits_per_byte:.4f} bits per byte")
    print(f"report {report}\n"
          f"next:  python -m models.generate {path} --prompt TEXT\n"
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
