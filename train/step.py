"""One optimizer step on a batch: gradients of all micro-batches, then the update. On the CPU, and on a GPU."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

import kernels
from engine import Module, Tensor, autograd, random
from engine.captured import Graphs
from train.data import Batch
from train.experts import balance_of
from train.optim import Optimizer
from train.statistics import Statistics

LossFunction = Callable[[Module, Batch, "int | torch.Tensor"], Tensor]
"""(model, micro-batch, normalizer) -> summed loss / normalizer. On a GPU the arrays of the micro-batch are tensors
there, and the normalizer is one with one element."""


def take_step(model: Module, optimizer: Optimizer, loss: LossFunction, micro_tokens: int,
              statistics: Statistics | None = None):
    """What takes the steps of a model where it lies: a `HostStep` or a `DeviceStep`."""
    kind = HostStep if optimizer.arena.weights.device.type == "cpu" else DeviceStep
    return kind(model, optimizer, loss, micro_tokens, statistics)


def micro_rows(batch: Batch, micro_tokens: int) -> int:
    """Rows of this batch that are taken at a time."""
    return max(1, micro_tokens // batch.ids.shape[1])


class HostStep:
    """Steps on the CPU.

    Args:
        micro_tokens: of a micro-batch, which has one row at least.
        statistics: looks at each step.
    """

    def __init__(self, model: Module, optimizer: Optimizer, loss: LossFunction, micro_tokens: int,
                 statistics: Statistics | None = None):
        self.model, self.optimizer, self.loss, self.micro_tokens = model, optimizer, loss, micro_tokens
        self.statistics = statistics or Statistics((), model, optimizer)

    def __call__(self, batch: Batch, lr: float) -> tuple[float, float]:
        """Returns the loss in nats per predicted token, and the gradient's norm; with one that is not finite the
        weights are as they were."""
        self.statistics.before_update()
        loss = accumulate(self.model, self.optimizer, batch, micro_rows(batch, self.micro_tokens), self.loss,
                          self.statistics.after_micro)
        norm = self.optimizer.measure()
        if math.isfinite(loss) and math.isfinite(norm):
            self.optimizer.step(lr)
            self.statistics.after_update(batch.predicted)
            balance = balance_of(self.model)
            if balance is not None:
                balance.end_step()
        return loss, norm


def accumulate(model: Module, optimizer: Optimizer, batch: Batch, micro_rows: int, loss: LossFunction,
               after_micro: Callable[[int], None] = lambda predicted: None) -> float:
    """Leave the gradient of the batch's mean loss in the arena and return that loss, in nats per predicted token.

    Args:
        after_micro: called after each micro-batch with the number of its targets.
    """
    optimizer.arena.zero_grad()
    total, normalizer, micros = 0.0, max(1, batch.predicted), batch.split(micro_rows)
    count_choices(model, micros, loss, normalizer)
    for micro in micros:
        random.set_position(micro.first_token)
        part = loss(model, micro, normalizer)
        total += float(part.item())
        part.backward()
        after_micro(micro.predicted)
    return total


def count_choices(model: Module, micros: list[Batch], loss: LossFunction, normalizer: int) -> None:
    """Begin a step of a model with experts: forget what the last one counted, and where all micro-batches are to be
    counted before gradients are taken, do that. Nothing for other models."""
    balance = balance_of(model)
    if balance is None:
        return
    balance.begin_step(len(micros))
    if balance.counted_first:
        with balance.first_pass():
            for micro in micros:
                random.set_position(micro.first_token)
                loss(model, micro, normalizer)


class DeviceStep:
    """Steps on a GPU, each micro-batch shape and the update a captured graph: nothing is allocated, and nothing waits
    for the GPU until the loss is read at the end. Dropout's masks come from a position in the GPU's memory.

    Args:
        capture: False runs the same work without graphs.
    """

    def __init__(self, model: Module, optimizer: Optimizer, loss: LossFunction, micro_tokens: int,
                 statistics: Statistics | None = None, capture: bool = True):
        self.model, self.optimizer, self.loss, self.micro_tokens = model, optimizer, loss, micro_tokens
        self.statistics = statistics or Statistics((), model, optimizer)
        self.graphs: Graphs | None = Graphs() if capture else None
        self.device = optimizer.arena.weights.device
        self.total = kernels.zeros((1,), torch.float32, self.device)
        self.places: dict[tuple, _Place] = {}
        self.updates: dict[str, Callable[[], None]] = {}

    def __call__(self, batch: Batch, lr: float) -> tuple[float, float]:
        """As `HostStep`; whether the norm and the loss are finite is decided on the GPU."""
        micros = batch.split(micro_rows(batch, self.micro_tokens))
        balance = balance_of(self.model)
        if balance is not None:
            balance.begin_step(len(micros))
        for micro in micros:
            self._place(micro)
        update = self._update()
        self.statistics.before_update()
        self.optimizer.arena.zero_grad()
        self.total.zero_()
        if balance is not None:
            balance.begin_step(len(micros))  # making places may have counted
        if balance is not None and balance.counted_first:
            for micro in micros:
                self._place(micro).count(micro, batch.predicted)
        for micro in micros:
            self._place(micro).run(micro, batch.predicted)
            self.statistics.after_micro(micro.predicted)
        self.optimizer.set_learning_rate(lr)
        update()
        loss, norm = float(self.total), self.optimizer.last_norm
        if math.isfinite(loss) and math.isfinite(norm):
            self.statistics.after_update(batch.predicted)
            if balance is not None:
                balance.end_step()
        return loss, norm

    def _place(self, micro: Batch) -> _Place:
        """Buffers and work for micro-batches of this shape, made the first time; the gradients are lost then."""
        balance = balance_of(self.model)
        key = micro.ids.shape, micro.doc_start is not None, balance is not None and balance.counted_first
        if key not in self.places:
            self.places[key] = _Place(micro, self)
        return self.places[key]

    def _update(self) -> Callable[[], None]:
        kind = self.optimizer.kind
        if kind not in self.updates:
            with self.optimizer.unchanged() if self.graphs else contextlib.nullcontext():
                self.updates[kind] = self.captured(self._measure_and_step)
        return self.updates[kind]

    def captured(self, function: Callable[[], None]) -> Callable[[], None]:
        """The function as a graph, if steps are captured; one by one while somebody looks at the operations."""
        if self.graphs is None:
            return function
        replay = self.graphs.capture(function)
        return lambda: replay() if autograd.observer is None else function()

    def _measure_and_step(self) -> None:
        self.optimizer.measure_on_device(self.total)
        self.optimizer.apply()


class _Place:
    """Where micro-batches of one shape are put, and the forward and backward pass over them; and, where experts are
    counted before, the pass that counts."""

    def __init__(self, micro: Batch, step: DeviceStep):
        arrays = {name: getattr(micro, name) for name in ("ids", "targets", "doc_start")}
        buffers = {name: torch.from_numpy(array.copy()).to(step.device) for name, array in arrays.items()
                   if array is not None}
        self.batch = replace(micro, **buffers)
        self.sources = {name: _Source(buffer) for name, buffer in buffers.items()}
        self.normalizer = kernels.zeros((1,), torch.float32, step.device)
        self.normalizer.fill_(1.0)
        self.position = kernels.zeros((1,), torch.int64, step.device)
        self.step = step
        self.work = step.captured(self._pass)
        self.balance = balance_of(step.model)
        counted_first = self.balance is not None and self.balance.counted_first
        self.counting = step.captured(self._count) if counted_first else None

    def _count(self) -> None:
        random.set_position(self.position)
        with self.balance.first_pass():
            self.step.loss(self.step.model, self.batch, self.normalizer)

    def _pass(self) -> None:
        random.set_position(self.position)
        loss = self.step.loss(self.step.model, self.batch, self.normalizer)
        kernels.elementwise.accumulate(self.step.total, loss.data.view(1))
        loss.backward()

    def run(self, micro: Batch, predicted: int) -> None:
        self._fill(micro, predicted)
        self.work()

    def count(self, micro: Batch, predicted: int) -> None:
        self._fill(micro, predicted)
        self.counting()

    def _fill(self, micro: Batch, predicted: int) -> None:
        for name, source in self.sources.items():
            source.send(getattr(micro, name))
        self.normalizer.fill_(float(max(1, predicted)))
        self.position.fill_(micro.first_token)


class _Source:
    """Two pinned buffers in turn: one is filled while the GPU may still be reading the other."""

    def __init__(self, target: torch.Tensor):
        self.target = target
        self.on_gpu = target.device.type == "cuda"
        self.buffers = [torch.empty(target.shape, dtype=target.dtype, pin_memory=self.on_gpu) for _ in range(2)]
        self.read = [torch.cuda.Event() for _ in self.buffers] if self.on_gpu else []
        self.turn = 0

    def send(self, values: np.ndarray) -> None:
        self.turn = 1 - self.turn
        buffer = self.buffers[self.turn]
        if self.on_gpu:
            self.read[self.turn].synchronize()
        buffer.copy_(torch.from_numpy(values))
        self.target.copy_(buffer, non_blocking=True)
        if self.on_gpu:
            self.read[self.turn].record()
