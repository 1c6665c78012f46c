"""What each step of a run takes: its learning rate, its rows and their length, and how many steps there are.

Everything follows from the settings and the changes made while the run went on (train/steering.py), so a run that is
resumed takes the same steps.
"""

from __future__ import annotations

from typing import NamedTuple

from train.config import Config
from train.curriculum import Curriculum
from train.schedule import learning_rate
from train.steering import Steering

EVALUATIONS, SAMPLES = 10, 5
PARTS = {"eval_every": EVALUATIONS, "sample_every": SAMPLES}


class Portion(NamedTuple):
    """Of a step: rows of `seq_len` tokens."""

    rows: int
    seq_len: int


class Pace:
    """The pace of a run.

    Attributes:
        total: steps of the whole run; None for a run by minutes whose step time is not measured yet.
    """

    def __init__(self, config: Config, steering: Steering):
        self.steering = steering
        self.fix(config)

    def fix(self, config: Config) -> None:
        """Take over settings: those of the start, and those with the number of steps that was measured."""
        run, data = config.run, config.data
        self.config = config
        self.curriculum = Curriculum.for_steps(data, run.steps) if run.steps else Curriculum(data, run.tokens or None)
        self.total: int | None = run.steps or self.curriculum.total_steps()

    def replan(self, step: int, cursor: int) -> None:
        """A run by tokens takes fewer steps from here on when they hold more of them.

        Args:
            step: steps taken.
            cursor: tokens taken.
        """
        run = self.config.run
        if run.steps or not run.tokens:
            return
        steered = self.steering.value("batch_tokens", step + 1)
        if steered is None:
            self.total = step + self.curriculum.steps_from(cursor)
        else:
            self.total = step - -max(0, run.tokens - cursor) // steered

    def portion(self, step: int, cursor: int) -> Portion:
        """Of step `step` (from 1), which begins at a token cursor."""
        stage = self.curriculum.at(cursor)
        seq_len = self.steering.value("seq_len", step) or stage.seq_len
        batch_tokens = self.steering.value("batch_tokens", step) or stage.batch_tokens
        return Portion(batch_tokens // seq_len, seq_len)

    def lr(self, step: int) -> float:
        """The learning rate of a step."""
        return self.steering.lr(step, self.scheduled)

    def scheduled(self, step: int) -> float:
        """The learning rate that the settings alone give."""
        return learning_rate(step, self.total, self.config.optim)

    def every(self, key: str, step: int) -> int:
        """`log_every`, `eval_every`, `sample_every` or `checkpoint.every` as it holds at a step: a number of steps, or
        -1 for the end alone."""
        steered = self.steering.value(key, step)
        settings = self.config.checkpoint if key == "checkpoint.every" else self.config.run
        value = getattr(settings, key.rpartition(".")[2]) if steered is None else steered
        if value == 0 and key in PARTS:
            return max(1, self.total // PARTS[key]) if self.total else 0
        return value

    def due(self, key: str, step: int) -> bool:
        """Whether a step is one of `every` so many, or the last."""
        every = self.every(key, step)
        return step == self.total or (every > 0 and step % every == 0)
