"""Every test and benchmark that a GPU is for, in stages: `make gpu`, or `python -m bench.gpu`.

Each stage is a process of its own with a limit under nine minutes. A stage that is done on this commit and card is not
done again (`--fresh` forgets), so call it again after an interruption and it goes on. What came out is in
bench/results/CARD-DATE.json, with card, driver, versions and commit, and a short table comes last. Without a GPU the
benchmarks run what they can, nothing is timed or kept.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from train.files import write_text

from .gpu_timing import RESULTS, ROOT, UNFINISHED, device_slug, facts, has_gpu, table

LIMIT = 520.0  # seconds of a stage
STATE = ROOT / "build" / "gpu"
TEST_PROCESSES = min(8, os.cpu_count() or 1)  # they compile: every drawn shape is another kernel
TESTS_OF_GPU = re.compile(r"^from harness import .*\bGPU\b", re.MULTILINE)


@dataclass(frozen=True)
class Stage:
    """One process.

    Args:
        command: after the Python interpreter.
        limited: whether it takes `--limit SECONDS --resume` and exits with UNFINISHED to be called again.
        dry: more arguments where there is no GPU; None: it has nothing to do there.
    """

    name: str
    command: tuple[str, ...]
    limited: bool = False
    dry: tuple[str, ...] | None = None


def _tests(name: str, *arguments: str) -> Stage:
    """Those of the tests that run on a GPU where there is one."""
    paths = sorted((ROOT / "tests").glob("test_*.py"))
    names = [path.relative_to(ROOT).as_posix() for path in paths if TESTS_OF_GPU.search(path.read_text("utf-8"))]
    command = ("-m", "pytest", "-p", "no:cacheprovider", "-n", str(TEST_PROCESSES), "--dist", "worksteal")
    return Stage(name, (*command, *names, *arguments))


MEMORY = ("bench/memory_bound.py",)
STAGES = (
    _tests("tests", "-k", "bfloat16 or not float16"),
    Stage("attention", ("bench/attention.py", "--kinds", "causal"), limited=True, dry=()),
    Stage("memory-bound", (*MEMORY, "--without", "linear_cross_entropy"), dry=()),
    Stage("linear-cross-entropy", (*MEMORY, "--only", "linear_cross_entropy")),
    Stage("step", ("-m", "bench.gpu_step"), dry=()),
    Stage("moe", ("bench/moe.py",), dry=("--rounds", "3")),
    _tests("tests-float16", "-k", "float16 and not bfloat16"),
    Stage("attention-full", ("bench/attention.py", "--kinds", "full"), limited=True),
    Stage("attention-others", ("bench/attention.py", "--kinds", "grouped", "documents"), limited=True),
    _tests("tests-slow", "-m", "slow", "-k", "not float16"),
    _tests("tests-slow-bfloat16", "-m", "slow", "-k", "bfloat16"),
    _tests("tests-slow-float16", "-m", "slow", "-k", "float16 and not bfloat16"),
    Stage("tune", ("-m", "bench.tune"), limited=True, dry=()),
)


@dataclass
class Outcome:
    """What a stage came to: done, unfinished (call again), failed, or out of time; its seconds and JSON lines."""

    status: str
    seconds: float
    results: list[dict]
    tail: str = ""


def run(stage: Stage, limit: float = LIMIT, resume: bool = True) -> Outcome:
    """Run a stage; what it prints goes on to the terminal."""
    command = [sys.executable, *stage.command]
    if not has_gpu():
        command += stage.dry or ()
    elif stage.limited:
        command += ["--limit", str(limit * 0.8)] + (["--resume"] if resume else [])
    begin, lines = time.perf_counter(), []
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    previous = signal.signal(signal.SIGALRM, lambda *_: _end(process))
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        code = process.wait()
    except BaseException:
        _end(process)
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        process.stdout.close()
    seconds = time.perf_counter() - begin
    status = {0: "done", UNFINISHED: "unfinished"}.get(code, "out of time" if seconds >= limit else f"failed ({code})")
    return Outcome(status, round(seconds, 1), _json_lines(lines), "".join(lines[-5:]) if code else "")


def _end(process: subprocess.Popen) -> None:
    """End a stage and the processes it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _json_lines(lines: list[str]) -> list[dict]:
    found = []
    for line in lines:
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return found


