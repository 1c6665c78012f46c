"""Mixtures: which source is read where, and that each is read in its own order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_samples import BYTE, naive_rows, naive_stream, numbered, numbered_batches
from engine.errors import UserError
from tokenizer import ByteTokenizer
from train.curriculum import Curriculum
from train.data import Batches, MixedStream, Prefetch, TokenStream, parse_sources
from train.data.mixture import turns, whole_weights
from train.sections import DataConfig

WEB, CODE, BOOKS = numbered([20, 1, 45, 7, 30]), numbered([9, 16], 1000), numbered([50, 61, 3], 2000)
PARTS, WEIGHTS = [WEB, CODE, BOOKS], [0.5, 0.2, 0.3]


def naive_mixture(parts, weights, window, seed, tokens):
    """(place, source) of so many tokens."""
    order = turns(whole_weights(weights)).tolist()
    own = [iter(naive_stream(part, window, seed, tokens + window)) for part in parts]
    return [(next(own[source]), source) for at in range(tokens) for source in [order[at // window % len(order)]]]


def test_the_turns_are_the_same_for_ever():
    assert turns([7, 3]).tolist() == [0, 0, 1, 0, 0, 1, 0, 0, 0, 1]
    assert turns([1, 1, 1]).tolist() == [0, 1, 2]
    assert turns([5, 3, 1, 1]).tolist() == [0, 1, 0, 1, 0, 2, 0, 1, 0, 3]
    assert turns([1]).tolist() == [0]


@given(st.lists(st.one_of(st.integers(1, 5), st.integers(1, 200)), min_size=1, max_size=12))
def test_each_share_is_right_to_within_a_window_at_every_place(weights):
    order, total = turns(weights), sum(weights)
    for source, weight in enumerate(weights):
        had, places = np.cumsum(order == source), np.arange(1, total + 1)
        assert had[-1] == weight
        assert (np.abs(had * total - weight * places) < total).all()


def test_weights_as_ratios_of_whole_numbers():
    assert whole_weights([0.7, 0.3]) == [7, 3] == whole_weights([70, 30])
    assert whole_weights([1, 1, 1]) == [1, 1, 1] == whole_weights([1 / 3] * 3)
    assert whole_weights([7 / 9, 2 / 9]) == [7, 2]
    assert whole_weights([0.6123, 0.1877, 0.2]) == [6123, 1877, 2000]
    assert whole_weights([5.0]) == [1]
    for wrong in ([1, 2e-6], [0.123457, 0.234567, 0.641976]):
        with pytest.raises(UserError, match="add up to at most 100,000: got "):
            whole_weights(wrong)


@pytest.mark.parametrize("window", [1, 7, 16, 40, 1000])
def test_reading_equals_the_definition_however_it_is_cut(window):
    tokens, rng = 900, np.random.default_rng(window)
    expected = naive_mixture(PARTS, WEIGHTS, window, window, tokens)
    stream, cursor = MixedStream(PARTS, WEIGHTS, window, window), 0
    while cursor < tokens:
        count = min(int(rng.integers(1, 120)), tokens - cursor)
        read = stream.read(cursor, count)
        got = zip(read.ids.tolist(), read.targets.tolist(), read.ends.tolist(), strict=True)
        assert list(got) == [place for place, _ in expected[cursor : cursor + count]]
        assert stream.sources(cursor, count).tolist() == [source for _, source in expected[cursor : cursor + count]]
        before = np.bincount([source for _, source in expected[:cursor]], minlength=3)
        assert stream.tokens_before(cursor).tolist() == before.tolist()
        cursor += count


def test_a_change_of_source_hides_what_came_before():
    stream = MixedStream([numbered([1000]), numbered([1000], 5000)], [1, 2], 250)
    read, sources = stream.read(0, 12_000), stream.sources(0, 12_000)
    for source in (0, 1):
        places = np.flatnonzero(sources == source)
        again = places[1:][np.diff(places) > 1]
        assert (read.targets[places[:-1]] == read.ids[places[1:]])[np.diff(places) > 1].any(), "own text goes on"
        assert read.begins[again].all()


def test_after_any_cursor_each_source_has_its_share_to_within_a_window():
    stream = MixedStream(PARTS, WEIGHTS, 16)
    for cursor in [*range(0, 700), 10**15 + 5]:
        had = stream.tokens_before(cursor)
        assert had.sum() == cursor
        assert all(abs(int(tokens) - weight * cursor) < 16 for tokens, weight in zip(had, WEIGHTS, strict=True))


def test_each_source_has_epochs_of_its_own():
    stream = MixedStream(PARTS, WEIGHTS, 16, seed=3)
    tokens = 2000
    read, sources = stream.read(0, tokens).ids, stream.sources(0, tokens)
    for source, part in enumerate(PARTS):
        own = read[sources == source]
        whole = own[: len(own) // part.tokens * part.tokens].reshape(-1, part.tokens)
        assert (np.sort(whole) == np.arange(part.tokens) + part.starts[0]).all()
        assert np.array_equal(own, TokenStream(part, 16, seed=3).read(0, len(own)).ids)
    assert np.count_nonzero(sources == 1) // CODE.tokens == 16


def test_a_mixture_of_one_is_its_stream():
    for cursor in (0, 7, 16, 95):
        ours, own = (stream.read(cursor, 100) for stream in (MixedStream([WEB], [3], 16, 1), TokenStream(WEB, 16, 1)))
        assert all(map(np.array_equal, ours, own))


@pytest.mark.parametrize("doc_mask", [False, True])
def test_batches_of_a_mixture_through_a_curriculum(doc_mask):
    settings = DataConfig(lengths="4:20%,16:40%,32:40%", batch_ramp="32:30%,96:70%", seq_len=32, batch_tokens=96)
    curriculum = Curriculum(settings, 1500)
    expected = naive_mixture(PARTS, WEIGHTS, 32, 2, 2000)
    batches = numbered_batches(MixedStream(PARTS, WEIGHTS, 32, seed=2), doc_mask)
    ahead, cursor = Prefetch(batches), 0
    while cursor < 1500:
        stage = curriculum.at(cursor)
        batch = ahead.batch(cursor, stage.rows, stage.seq_len)
        here = expected[cursor : cursor + stage.batch_tokens]
        rows = np.array(naive_rows([place for place, _ in here], stage.seq_len, doc_mask)).T
        assert np.array_equal(batch.ids.ravel(), rows[0]) and np.array_equal(batch.targets.ravel(), rows[1])
        assert np.array_equal(batch.doc_start.ravel(), rows[2]) if doc_mask else batch.doc_start is None
        sources = np.array([source for _, source in here]).reshape(stage.rows, -1)
        assert (sources == sources[:, :1]).all(), "a row has one source"
        assert batch.sources.tolist() == np.bincount(sources.ravel(), minlength=3).tolist()
        assert sum(micro.sources for micro in batch.split(3)).tolist() == batch.sources.tolist()
        assert np.array_equal(batch.row_sources, stage.seq_len * (sources[:, :1] == np.arange(3)))
        cursor += stage.batch_tokens
    ahead.close()


def test_rows_over_a_change_of_source_keep_the_texts_apart():
    batch = numbered_batches(MixedStream([WEB, CODE], [1, 1], 8), doc_mask=True).batch(0, 4, 24)
    for row, starts in zip(batch.ids // 1000, batch.doc_start, strict=True):
        for change in np.flatnonzero(np.diff(row)) + 1:
            assert change % 8 == 0 and starts[change] == change
    assert batch.row_sources.tolist() == [[16, 8], [8, 16], [16, 8], [8, 16]]
    assert numbered_batches(TokenStream(WEB, 8)).batch(0, 4, 24).sources is None


def test_sources_are_parsed():
    web, code = parse_sources(["web=/data/a=b:c.txt:0.7", "code-2.x=src:3"])
    assert (web.name, web.paths, web.weight) == ("web", ("/data/a=b:c.txt",), 0.7)
    assert (code.name, code.paths, code.weight) == ("code-2.x", ("src",), 3.0)
    assert [str(source.moved(lambda path: f"/in/{path}")) for source in (web, code)] == [
        "web=/in//data/a=b:c.txt:0.7", "code-2.x=/in/src:3"]
    plain = ["a.txt", "x=1/b.txt", "c:1/d", "/e=f:2/g.txt"]
    assert [(source.name, source.paths) for source in parse_sources(plain)] == [("", (path,)) for path in plain]
    assert [str(source) for source in parse_sources(plain)] == plain
    assert parse_sources([]) == []


@pytest.mark.parametrize("items, words", [
    (["web=a:1", "b"], "must be name=PATH:weight, its weight above 0: got 'b'"),
    (["web=a:1", "code=b"], "got 'code=b'"),
    (["web=a:0"], "got 'web=a:0'"),
    (["web=a:-1"], "above 0"),
    (["web=a:nan"], "above 0"),
    (["web=a:inf"], "above 0"),
    (["web=a:much"], "above 0"),
    (["web=a:"], "above 0"),
    (["web=a:1", "web=b:2"], "different names: got web, web"),
    (["web=a:1", "code=b:0.0000001"], "ratios of whole numbers"),
])
def test_what_is_no_mixture(items, words):
    with pytest.raises(UserError, match=words):
        parse_sources(items)


def test_what_cannot_be():
    class Other(ByteTokenizer):
        def fingerprint(self):
            return "other"

    with pytest.raises(UserError, match="another tokenizer"):
        Batches(MixedStream(PARTS, WEIGHTS, 8), 8, Other())
    for wrong in (
        lambda: MixedStream([], []),
        lambda: MixedStream(PARTS, [1, 2]),
        lambda: MixedStream(PARTS, [1, 2, 0]),
        lambda: MixedStream(PARTS, WEIGHTS, 0),
        lambda: MixedStream(PARTS, WEIGHTS, 8).read(-1, 3),
        lambda: next(Batches(MixedStream(PARTS, WEIGHTS, 8), 8, BYTE).sweep(1)),
    ):
        with pytest.raises(ValueError):
            wrong()
