"""The text a vocabulary is trained on, none of which is held out, and the cache of vocabularies."""

import numpy as np
import pytest

from engine.errors import UserError
from tokenizer.documents import Piece, ReadOptions, find_sources
from tokenizer.train import Settings
from train.data import prepare
from train.data.sample import Sample, training_sample
from train.data.vocabulary import cached_vocabulary
from vocabulary_samples import BYTE, decoded, recipe_of, rows_file, text_of


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return rows_file(tmp_path_factory.mktemp("rows") / "rows.jsonl", [text_of(n) for n in range(120)])


def test_a_sample_is_the_texts_with_the_smallest_hashes_in_any_order():
    texts = [(int(h), int(n), f"{h}") for h, n in np.random.default_rng(0).integers(1, 50, (200, 2))]
    texts = list({text[0]: text for text in texts}.values())
    ordered = sorted(texts)
    sizes = np.cumsum([size for _, size, _ in ordered])
    for room in (1, 100, 333, 10_000):
        expected = [Piece(text, True) for _, _, text in ordered[: max(1, np.searchsorted(sizes, room, side="right"))]]
        for turn in range(5):
            sample, other = Sample(room), Sample(room)
            for i in np.random.default_rng(turn).permutation(len(texts)).tolist():
                (sample if i % 2 else other).offer(*texts[i])
            sample.add(other)
            assert sample.pieces() == expected


@pytest.mark.parametrize("count, fraction", [(120, 0.2), (120, 0.9), (2, 0.05), (3, 1e-9), (5, 0.999), (120, 0.0)])
def test_no_text_held_out_is_in_the_sample(tmp_path, count, fraction):
    path = rows_file(tmp_path / "rows.jsonl", [text_of(n, 1 + 9 * (n % 3)) for n in range(count)])
    sample = training_sample(find_sources([path]), ReadOptions(), fraction, 1 << 20)
    corpus = prepare([path], BYTE, val_fraction=fraction, cache_dir=tmp_path / "cache")
    assert sorted(piece.text for piece in sample) == sorted(decoded(corpus.train))


@pytest.mark.parametrize("first_is_long", [True, False])
def test_of_two_unequal_documents_the_long_one_is_sampled(tmp_path, first_is_long):
    for number in range(8):
        texts = [f"{number} long " * 500, f"{number} short"][:: 1 if first_is_long else -1]
        path = rows_file(tmp_path / f"{number}.jsonl", texts)
        assert [piece.text for piece in training_sample(find_sources([path]), ReadOptions(), 0.02, 1 << 20)] == [
            f"{number} long " * 500]


def test_of_one_document_its_end_is_left_out(tmp_path):
    text = "".join(text_of(n) for n in range(100))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    for chunk in (1 << 20, 500):
        sample = training_sample(find_sources([tmp_path / "a.txt"]), ReadOptions(chunk_bytes=chunk), 0.3, 1 << 20)
        pieces = [piece.text for piece in sample]
        assert len(pieces) == (1 if chunk > 500 else len(pieces)) and all(piece in text for piece in pieces)
        assert sum(len(piece.encode()) for piece in pieces) == pytest.approx(0.7 * len(text.encode()), abs=3)
        places = sorted((text.index(piece), len(piece)) for piece in pieces)
        assert all(start + length == after for (start, length), (after, _) in zip(places, places[1:]))
        assert places[0][0] == 0


def test_long_documents_are_sampled_piece_by_piece_and_held_out_whole(tmp_path):
    for number in range(12):
        (tmp_path / f"{number}.txt").write_text("".join(text_of(30 * number + n) for n in range(30)), encoding="utf-8")
    sources, options = find_sources([tmp_path]), ReadOptions(chunk_bytes=2_000)
    everything = training_sample(sources, options, 0.3, 1 << 20)
    corpus = prepare([tmp_path], BYTE, val_fraction=0.3, cache_dir=tmp_path / "cache")
    assert len(everything) > 2 * corpus.train.documents
    assert sorted("".join(piece.text for piece in everything)) == sorted("".join(decoded(corpus.train)))
    some = training_sample(sources, options, 0.3, 20_000)
    assert set(some) < set(everything) and 15_000 < sum(len(piece.text.encode()) for piece in some) <= 20_000
    assert training_sample(sources[::-1], options, 0.3, 20_000) == some


def test_a_vocabulary_is_trained_once_for_its_text_and_settings(rows, tmp_path, monkeypatch):
    phases = []
    first = cached_vocabulary(recipe_of(rows), tmp_path, phases.append)
    assert phases[0].phase == "reading text" and len(phases) > 3
    assert first.vocab_size == 308 and max(first.token_bytes()) > 2
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".lock"]
    other = cached_vocabulary(recipe_of(rows, settings=Settings(290, rounds=2, allow_fewer=True)), tmp_path)
    assert other.vocab_size == 298
    assert cached_vocabulary(recipe_of(rows, sample_bytes=4_000), tmp_path).fingerprint() != first.fingerprint()

    def failing(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr("tokenizer.train.train_vocabulary", failing)
    again = recipe_of(rows, settings=Settings(300, rounds=2, allow_fewer=True, workers=1, memory=1 << 30))
    assert cached_vocabulary(again, tmp_path).fingerprint() == first.fingerprint()
    for change in ({"val_fraction": 0.1}, {"sample_bytes": 5_000}, {"settings": Settings(300, 3, allow_fewer=True)}):
        with pytest.raises(AssertionError, match="trained again"):
            cached_vocabulary(recipe_of(rows, **change), tmp_path)


def test_a_damaged_cache_is_trained_again_and_a_killed_training_goes_on(rows, tmp_path, monkeypatch):
    first = cached_vocabulary(recipe_of(rows), tmp_path)
    (folder,) = (path for path in tmp_path.glob("vocabulary-*") if path.is_dir())
    (folder / "vocabulary.json").write_text("{")
    folders = []

    def killed(documents, settings, work, *_, **__):
        folders.append(work)
        (work / "half").write_text("done")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tokenizer.train.train_vocabulary", killed)
        with pytest.raises(KeyboardInterrupt):
            cached_vocabulary(recipe_of(rows), tmp_path)
    assert (folders[0] / "half").exists()
    (folders[0] / "half").unlink()
    assert cached_vocabulary(recipe_of(rows), tmp_path).fingerprint() == first.fingerprint()
    assert not folders[0].exists() and not list(tmp_path.glob("*.partial-*"))


def test_an_empty_corpus_is_told_before_training(rows, tmp_path):
    rows_file(tmp_path / "a.jsonl", ["", ""])
    with pytest.raises(UserError, match="empty corpus: no text in .*a.jsonl"):
        empty = [(find_sources([tmp_path / "a.jsonl"]), 1.0)]
        cached_vocabulary(recipe_of(rows)._replace(texts=empty), tmp_path / "cache")
