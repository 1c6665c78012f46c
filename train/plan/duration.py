"""How long a run takes, from the time of its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from train.budget import FORWARD_SHARE, SAMPLE_SECONDS_PER_TOKEN, steps_in_budget
from train.config import Config
from train.curriculum import Curriculum, Stage
from train.loop import Position
from train.pace import EVALUATIONS, SAMPLES

ENOUGH_STEPS = 50


class Part(NamedTuple):
    """Steps of one stage, and the seconds of one of them."""

    stage: Stage
    steps: int
    seconds: float


class Duration(NamedTuple):
    """Seconds of a run by what they go into; `reading` is spent by a thread beside the computing."""

    parts: list[Part]
    computing: float
    evaluating: float
    sampling: float
    reading: float

    @property
    def steps(self) -> int:
        return sum(part.steps for part in self.parts)

    @property
    def tokens(self) -> int:
        return sum(part.steps * part.stage.batch_tokens for part in self.parts)

    @property
    def whole(self) -> float:
        """From the first step to the end."""
        return self.computing + self.evaluating + self.sampling


def stages_of(config: Config, first_seconds: Callable[[Stage], float]) -> list[tuple[Stage, int]]:
    """The stages of a run and the steps of each; a run by minutes takes as many as its first stage lets it.

    Args:
        first_seconds: of a step of a stage.
    """
    run, data = config.run, config.data
    steps = run.steps
    if not steps and not run.tokens:
        first = Curriculum(data, None).at(0)
        steps = steps_in_budget(config, Position(), [first_seconds(first)] * ENOUGH_STEPS, run.eval_tokens > 0)
    curriculum = Curriculum.for_steps(data, steps) if steps else Curriculum(data, run.tokens)
    return curriculum.stages()


def duration(config: Config, step_seconds: Callable[[Stage], float], batch_seconds: float) -> Duration:
    """Of a whole run.

    Args:
        step_seconds: of a step of a stage.
        batch_seconds: to cut a step's batch out of the text.
    """
    known: dict[Stage, float] = {}

    def seconds(stage: Stage) -> float:
        if stage not in known:
            known[stage] = step_seconds(stage)
        return known[stage]

    parts = [Part(stage, steps, seconds(stage)) for stage, steps in stages_of(config, seconds)]
    last = parts[-1]
    total = sum(part.steps for part in parts)
    forward = FORWARD_SHARE * last.seconds / last.stage.batch_tokens
    run = config.run
    return Duration(parts, sum(part.steps * part.seconds for part in parts),
                    _times(run.eval_every, total, EVALUATIONS) * run.eval_tokens * forward,
                    _times(run.sample_every, total, SAMPLES) * run.sample_tokens * SAMPLE_SECONDS_PER_TOKEN,
                    total * batch_seconds)


def _times(every: int, total: int, usual: int) -> int:
    """How often something happens that is done every so many steps, by default `usual` times, at -1 once."""
    return 1 if every < 0 else min(usual, total) if every == 0 else -(-total // every)
