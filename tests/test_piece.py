"""The trained tokenizer's interface: batches, threads, offsets, padding, decoding, processes, and without Numba."""

import multiprocessing
import operator
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from piece_samples import SINGLES, sample

from tokenizer import ByteTokenizer, PieceTokenizer, StreamEncoder, TokenizerError, best_path
from tokenizer.boundaries import borders as borders_of
from tokenizer.documents import Piece
from tokenizer.encode import encode_documents
from tokenizer.reference import Reference
from tokenizer.sampling import SampledTokenizer
from tokenizer.vocabulary import Vocabulary

WORDS = ["the", " the", "then", "he", "中文", "中", "文", "分词", " a", "ab", "😀", "\n\n", "--"]
WORDS = [word.encode() for word in WORDS]
PIECES = PieceTokenizer(sample(WORDS))
CHARACTERS = WORDS + ["分".encode(), "词".encode()]
WHOLE = PieceTokenizer(Vocabulary(SINGLES + CHARACTERS, np.ones(271), [99] * 256 + [1] * 15))
BOTH = pytest.mark.parametrize("tokenizer", [PIECES, ByteTokenizer()], ids=["pieces", "bytes"])
TEXTS = ["the then中文分词 ab", "", "😀 a the\n\n", "x", "中" * 3000, "he-- the " * 500]
draws = settings(max_examples=100, deadline=None, derandomize=True)
mixed = st.text(st.sampled_from("the n中文分词ab😀\n-é"), max_size=60)


@draws
@given(st.one_of(st.binary(max_size=200), st.text(max_size=80).map(str.encode)))
def test_any_bytes_survive_and_the_reference_agrees(data):
    ids = PIECES.encode_bytes(data)
    assert ids.dtype == np.uint16
    assert ids.tolist() == Reference(PIECES.vocabulary.pieces, PIECES.vocabulary.costs).encode(data)
    assert PIECES.decode_bytes(ids) == data
    assert PIECES.token_bytes()[ids].sum() == len(data)


@BOTH
@pytest.mark.parametrize("threads", [1, 2, 3, 7, 20])
def test_a_batch_is_its_texts_for_any_number_of_threads(tokenizer, threads):
    texts = [*TEXTS, *(text.encode() for text in TEXTS), b"\xff\xfe\xe4\xb8"]
    ids, starts = tokenizer.encode_batch(texts, threads)
    single = [tokenizer.encode(text) if isinstance(text, str) else tokenizer.encode_bytes(text) for text in texts]
    assert ids.dtype == tokenizer.dtype and starts.dtype == np.int64
    assert [part.tolist() for part in np.split(ids, starts[1:-1])] == [part.tolist() for part in single]
    assert tokenizer.decode_batch(ids, starts) == [tokenizer.decode(part) for part in single]
    assert [array.tolist() for array in tokenizer.encode_batch([], threads)] == [[], [0]]


@BOTH
@draws
@given(mixed)
def test_offsets(tokenizer, text):
    data = text.encode()
    ids, starts = tokenizer.encode_with_offsets(text)
    assert ids.tolist() == tokenizer.encode(text).tolist()
    assert starts.dtype == np.int64 and starts[0] == 0
    assert [data[a:b] for a, b in zip(starts[:-1], starts[1:])] == [tokenizer.decode_bytes([i]) for i in ids]
    _, characters = tokenizer.encode_with_offsets(text, "character")
    assert characters.tolist() == [len(data[:start].decode(errors="ignore")) + (start not in borders(text))
                                   for start in starts.tolist()]
    assert "".join(text[a:b] for a, b in zip(characters[:-1], characters[1:])) == text


def borders(text):
    return {len(text[:i].encode()) for i in range(len(text) + 1)}


@draws
@given(st.text(st.sampled_from("the n中文分词ab😀\n-"), max_size=60))
def test_slices_of_the_text_are_the_pieces_where_pieces_are_whole_characters(text):
    ids, starts = WHOLE.encode_with_offsets(text, unit="character")
    assert [text[a:b] for a, b in zip(starts[:-1], starts[1:])] == [WHOLE.decode([i]) for i in ids]


