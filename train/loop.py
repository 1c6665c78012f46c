"""The training loop: given a model, a batch function and a loss function, one optimizer step at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from engine import Module, Tensor
from train.data import Batch
from train.errors import NonFiniteError
from train.metrics import NATS_PER_BIT
from train.optim.adamw import AdamW
from train.step import LossFunction, take_step

BatchFunction = Callable[[int], Batch]


@dataclass
class Position:
    """Where a run is: steps done, the token cursor of the next batch, seconds spent in steps and altogether."""

    step: int = 0
    cursor: int = 0
    seconds: float = 0.0
    wall_seconds: float = 0.0


class StepReport(NamedTuple):
    """One optimizer step: `loss` in nats per predicted token, `tokens` trained on so far, `grad_norm` unclipped."""

    step: int
    tokens: int
    loss: float
    bits_per_byte: float
    lr: float
    grad_norm: float
    seconds: float


class Loop:
    """Takes optimizer steps.

    A step's gradient is that of the mean loss over all predicted tokens of the batch, however many micro-batches it is
    cut into: each micro-batch's summed loss is divided by the whole batch's count.

    Args:
        batch_at: the whole step's batch that starts at a token cursor.
        loss: (model, micro-batch, normalizer) -> summed loss / normalizer.
        micro_rows: rows of a micro-batch.
        position: where to go on.
    """

    def __init__(self, model: Module, optimizer: AdamW, batch_at: BatchFunction, loss: LossFunction, micro_rows: int,
                 position: Position | None = None):
        self.model, self.optimizer, self.batch_at = model, optimizer, batch_at
        self.take_step = take_step(model, optimizer, loss, micro_rows)
        self.position = position or Position()

    def step(self, lr: float) -> StepReport:
        """One step at learning rate `lr`.

        Raises:
            NonFiniteError: the loss or a gradient is not finite; the weights are as they were.
        """
        start = time.perf_counter()
        position, optimizer = self.position, self.optimizer
        batch = self.batch_at(position.cursor)
        number = position.step + 1
        loss, grad_norm = self.take_step(batch, lr)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise NonFiniteError(_describe(number, batch, loss, optimizer))
        seconds = time.perf_counter() - start
        position.step, position.cursor = number, next_cursor(batch)
        position.seconds += seconds
        bits_per_byte = loss * batch.predicted / (NATS_PER_BIT * max(1, batch.bytes))
        return StepReport(number, position.cursor, loss, bits_per_byte, lr, grad_norm, seconds)


def next_token_loss(model: Module, batch: Batch, normalizer: int | torch.Tensor) -> Tensor:
    """The loss of pretraining: summed cross-entropy of the next token / normalizer."""
    ids, targets, doc_start = (None if array is None else torch.as_tensor(array).to(model.device)
                               for array in (batch.ids, batch.targets, batch.doc_start))
    return model.loss(ids, targets, doc_start=doc_start, normalizer=normalizer)


def next_cursor(batch: Batch) -> int:
    """The token cursor behind a batch."""
    return batch.first_token + batch.ids.size


def _describe(step: int, batch: Batch, loss: float, optimizer: AdamW) -> str:
    bad = optimizer.first_bad_gradient()
    what = f"the loss is {loss}" if not math.isfinite(loss) else "a gradient is not finite"
    where = f"first bad tensor: gradient of {bad}" if bad else "every gradient is finite; bad tensor: the loss"
    return f"step {step}: {what}; {where}; batch: tokens {batch.first_token:,} to {next_cursor(batch):,}"
