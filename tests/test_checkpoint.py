"""Checkpoints: whole or not at all, and strict when read."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from models.run_folder import checkpoints, latest_checkpoint
from train import checkpoint
from train.errors import UserError

ROOT = Path(__file__).parents[1]
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}
MOMENTS = {f"exp_avg.{name}": tensor * 2 for name, tensor in TENSORS.items()}


def save(run, step):
    return checkpoint.write(run, step, TENSORS, MOMENTS, {"cursor": step * 10})


def test_there_and_back(tmp_path):
    path = save(tmp_path, 7)
    assert path == tmp_path / "checkpoints" / "step-000007"
    assert sorted(file.name for file in path.iterdir()) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    loaded = checkpoint.load(path)
    assert loaded.state["step"] == 7 and loaded.state["cursor"] == 70 and loaded.state["format"] == 1
    assert loaded.state["versions"].keys() == {"loam", "python", "torch", "numpy"}
    assert all(torch.equal(loaded.model[name], TENSORS[name]) for name in TENSORS)
    assert all(torch.equal(loaded.optimizer[name], MOMENTS[name]) for name in MOMENTS)


def test_files_are_those_of_the_safetensors_library(tmp_path):
    tensors = {"b.weight": np.arange(7, dtype=np.float32), "a": np.ones((2, 3), np.float32),
               "scalar": np.asarray(np.float32(3)), "empty": np.zeros((0, 4), np.float32),
               "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    facts = checkpoint.write_tensors(tmp_path / "ours", tensors)
    save_file({name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()},
              tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert facts == checkpoint._file_facts(tmp_path / "theirs")


def test_all_kinds_of_numbers_come_back(tmp_path):
    arrays = {kind: np.arange(5).astype(kind) for kind in ("float64", "float32", "float16", "int64", "int32", "uint8")}
    arrays["bool"] = np.arange(5) % 2 == 0
    checkpoint.write_tensors(tmp_path / "file", arrays)
    loaded = load_file(tmp_path / "file")
    assert loaded.keys() == arrays.keys()
    assert all(loaded[name].dtype == name and np.array_equal(loaded[name], arrays[name]) for name in arrays)


def test_a_saved_step_is_left_alone(tmp_path):
    path = save(tmp_path, 1)
    before = (path / "state.json").stat().st_mtime_ns
    assert save(tmp_path, 1) == path and (path / "state.json").stat().st_mtime_ns == before


def test_changed_or_missing_files_are_named(tmp_path):
    path = save(tmp_path, 1)
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="model.safetensors: size or SHA-256"):
        checkpoint.load(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="model.safetensors: cannot read"):
        checkpoint.load(path)
    (path / "state.json").write_text(json.dumps({"format": 99, "step": 1}))
    with pytest.raises(UserError, match="format must be 1 .* got 99"):
        checkpoint.load(path)
    (path / "state.json").write_text("{")
    with pytest.raises(UserError, match="broken JSON"):
        checkpoint.load(path)


@pytest.mark.parametrize("given, words", [
    ({"a": TENSORS["a"].double(), "b": TENSORS["b"]}, "a must be float32 of shape .2, 3., got float64 of shape .2, 3."),
    ({"a": TENSORS["a"], "b": torch.ones(5)}, "b must be float32 of shape .4., got float32 of shape .5."),
    ({"a": TENSORS["a"]}, "missing 'b'"), ({**TENSORS, "c": torch.ones(1)}, "unexpected 'c'"),
])
def test_what_does_not_fit_is_refused_before_anything_is_copied(given, words):
    target = {name: torch.full_like(tensor, 9.0) for name, tensor in TENSORS.items()}
    with pytest.raises(UserError, match=words):
        checkpoint.restore(target, given, "file")
    assert all((tensor == 9.0).all() for tensor in target.values())


def test_a_file_that_is_no_safetensors_is_named(tmp_path):
    path = save(tmp_path, 1)
    (path / "model.safetensors").write_bytes(b"nonsense")
    state = json.loads((path / "state.json").read_text())
    state["files"]["model.safetensors"] = checkpoint._file_facts(path / "model.safetensors")
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match="not a safetensors file"):
        checkpoint.load(path)


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from train import checkpoint
from train.command import run_command
run = Path(sys.argv[1])
small = {"a": torch.ones(10)}
checkpoint.write(run, 1, small, small, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
run_command(lambda: checkpoint.write(run, 2, {"a": torch.ones(100_000)}, small, {}))
"""

ENDLESS = """
import sys, torch
from pathlib import Path
from train.saving import Saver
from train.sections import CheckpointConfig
saver = Saver(Path(sys.argv[1]), CheckpointConfig(keep=2))
step = 0
while True:
    step += 1
    tensors = {"a": torch.full((200_000,), float(step))}
    saver.save(step, tensors, tensors, {}, score=-float(step % 7))
"""


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: cannot save")
    assert "File too large" in done.stderr and "step-000001" in done.stderr
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    assert checkpoint.load(latest_checkpoint(tmp_path)).model["a"].sum() == 10


def test_kill_9_at_any_moment_leaves_a_good_checkpoint(tmp_path):
    rng = np.random.default_rng(0)
    process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not checkpoints(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    # Frozen at a random moment the process leaves exactly the files that a kill would.
    for _ in range(20):
        time.sleep(rng.uniform(0.0, 0.01))
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        loaded = checkpoint.load(latest_checkpoint(tmp_path))
        assert (loaded.model["a"] == float(loaded.state["step"])).all()
        os.kill(process.pid, signal.SIGCONT)
    process.kill()
    process.wait()
    checkpoint.remove_leftovers(tmp_path)
    left = list((tmp_path / "checkpoints").iterdir())
    assert left and all(path.name.startswith("step-") for path in left)


def test_what_a_killed_process_left_is_removed(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "samples").mkdir()
    for folder in ("checkpoints/.partial-step-000002-9", "checkpoints/.partial-step-000001-old-9",
                   "non-finite/.partial-step-000003-9"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "model.safetensors").write_bytes(b"some")
    for file in (".config.9.tmp.toml", ".loss.9.tmp.png", "samples/.step-000001.9.tmp.txt"):
        (tmp_path / file).write_bytes(b"some")
    checkpoint.remove_leftovers(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {f"checkpoints/step-000001/{name}" for name in ("model.safetensors", "optimizer.safetensors",
                                                                   "state.json")}


def test_nothing_half_written_after_an_error_in_between(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "fsync_path", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


def test_optimizer_state_may_be_left_out(tmp_path):
    path = save(tmp_path, 1)
    save_file({"x": np.ones(1)}, path / "optimizer.safetensors")
    assert checkpoint.load(path, with_optimizer=False).optimizer is None
