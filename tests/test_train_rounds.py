"""Rounds: counting, what a piece is worth, pairs, schedules, exact sizes, going on after a stop."""

from __future__ import annotations

import itertools
from collections import Counter
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest

from tokenizer import TokenizerError, automaton
from tokenizer.boundaries import allows
from tokenizer.documents import Piece, standard_library_files
from tokenizer.piece import PieceTokenizer
from tokenizer.train import counting, engines, pairs, rounds, seed_method
from tokenizer.train.report import described
from tokenizer.train.settings import Settings, parse_bytes
from tokenizer.train.spool import open_shard, spool
from tokenizer.vocabulary import Pieces, Vocabulary, costs_of

SINGLE = [bytes([byte]) for byte in range(256)]
CHINESE = "今天天气很好，我们去公园看花。明天天气不好，我们在家里看书。公园里的花很好看！\n"


def corpus(size: int = 40_000) -> list[Piece]:
    """Python's own sources and made-up Chinese."""
    code = "".join(path.read_text(encoding="utf-8") for path in standard_library_files()[:12])[:size]
    chinese = "".join(CHINESE[i % 7 : len(CHINESE) - i % 5] for i in range(size // 400))
    return [Piece(code[at : at + 4000], True) for at in range(0, len(code), 4000)] + [Piece(chinese, True)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[Path]:
    return spool(corpus(), tmp_path_factory.mktemp("text"))


@cache
def substrings(shard: Path, longest: int = 9, least: int = 6) -> tuple[list[bytes], np.ndarray]:
    """Candidates made simply: strings of characters between borders that come often."""
    text = open_shard(shard)[0].tobytes().decode()
    found = Counter(text[i : i + n] for n in range(1, longest) for i in range(len(text) - n))
    pieces = sorted(piece.encode() for piece, count in found.items() if count >= least)
    pieces = [piece for piece in pieces if allows(piece, "default")]
    return pieces, np.array([found[piece.decode()] for piece in pieces])


def run(job, tasks, folder, name, workers: int = 2) -> list[Path]:
    return engines.run(job, tasks, folder, name, workers=workers)


def trained(shards, folder, settings, **options) -> Vocabulary:
    return rounds.prune(shards, *substrings(shards[0]), folder, settings, options.pop("run", run), **options)


def test_settings_name_rule_and_value():
    for change, rule in (({"vocab_size": 256}, "vocab_size must be at least 257"), ({"rounds": 0}, "rounds must be in"),
                         ({"max_piece_bytes": 255}, "max_piece_bytes must be in 2..254"), ({"engine": "x"}, "engine"),
                         ({"boundaries": "wordz"}, "boundaries must be one of"), ({"memory": 5}, "memory must be"),
                         ({"method": "bpe"}, "method must be one of"), ({"workers": -1}, "workers must be 0")):
        with pytest.raises(TokenizerError, match=rule) as error:
            Settings(**{"vocab_size": 1000, **change})
        assert str(next(iter(change.values()))) in str(error.value)


@pytest.mark.parametrize("text, size", [("4GB", 4 << 30), ("512M", 512 << 20), ("1.5 GiB", 3 << 29), ("7", 7),
                                        ("2k", 2048)])
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "4 XB", "-1GB", "4GBs", "1e9"])
def test_bad_sizes(text):
    with pytest.raises(TokenizerError, match="a size must be"):
        parse_bytes(text)


@pytest.mark.parametrize("count", [1, 2, 3, 6, 12, 30])
def test_schedules_end_with_the_number_wanted(count):
    for plan in (rounds.schedule(50_000, 8192, count), rounds.geometric(50_000, 8192, count)):
        assert len(plan) == count and plan[-1] == rounds.Step(8192)
    sizes = [50_000, *(step.size for step in rounds.geometric(50_000, 8192, count))]
    ratios = [after / before for before, after in itertools.pairwise(sizes)]
    assert max(ratios) - min(ratios) < 1e-3


def cheapest(text: bytes, costs: dict[bytes, int], without: bytes = b"") -> tuple[int, int]:
    """Least cost of a text, and the number of its pieces where the last one is as long as may be, by brute force."""
    best = [(0, 0)]
    for end in range(1, len(text) + 1):
        ways = [(best[start][0] + costs[text[start:end]], start) for start in range(end)
                if text[start:end] in costs and text[start:end] != without]
        cost, start = min(ways)
        best.append((cost, best[start][1] + 1))
    return best[-1]


def test_tokens_without_a_piece_by_brute_force():
    random = np.random.default_rng(0)
    words = {bytes(random.choice([97, 98, 99], length).tolist()) for length in range(2, 9) for _ in range(14)}
    pieces = sorted({*SINGLE, *words})
    costs = random.integers(0, 9, len(pieces)).astype(np.int32)
    joined = Pieces.joined(pieces)
    found = counting.tokens_without(automaton.build(pieces, costs), joined.text, joined.starts)
    price = dict(zip(pieces, costs.tolist()))
    expected = [cheapest(piece, price, piece if len(piece) > 1 else b"")[1] for piece in pieces]
    assert found.tolist() == expected
    assert len(set(expected)) > 3


def test_a_pass_counts_pieces_blocks_and_pairs(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "STRETCH_BYTES", 9_000)
    tasks, total, sampled = counting.stretches(shards)
    assert len(tasks) > 3 and total == sampled == sum(shard.stat().st_size for shard in shards)
    pieces, counts = substrings(shards[0])
    pieces = sorted({*SINGLE, *pieces[::2]})
    vocabulary = Vocabulary([*SINGLE, *(piece for piece in pieces if len(piece) > 1)], np.zeros(len(pieces)),
                            costs_of(np.arange(1, len(pieces) + 1)))
    frequent = np.arange(len(pieces)) % 3 > 0
    rows = automaton.build(vocabulary.pieces, vocabulary.costs)
    counting.write_tables(tmp_path / "tables.npy", rows, vocabulary.pieces.lengths, frequent)
    passes = [counting.Pass(task, tmp_path / "tables.npy", True) for task in tasks]
    results = run(counting.count_pieces, passes, tmp_path, "pass")
    counting.forget(tmp_path / "tables.npy")
    found = counting.added_up(results)

    tokenizer, expected, beside, blocks, pair_blocks = PieceTokenizer(vocabulary), Counter(), Counter(), set(), set()
    for number, stretch in enumerate(itertools.chain(*tasks)):
        text, starts = counting.texts_of(stretch)
        at = 0
        for first, last in itertools.pairwise(starts.tolist()):
            ids = tokenizer.encode_bytes(text[first:last].tobytes()).tolist()
            expected.update(ids)
            places = (at + np.concatenate(([0], np.cumsum(vocabulary.pieces.lengths[ids])))).tolist()
            block = [(number, place >> counting.BLOCK_BITS) for place in places]
            blocks.update(zip(ids, block))
            neighbours = itertools.pairwise(ids)
            kept = [(pair, where) for pair, where in zip(neighbours, block[1:]) if frequent[list(pair)].all()]
            beside.update(pair for pair, _ in kept)
            pair_blocks.update(kept)
            at = places[-1]
    assert found.counts.tolist() == [expected[i] for i in range(len(pieces))]
    assert found.spread.tolist() == [Counter(i for i, _ in blocks)[i] for i in range(len(pieces))]
    monkeypatch.setattr(pairs, "RANGE_OCCURRENCES", 500)
    spread = Counter(pair for pair, _ in pair_blocks)
    for least in (0, 5000):
        ranges = pairs.ranges(results, weigh, 0.5, least)
        side_by_side, weights = pairs.joined(run(pairs.add_up, ranges, tmp_path, f"pairs-{least}"))
        weighed = {pair: 0.5 * weigh(count, spread[pair]) for pair, count in beside.items() if count > 1}
        weighed = {pair: weight for pair, weight in sorted(weighed.items()) if weight >= least}
        assert list(map(tuple, side_by_side.tolist())) == list(weighed) and weights.tolist() == [*weighed.values()]
        assert len(ranges) > 3 and len(weighed) > 3


def weigh(count, spread):
    """A weight that tells both numbers."""
    return 1000.0 * count + spread


@pytest.mark.parametrize("boundaries", ["default", "words", "none"])
def test_exactly_the_number_wanted_and_the_rule_kept(shards, tmp_path, boundaries):
    rows = []
    vocabulary = trained(shards, tmp_path, Settings(700, rounds=6, boundaries=boundaries, max_piece_bytes=12),
                         on_round=rows.append)
    assert len(vocabulary) == 700 and vocabulary.boundaries == boundaries
    new = [piece for piece in vocabulary.pieces[256:] if piece not in set(substrings(shards[0])[0])]
    assert len(new) > 20, "pairs became pieces"
    assert all(len(piece) <= 12 for piece in new)
    assert all(allows(piece, boundaries) and piece.decode() for piece in new)
    counts = vocabulary.counts[256:]
    assert (np.diff(counts) <= 0).all()
    pieces = list(vocabulary.pieces[256:])
    assert all(a < b for a, b, x, y in zip(pieces, pieces[1:], counts, counts[1:]) if x == y)
    assert [row.round for row in rows] == list(range(7)) and rows[-1].pieces == 700
    text = b"".join(open_shard(shard)[0].tobytes() for shard in shards)
    assert rows[-1].tokens == vocabulary.counts.sum()
    assert rows[-1].bytes_per_token == round(len(text) / rows[-1].tokens, 4)


def test_exactly_the_number_wanted_if_there_are_so_many_candidates(shards, tmp_path):
    pieces = {*SINGLE, *substrings(shards[0])[0]}
    for rounds_ in (1, 3, 6):
        vocabulary = trained(shards, tmp_path / str(rounds_), Settings(len(pieces) - 20, rounds=rounds_))
        assert len(vocabulary) == len(pieces) - 20


def test_rounds_and_pairs_compress_better(shards, tmp_path):
    rows = {count: [] for count in (1, 12)}
    for count in rows:
        trained(shards, tmp_path / str(count), Settings(700, rounds=count), on_round=rows[count].append)
    assert rows[12][-1].bytes_per_token > 1.02 * rows[1][-1].bytes_per_token


def test_the_vocabulary_does_not_depend_on_workers_or_stretches_in_a_task(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "STRETCH_BYTES", 20_000)
    settings = Settings(700, rounds=4)
    first = trained(shards, tmp_path / "1", settings, run=partial(run, workers=1))
    second = trained(shards, tmp_path / "2", settings, run=partial(run, workers=3))
    monkeypatch.setattr(counting, "MOST_TASKS", 2)
    third = trained(shards, tmp_path / "3", settings)
    for other in (second, third):
        assert other.fingerprint() == first.fingerprint() and (other.counts == first.counts).all()


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_goes_on_after_a_stop(shards, tmp_path, stop):
    settings = Settings(700, rounds=4)
    unbroken, calls = [], []
    whole = trained(shards, tmp_path / "whole", settings,
                    run=lambda job, tasks, folder, name: unbroken.append(name) or run(job, tasks, folder, name))

    def interrupted(job, tasks, folder, name):
        calls.append(name)
        if len(calls) > stop:
            raise Stopped
        return run(job, tasks, folder, name)

    with pytest.raises(Stopped):
        trained(shards, tmp_path / "cut", settings, run=interrupted)
    rows, names = [], []
    again = trained(shards, tmp_path / "cut", settings, on_round=rows.append,
                    run=lambda job, tasks, folder, name: names.append(name) or run(job, tasks, folder, name))
    assert again.fingerprint() == whole.fingerprint() and (again.counts == whole.counts).all()
    assert [row.round for row in rows] == list(range(5))
    assert names == unbroken[unbroken.index(unbroken[stop]):]


def test_too_few_pieces(tmp_path):
    shards = spool([Piece("ab ab ab", True)], tmp_path)
    pieces = [b"ab"], np.array([3])
    with pytest.raises(TokenizerError, match=r"vocab_size must be at most \d+ for this text of 8 bytes.*got 400"):
        rounds.prune(shards, *pieces, tmp_path / "a", Settings(400, rounds=3), run)
    vocabulary = rounds.prune(shards, *pieces, tmp_path / "b", Settings(400, rounds=3, allow_fewer=True), run)
    assert 257 <= len(vocabulary) < 400


def test_coverage_and_bytes_per_token():
    row = described(3, np.array([5, 2, 1]), np.array([1, 3, 9]), np.array([1, 1, 4]), 1.234)
    assert (row.round, row.pieces, row.tokens, row.seconds) == (3, 3, 8, 1.23)
    assert (row.bytes_per_token, row.coverage) == (20 / 8, 9 / 20)


@pytest.mark.parametrize("block, each", [(1 << 20, 1 << 20), (2_000, 8_000)])
def test_fragments_of_the_seeds_method(shards, tmp_path, monkeypatch, block, each):
    """Whatever fits into memory: blocks of text, and ranges of so many entries."""
    monkeypatch.setattr(counting, "STRETCH_BYTES", 20_000)
    monkeypatch.setattr(seed_method, "PART_BYTES", block)
    monkeypatch.setattr(seed_method, "RANGE_BYTES", each * seed_method.ENTRY_BYTES)
    settings = Settings(700, method="seed", boundaries="words")
    pieces, counts = seed_method.fragments(shards, tmp_path, settings, run)
    expected = Counter()
    tasks, _, _ = counting.stretches(shards)
    for stretch in itertools.chain(*tasks):
        text, starts = counting.texts_of(stretch)
        for first, last in itertools.pairwise(starts.tolist()):
            document = text[first:last].tobytes().decode()
            for length in range(1, 8):
                expected.update(document[i : i + length] for i in range(len(document) - length + 1))
    expected = {piece.encode(): count for piece, count in expected.items()}
    kept = {piece: count for piece, count in expected.items() if count >= 2 and allows(piece, "words")}
    assert dict(zip(pieces, counts.tolist())) == kept and list(pieces) == sorted(pieces)
    assert max(len(piece.decode()) for piece in pieces) == 7
    assert not list(tmp_path.iterdir())


def test_fragments_of_any_characters_in_the_order_of_their_bytes(tmp_path):
    text = "a\0\0bé中\U00020000\uffff\x80z" * 3 + "a\0b中é\U00020000a" * 2
    shards = spool([Piece(text, True)], tmp_path / "text")
    settings = Settings(700, method="seed", boundaries="none", max_piece_bytes=9)
    pieces, counts = seed_method.fragments(shards, tmp_path, settings, run)
    found = Counter(text[i : i + n] for n in range(1, 8) for i in range(len(text) - n + 1))
    kept = {piece.encode(): count for piece, count in found.items() if count > 1 and len(piece.encode()) <= 9}
    assert list(pieces) == sorted(kept) and counts.tolist() == [kept[piece] for piece in pieces]


def test_fragments_go_on_after_a_stop(shards, tmp_path, monkeypatch):
    settings = Settings(700, method="seed")
    whole, counts = seed_method.fragments(shards, tmp_path / "whole", settings, run)
    for stop in (1, 2, 5, 9):
        calls = []

        def interrupted(job, tasks, folder, name):
            calls.append(name)
            if len(calls) > stop:
                raise Stopped
            return run(job, tasks, folder, name)

        with pytest.raises(Stopped):
            seed_method.fragments(shards, tmp_path / str(stop), settings, interrupted)
        monkeypatch.setattr(seed_method, "PART_BYTES", 5_000)
        again, numbers = seed_method.fragments(shards, tmp_path / str(stop), settings, run)
        assert list(again) == list(whole) and (numbers == counts).all()


def test_cuts_are_drawn_while_counting_the_same_for_any_workers(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "STRETCH_BYTES", 20_000)
    settings, made = Settings(500, rounds=3, method="seed-sampled"), []
    for name, workers, most in (("a", 1, 128), ("b", 3, 2)):
        monkeypatch.setattr(counting, "MOST_TASKS", most)
        made.append(trained(shards, tmp_path / name, settings, run=partial(run, workers=workers),
                            way=seed_method.Seed(1.0)))
    best = trained(shards, tmp_path / "best", settings, way=seed_method.Seed())
    surely = trained(shards, tmp_path / "surely", settings, way=seed_method.Seed(1e6))
    assert made[0].fingerprint() == made[1].fingerprint() and (made[0].counts == made[1].counts).all()
    assert made[0].counts.sum() > best.counts.sum(), "likely cuts are not the shortest"
    size = sum(shard.stat().st_size for shard in shards)
    assert all(vocabulary.counts @ vocabulary.pieces.lengths == size for vocabulary in (*made, best, surely))
    assert abs(surely.counts.sum() / best.counts.sum() - 1) < 0.01


def test_the_seeds_method(shards, tmp_path):
    settings = Settings(700, rounds=4, method="seed")
    rows = []
    vocabulary = rounds.prune(shards, *seed_method.fragments(shards, tmp_path, settings, run), tmp_path, settings, run,
                              rows.append, seed_method.Seed())
    assert len(vocabulary) == 700 and all(a.pieces > b.pieces for a, b in itertools.pairwise(rows))
    lengths = np.array([len(piece.decode(errors="replace")) for piece in vocabulary.pieces])
    two = (lengths == 2) & (np.arange(700) >= 256) & (vocabulary.counts > 0)
    share = vocabulary.counts[two] / vocabulary.counts[two].sum()
    np.testing.assert_allclose(np.exp(-vocabulary.costs[two] / 65536), share, rtol=0.02)
