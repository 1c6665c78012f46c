import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer import ByteTokenizer, StreamEncoder, TokenizerError, drawing
from tokenizer.piece import PieceTokenizer
from tokenizer.sampling import SampledTokenizer, sample
from tokenizer.vocabulary import COST_UNIT, Vocabulary

draws = settings(max_examples=60, deadline=None, derandomize=True)
PIECES = [*(bytes([byte]) for byte in range(256)), b"ab", b"abc", b"bc", b"ca", b"aa", b"aaa", b"cab", b"bca",
          b"aaaaaa"]
COSTS = np.random.default_rng(0).uniform(0.4, 0.9, len(PIECES)) * [len(piece) for piece in PIECES] * COST_UNIT
LETTERS = PieceTokenizer(Vocabulary(PIECES, np.ones(len(PIECES), np.int64), COSTS.astype(np.int32)))
SAMPLES = 50_000
texts = st.one_of(st.text("abc", max_size=60).map(str.encode), st.binary(max_size=60))


def all_cuts(text: bytes) -> list[tuple[int, ...]]:
    """All ways to write `text` as pieces, as ids."""
    if not text:
        return [()]
    return [(i, *rest) for i, piece in enumerate(PIECES) if text.startswith(piece)
            for rest in all_cuts(text[len(piece) :])]


def probabilities(cuts: list[tuple[int, ...]], alpha: float) -> np.ndarray:
    costs = np.array([sum(int(LETTERS.vocabulary.costs[i]) for i in cut) for cut in cuts]) / COST_UNIT
    weights = np.exp(-alpha * (costs - costs.min()))
    return weights / weights.sum()


