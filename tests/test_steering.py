"""Changes made while a run goes on: what holds at which step, on disk and after a resume."""

from __future__ import annotations

import math

import pytest

from train.errors import UserError
from train.steering import Change, Changes, Steering


def falling(step: int) -> float:
    """A schedule with another rate at each step."""
    return 1e-3 * (1.0 - step / 1000)


def rates(changes: Changes, first: int, last: int) -> list[float]:
    return [changes.lr(step, falling) for step in range(first, last + 1)]


@pytest.fixture
def steering(tmp_path):
    return Steering(tmp_path / "steering.jsonl")


def test_without_changes_the_settings_hold(steering):
    assert steering.lr(7, falling) == falling(7)
    assert steering.value("seq_len", 7) is None
    assert steering.changes_at(7) == []
    assert not steering.path.exists()


def test_a_change_holds_from_its_step_on(steering):
    steering.append(Change(5, "seq_len", 128, start=256))
    steering.append(Change(9, "seq_len", 64, start=128))
    assert [steering.value("seq_len", step) for step in (4, 5, 8, 9, 10_000)] == [None, 128, 128, 64, 64]
    assert steering.value("batch_tokens", 9) is None


def test_the_learning_rate_moves_along_half_a_cosine_and_then_follows_the_schedule():
    changes = Changes((Change(101, "lr", 1e-4, 50, falling(100)),))
    expected = [falling(100) + (1e-4 - falling(100)) * (1 - math.cos(math.pi * i / 50)) / 2 for i in range(1, 51)]
    assert rates(changes, 101, 150) == pytest.approx(expected, rel=1e-12)
    assert changes.lr(100, falling) == falling(100)
    assert changes.lr(150, falling) == 1e-4
    assert rates(changes, 151, 999) == pytest.approx([1e-4 * falling(s) / falling(150) for s in range(151, 1000)])


@pytest.mark.parametrize("over", [0, 1])
def test_without_a_way_the_rate_is_there_at_once(over):
    changes = Changes((Change(101, "lr", 1e-4, over, falling(100)),))
    assert changes.lr(101, falling) == 1e-4
    assert changes.lr(200, falling) == pytest.approx(1e-4 * falling(200) / falling(101))


def test_a_schedule_that_ended_at_zero_leaves_the_value():
    changes = Changes((Change(1000, "lr", 1e-4, 1, 0.0),))
    assert changes.lr(1005, lambda step: 0.0) == 1e-4


def test_a_second_change_begins_where_the_first_has_come():
    first = Change(101, "lr", 1e-4, 50, falling(100))
    on_the_way = Changes((first,)).lr(120, falling)
    changes = Changes((first, Change(121, "lr", 5e-3, 10, on_the_way)))
    seen = rates(changes, 119, 131)
    assert seen[1] == on_the_way
    assert all(earlier < later for earlier, later in zip(seen[1:11], seen[2:12]))
    assert seen[11] == 5e-3


def test_undoing_moves_back_to_what_held_before():
    first = Change(101, "lr", 1e-4, 400, falling(100))
    second = Change(121, "lr", 5e-3, 10, Changes((first,)).lr(120, falling))
    before = Changes((first, second))
    changes = before.plus(Change(141, "lr", None, 10, before.lr(140, falling), undo=2))
    assert changes.lr(140, falling) == before.lr(140, falling)
    assert changes.lr(141, falling) < before.lr(140, falling)
    assert rates(changes, 150, 600) == rates(Changes((first,)), 150, 600)
    both = changes.plus(Change(700, "lr", None, 0, 1e-4, undo=1))
    assert rates(both, 700, 999) == [falling(step) for step in range(700, 1000)]
    steps = rates(both, 100, 699)
    assert max(abs(b - a) for a, b in zip(steps, steps[1:])) < 1e-3


def test_undoing_an_earlier_change_leaves_the_later_one():
    lines = Change(10, "lr", 1e-4, 0, 1e-3), Change(20, "lr", 2e-4, 0, 1e-4)
    changes = Changes(lines).plus(Change(30, "lr", None, 5, 2e-4, undo=1))
    assert rates(changes, 30, 100) == rates(Changes(lines), 30, 100)
    assert rates(changes, 11, 29) == rates(Changes(lines), 11, 29)


def test_values_are_undone_too():
    changes = Changes((Change(5, "seq_len", 128, start=256), Change(9, "seq_len", 64, start=128),
                       Change(12, "seq_len", None, start=64, undo=2), Change(13, "seq_len", None, start=128, undo=1)))
    assert [changes.value("seq_len", step) for step in (4, 5, 9, 12, 13)] == [None, 128, 64, 128, None]


def test_what_is_undone_before_its_step_never_holds():
    changes = Changes((Change(151, "lr", 1e-4, 0, 1e-3), Change(111, "lr", None, 0, 1e-3, undo=1)))
    assert rates(changes, 100, 300) == [falling(step) for step in range(100, 301)]
    assert changes.rows(151) == []
    assert [row["event"] for row in changes.rows(111)] == ["undo"]


def test_of_two_at_a_step_the_last_made_holds_and_both_are_logged():
    changes = Changes((Change(5, "lr", 1e-4, 0, 1e-3), Change(5, "lr", 2e-4, 0, 1e-3)))
    assert changes.lr(5, falling) == 2e-4
    assert changes.rows(5) == [
        {"step": 5, "event": "set", "key": "lr", "value": 1e-4, "over": 0, "was": 1e-3, "change": 1},
        {"step": 5, "event": "set", "key": "lr", "value": 2e-4, "over": 0, "was": 1e-3, "change": 2}]


def test_the_file_gives_the_same_changes_again(steering):
    steering.append(Change(101, "lr", 1e-4, 50, falling(100)))
    steering.append(Change(103, "eval_every", 20, start=100))
    steering.append(Change(120, "lr", None, 50, 5e-4, undo=1))
    again = Steering(steering.path)
    assert again.changes.lines == steering.changes.lines
    assert [again.lr(step, falling) for step in range(90, 300)] == [steering.lr(step, falling)
                                                                    for step in range(90, 300)]
    again.append(Change(130, "eval_every", 30, start=20))
    assert Steering(steering.path).changes.lines == again.changes.lines


@pytest.mark.parametrize("cut", range(1, 40))
def test_an_unfinished_last_line_is_passed_over_and_overwritten(steering, cut):
    steering.append(Change(5, "seq_len", 128, start=256))
    whole = steering.path.read_bytes()
    steering.append(Change(9, "seq_len", 64, start=128))
    steering.path.write_bytes(steering.path.read_bytes()[:-cut])
    again = Steering(steering.path)
    assert again.changes.lines == (Change(5, "seq_len", 128, start=256),)
    again.append(Change(9, "log_every", 1, start=10))
    assert steering.path.read_bytes().startswith(whole)
    assert [line.key for line in Steering(steering.path).changes.lines] == ["seq_len", "log_every"]


@pytest.mark.parametrize("line", [b"{}", b"5", b"", b'{"step": "5", "key": "lr", "value": 1.0}', b"\xff\xfe",
                                  b'{"step": 5, "key": "lr"}', b'{"step": 5, "key": "lr", "undo": 7}'])
def test_a_broken_line_is_named(steering, line):
    steering.append(Change(5, "seq_len", 128, start=256))
    with open(steering.path, "ab") as file:
        file.write(line + b"\n")
    with pytest.raises(UserError, match="steering.jsonl, line 2"):
        Steering(steering.path)
