"""Training runs that take turns: each in a process of its own, working only while it is its turn.

A run is a configuration as train.pretrain would make it, and a budget of minutes or of steps; the learning rate follows
the share of it that is spent, so every run ends its schedule. Seconds count batches and steps; they leave out start-up,
evaluation and one step on a model that is thrown away. Since turns are short, a slow minute of the machine hits all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

import kernels
from bench.peers.decoder import TorchDecoder
from bench.record import machine, write_results
from bench.worker import Worker
from engine import UserError
from models.decoder import Decoder
from train.arguments import arguments_from, given_values
from train.command import Parser
from train.config import Config
from train.configure import new_config, with_vocabulary
from train.curriculum import Curriculum
from train.data import Batch, Batches
from train.evaluate import evaluate, evaluation_batches
from train.inputs import new_tokenizer, read_texts, token_stream
from train.loop import Loop, next_token_loss
from train.metrics import NATS_PER_BIT
from train.optim import make_optimizer
from train.schedule import learning_rate

SCHEDULE_STEPS = 10_000
TURN_SECONDS = 10.0
SHOWN_EVERY = 6  # turns


@dataclass(frozen=True)
class Side:
    """What a run is, beyond what all runs of a contest share.

    Args:
        settings: section.key=value texts.
        minutes, steps: its length; steps count if there are any.
        peer: PyTorch's model and optimizer in place of ours.
    """

    settings: tuple[str, ...] = ()
    minutes: float = 0.0
    steps: int = 0
    peer: bool = False


@dataclass
class Result:
    """One run: what it took, where it ended, and (seconds, steps, bits per byte) on the way."""

    side: str
    seed: int
    seconds: float
    steps: int
    tokens: int
    bits_per_byte: float
    curve: list[tuple[float, int, float]] = field(default_factory=list)


class Ours:
    """The model, the optimizer and the loop that train.pretrain uses."""

    def __init__(self, config: Config):
        self.model = Decoder(config.model, config.run.seed)
        self.batch: Batch | None = None
        self.loop = Loop(self.model, make_optimizer(self.model, config.optim, None), lambda _: self.batch,
                         next_token_loss, config.data.micro_tokens)

    def step(self, lr: float, batch: Batch) -> float:
        self.batch = batch
        return self.loop.step(lr).loss

    def bits_per_byte(self, batches: Iterator[Batch]) -> float:
        return evaluate(self.model, batches).bits_per_byte


class Peer:
    """The same weights to begin with, in PyTorch."""

    def __init__(self, config: Config, compiled: bool):
        optim = config.optim
        self.model = TorchDecoder(config.model)
        self.model.load_ours(Decoder(config.model, config.run.seed).state_dict())
        matrices = [p for name, p in self.model.named_parameters() if p.dim() >= 2 and "embedding" not in name]
        decayed = set(map(id, matrices))
        others = [p for p in self.model.parameters() if id(p) not in decayed]
        self.optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": optim.weight_decay},
                                            {"params": others, "weight_decay": 0.0}], lr=optim.lr, betas=optim.betas,
                                           eps=optim.eps, fused=True)
        self.clip_norm = optim.clip_norm
        self.loss = torch.compile(self.model.loss) if compiled else self.model.loss

    def step(self, lr: float, batch: Batch) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(torch.from_numpy(batch.ids), torch.from_numpy(batch.targets))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        return loss.item()

    def bits_per_byte(self, batches: Iterator[Batch]) -> float:
        nats = size = 0.0
        with torch.no_grad():
            for batch in batches:
                mean = self.model.loss(torch.from_numpy(batch.ids), torch.from_numpy(batch.targets)).item()
                nats, size = nats + mean * batch.predicted, size + batch.bytes
        return nats / (NATS_PER_BIT * size)


def configuration(arguments: argparse.Namespace, side: Side, seed: int) -> Config:
    """What train.pretrain would make of the arguments and a side's settings."""
    flags = ["--data", arguments.data, "--val-data", arguments.val_data, "--preset", arguments.preset,
             "--seed", str(seed), "--minutes", str(arguments.minutes)]
    for setting in (*arguments.settings, *side.settings):
        flags += ["--set", setting]
    parsed = arguments_from(flags)
    return new_config(parsed, given_values(parsed))


