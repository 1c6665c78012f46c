"""A run that is killed or interrupted and goes on ends exactly as one that was not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from itertools import count
from pathlib import Path

import pytest

from models.run_folder import checkpoints, latest_checkpoint
from train import pretrain
from train.asking import ask
from train.config import Config
from train.control import Control
from train.loop import Loop
from train.metrics import read_metrics

ROOT = Path(__file__).parents[1]
STEPS = 24
TINY = ["--tokenizer", "bytes", "--seq-len", "16", "--batch-tokens", "128", "--set", "model.n_layers=1",
        "--set", "model.d_model=16",
        "--set", "model.n_heads=2", "--set", "model.d_ff=32", "--set", "model.max_seq_len=16",
        "--set", "model.dropout=0.1",
        "--set", "data.micro_tokens=48", "--set", "run.sample_tokens=5", "--set", "checkpoint.every=5",
        "--set", "optim.warmup_steps=5", "--set", "run.log_every=2",
        "--set", "run.eval_every=8", "--set", "run.sample_every=12"]

SIGNALLED = """
import os, sys
from train import pretrain
from train.asking import ask
from train.loop import Loop
from train.command import run_command
at, signals = int(sys.argv[1]), [int(number) for number in sys.argv[2].split(",")]
step = Loop.step
def signalled(self, lr, *portion):
    report = step(self, lr, *portion)
    if report.step == at:
        for number in signals:
            os.kill(os.getpid(), number)
    return report
Loop.step = signalled
run_command(lambda: pretrain.main(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(600)))
    return folder / "a.txt"


def flags(text, out, *more):
    cache = ["--set", f"data.cache_dir={text.parent / 'cache'}"]
    return ["--data", str(text), "--out", str(out), "--steps", str(STEPS), *TINY, *cache, *more]


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    assert pretrain.main(flags(text, out)) == 0
    return out


def assert_same_end(one, other):
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (latest_checkpoint(one) / name).read_bytes() == (latest_checkpoint(other) / name).read_bytes()
    timeless = [[{key: value for key, value in row.items() if key not in ("tokens_per_second", "elapsed_seconds")}
                 for row in read_metrics(run / "metrics.jsonl")] for run in (one, other)]
    assert timeless[0] == timeless[1]


def test_the_folder_of_a_run(whole):
    names = {path.name for path in whole.iterdir()}
    assert names == {".lock", "config.toml", "vocabulary.json", "metrics.jsonl", "loss.png", "optimizer.txt", "samples",
                     "checkpoints", "report.html", "facts.json"}
    assert list(checkpoints(whole)) == [16, 20, 24]
    assert (whole / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert {path.name for path in (whole / "samples").iterdir()} == {"step-000012.txt", "step-000024.txt"}
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, *range(2, STEPS + 1, 2)]
    assert all(row.keys() == {"step", "tokens", "loss", "bits_per_byte", "lr", "grad_norm", "tokens_per_second",
                              "elapsed_seconds", "seq_len", "batch_tokens", "grad_norms"} for row in steps)
    assert list(steps[0]["grad_norms"]) == ["embedding", "layers.0", "norm", "head"]
    assert [row["tokens"] for row in steps] == [128 * row["step"] for row in steps]
    assert steps[-1]["loss"] < steps[0]["loss"] and steps[-1]["lr"] == pytest.approx(3e-4)
    validation = [row for row in rows if "val_loss" in row]
    assert [row["step"] for row in validation] == [8, 16, 24]
    assert all("val_bits_per_byte" in row for row in validation)
    state = json.loads((latest_checkpoint(whole) / "state.json").read_text())
    assert state["cursor"] == 128 * STEPS and state["total_steps"] == STEPS and state["seed"] == 0


