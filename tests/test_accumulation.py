"""A batch's gradients do not depend on how it is cut, and neither does a run that goes on with other micro-batches."""

import numpy as np
import pytest
import torch

from data_samples import BYTE, MemoryShards, numbered
from engine import random
from models.config import ModelConfig
from models.decoder import Decoder
from train.curriculum import Curriculum
from train.data import Batch, Batches, MixedStream, Prefetch
from train.loop import next_token_loss
from train.optim.adamw import AdamW
from train.sections import DataConfig
from train.step import accumulate, take_step

ROWS, LENGTH = 32, 24
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


def decoder(dtype: str, dropout: float) -> Decoder:
    return Decoder(ModelConfig(vocab_size=264, n_layers=2, d_model=16, n_heads=2, d_ff=32, max_seq_len=LENGTH,
                               dtype=dtype, dropout=dropout, residual_init="scaled"), seed=1)


def uneven_batch(borders: bool) -> Batch:
    """Rows that are padded to very different lengths, one of them altogether, with masked beginnings and holes."""
    rng = np.random.default_rng(7)
    ids, targets = rng.integers(0, 256, (2, ROWS, LENGTH))
    places = np.arange(LENGTH)
    targets[places < rng.integers(0, 8, (ROWS, 1))] = -100
    targets[rng.random((ROWS, LENGTH)) < 0.1] = -100
    padded = places >= (rng.random((ROWS, 1)) ** 3 * (LENGTH + 1)).astype(int)
    padded[5] = True
    ids[padded], targets[padded] = BYTE.eod, -100
    starts = np.maximum.accumulate(np.where(rng.random((ROWS, LENGTH)) < 0.15, places, 0), axis=1).astype(np.int32)
    counts = (targets != -100).sum(axis=1)
    assert counts.min() == 0 and counts.max() > 10
    return Batch(ids, targets, starts if borders else None, 7 * LENGTH, int(counts.sum()), int(counts.sum()), counts)


def gradients(batch: Batch, micro_rows: int | None, dtype: str, dropout: float):
    """The loss, and every parameter's gradient; with no `micro_rows` of the batch itself."""
    random.set_seed(3)
    optimizer = AdamW(model := decoder(dtype, dropout))
    if micro_rows is None:
        random.set_position(batch.first_token)
        tensor = next_token_loss(model, batch, batch.predicted)
        tensor.backward()
        loss = tensor.item()
    else:
        loss = accumulate(model, optimizer, batch, micro_rows, next_token_loss)
    return loss, {name: grad.clone() for name, grad in optimizer.arena.views(optimizer.arena.grads).items()}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("borders, dropout", [(False, 0.0), (True, 0.0), (True, 0.2)])
def test_once_32_rows_are_32_times_one_row(dtype, borders, dropout):
    batch = uneven_batch(borders)
    loss, whole = gradients(batch, None, dtype, dropout)
    for micro_rows in (1, 7, ROWS):
        other, cut = gradients(batch, micro_rows, dtype, dropout)
        assert other == pytest.approx(loss, rel=TOLERANCE[dtype] / 10)
        for name, expected in whole.items():
            apart, size = (cut[name] - expected).norm().item(), expected.norm().item()
            assert size > 0 and apart <= TOLERANCE[dtype] * size, name


def test_a_padded_row_alone_gives_zero_and_nothing_else():
    loss, found = gradients(uneven_batch(True).split(1)[5], 1, "float64", 0.0)
    assert loss == 0 and not any(grad.any() for grad in found.values())


class TextShards(MemoryShards):
    """Ids that the tiny model has."""

    def gather(self, starts, lengths):
        return super().gather(starts, lengths) * 37 % 251


class Trained:
    """A run over a mixture of two texts, through a curriculum, with a batch ramp."""

    data = DataConfig(lengths="4:30%,8:40%,24:30%", batch_ramp="48:40%,96:60%", seq_len=24, batch_tokens=96)
    curriculum = Curriculum.for_steps(data, 10)

    def __init__(self, micro_tokens: int):
        random.set_seed(11)
        parts = [numbered([30, 7, 61, 4, 90], 0, TextShards), numbered([13, 50], 500, TextShards)]
        self.model = decoder("float64", 0.1)
        self.optimizer = AdamW(self.model, clip_norm=1.0)
        self.batches = Prefetch(Batches(MixedStream(parts, [0.7, 0.3], 24, 2), 24, BYTE, doc_mask=True))
        self.take_step = take_step(self.model, self.optimizer, next_token_loss, micro_tokens)
        self.cursor, self.read, self.losses = 0, [], []

    def steps(self, count: int):
        for _ in range(count):
            stage = self.curriculum.at(self.cursor)
            batch = self.batches.batch(self.cursor, stage.rows, stage.seq_len)
            self.losses.append(self.take_step(batch, 3e-3)[0])
            self.read += batch.ids.ravel().tolist()
            self.cursor += batch.ids.size
        self.batches.close()
        return self

    def resume(self, other: "Trained"):
        for name, value in other.model.state_dict().items():
            self.model.state_dict()[name].copy_(value)
        self.optimizer.load_state(other.optimizer.state(), other.optimizer.updates)
        self.cursor, self.read, self.losses = other.cursor, list(other.read), list(other.losses)
        return self


@pytest.mark.parametrize("micro_tokens", [1, 40, 96])
def test_another_micro_batch_after_resume_is_the_same_run(micro_tokens):
    whole = Trained(24).steps(10)
    resumed = Trained(micro_tokens).resume(Trained(24).steps(5)).steps(5)
    assert [stage for stage, _ in whole.curriculum.stages()] == [(4, 48), (8, 48), (8, 96), (24, 96)]
    assert resumed.cursor == whole.cursor > 255 and resumed.read == whole.read
    np.testing.assert_allclose(resumed.losses, whole.losses, rtol=1e-10, atol=0)
    for name, expected in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], expected, rtol=1e-10, atol=1e-10, msg=name)
