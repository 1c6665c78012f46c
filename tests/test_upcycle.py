"""Runs with experts made of trained ones: the same function at first, and run folders that other commands take."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from models_samples import RUN_CONFIG, written_run

from models import upcycle
from models.config import ModelConfig
from models.decoder import Decoder
from models.experts_config import ExpertsConfig
from models.generate import generate_ids
from models.run_folder import load_run
from models.sampling import Sampling
from train import checkpoint, pretrain
from train.config import Config
from train.metrics import read_metrics

DENSE = RUN_CONFIG.with_(n_layers=3, residual_init="scaled")
MOE = DENSE.with_(feed_forward="moe", experts=ExpertsConfig(n=3, top_k=1, width=8))


def batch(config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    ids, targets = np.random.default_rng(0).integers(0, config.vocab_size, (2, 3, config.max_seq_len))
    return torch.from_numpy(ids), torch.from_numpy(targets)


def loss_of(model: Decoder) -> float:
    return model.eval().loss(*batch(model.config)).item()


def made(*arguments: object) -> int:
    return upcycle.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("dtype, difference", [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("changes", [
    {}, {"score": "sigmoid", "bias_rate": 0.1, "temperature": 0.5}, {"n": 5, "top_k": 4, "first_dense": 1},
    {"n": 2, "top_k": 1, "every": 2}])
def test_the_new_model_is_the_dense_one(tmp_path, dtype, difference, changes):
    dense = load_run(written_run(tmp_path / "dense", DENSE.with_(dtype=dtype)), device="cpu")
    model = upcycle.upcycled(dense, ExpertsConfig(**changes))
    assert model.config.n_parameters() > dense.config.n_parameters()
    assert loss_of(model) == pytest.approx(loss_of(dense.model), abs=difference)
    routers = [p.numpy() for name, p in model.named_parameters() if ".routers." in name]
    assert len(routers) == sum(model.config.experts.here(layer) for layer in range(3))
    assert all(0.005 < router.std() < 0.05 for router in routers)


def test_the_seed_is_that_of_the_router(tmp_path):
    dense = load_run(written_run(tmp_path / "dense", DENSE), device="cpu")
    first, again, other = (upcycle.upcycled(dense, ExpertsConfig(), seed).state_dict() for seed in (1, 1, 2))
    differing = {name for name in first if not torch.equal(first[name], other[name])}
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert differing == {f"layers.{layer}.feed_forward.routers.0.weight" for layer in range(3)}


def with_loads(run, *rows: dict):
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "exp')
    return load_run(run, device="cpu")


def test_added_experts_are_copies_of_the_most_used(tmp_path):
    run = with_loads(written_run(tmp_path / "moe", MOE),
                     {"step": 6, "experts": {"load": [[9, 0, 0]] * 3}}, {"step": 7, "loss": 1.0},
                     {"step": 7, "experts": {"load": [[1, 5, 2], [3, 1, 2], [2, 2, 2]]}},
                     {"step": 8, "experts": {"load": [[9, 0, 0]] * 3}})
    model, old = upcycle.grown(run, 4), run.model.state_dict()
    assert model.config.experts == dataclasses.replace(MOE.experts, n=7)
    for layer, sources in enumerate([[1, 2, 0, 1], [0, 2, 1, 0], [0, 1, 2, 0]]):
        for name in ("gate_up", "down", "routers.0.weight"):
            before, after = (state[f"layers.{layer}.feed_forward.{name}"] for state in (old, model.state_dict()))
            assert torch.equal(after[:3], before)
            distance = (after[3:] - before[sources]).norm() / before[sources].norm()
            assert 0.002 < distance < 0.03 if "routers" in name else distance == 0.0


@pytest.mark.parametrize("changes", [{}, {"score": "sigmoid", "normalised": False, "bias_rate": 0.1},
                                     {"chain": 2, "shared": 1}])
def test_with_one_expert_for_a_token_the_grown_model_is_the_old_one(tmp_path, changes):
    config = MOE.with_(experts=dataclasses.replace(MOE.experts, **changes), dtype="float64")
    run = load_run(written_run(tmp_path / "moe", config), device="cpu")
    noise, upcycle.NOISE = upcycle.NOISE, 1e-9
    try:
        model = upcycle.grown(run, 3)
    finally:
        upcycle.NOISE = noise
    assert loss_of(model) == pytest.approx(loss_of(run.model), abs=1e-7)
    assert loss_of(upcycle.grown(run, 3)) == pytest.approx(loss_of(run.model), abs=0.02)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short dense run, and the flags that made it."""
    folder = tmp_path_factory.mktemp("upcycle")
    (folder / "a.txt").write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(600)))
    settings = ["n_layers=2", "d_model=16", "n_heads=2", "d_ff=24", "max_seq_len=16"]
    flags = ["--data", str(folder / "a.txt"), "--tokenizer", "bytes", "--seq-len", "16", "--batch-tokens", "128",
             "--set", f"data.cache_dir={folder / 'cache'}", *(f"--set=model.{text}" for text in settings),
             "--set=run.log_every=2", "--set=run.sample_every=-1", "--set=run.sample_tokens=3", "--set=optim.ema=0.5"]
    assert pretrain.main([*flags, "--out", str(folder / "dense"), "--steps", "6"]) == 0
    return folder / "dense", flags


