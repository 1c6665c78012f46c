"""Schedules at their corners."""

import math

import pytest

from train.schedule import cosine_factor, learning_rate, warmup_factor, wsd_factor


def test_warmup_is_linear_and_reaches_one():
    assert [warmup_factor(step, 4) for step in (1, 2, 4, 9)] == [0.25, 0.5, 1.0, 1.0]
    assert warmup_factor(1, 0) == 1.0


def test_cosine_corners_and_middle():
    assert cosine_factor(10, 110, 10, 0.1) == 1.0
    assert cosine_factor(60, 110, 10, 0.1) == pytest.approx(0.55)
    assert cosine_factor(110, 110, 10, 0.1) == pytest.approx(0.1)
    assert cosine_factor(35, 110, 10, 0.0) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    values = [cosine_factor(step, 110, 10, 0.1) for step in range(10, 111)]
    assert values == sorted(values, reverse=True)


def test_wsd_is_stable_then_straight():
    values = [wsd_factor(step, 100, 10, 0.1, 0.2) for step in range(1, 101)]
    assert values[4] == 0.5 and set(values[9:80]) == {1.0}
    assert values[89] == pytest.approx(0.55) and values[99] == pytest.approx(0.1)


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
@pytest.mark.parametrize("total, warmup", [(1, 0), (1, 5), (3, 3), (5, 100)])
def test_short_runs_stay_in_range(kind, total, warmup):
    for step in range(1, total + 1):
        rate = learning_rate(step, total, peak=2.0, kind=kind, warmup=warmup, min_ratio=0.1, decay_fraction=0.2)
        assert 0.0 < rate <= 2.0


def test_unknown_length_is_warmup_then_peak():
    rates = [learning_rate(step, None, peak=2.0, kind="cosine", warmup=2, min_ratio=0.1, decay_fraction=0.2)
             for step in (1, 2, 9)]
    assert rates == [1.0, 2.0, 2.0]
    with pytest.raises(ValueError, match="cosine, wsd"):
        learning_rate(1, 2, peak=1.0, kind="linear", warmup=0, min_ratio=0.1, decay_fraction=0.2)
