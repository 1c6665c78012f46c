"""Mixture of experts, forward and backward: ours, PyTorch's, and dense layers of the same FLOPs.

    python bench/moe.py [--rounds 15] [--threads N] [--only gpu|cpu]

On a GPU (bfloat16, 65,536 tokens of 768 features; 8 experts top-2 and 64 experts top-8) beside torch._grouped_mm,
plain and under torch.compile: in one process, taking turns, by the card's events; `vs_torch` is the fastest of
PyTorch's mixtures over ours, `of_dense` ours over the fastest dense layer. On the CPU (float32, 2,048 tokens of 256
features, 8 experts top-2) beside a loop over experts in PyTorch, each side in a process of its own. A mixture comes
with its router. A table goes to stderr, one JSON line to stdout.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from bench.gpu_timing import GpuClock, Times, contest, facts, has_gpu, report, table, too_far
from bench.moe_sides import GPU_SIDES, Shape, buffers, mixture_by_hand, our_mixture, sizes_of
from bench.side_by_side import Contest, Timing, available_cores

GPU_SHAPES = [Shape(65_536, 768, 2048, 8, 2), Shape(65_536, 768, 256, 64, 8)]
CPU_SHAPES = [Shape(2048, 256, 256, 8, 2), Shape(2048, 256, 512, 8, 2)]
CPU_SIDES = {"ours": "bench.moe_sides:ours", "dense": "bench.moe_sides:dense", "torch": "bench.moe_sides:torch_loop"}
HEAD = ["mixture", "side", "ms", "TFLOP/s", "note"]
CHECKED = Shape(768, 64, 80, 8, 2)
RESULTS = ("y", "dx", "dgate_up", "ddown", "drouter")


def wrong(device: str, dtype: torch.dtype = torch.bfloat16, shape: Shape = CHECKED) -> str | None:
    """What is wrong with our mixture at a small size, if anything; PyTorch in float64 is the truth."""
    b = buffers(shape, dtype, device)
    step, indices = our_mixture(b, shape.k)
    ours = step()
    theirs, truth = (mixture_by_hand(b, indices, kind) for kind in (dtype, torch.float64))
    for name, mine, other, true in zip(RESULTS, ours, theirs, truth, strict=True):
        if found := too_far("forward" if name == "y" else "backward", mine, other, true, dtype):
            return f"{name}: {found}"
    return None


def gpu_line(shape: Shape, clock, rounds: int) -> dict:
    """One mixture on the GPU."""
    b = buffers(shape, torch.bfloat16, "cuda")
    steps = {}

    def prepare(name: str):
        def prepared(_set: int):
            if name not in steps:
                steps[name] = GPU_SIDES[name](b, shape.k)
            return steps[name]

        return prepared

    found = contest({name: prepare(name) for name in GPU_SIDES}, 1, clock, rounds)
    lines = [_side_line(shape, name, times) for name, times in found.items()]
    print(table(HEAD, [[line.get(key) for key in ("mixture", "side", "ms", "tflops", "note")] for line in lines]),
          file=sys.stderr, flush=True)
    return {"case": shape.name, "sides": lines, **ratios(found)}


def _side_line(shape: Shape, name: str, times: Times | str) -> dict:
    line = {"mixture": shape.name, "side": name}
    if isinstance(times, str):
        return {**line, "note": times}
    return {**line, "ms": round(times.median * 1e3, 4), "spread": round(times.spread, 3),
            "tflops": round(shape.flops / times.median / 1e12, 1)}


def ratios(found: dict[str, Times | str]) -> dict[str, float]:
    """Medians over rounds of ratios within a round."""
    def against(part: str, *, over_ours: bool) -> float | None:
        timed = {name: times for name, times in found.items()
                 if name != "ours" and part in name and isinstance(times, Times)}
        if not timed or not isinstance(found["ours"], Times):
            return None
        best = min(timed.values(), key=lambda times: times.median)
        pairs = zip(found["ours"].samples, best.samples)
        return round(statistics.median(y / x if over_ours else x / y for x, y in pairs), 3)

    named = {"vs_torch": against("grouped", over_ours=True), "of_dense": against("dense", over_ours=False)}
    return {name: ratio for name, ratio in named.items() if ratio is not None}


def headline(mixtures: list[dict]) -> str:
    """In some words."""
    return "; ".join(f"{line['case']}: {line.get('vs_torch', '-')}x grouped_mm, {line.get('of_dense', '-')} of dense"
                     for line in mixtures)


def cpu_lines(rounds: int, threads: int) -> list[dict]:
    with Contest(CPU_SIDES, threads) as rivals:
        return [_cpu_line(shape, rivals.run(sizes_of(shape), rounds, warmup=3)) for shape in CPU_SHAPES]


def _cpu_line(shape: Shape, timings: dict[str, Timing]) -> dict:
    def ratio(a: str, b: str) -> float:
        return round(statistics.median(x / y for x, y in zip(timings[a].seconds, timings[b].seconds)), 3)

    milliseconds = {name: round(timing.median * 1e3, 2) for name, timing in timings.items()}
    return {"case": shape.name, **milliseconds, "of_dense": ratio("ours", "dense"), "vs_torch": ratio("torch", "ours")}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python bench/moe.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each side; on a GPU at least 20")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--only", choices=("gpu", "cpu"))
    options = parser.parse_args(arguments)
    result: dict = {"bench": "moe", "gpu": has_gpu(), "threads": options.threads, **facts()}
    if not has_gpu():
        print("no GPU here: the mixture on the CPU only", file=sys.stderr, flush=True)
    elif options.only != "cpu":
        complaint, clock = wrong("cuda"), GpuClock()
        result["mixtures"] = [gpu_line(shape, clock, max(options.rounds, 20)) for shape in GPU_SHAPES]
        raised = [line["note"] for mixture in result["mixtures"] for line in mixture["sides"]
                  if line["side"] == "ours" and "note" in line]
        result["wrong"] = [complaint] * bool(complaint) + raised
        result["clocks_after"], result["headline"] = facts()["clocks"], headline(result["mixtures"])
    if options.only != "gpu":
        result["cpu"] = cpu_lines(options.rounds, options.threads)
        names = ["case", *CPU_SIDES, "of_dense", "vs_torch"]
        print(table(names, [[line[name] for name in names] for line in result["cpu"]]), file=sys.stderr, flush=True)
    report(result)
    for text in result.get("wrong", []):
        print(f"wrong: {text}", file=sys.stderr)
    return int(bool(result.get("wrong")))


if __name__ == "__main__":
    sys.exit(main())
