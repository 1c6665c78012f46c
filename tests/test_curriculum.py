"""The length curriculum and the batch ramp, and an account of every token through their switches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_samples import naive_rows, naive_stream, numbered, numbered_batches
from engine.errors import UserError
from train.curriculum import Curriculum, Stage, parse_shares
from train.data import TokenStream
from train.sections import DataConfig

SEED_SYSTEM = "64:10%,128:20%,256:50%,512:10%,1024:10%"


def data(lengths="", ramp="", seq_len=1024, batch_tokens=65_536) -> DataConfig:
    return DataConfig(lengths=lengths, batch_ramp=ramp, seq_len=seq_len, batch_tokens=batch_tokens)


def walked(curriculum: Curriculum, cursor: int = 0) -> list[Stage]:
    """The stage of every step."""
    found = []
    while cursor < curriculum.total_tokens:
        found.append(curriculum.at(cursor))
        cursor += found[-1].batch_tokens
    return found


def test_the_seed_systems_lengths_have_their_shares():
    curriculum = Curriculum.for_steps(data(SEED_SYSTEM), 1000)
    assert curriculum.total_tokens == 65_536_000 and curriculum.total_steps() == 1000
    assert curriculum.stages() == [(Stage(64, 65_536), 100), (Stage(128, 65_536), 200), (Stage(256, 65_536), 500),
                                   (Stage(512, 65_536), 100), (Stage(1024, 65_536), 100)]
    assert [stage.rows for stage, _ in curriculum.stages()] == [1024, 512, 256, 128, 64]
    assert curriculum.at(6_553_599) == Stage(64, 65_536) and curriculum.at(6_553_600) == Stage(128, 65_536)
    assert curriculum.at(10**12) == Stage(1024, 65_536)


def test_lengths_and_batches_change_on_their_own():
    curriculum = Curriculum(data("8:50%,16:50%", "16:25%,32:75%", 16, 32), 320)
    assert curriculum.stages() == [(Stage(8, 16), 5), (Stage(8, 32), 3), (Stage(16, 32), 5)]
    assert curriculum.total_steps() == len(walked(curriculum)) == 13
    assert curriculum.stages(176) == [(Stage(16, 32), 5)]
    assert curriculum.steps_from(170) == 5 and curriculum.steps_from(80) == 8 and curriculum.steps_from(400) == 0


def test_without_settings_there_is_one_stage():
    curriculum = Curriculum.for_steps(data(), 7)
    assert curriculum.stages() == [(Stage(1024, 65_536), 7)] and curriculum.total_tokens == 7 * 65_536
    assert Curriculum(data(), 65_537).total_steps() == 2


def test_a_run_of_unknown_length_stays_in_its_first_stage():
    curriculum = Curriculum(data(SEED_SYSTEM, "1024:1%,65536:99%"), None)
    assert curriculum.total_steps() is None
    assert curriculum.at(0) == curriculum.at(10**15) == Stage(64, 1024)


@st.composite
def shares(draw, values):
    """Text of settings with whole shares; its values, and the shares."""
    parts = draw(st.lists(st.integers(1, 10), min_size=len(values), max_size=len(values)))
    percent = [100 * part // sum(parts) for part in parts[:-1]]
    percent.append(100 - sum(percent))
    return ",".join(f"{value}:{share}%" for value, share in zip(values, percent, strict=True)), percent


@given(st.data())
def test_every_number_of_steps_is_met_with_each_share_to_within_a_batch(draw):
    sizes = sorted(draw.draw(st.lists(st.integers(1, 40), min_size=1, max_size=4, unique=True)))
    lengths = draw.draw(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=4))
    ramp, ramp_percent = draw.draw(shares([8 * size for size in sizes]))
    rows, rows_percent = draw.draw(shares(lengths))
    steps = draw.draw(st.integers(1, 500))
    curriculum = Curriculum.for_steps(data(rows, ramp, lengths[-1], 8 * sizes[-1]), steps)
    stages = walked(curriculum)
    assert len(stages) == steps == curriculum.total_steps()
    assert [stage for stage, count in curriculum.stages() for _ in range(count)] == stages
    total, most = sum(stage.batch_tokens for stage in stages), 8 * sizes[-1]
    assert curriculum.total_tokens <= total < curriculum.total_tokens + most
    for values, percents, field in ((lengths, rows_percent, "seq_len"), ([8 * size for size in sizes], ramp_percent,
                                                                         "batch_tokens")):
        for value in set(values):
            meant = sum(share for own, share in zip(values, percents, strict=True) if own == value)
            had = sum(stage.batch_tokens for stage in stages if getattr(stage, field) == value)
            assert abs(had - meant / 100 * total) < most * (1 + values.count(value)) + 1


def test_batches_that_shrink_again_have_at_most_as_many_steps_as_asked_for():
    for steps in range(1, 200):
        found = Curriculum.for_steps(data("", "8:30%,200:30%,8:40%", 8, 8), steps).total_steps()
        assert steps - 30 < found <= steps


@pytest.mark.parametrize("text, words", [
    ("64", "must be numbers with their shares"),
    ("64:10", "such as 64:10%,128:90%: got '64:10'"),
    ("0:100%", "must be numbers"),
    ("64:0%,128:100%", "must be numbers"),
    ("64:50%,,128:50%", "must be numbers"),
    ("-64:100%", "must be numbers"),
    ("6.4:100%", "must be numbers"),
    ("64:50%,128:40%", "data.lengths must add up to 100 %: got 90 %"),
])
def test_what_is_no_list_of_shares(text, words):
    with pytest.raises(UserError, match=words):
        parse_shares(text, "data.lengths")


def test_shares_are_read():
    assert parse_shares(" 64 : 12.5 %, 128:87.5%", "x") == [(64, 0.125), (128, 0.875)]
    assert parse_shares("1:33.3333333%,2:33.3333333%,3:33.3333333%", "x")[0] == (1, pytest.approx(1 / 3))
    assert parse_shares("", "x") == parse_shares(" ", "x") == []


@pytest.mark.parametrize("doc_mask", [False, True])
def test_every_token_is_accounted_for_through_all_switches(doc_mask):
    part = numbered([70, 3, 1, 40, 17, 8, 2, 150, 33, 5, 64, 9, 1, 1, 28, 31])
    window, seed, epochs, n = 32, 5, 4, part.tokens
    settings = data("4:10%,16:25%,8:25%,32:20%,4:5%,32:15%", "32:20%,96:55%,64:25%", 32, 64)
    curriculum = Curriculum(settings, epochs * n)
    batches = numbered_batches(TokenStream(part, window, seed), doc_mask)
    stream = naive_stream(part, window, seed, epochs * n + 96)
    cursor, seen, visited, cut_epochs = 0, [], [], 0
    while cursor < epochs * n:
        stage = curriculum.at(cursor)
        batch = batches.batch(cursor, stage.rows, stage.seq_len)
        end = cursor + stage.batch_tokens
        rows = np.array(naive_rows(stream[cursor:end], stage.seq_len, doc_mask)).T.reshape(3, *batch.ids.shape)
        assert np.array_equal(batch.ids, rows[0]) and np.array_equal(batch.targets, rows[1])
        assert np.array_equal(batch.doc_start, rows[2]) if doc_mask else batch.doc_start is None
        assert batch.predicted == batch.bytes == np.count_nonzero(rows[1] != -100)
        unbroken = [stream[at].target == stream[at + 1].token or (at + 1) % n == 0 or (at + 1) % stage.seq_len == 0
                    for at in range(cursor, end - 1)]
        assert all(unbroken), "a row goes on over a window's end"
        seen += zip(batch.ids.ravel().tolist(), batch.targets.ravel().tolist(), strict=True)
        visited += [stage] if stage not in visited[-1:] else []
        cut_epochs += cursor // n < (end - 1) // n
        cursor = end
    assert visited == [stage for stage, _ in curriculum.stages()] and len(visited) == 8
    assert cut_epochs == epochs, "epochs end in the middle of batches"
    starts = set(part.starts.tolist()) if doc_mask else set()
    for epoch in range(epochs):
        ids, targets = zip(*seen[epoch * n : (epoch + 1) * n], strict=True)
        assert sorted(ids) == list(range(n))
        assert sorted(target for target in targets if target >= 0) == [t for t in range(n) if t not in starts]
