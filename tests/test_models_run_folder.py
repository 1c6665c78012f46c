"""Reading run folders, good and damaged."""

from __future__ import annotations

import os

import pytest
import torch
from models_samples import RUN_CONFIG, disturbed, written_run
from safetensors.torch import load_file, save_file

from engine import UserError
from models.run_folder import latest_checkpoint, load_run, run_folders


def test_a_run_comes_back_as_written(tmp_path):
    path = written_run(tmp_path / "run", steps=(7, 1_000_000, 30))
    run = load_run(path)
    assert (run.step, run.config, run.path) == (1_000_000, RUN_CONFIG, path)
    assert run.tokenizer.vocab_size == 264 and not run.model.training
    assert load_run(path, checkpoint=30).step == 30
    expected = disturbed(RUN_CONFIG, seed=1_000_000).state_dict()
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, expected[name])


def test_half_written_checkpoints_do_not_count(tmp_path):
    path = written_run(tmp_path / "run", steps=(7, 9))
    (path / "checkpoints" / "step-000009" / "state.json").unlink()
    (path / "checkpoints" / ".partial-step-000010").mkdir()
    assert latest_checkpoint(path).name == "step-000007"


def test_runs_are_listed_by_their_last_save(tmp_path):
    for name, time in (("b", 30), ("a", 20), ("c", 10)):
        run = written_run(tmp_path / name)
        os.utime(run / "checkpoints" / "step-000007" / "state.json", (time, time))
    written_run(tmp_path / "empty", steps=())
    (tmp_path / "other").mkdir()
    assert [run.name for run in run_folders(tmp_path)] == ["c", "a", "b"]
    assert run_folders(tmp_path / "nowhere") == []


def remove(name):
    return lambda run: (run / name).unlink()


def write(name, text):
    return lambda run: (run / name).write_text(text)


def change_weights(change):
    def apply(run):
        file = run / "checkpoints/step-000007/model.safetensors"
        weights = load_file(file)
        change(weights)
        save_file(weights, file)
    return apply


STATE, WEIGHTS = "checkpoints/step-000007/state.json", "checkpoints/step-000007/model.safetensors"
DAMAGES = {
    "no config": (remove("config.toml"), "is not a run folder: .*config.toml is missing"),
    "config not TOML": (write("config.toml", "a = ["), "config.toml: not TOML"),
    "config without model": (write("config.toml", "[run]\nseed = 1\n"), r"must have a \[model\] table, got run"),
    "unknown setting": (write("config.toml", "[model]\nlayers = 3\n"), "unknown model setting 'layers'"),
    "no tokenizer": (remove("vocabulary.json"), "vocabulary.json"),
    "small vocabulary": (write("config.toml", "[model]\nvocab_size = 100\n"), "tokenizer's 264 ids: got 100"),
    "no checkpoint": (remove(STATE), "has no checkpoint yet"),
    "state not JSON": (write(STATE, "{"), "state.json: broken JSON"),
    "another vocabulary": (write(STATE, '{"format": 1, "step": 7, "tokenizer": "00112233445566778899aabbccddeeff"}'),
                           "vocabulary.json: the vocabulary has changed: .* step-000007 has 001122334455"),
    "other format": (write(STATE, '{"format": 99, "step": 7}'), "format must be 1 with a step, got 99"),
    "no weights": (remove(WEIGHTS), "model.safetensors: cannot read"),
    "weights of another kind": (write(WEIGHTS, "weights"), "model.safetensors: not a safetensors file"),
    "a name is missing": (change_weights(lambda w: w.pop("norm.gain")),
                          r"model.safetensors: .*missing \['norm.gain'\]"),
    "another shape": (change_weights(lambda w: w.update({"norm.gain": torch.ones(3)})), r"norm.gain must be .*\(3,\)"),
    "another dtype": (change_weights(lambda w: w.update({"norm.gain": torch.ones(16, dtype=torch.float64)})),
                      "norm.gain must be torch.float32 .*got torch.float64"),
}


@pytest.mark.parametrize("damage, message", DAMAGES.values(), ids=DAMAGES.keys())
def test_damages_are_named_in_one_line(tmp_path, damage, message):
    run = written_run(tmp_path / "run")
    damage(run)
    with pytest.raises(UserError, match=message) as caught:
        load_run(run)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "missing"):
        with pytest.raises(UserError, match="is not a run folder"):
            load_run(path)


def test_a_step_that_was_not_saved(tmp_path):
    with pytest.raises(UserError, match="no checkpoint of step 8: it has 7"):
        load_run(written_run(tmp_path / "run"), checkpoint=8)