def chi_square(times: np.ndarray, expected: np.ndarray) -> tuple[float, int]:
    """The statistic and its degrees of freedom; rare cuts count as one."""
    rare = expected < 10
    if rare.any():
        times = np.append(times[~rare], times[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    return float(((times - expected) ** 2 / np.maximum(expected, 1e-9)).sum()), len(times) - 1


def surely_differs(chi: float, freedom: int) -> bool:
    """One true distribution in 100,000 or fewer would be rejected: Wilson and Hilferty's approximation, 1931."""
    spread = 2 / (9 * max(freedom, 1))
    return (chi / max(freedom, 1)) ** (1 / 3) > 1 - spread + 4.27 * math.sqrt(spread)


@pytest.mark.parametrize("alpha", [0, 0.25, 1, 3])
@pytest.mark.parametrize("text", [b"abcabcaab", b"aaaaaaaa", b"cabcab", b"xaabcax"])
def test_frequencies_are_those_of_the_enumerated_distribution(text, alpha):
    cuts = all_cuts(text)
    ids, starts = SampledTokenizer(LETTERS, alpha, seed=3).encode_batch([text] * SAMPLES)
    times = dict.fromkeys(cuts, 0)
    for first, last in zip(starts[:-1], starts[1:], strict=True):
        times[tuple(ids[first:last].tolist())] += 1
    times = np.array(list(times.values()))
    assert not surely_differs(*chi_square(times, SAMPLES * probabilities(cuts, alpha)))
    if len(cuts) > 2:
        assert surely_differs(*chi_square(times, SAMPLES * probabilities(cuts, alpha + 0.1)))


@pytest.mark.parametrize("alpha", [0, 0.5, 1, 20, 300])
def test_sums_of_a_long_text_without_a_cut_keep_their_scale(alpha):
    """The expected number of tokens of a run of "a", whose sums leave the range of floats, against logarithms."""
    length = 12_000
    costs = alpha * LETTERS.vocabulary.costs / COST_UNIT
    pieces = [(1, costs[97]), (2, costs[PIECES.index(b"aa")]), (3, costs[PIECES.index(b"aaa")]),
              (6, costs[PIECES.index(b"aaaaaa")])]
    logs, tokens = [0.0], [0.0]
    for at in range(1, length + 1):
        terms = np.array([logs[at - n] - cost for n, cost in pieces if n <= at])
        weights = np.exp(terms - terms.max())
        logs.append(terms.max() + math.log(weights.sum()))
        tokens.append(float(weights @ [1 + tokens[at - n] for n, _ in pieces if n <= at] / weights.sum()))
    ids, starts = SampledTokenizer(LETTERS, alpha, seed=1).encode_batch([b"a" * length] * 40)
    assert all(LETTERS.decode_bytes(ids[a:b]) == b"a" * length for a, b in zip(starts[:-1], starts[1:], strict=True))
    got = np.diff(starts)
    assert abs(got.mean() - tokens[-1]) <= 5 * got.std(ddof=1) / math.sqrt(len(got)) + 1e-6


@draws
@given(texts, st.floats(0, 1e9), st.integers(0, 2**64 - 1))
def test_every_sample_decodes_exactly(text, alpha, seed):
    ids = sample(LETTERS, text, alpha, seed)
    assert ids.dtype == LETTERS.dtype and LETTERS.decode_bytes(ids) == text
    assert ids.tolist() == sample(LETTERS, text, alpha, seed).tolist()


def cost(ids: np.ndarray) -> int:
    return int(LETTERS.vocabulary.costs[ids].sum())


@draws
@given(texts, st.integers(0, 2**64 - 1))
def test_alpha_to_infinity_is_the_best_path(text, seed):
    best = LETTERS.encode_bytes(text)
    assert sample(LETTERS, text, math.inf, seed).tolist() == best.tolist()
    assert sample(LETTERS, text, 1e8, seed).tolist() == best.tolist()
    assert cost(sample(LETTERS, text, 1e6, seed)) == cost(best)


@draws
@given(st.lists(texts, max_size=8), st.integers(1, 4), st.integers(0, 2**40))
def test_the_number_of_the_document_decides_not_its_place_or_the_threads(data, threads, first):
    sampled = SampledTokenizer(LETTERS, 0.5, 9)
    ids, starts = sampled.encode_batch(data, threads, first)
    assert ids.dtype == LETTERS.dtype and starts.dtype == np.int64 and starts[-1] == len(ids)
    alone = [sample(LETTERS, text, 0.5, 9, first + i).tolist() for i, text in enumerate(data)]
    assert [ids[a:b].tolist() for a, b in zip(starts[:-1], starts[1:], strict=True)] == alone


@draws
@given(st.lists(st.one_of(texts, st.just(b"abcab" * 1500), st.just(b"aax" * 3000)), max_size=6), st.integers(0, 2**40))
def test_chunks_give_the_ids_of_the_whole_text(parts, document):
    sampled = SampledTokenizer(LETTERS, 0.5, 9)
    encoder = StreamEncoder(sampled, document)
    for number in (document, document + 1):
        ids = np.concatenate([*map(encoder.push, parts), encoder.flush()])
        assert ids.tolist() == sample(LETTERS, b"".join(parts), 0.5, 9, number).tolist()


def test_seeds_documents_and_places_give_other_cuts():
    text = b"abcabcaab" * 20
    cuts = [sample(LETTERS, text, 0.5, seed, document).tolist()
            for seed in (0, 1, 2**32, 2**63) for document in (0, 1, 2**32, 2**62)]
    assert len(set(map(tuple, cuts))) == len(cuts)
    repeated = np.split(sample(LETTERS, b"abcab." * 50, 0.5, 0), 1)[0]
    assert len(set(map(bytes, LETTERS.decode_bytes(repeated).split(b".")))) == 2
    words = {tuple(word) for word in "".join(f"{i}," for i in repeated).split(f"{ord('.')},")}
    assert len(words) > 4


def test_uniform_numbers_are_splitmix64():
    """The first numbers of seed 1234567 that its author's program gives (Vigna, splitmix64.c)."""
    gamma = 0x9E3779B97F4A7C15
    mixed = [int(drawing._mix(np.uint64((1234567 + i * gamma) % 2**64))) for i in (1, 2, 3)]
    assert mixed == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_it_is_a_tokenizer():
    sampled = SampledTokenizer(LETTERS, 0.5, 9)
    assert (sampled.vocab_size, sampled.special, sampled.eod) == (LETTERS.vocab_size, LETTERS.special, LETTERS.eod)
    assert sampled.decode(sampled.encode("abc中\ud800")) == "abc中\ufffd"
    assert sampled.decode_bytes([97, sampled.eod]) == b"a" and sampled.token_bytes() is LETTERS.token_bytes()
    assert sampled.encode("abcab" * 9).tolist() == sample(LETTERS, "abcab" * 9, 0.5, 9).tolist()
    copy = pickle.loads(pickle.dumps(sampled))
    assert copy.encode("abcab" * 9).tolist() == sampled.encode("abcab" * 9).tolist()
    prints = {SampledTokenizer(tokenizer, alpha, seed).fingerprint() for tokenizer in (LETTERS, ByteTokenizer())
              for alpha in (0, 0.5, 1) for seed in (0, 1)} | {LETTERS.fingerprint()}
    assert len(prints) == 13 and copy.fingerprint() == sampled.fingerprint()


def test_bytes_can_be_cut_in_one_way_only():
    sampled = SampledTokenizer(ByteTokenizer(), 0.5, 9)
    assert sampled.encode("中a").tolist() == ByteTokenizer().encode("中a").tolist()
    ids, starts = sampled.encode_batch(["a", b"", "bc"], threads=2)
    assert ids.tolist() == [97, 98, 99] and starts.tolist() == [0, 1, 1, 3]
    assert StreamEncoder(sampled).push("a\ud83d").tolist() == [97]


def test_nothing_to_encode():
    sampled = SampledTokenizer(LETTERS, 0.5, 9)
    for threads in (1, 3):
        ids, starts = sampled.encode_batch([], threads)
        assert ids.dtype == LETTERS.dtype and len(ids) == 0 and starts.tolist() == [0]
        assert sampled.encode_batch(["", ""], threads)[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("alpha", [-0.1, math.nan, "1", None, True])
def test_alpha_out_of_range(alpha):
    with pytest.raises(TokenizerError, match="alpha must be a number >= 0: got"):
        SampledTokenizer(LETTERS, alpha, 0)


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, None, True])
def test_seed_out_of_range(seed):
    with pytest.raises(TokenizerError, match="the seed must be an integer"):
        SampledTokenizer(LETTERS, 1, seed)
