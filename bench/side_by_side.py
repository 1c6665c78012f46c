"""Timing rivals fairly: each in a process of its own with the same number of threads, taking turns.

Two engines in one process disturb each other (thread pools, allocators, caches of compiled code), and two runs one
after the other see a different machine. Here each contestant's worker process waits on a pipe, idle, while another is
timed.

A contestant is "module:function". The function is called once in its worker with the arguments of the contest, prepares
everything, and returns the step to be timed: a callable without arguments that returns None, or a mapping from the
name of a phase to the seconds it took, when it times its own phases.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import sys
import time
import traceback
from dataclasses import dataclass, field

from bench.worker import Worker

SETTLE_SECONDS = 0.01  # after its turn a pool's threads may spin for some milliseconds before they sleep


@dataclass
class Timing:
    """What one contestant took: seconds per step, and memory of its process in MiB."""

    seconds: list[float] = field(default_factory=list)
    phases: dict[str, list[float]] = field(default_factory=dict)
    idle_mb: float = 0.0
    peak_mb: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def phase(self, name: str) -> float:
        """The median seconds of one phase."""
        return statistics.median(self.phases[name])


class Contest:
    """Worker processes for contestants, to run any number of contests between them.

    Args:
        contestants: name -> "module:function".
        threads: compute threads of each worker; every core of this process when left out.
        environment: name -> more environment variables of that worker.
    """

    def __init__(self, contestants: dict[str, str], threads: int | None = None,
                 environment: dict[str, dict[str, str]] | None = None):
        count = str(threads or available_cores())
        settings = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "LOAM_THREADS": count}
        self.workers = {name: Worker(name, "bench.side_by_side", target,
                                     environment={**settings, **(environment or {}).get(name, {})})
                        for name, target in contestants.items()}

    def __enter__(self) -> Contest:
        return self

    def __exit__(self, *_exception) -> None:
        for worker in self.workers.values():
            worker.close()

    def run(self, args: dict, rounds: int = 7, warmup: int = 2, least_seconds: float = 0.0) -> dict[str, Timing]:
        """Prepare every contestant with `args` (JSON values), then time one sample of each per round.

        Args:
            least_seconds: a sample repeats its step until it lasts about this long, and counts the mean.
        """
        for worker in self.workers.values():
            worker.ask({"do": "prepare", "args": args, "warmup": warmup, "least_seconds": least_seconds})
        timings = {name: Timing() for name in self.workers}
        for turn in range(rounds):
            order = list(self.workers.items())
            for name, worker in order if turn % 2 == 0 else reversed(order):
                time.sleep(SETTLE_SECONDS)
                answer = worker.ask({"do": "step"})
                timings[name].seconds.append(answer["seconds"])
                for phase, seconds in answer["phases"].items():
                    timings[name].phases.setdefault(phase, []).append(seconds)
        for name, worker in self.workers.items():
            memory = worker.ask({"do": "memory"})
            timings[name].idle_mb, timings[name].peak_mb = memory["idle_mb"], memory["peak_mb"]
        return timings


def alternate(contestants: dict[str, str], rounds: int = 7, warmup: int = 2, args: dict | None = None,
              threads: int | None = None, environment: dict[str, dict[str, str]] | None = None) -> dict[str, Timing]:
    """Time contestants in turns: one contest in fresh processes, whose peak memory is that of this contest alone."""
    with Contest(contestants, threads, environment) as contest:
        return contest.run(args or {}, rounds, warmup)


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_mb() -> float:
    """The largest resident memory of this process so far, in MiB."""
    try:
        with open("/proc/self/status") as status:
            lines = dict(line.split(":", 1) for line in status)
        return int(lines["VmHWM"].split()[0]) / 1024
    except OSError:
        import resource

        # Not used on Linux, where it starts from the parent's size; macOS counts bytes.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class _Contestant:
    """The worker's side: prepares the step and times it."""

    def __init__(self, target: str):
        module, function = target.split(":")
        self.setup = getattr(importlib.import_module(module), function)
        self.idle_mb = peak_mb()

    def answer(self, request: dict) -> dict:
        return getattr(self, request.pop("do"))(**request)

    def prepare(self, args: dict, warmup: int, least_seconds: float) -> dict:
        self.step_function = None
        self.step_function = self.setup(**args)
        self.repeats = 1
        for _ in range(max(warmup, 1)):
            seconds = self.step()["seconds"]
        self.repeats = max(1, round(least_seconds / max(seconds, 1e-7)))
        return {}

    def step(self) -> dict:
        phases: dict[str, float] = {}
        self.step_function()  # not timed: the caches hold the other contestants' memory
        start = time.perf_counter()
        for _ in range(self.repeats):
            for phase, seconds in (self.step_function() or {}).items():
                phases[phase] = phases.get(phase, 0.0) + seconds / self.repeats
        return {"seconds": (time.perf_counter() - start) / self.repeats, "phases": phases}

    def memory(self) -> dict:
        return {"idle_mb": self.idle_mb, "peak_mb": peak_mb()}


def _serve(target: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a contestant prints must not end up among the answers
    try:
        contestant = _Contestant(target)
    except BaseException:
        failure = traceback.format_exc()
        contestant = None
    for line in sys.stdin:
        try:
            answer = contestant.answer(json.loads(line)) if contestant else {"error": failure}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
