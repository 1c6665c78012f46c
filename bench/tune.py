"""Tile sizes for the card at hand: `python -m bench.tune [--only KERNEL ...] [--limit SECONDS] [--resume]`.

For each kernel of tuning.json, dtype and size that the table of GPU cases asks for, the search starts from the entry in
use and tries every number of it halved and doubled (stages one less and one more), goes on from the best, and stops
when nothing is faster. A candidate that spills registers, needs more shared memory than a block may have, does not
compile or changes results is left out; the machine code is looked at before anything runs. Winners at least 2 % faster
go into kernels/gpu/tuning.json under the card's name, the whole file or nothing. What was found stays in build/gpu, so
that `--resume` goes on after an interruption. Without a GPU the candidates of the first step are compiled for an H100
and what they need is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MappingProxyType

import torch

from kernels.gpu import launch as launching
from kernels.gpu import tuning
from train.files import write_text

from . import aot
from .gpu_case import GpuCase
from .gpu_cases import CASES
from .gpu_timing import (
    ROOT, UNFINISHED, GpuClock, Times, contest, device_slug, facts, has_gpu, reason, report, sets_for, table,
)

Entry = dict[str, int]
FASTER = 0.98  # of the time in use, at most, for a winner
ROUNDS = 20
MOST_STEPS = 6
BOUNDS = {"num_warps": (1, 32), "num_stages": (1, 6), "PER_MULTIPROCESSOR": (1, 64)}
LEFT_ALONE = {"linear_cross_entropy": "sets how much memory a chunk takes"}
PHASES = ("forward", "backward")


@dataclass(frozen=True)
class Lookup:
    """One question to the table, and the case and phase that asked it first."""

    kernel: str
    dtype: torch.dtype
    shape: tuple[tuple[str, int | bool | str], ...]
    case: str
    case_dtype: str
    phase: str

    @property
    def question(self) -> tuple:
        return self.kernel, self.dtype, tuple((name, tuning.bucket(size)) for name, size in self.shape)

    @property
    def name(self) -> str:
        return " ".join([self.kernel, *tuning.names(SOME_CARD, self.dtype, dict(self.shape))[0].split(" ")[1:]])

    def place(self, card: str) -> str:
        """The table's entry for this card, dtype and sizes."""
        return " ".join([card, *self.name.split(" ")[1:]])


SOME_CARD = launching.Target("card", 90, 132)


@contextlib.contextmanager
def answering(answer: Callable[[Lookup], Entry | None], case: GpuCase, dtype: str, phase: str) -> Iterator[None]:
    """Within this context `tuned` takes what `answer` gives, unless that is None."""
    before = tuning._entry

    def entry(kernel, kind, on, shape):
        given = answer(Lookup(kernel, kind, shape, case.name, dtype, phase))
        return before(kernel, kind, on, shape) if given is None else MappingProxyType(given)

    tuning._entry = entry
    try:
        yield
    finally:
        tuning._entry = before


def lookups(cases: dict[str, GpuCase] = CASES, arch: int = 90, all_dtypes: bool = False) -> list[Lookup]:
    """Every question that the cases ask in their first dtype, each once, under the first case that asks it."""
    found: dict[tuple, Lookup] = {}

    def note(lookup: Lookup) -> None:
        if lookup.kernel not in LEFT_ALONE:
            found.setdefault(lookup.question, lookup)

    for case in cases.values():
        for dtype in case.dtypes if all_dtypes else case.dtypes[:1]:
            with launching.recording(known_arch(arch)):
                run_noted(case, dtype, note)
    return list(found.values())


def run_noted(case: GpuCase, dtype: str, note: Callable[[Lookup], None]) -> None:
    tensors = case.tensors(dtype, "meta")
    with answering(note, case, dtype, "forward"):
        result = case.forward(tensors)
    if case.backward:
        with answering(note, case, dtype, "backward"):
            case.backward(tensors, result)


def known_arch(arch: int) -> int:
    """The newest of the architectures known ahead of time that is not newer."""
    return max((known for known in launching.MULTIPROCESSORS if known <= arch), default=80)