def test_a_new_run_is_trained_grown_and_read(trained, tmp_path, capsys):
    dense, flags = trained
    out, more = tmp_path / "moe", tmp_path / "moe-moe"
    assert made(dense, "--out", out, "--experts", 4, "--top-k", 2, "--set", "model.experts.bias_rate=0.01") == 0
    assert "4 experts, 2 for a token, in 2 of 2 layers" in capsys.readouterr().out
    losses = [loss_of(load_run(run, device="cpu").model) for run in (out, dense)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert Config.load(out / "config.toml").model.experts == ExpertsConfig(n=4, bias_rate=0.01)
    assert len(list(generate_ids(load_run(out).model, [1, 2], 5, Sampling(temperature=0.0)))) == 5
    assert pretrain.main(["--out", str(out), "--resume"]) == 0
    rows = read_metrics(out / "metrics.jsonl")
    assert rows[0]["step"] == 1 and rows[-1]["step"] == 6 and len(rows[0]["experts"]["load"]) == 2
    assert rows[0]["loss"] < read_metrics(dense / "metrics.jsonl")[0]["loss"]
    report = (out / "report.html").read_text(encoding="utf-8")
    assert f"First weights: upcycled, from step 6 of {dense}." in report
    assert f"python -m models.upcycle {dense} --out {out} --experts 4" in report
    assert made(out, "--add", 2) == 0
    assert "6 experts, 2 for a token" in capsys.readouterr().out
    assert load_run(more).config.experts == ExpertsConfig(n=6, bias_rate=0.01)
    assert pretrain.main([*flags, "--init-from", str(more), "--out", str(tmp_path / "next"), "--steps", "2"]) == 0
    assert checkpoint.load(tmp_path / "next" / "checkpoints" / "step-000002").state["step"] == 2


@pytest.mark.parametrize("arguments, line", [
    (["--experts", 2, "--top-k", 3], "model.experts.top_k must be at most model.experts.n (2): got 3"),
    (["--experts", 0], "model.experts.n must be at least 1: got 0"),
    (["--add", 1], "model.feed_forward must be moe to get more experts: got 'swiglu'"),
    (["--add", 0], "--add must be at least 1: got 0"),
    (["--add", 1, "--experts", 2], "--add changes how many experts there are and nothing else"),
    (["--seed", -1], "--seed must be at least 0: got -1"),
    (["--checkpoint", 3], "no checkpoint of step 3"),
    (["--set", "model.d_ff=3"], "--set takes model.experts.key=value here"),
    (["--set", "model.experts.n=3"], "--set takes model.experts.key=value here"),
    (["--set", "model.experts.every=two"], "model.experts.every must be int: got 'two'"),
    (["--set", "model.experts.sampled=2"], "model.experts.sampled must be bool: got '2'"),
    (["--set", "model.experts.first_dense=3"], "must be at most model.n_layers (3): got 4"),
    (["--set", "model.experts.shared=1"], "model.experts.shared must be 0, or the new model would not begin as"),
    (["--set", "model.experts.normalised=false"], "model.experts.normalised must be true, or"),
])
def test_bad_input_is_one_line(tmp_path, capsys, arguments, line):
    run = written_run(tmp_path / "run", DENSE)
    assert made(run, "--out", tmp_path / "new", *arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and line in told and told.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_runs_that_cannot_be_upcycled_and_folders_that_are_there_are_refused(tmp_path, capsys):
    moe, relu = (written_run(tmp_path / name, config) for name, config in
                 (("moe", MOE), ("relu", DENSE.with_(feed_forward="relu"))))
    for run, out, line in ((moe, "new", "must be swiglu to be copied into experts: got 'moe'; --add N"),
                           (relu, "new", "must be swiglu to be copied into experts: got 'relu'"),
                           (tmp_path / "none", "new", "is not a run folder"),
                           (moe, "relu", "--out must name a folder that is not there yet")):
        assert made(run, "--out", tmp_path / out) == 2
        assert line in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch, capsys):
    run = written_run(tmp_path / "run", DENSE)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(upcycle, "save_file", full)
    assert made(run, "--out", tmp_path / "new") == 2
    assert "cannot write" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
