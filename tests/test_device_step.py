"""A GPU's training step, run in Triton's interpreter, against the same step with bfloat16 emulated on the CPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import kernels
from engine.precision import precision
from models.config import ModelConfig
from models.decoder import Decoder
from train.data import Batch
from train.loop import next_token_loss
from train.optim.adamw import AdamW
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
    model = Decoder(replace(TINY, dropout=dropout), seed=1)
    optimizer = AdamW(model, clip_norm=1.0, working=working)
    step = kind(model, optimizer, next_token_loss, 2, **options)
    first = step(batch(0, documents), 1e-2)
    gradients = optimizer.arena.grads.clone()
    return np.array([first, step(batch(1, documents), 1e-2)]), gradients, optimizer


@pytest.mark.parametrize("documents, dropout", [(False, 0.0), (True, 0.0), (False, 0.3)])
def test_steps_in_bfloat16_are_those_emulated(documents, dropout):
    with kernels.programs("gpu"):
        ours, gradients, optimizer = stepped(DeviceStep, torch.bfloat16, documents, dropout, capture=False)
    with precision("bf16-emulated", "cpu").active():
        emulated, expected, _ = stepped(HostStep, torch.float32, documents, dropout)
    _, exact, _ = stepped(HostStep, None, documents, dropout)
    np.testing.assert_allclose(ours[0, 0], emulated[0, 0], rtol=1e-6)
    np.testing.assert_allclose(ours[0, 1], emulated[0, 1], rtol=1e-5)
    apart, rounding = (gradients - expected).norm(), (expected - exact).norm()
    assert apart < 0.05 * rounding < 0.05 * 0.03 * exact.norm(), (apart, rounding)
    assert optimizer.updates == 2
    working, weights = optimizer.arena.working, optimizer.arena.weights
    assert working.dtype == torch.bfloat16 and torch.equal(working, weights.to(torch.bfloat16))


def test_dropout_draws_the_same_masks_from_a_position_in_the_devices_memory():
    with kernels.programs("gpu"):
        ours, gradients, _ = stepped(DeviceStep, None, False, 0.3, capture=False)
    expected, expected_gradients, _ = stepped(HostStep, None, False, 0.3)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-3, atol=1e-5)


def test_a_loss_that_is_not_finite_changes_nothing():
    model = Decoder(TINY, seed=1)
    optimizer = AdamW(model, clip_norm=1.0, working=torch.bfloat16)
    spoiled = {"on": True}

    def loss(model, batch, normalizer):
        result = next_token_loss(model, batch, normalizer)
        if spoiled["on"]:
            result.data.fill_(float("inf"))
        return result

    with kernels.programs("gpu"):
        step = DeviceStep(model, optimizer, loss, 3, capture=False)
        before = optimizer.arena.weights.clone()
        figures = step(batch(0, False), 1e-2)
        assert figures[0] == float("inf") and not np.isfinite(figures[1])
        assert torch.equal(optimizer.arena.weights, before) and optimizer.updates == 0
        spoiled["on"] = False
        assert np.isfinite(step(batch(0, False), 1e-2)).all() and optimizer.updates == 1
