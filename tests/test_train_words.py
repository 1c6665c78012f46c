"""n-grams and words against Counter, the model against its formula, segmentation against all segmentations."""

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenizer.boundaries import allows, borders
from tokenizer.documents import Piece
from tokenizer.train import engines, language_model, ngrams, words
from tokenizer.train.blocks import forced_starts, parts
from tokenizer.train.language_model import MISSING, LanguageModel
from tokenizer.train.segmentation import word_starts
from tokenizer.train.spool import spool
from tokenizer.vocabulary import COST_UNIT

TEXT = st.text(alphabet="aab \n12,é中文，😀", max_size=60)
DOCUMENTS = st.lists(TEXT, min_size=1, max_size=6)
RULES = st.sampled_from(["none", "default", "words"])
SMALL = settings(deadline=None, derandomize=True, max_examples=20)


def stretches(document: str, rule: str) -> list[bytes]:
    """The document cut at all borders."""
    data = document.encode()
    cuts = np.flatnonzero(borders(np.frombuffer(data, np.uint8), rule)).tolist()
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)])]


def counted(documents: list[str], rule: str) -> Counter:
    return Counter(text[i : i + order] for document in documents for text in stretches(document, rule)
                   for order in range(1, ngrams.ORDER + 1) for i in range(len(text) - order + 1))


def joined(documents: list[str], rule: str) -> tuple[np.ndarray, np.ndarray]:
    data = [document.encode() for document in documents]
    text = np.array(np.frombuffer(b"".join(data), np.uint8))
    return text, forced_starts(text, np.cumsum([0, *map(len, data)]), rule)


def merge(folder: Path, documents: list[str], rule: str, least: int, shard=1 << 20, block=1 << 20, range_bytes=1 << 20):
    shards = spool([Piece(document, True) for document in documents], folder, shard)
    tables = engines.run(ngrams.count_windows, parts(shards, 1.0, rule, block), folder, "windows")
    return engines.run(ngrams.merge_windows, ngrams.ranges(tables, range_bytes, least), folder, "ngrams")


def as_counter(paths: list[Path], least: int) -> Counter:
    found = Counter()
    for order in range(1, ngrams.ORDER + 1):
        for ngram, count in zip(*(array.tolist() for array in ngrams.level(paths, order, least))):
            found[ngram.to_bytes(8, "big")[:order]] = count
    return found


def model_of(folder: Path, documents: list[str], rule: str, least: int = 1) -> LanguageModel:
    return language_model.language_model(language_model.Ngrams(merge(folder, documents, rule, least), least))


@SMALL
@given(documents=DOCUMENTS, rule=RULES, block=st.integers(4, 50), range_bytes=st.integers(16, 200),
       least=st.integers(2, 3))
def test_ngrams_are_counted_as_by_counter(documents, rule, block, range_bytes, least, tmp_path_factory):
    paths = merge(tmp_path_factory.mktemp("n"), documents, rule, least, block=block, range_bytes=range_bytes)
    assert as_counter(paths, least) == Counter({k: n for k, n in counted(documents, rule).items() if n >= least})


def test_a_count_that_needs_several_entries():
    text = np.full(30_000, ord("a"), np.uint8)
    table = ngrams.windows(text, np.zeros(len(text), bool))
    whole = table[(table >> ngrams.LENGTH_SHIFT) & 7 == ngrams.ORDER]
    assert len(whole) == 4 and (whole % (1 << ngrams.LENGTH_SHIFT)).sum() == len(text) - ngrams.ORDER + 1


def test_merging_tables_goes_by_their_sum_in_any_order(tmp_path):
    texts = ["the cat and the hat\n" * 3, "中文和英文，中文", "a cat\0\0and a\0\0cat", "the end\n"]
    tables = [ngrams.windows(*joined([text], "default")) for text in texts]
    results = []
    for order in itertools.permutations(range(len(tables))):
        path = tmp_path / "tables.npy"
        ngrams.save_arrays(path, [tables[i] for i in order])
        ngrams.merge_windows(ngrams.Range([path], 0, 0, 1), tmp_path / "merged.npy")
        results.append((tmp_path / "merged.npy").read_bytes())
    assert len(set(results)) == 1
    assert as_counter([tmp_path / "merged.npy"], 1)[b"\0\0"] == 2


@SMALL
@given(documents=DOCUMENTS, rule=RULES, least=st.integers(1, 3))
def test_costs_are_those_of_the_formula(documents, rule, least, tmp_path_factory):
    model = model_of(tmp_path_factory.mktemp("m"), documents, rule, least)
    counts = counted(documents, rule)
    single = [max(1, counts[bytes([byte])]) for byte in range(256)]
    for byte in range(256):
        assert model.cost[byte] == round(math.log(sum(single) / single[byte]) * COST_UNIT)
    for text in (text for document in documents for text in stretches(document, rule)):
        node = 0
        for end in range(1, len(text) + 1):
            node = language_model_step(model, node, text[end - 1])
            for order in range(2, ngrams.ORDER + 1):
                ngram = text[max(0, end - order) : end]
                cost = model.rows[node, language_model.COST + order - 2]
                if end >= order and counts[ngram] >= least:
                    before = single[ngram[0]] if order == 2 else counts[ngram[:-1]]
                    assert cost == round(math.log(before / counts[ngram]) * COST_UNIT)
                else:
                    assert cost == MISSING


