"""Rotary frequencies of a context that is longer than the trained one, for every kind of extension.

Pair i of R features turns by theta_i = base^(-2 i / R) radians a token; s is the factor, L the trained length.
"""

from __future__ import annotations

import math

import numpy as np

from models.context import ContextConfig


def frequencies(features: int, base: float, context: ContextConfig) -> np.ndarray:
    """Radians a token of each pair of features: float64 [features / 2].

    linear: theta / s, position interpolation (arXiv 2306.15595, section 2.3).
    ntk: base s^(R / (R - 2)), so that the slowest pair turns by theta / s and the fastest as before ("NTK-aware" in
        arXiv 2309.00071).
    abf: a base that is given; the paper takes 500,000 (arXiv 2309.16039, section 2.1).
    yarn: theta (1 - g) + g theta / s ("NTK-by-parts" in arXiv 2309.00071): g falls from 1 for pairs that make no
        more than `slow_turns` within the trained length to 0 for those that make `fast_turns` or more, linearly in the
        number of turns. The paper takes 1 and 32 for its models, and wants them tuned for others.
    none and dca: theta.
    """
    if context.kind == "ntk":
        base = base * context.factor ** (features / (features - 2))
    elif context.kind == "abf":
        base = context.base
    theta = base ** (-np.arange(0, features, 2, dtype=np.float64) / features)
    if context.kind == "linear":
        return theta / context.factor
    if context.kind == "yarn":
        turns = context.trained_length * theta / (2 * math.pi)
        slow = 1 - np.clip((turns - context.slow_turns) / (context.fast_turns - context.slow_turns), 0, 1)
        return theta * (1 - slow + slow / context.factor)
    return theta


def temperature(context: ContextConfig) -> float:
    """What cos and sin are multiplied by: 0.1 ln s + 1 with yarn, else 1 (arXiv 2309.00071, attention scaling).

    Scores grow by its square, those of the features that turn.
    """
    return 0.1 * math.log(context.factor) + 1 if context.kind == "yarn" else 1.0
