"""Attention, side by side: ours, each backend of PyTorch's scaled_dot_product_attention, and FlexAttention compiled.

    python bench/attention.py [--kinds causal ...] [--dims 128 ...] [--lengths 1024 ...] [--limit SECONDS] [--resume]

Forward and backward apart, in one process, taking turns (how: bench/gpu_timing.py). FLOPs are 4 B H S^2 D, half of that
if causal, by documents if they are masked, and 2.5 times as many backward. Each side's results are compared with
float64 on the way. A table goes to stderr, one JSON line to stdout, every figure to bench/results/attention-CARD.csv,
and the curves into a PNG of that name. Rivals get heads in memory of their own and ready masks, and what raises is
kept with its reason.
"""

from __future__ import annotations

import argparse
import csv
import functools
import io
import math
import sys
import time
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

import kernels
from bench import attention_sides as sides
from bench.attention_sides import Inputs, Shape
from bench.gpu_timing import (
    OURS_AT_MOST, RESULTS, UNFINISHED, GpuClock, Times, contest, device_slug, facts, has_gpu, reason, report,
    say_no_gpu, sets_for, table,
)
from bench.roofline import COPY_RATE, PRODUCT_RATE, floor
from train.files import write_text, write_whole

LENGTHS = tuple(2**n for n in range(7, 15))
KINDS = {"causal": LENGTHS, "full": LENGTHS, "grouped": LENGTHS, "documents": (1024, 4096, 16_384)}
"""Kind -> its lengths; see `Shape`."""
DIMS = (64, 128)
WIDTH = 768
PHASES = ("forward", "backward")
COLUMNS = ["device", "commit", "kind", "head_dim", "length", "batch", "heads", "key_heads", "side", "phase",
           "milliseconds", "spread", "tflops", "gbytes_per_second", "error", "note"]
KEY = COLUMNS[2:10]
HEAD = ["case", "side", "fwd ms", "TFLOP/s", "GB/s", "error", "bwd ms", "TFLOP/s", "GB/s", "error", "note"]


