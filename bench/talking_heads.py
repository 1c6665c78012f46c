"""Jerry's attention against PyTorch, side by side: `python -m bench.talking_heads [--lengths 1024 4096]`.

Forward and backward of one layer's attention, 12 heads of 128 features as in the 0.18B model, with its positions and
its heads mixed before and after the softmax:

- ours: engine.ops.talking_heads.
- einsum: PyTorch eager, the mixing as torch.einsum over heads.
- linear: PyTorch eager, the mixing as the seed system wrote it: the heads moved to the last dimension, a linear layer,
  and back.

And without the mixing: ours (engine.ops.attention with Jerry's positions) beside our plain attention. A table goes to
stderr, one JSON line to stdout, by length: seconds, the rivals' time over ours, and the memory of a step, its inputs
and gradients among it. PyTorch's sides hold several matrices of batch x heads x length x length. --write puts the line
into bench/results/ with a plot.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from bench.record import machine, write_results
from bench.references import talking_heads, visible
from bench.side_by_side import Contest, available_cores
from train.command import Parser, run_command

HEADS, DIM = 12, 128
MIXED = {name: f"bench.talking_heads:{name}" for name in ("ours", "einsum", "linear")}
PLAIN = {name: f"bench.talking_heads:{name}" for name in ("unmixed", "plain")}
ROW = "{:>7}  {:>10}  {:>10.1f}  {:>8}  {:>10.0f}"


def _inputs(batch: int, tokens: int) -> tuple[torch.Tensor, ...]:
    """qkv, reach, offset, before, after, and the gradient of the result."""
    rng = np.random.default_rng(0)
    shapes = ((batch, tokens, 3 * HEADS * DIM), (HEADS, HEADS), (HEADS, HEADS), (batch, tokens, HEADS * DIM))
    qkv, before, after, dout = (torch.from_numpy(rng.standard_normal(shape, np.float32)) for shape in shapes)
    return qkv, torch.tensor([0.1]), torch.tensor([1.0]), before / HEADS**0.5, after / HEADS**0.5, dout


def _engine_step(attend, batch: int, tokens: int):
    from engine import Tensor
    from engine.autograd import run_backward

    *values, dout = _inputs(batch, tokens)
    leaves = [Tensor(value, requires_grad=True) for value in values]

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        run_backward([(attend(*leaves), dout)])

    return step


def ours(batch: int, tokens: int):
    from engine import ops
    return _engine_step(lambda qkv, *given: ops.talking_heads(qkv, HEADS, *given), batch, tokens)


def unmixed(batch: int, tokens: int):
    from engine import ops
    return _engine_step(lambda qkv, reach, offset, *_: ops.attention(qkv, HEADS, HEADS, distance=(reach, offset)),
                        batch, tokens)


def plain(batch: int, tokens: int):
    from engine import ops
    return _engine_step(lambda qkv, *_: ops.attention(qkv, HEADS, HEADS), batch, tokens)


def _torch_step(attend, batch: int, tokens: int):
    *values, dout = _inputs(batch, tokens)
    leaves = [value.requires_grad_() for value in values]

    def step() -> None:
        torch.autograd.grad(attend(*leaves), leaves, dout)

    return step


def einsum(batch: int, tokens: int):
    return _torch_step(lambda *given: talking_heads(*given, heads=HEADS), batch, tokens)


def linear(batch: int, tokens: int):
    return _torch_step(_by_linear_layers, batch, tokens)


def _by_linear_layers(qkv, reach, offset, before, after):
    batch, tokens, width = qkv.shape
    q, k, v = (part.view(batch, tokens, HEADS, DIM).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    position = torch.arange(tokens)
    distance = (position[:, None] - position).abs()
    scores = torch.matmul(q, k.transpose(-1, -2)) / DIM**0.5
    scores = scores / (1 + reach * distance)
    scores = scores - offset * (position[:, None] > position)
    scores = F.linear(scores.permute(0, 2, 3, 1), before).permute(0, 3, 1, 2)
    scores = scores.masked_fill(~visible(tokens), -1e3)
    weights = F.linear(scores.softmax(-1).permute(0, 2, 3, 1), after).permute(0, 3, 1, 2)
    return torch.matmul(weights, v).transpose(1, 2).reshape(batch, tokens, width // 3)


def compare(batch: int, tokens: int, rounds: int, contestants: dict[str, str], reference: str) -> dict:
    """Seconds, memory and ratios to `reference`, by name."""
    with Contest(contestants) as contest:
        timings = contest.run({"batch": batch, "tokens": tokens}, rounds)
    fastest = timings[reference].median
    return {name: {"seconds": round(timing.median, 4), f"over_{reference}": round(timing.median / fastest, 3),
                   "memory_mb": round(timing.peak_mb - timing.idle_mb, 1)} for name, timing in timings.items()}


def table(tokens: int, found: dict[str, dict]) -> str:
    """One line for each contestant."""
    lines = [f"{'length':>7}  {'':>10}  {'ms':>10}  {'ratio':>8}  {'MiB':>10}"]
    for sides in found.values():
        for name, side in sides.items():
            ratio = next(value for key, value in side.items() if key.startswith("over_"))
            lines.append(ROW.format(tokens, name, 1e3 * side["seconds"], f"{ratio:.2f}x", side["memory_mb"]))
    return "\n".join(lines)


def plot(lengths: dict[str, dict], path: Path) -> None:
    """Time and memory of the sides that mix heads, as bars; PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.8 + 0.6 * len(lengths) * len(MIXED)), layout="constrained")
    shown = (("seconds", "seconds", 1), ("memory_mb", "GiB", 1 / 1024))
    for axes, (key, label, factor) in zip(figure.subplots(1, 2), shown):
        names = [f"{name}, {length}" for length in lengths for name in MIXED][::-1]
        values = [factor * found["mixed"][name][key] for found in lengths.values() for name in MIXED][::-1]
        bars = axes.barh(names, values, color=["#d62728" if name.startswith("ours") else "#1f77b4" for name in names])
        axes.bar_label(bars, [f"{value:.3g}" for value in values], padding=3, fontsize=8)
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.15)
    figure.savefig(path, dpi=150, format="png")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.talking_heads", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024])
    parser.add_argument("--batch", type=int, default=2, help="sequences")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="results to bench/results/talking-heads-*")
    arguments = parser.parse_args(argv)
    lengths = {}
    for tokens in arguments.lengths:
        lengths[str(tokens)] = found = {
            "mixed": compare(arguments.batch, tokens, arguments.rounds, MIXED, "ours"),
            "unmixed": compare(arguments.batch, tokens, arguments.rounds, PLAIN, "plain")}
        print(table(tokens, found), file=sys.stderr, flush=True)
    results = {"machine": machine(available_cores()), "batch": arguments.batch, "rounds": arguments.rounds,
               "lengths": lengths}
    print(json.dumps(results))
    if arguments.write:
        print(write_results("talking-heads", results, lambda path: plot(lengths, path)), file=sys.stderr)
    return 0


if __name__ == "__main__":
    run_command(main)
