"""Loggers: every row arrives, in TensorBoard's own reading of its files and in what W&B is handed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from train.config import Config
from train.errors import UserError
from train.loggers import numbers, open_loggers

ROOT = Path(__file__).parents[1]
ROWS = [
    {"step": 1, "loss": 5.5, "grad_norms": {"head": 0.25, "layers.0": 0.5}, "tokens": 4096},
    {"step": 2, "val_loss": 5.25, "val_bits": {"web": 1.5}},
    {"step": 2, "event": "set", "key": "lr", "value": 0.5},
    {"step": 3, "loss": 4.5},
]
needs_tensorboard = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")


def test_numbers_of_a_row_by_name():
    assert dict(numbers(ROWS[0])) == {"loss": 5.5, "grad_norms/head": 0.25, "grad_norms/layers.0": 0.5, "tokens": 4096}
    assert dict(numbers({"step": 1, "event": "spike", "reason": "x", "flag": True, "loss": 2})) == {"loss": 2}


def read_back(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return events


@needs_tensorboard
def test_tensorboard_reads_every_row(tmp_path):
    logger, = open_loggers(["tensorboard"], Config(), tmp_path)
    for row in ROWS:
        logger.log(row)
    logger.close()
    events = read_back(tmp_path)
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert scalars == {"loss": [(1, 5.5), (3, 4.5)], "tokens": [(1, 4096.0)], "grad_norms/head": [(1, 0.25)],
                       "grad_norms/layers.0": [(1, 0.5)], "val_loss": [(2, 5.25)], "val_bits/web": [(2, 1.5)]}
    text, = events.Tensors("event/set/text_summary")
    assert text.step == 2 and json.loads(text.tensor_proto.string_val[0]) == ROWS[2]
    settings, = events.Tensors("config/text_summary")
    assert b"seq_len = 256" in settings.tensor_proto.string_val[0]


@needs_tensorboard
def test_tensorboard_forgets_what_a_resumed_run_does_again(tmp_path):
    for after, steps in ((0, (1, 2, 3, 4)), (2, (3, 4, 5))):
        logger, = open_loggers(["tensorboard"], Config(), tmp_path, after)
        for step in steps:
            logger.log({"step": step, "loss": step + after / 4})
        logger.close()
    assert [(e.step, e.value) for e in read_back(tmp_path).Scalars("loss")] == [
        (1, 1.0), (2, 2.0), (3, 3.5), (4, 4.5), (5, 5.5)]


def test_wandb_is_handed_every_row(tmp_path, monkeypatch):
    calls = []
    run = SimpleNamespace(define_metric=lambda name, **options: calls.append(("metric", name, options)),
                          log=lambda row: calls.append(("log", row)), finish=lambda: calls.append(("finish",)))
    module = SimpleNamespace(init=lambda **options: calls.append(("init", options)) or run)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr("train.loggers.importlib.util.find_spec", lambda name: object())
    identities = []
    for _ in range(2):
        calls.clear()
        logger, = open_loggers(["wandb"], Config(), tmp_path)
        for row in ROWS:
            logger.log(row)
        logger.close()
        identities.append(calls[0][1].pop("id"))
    assert calls[0] == ("init", {"project": "loam", "name": tmp_path.name, "dir": str(tmp_path), "resume": "allow",
                                 "config": Config().flat()})
    assert ("metric", "*", {"step_metric": "step"}) in calls
    assert [call[1] for call in calls if call[0] == "log"] == [
        {"step": 1, "loss": 5.5, "grad_norms/head": 0.25, "grad_norms/layers.0": 0.5, "tokens": 4096},
        {"step": 2, "val_loss": 5.25, "val_bits/web": 1.5},
        {"step": 2, "value": 0.5, "event": json.dumps(ROWS[2])}, {"step": 3, "loss": 4.5}]
    assert calls[-1] == ("finish",) and identities[0] == identities[1]


OFFLINE = """
import sys
from pathlib import Path
from train.config import Config
from train.loggers import open_loggers
logger, = open_loggers(["wandb"], Config(), Path(sys.argv[1]))
for step in (1, 2):
    logger.log({"step": step, "loss": 1.5, "grad_norms": {"layers.0": 0.5}})
logger.close()
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
def test_wandb_works_offline(tmp_path):
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    subprocess.run([sys.executable, "-c", OFFLINE, str(tmp_path)], cwd=ROOT, env=environment, check=True)
    file, = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"grad_norms/layers.0" in file.read_bytes()


@pytest.mark.parametrize("names, words", [
    (["tensorbord"], ["tensorboard, wandb", "'tensorbord'"]),
    (["tensorboard"], ["tensorboard is not installed", "pip install 'loam[tensorboard]'"]),
    (["wandb"], ["wandb is not installed", "pip install 'loam[wandb]'"]),
])
def test_what_is_missing_is_named_with_its_extra(names, words, tmp_path, monkeypatch):
    monkeypatch.setattr("train.loggers.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        open_loggers(names, Config(), tmp_path)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_no_names_no_loggers(tmp_path):
    assert open_loggers([], Config(), tmp_path) == [] and not list(tmp_path.iterdir())
