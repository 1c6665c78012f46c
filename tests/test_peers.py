"""The PyTorch peers, and the race against them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from models_samples import disturbed

from bench import time_to_loss
from bench.peers import nanogpt
from bench.peers.decoder import TorchDecoder
from bench.time_to_loss import Result, Text, read_text, report, train, validation_loss
from models.config import ModelConfig
from train.presets import PRESETS

TEXT = "".join(chr(97 + i * i % 26) + (" \n" if i % 7 == 0 else "") for i in range(9_000))


def test_nanogpt_has_the_published_size():
    model = nanogpt.NanoGPT(65)
    decoded = sum(p.numel() for p in model.parameters()) - model.position_embedding.weight.numel()
    assert round(decoded / 1e6, 2) == 0.80
    assert abs(PRESETS["shakespeare"].model.n_parameters() / sum(p.numel() for p in model.parameters()) - 1) < 0.03


def test_nanogpt_predicts_causally():
    model = nanogpt.NanoGPT(30)
    ids = torch.randint(0, 30, (2, 64), generator=torch.Generator().manual_seed(0))
    logits = model(ids)
    assert logits.shape == (2, 64, 30)
    changed = ids.clone()
    changed[:, 40:] = 0
    torch.testing.assert_close(model(changed)[:, :40], logits[:, :40])
    assert not torch.allclose(model(changed)[:, 40:], logits[:, 40:])


def test_nanogpt_schedule():
    setting = nanogpt.Setting()
    assert setting.learning_rate_at(0) < 2e-5
    assert setting.learning_rate_at(100) == pytest.approx(1e-3)
    assert setting.learning_rate_at(1050) == pytest.approx(5.5e-4)
    assert setting.learning_rate_at(2000) == setting.learning_rate_at(5000) == pytest.approx(1e-4)


def test_nanogpt_decays_matrices_only():
    groups = nanogpt.optimizer_for(nanogpt.NanoGPT(30)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(p.dim() == 2 for p in groups[0]["params"]) and all(p.dim() == 1 for p in groups[1]["params"])


def test_characters_are_numbered_in_order():
    ids, vocab_size = nanogpt.character_ids("cab a")
    assert ids.tolist() == [3, 1, 2, 0, 1] and vocab_size == 4


def test_twin_takes_our_weights_and_trains():
    config = ModelConfig(vocab_size=30, n_layers=1, d_model=16, n_heads=2, d_ff=12, max_seq_len=8, tie_embeddings=True)
    twin = TorchDecoder.from_config(config, seed=1)
    ids = torch.arange(16).view(2, 8)
    loss = twin.loss(ids, ids)
    loss.backward()
    assert all(p.grad is not None for p in twin.parameters())
    assert twin(ids).shape == (2, 8, 30)
    model = disturbed(config)
    twin.load_ours(model.state_dict())
    assert twin.loss(ids, ids).item() == pytest.approx(model.loss(ids, ids).item(), rel=1e-5)


@pytest.mark.parametrize("validation", [64, 65, 640, 700, 10_000])
def test_every_validation_character_is_predicted_once(validation):
    ids = np.arange(20_000)
    text = Text(ids, len(ids) - validation, 0)
    rows = text.validation_rows(64)
    assert np.concatenate([y.ravel() for _, y in rows]).tolist() == ids[-validation:].tolist()
    for x, y in rows:
        assert x.shape == y.shape and x.shape[1] <= 64
        assert (y - x == 1).all()


def test_the_mean_counts_characters_not_rows():
    class Side:
        context = 64

        def mean_loss(self, inputs, targets):
            return targets.mean()

    ids = np.arange(1000)
    assert validation_loss(Side(), Text(ids, 900, 0)) == pytest.approx(ids[900:].mean())


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "input.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.mark.parametrize("side", ["ours", "peer"])
def test_both_sides_learn(side, corpus, monkeypatch, capsys):
    if side == "ours":
        short = PRESETS["shakespeare"]
        short = dataclasses.replace(short, run=dataclasses.replace(short.run, steps=12),
                                    optim=dataclasses.replace(short.optim, warmup_steps=3))
        monkeypatch.setitem(time_to_loss.PRESETS, "shakespeare", short)
    else:
        monkeypatch.setattr(time_to_loss.Peer, "setting", nanogpt.Setting(iterations=12, warmup=3))
    monkeypatch.setattr(time_to_loss, "EVALUATIONS", 3)
    result = train(side, corpus, seed=1, target=0.5)
    assert not result.reached and result.steps == 12 and result.seconds > 0
    assert result.loss < np.log(27)
    easy = train(side, corpus, seed=1, target=5.0)
    assert easy.reached and easy.steps == 4 and easy.characters == 12 // 3 * result.characters // 12
    assert "validation loss" in capsys.readouterr().err


def test_report():
    runs = [Result(seed, seconds, 10, 640, 1.9, True) for seed, seconds in enumerate((3.0, 1.0, 2.0))]
    slow = [dataclasses.replace(run, seconds=10 * run.seconds, reached=False) for run in runs]
    summary = report({"ours": runs, "peer": slow}, 1.92, 2)
    assert (summary["ours_seconds"], summary["peer_seconds"], summary["ratio"]) == (2.0, 20.0, 0.1)
    assert report({"ours": slow, "peer": runs}, 1.92, 2)["ratio"] is None
    json.dumps(summary)


@pytest.mark.parametrize("content, message", [(None, "cannot read"), ("é" * 9_000, "ASCII"), ("short", "10,000")])
def test_bad_text_is_one_line(tmp_path, capsys, content, message):
    path = tmp_path / "input.txt"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    assert time_to_loss.main(["--data", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_no_seeds(corpus, capsys):
    assert time_to_loss.main(["--data", corpus, "--seeds", "0"]) == 2
    assert capsys.readouterr().err == "error: --seeds must be at least 1: got 0\n"


def test_sides_have_the_same_split(corpus):
    ours, peer = read_text(corpus, "ours"), read_text(corpus, "peer")
    assert ours.border == peer.border == int(0.9 * len(TEXT))
    assert (ours.vocab_size, peer.vocab_size) == (264, len(set(TEXT)))
