"""The loop: accumulation, what is not finite, metrics, plot, profile, evaluation, a run from another's weights."""

import json
import math

import numpy as np
import pytest
import torch

from engine import Module, autograd, random
from models.config import ModelConfig
from models.decoder import Decoder
from models.run_folder import checkpoints, latest_checkpoint
from train import checkpoint, evaluate, pretrain
from train.config import Config
from train.data import Batch
from train.errors import NonFiniteError
from train.loop import Loop, next_token_loss
from train.metrics import MetricsLog, read_metrics
from train.optim.adamw import AdamW
from train.plot import draw_loss, smoothed
from train.progress import clock, printable
from train.step import accumulate

TINY = ModelConfig(n_layers=1, d_model=16, n_heads=2, d_ff=32, max_seq_len=8, vocab_size=264, dropout=0.2,
                   dtype="float64", residual_init="scaled")


def random_batch(cursor=0, rows=32, length=8):
    rng = np.random.default_rng(cursor)
    ids, targets = rng.integers(0, 256, (2, rows, length))
    targets[rng.random((rows, length)) < 0.3] = -100
    valid = (targets != -100).sum(axis=1)
    return Batch(ids, targets, None, cursor, int(valid.sum()), int(valid.sum()), valid)


@pytest.mark.parametrize("micro_rows", [1, 5, 16])
def test_accumulation_equals_the_big_batch(micro_rows):
    random.set_seed(3)
    batch, results = random_batch(), []
    for rows in (32, micro_rows):
        optimizer = AdamW(model := Decoder(TINY))
        results.append((accumulate(model, optimizer, batch, rows, next_token_loss), optimizer.arena.grads.clone()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-10, atol=1e-10)


def test_steps_move_the_cursor_and_lower_the_loss():
    optimizer = AdamW(model := Decoder(TINY), clip_norm=1.0)
    batch = random_batch()
    loop = Loop(model, optimizer, lambda cursor: Batch(**{**vars(batch), "first_token": cursor}), next_token_loss, 128)
    reports = [loop.step(1e-2) for _ in range(30)]
    assert [report.step for report in reports[:3]] == [1, 2, 3]
    assert [report.tokens for report in reports[:3]] == [256, 512, 768] and loop.position.cursor == 30 * 256
    assert reports[0].bits_per_byte == pytest.approx(reports[0].loss / math.log(2))
    assert reports[-1].loss < reports[0].loss - 1.0


@pytest.mark.parametrize("poison, words", [
    ("loss", ["the loss is nan", "first bad tensor: gradient of"]),
    ("gradient", ["a gradient is not finite", "gradient of norm.gain"]),
])
def test_what_is_not_finite_stops_before_the_update(poison, words, monkeypatch):
    optimizer = AdamW(model := Decoder(TINY))

    def loss(model: Module, batch: Batch, normalizer: int):
        result = next_token_loss(model, batch, normalizer)
        if poison == "loss":
            result.data.fill_(float("nan"))
        return result

    loop = Loop(model, optimizer, random_batch, loss, 256)
    before = optimizer.arena.weights.clone()
    if poison == "gradient":
        norm = AdamW.measure

        def poisoned(self):
            self.arena.parameters["norm.gain"].grad[0] = float("inf")
            return norm(self)

        monkeypatch.setattr(AdamW, "measure", poisoned)
    else:
        monkeypatch.setattr(AdamW, "first_bad_gradient", lambda self: "embedding.weight")
    with pytest.raises(NonFiniteError) as error:
        loop.step(1e-3)
    assert all(word in str(error.value) for word in ["step 1", "tokens 0 to 256", *words])
    assert torch.equal(optimizer.arena.weights, before) and loop.position.step == 0


def test_metrics_after_a_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, 9)) + '{"step": 9, "lo')
    log = MetricsLog(path, after_step=5)
    log.append({"step": 6, "loss": 2.0})
    with pytest.raises(ValueError):
        log.append({"step": 7, "loss": float("nan")})
    log.sync()
    log.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [*((s, 1.0) for s in range(1, 6)), (6, 2.0)]
    assert path.read_text().count("\n") == 6


def test_the_plot_is_a_picture_of_what_is_there(tmp_path):
    metrics, picture = tmp_path / "metrics.jsonl", tmp_path / "loss.png"
    draw_loss(metrics, picture, "nothing yet")
    assert not picture.exists()
    metrics.write_text('{"step": 1, "loss": 5.0}\n{"step": 2, "loss": 4.0}\n{"step": 2, "val_loss": 4.5}\n')
    draw_loss(metrics, picture, "r\u00e9sum\u00e9 \u8bad\u7ec3")
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", "metrics.jsonl"]
    assert smoothed([3.0] * 50) == pytest.approx([3.0] * 50) and smoothed([]) == []
    line = [float(n) for n in range(200)]
    assert smoothed(line) == pytest.approx(line)
    waves = smoothed([(-1.0) ** n for n in range(200)])
    assert max(map(abs, waves[40:160])) < 0.1


