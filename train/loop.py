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
from train.optim import Optimizer
from train.statistics import Statistics
from train.step import LossFunction, take_step

BatchFunction = Callable[..., Batch]


@dataclass
class Position:
    """Where a run is: steps done, the token cursor of the next batch, seconds spent in steps and altogether."""

    step: int = 0
    cursor: int = 0
    seconds: float = 0.0
    wall_seconds: float = 0.0


class StepReport(NamedTuple):
    """One optimizer step: `loss` in nats per predicted token, `tokens` trained on so far, `grad_norm` unclipped; rows
    of `seq_len` tokens, `batch_tokens` in all."""

    step: int
    tokens: int
    loss: float
    bits_per_byte: float
    lr: float
    grad_norm: float
    seconds: float
    seq_len: int
    batch_tokens: int

    def row(self) -> dict[str, int | float]:
        """What metrics.jsonl says of it."""
        values = self._asdict()
        del values["seconds"]
        return values


class Loop:
    """Takes optimizer steps.

    A step's gradient is that of the mean loss over all predicted tokens of the batch, however many micro-batches it is
    cut into: each micro-batch's summed loss is divided by the whole batch's count.

    Args:
        batch_at: the whole step's batch that starts at a token cursor; what else `step` is given goes on to it.
        loss: (model, micro-batch, normalizer) -> summed loss / normalizer.
        micro_tokens: of a micro-batch, which has one row at least.
        position: where to go on.
        statistics: looks at each step.

    Attributes:
        batch: the last step's.
    """

    def __init__(self, model: Module, optimizer: Optimizer, batch_at: BatchFunction, loss: LossFunction,
                 micro_tokens: int, position: Position | None = None, statistics: Statistics | None = None):
        self.model, self.optimizer, self.batch_at, self.loss = model, optimizer, batch_at, loss
        self.take_step = take_step(model, optimizer, loss, micro_tokens, statistics)
        self.position = position or Position()
        self.batch: Batch | None = None

    def step(self, lr: float, *portion: int) -> StepReport:
        """One step at learning rate `lr`, on the batch that `batch_at` gives for the cursor and `portion`.

        Raises:
            NonFiniteError: the loss or a gradient is not finite; weights and position are as they were.
        """
        start = time.perf_counter()
        position = self.position
        self.batch = batch = self.batch_at(position.cursor, *portion)
        loss, grad_norm = self.take_step(batch, lr)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise NonFiniteError(_describe(position.step + 1, batch, loss, self.optimizer))
        seconds = time.perf_counter() - start
        self.pass_over()
        position.seconds += seconds
        bits_per_byte = loss * batch.predicted / (NATS_PER_BIT * max(1, batch.bytes))
        return StepReport(position.step, position.cursor, loss, bits_per_byte, lr, grad_norm, seconds,
                          batch.ids.shape[1], batch.ids.size)

    def pass_over(self) -> None:
        """Move on behind the last step's batch."""
        self.position.step += 1
        self.position.cursor = next_cursor(self.batch)


def next_token_loss(model: Module, batch: Batch, normalizer: int | torch.Tensor) -> Tensor:
    """The loss of pretraining: summed cross-entropy of the next token / normalizer."""
    ids, targets, doc_start = (None if array is None else torch.as_tensor(array).to(model.device)
                               for array in (batch.ids, batch.targets, batch.doc_start))
    return model.loss(ids, targets, doc_start=doc_start, normalizer=normalizer)


def next_cursor(batch: Batch) -> int:
    """The token cursor behind a batch."""
    return batch.first_token + batch.ids.size


def _describe(step: int, batch: Batch, loss: float, optimizer: Optimizer) -> str:
    bad = optimizer.first_bad_gradient()
    what = f"the loss is {loss}" if not math.isfinite(loss) else "a gradient is not finite"
    where = f"first bad tensor: gradient of {bad}" if bad else "every gradient is finite; bad tensor: the loss"
    return f"step {step}: {what}; {where}; batch: tokens {batch.first_token:,} to {next_cursor(batch):,}"