def shapes(kinds: list[str], dims: list[int], lengths: list[int] | None) -> list[Shape]:
    """Cases of WIDTH features: 65,536 tokens to length 4,096, 32,768 beyond."""
    found = []
    for kind in kinds:
        for dim in dims:
            for length in KINDS[kind]:
                if lengths is None or length in lengths:
                    heads = WIDTH // dim
                    key_heads = heads // 3 if kind == "grouped" else heads
                    tokens = 65_536 if length <= 4096 else 32_768
                    found.append(Shape(kind, length, dim, tokens // length, heads, key_heads))
    return found


def contestants(sets: list[Inputs]) -> dict[str, dict[str, object]]:
    """Phase -> name -> what prepares a call on a set of inputs."""

    def ours_backward(number: int):
        x = sets[number]
        return functools.partial(sides.ours_backward, x, sides.ours_forward(x))

    found: dict[str, dict[str, object]] = {phase: {} for phase in PHASES}
    found["forward"]["ours"] = lambda number: functools.partial(sides.ours_forward, sets[number])
    found["backward"]["ours"] = ours_backward
    heads = [x.heads() for x in sets]
    for name, make in sides.rivals(sets[0].shape).items():
        made = functools.cache(lambda number, make=make: make(sets[number]))

        def forward(number: int, made=made):
            return functools.partial(made(number), *heads[number])

        def backward(number: int, made=made):
            out = made(number)(*heads[number])
            return functools.partial(torch.autograd.grad, out, heads[number], sets[number].out_gradient())

        found["forward"][name], found["backward"][name] = forward, backward
    return found


def checked(x: Inputs, rivals: dict) -> dict[str, dict[str, float] | str]:
    """Name -> errors of ours and the rivals against float64, or why there is no result."""
    truth = sides.reference(x)
    found: dict[str, dict[str, float] | str] = {}
    try:
        saved = sides.ours_forward(x)
        gradients = sides.unpacked(sides.ours_backward(x, saved), x.shape)
        out = saved[0].view(x.out_gradient().transpose(1, 2).shape).transpose(1, 2)
        found["ours"] = sides.errors(out, gradients, truth, x.shape)
    except Exception as error:
        found["ours"] = reason(error)
    heads = x.heads()
    for name, make in rivals.items():
        try:
            out = make(x)(*heads)
            gradients = torch.autograd.grad(out, heads, x.out_gradient())
            found[name] = sides.errors(out, gradients, truth, x.shape)
        except Exception as error:
            found[name] = reason(error)
    return found


def verdict(lines: list[dict]) -> str | None:
    """What is wrong with our results in the lines of one case, if anything."""
    for phase in PHASES:
        mine = next(line for line in lines if (line["side"], line["phase"]) == ("ours", phase))
        if mine["note"]:
            return mine["note"]
        others = [float(line["error"]) for line in lines
                  if line["side"] != "ours" and line["phase"] == phase and line["error"]]
        worst = max(others, default=1e-2)
        if not float(mine["error"]) <= OURS_AT_MOST[phase] * worst:
            return f"{phase}: error {mine['error']}, PyTorch's {worst:.2e}"
    return None


def lines_of(shape: Shape, x: Inputs, timed: dict[str, dict[str, Times | str]], found: dict,
             known: dict) -> list[dict]:
    """The case's lines of the CSV file: one per side and phase."""
    flops, moved = shape.flops(shape.pairs(x.doc_start)), shape.traffic(x.qkv.itemsize)
    lines = []
    for phase, some_flops, some_bytes, error in zip(PHASES, flops, moved, ("out", "gradients")):
        for side, times in timed[phase].items():
            line = {"device": known["device"], "commit": known["commit"], "kind": shape.kind,
                    "head_dim": shape.head_dim, "length": shape.length, "batch": shape.batch, "heads": shape.heads,
                    "key_heads": shape.key_heads, "side": side, "phase": phase}
            if isinstance(times, Times):
                line |= {"milliseconds": round(times.median * 1e3, 5), "spread": round(times.spread, 3),
                         "tflops": round(some_flops / times.median / 1e12, 2),
                         "gbytes_per_second": round(some_bytes / times.median / 1e9, 1)}
            else:
                line["note"] = times
            errors = found[side]
            line |= {"note": errors} if isinstance(errors, str) else {"error": f"{errors[error]:.2e}"}
            lines.append({column: str(line.get(column, "")) for column in COLUMNS})
    return lines


def time_case(shape: Shape, clock, repetitions: int, known: dict, device: str = "cuda") -> list[dict]:
    """The lines of one case."""
    torch.compiler.reset()  # beyond a number of shapes it would stop compiling
    query, key = shape.batch * shape.length * shape.heads, shape.batch * shape.length * shape.key_heads
    count = sets_for(2 * (2 * query + 2 * key) * shape.head_dim, most=4)
    sets = [Inputs.random(shape, torch.bfloat16, device, seed) for seed in range(count)]
    found = checked(sets[0], sides.rivals(shape))
    timed = {phase: contest(entries, count, clock, repetitions) for phase, entries in contestants(sets).items()}
    return lines_of(shape, sets[0], timed, found, known)


def compared(lines: list[dict]) -> list[dict]:
    """Per case: milliseconds of forward and backward together, ours and those of the best rival, and the ratio."""
    cases: dict[tuple, dict[str, float]] = {}
    for line in lines:
        if line["milliseconds"]:
            side = cases.setdefault(tuple(line[name] for name in ("kind", "head_dim", "length")), {})
            side.setdefault(line["side"], []).append(float(line["milliseconds"]))
    found = []
    for (kind, dim, length), times in cases.items():
        both = {name: sum(parts) for name, parts in times.items() if len(parts) == len(PHASES)}
        rivals = {name: total for name, total in both.items() if name != "ours"}
        if "ours" in both and rivals:
            best = min(rivals, key=rivals.get)
            found.append({"case": f"{kind} {dim} x {length}", "ours_ms": round(both["ours"], 4), "best": best,
                          "best_ms": round(rivals[best], 4), "ratio": round(rivals[best] / both["ours"], 3)})
    return found


def rows_of_table(lines: list[dict]) -> list[list[object]]:
    cases: dict[tuple, dict[str, dict]] = {}
    for line in lines:
        key = f"{line['kind']} {line['head_dim']} x {line['length']}", line["side"]
        cases.setdefault(key, {})[line["phase"]] = line
    rows = []
    for (case, side), phases in cases.items():
        cells = [phases[phase][name] for phase in PHASES
                 for name in ("milliseconds", "tflops", "gbytes_per_second", "error")]
        rows.append([case, side, *cells, phases["forward"]["note"] or phases["backward"]["note"]])
    return rows


def path_of(suffix: str) -> Path:
    return RESULTS / f"attention-{device_slug()}{suffix}"


def read_lines(path: Path) -> list[dict]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def merged(old: list[dict], new: list[dict]) -> list[dict]:
    """New lines in the place of old ones of the same case, side and phase; the others stay."""
    found = {tuple(line[name] for name in KEY): line for line in [*old, *new]}
    number = {kind: i for i, kind in enumerate(KINDS)}
    return sorted(found.values(), key=lambda line: (number[line["kind"]], int(line["head_dim"]), int(line["length"])))


def as_csv(lines: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def draw(lines: list[dict], path: Path) -> None:
    """TFLOP/s over length: a row of panels per kind, forward and backward of each head dimension."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = [kind for kind in KINDS if any(line["kind"] == kind for line in lines)]
    figure = Figure(figsize=(16, 3.6 * len(kinds)), layout="constrained")
    panels = figure.subplots(len(kinds), 4, squeeze=False)
    for row, kind in zip(panels, kinds):
        for panel, (dim, phase) in zip(row, [(dim, phase) for dim in DIMS for phase in PHASES]):
            chosen = [line for line in lines if line["kind"] == kind and line["phase"] == phase
                      and line["head_dim"] == str(dim) and line["tflops"]]
            for side in dict.fromkeys(line["side"] for line in chosen):
                points = sorted((int(line["length"]), float(line["tflops"])) for line in chosen if line["side"] == side)
                panel.plot(*zip(*points), marker="o", markersize=3, label=side, linewidth=2 if side == "ours" else 1)
            panel.set_xscale("log", base=2)
            panel.set_title(f"{kind}, head dimension {dim}, {phase}", fontsize=9)
            panel.set_ylabel("TFLOP/s")
            panel.grid(alpha=0.3)
        row[0].legend(fontsize=8)
    if lines:
        figure.suptitle(f"{lines[0]['device']}, bfloat16, {WIDTH} features")
    write_whole(path, lambda temporary: FigureCanvasAgg(figure).print_png(temporary), durable=False)


def dry_run() -> int:
    """Without a GPU: floors on an H100, and our programs at small sizes in the interpreter against float64."""
    say_no_gpu("floors on an H100 and a check at small sizes in Triton's interpreter, nothing is timed")
    rows = []
    for shape in shapes(["causal"], [128], None):
        flops, moved = shape.flops(shape.pairs(None)), shape.traffic(2)
        for phase, some_flops, some_bytes in zip(PHASES, flops, moved):
            bound = "copy" if some_bytes / COPY_RATE >= some_flops / PRODUCT_RATE else "products"
            rows.append([shape.name, phase, some_bytes / 1e6, some_flops / 1e9, floor(some_bytes, some_flops) * 1e6,
                         bound])
    print(table(["case", "phase", "MB", "GFLOP", "floor us", "set by"], rows), file=sys.stderr)
    results = {}
    with kernels.programs("gpu"):
        for shape in (Shape("causal", 48, 64, 1, 1, 1), Shape("full", 48, 64, 1, 1, 1),
                      Shape("grouped", 48, 64, 1, 3, 1), Shape("documents", 48, 64, 1, 1, 1)):
            found = checked(Inputs.random(shape, torch.bfloat16, "cpu", 0), rivals={})["ours"]
            results[shape.name] = found if isinstance(found, str) else {name: round(e, 5) for name, e in found.items()}
    report({"bench": "attention", "gpu": False, "errors": results})
    return int(any(isinstance(found, str) or max(found.values()) > 0.02 for found in results.values()))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python bench/attention.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--dims", nargs="+", type=int, choices=DIMS, default=list(DIMS))
    parser.add_argument("--lengths", nargs="+", type=int, choices=LENGTHS)
    parser.add_argument("--repetitions", type=int, default=25, help="timed rounds, at least 20")
    parser.add_argument("--limit", type=float, default=math.inf, help="begin no case after so many seconds")
    parser.add_argument("--resume", action="store_true", help="leave out cases timed on this commit already")
    options = parser.parse_args(arguments)
    if not has_gpu():
        return dry_run()
    begin, known, clock = time.perf_counter(), facts(), GpuClock()
    path = path_of(".csv")
    wanted = shapes(options.kinds, options.dims, options.lengths)
    lines, wrong, left = [], {}, []
    for shape in wanted:
        old = [line for line in read_lines(path) if options.resume and line["commit"] == known["commit"]
               and [line[name] for name in KEY[:3]] == [shape.kind, str(shape.head_dim), str(shape.length)]]
        if not old and time.perf_counter() - begin > options.limit:
            left.append(shape.name)
            continue
        new = old or time_case(shape, clock, max(options.repetitions, 20), known)
        lines += new
        flaw = verdict(new)
        wrong |= {shape.name: flaw} if flaw else {}
        if not old:
            write_text(path, as_csv(merged(read_lines(path), new)))
            print(table(HEAD, rows_of_table(new)), file=sys.stderr, flush=True)
            torch.cuda.empty_cache()
    draw(read_lines(path), path_of(".png"))
    cases = compared(lines)
    print(table(["case", "ours ms", "best", "best ms", "ratio"], [case.values() for case in cases]), file=sys.stderr)
    report({"bench": "attention", **known, "clocks_after": facts()["clocks"], "cases": cases, "wrong": wrong,
            "left": left})
    return 1 if wrong else UNFINISHED if left else 0


if __name__ == "__main__":
    sys.exit(main())
