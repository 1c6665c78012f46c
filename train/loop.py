"""The training loop: given a model, a batch function and a loss function, one optimizer step at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from engine import Module, Tensor, random
from train.data import Batch
from train.errors import NonFiniteError
from train.metrics import NATS_PER_BIT
from train.optim.adamw import AdamW

BatchFunction = Callable[[int], Batch]
LossFunction = Callable[[Module, Batch, int], Tensor]


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
        self.model, self.optimizer, self.batch_at, self.loss = model, optimizer, batch_at, loss
        self.micro_rows = micro_rows
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
        loss = accumulate(self.model, optimizer, batch, self.micro_rows, self.loss)
        grad_norm = optimizer.grad_norm()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise NonFiniteError(_describe(number, batch, loss, optimizer))
        optimizer.step(lr, grad_norm)
        seconds = time.perf_counter() - start
        position.step, position.cursor = number, next_cursor(batch)
        position.seconds += seconds
        bits_per_byte = loss * batch.predicted / (NATS_PER_BIT * max(1, batch.bytes))
        return StepReport(number, position.cursor, loss, bits_per_byte, lr, grad_norm, seconds)


def accumulate(model: Module, optimizer: AdamW, batch: Batch, micro_rows: int, loss: LossFunction) -> float:
    """Leave the gradient of the batch's mean loss in the arena and return that loss, in nats per predicted token."""
    optimizer.arena.zero_grad()
    total, normalizer = 0.0, max(1, batch.predicted)
    for micro in batch.split(micro_rows):
        random.set_position(micro.first_token)
        part = loss(model, micro, normalizer)
        total += float(part.item())
        part.backward()
    return total


def next_token_loss(model: Module, batch: Batch, normalizer: int) -> Tensor:
    """The loss of pretraining: summed cross-entropy of the next token / normalizer."""
    doc_start = None if batch.doc_start is None else torch.from_numpy(batch.doc_start)
    return model.loss(torch.from_numpy(batch.ids), torch.from_numpy(batch.targets), doc_start=doc_start,
                      normalizer=normalizer)


def next_cursor(batch: Batch) -> int:
    """The token cursor behind a batch."""
    return batch.first_token + batch.ids.size


def _describe(step: int, batch: Batch, loss: float, optimizer: AdamW) -> str:
    bad = optimizer.first_bad_gradient()
    what = f"the loss is {loss}" if not math.isfinite(loss) else "a gradient is not finite"
    where = f"first bad tensor: gradient of {bad}" if bad else "every gradient is finite; bad tensor: the loss"
    return f"step {step}: {what}; {where}; batch: tokens {batch.first_token:,} to {next_cursor(batch):,}"
