"""Memory of parts that train/plan/activations.py has no formulas for: small passes, held against each other.

What a pass holds grows with the layers and with the rows of a micro-batch, each by itself and both together. Four
passes give all four terms: of one and two layers, and of as many rows as fill blocks of the pool, and one more.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from kernels import memory
from kernels.cpu import launch
from models.config import ModelConfig
from models.decoder import Decoder
from train.loop import next_token_loss
from train.optim import AdamW
from train.plan.measure import random_batch
from train.plan.pool import Pool


class MeasuredPass:
    """As train.plan.activations.Pass, from measured passes.

    Args:
        item: bytes of an activation; those that are measured have the size of the model's dtype.
    """

    def __init__(self, pool: Pool, model: ModelConfig, rows: int, seq_len: int, item: int, threads: int):
        self.pool, self.rows, self.layers = pool, rows, model.n_layers
        everywhere = replace(model.experts, first_dense=0, every=1)  # the most that layers can hold
        self.model, self.seq_len = model.with_(n_layers=1, experts=everywhere), seq_len
        measured_item = 8 if model.dtype == "float64" else 4
        self.item = item / measured_item
        self.few = -(-memory.POOLED_FROM // (seq_len * model.d_model * measured_item))

    def train(self) -> None:
        """Forward and backward."""
        held = [[_held(self.model.with_(n_layers=layers), rows, self.seq_len)[0] for rows in (self.few, self.few + 1)]
                for layers in (1, 2)]
        for_row, for_layer = held[0][1] - held[0][0], held[1][0] - held[0][0]
        for_both = held[1][1] - held[1][0] - for_row
        rows, layers = self.rows - self.few, self.layers - 1
        total = held[0][0] + rows * for_row + layers * for_layer + rows * layers * for_both
        self.pool.give(self.pool.take(max(0, round(total * self.item))))

    def evaluate(self) -> None:
        """Forward without gradients takes less than what `train` has left."""


def scratch_bytes(model: ModelConfig, seq_len: int, threads: int) -> int:
    """Working memory of all CPU threads."""
    return threads * _held(model.with_(n_layers=1), 1, seq_len)[1]


@lru_cache(maxsize=32)
def _held(model: ModelConfig, rows: int, seq_len: int) -> tuple[int, int]:
    """Bytes of the pool's blocks after a forward and backward pass, and of this thread's working memory."""
    AdamW(decoder := Decoder(model))
    memory.release()
    before = memory.allocated_bytes
    next_token_loss(decoder, random_batch(rows, seq_len, model.vocab_size), 1).backward()
    held = memory.allocated_bytes + memory.free_bytes() - before
    del decoder
    memory.release()
    return held, launch.scratch_held()
