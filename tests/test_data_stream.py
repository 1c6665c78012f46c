import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_samples import BYTE, naive_epoch, numbered, numbered_batches
from engine.errors import UserError
from tokenizer import ByteTokenizer
from train.data import Batches, Prefetch, TokenStream, prepare, prepare_part
from train.data.corpus import Part
from train.data.permutation import permutation_key, permute

draws = settings(max_examples=80, deadline=None, derandomize=True)


def random_part(seed: int, documents: int = 23) -> Part:
    return numbered(np.random.default_rng(seed).integers(1, 40, documents))


@draws
@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 5))
def test_permute_is_a_bijection(n, seed, epoch):
    key = permutation_key(seed, epoch, "test")
    out = permute(np.arange(n), n, key)
    assert sorted(out.tolist()) == list(range(n))
    some = np.array([n - 1, 0, n // 2])
    assert permute(some, n, key).tolist() == out[some].tolist()


def test_permute_looks_random_and_depends_on_its_key():
    n = 1000
    names = ((0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b"), (0, 0, "c"), (11, 0, "a"))
    orders = [permute(np.arange(n), n, permutation_key(*name)) for name in names]
    for i, order in enumerate(orders):
        assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.15
        assert np.sum(np.diff(order) == 1) < 10
        for other in orders[:i]:
            assert np.sum(order == other) < 10
    firsts = [int(permute(np.array([0]), 10, permutation_key(seed, 0, "x"))[0]) for seed in range(2000)]
    assert np.bincount(firsts, minlength=10).min() > 140


def test_the_order_is_the_same_for_ever():
    assert permute(np.arange(7), 7, permutation_key(5, 2, "documents")).tolist() == [6, 1, 0, 2, 3, 4, 5]


@draws
@given(st.data())
def test_reading_equals_the_definition(draw):
    lengths = draw.draw(st.lists(st.integers(1, 12), min_size=1, max_size=12))
    window = draw.draw(st.integers(1, 40))
    seed = draw.draw(st.integers(0, 1000))
    part = numbered(lengths)
    expected = [row for epoch in range(4) for row in naive_epoch(part, window, seed, epoch)]
    stream = TokenStream(part, window, seed)
    cursor = 0
    got = []
    while cursor < len(expected):
        count = min(draw.draw(st.integers(1, 50)), len(expected) - cursor)
        tokens = stream.read(cursor, count)
        got += zip(tokens.ids.tolist(), tokens.targets.tolist(), tokens.ends.tolist(), strict=True)
        cursor += count
    assert got == expected


@pytest.mark.parametrize("window", [1, 7, 33, 64, 100_003])
@pytest.mark.parametrize(("seq_len", "rows"), [(1, 1), (5, 3), (11, 1), (64, 2), (99, 7)])
def test_every_token_once_in_every_epoch(window, seq_len, rows):
    part = random_part(0)
    n = part.tokens
    assert n % 2 == 1
    batches = numbered_batches(TokenStream(part, window, seed=3))
    ids, targets = [], []
    for cursor in range(0, 3 * n, rows * seq_len):
        batch = batches.batch(cursor, rows, seq_len)
        ids.append(batch.ids.reshape(-1))
        targets.append(batch.targets.reshape(-1))
    epochs = [np.concatenate(x)[: 3 * n].reshape(3, n) for x in (ids, targets)]
    assert (np.sort(epochs[0]) == np.arange(n)).all()
    assert (np.sort(epochs[1]) == np.arange(n)).all()
    assert len({tuple(order) for order in epochs[0]}) == 3


@pytest.mark.parametrize("documents", [1, 2, 23])
def test_windows_begin_at_multiples_of_the_cursor_in_every_epoch(documents):
    part, window = random_part(1, documents), 16
    n = part.tokens
    stream = TokenStream(part, window, seed=1)
    for start in range(0, 5 * n, window):
        tokens = stream.read(start, window)
        breaks = np.flatnonzero(tokens.ids[1:] != tokens.targets[:-1]) + 1
        assert all((start + int(at)) % n == 0 for at in breaks)


def test_seeds_and_epochs_differ():
    part = random_part(2)
    n = part.tokens
    reads = [TokenStream(part, 8, seed).read(epoch * n, n).ids.tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(reads[i] != reads[j] for i in range(4) for j in range(i))


def write_corpus(folder, texts):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(4)
    texts = ["".join(rng.choice(list("abc é中"), rng.integers(1, 60))) for _ in range(300)]
    return prepare([write_corpus(folder, texts)], BYTE, val_fraction=0.2, cache_dir=folder / "cache")


def same(a, b):
    assert a.ids.dtype == a.targets.dtype == np.int64
    assert np.array_equal(a.ids, b.ids) and np.array_equal(a.targets, b.targets)
    assert (a.first_token, a.predicted, a.bytes) == (b.first_token, b.predicted, b.bytes)
    assert (a.doc_start is None) == (b.doc_start is None)
    assert a.doc_start is None or np.array_equal(a.doc_start, b.doc_start)


@pytest.mark.parametrize("doc_mask", [False, True])
def test_a_new_stream_goes_on_from_any_cursor(corpus, doc_mask):
    stream = TokenStream(corpus.train, 60, seed=9)
    whole = stream.read(0, 4 * corpus.train.tokens)
    for cursor in np.random.default_rng(5).integers(0, 3 * corpus.train.tokens, 40).tolist():
        batch = Batches(TokenStream(corpus.train, 60, seed=9), 30, BYTE, doc_mask).batch(cursor, 4)
        assert np.array_equal(batch.ids.reshape(-1), whole.ids[cursor : cursor + 120])
        valid = ~whole.ends[cursor : cursor + 120] | (not doc_mask)
        assert np.array_equal(batch.targets.reshape(-1), np.where(valid, whole.targets[cursor : cursor + 120], -100))


@pytest.mark.parametrize("doc_mask", [False, True])
@pytest.mark.parametrize("micro_rows", [1, 2, 5, 8, 100])
def test_micro_batches_are_the_big_batch(corpus, doc_mask, micro_rows):
    batches = Batches(TokenStream(corpus.train, 100), 20, BYTE, doc_mask)
    for cursor in (0, 17 * 20, corpus.train.tokens - 50):
        big = batches.batch(cursor, 8)
        pieces = big.split(micro_rows)
        assert [len(piece.ids) for piece in pieces] == [min(micro_rows, 8 - i) for i in range(0, 8, micro_rows)]
        at = cursor
        for piece in pieces:
            same(piece, batches.batch(at, len(piece.ids)))
            at += piece.ids.size
        assert sum(piece.predicted for piece in pieces) == big.predicted
        assert sum(piece.bytes for piece in pieces) == big.bytes


def test_sequence_length_does_not_change_the_stream(corpus):
    stream = TokenStream(corpus.train, 64, seed=2)
    expected = stream.read(640, 640).ids
    for seq_len in (16, 64, 5):
        made_so = Batches(stream, seq_len, BYTE, doc_mask=True).batch(640, 640 // seq_len)
        asked_for = Batches(stream, 8, BYTE, doc_mask=True).batch(640, 640 // seq_len, seq_len)
        assert made_so.ids.shape == (640 // seq_len, seq_len)
        assert np.array_equal(made_so.ids.reshape(-1), expected)
        same(made_so, asked_for)


@pytest.mark.parametrize(("window", "seq_len"), [(40, 40), (40, 20), (7, 30), (1, 13)])
def test_doc_start_and_borders_equal_a_loop(corpus, window, seq_len):
    stream = TokenStream(corpus.train, window, seed=6)
    batches = Batches(stream, seq_len, BYTE, doc_mask=True)
    rows = 9
    for cursor in (0, 3 * seq_len, corpus.train.tokens - 4 * seq_len):
        batch = batches.batch(cursor, rows)
        plain = Batches(stream, seq_len, BYTE).batch(cursor, rows)
        assert batch.doc_start.dtype == np.int32
        for row in range(rows):
            start = 0
            for at in range(seq_len):
                broken = at > 0 and plain.ids[row, at] != plain.targets[row, at - 1]
                if at > 0 and (batch.ids[row, at - 1] == BYTE.eod or broken):
                    start = at
                if window % seq_len == 0 or start == at:
                    assert batch.doc_start[row, at] == start
                start = int(batch.doc_start[row, at])
                expected = -100 if batch.ids[row, at] == BYTE.eod else plain.targets[row, at]
                assert batch.targets[row, at] == expected
        valid = batch.targets[batch.targets != -100]
        assert batch.predicted == len(valid)
        assert batch.bytes == BYTE.token_bytes()[valid].sum() == np.sum(valid < 256)
        assert plain.predicted == plain.targets.size
        assert plain.bytes == np.sum(plain.targets < 256)
        assert plain.doc_start is None


def test_a_jump_inside_a_row_hides_what_came_before():
    tokens = TokenStream(numbered([1000]), 10, seed=1).read(0, 100)
    jumps = np.flatnonzero(np.diff(tokens.ids) != 1) + 1
    assert len(jumps) >= 7
    assert np.flatnonzero(tokens.begins).tolist() == [0, *jumps.tolist()]
    assert tokens.ids[tokens.ends].tolist() == [token for token in tokens.ids if token == 999]


@pytest.mark.parametrize(("rows", "seq_len"), [(1, 1), (3, 17), (4, 1000), (64, 50)])
@pytest.mark.parametrize("doc_mask", [False, True])
def test_a_sweep_predicts_every_token_once(corpus, rows, seq_len, doc_mask):
    part = corpus.validation
    batches = Batches(TokenStream(part, shuffle=False), seq_len, BYTE, doc_mask)
    text = part.shards.gather(part.starts, part.lengths).astype(np.int64)
    swept = list(batches.sweep(rows))
    ids = np.concatenate([batch.ids.reshape(-1) for batch in swept])
    targets = np.concatenate([batch.targets.reshape(-1) for batch in swept])
    assert np.array_equal(ids[: len(text)], text) and (ids[len(text) :] == BYTE.eod).all()
    assert (targets[len(text) :] == -100).all() and len(ids) - len(text) < seq_len
    expected = np.roll(text, -1)
    if doc_mask:
        expected = np.where(text == BYTE.eod, -100, expected)
        starts = np.concatenate([batch.doc_start.reshape(-1) for batch in swept])
        assert (starts[len(text) :] == np.arange(len(text), len(ids)) % seq_len).all()
    assert np.array_equal(targets[: len(text)], expected)
    assert sum(batch.predicted for batch in swept) == len(text) - (part.documents if doc_mask else 0)
    assert [batch.first_token for batch in swept] == list(range(0, len(text), rows * seq_len))
    if not doc_mask:
        assert sum(batch.bytes for batch in swept) == part.bytes


def test_prefetch_gives_exactly_the_batches_asked_for(corpus):
    batches = Batches(TokenStream(corpus.train, 50), 25, BYTE, doc_mask=True)
    ahead = Prefetch(batches)
    for portion in [(0, 4), (100, 4), (200, 4), (900, 4), (1000, 2), (1050, 2), (1050, 2), (0, 4), (100, 4, 50),
                    (300, 4, 50), (500, 8, 25), (700, 8, 25), (900, 8, 25)]:
        same(ahead.batch(*portion), batches.batch(*portion))
    ahead.close()


def test_prefetch_makes_consecutive_batches_once(corpus):
    batches = Batches(TokenStream(corpus.train, 50), 25, BYTE)
    asked, make = [], batches.batch
    batches.batch = lambda *portion: asked.append(portion) or make(*portion)
    ahead = Prefetch(batches)
    portions = [(cursor, 4, 50) for cursor in range(0, 1000, 200)]
    for portion in portions:
        ahead.batch(*portion)
    ahead.close()
    assert sorted(asked)[:5] == portions


def test_a_tiny_corpus_fills_any_batch():
    stream = TokenStream(numbered([1]), window=4096)
    tokens = stream.read(5, 20)
    assert (tokens.ids == 0).all() and (tokens.targets == 0).all() and tokens.ends.all()


def test_what_cannot_be(corpus):
    stream = TokenStream(corpus.train, 8)

    class Other(ByteTokenizer):
        def fingerprint(self):
            return "other"

    with pytest.raises(UserError, match="another tokenizer"):
        Batches(stream, 8, Other())
    for wrong in (
        lambda: TokenStream(corpus.train, 0),
        lambda: TokenStream(numbered([])),
        lambda: stream.read(-1, 3),
        lambda: Batches(stream, 0, BYTE),
        lambda: Batches(stream, 8, BYTE).batch(0, 2).split(0),
        lambda: next(Batches(stream, 8, BYTE).sweep(1)),
    ):
        with pytest.raises(ValueError):
            wrong()


def test_all_documents_of_a_file_in_order(tmp_path):
    part = prepare_part([write_corpus(tmp_path, ["one", "two", "three"])], BYTE, cache_dir=tmp_path / "cache")
    (batch,) = Batches(TokenStream(part, shuffle=False), 32, BYTE).sweep(4)
    assert BYTE.decode_bytes(batch.ids[0]) == b"onetwothree"