def neighbours(entry: Entry) -> list[Entry]:
    """Entries that differ in one number."""
    found = []
    for name, value in entry.items():
        if isinstance(value, bool):
            found.append({**entry, name: not value})
        elif isinstance(value, int):
            low, high = BOUNDS.get(name, (1, 1 << 16))
            others = (value - 1, value + 1) if name == "num_stages" else (value // 2, value * 2)
            found += [{**entry, name: other} for other in others if low <= other <= high]
    return found


def flaw(lookup: Lookup, entry: Entry, arch: int) -> str | None:
    """Why the machine code of the launches that depend on an entry is not wanted; compiles, runs nothing."""
    case = CASES[lookup.case]
    try:
        with launching.recording(known_arch(arch)) as all_launches:
            override(case, lookup, entry, lambda: case.run(lookup.case_dtype, "meta"))
        with launching.recording(known_arch(arch)) as usual:
            case.run(lookup.case_dtype, "meta")
        for launch in [launch for launch in all_launches if launch not in usual]:
            line = aot.compiled(aot.Job(case.name, lookup.case_dtype, arch, launch, ""))
            if line["spills"] != "0":
                return f"{line['spills']} spills"
            limit = aot.SHARED_LIMIT.get(arch, min(aot.SHARED_LIMIT.values()))
            if int(line["shared_bytes"]) > limit:
                return f"{line['shared_bytes']} bytes of shared memory, the card has {limit}"
    except Exception as error:
        return reason(error)
    return None


def override(case: GpuCase, lookup: Lookup, entry: Entry, act: Callable[[], object]) -> object:
    """What `act` gives while one question has this answer."""
    answer = lambda asked: entry if asked.question == lookup.question else None  # noqa: E731
    with answering(answer, case, lookup.case_dtype, lookup.phase):
        return act()


class Search:
    """The search for one entry on the card at hand."""

    def __init__(self, lookup: Lookup, clock, arch: int):
        self.lookup, self.clock, self.arch, self.case = lookup, clock, arch, CASES[lookup.case]
        first = self.case.tensors(lookup.case_dtype, "cuda")
        size = sum(t.nbytes for t in vars(first).values())
        self.sets = [first, *(self.case.tensors(lookup.case_dtype, "cuda") for _ in range(sets_for(size, most=4) - 1))]
        self.tried: dict[str, float | str] = {}

    def best(self) -> tuple[Entry, float, float]:
        """-> the fastest entry, its seconds, and those of the entry in use in the same rounds."""
        used = dict(tuning.tuned(self.lookup.kernel, self.lookup.dtype, **dict(self.lookup.shape)))
        truth = self.results(used)
        centre, seconds, usual = used, math.inf, math.inf
        for _ in range(MOST_STEPS):
            candidates = {json.dumps(entry): entry for entry in [used, centre, *neighbours(centre)]}
            fit = {name: entry for name, entry in candidates.items() if self.fits(name, entry, truth)}
            times = contest({name: self.prepared(entry) for name, entry in fit.items()}, len(self.sets), self.clock,
                            ROUNDS)
            medians = {name: entry.median for name, entry in times.items() if isinstance(entry, Times)}
            self.tried |= {name: medians.get(name, times[name]) for name in fit}
            if not medians:
                break
            fastest = min(medians, key=medians.get)
            usual = medians.get(json.dumps(used), math.inf)
            moved, centre, seconds = fit[fastest] != centre, fit[fastest], medians[fastest]
            if not moved:
                break
        return centre, seconds, usual

    def fits(self, name: str, entry: Entry, truth: list[torch.Tensor]) -> bool:
        if isinstance(self.tried.get(name), str):
            return False
        if name not in self.tried:
            why = flaw(self.lookup, entry, self.arch) or self.difference(entry, truth)
            if why:
                self.tried[name] = why
                return False
        return True

    def difference(self, entry: Entry, truth: list[torch.Tensor]) -> str | None:
        try:
            for ours, expected in zip(self.results(entry), truth):
                if expected.dtype.is_floating_point:
                    torch.testing.assert_close(ours.float(), expected.float(), rtol=2e-2, atol=2e-2 * float(
                        expected.float().abs().max()), equal_nan=True)
                elif not torch.equal(ours, expected):
                    return "other results"
        except Exception as error:
            return reason(error)
        return None

    def results(self, entry: Entry) -> list[torch.Tensor]:
        """What the phase gives on fresh inputs, those that it writes included."""
        tensors = self.case.tensors(self.lookup.case_dtype, "cuda")
        result = self.run(entry, tensors)
        results = result if isinstance(result, tuple) else (result,)
        return [t for t in (*results, *vars(tensors).values()) if isinstance(t, torch.Tensor)]

    def run(self, entry: Entry, tensors) -> object:
        if self.lookup.phase == "forward":
            return override(self.case, self.lookup, entry, lambda: self.case.forward(tensors))
        result = self.case.forward(tensors)
        return override(self.case, self.lookup, entry, lambda: self.case.backward(tensors, result))

    def prepared(self, entry: Entry):
        def prepare(number: int):
            tensors = self.sets[number]
            if self.lookup.phase == "forward":
                return lambda: override(self.case, self.lookup, entry, lambda: self.case.forward(tensors))
            result = self.case.forward(tensors)
            return lambda: override(self.case, self.lookup, entry, lambda: self.case.backward(tensors, result))

        return prepare


def with_entry(text: str, kernel: str, place: str, entry: Entry) -> str:
    """The table of tile sizes with one more entry, in its usual form."""
    entries = json.loads(text)
    entries[kernel][place] = entry
    return formatted(entries)


def formatted(entries: dict[str, dict[str, Entry]]) -> str:
    """One entry per line; kernels in alphabetical order, entries in theirs."""
    blocks = []
    for kernel in sorted(entries):
        lines = [f"    {json.dumps(place)}: {json.dumps(entry)}" for place, entry in entries[kernel].items()]
        blocks.append(f"  {json.dumps(kernel)}: {{\n" + ",\n".join(lines) + "\n  }")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def dry_run(wanted: list[Lookup]) -> int:
    """The first candidates of a few lookups, compiled for an H100."""
    print("no GPU here: candidates are compiled for sm_90, nothing is timed", file=sys.stderr)
    lines = []
    for lookup in wanted:
        with launching.recording(90):
            used = dict(tuning.tuned(lookup.kernel, lookup.dtype, **dict(lookup.shape)))
        for entry in neighbours(used):
            lines.append([lookup.name, json.dumps(entry), flaw(lookup, entry, 90) or "fits"])
    print(table(["kernel", "candidate", "machine code"], lines), file=sys.stderr)
    report({"bench": "tune", "gpu": False, "candidates": len(lines), "fit": sum(line[2] == "fits" for line in lines)})
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tune", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="KERNEL", choices=sorted(tuning.table()))
    parser.add_argument("--all-dtypes", action="store_true", help="not only bfloat16, or what a case has in its place")
    parser.add_argument("--limit", type=float, default=math.inf, help="begin no search after so many seconds")
    parser.add_argument("--resume", action="store_true", help="leave out what was searched on this commit already")
    options = parser.parse_args(arguments)
    begin = time.perf_counter()
    arch = launching.target().arch if has_gpu() else 90
    wanted = [lookup for lookup in lookups(arch=arch, all_dtypes=options.all_dtypes)
              if not options.only or lookup.kernel in options.only]
    if not has_gpu():
        return dry_run(wanted if options.only else wanted[:1])
    known, clock = facts(), GpuClock()
    path = ROOT / "build" / "gpu" / f"tune-{device_slug()}.json"
    kept = json.loads(path.read_text()) if options.resume and path.exists() else {}
    found = kept["found"] if kept.get("commit") == known["commit"] else {}
    for lookup in wanted:
        if lookup.name in found or time.perf_counter() - begin > options.limit:
            continue
        search = Search(lookup, clock, arch)
        entry, seconds, usual = search.best()
        timed = math.isfinite(usual) and math.isfinite(seconds)
        won = timed and seconds <= FASTER * usual
        found[lookup.name] = {"kernel": lookup.name, "entry": entry, "kept": won, "tried": len(search.tried),
                              "faster": round(usual / seconds, 3) if timed else None,
                              "left_out": sum(isinstance(why, str) for why in search.tried.values())}
        if won:
            write_text(tuning.TABLE, with_entry(tuning.TABLE.read_text(), lookup.kernel,
                                                lookup.place(known["device"]), entry))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"commit": known["commit"], "found": found}))
        print(table(list(found[lookup.name]), [found[lookup.name].values()]), file=sys.stderr, flush=True)
        del search
        torch.cuda.empty_cache()
    left = [lookup.name for lookup in wanted if lookup.name not in found]
    won = [entry for entry in found.values() if entry["kept"]]
    report({"bench": "tune", **known, "found": found, "left": left,
            "headline": f"{len(won)} of {len(found)} entries faster" + (f", {len(left)} left" if left else "")})
    return UNFINISHED if left else 0


if __name__ == "__main__":
    sys.exit(main())
