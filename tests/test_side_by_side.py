"""The benchmarks' referee, and a run of `bench.ops`."""

import json
import os
import subprocess
import sys

import pytest

from bench import ops as bench_ops
from bench.side_by_side import Contest, alternate
from sources import ROOT

CONTESTANTS = """
import os

def quick(count):
    print("chatter that must not reach the pipe")
    calls = []

    def step():
        calls.append(1)
        return {"work": 0.25, "calls": float(len(calls))}

    return step

def broken(count):
    raise ValueError(f"no {count} of these")

def dies(count):
    return lambda: os._exit(3)

def threads(count):
    return lambda: {name: float(os.environ[name]) for name in ("OMP_NUM_THREADS", "LOAM_THREADS")}
"""


@pytest.fixture
def environment(tmp_path):
    (tmp_path / "contestants.py").write_text(CONTESTANTS)
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}


def everyone(names, environment):
    return {name: environment for name in names}


def test_rounds_warm_up_and_phases(environment):
    sides = {"a": "contestants:quick", "b": "contestants:quick"}
    timings = alternate(sides, rounds=3, warmup=2, args={"count": 1}, environment=everyone(sides, environment))
    for timing in timings.values():
        assert len(timing.seconds) == 3 and timing.median > 0
        assert timing.phase("work") == 0.25 and timing.phases["calls"] == [6, 8, 10]  # the odd ones open a turn
        assert timing.peak_mb >= timing.idle_mb > 1


def test_a_sample_repeats_short_steps(environment):
    with Contest({"a": "contestants:quick"}, environment={"a": environment}) as contest:
        timing = contest.run({"count": 1}, rounds=2, warmup=2, least_seconds=0.01)["a"]
        assert timing.phase("work") == pytest.approx(0.25) and timing.phases["calls"][1] > 100
        assert contest.run({"count": 1}, rounds=1, warmup=1)["a"].phases["calls"] == [4]


def test_both_sides_get_the_same_threads(environment):
    sides = {"a": "contestants:threads", "b": "contestants:threads"}
    timings = alternate(sides, rounds=1, args={"count": 1}, threads=1, environment=everyone(sides, environment))
    assert all(t.phases == {"OMP_NUM_THREADS": [1.0], "LOAM_THREADS": [1.0]} for t in timings.values())


@pytest.mark.parametrize("target, message", [
    ("contestants:broken", "a: the process failed:\n(.|\n)*ValueError: no 7 of these"),
    ("contestants:missing", "has no attribute 'missing'"), ("contestants:dies", "a: the process ended with code 3"),
])
def test_failures_are_told(environment, target, message):
    with pytest.raises(RuntimeError, match=message):
        alternate({"a": target}, args={"count": 7}, environment={"a": environment})


def test_bench_ops_prints_a_json_line_per_case():
    done = subprocess.run([sys.executable, "-m", "bench.ops", "--only", "neg", "argmax", "--rounds", "1"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = {result["case"]: result for result in map(json.loads, done.stdout.splitlines())}
    assert set(results) == {"neg", "argmax"}
    assert set(results["neg"]["vs_eager"]) == {"forward", "backward", "both"}
    assert set(results["argmax"]["ours"]) == {"forward", "both"}


def test_bench_ops_names_what_it_does_not_know(capsys):
    assert bench_ops.main(["--only", "no_such_case"]) == 2
    assert "error: --only must name a case, got no_such_case" in capsys.readouterr().err
