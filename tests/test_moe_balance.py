"""The comparison of ways to balance experts, on a tiny model."""

import json
import math
from argparse import Namespace

import pytest

from bench import moe_balance
from bench.turns import configuration
from models.experts_config import ExpertsConfig
from train.errors import UserError

TINY = ["model.n_layers=1", "model.d_model=16", "model.n_heads=2", "model.experts.width=8", "model.max_seq_len=16",
        "model.experts.n=4", "data.seq_len=16", "data.batch_tokens=128", "data.micro_tokens=64",
        "tokenizer.vocab_size=0", "tokenizer.path=bytes"]


@pytest.fixture
def flags(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.record.RESULTS", tmp_path / "results")
    for name, numbers in (("train", range(2000)), ("valid", range(2000, 2100))):
        (tmp_path / f"{name}.txt").write_text("".join(f"{n} is not {n * n}.\n" for n in numbers))
    return ["--data", str(tmp_path / "train.txt"), "--val-data", str(tmp_path / "valid.txt"), "--steps", "33",
            *(f"--set={setting}" for setting in [*TINY, f"data.cache_dir={tmp_path / 'cache'}"])]


def test_ways_are_tabled_and_written(flags, tmp_path, capsys):
    names = ["none", "loss-free bias"]
    assert moe_balance.main([*flags, "--bias-rate", "0.02", "--only", *names, "--write"]) == 0
    out = capsys.readouterr()
    found = json.loads(out.out)
    assert list(found["runs"]) == names and found["bias_rate"] == 0.02
    for name, run in found["runs"].items():
        assert [step for step, _ in run["curve"]] == [10, 13, 33]
        assert 0.0 <= run["max_vio"] <= run["max_vio_of_a_step"] < 3.0 and run["curve"][-1][1] == pytest.approx(
            run["max_vio"], abs=1e-4)
        assert 0.0 < run["entropy"] <= math.log(4) and 0 <= run["dead"] < 4 and 1.0 < run["bits_per_byte"] < 20.0
        assert f"| {name} | {run['max_vio']:.3f} |" in out.err
    assert found["runs"]["loss-free bias"]["max_vio"] < found["runs"]["none"]["max_vio"]
    assert list(found["goals"].values()) == [found["runs"]["loss-free bias"]["max_vio"] <= 0.3]
    assert {path.suffix for path in (tmp_path / "results").iterdir()} == {".json", ".png"}


@pytest.mark.parametrize("name, experts", [
    ("none", {"balance": "none"}), ("micro-batch loss", {"balance": "micro"}),
    ("sequence loss", {"balance": "sequence"}), ("global loss", {}),
    ("global loss, running count", {"count": "running"}),
    ("z-loss alone", {"balance": "none", "z_loss": 0.001}), ("loss-free bias", {"balance": "none", "bias_rate": 0.5})])
def test_ways_differ_in_their_balance_alone(name, experts):
    arguments = Namespace(data="a", val_data="b", preset="moe-demo", settings=moe_balance.MODEL, minutes=1.0)
    config = configuration(arguments, moe_balance.sides(300, 0.5)[name], 0)
    assert config.model.experts == ExpertsConfig(n=8, top_k=2, width=96, **experts)
    assert config.data.batch_tokens == 4 * config.data.micro_tokens


def test_bad_flags_are_told(flags):
    with pytest.raises(UserError, match="--only takes some of none; .*: got nothing"):
        moe_balance.main([*flags, "--only", "nothing"])
    with pytest.raises(UserError, match="--steps must be at least 20: got 19"):
        moe_balance.main([*flags, "--steps", "19"])