def test_clock_and_printable():
    assert [clock(s) for s in (None, 5, 65.4, 7384)] == ["?", "0:05", "1:05", "2:03:04"]
    assert printable("a\x1b[2J\tb\n") == "a\ufffd[2J\tb\n"


FLAGS = ["--tokenizer", "bytes", "--seq-len", "16", "--batch-tokens", "64",
         "--set", "model.n_layers=2", "--set", "model.d_model=16", "--set",
         "model.n_heads=2", "--set", "model.d_ff=32", "--set", "run.sample_tokens=5", "--set", "run.eval_every=-1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "a.txt").write_text("The same sentence over and over.\n" * 100)
    cache = ["--set", f"data.cache_dir={folder / 'cache'}"]
    base = ["--data", str(folder / "a.txt"), *FLAGS, *cache]
    assert pretrain.main([*base, "--out", str(folder / "run"), "--steps", "14", "--profile"]) == 0
    return folder, base


def test_the_profile_names_operations_and_layers(trained):
    text = (trained[0] / "run" / "profile.txt").read_text()
    words = ["layers.0.attention", "layers.1.feed_forward", "LinearCrossEntropy", "forward ms", "MB peak", "the rest"]
    assert all(word in text for word in words)
    assert autograd.observer is None
    assert "named_call" not in repr(Module.__call__)


def test_evaluate_prints_json(trained, capsys):
    folder, _ = trained
    capsys.readouterr()
    assert evaluate.main([str(folder / "run"), "--data", str(folder / "a.txt")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result.keys() == {"loss", "perplexity", "bits_per_byte", "tokens", "bytes"}
    size = (folder / "a.txt").stat().st_size
    assert abs(result["bytes"] - size) <= 1 and result["tokens"] == size + 1
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    assert result["bits_per_byte"] == pytest.approx(result["loss"] * result["tokens"] / result["bytes"] / math.log(2))


def test_a_run_from_anothers_weights(trained, monkeypatch):
    folder, base = trained
    assert pretrain.main([*base, "--out", str(folder / "next"), "--steps", "1", "--lr", "1e-30", "--init-from",
                          str(folder / "run")]) == 0
    old, new = (checkpoint.load(latest_checkpoint(folder / name)) for name in ("run", "next"))
    assert all(torch.allclose(old.model[name], new.model[name], rtol=0, atol=1e-12) for name in old.model)
    assert new.state["step"] == 1


def test_a_run_that_blows_up_keeps_its_last_good_checkpoint(trained):
    folder, base = trained
    out = folder / "bad"
    more = ["--lr", "0.001", "--set", "run.eval_every=-1", "--set", "run.sample_every=-1", "--set",
            "checkpoint.every=1"]
    assert pretrain.main([*base, "--out", str(out), "--steps", "2", *more]) == 0
    config = (out / "config.toml").read_text()
    assert "lr = 0.001\n" in config and "clip_norm = 1.0\n" in config
    config = config.replace("lr = 0.001\n", "lr = 1e38\n").replace("clip_norm = 1.0\n", "clip_norm = 0.0\n")
    (out / "config.toml").write_text(config)
    with pytest.raises(NonFiniteError, match=r"step \d+: .*the last good checkpoint is .*step-00000\d"):
        pretrain.main(["--out", str(out), "--resume", "--steps", "8"])
    assert 2 in checkpoints(out)
    for saved in checkpoints(out).values():
        assert all(torch.isfinite(tensor).all() for tensor in checkpoint.load(saved).model.values())


def test_rows_with_their_own_field_and_validation_file(trained, tmp_path):
    cache = trained[1][-2:]
    for name, count in (("train.jsonl", 40), ("val.jsonl", 5)):
        rows = [json.dumps({"body": f"Row {number} of {count}."}) for number in range(count)]
        (tmp_path / name).write_text("\n".join(rows))
    argv = ["--data", str(tmp_path / "train.jsonl"), "--val-data", str(tmp_path / "val.jsonl"), "--text-field", "body",
            "--doc-mask", "--out", str(tmp_path / "run"), "--tokens", "200", *FLAGS, *cache]
    assert pretrain.main(argv) == 0
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 4
    config = Config.load(tmp_path / "run" / "config.toml")
    assert config.data.doc_mask and config.data.text_field == "body"
    state = json.loads((latest_checkpoint(tmp_path / "run") / "state.json").read_text())
    assert state["cursor"] == 4 * 64


def test_the_next_run_gets_the_next_number(trained, monkeypatch, tmp_path):
    _, base = trained
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert pretrain.main([*base, "--steps", "1"]) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["demo-1", "demo-2"]
    assert pretrain.main(["--resume", "--steps", "2"]) == 0
    assert list(checkpoints(tmp_path / "runs" / "demo-2")) == [1, 2]
