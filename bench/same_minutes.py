"""The same minutes for each way to train: `python -m bench.time_to_loss --data TRAIN --val-data VALIDATION`.

One model, one vocabulary, the same tokens in the same order, judged by bits per byte of the whole validation text:

- peer: the model written in PyTorch (bench.peers.decoder), PyTorch's fused AdamW, compiled if --compile-peer.
- adamw: ours with the same AdamW, weights from the same start.
- muon: ours with Muon.
- muon, fewer steps: as many as STEP_SHARE of what adamw took. It must end at or below adamw's loss.
- curriculum: muon with rows and steps that grow, for TIME_SHARE of the minutes. It must end at or below muon's loss.

The learning rate follows the share of the minutes that is spent, so every run ends its schedule. Seconds count batches
and steps; they leave out start-up, evaluation and one step on a model that is thrown away. Every run is a process of its
own, one after the other. Progress goes to stderr, one JSON line to stdout.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch

import kernels
from bench.peers.decoder import TorchDecoder
from engine import UserError
from models.decoder import Decoder
from train.arguments import arguments_from, given_values
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

STEP_SHARE, TIME_SHARE = 0.7, 0.8
SCHEDULE_STEPS = 10_000
SHOWN_EVERY = 30.0  # seconds
MUON = ("optim.optimizer=muon",)
GROWING = (*MUON, "data.lengths=64:15%,128:25%,256:60%", "data.batch_ramp=1024:15%,2048:25%,4096:60%")
SIDES = {"peer": (), "adamw": ("optim.optimizer=adamw",), "muon": MUON, "curriculum": GROWING}
Step = Callable[[float, Batch], float]


@dataclass
class Result:
    """One run: what it took, and where it ended."""

    side: str
    seed: int
    seconds: float
    steps: int
    tokens: int
    bits_per_byte: float


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


def settings(arguments: argparse.Namespace, side: str, seed: int) -> Config:
    """What train.pretrain would make of them."""
    flags = ["--data", arguments.data, "--val-data", arguments.val_data, "--preset", arguments.preset,
             "--seed", str(seed), "--minutes", str(arguments.minutes)]
    for setting in (*arguments.settings, *SIDES[side]):
        flags += ["--set", setting]
    parsed = arguments_from(flags)
    return new_config(parsed, given_values(parsed))


def train(arguments: argparse.Namespace, side: str, seed: int, minutes: float, steps: int = 0) -> Result:
    """One run of `steps` steps, or of `minutes` when that is 0."""
    config = settings(arguments, side, seed)
    tokenizer = new_tokenizer(config)
    config = with_vocabulary(config, tokenizer, False)
    texts = read_texts(config, tokenizer)
    data, optim = config.data, dataclasses.replace(config.optim, warmup_steps=SCHEDULE_STEPS // 25)
    batches = Batches(token_stream(texts, data.window, seed), data.seq_len, tokenizer, data.doc_mask)
    curriculum = Curriculum(data, SCHEDULE_STEPS)

    def contestant() -> Ours | Peer:
        return Peer(config, arguments.compile_peer) if side == "peer" else Ours(config)

    def batch_at(share: float, cursor: int) -> Batch:
        stage = curriculum.at(int(share * SCHEDULE_STEPS))
        return batches.batch(cursor, stage.rows, stage.seq_len)

    thrown_away = contestant()
    for share in {0.0, 0.3, 0.9}:
        thrown_away.step(0.0, batch_at(share, 0))
    trained, seconds, budget, taken, cursor, shown, recent = contestant(), 0.0, minutes * 60.0, 0, 0, 0.0, []
    print(f"{side}, seed {seed}: {config.model.n_parameters():,} parameters", file=sys.stderr)
    while taken < steps if steps else seconds < budget:
        begin = time.perf_counter()
        share = taken / steps if steps else seconds / budget
        batch = batch_at(share, cursor)
        recent.append(trained.step(learning_rate(1 + int(SCHEDULE_STEPS * share), SCHEDULE_STEPS, optim), batch))
        seconds += time.perf_counter() - begin
        taken, cursor = taken + 1, cursor + batch.ids.size
        if seconds - shown > SHOWN_EVERY:
            print(f"{side}, seed {seed}: {seconds:.0f} s, step {taken}, training loss {statistics.fmean(recent):.4f}",
                  file=sys.stderr)
            shown, recent = seconds, []
    found = trained.bits_per_byte(evaluation_batches(texts.validation[""], tokenizer, data.seq_len, data.doc_mask))
    return Result(side, seed, round(seconds, 2), taken, cursor, round(found, 4))


def run_apart(arguments: argparse.Namespace, side: str, seed: int, minutes: float, steps: int = 0) -> Result:
    """`train` in a process of its own."""
    request = {**vars(arguments), "side": side, "seed": seed, "of_minutes": minutes, "steps": steps}
    done = subprocess.run([sys.executable, "-m", "bench.same_minutes"], input=json.dumps(request), text=True,
                          stdout=subprocess.PIPE)
    if done.returncode:
        raise UserError(f"{side}, seed {seed}: the run ended with code {done.returncode}")
    result = Result(**json.loads(done.stdout.splitlines()[-1]))
    print(f"{side}, seed {seed}: {result.bits_per_byte:.4f} bits per byte after {result.steps:,} steps, "
          f"{result.seconds:.0f} s", file=sys.stderr)
    return result


def contest(arguments: argparse.Namespace) -> dict:
    """All runs, and what they say."""
    runs: list[dict[str, Result]] = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        found = {side: run_apart(arguments, side, seed, arguments.minutes) for side in ("peer", "adamw", "muon")}
        found["muon, fewer steps"] = run_apart(arguments, "muon", seed, 0.0, round(STEP_SHARE * found["adamw"].steps))
        found["curriculum"] = run_apart(arguments, "curriculum", seed, TIME_SHARE * arguments.minutes)
        runs.append(found)

    def lead(one: str, other: str) -> float:
        return round(statistics.median(run[other].bits_per_byte - run[one].bits_per_byte for run in runs), 4)

    return {"minutes": arguments.minutes, "threads": arguments.threads, "compiled_peer": arguments.compile_peer,
            "bits_under_peer": lead("muon", "peer"), "step_share": STEP_SHARE,
            "bits_under_adamw_in_fewer_steps": lead("muon, fewer steps", "adamw"), "time_share": TIME_SHARE,
            "bits_under_fixed_length_in_less_time": lead("curriculum", "muon"),
            "runs": [{name: asdict(result) for name, result in run.items()} for run in runs]}


def main() -> None:
    request = json.loads(sys.stdin.read())
    arguments = argparse.Namespace(**request)
    torch.set_num_threads(arguments.threads)
    kernels.set_threads(arguments.threads)
    result = train(arguments, arguments.side, arguments.seed, arguments.of_minutes, arguments.steps)
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