@BOTH
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("truncate", ["left", "right"])
@pytest.mark.parametrize("length", [1, 4, 40])
def test_padding(tokenizer, side, truncate, length):
    rows, mask = tokenizer.encode_padded(TEXTS, length, side, truncate)
    assert rows.shape == mask.shape == (len(TEXTS), length) and rows.dtype == tokenizer.dtype and mask.dtype == bool
    for text, row, used in zip(TEXTS, rows, mask):
        ids = tokenizer.encode(text)
        kept = ids[:length] if truncate == "right" else ids[max(0, len(ids) - length) :]
        assert row[used].tolist() == kept.tolist()
        assert (row[~used] == tokenizer.special["<|pad|>"]).all()
        assert used[: len(kept)].all() if side == "right" else used[length - len(kept) :].all()
    assert [array.shape for array in tokenizer.encode_padded([], length)] == [(0, length)] * 2


@BOTH
@pytest.mark.parametrize(("call", "rule"), [
    (lambda t: t.encode_padded(["a"], 0), "length must be an integer from 1 on, got 0"),
    (lambda t: t.encode_padded(["a"], 3, side="both"), r"side must be one of \['left', 'right'\], got 'both'"),
    (lambda t: t.encode_padded(["a"], 3, truncate=""), "truncate must be one of"),
    (lambda t: t.encode_with_offsets("a", "word"), r"unit must be one of \['byte', 'character'\], got 'word'"),
    (lambda t: t.encode_batch(["a"], threads=0), "threads must be an integer from 1 on, got 0"),
    (lambda t: t.encode_batch(["a"], threads=True), "threads must be"),
    (lambda t: t.encode_batch("text"), "a batch must be a list of texts, got a str"),
    (lambda t: t.decode([t.vocab_size]), "token ids must be in 0"),
    (lambda t: t.decode([3, -1]), "got -1"),
    (lambda t: t.decode(np.array([1 << 40])), f"got {1 << 40}"),
    (lambda t: t.decode(np.array([1 << 63], np.uint64)), f"got {1 << 63}"),
    (lambda t: t.decode([0.5]), "token ids must be integers, got float64"),
    (lambda t: t.decode([1 << 63]), f"got {1 << 63}"),
    (lambda t: t.decode(np.array([True])), "token ids must be integers, got bool"),
    (lambda t: t.decode_batch([97, 98], [0, 2, 1]), "never fall"),
    (lambda t: t.decode_batch([97, 98], [0, 3]), r"starts must be in 0\.\.2, got 0\.\.3"),
    (lambda t: t.decode_batch([97, 98], []), "starts must be a list of integers"),
])
def test_bad_arguments(tokenizer, call, rule):
    with pytest.raises(TokenizerError, match=rule):
        call(tokenizer)


def test_padding_needs_its_token():
    bare = PieceTokenizer(sample(special=("<|end|>",)))
    with pytest.raises(TokenizerError, match=r"needs the special token <\|pad\|>, got \['<|end|>'\]"):
        bare.encode_padded(["a"], 3)


@BOTH
def test_decoding_takes_integers_of_all_kinds_and_leaves_special_tokens_out(tokenizer):
    ids = tokenizer.encode("the 中文")
    for kind in (np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64):
        assert tokenizer.decode(ids.astype(kind)) == "the 中文"
    assert tokenizer.decode([tokenizer.eod, *ids.tolist(), tokenizer.vocab_size - 1]) == "the 中文"
    assert tokenizer.decode(ids.reshape(1, -1)) == "the 中文" and tokenizer.decode([]) == ""
    assert tokenizer.decode_bytes(np.repeat(ids, 2)[::2]) == "the 中文".encode()
    assert tokenizer.decode_batch(ids, [1, 1, len(ids)]) == ["", tokenizer.decode(ids[1:])]


def test_long_pieces_are_copied_whole():
    pieces = [b"x" * 7, b"y" * 8, b"z" * 9, bytes(range(97, 120)) * 11]
    tokenizer = PieceTokenizer(Vocabulary(SINGLES + pieces, np.ones(260), np.ones(260)))
    data = b"".join(pieces[i] for i in np.random.default_rng(0).integers(0, 4, 300))
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data