class Record:
    """Outcomes of stages on one commit, kept after each of them."""

    def __init__(self, path: Path, commit: str):
        self.path, self.commit, self.stages = path, commit, {}
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["commit"] == commit:
                self.stages = kept["stages"]

    def forget(self, stages: tuple[Stage, ...]) -> None:
        for stage in stages:
            self.stages.pop(stage.name, None)

    def done(self, name: str) -> bool:
        return self.stages.get(name, {}).get("status") == "done"

    def keep(self, name: str, outcome: Outcome) -> None:
        self.stages[name] = vars(outcome)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps({"commit": self.commit, "stages": self.stages}, indent=1))


def run_stages(stages: tuple[Stage, ...], record: Record, limit: float = LIMIT, fresh: bool = False,
               after_each=lambda: None) -> bool:
    """Run what is not done yet; whether all is done now."""
    for stage in stages:
        if record.done(stage.name):
            print(f"== {stage.name}: done before", file=sys.stderr, flush=True)
            continue
        print(f"== {stage.name}: {' '.join(stage.command)}", file=sys.stderr, flush=True)
        record.keep(stage.name, run(stage, limit, resume=not fresh))
        after_each()
    return all(record.done(stage.name) for stage in stages)


def summary(stages: tuple[Stage, ...], record: Record) -> str:
    """The short table: each stage with its headline."""
    lines = []
    for stage in stages:
        kept = record.stages.get(stage.name)
        head = "; ".join(filter(None, map(headline, kept["results"]))) if kept else None
        lines.append([stage.name, kept["status"] if kept else "not run", kept["seconds"] if kept else None, head])
    return table(["stage", "status", "seconds", "result"], lines)


def headline(result: dict) -> str:
    """A benchmark's result in some words."""
    if "headline" in result:
        return result["headline"]
    cases = [case for case in result.get("cases", []) if "ratio" in case]
    if not cases:
        return ""
    worst = min(cases, key=lambda case: case["ratio"])
    ahead = sum(case["ratio"] >= 1 for case in cases)
    return f"ahead in {ahead} of {len(cases)}, least {worst['ratio']:.2f}x ({worst['case']})"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--stage", action="append", choices=[stage.name for stage in STAGES], metavar="NAME",
                        help="only this stage; may be given several times")
    parser.add_argument("--list", action="store_true", help="print the stages and what became of them")
    parser.add_argument("--fresh", action="store_true", help="forget what is done of these stages")
    options = parser.parse_args(arguments)
    chosen = tuple(stage for stage in STAGES if not options.stage or stage.name in options.stage)
    if not has_gpu():
        return _without_gpu(chosen, options.list)
    known = facts()
    record = Record(STATE / f"{device_slug()}.json", known["commit"])
    if options.list:
        print(summary(STAGES, record))
        return 0
    if options.fresh:
        record.forget(chosen)
    place = RESULTS / f"{device_slug()}-{known['date']}.json"

    def save() -> None:
        stages = {name: {key: kept[key] for key in ("status", "seconds", "results")}
                  for name, kept in record.stages.items()}
        write_text(place, json.dumps({**known, "stages": stages}, indent=1) + "\n")

    finished = run_stages(chosen, record, fresh=options.fresh, after_each=save)
    print(summary(chosen, record))
    print(f"{place.relative_to(ROOT)}" + ("" if finished else ": not all is done, call again to go on"))
    return 0 if finished else 1


def _without_gpu(stages: tuple[Stage, ...], only_list: bool) -> int:
    print("no GPU here: the benchmarks run what they can without one, nothing is timed or kept")
    if only_list:
        print(table(["stage", "command"], [[stage.name, " ".join(stage.command)] for stage in stages]))
        return 0
    lines = []
    for stage in stages:
        outcome = run(stage) if stage.dry is not None else None
        lines.append([stage.name, outcome.status if outcome else "needs a GPU", outcome.seconds if outcome else None])
    print(table(["stage", "status", "seconds"], lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