def test_kill_9_and_resume(text, whole, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-c", SIGNALLED, "13", "9", *flags(text, out)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert list(checkpoints(out))[:2] == [5, 8] and read_metrics(out / "metrics.jsonl")[-1]["step"] == 12
    (out / "checkpoints" / ".partial-step-000015-1").mkdir()
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 13, "lo')
    assert pretrain.main(["--out", str(out), "--resume"]) == 0
    assert_same_end(out, whole)
    assert not list((out / "checkpoints").glob(".partial*"))


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_say_how_to_go_on(text, whole, tmp_path, monkeypatch, capfd, number, code):
    out, step = tmp_path / "run", Loop.step

    def signalled(self, lr, *portion):
        report = step(self, lr, *portion)
        if report.step == 7:
            os.kill(os.getpid(), number)
        return report

    monkeypatch.setattr(Loop, "step", signalled)
    assert pretrain.main(flags(text, out)) == code
    assert list(checkpoints(out)) == [5, 7]
    assert f"--out {out} --resume" in capfd.readouterr().out
    assert pretrain.main(flags(text, out, "--resume")) == 0
    assert_same_end(out, whole)


def test_a_second_ctrl_c_aborts_at_once(text, tmp_path):
    out = tmp_path / "run"
    at_once = ["--set", "checkpoint.asynchronous=false"]
    command = [sys.executable, "-c", SIGNALLED, "7", "2,2", *flags(text, out, *at_once)]
    aborted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert aborted.returncode == 130 and "aborted" in aborted.stderr
    assert list(checkpoints(out)) == [5]


def test_killed_before_the_first_checkpoint(text, whole, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"

    def failing(self, lr, *portion):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "step", failing)
        with pytest.raises(KeyboardInterrupt):
            pretrain.main(flags(text, out))
    assert pretrain.main(["--out", str(out), "--resume"]) == 0
    assert "no checkpoint yet" in capsys.readouterr().out
    assert_same_end(out, whole)


def test_a_finished_run_says_so_and_goes_on_longer(text, whole, tmp_path, capsys):
    out = tmp_path / "run"
    assert pretrain.main(flags(text, out, "--set", "optim.schedule=wsd")) == 0
    assert pretrain.main(["--out", str(out), "--resume"]) == 0
    assert f"finished: step {STEPS} of {STEPS}" in capsys.readouterr().out
    assert pretrain.main(["--out", str(out), "--resume", "--steps", "30"]) == 0
    assert list(checkpoints(out))[-1] == 30 and Config.load(out / "config.toml").run.steps == 30


def test_minutes_become_steps_that_stay(text, tmp_path, monkeypatch):
    out, step = tmp_path / "run", Loop.step
    monkeypatch.setattr(Loop, "step", lambda self, *take: step(self, *take)._replace(seconds=0.02))
    by_minutes = [flag for flag in flags(text, out) if flag not in ("--steps", str(STEPS))]
    assert pretrain.main([*by_minutes, "--minutes", "0.01", "--set", "run.eval_every=-1"]) == 0
    config = Config.load(out / "config.toml")
    assert config.run.minutes == 0.01 and 3 <= config.run.steps <= 40
    assert list(checkpoints(out))[-1] == config.run.steps
    assert read_metrics(out / "metrics.jsonl")[-2]["lr"] == pytest.approx(3e-4)
    assert pretrain.main(["--out", str(out), "--resume", "--minutes", "0.01"]) == 0
    assert Config.load(out / "config.toml") == config


EVERYTHING = ["--set", "data.lengths=8:30%,16:70%", "--set", "data.batch_ramp=64:40%,128:60%", "--doc-mask",
              "--set", "optim.switch_to_muon_at=11", "--set", "optim.normuon=true", "--set", "optim.ema=0.9",
              "--set", "run.statistics=noise_scale,update_ratio", "--set", "run.log_every=1", "--steps", "30",
              "--set", "model.max_seq_len=16"]


def test_everything_at_once_is_resumed_exactly(text, tmp_path):
    """A mixture in its second epoch, growing rows and steps, Muon after AdamW, an average of the weights."""
    for name, lines in (("squares", 60), ("cubes", 90)):
        (tmp_path / f"{name}.txt").write_text("".join(f"{n} of the {name}, {n * n}.\n" for n in range(lines)))
    mixture = ["--data", *(f"{name}={tmp_path / name}.txt:{weight}" for name, weight in (("squares", 1), ("cubes", 3)))]

    def everything(out):
        return [*flags(text, out)[2:], *EVERYTHING, *mixture]

    whole, out = tmp_path / "whole", tmp_path / "run"
    assert pretrain.main(everything(whole)) == 0
    rows = read_metrics(whole / "metrics.jsonl")
    steps = [row for row in rows if "loss" in row]
    assert {row["seq_len"] for row in steps} == {8, 16} and {row["batch_tokens"] for row in steps} == {64, 128}
    assert [row["step"] for row in rows if row.get("event") == "switch"] == [12]
    assert all(set(row["val_losses"]) == {"squares", "cubes"} for row in rows if "val_loss" in row)
    assert steps[-1]["tokens"] > (tmp_path / "cubes.txt").stat().st_size
    killed = subprocess.run([sys.executable, "-c", SIGNALLED, "8", "9", *everything(out)], cwd=ROOT,
                            capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert pretrain.main(["--out", str(out), "--resume", "--set", "data.micro_tokens=32"]) == 0
    for one, other in zip(steps, [row for row in read_metrics(out / "metrics.jsonl") if "loss" in row], strict=True):
        assert (one["step"], one["tokens"]) == (other["step"], other["tokens"])
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
    shutil.rmtree(out)
    for at in ("13", "22"):
        again = ["--out", str(out), "--resume"] if out.exists() else everything(out)
        subprocess.run([sys.executable, "-c", SIGNALLED, at, "9", *again], cwd=ROOT, capture_output=True)
    assert pretrain.main(["--out", str(out), "--resume"]) == 0
    assert_same_end(out, whole)


def test_a_steered_run_is_resumed_exactly(text, tmp_path, monkeypatch):
    """What a kill after step 14 leaves, with changes before and after its checkpoint: step 10, or 8 while that is being
    saved."""
    told = {4: ("set", {"lr": "1e-4", "over": 12}), 6: ("set", {"batch_tokens": "64"}), 8: ("set", {"seq_len": "8"}),
            12: ("undo", {}), 13: ("set", {"eval_every": "3"})}
    whole, out, requests, turns, replies = tmp_path / "whole", tmp_path / "run", Control.requests, count(), []

    def steered(ear):
        turn = next(turns)
        if turn == 14:
            shutil.copytree(whole, out, ignore=shutil.ignore_patterns("control.*"))
        if turn not in told:
            return requests(ear)
        threading.Thread(target=lambda: replies.append(ask(whole, *told[turn], 20.0))).start()
        return [ear._requests.get(timeout=20.0)]

    with monkeypatch.context() as patch:
        patch.setattr(Control, "requests", steered)
        assert pretrain.main([*flags(text, whole), "--set", "data.window=128", "--set", "run.log_every=1"]) == 0
    assert len(replies) == len(told) and not any("error" in reply for reply in replies)
    rows = read_metrics(whole / "metrics.jsonl")
    changes = [(row["step"], row["key"]) for row in rows if row.get("event") == "set"]
    assert changes == [(5, "lr"), (7, "batch_tokens"), (9, "seq_len"), (14, "eval_every")]
    assert {(row["batch_tokens"], row["seq_len"]) for row in rows if "loss" in row} == {(128, 16), (64, 16), (64, 8)}
    assert latest_checkpoint(out).name in ("step-000008", "step-000010")
    assert pretrain.main(["--out", str(out), "--resume"]) == 0
    assert_same_end(out, whole)
