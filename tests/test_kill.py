"""kill -9 at any moment: the run folder stays usable, and the run that goes on is the one that was not killed."""

import gc
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from models.run_folder import checkpoints, latest_checkpoint
from train import checkpoint, pretrain, session
from train.files import write_text
from train.metrics import read_metrics

ROOT = Path(__file__).parents[1]
KILLS, SEED, STEPS = 200, 0, 12
TIMED = {"tokens_per_second", "elapsed_seconds"}
DRAWN = {"loss.png", "report.html"}  # from metrics.jsonl, at any time
FLAGS = ["--tokenizer", "bytes", "--seq-len", "16", "--batch-tokens", "128", "--doc-mask", "--steps", str(STEPS),
         *itertools.chain(*(("--set", setting) for setting in (
             "model.n_layers=1", "model.d_model=16", "model.n_heads=2", "model.d_ff=32", "model.max_seq_len=16",
             "model.dropout=0.1", "run.threads=1", "run.log_every=1", "run.eval_every=4", "run.sample_every=6",
             "run.sample_tokens=3", "checkpoint.every=2", "checkpoint.keep=2", "optim.warmup_steps=5",
             "data.lengths=8:40%,16:60%", "data.batch_ramp=64:20%,128:80%", "data.micro_tokens=48",
             "optim.switch_to_muon_at=7", "optim.ema=0.9")))]


def timeless_rows(run):
    rows = read_metrics(run / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in TIMED} for row in rows]


def check_usable(run, rows):
    """Whatever a killed process left: whole checkpoints, and metrics that tell each step once.

    Args:
        rows: of the run that was not killed.
    """
    told = timeless_rows(run)
    assert told == rows[:len(told)], f"{run}: the rows are not those of the run that was not killed"
    tokens = {row["step"]: row["tokens"] for row in rows if "loss" in row and "tokens" in row}
    for step, path in checkpoints(run).items():
        state = checkpoint.load(path).state
        assert (state["step"], state["cursor"]) == (step, tokens[step]), f"{path}: not the step's place in the text"
        assert step in {row["step"] for row in told}, f"{path}: metrics.jsonl does not reach it"


def check_finished(run, whole):
    """A run that went on to its end is the one that was not killed, and nothing half-written is left of the others.

    One killed between its last save and the deletion of older checkpoints has those still.
    """
    assert timeless_rows(run) == timeless_rows(whole)
    for name in (checkpoint.MODEL_FILE, checkpoint.OPTIMIZER_FILE):
        assert (latest_checkpoint(run) / name).read_bytes() == (latest_checkpoint(whole) / name).read_bytes()
    names, expected = ({str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - DRAWN
                       for folder in (run, whole))
    older = {name for name in names - expected if name.startswith("checkpoints/step-")}
    assert names - older == expected


def attempt(arguments, log, delay=None):
    """Run pretrain in a forked process and kill it after `delay` seconds. Returns its exit code, -9 when killed."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            os.dup2(1, 2)
            os._exit(pretrain.main(arguments))
        except BaseException as error:
            os.write(1, repr(error).encode())
            os._exit(99)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def campaign(folder, kills, seed):
    """Kill runs until there were so many kills; each is resumed until it is finished. Prints counts as JSON.

    This process trains once itself, so that the forked ones need not load and compile anything; it must have no second
    thread then. Pictures, which would take most of the time, are a line of text here.
    """
    session.draw_loss = lambda metrics, picture, title: write_text(picture, title, durable=False)
    text, log, whole = folder / "text.txt", folder / "log.txt", folder / "whole"
    text.write_text("".join(f"{n} times {n} is {n * n}.\n\n" for n in range(40)))
    flags = ["--data", str(text), "--document-separator", "\n\n", "--set", f"data.cache_dir={folder / 'cache'}", *FLAGS]
    assert pretrain.main([*flags, "--out", str(whole)]) == 0
    gc.collect()
    assert threading.active_count() == 1, threading.enumerate()
    rows, moments = timeless_rows(whole), random.Random(seed)
    begun = time.monotonic()
    assert attempt([*flags, "--out", str(folder / "second")], log) == 0, log.read_text()
    seconds = time.monotonic() - begun
    check_finished(folder / "second", whole)
    counts = {"kills": 0, "before config.toml": 0, "before a checkpoint": 0, "while saving": 0, "finished runs": 0,
              "seconds of a run": round(seconds, 2)}
    for number in itertools.count():
        run, code = folder / f"run-{number}", -signal.SIGKILL
        while code == -signal.SIGKILL and counts["kills"] < kills:
            begun_before = (run / "config.toml").exists()
            arguments = ["--out", str(run), "--resume"] if begun_before else [*flags, "--out", str(run)]
            code = attempt(arguments, log, moments.uniform(0.0, 0.8 * seconds))
            assert code in (0, -signal.SIGKILL), log.read_text()
            check_usable(run, rows)
            if code:
                counts["kills"] += 1
                counts["before config.toml"] += not (run / "config.toml").exists()
                counts["before a checkpoint"] += not checkpoints(run)
                counts["while saving"] += any(run.glob("checkpoints/.partial-*"))
        if code:
            assert attempt(["--out", str(run), "--resume"] if (run / "config.toml").exists() else
                           [*flags, "--out", str(run)], log) == 0, log.read_text()
        check_finished(run, whole)
        counts["finished runs"] += 1
        if counts["kills"] == kills:
            print(json.dumps(counts))
            return


PROGRAM = "import sys; sys.path[:0] = sys.argv[1:3]; from pathlib import Path; import test_kill; " \
          "test_kill.campaign(Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))"


def killed(folder, kills):
    command = [sys.executable, "-c", PROGRAM, str(ROOT), str(ROOT / "tests"), str(folder), str(kills), str(SEED)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "LOAM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    print(counts)
    assert counts["kills"] == kills
    return counts


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere libraries may not survive a fork")
def test_no_kill_leaves_an_unusable_folder_or_changes_the_run(tmp_path):
    assert killed(tmp_path, KILLS)["finished runs"] > 1
