"""Candidates: whole trainings of a small corpus, cut short, with little memory, on several workers."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tokenizer.boundaries import allows
from tokenizer.documents import Piece
from tokenizer.train import engines, ngrams
from tokenizer.train.discover import LEAST_SEEN, discover, plan
from tokenizer.train.settings import Settings
from tokenizer.train.spool import spool

NAMES = ["Anna", "Bert", "Carla", "David", "小明", "小红", "老王"]
PLACES = ["Paris", "London", "北京", "上海", "a small town", "the house by the sea"]


def sentences(number: int, seed: int) -> str:
    drawn = np.random.default_rng(seed).integers(0, 1 << 30, (number, 3)).tolist()
    return "".join(f"{NAMES[a % 7]} went to {PLACES[b % 6]} in {1900 + c % 100}.\n" if a % 3
                   else f"{NAMES[a % 7]}在{PLACES[b % 6]}住了{c % 30}年。\n" for a, b, c in drawn)


CORPUS = [sentences(40, seed) for seed in range(40)]


def candidates(folder: Path, run=None, shard=1 << 20, engine="local", **changed) -> tuple[list[bytes], list[int]]:
    wanted = Settings(**{"vocab_size": 300, "workers": 1, **changed})
    shards = spool([Piece(document, True) for document in CORPUS], folder, shard)

    def plain(job, tasks, where, name):
        return engines.run(job, tasks, where, name, engine=engine, workers=wanted.workers)

    pieces, counts = discover(shards, folder, wanted, run or plain)
    assert pieces == sorted(pieces) and counts.dtype == np.int64
    return pieces, counts.tolist()


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return candidates(tmp_path_factory.mktemp("expected"))


def test_candidates_are_words(expected):
    counts = dict(zip(*expected))
    assert set(counts) >= {bytes([byte]) for byte in range(256)} | {"京".encode(), "。".encode()}
    assert len(counts) == len(expected[0])
    for word, least in [(" went to ", 500), ("Carla went to ", 20), ("小红在", 20), ("北京", 20)]:
        assert any(word.encode() in piece for piece in counts), word
    assert all(len(piece) == 1 or allows(piece, "default") and piece.decode() for piece in counts)


@pytest.mark.parametrize("changed", [{"workers": 2}, {"workers": 3}, {"shard": 2048}, {"memory": 64 << 20}])
def test_candidates_depend_on_the_text_alone(changed, expected, tmp_path):
    assert candidates(tmp_path, **changed) == expected


def test_memory_that_holds_almost_nothing(expected, tmp_path, monkeypatch):
    sizes = Counter()

    def run(job, tasks, where, name):
        paths = engines.run(job, tasks, where, name, workers=2)
        sizes[name] = len(tasks)
        if name == "windows":
            sizes["tables"] = sum(len(ngrams.open_arrays(path)) for path in paths)
        return paths

    monkeypatch.setattr("tokenizer.train.discover.plan", lambda *known: plan(*known)._replace(
        block_bytes=3000, range_bytes=5_000))
    assert candidates(tmp_path, run=run) == expected
    assert min(sizes["n-grams"], sizes["merged words"], sizes["tables"]) > 5


@pytest.mark.parametrize("stage", ["windows", "n-grams", "characters", "model", "words", "merged words", "candidates"])
def test_a_killed_training_goes_on(stage, expected, tmp_path):
    done = Counter()

    def run(job, tasks, where, name, until=None):
        if name == until:
            engines.run(job, tasks[: len(tasks) // 2], where, name, workers=1)
            (where / f".partial-{name}-00001.npy").write_bytes(b"half")
            raise KeyboardInterrupt
        before = sum((where / f"{name}-{i:05d}.npy").exists() for i in range(len(tasks)))
        done[name] += len(tasks) - before
        return engines.run(job, tasks, where, name, workers=1)

    with pytest.raises(KeyboardInterrupt):
        candidates(tmp_path, run=lambda *known: run(*known, until=stage), shard=4096)
    early = done.copy()
    assert candidates(tmp_path, run=run, shard=4096) == expected
    for name, tasks in early.items():
        assert done[name] == tasks, f"{name} was done again"
    assert len([path for path in tmp_path.rglob("*") if not path.name.startswith("text")]) <= 4


@pytest.mark.parametrize("stage", ["n-grams", "merged words"])
def test_a_killed_training_goes_on_with_less_memory(stage, expected, tmp_path, monkeypatch):
    def run(job, tasks, where, name):
        if name == stage:
            engines.run(job, tasks[::2], where, name, workers=1)
            raise KeyboardInterrupt
        return engines.run(job, tasks, where, name, workers=1)

    for range_bytes in (2_000, 1_500):
        monkeypatch.setattr("tokenizer.train.discover.plan",
                            lambda *known, size=range_bytes: plan(*known)._replace(range_bytes=size))
        with pytest.raises(KeyboardInterrupt):
            candidates(tmp_path, run=run)
    monkeypatch.undo()
    assert candidates(tmp_path) == expected


@pytest.mark.slow
def test_candidates_on_ray(expected, tmp_path):
    pytest.importorskip("ray")
    with engines.cluster("ray", 2):
        assert candidates(tmp_path, engine="ray", workers=2, shard=16 << 10) == expected


@pytest.mark.parametrize("longest", [2, 3, 5])
def test_pieces_are_no_longer_than_wanted(longest, tmp_path):
    pieces, counts = candidates(tmp_path, max_piece_bytes=longest)
    assert max(map(len, pieces)) == longest
    for piece, count in zip(pieces, counts):
        if len(piece) > 1:
            piece.decode("utf-8")
        assert count == 0 or count >= LEAST_SEEN


def test_a_corpus_of_nothing(tmp_path):
    pieces, counts = discover(spool([Piece("", True)], tmp_path), tmp_path, Settings(vocab_size=300),
                              lambda *known: engines.run(*known))
    assert pieces == [bytes([byte]) for byte in range(256)] and not counts.any()


def test_a_large_corpus_is_sampled_evenly(tmp_path, monkeypatch, expected):
    monkeypatch.setattr("tokenizer.train.discover.SAMPLE_BYTES", 20_000)
    pieces, counts = candidates(tmp_path)
    total = sum(len(document.encode()) for document in CORPUS)
    share = sum(counts) / sum(expected[1])
    assert 0.5 * 20_000 / total < share < 2 * 20_000 / total
    assert {"京".encode(), b"."} <= set(pieces)
