"""A golden loss curve: the engine trains a tiny model exactly as plain PyTorch does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.peers.decoder import TorchDecoder
from models.config import ModelConfig
from models.decoder import Decoder
from train.optim.adamw import AdamW

STEPS, ROWS, LENGTH = 20, 8, 32
BETAS, EPS, DECAY, CLIP, RATE = (0.9, 0.95), 1e-8, 0.1, 1.0, 3e-3


def batches(vocabulary: int):
    """Rows of a noisy counting language, so that there is something to learn."""
    rng = np.random.default_rng(7)
    for _ in range(STEPS):
        start, step = rng.integers(0, vocabulary, (ROWS, 1)), rng.integers(1, 4, (ROWS, 1))
        text = (start + step * np.arange(LENGTH + 1)) % vocabulary
        noise = rng.random(text.shape) < 0.05
        text[noise] = rng.integers(0, vocabulary, noise.sum())
        yield torch.from_numpy(text[:, :-1].copy()), torch.from_numpy(text[:, 1:].copy())


def our_curve(model: Decoder) -> list[float]:
    optimizer = AdamW(model, BETAS, EPS, DECAY, CLIP)
    curve = []
    for number, (ids, targets) in enumerate(batches(model.config.vocab_size), 1):
        optimizer.arena.zero_grad()
        loss = model.loss(ids, targets)
        loss.backward()
        optimizer.measure()
        optimizer.step(RATE * min(1.0, number / 5))
        curve.append(loss.item())
    return curve


def torch_curve(model: TorchDecoder) -> list[float]:
    decayed = [p for name, p in model.named_parameters() if p.dim() == 2 and name != "embedding.weight"]
    plain = [p for name, p in model.named_parameters() if p.dim() < 2 or name == "embedding.weight"]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPS)
    curve = []
    for number, (ids, targets) in enumerate(batches(model.config.vocab_size), 1):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, number / 5)
        optimizer.zero_grad()
        loss = model.loss(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        curve.append(loss.item())
    return curve


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("float64", 1e-7)])
def test_twenty_steps_equal_plain_pytorch(dtype, tolerance, tied):
    config = ModelConfig(vocab_size=29, n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=48, max_seq_len=LENGTH,
                         tie_embeddings=tied, residual_init="scaled", dtype=dtype)
    model = Decoder(config, seed=3)
    twin = TorchDecoder(config)
    twin.load_ours(model.state_dict())
    ours, theirs = np.array(our_curve(model)), np.array(torch_curve(twin))
    assert np.abs(ours / theirs - 1.0).max() < tolerance
    assert ours[-1] < 0.9 * ours[0]
