"""Kernels that memory bounds, side by side: ours, PyTorch eager, torch.compile and, where installed, Liger-Kernel.

    python bench/memory_bound.py [--all] [--only NAME ...] [--without NAME ...]

Those that a training step is made of, and linear + cross-entropy; with --all every row of bench/gpu_cases.py that
says what traffic it needs. Forward and backward apart, at a training step's sizes, in one process, taking turns (how:
bench/gpu_timing.py). GB/s counts the bytes that must be read and written, whatever a side moves besides; the share is
of a copy's rate on this card, measured first. Results are compared with float64 at smaller sizes. A table goes
to stderr, one JSON line to stdout.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from pathlib import Path
from types import SimpleNamespace

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

import kernels
from bench.gpu_case import GpuCase
from bench.gpu_cases import CASES as TABLE
from bench.gpu_timing import (
    GpuClock, Times, contest, copy_bandwidth, extra_memory, facts, has_gpu, product_rate, reason, report, say_no_gpu,
    sets_for, table, too_far,
)
from bench.memory_rows import INSIDE, SPECIAL, Function, Row, rivals_of, row_of
from bench.roofline import FLOOR_HEAD, floors

CASES = TABLE | INSIDE
PHASES = ("forward", "backward")
TOGETHER = "forward + backward"
HEAD = ["case", "phase", "side", "us", "spread", "GB/s", "of copy", "TFLOP/s", "extra MB", "note"]


def chosen(only: list[str] | None, without: list[str], everything: bool) -> list[str]:
    usual = [name for name, case in CASES.items() if name in SPECIAL or (everything and case.traffic)]
    return [name for name in only or usual if name not in without]


def as_leaves(row: Row, b: SimpleNamespace, side: str) -> tuple[SimpleNamespace, list[torch.Tensor]]:
    """The buffers as a rival wants them, and those of them that have gradients, as leaves of PyTorch's graph."""
    leaves = row.own_leaves and row.own_leaves(side, b)
    if not leaves:
        leaves = {name: getattr(b, name).detach() for name in row.leaves}
        if side == "liger":  # it writes into some
            leaves = {name: leaf.clone() for name, leaf in leaves.items()}
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    return SimpleNamespace(**{**vars(b), **leaves}), list(leaves.values())


def results_of(function: Function, b: SimpleNamespace) -> list[torch.Tensor]:
    results = function(b)
    return list(results) if isinstance(results, (tuple, list)) else [results]


def gradients_of(results: list[torch.Tensor], leaves: list[torch.Tensor], given: list[torch.Tensor]):
    return torch.autograd.grad(results, leaves, given or None)


def contestants(case: GpuCase, row: Row, sets: list[SimpleNamespace], rivals: dict[str, Function]) -> dict[str, dict]:
    """Phase -> name -> what prepares a call on a set of inputs."""

    def rival(function, name, phase, number):
        b = sets[number]
        own, leaves = as_leaves(row, b, name)
        given = [getattr(b, gradient) for gradient in row.gradients]
        if phase == "forward":
            return functools.partial(function, own)
        if phase == TOGETHER:
            return lambda: gradients_of(results_of(function, own), leaves, given)
        return functools.partial(gradients_of, results_of(function, own), leaves, given)

    def ours_backward(number):
        return functools.partial(case.backward, sets[number], case.forward(sets[number]))

    phases = (TOGETHER,) if row.together else PHASES if case.backward else ("forward",)
    found: dict[str, dict] = {phase: {} for phase in phases}
    found[phases[0]]["ours"] = lambda number: functools.partial(case.forward, sets[number])
    if "backward" in found:
        found["backward"]["ours"] = ours_backward
    for name, function in rivals.items():
        for phase in phases:
            found[phase][name] = functools.partial(rival, function, name, phase)
    return found


