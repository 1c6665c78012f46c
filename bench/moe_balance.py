"""Ways to balance experts: `python -m bench.moe_balance --data TRAIN --val-data VALIDATION`.

A small model with experts is trained on the same tokens in the same order for the same steps, each cut into four
micro-batches, with each way to balance (models/balance.py) and with none. MaxVio, load_max / mean - 1, is that of the
last steps, mean over layers: of the tokens of all these steps together, and of a single step. Entropy is that of the
load in nats, and dead are the experts without a token in these steps; bits per byte are those of the beginning of the
validation text. Progress and a table go to stderr, one JSON line to stdout; --write puts that into bench/results/ with
a plot of MaxVio over the steps.

Losses of a few hundred steps of a small model say little about large ones: the comparison is about the load.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch

from bench.record import machine, write_results
from bench.turns import Run, Side
from engine import UserError
from train.command import Parser, run_command
from train.evaluate import evaluation_batches

MODEL = ("model.n_layers=2", "model.d_model=64", "model.n_heads=2", "model.head_dim=0", "model.d_ff=192",
         "model.max_seq_len=128", "model.feed_forward=moe", "model.experts.n=8", "model.experts.top_k=2",
         "model.experts.width=96", "model.experts.bias_rate=0", "data.seq_len=128", "data.batch_tokens=2048",
         "data.micro_tokens=512", "tokenizer.vocab_size=1024", "tokenizer.sample_mb=1")
LAST, WINDOW = 20, 10  # steps that are judged, and of a point of the curve
VALIDATION_BATCHES = 16  # of 4,096 tokens
BIAS_RATE = 0.003
GOAL = 0.3  # MaxVio without a loss


@dataclass
class Balanced:
    """How even a run's load was, and what it learnt; `curve` has (step, MaxVio of the steps before)."""

    max_vio: float
    max_vio_of_a_step: float
    entropy: float
    dead: int
    bits_per_byte: float
    seconds: float
    curve: list[tuple[int, float]]


def sides(steps: int, bias_rate: float = BIAS_RATE) -> dict[str, Side]:
    """All ways by name."""
    ways = {"none": {"balance": "none"}, "micro-batch loss": {"balance": "micro"},
            "sequence loss": {"balance": "sequence"}, "global loss": {"balance": "global", "count": "first_pass"},
            "global loss, running count": {"balance": "global", "count": "running"},
            "z-loss alone": {"balance": "none", "z_loss": 0.001},
            "loss-free bias": {"balance": "none", "bias_rate": bias_rate}}
    return {name: Side(tuple(f"model.experts.{key}={value}" for key, value in settings.items()), steps=steps)
            for name, settings in ways.items()}


def balanced(run: Run) -> Balanced:
    """Train a run to its end."""
    balance, steps = run.trained.model.balance, run.steps
    curve = []
    while run.taken < steps - LAST:
        run.turn(min(run.taken + WINDOW, steps - LAST) / steps)
        curve.append((run.taken, statistics.fmean(balance.row()["max_vio"])))
    loads, single = [], []
    while run.taken < steps:
        run.turn((run.taken + 1) / steps)
        row = balance.row()
        loads.append(torch.tensor(row["load"], dtype=torch.float64))
        single.append(statistics.fmean(row["max_vio"]))
    together = sum(loads)
    shares = together / together.sum(-1, keepdim=True)
    max_vio = float((shares.amax(-1) * shares.shape[-1] - 1).mean())
    batches = evaluation_batches(run.texts.validation[""], run.tokenizer, run.data.seq_len, run.data.doc_mask)
    bits = run.trained.bits_per_byte(islice(batches, VALIDATION_BATCHES))
    return Balanced(round(max_vio, 4), round(statistics.fmean(single), 4),
                    round(float(torch.special.entr(shares).sum(-1).mean()), 4), int((together == 0).sum()),
                    round(bits, 4), round(run.seconds, 1), [*curve, (steps, max_vio)])


def table(results: dict[str, Balanced]) -> str:
    """Markdown."""
    lines = ["| balance | MaxVio | of a step | entropy, nats | dead | bits per byte | seconds |",
             "|---|---:|---:|---:|---:|---:|---:|"]
    return "\n".join(lines + [
        f"| {name} | {one.max_vio:.3f} | {one.max_vio_of_a_step:.3f} | {one.entropy:.3f} | {one.dead} | "
        f"{one.bits_per_byte:.4f} | {one.seconds:.0f} |" for name, one in results.items()]) + "\n"


def plot(results: dict[str, Balanced], path: Path) -> None:
    """MaxVio over steps; PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for name, one in results.items():
        axes.plot(*zip(*one.curve), label=f"{name}: {one.max_vio:.2f}", color="black" if name == "none" else None)
    axes.axhline(GOAL, color="grey", lw=0.8, ls=":")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(f"MaxVio of {WINDOW} steps, mean over layers")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    figure.savefig(path, dpi=150, format="png")


def contest(arguments: argparse.Namespace, chosen: dict[str, Side]) -> dict[str, Balanced]:
    """The results by name, one run after the other: nothing that counts here depends on time."""
    found = {}
    for name, side in chosen.items():
        begun = time.perf_counter()
        found[name] = one = balanced(Run(arguments, name, side, arguments.seed))
        print(f"{name}: MaxVio {one.max_vio:.3f}, {one.bits_per_byte:.4f} bits per byte; "
              f"{time.perf_counter() - begun:.0f} s", file=sys.stderr)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.moe_balance", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="PATH", help="text to train on")
    parser.add_argument("--val-data", required=True, metavar="PATH", help="text to judge by")
    parser.add_argument("--steps", type=int, default=300, help=f"of each run (default: 300; at least {LAST})")
    parser.add_argument("--bias-rate", type=float, default=BIAS_RATE, metavar="U", help=f"default: {BIAS_RATE}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the ways")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="section.key=value",
                        help="for all runs")
    parser.add_argument("--write", action="store_true", help="results to bench/results/moe-balance-*")
    arguments = parser.parse_args(argv)
    if arguments.steps < LAST:
        raise UserError(f"--steps must be at least {LAST}: got {arguments.steps}")
    known = sides(arguments.steps, arguments.bias_rate)
    unknown = [name for name in arguments.only or () if name not in known]
    if unknown:
        raise UserError(f"--only takes some of {'; '.join(known)}: got {unknown[0]}")
    arguments.preset, arguments.minutes, arguments.threads = "moe-demo", 1.0, torch.get_num_threads()
    arguments.settings = [*MODEL, *arguments.settings]
    chosen = {name: side for name, side in known.items() if not arguments.only or name in arguments.only}
    results = contest(arguments, chosen)
    print(table(results), file=sys.stderr)
    found = {"machine": machine(arguments.threads), "steps": arguments.steps, "seed": arguments.seed,
             "bias_rate": arguments.bias_rate, "runs": {name: asdict(one) for name, one in results.items()}}
    if "loss-free bias" in results:
        found["goals"] = {f"MaxVio of the loss-free bias at most {GOAL}": results["loss-free bias"].max_vio <= GOAL}
    print(json.dumps(found))
    if arguments.write:
        print(write_results("moe-balance", found, lambda path: plot(results, path)), file=sys.stderr)
    return 0


if __name__ == "__main__":
    run_command(main)
