"""Schedules at their corners."""

from dataclasses import replace

import pytest

from train.schedule import learning_rate, smooth_factor, warmup_factor, wave_factor
from train.sections import OptimConfig

SEED = OptimConfig(lr=3e-4, schedule="waves", warmup="quadratic", warmup_steps=2048, wave_steps=1024,
                   min_lr_ratio=1 / 30, decay_fraction=0.05)
"""The recipe of the system that this project rebuilds."""


def rates(total: int, **settings) -> list[float]:
    optim = OptimConfig(lr=1.0, **settings)
    return [learning_rate(step, total, optim) for step in range(1, total + 1)]


def test_warmup_reaches_one():
    assert [warmup_factor(step, 4) for step in (1, 2, 4, 9)] == [0.25, 0.5, 1.0, 1.0]
    assert [warmup_factor(step, 4, "quadratic") for step in (1, 2, 3, 4, 9)] == [0.125, 0.5, 0.875, 1.0, 1.0]
    assert warmup_factor(1, 0) == warmup_factor(1, 0, "quadratic") == 1.0


def test_cosine_corners_and_middle():
    values = rates(110, warmup_steps=10, min_lr_ratio=0.1)
    assert values[4] == 0.5 and values[9] == 1.0
    assert values[59] == pytest.approx(0.55) and values[109] == pytest.approx(0.1)
    assert values[9:] == sorted(values[9:], reverse=True)


def test_wsd_is_stable_then_straight():
    values = rates(100, schedule="wsd", warmup_steps=10, min_lr_ratio=0.1, decay_fraction=0.2)
    assert values[4] == 0.5 and set(values[9:80]) == {1.0}
    assert values[89] == pytest.approx(0.55) and values[99] == pytest.approx(0.1)


def test_waves_fall_long_and_rise_short():
    assert wave_factor(0, 100) == wave_factor(200, 100) == 1.0
    assert wave_factor(90, 100) == pytest.approx(0.1)
    assert wave_factor(45, 100) == pytest.approx(0.55) == wave_factor(95, 100)
    wave = [wave_factor(step, 100) for step in range(101)]
    assert wave[:91] == sorted(wave[:91], reverse=True) and wave[90:] == sorted(wave[90:])


def test_waves_end_smoothly():
    values = rates(1000, schedule="waves", warmup_steps=10, wave_steps=100, min_lr_ratio=0.05, decay_fraction=0.1)
    assert values[109] == 1.0 and values[99] == pytest.approx(0.1)
    assert values[899] == pytest.approx(wave_factor(890, 100)) and values[999] == pytest.approx(0.05)
    middle = (values[899] + values[999]) / 2
    assert values[949] == pytest.approx(middle)
    assert max(abs(a - b) for a, b in zip(values[898:], values[899:])) < 0.025


@pytest.mark.parametrize("step, rate", [(1, 1.430511474609375e-10), (2, 5.72204590e-10), (1024, 1.5e-4), (2048, 3e-4),
                                        (2968, 3.00020080e-05), (3071, 2.99936471e-04), (3992, 3.00020080e-05)])
def test_waves_are_those_of_the_recipe(step, rate):
    """Learning rates that the system logged at these steps."""
    assert learning_rate(step, 170_099, SEED) == pytest.approx(rate, rel=1e-7)


@pytest.mark.parametrize("kind", ["cosine", "wsd", "waves"])
@pytest.mark.parametrize("total, warmup", [(1, 0), (1, 5), (3, 3), (5, 100), (7, 0)])
def test_short_runs_stay_in_range(kind, total, warmup):
    settings = {"schedule": kind, "warmup_steps": warmup, "wave_steps": 3}
    assert all(0.0 < rate <= 1.0 for rate in rates(total, **settings))
    assert all(0.0 < rate <= 1.0 for rate in rates(total, **settings, warmup="quadratic"))


def test_a_straight_change_and_a_smooth_one_meet_halfway():
    assert [smooth_factor(x) for x in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0.0, 0.125, 0.5, 0.875, 1.0]


def test_unknown_length_is_warmup_then_peak():
    optim = OptimConfig(lr=2.0, warmup_steps=2)
    assert [learning_rate(step, None, optim) for step in (1, 2, 9)] == [1.0, 2.0, 2.0]
    with pytest.raises(ValueError, match="cosine, wsd, waves"):
        learning_rate(3, 4, replace(optim, schedule="linear"))
