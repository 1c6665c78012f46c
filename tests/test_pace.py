"""What each step of a run takes, from its settings and from what a person changed meanwhile."""

import pytest

from train.errors import UserError
from train.pace import Pace
from train.presets import preset
from train.rules import check_portion
from train.steering import Change, Steering

GROWING = {"data.lengths": "64:25%,256:75%", "data.batch_ramp": "1024:50%,4096:50%"}


@pytest.fixture
def steering(tmp_path):
    return Steering(tmp_path / "steering.jsonl")


def pace_of(steering, **values):
    values = {name.replace("__", "."): value for name, value in values.items()}
    return Pace(preset("demo").with_values(values), steering)


def test_the_length_of_a_run(steering):
    assert pace_of(steering, run__steps=7).total == 7
    assert pace_of(steering, run__tokens=4097).total == 2
    assert pace_of(steering).total is None
    ramped = pace_of(steering, run__tokens=16_384, **{"data__batch_ramp": GROWING["data.batch_ramp"]})
    assert ramped.total == 8 + 2


def test_the_number_of_steps_that_was_measured_is_taken_over(steering):
    pace = pace_of(steering)
    pace.fix(preset("demo").with_values({"run.steps": 50}))
    assert pace.total == 50
    assert pace.due("eval_every", 5) and not pace.due("eval_every", 6) and pace.due("eval_every", 50)


def test_rows_follow_the_curriculum_and_then_what_was_asked_for(steering):
    pace = pace_of(steering, run__tokens=16_384, data__lengths=GROWING["data.lengths"],
                   data__batch_ramp=GROWING["data.batch_ramp"])
    assert pace.portion(1, 0) == (16, 64) and pace.portion(5, 4096) == (4, 256) and pace.portion(9, 8192) == (16, 256)
    steering.append(Change(3, "seq_len", 128))
    steering.append(Change(6, "batch_tokens", 2048))
    assert pace.portion(2, 1024) == (16, 64) and pace.portion(3, 2048) == (8, 128)
    assert pace.portion(9, 8192) == (16, 128)


def test_a_run_by_tokens_ends_sooner_with_larger_steps(steering):
    pace = pace_of(steering, run__tokens=40_960)
    assert pace.total == 10
    steering.append(Change(5, "batch_tokens", 8192))
    pace.replan(3, 12_288)
    assert pace.total == 10
    pace.replan(4, 16_384)
    assert pace.total == 4 + 3
    by_steps = pace_of(steering, run__steps=10)
    by_steps.replan(4, 16_384)
    assert by_steps.total == 10


def test_how_often_can_be_changed(steering):
    pace = pace_of(steering, run__steps=100)
    steering.append(Change(11, "log_every", 3))
    steering.append(Change(11, "checkpoint.every", 7))
    assert pace.due("log_every", 10) and pace.due("log_every", 12) and not pace.due("log_every", 20)
    assert pace.due("checkpoint.every", 14) and not pace.due("checkpoint.every", 50)
    assert pace.due("checkpoint.every", 100)


def test_the_rate_is_the_schedules_until_someone_changes_it(steering):
    pace = pace_of(steering, run__steps=100)
    before = [pace.lr(step) for step in range(1, 101)]
    assert before == [pace.scheduled(step) for step in range(1, 101)]
    steering.append(Change(50, "lr", 1e-4, over=10, start=before[48]))
    after = [pace.lr(step) for step in range(1, 101)]
    assert after[:49] == before[:49] and after[58] == pytest.approx(1e-4)
    assert all(a > b for a, b in zip(after[48:58], after[49:59]))
    assert after[98] == pytest.approx(1e-4 * before[98] / before[58])


@pytest.mark.parametrize("seq_len, batch_tokens, words", [
    (0, 64, "at least 1: got 0"), (512, 512, "at most model.max_seq_len (256): got 512"),
    (64, 100, "multiple of data.seq_len (64): got 100"), (48, 96, "must divide data.window (256): got 48"),
])
def test_rows_that_cannot_be(seq_len, batch_tokens, words):
    with pytest.raises(UserError) as error:
        check_portion(seq_len, batch_tokens, 256, 256)
    assert words in str(error.value)
