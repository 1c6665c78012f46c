"""Which parts of the seed system's model help: `python -m bench.ablation --data TRAIN --val-data VALIDATION`.

The base recipe and the seed's, and between them the base with one part of the seed's at a time, and the seed's with one
of ours. All at one size, on the same tokens in the same order, for the same minutes, judged by bits per byte of the
whole validation text. The runs take turns (bench/turns.py) in groups of at most AT_ONCE; the base runs in each group,
and the others are compared with that of their own, as a machine's hours differ. Progress and a table go to stderr, one
JSON line to stdout; --write puts that into bench/results/ with a plot.

Minutes of a small model say little about weeks of a large one: read it as what the beginning of training is like. The
seed's waves and its growing rows are for thousands of steps, and left out; so is its rate of 3e-4, but for one row.
"""

from __future__ import annotations

from pathlib import Path

from bench.turns import Result, Side, contest_parser, run_in_turns, tell
from engine import UserError
from models.config import JERRY
from train.command import run_command

PARTS = {
    "its positions": {"position": "jerry"},
    "its attention, heads apart": {"attention": "jerry", "position": "jerry", "head_mixing": False, "qk_norm": False},
    "its attention": {"attention": "jerry", "position": "jerry", "qk_norm": False},
    "its feed-forward part": {"feed_forward": "relu", "d_ff": 768},
    "its norms": {"block": "post_norm", "final_norm": False},
    "its scalars": {"parametrisation": "affine"},
    "its first weights": {"initialisation": "xavier"},
    "its dropout": {"dropout": 0.1},
}
"""What becomes of the base model's settings, by the part that is put in."""
BACK = {
    "our attention": {"attention": "grouped_query", "qk_norm": True},
    "rotary positions, our attention": {"attention": "grouped_query", "position": "rope", "qk_norm": True},
    "heads apart": {"head_mixing": False},
    "our feed-forward part": {"feed_forward": "swiglu", "d_ff": 512},
    "our norms": {"block": "pre_norm", "final_norm": True},
    "no scalars": {"parametrisation": "plain"},
    "our first weights": {"initialisation": "normal"},
    "no dropout": {"dropout": 0.0},
}
"""What becomes of the seed's settings, by the part of ours that is put in."""
BASE = "base"
AT_ONCE = 12  # processes, each with a model
RECIPE = ("optim.betas=0.9,0.98", "optim.eps=1e-7", "optim.warmup=quadratic", "optim.optimizer=muon",
          "optim.muon_momentum=0.9", "optim.muon_nesterov=false", "optim.muon_steps=20",
          "optim.muon_coefficients=classical", "optim.muon_per_head=true", "optim.muon_head=true")
"""The seed's optimizer, at our rate."""


def sides(minutes: float) -> dict[str, Side]:
    """All runs by name; the seed's have the width of feed-forward that makes their parameters as many as the base's."""
    seed = {**JERRY, "d_ff": 768}

    def side(settings: dict, *more: str) -> Side:
        texts = (f"model.{key}={str(value).lower() if isinstance(value, bool) else value}"
                 for key, value in settings.items())
        return Side((*texts, *more), minutes)

    found = {BASE: side({})} | {f"base with {name}": side(changes) for name, changes in PARTS.items()}
    found |= {"base with its optimizer": side({}, *RECIPE), "seed": side(seed, *RECIPE)}
    found |= {f"seed with {name}": side({**seed, **changes}, *RECIPE) for name, changes in BACK.items()}
    return found | {"seed with our optimizer": side(seed), "seed at its rate": side(seed, *RECIPE, "optim.lr=3e-4")}


def groups(chosen: dict[str, Side]) -> list[dict[str, Side]]:
    """As few as AT_ONCE allows and as equal as can be, dealt in turn; the base, if chosen, is in each."""
    anchor = {BASE: chosen[BASE]} if BASE in chosen else {}
    others = [entry for entry in chosen.items() if entry[0] != BASE]
    count = max(1, -(-len(others) // (AT_ONCE - len(anchor))))
    return [anchor | dict(others[first::count]) for first in range(count)]


def table(found: list[dict[str, Result]]) -> str:
    """Markdown, best first, with the distance to the base of the same group."""
    rows = []
    for number, results in enumerate(found, 1):
        base = results[BASE].bits_per_byte if BASE in results else float("nan")
        rows += [(result.bits_per_byte, named(name, number), result.bits_per_byte - base, result.steps)
                 for name, result in results.items()]
    lines = ["| model | bits per byte | to base | steps |", "|---|---:|---:|---:|"]
    return "\n".join(lines + [f"| {name} | {loss:.4f} | {distance:+.4f} | {steps:,} |"
                              for loss, name, distance, steps in sorted(rows)]) + "\n"


def named(name: str, group: int) -> str:
    """The base has as many names as runs."""
    return f"{name}, group {group}" if name == BASE and group > 1 else name


def plot(results: dict[str, Result], path: Path) -> None:
    """Bits per byte as bars, best first; PNG."""
    from matplotlib.figure import Figure

    rows = sorted(results.items(), key=lambda entry: -entry[1].bits_per_byte)
    losses = [result.bits_per_byte for _, result in rows]
    figure = Figure(figsize=(8, 0.9 + 0.3 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    colours = ["#d62728" if name.startswith("seed") else "#1f77b4" for name, _ in rows]
    bars = axes.barh([name for name, _ in rows], losses, color=colours)
    axes.bar_label(bars, [f"{loss:.3f}" for loss in losses], fontsize=8, padding=3)
    axes.set_xlim(0.95 * min(losses), 1.02 * max(losses))
    axes.set_xlabel("validation bits per byte (the axis does not begin at 0)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, format="png")


def main(argv: list[str] | None = None) -> int:
    parser = contest_parser("ablation", __doc__, minutes=3.0)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the runs")
    arguments = parser.parse_args(argv)
    known = sides(arguments.minutes)
    unknown = [name for name in arguments.only or () if name not in known]
    if unknown:
        raise UserError(f"--only takes some of {'; '.join(known)}: got {unknown[0]}")
    chosen = {name: side for name, side in known.items() if not arguments.only or name in arguments.only}
    found = [run_in_turns(arguments, arguments.seed, group) for group in groups(chosen)]
    results = {named(name, number): result for number, group in enumerate(found, 1) for name, result in group.items()}
    tell("ablation", arguments, results, table(found), plot, groups=[list(group) for group in found])
    return 0


if __name__ == "__main__":
    run_command(main)