class Run:
    """One run, in turns."""

    def __init__(self, arguments: argparse.Namespace, name: str, side: Side, seed: int):
        self.name, self.seed, self.budget, self.steps = name, seed, side.minutes * 60.0, side.steps
        config = configuration(arguments, side, seed)
        self.tokenizer = new_tokenizer(config)
        config = with_vocabulary(config, self.tokenizer, False)
        self.texts, self.data = read_texts(config, self.tokenizer), config.data
        self.optim = dataclasses.replace(config.optim, warmup_steps=SCHEDULE_STEPS // 25)
        stream = token_stream(self.texts, self.data.window, seed)
        self.batches = Batches(stream, self.data.seq_len, self.tokenizer, self.data.doc_mask)
        self.curriculum = Curriculum(self.data, SCHEDULE_STEPS)

        def contestant() -> Ours | Peer:
            return Peer(config, arguments.compile_peer) if side.peer else Ours(config)

        thrown_away = contestant()
        for portion in sorted({self.curriculum.at(place) for place in range(0, SCHEDULE_STEPS, SCHEDULE_STEPS // 50)}):
            thrown_away.step(0.0, self.batches.batch(0, portion.rows, portion.seq_len))
        self.trained = contestant()
        self.seconds, self.taken, self.cursor, self.losses = 0.0, 0, 0, []
        print(f"{name}, seed {seed}: {config.model.n_parameters():,} parameters", file=sys.stderr)

    @property
    def share(self) -> float:
        """How much of the run is over."""
        return self.taken / self.steps if self.steps else self.seconds / self.budget

    def turn(self, share: float) -> bool:
        """Goes on until a share of the run is over; whether it is over altogether."""
        self.losses.clear()
        while self.share < min(share, 1.0):
            begin, progress = time.perf_counter(), SCHEDULE_STEPS * self.share
            portion = self.curriculum.at(int(progress))
            batch = self.batches.batch(self.cursor, portion.rows, portion.seq_len)
            self.losses.append(self.trained.step(learning_rate(1 + int(progress), SCHEDULE_STEPS, self.optim), batch))
            self.seconds += time.perf_counter() - begin
            self.taken, self.cursor = self.taken + 1, self.cursor + batch.ids.size
        return self.share >= 1.0

    def result(self) -> Result:
        """Where it has ended."""
        text, data = self.texts.validation[""], self.data
        found = self.trained.bits_per_byte(evaluation_batches(text, self.tokenizer, data.seq_len, data.doc_mask))
        return Result(self.name, self.seed, round(self.seconds, 2), self.taken, self.cursor, round(found, 4))


def run_in_turns(arguments: argparse.Namespace, seed: int, sides: dict[str, Side], looks: int = 0) -> dict[str, Result]:
    """The results of sides by their names; UserError when a run ends before that.

    Args:
        arguments: data, val_data, preset, settings, minutes (of a whole run), threads, compile_peer.
        looks: how often a run is evaluated before its end.
    """
    turns, found = max(1, round(60.0 * arguments.minutes / TURN_SECONDS)), {}
    runs: dict[str, Worker] = {}
    curves: dict[str, list[tuple[float, int, float]]] = {name: [] for name in sides}
    try:
        for name, side in sides.items():
            runs[name] = Worker(f"{name}, seed {seed}", "bench.turns")
            runs[name].ask({"arguments": vars(arguments), "name": name, "side": asdict(side), "seed": seed})
        for turn in range(1, turns + 1):
            for name, run in runs.items():
                told = run.ask({"share": turn / turns})
                if turn % SHOWN_EVERY == 0 or told["over"]:
                    print(f"{run.name}: {told['seconds']:.0f} s, step {told['step']}, training loss {told['loss']:.4f}",
                          file=sys.stderr)
                if turn * (looks + 1) % turns < looks + 1 and turn < turns:
                    looked = run.ask({"result": True})
                    curves[name].append((looked["seconds"], looked["steps"], looked["bits_per_byte"]))
        for name, run in runs.items():
            found[name] = result = Result(**run.ask({"result": True}) | {"curve": curves[name]})
            print(f"{run.name}: {result.bits_per_byte:.4f} bits per byte after {result.steps:,} steps, "
                  f"{result.seconds:.0f} s", file=sys.stderr)
    except RuntimeError as error:
        raise UserError(str(error)) from None
    finally:
        for run in runs.values():
            run.close()
    return found


def contest_parser(name: str, description: str, minutes: float) -> Parser:
    """The flags that contests share."""
    parser = Parser(prog=f"python -m bench.{name}", description=description,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="PATH", help="text to train on")
    parser.add_argument("--val-data", required=True, metavar="PATH", help="text to judge by")
    parser.add_argument("--minutes", type=float, default=minutes, help="of each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", default="demo", help="whose data and sizes (default: demo)")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="section.key=value",
                        help="for all runs")
    parser.add_argument("--write", action="store_true", help=f"results to bench/results/{name.replace('_', '-')}-*")
    parser.set_defaults(threads=torch.get_num_threads(), compile_peer=False)
    return parser


def tell(name: str, arguments: argparse.Namespace, results: dict[str, Result], table: str,
         plot: Callable[[dict[str, Result], Path], None], **more: object) -> None:
    """The table to stderr, one JSON line, with `more` in it, to stdout, and with --write both it and the plot to
    bench/results/."""
    print(table, file=sys.stderr)
    found = {"machine": machine(arguments.threads), "minutes": arguments.minutes, "seed": arguments.seed,
             "runs": {side: asdict(result) for side, result in results.items()}, **more}
    print(json.dumps(found))
    if arguments.write:
        print(write_results(name.replace("_", "-"), found, lambda path: plot(results, path)), file=sys.stderr)


def main() -> None:
    """The worker's side: a run, its turns, its result."""
    request = json.loads(sys.stdin.readline())
    arguments = argparse.Namespace(**request["arguments"])
    torch.set_num_threads(arguments.threads)
    kernels.set_threads(arguments.threads)
    answers, sys.stdout = sys.stdout, sys.stderr
    run = Run(arguments, request["name"], Side(**request["side"]), request["seed"])
    print(json.dumps({}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "result" in asked:
            told = asdict(run.result())
        else:
            over = run.turn(asked["share"])
            told = {"over": over, "seconds": run.seconds, "step": run.taken,
                    "loss": statistics.fmean(run.losses) if run.losses else float("nan")}
        print(json.dumps(told), file=answers, flush=True)


if __name__ == "__main__":
    main()