def products(case: GpuCase, sets: list[SimpleNamespace]):
    """The three products of linear + cross-entropy alone, on all rows at once, into memory that is there."""
    b = sets[0]
    x, dweight = b.x.view(-1, b.x.shape[-1]), torch.empty_like(b.weight)
    dx, logits = torch.empty_like(x), torch.empty(len(x), len(b.weight), dtype=x.dtype, device=x.device)

    def call():
        torch.mm(x, b.weight.t(), out=logits)
        torch.mm(logits, b.weight, out=dx)
        torch.mm(logits.t(), x, out=dweight)

    return lambda _: call


def check(case: GpuCase, device: str, sizes: dict[str, int] | None, dtype: str) -> str | None:
    """What is wrong with our results at these sizes, if anything; PyTorch in float64 is the truth."""
    row, torch_way = row_of(case), case.rivals.get("torch")
    if sizes is None or torch_way is None:
        return None
    case = dataclasses.replace(case, sizes={**case.sizes, **{name: size for name, size in sizes.items()
                                                             if name in case.sizes}})
    b = case.tensors(dtype, device)
    exact = SimpleNamespace(**{name: t.double() if t.dtype.is_floating_point else t for name, t in vars(b).items()})
    truth, theirs = ([t.detach() for t in torch_results(row, torch_way, some)] for some in (exact, b))
    result = case.forward(b)
    ours = list(result) if isinstance(result, tuple) else [result]
    count = len(truth) - len(row.leaves)
    gradients = ours[count:] if row.together else case.backward(b, result) if case.backward else []
    gradients = list(gradients) if isinstance(gradients, (tuple, list)) else [gradients]
    pairs = [("forward", *some) for some in zip(ours[:count], theirs, truth)]
    pairs += [("backward", *some) for some in zip(gradients, theirs[count:], truth[count:])]
    for phase, mine, other, true in pairs:
        if mine is None:  # added to a buffer
            continue
        if mine.shape != true.shape:
            return f"{phase}: shape {tuple(mine.shape)}, PyTorch's {tuple(true.shape)}"
        if found := too_far(phase, mine, other, true, getattr(torch, dtype)):
            return f"{phase}: {found}"
    return None


def torch_results(row: Row, function: Function, b: SimpleNamespace) -> list[torch.Tensor]:
    own, leaves = as_leaves(row, b, "torch")
    results = results_of(function, own)
    given = [getattr(b, name) for name in row.gradients]
    return results + (list(gradients_of(results, leaves, given)) if leaves else [])


def time_case(case: GpuCase, clock, copy_rate: float, repetitions: int) -> list[dict]:
    """One line per phase and side."""
    torch.compiler.reset()  # beyond a number of shapes it would stop compiling
    row = row_of(case)
    dtype = case.dtypes[0]
    first = case.tensors(dtype, "cuda")
    count = sets_for(sum(t.nbytes for t in vars(first).values()), most=8)
    sets = [first, *(case.tensors(dtype, "cuda") for _ in range(count - 1))]
    size = SimpleNamespace(**case.sizes)
    moved = case.traffic(size, getattr(torch, dtype).itemsize) if case.traffic else (0, 0)
    flops = case.flops(size) if case.flops else (0, 0)
    if row.together:
        moved, flops = (sum(moved),), (sum(flops),)
    lines = []
    for phase, entries in contestants(case, row, sets, rivals_of(case)).items():
        if row.together:
            entries["its products alone"] = products(case, sets)
        timed = contest(entries, count, clock, repetitions)
        index = 0 if row.together else PHASES.index(phase)
        for side, times in timed.items():
            line = {"case": case.name, "phase": phase, "side": side}
            if isinstance(times, Times):
                line |= figures(times, moved[index], flops[index], copy_rate)
                if row.together:
                    line["extra_mb"] = round(extra_memory(entries[side](0)) / 1e6)
            else:
                line["note"] = times
            lines.append(line)
        torch.cuda.empty_cache()
    return lines


