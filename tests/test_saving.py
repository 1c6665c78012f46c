"""Saving while the run goes on: the same files as at once, errors that come up, and which checkpoints stay."""

import errno
import json
import os
import subprocess
import sys
import threading

import pytest
import torch

from models.run_folder import checkpoints
from train import checkpoint, checkpoints as command, saving
from train.checkpoints import best, kept, pin, unpin
from train.errors import UserError
from train.saving import Saver
from train.sections import CheckpointConfig
from train.spikes import FEWEST, WINDOW, SpikeDetector


def tensors(value):
    return {"a.weight": torch.full((5, 3), float(value)), "b": torch.arange(4.0) * value}


def save_all(saver, steps, scores=None):
    for step in steps:
        moments = {f"exp_avg.{name}": tensor * 2 for name, tensor in tensors(step).items()}
        saver.save(step, tensors(step), moments, {"cursor": 10 * step, "spikes": [1.5, step]}, (scores or {}).get(step))
    saver.finish()


def contents(run):
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


@pytest.fixture
def held(monkeypatch):
    """Writing waits until the event that this is gets set."""
    event, write = threading.Event(), saving.write

    def waiting(*arguments):
        assert event.wait(60)
        return write(*arguments)

    monkeypatch.setattr(saving, "write", waiting)
    yield event
    event.set()


def test_asynchronous_saves_write_the_same_files(tmp_path):
    for name in ("at-once", "thread"):
        save_all(Saver(tmp_path / name, CheckpointConfig(keep=2, asynchronous=name == "thread")), range(1, 6), {2: 0.5})
    assert list(checkpoints(tmp_path / "thread")) == [2, 4, 5]
    assert contents(tmp_path / "thread") == contents(tmp_path / "at-once")


def test_what_changes_after_the_call_is_not_saved(tmp_path, held):
    saver = Saver(tmp_path, CheckpointConfig())
    model, moments, state = tensors(1), tensors(2), {"cursor": 3, "spikes": [1.0]}
    path = saver.save(7, model, moments, state)
    assert path == tmp_path / "checkpoints" / "step-000007" and not path.exists()
    model["b"].fill_(-1.0)
    moments["a.weight"].fill_(-1.0)
    state["spikes"].append(9.0)
    held.set()
    saver.finish()
    loaded = checkpoint.load(path)
    assert torch.equal(loaded.model["b"], tensors(1)["b"]) and torch.equal(loaded.optimizer["b"], tensors(2)["b"])
    assert loaded.state["spikes"] == [1.0] and loaded.state["score"] is None


def test_buffers_are_used_again_and_follow_a_change(tmp_path):
    saver = Saver(tmp_path, CheckpointConfig())
    saver.reserve(tensors(0), {f"exp_avg.{name}": tensor for name, tensor in tensors(0).items()})
    before = {key: buffer.data_ptr() for key, buffer in saver._buffers.items()}
    save_all(saver, [1, 2])
    assert {key: buffer.data_ptr() for key, buffer in saver._buffers.items()} == before
    saver.save(3, {"b": torch.ones(9, dtype=torch.float64)}, {"new": torch.ones(2)}, {})
    saver.finish()
    loaded = checkpoint.load(checkpoint.checkpoint_path(tmp_path, 3))
    assert loaded.model.keys() == {"b"} and loaded.model["b"].dtype == torch.float64
    assert loaded.optimizer.keys() == {"new"}


def test_a_save_waits_for_the_one_before(tmp_path, held):
    saver = Saver(tmp_path, CheckpointConfig())
    saver.save(1, tensors(1), {}, {})
    release = threading.Timer(0.1, held.set)
    release.start()
    saver.save(2, tensors(2), {}, {})
    assert 1 in checkpoints(tmp_path)
    saver.finish()
    release.join()
    assert torch.equal(checkpoint.load(checkpoint.checkpoint_path(tmp_path, 1)).model["b"], tensors(1)["b"])