def test_ids_of_32_bits():
    pairs = [bytes([a, b]) for a in range(256) for b in range(256)]
    tokenizer = PieceTokenizer(Vocabulary(SINGLES + pairs, np.ones(65792), np.ones(65792)))
    data = np.random.default_rng(0).bytes(1001)
    ids = tokenizer.encode_bytes(data)
    assert ids.dtype == np.uint32 and ids.max() > 1 << 16 and tokenizer.decode_bytes(ids) == data


def test_many_threads_share_one_object():
    fresh = PieceTokenizer(sample(WORDS))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: fresh.decode(fresh.encode(TEXTS[i % 6] * (i + 1))), range(60)))
    assert found == [TEXTS[i % 6] * (i + 1) for i in range(60)]


@pytest.mark.parametrize("start", ["spawn", pytest.param("fork", marks=pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="forking is for Linux"))])
def test_other_processes(start):
    PIECES.encode_batch(TEXTS, threads=3)
    with multiprocessing.get_context(start).Pool(1) as pool:
        found = pool.apply(operator.methodcaller("encode_batch", TEXTS, 2), (PIECES,))
    assert [array.tolist() for array in found] == [array.tolist() for array in PIECES.encode_batch(TEXTS)]


def test_a_pickled_tokenizer_has_its_tables(monkeypatch):
    data = pickle.dumps(PIECES)
    monkeypatch.setattr(best_path, "tables", None)
    again = pickle.loads(data)
    assert again.encode(TEXTS[0]).tolist() == PIECES.encode(TEXTS[0]).tolist()
    assert again.fingerprint() == PIECES.fingerprint() and again.special == PIECES.special


ONE_COMPILATION = """
import pickle, sys
from tokenizer import PieceTokenizer, best_path, joining, load
loaded = load(sys.argv[1])
for tokenizer in (loaded, PieceTokenizer(loaded.vocabulary), pickle.loads(pickle.dumps(loaded))):
    for text in ("the", b"the", bytearray(b"the"), memoryview(b"the")):
        ids, starts = tokenizer.encode_batch([text, "中文"], threads=2)
        assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == "the中文"
        assert tokenizer.decode_batch(ids, starts) == ["the", "中文"]
    assert tokenizer.encode("the").tolist() == tokenizer.encode_bytes(memoryview(b"the")).tolist()
print([len(loop.signatures) for loop in (best_path._encode, joining._size, joining._join)])
"""


