"""Time of a step on this machine, from two short ones."""

from __future__ import annotations

import statistics
import time

import numpy as np

from engine.precision import precision
from models.decoder import Decoder
from train.config import Config
from train.curriculum import Stage
from train.data import Batch
from train.loop import next_token_loss
from train.optim import make_optimizer
from train.step import take_step

WARM_UP = 2
MEASURED = 2
AGREEING = 1.05
MOST_MEASURED = 8
MICRO_BATCHES = 2


class StepTimes:
    """The model and optimizer of a run, with random weights and tokens, to take steps with."""

    def __init__(self, config: Config):
        self.config = config
        self.policy = precision(config.run.precision, config.run.device)
        model = Decoder(config.model, config.run.seed).to(config.run.device)
        self.optimizer = make_optimizer(model, config.optim, self.policy.working)
        self.optimizer.advance_to(config.optim.switch_to_muon_at + 1)
        self.take = take_step(model, self.optimizer, next_token_loss, config.data.micro_tokens)
        self._update: float | None = None

    def seconds(self, stage: Stage) -> float:
        """Of a step of a stage.

        On the CPU two micro-batches stand for all, and the update, which does not depend on the rows, is timed apart.
        """
        micro = min(stage.rows, max(1, self.config.data.micro_tokens // stage.seq_len))
        short = stage.rows if self.config.run.device != "cpu" else min(stage.rows, MICRO_BATCHES * micro)
        batch = random_batch(short, stage.seq_len, self.config.model.vocab_size)
        with self.policy.active():
            whole = _typical(lambda: self.take(batch, self.config.optim.lr))
            if short == stage.rows:
                return whole
            if self._update is None:
                self._update = _typical(lambda: (self.optimizer.measure(), self.optimizer.step(self.config.optim.lr)))
        return max(0.0, whole - self._update) * stage.rows / short + self._update


def _typical(work) -> float:
    """Seconds of a call, from two after two others; from more where these differ, as something else may run in one."""
    for _ in range(WARM_UP):
        work()
    seconds: list[float] = []
    while len(seconds) < MEASURED or (seconds[1] > AGREEING * seconds[0] and len(seconds) < MOST_MEASURED):
        start = time.perf_counter()
        work()
        seconds = sorted([*seconds, time.perf_counter() - start])
    return statistics.mean(seconds[:MEASURED])


def random_batch(rows: int, seq_len: int, vocabulary: int) -> Batch:
    """Rows of ids that mean nothing."""
    ids, targets = np.random.default_rng(0).integers(0, vocabulary, (2, rows, seq_len))
    return Batch(ids, targets, None, 0, rows * seq_len, rows * seq_len, np.full(rows, seq_len))