def test_who_waits_ends_the_threads_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "REST", 1e7)
    saver = Saver(tmp_path, CheckpointConfig())
    saver.save(1, tensors(1), tensors(2), {})
    assert not saver._writing.done()
    saver.save(2, tensors(2), tensors(3), {})
    assert list(checkpoints(tmp_path)) == [1]
    saver.finish()
    assert list(checkpoints(tmp_path)) == [1, 2]


def test_what_a_checkpoint_relies_on_is_flushed_first(tmp_path):
    seen = []
    saver = Saver(tmp_path, CheckpointConfig())
    saver.save(1, tensors(1), {}, {}, first=lambda: seen.append((dict(checkpoints(tmp_path)), threading.get_ident())))
    saver.finish()
    assert seen[0][0] == {} and seen[0][1] != threading.get_ident() and list(checkpoints(tmp_path)) == [1]


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux only")
def test_only_the_thread_has_the_least_priority(tmp_path):
    before, seen = os.getpriority(os.PRIO_PROCESS, 0), []
    saver = Saver(tmp_path, CheckpointConfig())
    saver.save(1, tensors(1), {}, {}, first=lambda: seen.append(os.getpriority(os.PRIO_PROCESS,
                                                                              threading.get_native_id())))
    saver.finish()
    assert seen == [saving.LEAST_PRIORITY] and os.getpriority(os.PRIO_PROCESS, 0) == before


@pytest.mark.parametrize("failing", ["fsync_path", "write_tensors"])
@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("raised_by", ["check", "finish", "save"])
def test_a_full_disk_comes_up_and_leaves_the_older_checkpoint(tmp_path, monkeypatch, failing, asynchronous, raised_by):
    saver = Saver(tmp_path, CheckpointConfig(asynchronous=asynchronous))
    save_all(saver, [1])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, failing, full)
        with pytest.raises(UserError, match="cannot save .*step-000002: No space left on device; "
                                            "the last good checkpoint is .*step-000001"):
            saver.save(2, tensors(2), {}, {})
            while not saver._writing.done():
                pass
            getattr(saver, raised_by)(*((3, tensors(3), {}, {}) if raised_by == "save" else ()))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    save_all(saver, [4])
    assert list(checkpoints(tmp_path)) == [1, 4]


def test_the_process_waits_for_the_last_save(tmp_path):
    program = ("import sys, torch; from pathlib import Path; from train.saving import Saver; "
               "from train.sections import CheckpointConfig; "
               "Saver(Path(sys.argv[1]), CheckpointConfig()).save(1, {'a': torch.ones(1 << 20)}, {}, {})")
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    assert checkpoint.load(checkpoint.checkpoint_path(tmp_path, 1)).model["a"].sum() == 1 << 20


def test_the_last_the_best_and_the_pinned_stay(tmp_path):
    saver = Saver(tmp_path, CheckpointConfig(keep=2))
    save_all(saver, [1, 2, 3], {1: 3.0, 2: 1.0, 3: 2.0})
    pin(tmp_path, 3)
    save_all(saver, [4, 5, 6, 1_000_000], {4: 1.0, 6: 5.0})
    assert list(checkpoints(tmp_path)) == [2, 3, 6, 1_000_000]
    assert best(kept(tmp_path)).step == 2
    assert saver.best_score() == Saver(tmp_path, CheckpointConfig()).best_score() == 1.0
    unpin(tmp_path, 3)
    save_all(saver, [1_000_001], {1_000_001: 0.5})
    assert list(checkpoints(tmp_path)) == [1_000_000, 1_000_001]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_without_best_only_the_last_stay(tmp_path):
    saver = Saver(tmp_path, CheckpointConfig(keep=1, best=False))
    save_all(saver, [1, 2], {1: 0.1, 2: 0.2})
    assert list(checkpoints(tmp_path)) == [2] and Saver(tmp_path / "none", CheckpointConfig()).best_score() is None