def test_one_compilation_serves_text_and_tables_of_all_kinds(tmp_path):
    PIECES.save(tmp_path)
    found = subprocess.run([sys.executable, "-c", ONE_COMPILATION, str(tmp_path)], capture_output=True, text=True,
                           cwd=Path(__file__).parent.parent, timeout=300)
    assert found.stdout == "[1, 1, 1]\n", found.stderr


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None
import pickle
from tokenizer import compiled
assert not compiled.AVAILABLE
tokenizer = pickle.loads(sys.stdin.buffer.read())
texts = ["the then中文分词 ab", "", "😀 a the\\n\\n", b"\\xff\\xe4\\xb8the"]
ids, starts = tokenizer.encode_batch(texts, threads=2)
single = tokenizer.encode(texts[0])
assert tokenizer.decode_batch(ids, starts)[:3] == texts[:3] and tokenizer.decode(single) == texts[0]
assert tokenizer.decode_bytes(tokenizer.encode_bytes(texts[3])) == texts[3] and tokenizer.decode([tokenizer.eod]) == ""
print(ids.dtype, ids.tolist(), starts.tolist())
"""


def test_without_numba_the_reference_serves():
    found = subprocess.run([sys.executable, "-c", WITHOUT_NUMBA], input=pickle.dumps(PIECES), capture_output=True,
                           cwd=Path(__file__).parent.parent, timeout=120)
    assert found.returncode == 0, found.stderr.decode()
    ids, starts = PIECES.encode_batch(["the then中文分词 ab", "", "😀 a the\n\n", b"\xff\xe4\xb8the"])
    assert found.stdout.decode().strip() == f"{ids.dtype} {ids.tolist()} {starts.tolist()}"


def pattern_of(rule: str, *words: str) -> PieceTokenizer:
    """Pieces that cross the matches of `rule` among them."""
    crossing = [" the the", "中文 a", "e, ", "\n\nab", "12ab", "😀😀", *words]
    vocabulary = sample([*WORDS, *(word.encode() for word in crossing)])
    return PieceTokenizer(Vocabulary(vocabulary.pieces, vocabulary.counts, vocabulary.costs, rule))


PATTERNS = ["pattern:cl100k", "pattern:[a-z中]+", r"pattern:(?=\s)|文"]
with_pattern = st.lists(st.one_of(st.text(st.sampled_from("the n中文,ab12😀\n"), max_size=40), st.binary(max_size=12)),
                        max_size=6)


def stretches_of(text: bytes, rule: str) -> list[bytes]:
    edges = [0, *np.flatnonzero(borders_of(np.frombuffer(text, np.uint8), rule)).tolist(), len(text)]
    return [text[a:b] for a, b in zip(edges[:-1], edges[1:])]


@pytest.mark.parametrize("rule", PATTERNS)
@draws
@given(texts=with_pattern, size=st.integers(1, 9))
def test_a_pattern_cuts_before_anything_else(rule, texts, size):
    pytest.importorskip("regex")
    tokenizer = pattern_of(rule)
    plain = Vocabulary(tokenizer.vocabulary.pieces, tokenizer.vocabulary.counts, tokenizer.vocabulary.costs)
    reference = Reference(plain.pieces, plain.costs)
    texts = [text.encode() if isinstance(text, str) else text for text in texts]
    expected = [[i for part in stretches_of(text, rule) for i in reference.encode(part)] for text in texts]
    for text, ids in zip(texts, expected, strict=True):
        assert tokenizer.encode_bytes(text).tolist() == ids and tokenizer.decode_bytes(ids) == text
        edges = np.cumsum([0, *(len(part) for part in stretches_of(text, rule))]).tolist()
        assert set(edges) <= set(tokenizer.encode_with_offsets(text)[1].tolist()), "no piece crosses a match"
        stream = StreamEncoder(tokenizer)
        pushed = [stream.push(text[at : at + size]).tolist() for at in range(0, len(text), size)]
        assert sum(pushed, []) + stream.flush().tolist() == ids
        drawn = SampledTokenizer(tokenizer, 0.5, 1)
        cut = drawn.encode_bytes(text)
        assert tokenizer.decode_bytes(cut) == text
        assert set(edges) <= set(np.cumsum([0, *tokenizer.token_bytes()[cut]]).tolist())
        stream = StreamEncoder(drawn)
        assert [*stream.push(text), *stream.flush()] == cut.tolist()
    for threads in (1, 3):
        ids, starts = tokenizer.encode_batch(texts, threads)
        assert [part.tolist() for part in np.split(ids, starts[1:-1])][: len(texts)] == expected
        drawn = SampledTokenizer(tokenizer, 0.5, 1).encode_batch(texts, threads)
        assert [array.tolist() for array in drawn] == [array.tolist() for array in
                                                       SampledTokenizer(tokenizer, 0.5, 1).encode_batch(texts)]
    pieces = [Piece(part, at + 1 == len(parts)) for parts in (["the 1", "2ab", ""], ["中文 a, the"]) for at, part in
              enumerate(parts)]
    found = np.concatenate([encoded.ids for encoded in encode_documents(tokenizer, pieces)])
    eod = tokenizer.eod
    assert found.tolist() == [*tokenizer.encode("the 12ab"), eod, *tokenizer.encode("中文 a, the"), eod]


def test_a_pattern_makes_a_difference():
    pytest.importorskip("regex")
    crossed = pattern_of("none", "the 12").encode("the 12")
    kept = pattern_of("pattern:cl100k", "the 12").encode("the 12")
    assert len(crossed) == 1 and len(kept) > 2
    fingerprints = {pattern_of(rule).fingerprint() for rule in ("none", "words", *PATTERNS)}
    assert len(fingerprints) == 1 + len(PATTERNS)
    copy = pickle.loads(pickle.dumps(pattern_of("pattern:cl100k")))
    assert copy.encode("the the").tolist() == pattern_of("pattern:cl100k").encode("the the").tolist()
