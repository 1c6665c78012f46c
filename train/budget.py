"""How many steps fit in a number of minutes, from the first ones."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from train.config import Config
from train.curriculum import Curriculum
from train.loop import Position
from train.pace import EVALUATIONS, SAMPLES

MEASURED_STEPS = 10
SKIPPED_STEPS = 2  # the first ones compile and warm up
FORWARD_SHARE = 0.4
SAMPLE_SECONDS_PER_TOKEN = 0.008


def steps_in_budget(config: Config, position: Position, seconds: Sequence[float], validates: bool) -> int | None:
    """Steps of a run of `run.minutes`, what evaluations and samples take left out; None while it is too early to say.

    Longer rows are taken to cost as much per token as those of the first stage.

    Args:
        seconds: of each step so far. The first ones count only when the whole budget has gone into them.
        validates: evaluations are made.
    """
    run = config.run
    budget = run.minutes * 60.0
    measured = len(seconds) - SKIPPED_STEPS
    patience = budget / 4 if measured >= 1 else budget
    if measured < MEASURED_STEPS and position.wall_seconds < patience:
        return None
    step_seconds = statistics.median(seconds[SKIPPED_STEPS:] or seconds[-1:])
    overhead = SAMPLES * run.sample_tokens * SAMPLE_SECONDS_PER_TOKEN
    per_token = step_seconds / Curriculum(config.data, None).at(0).batch_tokens
    if validates:
        overhead += EVALUATIONS * run.eval_tokens * FORWARD_SHARE * per_token
    left = budget - position.wall_seconds
    left -= min(overhead, left / 2)
    tokens = position.cursor + max(1, round(left / per_token))
    return max(position.step + 1, Curriculum(config.data, tokens).total_steps())