def test_a_damaged_old_checkpoint_does_not_stop_a_run(tmp_path):
    saver = Saver(tmp_path, CheckpointConfig(keep=2))
    save_all(saver, [1, 2])
    (tmp_path / "checkpoints" / "step-000001" / "state.json").write_text("{")
    save_all(saver, [3])
    assert list(checkpoints(tmp_path)) == [2, 3]


def test_one_pinned_while_it_is_deleted_stays(tmp_path):
    save_all(Saver(tmp_path, CheckpointConfig()), [1])
    path = pin(tmp_path, 1)
    checkpoint.discard(path, unless=command.PINNED)
    assert torch.equal(checkpoint.load(path).model["b"], tensors(1)["b"])


def test_a_checkpoint_of_an_older_version_counts(tmp_path):
    checkpoint.write(tmp_path, 1, tensors(1), {}, {"cursor": 1})
    assert "score" not in json.loads((tmp_path / "checkpoints" / "step-000001" / "state.json").read_text())
    assert [(one.step, one.score, one.pinned) for one in kept(tmp_path)] == [(1, None, False)]


def test_the_command(tmp_path, capsys):
    save_all(Saver(tmp_path, CheckpointConfig()), [5, 10], {5: 2.5, 10: 3.0})
    (tmp_path / "config.toml").touch()
    assert command.main([str(tmp_path), "pin", "10"]) == 0
    assert command.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("step-000010 is pinned")
    rows = [line.split() for line in lines if "step" not in line and line.strip(" ─")]
    assert [row[:3] for row in rows] == [["5", "50", "2.5000"], ["10", "100", "3.0000"]]
    assert rows[0][-1] == "best" and rows[1][-1] == "pinned"
    assert command.main([str(tmp_path), "unpin", "10"]) == 0 and not kept(tmp_path)[1].pinned
    for argv, words in ((["pin", "7"], "no checkpoint of step 7: it has 5, 10"),
                        (["pin"], "pin takes a step: got None"), (["list", "5"], "list takes no step: got 5")):
        with pytest.raises(UserError, match=words):
            command.main([str(tmp_path), *argv])
    with pytest.raises(UserError, match="is not a run folder"):
        command.main([str(tmp_path / "none")])


def noisy(step):
    return 4.0 - 0.001 * step + 0.05 * ((step * 37) % 11 - 5) / 5


def test_a_spike_is_told_with_what_was_expected():
    detector = SpikeDetector()
    quiet = [detector.check(noisy(step)) for step in range(300)]
    assert quiet == [None] * 300
    expected = detector.check(noisy(300) + 1.0)
    assert expected == pytest.approx(3.73, abs=0.05)
    assert detector.check(noisy(301)) is None and detector.check(noisy(302) - 2.0) is None
    assert detector.check(float("nan")) is None and detector.check(float("inf")) is None
    assert detector.check(noisy(303)) is None


def test_the_first_losses_and_a_flat_curve_are_no_spikes():
    detector = SpikeDetector()
    assert [detector.check(loss) for loss in [1.0] * (FEWEST - 1) + [50.0]] == [None] * FEWEST
    flat = SpikeDetector()
    assert [flat.check(2.0 + 0.05 * (step == 30)) for step in range(60)] == [None] * 60


def test_a_loss_that_stays_high_is_the_new_normal():
    detector = SpikeDetector()
    for step in range(WINDOW):
        detector.check(noisy(step))
    told = [detector.check(noisy(step) + 2.0) is not None for step in range(2 * WINDOW)]
    assert told[0] and not any(told[WINDOW // 2 + 1:])


def test_the_detector_goes_on_from_its_state():
    losses = [noisy(step) + (step % 50 == 49) for step in range(200)]
    whole, half = SpikeDetector(), SpikeDetector()
    expected = [whole.check(loss) for loss in losses]
    assert any(value is not None for value in expected)
    first = [half.check(loss) for loss in losses[:90]]
    resumed = SpikeDetector()
    resumed.load_state(json.loads(json.dumps(half.state())))
    assert first + [resumed.check(loss) for loss in losses[90:]] == expected
    resumed.load_state(None)
    assert resumed.state() == []