def language_model_step(model: LanguageModel, node: int, byte: int) -> int:
    """What the automaton does, the slow way."""
    while node:
        first, last = model.rows[node, language_model.FIRST], model.rows[node, language_model.LAST]
        found = [child for child in range(first, last) if model.last_byte[child] == byte]
        if found:
            return found[0]
        node = model.rows[node, language_model.SUFFIX]
    return 1 + byte


def word_cost(model: LanguageModel, word: bytes) -> int:
    node, total = 0, int(model.cost[word[0]])
    for at, byte in enumerate(word):
        node = language_model_step(model, node, byte)
        if at:
            total += int(model.rows[node, language_model.COST - 1 + min(at, ngrams.ORDER - 1)])
    return total


def cheapest(model: LanguageModel, text: bytes, longest: int = 1 << 30) -> int:
    """The least cost over all ways to cut a text between characters into words of at most `longest` bytes."""
    places = [i for i in range(1, len(text)) if text[i] & 0xC0 != 0x80]
    costs = []
    for number in range(len(places) + 1):
        for cuts in itertools.combinations(places, number):
            cut = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
            if max(map(len, cut)) <= longest:
                costs.append(sum(word_cost(model, word) for word in cut))
    return min(costs)


def cut(text: np.ndarray, starts: np.ndarray) -> list[bytes]:
    edges = [*np.flatnonzero(starts).tolist(), len(text)]
    return [bytes(text[a:b]) for a, b in zip(edges[:-1], edges[1:])]


@SMALL
@example(documents=["xx"], short="bbaab1ab b", rule="none", least=2, repeated=2)
@given(documents=DOCUMENTS, short=st.text(alphabet="ab 1中é", min_size=1, max_size=9), rule=RULES,
       least=st.integers(1, 3), repeated=st.integers(0, 3))
def test_the_cut_is_the_cheapest_of_all(documents, short, rule, least, repeated, tmp_path_factory):
    model = model_of(tmp_path_factory.mktemp("s"), documents + [short] * repeated, rule, least)
    text, forced = joined([short], rule)
    found = cut(text, word_starts(model, text, forced, 100))
    assert b"".join(found) == short.encode()
    least_cost = sum(cheapest(model, part) for part in stretches(short, rule))
    assert sum(word_cost(model, word) for word in found) == least_cost


@SMALL
@given(documents=DOCUMENTS, short=st.text(alphabet="ab 中é", min_size=1, max_size=9), longest=st.integers(4, 9))
def test_a_long_word_is_cut_again_in_the_cheapest_way(documents, short, longest, tmp_path_factory):
    model = model_of(tmp_path_factory.mktemp("s"), [*documents, short, short], "none")
    text, forced = joined([short], "none")
    long = cut(text, word_starts(model, text, forced, 100))
    found = cut(text, word_starts(model, text, forced, longest))
    assert max(map(len, found)) <= longest
    assert sum(word_cost(model, word) for word in found) == sum(cheapest(model, word, longest) for word in long)


@SMALL
@given(document=TEXT.filter(bool), rule=RULES)
def test_words_cross_no_border_and_are_whole_characters(document, rule, tmp_path_factory):
    model = model_of(tmp_path_factory.mktemp("s"), [document * 4], rule)
    text, forced = joined([document, document], rule)
    for longest in (4, 36):
        starts = word_starts(model, text, forced, longest)
        assert not (forced & ~starts).any()
        assert all(allows(word, rule) and word.decode() for word in cut(text, starts))


@SMALL
@given(texts=st.lists(st.lists(st.sampled_from(["a", "b", "ab", "中", "中文", "aab"]), max_size=30), max_size=5),
       mask=st.sampled_from([0, 1, 7, words.ALL_BITS]), total=st.integers(1, 4), least=st.integers(1, 3))
def test_words_are_counted_as_by_counter(texts, mask, total, least):
    tables = []
    for text in texts:
        data = np.array(np.frombuffer("".join(text).encode(), np.uint8))
        starts = np.zeros(len(data), bool)
        starts[np.cumsum([0, *(len(word.encode()) for word in text)])[:-1]] = True
        tables.append(words.count(data, starts, mask))
        assert dict(zip(words.strings(*tables[-1][2:]), tables[-1].counts.tolist())) == Counter(
            word.encode() for word in text)
    found = [words.merged(tables, words.Range([], number, total, least)) for number in range(total)]
    merged = [pair for table in found for pair in zip(words.strings(*table[2:]), table.counts.tolist())]
    every = Counter(word.encode() for text in texts for word in text)
    assert sorted(merged) == sorted((word, n) for word, n in every.items() if n >= least)


def test_a_table_of_words_grows():
    numbers = [f"{i:05d}" for i in range(20_000)]
    text = np.array(np.frombuffer("".join(numbers * 2).encode(), np.uint8))
    table = words.count(text, np.arange(len(text)) % 5 == 0)
    assert sorted(words.strings(table.starts, table.text)) == [number.encode() for number in numbers]
    assert (table.counts == 2).all() and (np.diff(table.hashes.astype(object)) >= 0).all()
