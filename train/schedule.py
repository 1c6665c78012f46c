"""Learning-rate schedules: pure functions of the step, as factors of the peak rate.

Steps count from 1 (the first update) to `total` (the last one).
"""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "wsd")


def warmup_factor(step: int, warmup: int) -> float:
    """Linear rise: step / warmup up to 1.0; 1.0 from the first step when `warmup` is 0."""
    return min(1.0, step / warmup) if warmup > 0 else 1.0


def cosine_factor(step: int, total: int, warmup: int, min_ratio: float) -> float:
    """Warm-up, then half a cosine from 1.0 down to `min_ratio` at step `total` (Loshchilov and Hutter 2016, eq. 5)."""
    if step <= warmup:
        return warmup_factor(step, warmup)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))


def wsd_factor(step: int, total: int, warmup: int, min_ratio: float, decay_fraction: float) -> float:
    """Warm-up, stable, then a straight line to `min_ratio` over the last `decay_fraction` of all steps
    (warmup-stable-decay; Hu et al. 2024, arXiv 2404.06395, section 4)."""
    decay_start = max(warmup, total - max(1, round(decay_fraction * total)))
    if step <= warmup or step <= decay_start:
        return warmup_factor(step, warmup)
    progress = min(1.0, (step - decay_start) / max(1, total - decay_start))
    return 1.0 - (1.0 - min_ratio) * progress


def learning_rate(step: int, total: int | None, *, peak: float, kind: str, warmup: int, min_ratio: float,
                  decay_fraction: float) -> float:
    """Learning rate of update `step` (from 1) of `total`.

    `total` is None while the length of a time-budgeted run is not measured yet: warm-up, then the peak.
    """
    if total is None:
        return peak * warmup_factor(step, warmup)
    if kind == "cosine":
        return peak * cosine_factor(step, total, warmup, min_ratio)
    if kind == "wsd":
        return peak * wsd_factor(step, total, warmup, min_ratio, decay_fraction)
    raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {kind!r}")
