"""Training seconds to a validation loss on tinyshakespeare: ours against a PyTorch model of the same size.

    python -m bench.time_to_loss --data PATH/input.txt

Ours is the preset `shakespeare` on bytes, trained by the code that train.pretrain uses; the peer is bench.peers.nanogpt
with its own character vocabulary. The text is ASCII, so a byte is a character and both losses are nats per character.
Both train on the first 90 % of the text. Both are judged on all of the last 10 %: rows of 64 characters side by side,
every character predicted once from at most 64 before it. Every run is a process of its own, the sides take turns.

Seconds count batches, steps and schedule; they leave out evaluation, start-up and one step on a model that is thrown
away (compilation, first allocations). Once its training loss comes near the target, a side is evaluated after every
fiftieth part of its run; its time is that of the first evaluation at or below the target. A peer that never gets there
counts with the seconds of its whole run. Progress goes to stderr, one JSON line to stdout.

With --val-data it is another contest, for texts of some megabytes: bench/same_minutes.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

import kernels
from bench import same_minutes
from bench.peers import nanogpt
from engine import UserError, no_grad
from models.decoder import Decoder
from tokenizer import ByteTokenizer
from train.command import Parser
from train.data import Batch
from train.loop import Loop, next_token_loss
from train.optim import make_optimizer
from train.presets import PRESETS
from train.schedule import learning_rate

EVALUATIONS = 50
NEAR = 0.1  # nats: further above the target than this, the training loss says that an evaluation would be wasted
EVALUATION_ROWS = 64


@dataclass(frozen=True)
class Text:
    """Ids of the whole text, int64, and where the validation part begins."""

    ids: np.ndarray
    border: int
    vocab_size: int

    def validation_rows(self, context: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(inputs, targets) of equal shape [rows, at most `context`]; the targets are every validation id once."""
        inputs, targets = self.ids[self.border - 1:-1], self.ids[self.border:]
        whole = len(targets) // context * context
        shapes = [(inputs[:whole].reshape(-1, context), targets[:whole].reshape(-1, context))]
        if whole < len(targets):
            shapes.append((inputs[None, whole:], targets[None, whole:]))
        return [(x[i:i + EVALUATION_ROWS], y[i:i + EVALUATION_ROWS]) for x, y in shapes
                for i in range(0, len(x), EVALUATION_ROWS)]


@dataclass
class Result:
    """One run: training seconds, steps and characters until `loss`, the first at or below the target, or the last."""

    seed: int
    seconds: float
    steps: int
    characters: int
    loss: float
    reached: bool


class Side(Protocol):
    """A model with its optimizer. `step` trains on one batch and returns its loss; `mean_loss` is without gradients."""

    steps: int
    context: int
    batch_characters: int

    def step(self) -> float: ...

    def mean_loss(self, inputs: np.ndarray, targets: np.ndarray) -> float: ...


class Ours:
    """Preset `shakespeare`: its model, batch, optimizer and schedule, through the loop of train.pretrain."""

    def __init__(self, text: Text, seed: int):
        self.config = PRESETS["shakespeare"]
        data = self.config.data
        self.steps, self.context, self.batch_characters = self.config.run.steps, data.seq_len, data.batch_tokens
        self.text, self.rng = text, np.random.default_rng(seed)
        self.starts = np.empty(0, dtype=np.int64)
        model = Decoder(self.config.model, seed)
        optimizer = make_optimizer(model, self.config.optim, None)
        self.loop = Loop(model, optimizer, self.batch, next_token_loss, micro_tokens=self.config.data.batch_tokens)

    def batch(self, cursor: int) -> Batch:
        """The next rows of an epoch: the training part cut at a random offset, its rows shuffled."""
        length = self.context
        rows = self.batch_characters // length
        while len(self.starts) < rows:
            epoch = np.arange(self.rng.integers(length), self.text.border - length, length)
            self.starts = np.concatenate([self.starts, self.rng.permutation(epoch)])
        taken, self.starts = self.starts[:rows], self.starts[rows:]
        ids = self.text.ids[taken[:, None] + np.arange(length + 1)]
        return Batch(ids=ids[:, :-1].copy(), targets=ids[:, 1:].copy(), doc_start=None, first_token=cursor,
                     predicted=rows * length, bytes=rows * length, row_bytes=np.full(rows, length))

    def step(self) -> float:
        return self.loop.step(learning_rate(self.loop.position.step + 1, self.steps, self.config.optim)).loss

    def mean_loss(self, inputs: np.ndarray, targets: np.ndarray) -> float:
        with no_grad():
            return self.loop.model.loss(torch.from_numpy(inputs), torch.from_numpy(targets)).item()


class Peer:
    """nanoGPT's setting: random offsets, AdamW, clipping, warm-up and cosine."""

    setting = nanogpt.Setting()

    def __init__(self, text: Text, seed: int):
        torch.manual_seed(seed)
        self.steps, self.context = self.setting.iterations, self.setting.context
        self.batch_characters = self.setting.batch * self.setting.context
        self.text, self.rng, self.done = text, np.random.default_rng(seed), 0
        self.model = nanogpt.NanoGPT(text.vocab_size, self.setting)
        self.optimizer = nanogpt.optimizer_for(self.model, self.setting)

    def step(self) -> float:
        setting = self.setting
        starts = self.rng.integers(0, self.text.border - setting.context, setting.batch)
        rows = torch.from_numpy(self.text.ids[starts[:, None] + np.arange(setting.context + 1)])
        for group in self.optimizer.param_groups:
            group["lr"] = setting.learning_rate_at(self.done)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model.loss(rows[:, :-1], rows[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), setting.grad_clip)
        self.optimizer.step()
        self.done += 1
        return loss.item()

    def mean_loss(self, inputs: np.ndarray, targets: np.ndarray) -> float:
        with torch.no_grad():
            return self.model.loss(torch.from_numpy(inputs), torch.from_numpy(targets)).item()


