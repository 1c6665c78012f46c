"""Experts against a dense model: `python -m bench.moe_same_minutes --data TRAIN --val-data VALIDATION`.

The presets demo and moe-demo: the same active FLOPs per token but for the router, the same tokens in the same order,
the same minutes, in turns (bench/turns.py). Both are judged by bits per byte of the whole validation text, at the end
and LOOKS times before it; --set changes both. A table goes to stderr, one JSON line to stdout; --write puts that into
bench/results/ with a plot of both curves.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from bench.turns import Result, Side, contest_parser, run_in_turns, tell
from models.config import PRESETS
from train.command import run_command

LOOKS = 7
EXPERTS = PRESETS["moe-demo"].experts


def sides(minutes: float) -> dict[str, Side]:
    """The dense model, and it with experts in place of its feed-forward parts."""
    experts = (f"model.experts.{key}={str(value).lower() if isinstance(value, bool) else value}"
               for key, value in asdict(EXPERTS).items())
    return {"demo": Side((), minutes), "moe-demo": Side(("model.feed_forward=moe", *experts), minutes)}


def table(results: dict[str, Result]) -> str:
    """Markdown."""
    lines = ["| model | bits per byte | steps | tokens |", "|---|---:|---:|---:|"]
    return "\n".join(lines + [f"| {name} | {result.bits_per_byte:.4f} | {result.steps:,} | {result.tokens:,} |"
                              for name, result in results.items()]) + "\n"


def plot(results: dict[str, Result], path: Path) -> None:
    """Bits per byte over minutes of training; PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for (name, result), colour in zip(results.items(), ("#1f77b4", "#d62728")):
        points = [*result.curve, (result.seconds, result.steps, result.bits_per_byte)]
        axes.plot([seconds / 60 for seconds, _, _ in points], [bits for _, _, bits in points], "o-", ms=4, color=colour,
                  label=f"{name}: {result.bits_per_byte:.3f} after {result.steps:,} steps")
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("validation bits per byte")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150, format="png")


def main(argv: list[str] | None = None) -> int:
    arguments = contest_parser("moe_same_minutes", __doc__, minutes=6.0).parse_args(argv)
    results = run_in_turns(arguments, arguments.seed, sides(arguments.minutes), LOOKS)
    tell("moe_same_minutes", arguments, results, table(results), plot)
    return 0


if __name__ == "__main__":
    run_command(main)
