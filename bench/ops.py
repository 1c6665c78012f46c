"""Every operation of the table of cases against PyTorch, side by side: `python -m bench.ops [--only NAME ...]`.

Each side has a process of its own with the same number of threads, and they take turns. A table goes to stderr, one
JSON line per row to stdout: median seconds of forward, backward and both (a fused loss does backward's work in
forward), and the rival's time over ours (above 1: ours is faster).
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time

import numpy as np
import torch

from bench.case import Case
from bench.cases import CASES
from bench.side_by_side import Contest, Timing, available_cores

SAMPLE_SECONDS = 0.02
PHASES = ("forward", "backward", "both")
SIDES = {"ours": "bench.ops:ours", "eager": "bench.ops:eager", "compile": "bench.ops:compiled"}


def _inputs(case: Case, dtype: str) -> tuple[list[torch.Tensor], dict]:
    """The benchmark's inputs and options."""
    sizes = case.benchmark_sizes()
    arrays = case.arrays(np.random.default_rng(0), case.shapes(sizes), sizes)
    tensors = [torch.from_numpy(np.array(array)) for array in arrays]
    tensors = [t.to(getattr(torch, dtype)) if t.dtype.is_floating_point else t for t in tensors]
    return tensors, {name: values[0] for name, values in case.options.items()}


def _outputs(result) -> list:
    """What a gradient can flow into."""
    results = result if isinstance(result, (tuple, list)) else [result]
    return [y for y in results if y.requires_grad]


def ours(case: str, dtype: str):
    """A step of our engine: seconds of forward and, if there is one, backward."""
    from engine import Op, Tensor
    from engine.autograd import run_backward

    class Source(Op):
        """Takes its gradient and drops it, as torch.autograd.grad hands it over without adding it to another."""

        def forward(self, x):
            return x

        def backward(self, dx):
            return None

    entry = CASES[case]
    tensors, options = _inputs(entry, dtype)
    leaves = [Tensor(t, requires_grad=True) if i.gradient else t for t, i in zip(tensors, entry.inputs)]
    gradients: list[torch.Tensor] = []

    def step() -> dict[str, float]:
        arguments = [Source.apply(x) if isinstance(x, Tensor) else x for x in leaves]
        start = time.perf_counter()
        outputs = _outputs(entry.ours(*arguments, **options))
        middle = time.perf_counter()
        if not outputs:
            return {"forward": middle - start}
        if not gradients:
            gradients.extend(torch.ones(y.shape, dtype=y.dtype) for y in outputs)
        begin = time.perf_counter()
        run_backward(list(zip(outputs, gradients)))
        return {"forward": middle - start, "backward": time.perf_counter() - begin}

    return step


def _torch_step(case: str, dtype: str, wrap):
    entry = CASES[case]
    function = wrap(entry.torch)
    arguments, options = _inputs(entry, dtype)
    leaves = [t.requires_grad_() for t, i in zip(arguments, entry.inputs) if i.gradient]
    gradients: list[torch.Tensor] = []

    def step() -> dict[str, float]:
        start = time.perf_counter()
        outputs = _outputs(function(*arguments, **options))
        middle = time.perf_counter()
        if not outputs:
            return {"forward": middle - start}
        if not gradients:
            gradients.extend(torch.ones_like(y) for y in outputs)
        begin = time.perf_counter()
        torch.autograd.grad(outputs, leaves, gradients)
        return {"forward": middle - start, "backward": time.perf_counter() - begin}

    return step


def eager(case: str, dtype: str):
    """A step of PyTorch as it is."""
    return _torch_step(case, dtype, lambda function: function)


def compiled(case: str, dtype: str):
    """A step of PyTorch under torch.compile."""
    torch.compiler.reset()
    return _torch_step(case, dtype, torch.compile)


def row(case: str, dtype: str, threads: int, timings: dict[str, Timing]) -> dict:
    """One line of results."""
    result: dict = {"case": case, "dtype": dtype, "threads": threads}
    for name, timing in timings.items():
        result[name] = {phase: timing.phase(phase) for phase in timings["ours"].phases}
        result[name]["both"] = sum(result[name].values())
    phases = result["ours"]
    for name in timings:
        if name != "ours":
            result[f"vs_{name}"] = {phase: result[name][phase] / result["ours"][phase] for phase in phases}
    return result


def _print_row(result: dict, sides: list[str]) -> None:
    cells = [f"{result['case']:<28}"]
    for phase in PHASES:
        for side in sides:
            seconds = result[side].get(phase)
            cells.append(f"{seconds * 1e3:>10.3f}" if seconds else " " * 10)
        for side in sides[1:]:
            ratio = result[f"vs_{side}"].get(phase)
            cells.append(f"{ratio:>9.2f}x" if ratio else " " * 10)
    print(" ".join(cells), file=sys.stderr, flush=True)


def _print_head(sides: list[str]) -> None:
    names = [*(f"{side} ms" for side in sides), *(f"vs {side}" for side in sides[1:])]
    width = 11 * len(names) - 1
    print(f"{'':<28} " + " ".join(f"{phase:^{width}}" for phase in PHASES), file=sys.stderr)
    print(f"{'case':<28} " + " ".join(f"{name:>10}" for name in names * 3), file=sys.stderr, flush=True)


def _print_summary(results: list[dict], sides: list[str]) -> None:
    for side in sides[1:]:
        for phase in PHASES:
            ratios = [r[f"vs_{side}"][phase] for r in results if phase in r[f"vs_{side}"]]
            if ratios:
                mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
                faster = sum(ratio >= 1 for ratio in ratios)
                print(f"{phase}: {mean:.2f}x {side}'s speed (geometric mean), as fast or faster in {faster} of "
                      f"{len(ratios)}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ops", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases to time: names, or parts of names")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--compile", action="store_true", help="time torch.compile too (needs a C++ compiler)")
    parser.add_argument("--rounds", type=int, default=9, help="samples of each side per case")
    parser.add_argument("--threads", type=int, default=available_cores())
    options = parser.parse_args(arguments)
    names = [name for name in CASES if not options.only or name in options.only]
    names = names or [name for name in CASES if any(part in name for part in options.only)]
    if not names:
        print(f"error: --only must name a case, got {' '.join(options.only)}; there are: {', '.join(CASES)}",
              file=sys.stderr)
        return 2
    if options.compile and not shutil.which("g++") and not shutil.which("clang++"):
        print("error: --compile needs a C++ compiler on the path, found neither g++ nor clang++", file=sys.stderr)
        return 2
    sides = [side for side in SIDES if side != "compile" or options.compile]
    results = []
    _print_head(sides)
    with Contest({side: SIDES[side] for side in sides}, options.threads) as contest:
        for name in names:
            args = {"case": name, "dtype": options.dtype}
            timings = contest.run(args, options.rounds, warmup=3, least_seconds=SAMPLE_SECONDS)
            results.append(row(name, options.dtype, options.threads, timings))
            print(json.dumps(results[-1]), flush=True)
            _print_row(results[-1], sides)
    _print_summary(results, sides)
    return 0


if __name__ == "__main__":
    sys.exit(main())
