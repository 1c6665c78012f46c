"""The compiled search for best paths against a brute force over all cuts and against the reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer import TokenizerError, automaton, best_path
from tokenizer.reference import Reference

SINGLES = [bytes([byte]) for byte in range(256)]
draws = settings(max_examples=120, deadline=None, derandomize=True)


def found(tables, texts, window=best_path.WINDOW):
    """The ids of each text."""
    text, starts = np.frombuffer(b"".join(texts), np.uint8), np.cumsum([0] + [len(text) for text in texts])
    ids, counts = np.full(len(text), -1, np.int32), np.full(len(texts), -1, np.int64)
    total = best_path.encode(tables, text, starts, ids, counts, window)
    assert total == counts.sum()
    return [part.tolist() for part in np.split(ids[:total], np.cumsum(counts)[:-1])] if texts else []


def cheapest(pieces, costs, text):
    """All cuts tried: the least cost of each beginning of `text`, then from its end the longest piece that keeps it."""
    least = [0]
    for end in range(1, len(text) + 1):
        least.append(min(least[end - len(piece)] + cost for piece, cost in zip(pieces, costs, strict=True)
                         if text.endswith(piece, 0, end)))
    ids, end = [], len(text)
    while end:
        ways = [(len(piece), number) for number, (piece, cost) in enumerate(zip(pieces, costs, strict=True))
                if text.endswith(piece, 0, end) and least[end - len(piece)] + cost == least[end]]
        length, number = max(ways)
        ids.insert(0, number)
        end -= length
    return ids


def made(pieces, costs):
    return best_path.tables(automaton.build(pieces, np.asarray(costs, np.int32)))


@st.composite
def vocabularies(draw, letters=b"ab", most_cost=3, longest=8):
    words = st.lists(st.sampled_from(list(letters)), min_size=2, max_size=longest).map(bytes)
    longer = draw(st.lists(words, max_size=25, unique=True))
    pieces = SINGLES + longer
    costs = draw(st.lists(st.integers(0, most_cost), min_size=len(longer), max_size=len(longer)))
    return pieces, [draw(st.integers(1, most_cost))] * 256 + costs


@draws
@given(vocabularies(), st.lists(st.lists(st.sampled_from(b"abc"), max_size=30).map(bytes), max_size=6),
       st.integers(1, 40))
def test_it_is_the_cheapest_cut_and_ties_go_to_the_longest_last_piece(vocabulary, texts, window):
    expected = [cheapest(*vocabulary, text) for text in texts]
    reference = Reference(*vocabulary)
    assert [reference.encode(text) for text in texts] == expected
    assert found(made(*vocabulary), texts, window) == expected


@draws
@given(vocabularies(b"ab\xe4\xb8\xad ", 1 << 20, 20), st.integers(0, 2**32), st.integers(200, 1200))
def test_long_texts_are_searched_in_four_parts_at_once(vocabulary, seed, window):
    random = np.random.default_rng(seed)
    texts = [b"".join(vocabulary[0][i] for i in random.integers(200, len(vocabulary[0]), size))
             for size in random.integers(0, 700, 4)]
    reference = Reference(*vocabulary)
    assert found(made(*vocabulary), texts, window) == [reference.encode(text) for text in texts]


@pytest.mark.parametrize("size", range(120, 140))
def test_the_last_window_is_as_short_as_it_likes(size):
    """Four parts of some thirty bytes each, and a piece that lies across the border of two."""
    pieces, costs = [*SINGLES, b"a" * 5, b"a" * 6, b"a" * 9], [1] * 256 + [0] * 3
    for before in range(size // 4 - 12, size // 4 + 2):
        text = b"b" * before + b"a" * 9 + b"b" * (size - before - 9)
        assert found(made(pieces, costs), [text], 4096) == [Reference(pieces, costs).encode(text)]


@pytest.mark.parametrize("seed", range(4))
def test_any_bytes_in_windows_of_full_size(seed):
    random = np.random.default_rng(seed)
    letters = [bytes([byte]) for byte in random.integers(0, 256, 6)]
    longer = {b"".join(letters[i] for i in random.integers(0, 6, random.integers(2, 9))) for _ in range(3000)}
    pieces = SINGLES + sorted(longer)
    costs = random.integers(0, 1 << 20, len(pieces))
    texts = [b"".join(letters[i] for i in random.integers(0, 6, size)) for size in (20_000, 0, 1, 7_000, 4096, 3)]
    texts.append(random.bytes(9_000))
    reference = Reference(pieces, costs)
    assert found(made(pieces, costs), texts) == [reference.encode(text) for text in texts]


@pytest.mark.parametrize("most", [(1 << 23) - 1, 1 << 23, (1 << 31) - 1])
def test_costs_of_all_sizes(most):
    random = np.random.default_rng(most)
    pieces = SINGLES + [b"ab", b"aba", b"abab", b"babab", b"bb", b"ababab"]
    text = bytes(random.choice([97, 98], 3000).tolist())
    for low in (0, most - 5):
        costs = random.integers(low, most, len(pieces), endpoint=True)
        costs[0] = most
        assert found(made(pieces, costs), [text]) == [Reference(pieces, costs).encode(text)]


def run_of(longest, seed=0):
    """Pieces a, aa, aaa, ..., and costs under which each may be the best."""
    pieces = SINGLES + [b"a" * length for length in range(2, longest + 1)]
    costs = np.random.default_rng(seed).integers(1 << 16, 1 << 20, len(pieces))
    return pieces, costs


@pytest.mark.parametrize("longest", [2, 36, automaton.MOST_BYTES])
def test_one_byte_over_and_over_leaves_no_place_to_cut(longest):
    pieces, costs = run_of(longest)
    texts = [b"a" * 20_000, b"a" * 9_000 + b"b", b"aab" * 3000]
    reference = Reference(pieces, costs)
    assert found(made(pieces, costs), texts) == [reference.encode(text) for text in texts]


def test_a_million_times_one_byte():
    pieces, costs = run_of(36)
    (ids,) = found(made(pieces, costs), [b"a" * 1_000_000])
    assert sum(len(pieces[i]) for i in ids) == 1_000_000
    total = sum(int(costs[i]) for i in ids)
    lengths = np.array([len(piece) for piece in pieces])
    runs = np.flatnonzero((lengths > 1) | (np.arange(len(pieces)) == ord("a")))
    least = (costs[runs] / lengths[runs]).min() * 1_000_000
    assert least <= total <= least + costs[runs].max() * 36


def test_long_pieces_with_a_common_end_fall_back_a_byte_at_a_time():
    pieces = SINGLES + [b"a" * k + b"b" * (30 - k) for k in range(1, 30)]
    costs = np.full(len(pieces), 1 << 16)
    text = (b"a" * 29 + b"c" + b"a" * 28 + b"bc") * 400
    assert found(made(pieces, costs), [text]) == [Reference(pieces, costs).encode(text)]


def test_no_texts_and_texts_without_bytes():
    tables = made(SINGLES, np.ones(256))
    assert found(tables, []) == []
    assert found(tables, [b"", b""]) == [[], []]
    assert found(tables, [b"", b"ab", b"", b"", b"c", b""]) == [[], [97, 98], [], [], [99], []]
    assert found(tables, [b"x" * 4096, b"", b"y"]) == [[120] * 4096, [], [121]]


def test_texts_may_begin_anywhere_in_the_buffer():
    pieces = SINGLES + [b"ab", b"bc", b"abc"]
    tables = made(pieces, np.ones(len(pieces)))
    ids, counts = np.empty(9, np.int32), np.empty(2, np.int64)
    total = best_path.encode(tables, np.frombuffer(b"ababcabca", np.uint8), np.array([1, 4, 6]), ids, counts)
    assert ids[:total].tolist() == [98, 256, 99, 97] and counts.tolist() == [2, 2]


@pytest.mark.parametrize(("pieces", "rule"), [
    (SINGLES[1:], "all 256 bytes"),
    ([*SINGLES, b"ab", b"ab"], "different"),
    ([*SINGLES, b""], "not empty"),
    ([*SINGLES, b"a" * 255], "at most 254 bytes: got 255"),
])
def test_vocabularies_that_cannot_be_searched(pieces, rule):
    with pytest.raises(TokenizerError, match=rule):
        automaton.build(pieces, np.ones(len(pieces), np.int32))