def figures(times: Times, moved: float, flops: float, copy_rate: float) -> dict:
    found = {"us": round(times.median * 1e6, 2), "spread": round(times.spread, 3)}
    if moved:
        rate = moved / times.median
        found |= {"gbytes_per_second": round(rate / 1e9, 1), "of_copy": round(rate / copy_rate, 3)}
    if flops:
        found["tflops"] = round(flops / times.median / 1e12, 1)
    return found


def compared(lines: list[dict]) -> list[dict]:
    """Per case and phase: the share of a copy's rate, and the time of the best rival over ours."""
    found = []
    for case, phase in dict.fromkeys((line["case"], line["phase"]) for line in lines):
        mine = [line for line in lines if (line["case"], line["phase"]) == (case, phase)]
        sides = {line["side"]: line for line in mine if "us" in line}
        if "ours" not in sides:
            continue
        entry = {"case": f"{case} {phase}", "us": sides["ours"]["us"], "of_copy": sides["ours"].get("of_copy")}
        alone = sides.pop("its products alone", None)
        if alone:
            entry["of_products"] = round(sides["ours"]["us"] / alone["us"], 3)
        rivals = {name: line["us"] for name, line in sides.items() if name != "ours"}
        if rivals:
            best = min(rivals, key=rivals.get)
            entry |= {"best": best, "ratio": round(rivals[best] / sides["ours"]["us"], 3)}
        found.append(entry)
    return found


def dry_run(names: list[str]) -> int:
    """Without a GPU: floors on an H100, and our programs at small sizes in the interpreter against float64."""
    say_no_gpu("floors on an H100 and a check at small sizes in Triton's interpreter, nothing is timed")
    lines = [line for line in floors() if line[0] in names]
    print(table(FLOOR_HEAD, lines), file=sys.stderr)
    wrong, checked = {}, []
    with kernels.programs("gpu"):
        for name in names:
            sizes = row_of(CASES[name]).tiny
            if sizes:
                checked.append(name)
                flaw = check(CASES[name], "cpu", sizes, CASES[name].dtypes[0])
                wrong |= {name: flaw} if flaw else {}
    report({"bench": "memory_bound", "gpu": False, "checked": checked, "wrong": wrong})
    return int(bool(wrong))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python bench/memory_bound.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="not only what a training step is made of")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="NAME", help="these cases")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="all but these cases")
    parser.add_argument("--repetitions", type=int, default=25, help="timed rounds, at least 20")
    options = parser.parse_args(arguments)
    names = chosen(options.only, options.without, options.all)
    if not has_gpu():
        return dry_run(names)
    known, clock = facts(), GpuClock()
    copy_rate, rate_of_products = copy_bandwidth(clock), product_rate(clock)
    print(f"copy {copy_rate / 1e12:.2f} TB/s, product of 8192 x 8192 {rate_of_products / 1e12:.0f} TFLOP/s",
          file=sys.stderr, flush=True)
    lines, wrong = [], {}
    for name in names:
        case, row = CASES[name], row_of(CASES[name])
        try:
            flaw = check(case, "cuda", row.small, case.dtypes[0])
            new = time_case(case, clock, copy_rate, max(options.repetitions, 20))
        except Exception as error:
            flaw, new = reason(error), []
        wrong |= {name: flaw} if flaw else {}
        wrong |= {name: line["note"] for line in new if line["side"] == "ours" and "note" in line}
        lines += new
        keys = ("case", "phase", "side", "us", "spread", "gbytes_per_second", "of_copy", "tflops", "extra_mb", "note")
        print(table(HEAD, [[line.get(key) for key in keys] for line in new]), file=sys.stderr, flush=True)
        torch.cuda.empty_cache()
    report({"bench": "memory_bound", **known, "clocks_after": facts()["clocks"], "copy_bytes_per_second": copy_rate,
            "product_flops": rate_of_products, "cases": compared(lines), "lines": lines, "wrong": wrong})
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
