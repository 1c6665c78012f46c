"""Runs that take turns, and the benches made of them, on tiny models."""

import json
from argparse import Namespace

import pytest

from bench import ablation, moe_same_minutes, same_minutes
from bench.turns import Result, Run, Side, run_in_turns
from train.errors import UserError
from train.presets import PRESETS

TINY = ["model.n_layers=1", "model.d_model=16", "model.n_heads=2", "model.head_dim=0", "model.d_ff=16",
        "model.max_seq_len=16", "data.seq_len=16", "data.batch_tokens=64"]


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    monkeypatch.setenv("LOAM_CACHE", str(tmp_path / "cache"))
    for name, numbers in (("train", range(400)), ("valid", range(400, 430))):
        (tmp_path / f"{name}.txt").write_text("".join(f"{n} is not {n * n}.\n" for n in numbers))
    return Namespace(data=str(tmp_path / "train.txt"), val_data=str(tmp_path / "valid.txt"), preset="demo",
                     settings=["tokenizer.path=bytes", *TINY], minutes=0.01, threads=1, compile_peer=False)


@pytest.mark.parametrize("side", [Side(minutes=0.002, peer=True), Side(("optim.optimizer=muon",), steps=3)],
                         ids=["peer", "muon"])
def test_a_run_goes_as_far_as_it_is_told(arguments, side):
    run = Run(arguments, "side", side, 0)
    assert not run.turn(0.4) and 0.4 <= run.share < 1.0
    assert run.turn(1.0)
    result = run.result()
    assert result.steps == (side.steps or result.steps) and result.tokens == 64 * result.steps
    assert 1.0 < result.bits_per_byte < 20.0


@pytest.mark.slow
def test_sides_see_the_same_text_and_end_their_time_or_their_steps(arguments):
    sides = {"peer": Side(minutes=0.005, peer=True), "muon": Side(("optim.optimizer=muon",), steps=3)}
    found = run_in_turns(arguments, 0, sides)
    assert found["peer"].seconds >= 0.3 and found["peer"].steps >= 1
    assert (found["muon"].steps, found["muon"].tokens) == (3, 3 * 64)
    assert all(1.0 < result.bits_per_byte < 20.0 for result in found.values())


def test_a_side_that_breaks_is_named(arguments):
    with pytest.raises(UserError, match="broken, seed 0: the process ended with code"):
        run_in_turns(arguments, 0, {"broken": Side(("model.n_layers=0",), steps=1)})


def made_up(monkeypatch, module, losses):
    """Runs whose results are told beforehand."""
    def run(_, seed, sides):
        return {name: Result(name, seed, 60.0 * side.minutes, side.steps or 100, 0, losses[name]) for name, side in
                sides.items()}

    monkeypatch.setattr(module, "run_in_turns", run)


def test_the_contest_says_how_far_each_side_is_ahead(monkeypatch):
    losses = {"peer": 2.0, "adamw": 1.9, "muon": 1.7, "long rows": 1.8, "curriculum": 1.75}
    steps = []

    def run(arguments, seed, sides):
        steps.extend(side.steps for side in sides.values() if side.steps)
        found = {name: Result(name, seed, 1.0, 100, 0, losses.get(name, 1.85)) for name in sides}
        assert ("curriculum" not in sides) or sides["curriculum"].minutes == 8.0
        return found

    monkeypatch.setattr(same_minutes, "run_in_turns", run)
    found = same_minutes.contest(Namespace(minutes=10.0, threads=2, compile_peer=False, first_seed=0, seeds=2))
    assert steps == [70, 70] * 2
    assert (found["bits_under_peer"], found["bits_under_adamw_in_fewer_steps"]) == (0.3, 0.05)
    assert found["bits_under_peer_in_fewer_steps"] == 0.15
    assert found["bits_under_long_rows_in_less_time"] == 0.05


def test_experts_and_a_dense_model_of_the_same_active_size(monkeypatch, tmp_path, capsys):
    """Each side is the preset of its name."""
    from bench.turns import configuration

    arguments = Namespace(data="a", val_data="b", preset="demo", settings=[], minutes=1.0)
    for name, side in moe_same_minutes.sides(1.0).items():
        assert configuration(arguments, side, 0).model == PRESETS[name].model
    dense, experts = (PRESETS[name].model for name in ("demo", "moe-demo"))
    routers = experts.n_layers * experts.experts.n * experts.d_model
    assert experts.n_parameters(active=True) - dense.n_parameters() == routers

    def run(_, seed, sides, looks):
        return {name: Result(name, seed, 60.0, 100, 0, 2.0, [(30.0, 50, 2.5)] * looks) for name in sides}

    monkeypatch.setattr(moe_same_minutes, "run_in_turns", run)
    monkeypatch.setattr("bench.record.RESULTS", tmp_path)
    assert moe_same_minutes.main(["--data", "a", "--val-data", "b", "--minutes", "1", "--write"]) == 0
    assert "| moe-demo | 2.0000 | 100 | 0 |" in capsys.readouterr().err
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".png"}


def test_the_ablation_tables_the_runs_and_writes_them_whole(monkeypatch, tmp_path, capsys):
    names = list(ablation.sides(1.0))
    losses = {name: 2.0 + 0.1 * place for place, name in enumerate(names)}
    made_up(monkeypatch, ablation, losses)
    monkeypatch.setattr("bench.record.RESULTS", tmp_path)
    flags = ["--data", "a", "--val-data", "b", "--minutes", "1"]
    assert ablation.main([*flags, "--write"]) == 0
    out = capsys.readouterr()
    assert "| base | 2.0000 | +0.0000 | 100 |" in out.err and "| base, group 2 | 2.0000 | +0.0000 | 100 |" in out.err
    told = json.loads(out.out)
    assert set(told["runs"]) == {*names, "base, group 2"}
    assert [group[0] for group in told["groups"]] == ["base"] * 2
    assert sum(map(len, told["groups"])) == len(names) + 1 and max(map(len, told["groups"])) <= ablation.AT_ONCE
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".png"}
    with pytest.raises(UserError, match="--only takes some of .*: got nothing"):
        ablation.main([*flags, "--only", "nothing"])


@pytest.mark.parametrize("name", list(ablation.sides(1.0)))
def test_every_side_of_the_ablation_is_a_model_of_the_same_size(name):
    from bench.turns import configuration

    arguments = Namespace(data="a", val_data="b", preset="demo", settings=[], minutes=1.0)
    config = configuration(arguments, ablation.sides(1.0)[name], 0)
    assert config.model.n_parameters() == pytest.approx(2_758_848, rel=0.02)
