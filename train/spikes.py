"""Noticing a loss that jumps."""

from __future__ import annotations

import math
import statistics
from collections import deque

WINDOW = 64
FEWEST = 16
LIMIT = 6.0
SIGMA_PER_MAD = 1.4826
LEAST_SPREAD = 0.01


class SpikeDetector:
    """Compares each step's loss with the median of the steps before it.

    A spike lies more than LIMIT standard deviations above the median of the last WINDOW losses. The deviation is
    estimated from the median absolute deviation, which outliers do not move (Rousseeuw and Croux 1993, section 1), and
    is at least LEAST_SPREAD of the median, so that a flat curve is not all spikes. A loss that stays high becomes the
    new median after half a window.
    """

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def check(self, loss: float) -> float | None:
        """Take in a step's loss, in nats per token. Returns the loss that was to be expected if it is a spike, else
        None. The first FEWEST losses are never spikes; one that is not finite is not taken in."""
        if not math.isfinite(loss):
            return None
        expected = None
        if len(self._losses) >= FEWEST:
            middle = statistics.median(self._losses)
            spread = SIGMA_PER_MAD * statistics.median(abs(value - middle) for value in self._losses)
            if loss > middle + LIMIT * max(spread, LEAST_SPREAD * abs(middle)):
                expected = middle
        self._losses.append(loss)
        return expected

    def state(self) -> list[float]:
        """What JSON can hold and `load_state` takes: the losses it remembers."""
        return list(self._losses)

    def load_state(self, losses: list[float] | None) -> None:
        """Go on from a `state`; None, as in checkpoints that have none, is a fresh start."""
        self._losses = deque(losses or (), maxlen=WINDOW)
