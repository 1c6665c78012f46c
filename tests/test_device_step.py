"""A GPU's training step against the same step on the CPU, with bfloat16 emulated there where it is used.

Without a GPU, Triton's interpreter runs it, and what would be captured runs.
"""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.precision import precision
from harness import GPU, gpu_programs
from models.config import ModelConfig
from models.decoder import Decoder
from models.experts_config import ExpertsConfig
from train import step as train_step
from train.data import Batch
from train.loop import next_token_loss
from train.optim.adamw import AdamW
from train.profile import Profile
from train.step import DeviceStep, HostStep

TINY = ModelConfig(n_layers=1, d_model=16, n_heads=2, n_kv_heads=1, d_ff=32, max_seq_len=8, vocab_size=40,
                   residual_init="scaled")


def batch(seed: int, documents: bool) -> Batch:
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(0, 40, (2, 3, 8))
    targets[0, :5] = -100
    starts = np.maximum.accumulate(np.where(rng.random((3, 8)) < 0.3, np.arange(8), 0), axis=1).astype(np.int32)
    predicted = int((targets != -100).sum())
    return Batch(ids, targets, starts if documents else None, 0, predicted, predicted, np.full(3, 8, np.int64))


def stepped(kind, working, documents: bool, dropout: float = 0.0, **options):
    """Loss and gradient norm of two steps of two micro-batches each, the gradients of the first, and the optimizer."""
    model = Decoder(replace(TINY, dropout=dropout), seed=1).to(GPU if kind is DeviceStep else "cpu")
    optimizer = AdamW(model, clip_norm=1.0, working=working)
    step = kind(model, optimizer, next_token_loss, 2, **options)
    first = step(batch(0, documents), 1e-2)
    gradients = optimizer.arena.grads.cpu().clone()
    return np.array([first, step(batch(1, documents), 1e-2)]), gradients, optimizer


@pytest.mark.parametrize("documents, dropout", [(False, 0.0), (True, 0.0), (False, 0.3)])
def test_steps_in_bfloat16_are_those_emulated(documents, dropout):
    with gpu_programs():
        ours, gradients, optimizer = stepped(DeviceStep, torch.bfloat16, documents, dropout, capture=False)
    with precision("bf16-emulated", "cpu").active():
        emulated, expected, _ = stepped(HostStep, torch.float32, documents, dropout)
    _, exact, _ = stepped(HostStep, None, documents, dropout)
    np.testing.assert_allclose(ours[0, 0], emulated[0, 0], rtol=1e-6 if GPU == "cpu" else 1e-3)
    np.testing.assert_allclose(ours[0, 1], emulated[0, 1], rtol=1e-5 if GPU == "cpu" else 1e-2)
    apart, rounding = (gradients - expected).norm(), (expected - exact).norm()
    share = 0.05 if GPU == "cpu" else 1.0  # a GPU adds up in another order, so now and then another number is rounded
    assert apart < share * rounding < share * 0.03 * exact.norm(), (apart, rounding)
    assert optimizer.updates == 2
    working, weights = optimizer.arena.working, optimizer.arena.weights
    assert working.dtype == torch.bfloat16 and torch.equal(working, weights.to(torch.bfloat16))


def test_dropout_draws_the_same_masks_from_a_position_in_the_devices_memory():
    with gpu_programs():
        ours, gradients, _ = stepped(DeviceStep, None, False, 0.3, capture=False)
    expected, expected_gradients, _ = stepped(HostStep, None, False, 0.3)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-3, atol=1e-5)


def test_a_loss_that_is_not_finite_changes_nothing():
    model = Decoder(TINY, seed=1).to(GPU)
    optimizer = AdamW(model, clip_norm=1.0, working=torch.bfloat16)
    spoiled = {"on": True}

    def loss(model, batch, normalizer):
        result = next_token_loss(model, batch, normalizer)
        if spoiled["on"]:
            result.data.fill_(float("inf"))
        return result

    with gpu_programs():
        step = DeviceStep(model, optimizer, loss, 3, capture=False)
        before = optimizer.arena.weights.clone()
        figures = step(batch(0, False), 1e-2)
        assert figures[0] == float("inf") and not np.isfinite(figures[1])
        assert torch.equal(optimizer.arena.weights, before) and optimizer.updates == 0
        spoiled["on"] = False
        assert np.isfinite(step(batch(0, False), 1e-2)).all() and optimizer.updates == 1


class Rehearsed:
    """In place of engine.captured.Graphs where nothing can be captured: work that runs before its first call, too."""

    def capture(self, function):
        function()
        return function


EXPERTS = ExpertsConfig(n=4, top_k=2, shared=1, width=8, balance_weight=0.1)


@pytest.mark.parametrize("changes", [
    {"dropout": 0.3},
    {"feed_forward": "moe", "experts": replace(EXPERTS, balance="global", bias_rate=0.01, sampled=True)},
    {"feed_forward": "moe", "experts": replace(EXPERTS, balance="global", count="running")},
    {"feed_forward": "moe", "experts": replace(EXPERTS, balance="sequence", z_loss=0.01)},
], ids=["dropout", "counted-first", "running-counts", "sequences"])
def test_captured_steps_are_those_of_the_cpu(changes, monkeypatch):
    if GPU == "cpu":
        monkeypatch.setattr(train_step, "Graphs", Rehearsed)
    found = []
    for kind, device in ((HostStep, "cpu"), (DeviceStep, GPU)):
        model = Decoder(TINY.with_(**changes), seed=1).to(device)
        optimizer = AdamW(model, clip_norm=1.0)
        with gpu_programs() if kind is DeviceStep else contextlib.nullcontext():
            step = kind(model, optimizer, next_token_loss, 16)
            figures = [step(batch(seed, False), 1e-2) for seed in range(3)]
        weights = {name: weight.cpu() for name, weight in model.state_dict().items()}
        found.append((np.array(figures), weights, model.balance and model.balance.row()))
    (expected, weights, row), (ours, our_weights, our_row) = found
    np.testing.assert_allclose(ours, expected, rtol=1e-4)
    torch.testing.assert_close(our_weights, weights, rtol=1e-3, atol=1e-4)
    if row:
        assert our_row["load"] == row["load"] and our_row["dead"] == row["dead"]
        assert our_row["balance_loss"] == pytest.approx(row["balance_loss"], rel=1e-4)


@pytest.mark.skipif(GPU != "cpu", reason="where nothing is captured")
def test_a_profile_sees_the_operations_of_captured_steps(monkeypatch):
    class Silent(Rehearsed):
        def capture(self, function):
            super().capture(function)
            return lambda: None

    monkeypatch.setattr(train_step, "Graphs", Silent)
    optimizer = AdamW(model := Decoder(TINY, seed=1), clip_norm=1.0)
    with gpu_programs():
        step = DeviceStep(model, optimizer, next_token_loss, 24)
        assert step(batch(0, False), 1e-2)[0] == 0.0  # nothing ran
        with Profile(model) as profile:
            assert step(batch(0, False), 1e-2)[0] > 3.0
    assert profile.rows["layers.0.attention", "Attention"].calls == 1


@pytest.mark.skipif(GPU == "cpu", reason="needs a GPU")
def test_a_steady_step_allocates_nothing():
    optimizer = AdamW(model := Decoder(TINY, seed=1).to(GPU), clip_norm=1.0, working=torch.bfloat16)
    step = DeviceStep(model, optimizer, next_token_loss, 16)
    for seed in range(2):
        step(batch(seed, False), 1e-2)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    step(batch(2, False), 1e-2)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
