"""Learning-rate schedules: pure functions of the step, as factors of the peak rate.

Steps count from 1 (the first update) to `total` (the last one).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.sections import OptimConfig

WAVE_FLOOR, WAVE_FALL = 0.1, 0.9
"""A wave falls to this share of the peak, during this share of its steps; then it rises again."""


def smooth_factor(progress: float) -> float:
    """From 0 to 1 on two parabolas that meet halfway: the rate changes without a corner at either end."""
    return 2.0 * progress**2 if progress < 0.5 else 1.0 - 2.0 * (1.0 - progress) ** 2


def warmup_factor(step: int, warmup: int, kind: str = "linear") -> float:
    """Rise to 1.0 at step `warmup`, in proportion ("linear") or as `smooth_factor` ("quadratic"); 1.0 if that is 0."""
    progress = min(1.0, step / warmup) if warmup > 0 else 1.0
    return smooth_factor(progress) if kind == "quadratic" else progress


def cosine_factor(progress: float, end: float) -> float:
    """Half a cosine from 1.0 at progress 0 to `end` at 1 (Loshchilov and Hutter 2016, eq. 5)."""
    return end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def wave_factor(step: int, length: int) -> float:
    """Waves of `length` steps, from 1.0 at step 0: half a cosine down to WAVE_FLOOR and half a cosine up again."""
    place = step % length / length
    fallen = place / WAVE_FALL if place < WAVE_FALL else (1.0 - place) / (1.0 - WAVE_FALL)
    return cosine_factor(fallen, WAVE_FLOOR)


def learning_rate(step: int, total: int | None, optim: OptimConfig) -> float:
    """Learning rate of update `step` (from 1) of `total`.

    After the warm-up, "cosine" falls to `min_lr_ratio` of the peak at the last step. "wsd" stays at the peak and falls
    in a straight line during the last `decay_fraction` of all steps (Hu et al. 2024, arXiv 2404.06395, section 4).
    "waves" goes in waves of `wave_steps` and, during that last part, from where it is to `min_lr_ratio` on
    `smooth_factor`.

    Args:
        total: None while the length of a time-budgeted run is not measured yet: warm-up, then the peak.
    """
    warmup = optim.warmup_steps
    if step <= warmup or total is None:
        return optim.lr * warmup_factor(step, warmup, optim.warmup)
    if optim.schedule == "cosine":
        return optim.lr * cosine_factor(_share(step, warmup, total), optim.min_lr_ratio)
    last = max(warmup, total - max(1, round(optim.decay_fraction * total)))
    progress = _share(step, last, total)
    if optim.schedule == "wsd":
        return optim.lr * (1.0 - (1.0 - optim.min_lr_ratio) * progress)
    if optim.schedule == "waves":
        top = wave_factor(min(step, last) - warmup, optim.wave_steps)
        return optim.lr * (top + (optim.min_lr_ratio - top) * smooth_factor(progress))
    raise ValueError(f"schedule must be one of cosine, wsd, waves, got {optim.schedule!r}")


def _share(step: int, start: int, end: int) -> float:
    """How far `step` is from `start` to `end`, within 0 to 1."""
    return min(1.0, max(0.0, (step - start) / max(1, end - start)))