SIDES: dict[str, Callable[[Text, int], Side]] = {"ours": Ours, "peer": Peer}


def read_text(path: str, side: str) -> Text:
    """The text in a side's own vocabulary; UserError when it is missing, not ASCII or too short."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror})") from None
    if not data.isascii():
        raise UserError(f"{path}: must be ASCII, so that bytes are characters")
    if len(data) < 10_000:
        raise UserError(f"{path}: must have at least 10,000 characters, got {len(data)}")
    if side == "ours":
        tokenizer = ByteTokenizer()
        ids, vocab_size = tokenizer.encode_bytes(data).astype(np.int64), tokenizer.vocab_size
    else:
        ids, vocab_size = nanogpt.character_ids(data.decode("ascii"))
    return Text(ids, int(0.9 * len(ids)), vocab_size)


def validation_loss(side: Side, text: Text) -> float:
    """Nats per character over the whole validation part."""
    total = sum(side.mean_loss(x, y) * y.size for x, y in text.validation_rows(side.context))
    return total / (len(text.ids) - text.border)


def train(name: str, path: str, seed: int, target: float) -> Result:
    """One side from its first step to the target, or to its last step."""
    text = read_text(path, name)
    SIDES[name](text, seed + 1000).step()
    side = SIDES[name](text, seed)
    grid = {side.steps * i // EVALUATIONS for i in range(1, EVALUATIONS + 1)}
    seconds, recent = 0.0, []
    for step in range(1, side.steps + 1):
        start = time.perf_counter()
        recent.append(side.step())
        seconds += time.perf_counter() - start
        if step not in grid:
            continue
        training, recent = statistics.fmean(recent), []
        if step < side.steps and training > target + NEAR:
            print(f"{name} seed {seed} step {step}: {seconds:.2f} s, training loss {training:.4f}", file=sys.stderr)
            continue
        loss = validation_loss(side, text)
        print(f"{name} seed {seed} step {step}: {seconds:.2f} s, training loss {training:.4f}, "
              f"validation loss {loss:.4f}", file=sys.stderr)
        if loss <= target or step == side.steps:
            return Result(seed, round(seconds, 3), step, step * side.batch_characters, round(loss, 4), loss <= target)
    raise AssertionError("the last step is on the grid")


def run_apart(name: str, arguments: argparse.Namespace, seed: int) -> Result:
    """`train` in a process of its own."""
    threads = str(arguments.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "LOAM_THREADS": threads}
    command = [sys.executable, "-m", "bench.time_to_loss", "--data", arguments.data, "--target", str(arguments.target),
               "--threads", threads, "--only", name, "--first-seed", str(seed)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"{name}, seed {seed}: the run ended with code {done.returncode}")
    return Result(**json.loads(done.stdout))


def report(results: dict[str, list[Result]], target: float, threads: int) -> dict:
    """Medians over the seeds and every run; `ratio` is None when a run of ours missed the target."""
    ours, peer = (statistics.median(run.seconds for run in results[side]) for side in ("ours", "peer"))
    missed = not all(run.reached for run in results["ours"])
    return {"ours_seconds": ours, "peer_seconds": peer, "ratio": None if missed else round(ours / peer, 4),
            "target": target, "threads": threads,
            **{side: [asdict(run) for run in runs] for side, runs in results.items()}}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.time_to_loss", description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="PATH", help="tinyshakespeare's input.txt")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--target", type=float, default=1.92, help="nats per character on the validation part")
    parser.add_argument("--threads", type=int, default=2, help="of each side")
    parser.add_argument("--only", choices=list(SIDES), help="train one side here and print its run")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--val-data", metavar="PATH", help="the contest of bench/same_minutes.py, judged on this text")
    parser.add_argument("--minutes", type=float, default=10.0, help="of that contest's runs")
    parser.add_argument("--preset", default="demo", help="of that contest")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="section.key=value",
                        help="of that contest")
    parser.add_argument("--compile-peer", action="store_true", help="in that contest")
    arguments = parser.parse_args(argv)
    try:
        if arguments.only:
            torch.set_num_threads(arguments.threads)
            if arguments.only == "ours":
                kernels.set_threads(arguments.threads)
            print(json.dumps(asdict(train(arguments.only, arguments.data, arguments.first_seed, arguments.target))))
            return 0
        if arguments.seeds < 1:
            raise UserError(f"--seeds must be at least 1: got {arguments.seeds}")
        if arguments.val_data:
            print(json.dumps(same_minutes.contest(arguments)))
            return 0
        read_text(arguments.data, "peer")
        results: dict[str, list[Result]] = {"ours": [], "peer": []}
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            for side in ("ours", "peer") if seed % 2 == 0 else ("peer", "ours"):
                results[side].append(run_apart(side, arguments, seed))
        summary = report(results, arguments.target, arguments.threads)
        print(json.dumps(summary))
        return 0 if summary["ratio"] is not None else 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
