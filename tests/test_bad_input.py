"""Every mistake of a user's: one clear line, exit code 2, nothing lost."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.run_folder import latest_checkpoint
from train import checkpoint, evaluate, pretrain
from train.command import run_command

ROOT = Path(__file__).parents[1]
TINY = ["--tokenizer", "bytes", "--seq-len", "16", "--batch-tokens", "64", "--steps", "4", "--set", "model.n_layers=1",
        "--set", "model.d_model=16", "--set", "model.n_heads=2", "--set", "model.d_ff=32", "--set",
        "run.sample_tokens=5", "--set", "checkpoint.every=2", "--set", "run.eval_every=-1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    (folder / "a.txt").write_text("All work and no play makes a dull model.\n" * 50)
    return folder


@pytest.fixture(scope="module")
def trained(home):
    out = home / "trained"
    assert pretrain.main(["--data", str(home / "a.txt"), "--out", str(out), *TINY, *cached(home)]) == 0
    return out


@pytest.fixture
def run(trained, tmp_path):
    """A run of its own, copied from the trained one."""
    import shutil

    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def refused(capfd):
    """Runs a command that must fail with one line and code 2; returns the line."""

    def check(argv, main=pretrain.main, code=2):
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            run_command(lambda: main([str(item) for item in argv]))
        captured = capfd.readouterr()
        assert stop.value.code == code, captured.err
        assert captured.err.count("\n") == 1 and captured.err.startswith("error: "), captured.err
        return captured.err

    return check


def cached(home):
    return ["--set", f"data.cache_dir={home / 'cache'}"]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name, content, words", [
    ("missing.txt", None, ["missing.txt", "no such file"]), ("empty.txt", b"", ["empty corpus", "empty.txt"]),
    ("broken.jsonl", b'{"text": "a"}\n{"text": \n', ["broken.jsonl", "line 2", "broken JSON"]),
    ("binary.txt", b"\x89PNG\0\0", ["binary.txt", "not a text file"]),
    ("latin.txt", b"caf\xe9 noir", ["latin.txt", "UTF-8"]),
    ("field.jsonl", b'{"body": "a"}\n', ["field.jsonl", "'text'", "'body'"]),
    ("strange.xyz", b"a", ["strange.xyz", ".txt"]),
])
def test_data(home, tmp_path, refused, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    line = refused(["--data", tmp_path / name, "--out", tmp_path / "run", *TINY, *cached(home)])
    assert all(word in line for word in words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("argv, words", [
    (["--set", "optim.lrr=1"], ["'optim.lrr'", "optim.lr"]),
    (["--set", "optim.lr=quick"], ["optim.lr must be float", "'quick'"]),
    (["--set", "run.seed"], ["section.key=value"]), (["--steps", "0"], ["--steps must be above 0", "0"]),
    (["--steps", "many"], ["--steps", "'many'"]), (["--preset", "huge"], ["demo, shakespeare, base-0.18b", "'huge'"]),
    (["--seq-len", "10", "--batch-tokens", "64"], ["multiple of data.seq_len (10)", "64"]), (["--wings"], ["--wings"]),
    (["--steps", "1", "--minutes", "1"], ["--minutes", "not allowed with", "--steps"]),
    (["--resume", "--out", "nowhere"], ["nowhere", "holds no run"]),
    (["--init-from", "nowhere"], ["nowhere", "missing"]),
    (["--set", "model.d_model=17"], ["d_model", "17"]), (["--lr", "-1"], ["--lr must be above 0", "-1"]),
])
def test_flags(home, tmp_path, refused, argv, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(["--data", home / "a.txt", *argv])
    assert all(word in line for word in words)
    assert not list(tmp_path.iterdir())


def test_an_out_that_holds_a_run(home, trained, refused):
    before = contents(trained)
    line = refused(["--data", home / "a.txt", "--out", trained, *TINY, *cached(home)])
    assert "holds a run already" in line and "--resume" in line
    assert contents(trained) == before


def test_two_processes_one_run(run, refused):
    script = ("import sys, time; from pathlib import Path; from train.folder import RunFolder; "
              "RunFolder(Path(sys.argv[1])).hold(); print('held', flush=True); time.sleep(60)")
    holder = subprocess.Popen([sys.executable, "-c", script, str(run)], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        line = refused(["--out", run, "--resume", "--steps", "8"])
        assert f"in use by process {holder.pid}" in line
    finally:
        holder.kill()
        holder.wait()
    assert pretrain.main(["--out", str(run), "--resume", "--steps", "5"]) == 0


@pytest.mark.parametrize("argv, words", [
    (["--lr", "0.5"], ["optim.lr", "0.003", "0.5"]), (["--seed", "3"], ["run.seed"]),
    (["--seq-len", "8"], ["data.seq_len"]),
    (["--preset", "shakespeare"], ["run.preset", "'demo'"]), (["--set", "data.window=1"], ["data.window"]),
])
def test_changes_that_make_another_run(run, refused, argv, words):
    line = refused(["--out", run, "--resume", *argv])
    assert all(word in line for word in ["--resume cannot change", *words])


def test_another_vocabulary_on_resume(run, refused):
    state_file = latest_checkpoint(run) / "state.json"
    state = json.loads(state_file.read_text())
    state_file.write_text(json.dumps({**state, "tokenizer": "0" * 32}))
    line = refused(["--out", run, "--resume", "--steps", "8"])
    assert "vocabulary" in line and "000000000000" in line


def test_a_broken_vocabulary_file(run, refused):
    content = json.loads((run / "vocabulary.json").read_text())
    content["special"]["<|end|>"] = 300
    (run / "vocabulary.json").write_text(json.dumps(content))
    assert "special tokens" in refused(["--out", run, "--resume", "--steps", "8"])


def test_changed_data_on_resume(home, run, refused, tmp_path):
    config = run / "config.toml"
    (tmp_path / "b.txt").write_text("Other words.\n" * 50)
    config.write_text(config.read_text().replace(str(home / "a.txt"), str(tmp_path / "b.txt")))
    assert "training data has changed" in refused(["--out", run, "--resume", "--steps", "8"])


def test_another_dtype_in_a_checkpoint(run, refused):
    path = latest_checkpoint(run)
    weights = load_file(path / "model.safetensors")
    save_file({name: value.astype(np.float64) for name, value in weights.items()}, path / "model.safetensors")
    state = json.loads((path / "state.json").read_text())
    state["files"]["model.safetensors"] = checkpoint._file_facts(path / "model.safetensors")
    (path / "state.json").write_text(json.dumps(state))
    line = refused(["--out", run, "--resume", "--steps", "8"])
    assert "must be float32" in line and "got float64" in line and "model.safetensors" in line


def test_weights_that_do_not_fit(home, trained, tmp_path, refused):
    line = refused(["--data", home / "a.txt", "--out", tmp_path / "new", "--init-from", trained, *TINY, "--set",
                    "model.d_model=32", *cached(home)])
    assert "--init-from" in line and "got float32 of shape" in line
    assert not (tmp_path / "new").exists()


DISK_FULL = """
import resource, sys
from train import pretrain
from train.command import run_command
from train.loop import Loop
step = Loop.step
def limited(self, lr, *portion):
    if self.position.step == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    return step(self, lr, *portion)
Loop.step = limited
run_command(lambda: pretrain.main(sys.argv[1:]))
"""


def test_disk_full_while_saving(home, tmp_path):
    out = tmp_path / "run"
    more = ["--set", "run.eval_every=-1", "--set", "run.sample_every=-1", "--steps", "6",
            "--set", "checkpoint.asynchronous=false"]
    flags = ["--data", str(home / "a.txt"), "--out", str(out), *TINY, *more, *cached(home)]
    command = [sys.executable, "-c", DISK_FULL, *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: cannot save") and str(latest_checkpoint(out)) in done.stderr
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000002"]
    assert pretrain.main(["--out", str(out), "--resume"]) == 0


def test_evaluate(home, trained, tmp_path, refused):
    assert "no such file" in refused([trained, "--data", tmp_path / "none.txt"], evaluate.main)
    assert "not a run folder" in refused([tmp_path, "--data", home / "a.txt"], evaluate.main)


def test_a_command_of_its_own(tmp_path):
    command = [sys.executable, "-m", "train.pretrain", "--set", "optim.lrr=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: unknown setting 'optim.lrr'; did you mean optim.lr?\n"
