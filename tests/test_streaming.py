import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer import ByteTokenizer, StreamDecoder, StreamEncoder, streaming
from tokenizer.normalizing import TextBytes, text_bytes
from tokenizer.piece import PieceTokenizer
from tokenizer.streaming import StretchCutter
from tokenizer.vocabulary import Vocabulary, costs_of

draws = settings(max_examples=200, deadline=None, derandomize=True)


def tokenizer_of(*pieces: bytes, normalizer: str = "", seed: int = 0) -> PieceTokenizer:
    pieces = [*(bytes([byte]) for byte in range(256)), *dict.fromkeys(piece for piece in pieces if len(piece) > 1)]
    counts = np.random.default_rng(seed).integers(1, 10_000, len(pieces))
    return PieceTokenizer(Vocabulary(pieces, counts, costs_of(counts), normalizer=normalizer))


LETTERS = tokenizer_of(b"ab", b"abc", b"bca", b"ca", b"cab", b"aaaa", b"bb", b"bbbbbbbb", b"abcabcabc", "中文".encode(),
                       "文中".encode(), "é".encode())
chunks = st.lists(st.one_of(st.text("abc中文é😀\ud83d\ude00", max_size=12), st.binary(max_size=6),
                            st.text("abc", max_size=30).map(str.encode)), max_size=12)


def as_bytes(chunks: list[str | bytes]) -> bytes:
    """Neighbouring strs are one text, in which two halves of a surrogate pair may meet."""
    joined: list[str | bytes] = []
    for chunk in filter(len, chunks):
        if joined and isinstance(chunk, str) and isinstance(joined[-1], str):
            joined[-1] += chunk
        else:
            joined.append(chunk)
    return b"".join(text_bytes(LETTERS, chunk) for chunk in joined)


def streamed(encoder: StreamEncoder, chunks: list[str | bytes]) -> np.ndarray:
    return np.concatenate([*(encoder.push(chunk) for chunk in chunks), encoder.flush()])


@draws
@given(chunks)
def test_chunks_give_the_ids_of_the_whole_text(parts):
    for tokenizer in (LETTERS, ByteTokenizer()):
        encoder = StreamEncoder(tokenizer)
        whole = tokenizer.encode_bytes(as_bytes(parts))
        for _ in range(2):
            ids = streamed(encoder, parts)
            assert ids.dtype == whole.dtype and ids.tolist() == whole.tolist()


@draws
@given(st.lists(st.binary(min_size=2, max_size=5), max_size=20), st.binary(max_size=80), st.data())
def test_any_vocabulary_and_any_cuts(pieces, data, draw):
    few = bytes.maketrans(bytes(range(256)), bytes(b"ab\xe4\xb8"[i % 4] for i in range(256)))
    tokenizer, data = tokenizer_of(*(piece.translate(few) for piece in pieces)), data.translate(few)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=8)))
    parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    assert streamed(StreamEncoder(tokenizer), parts).tolist() == tokenizer.encode_bytes(data).tolist()


@draws
@given(st.lists(st.text("aé\u0301e\u0327한ᄒ\u1161中\u00a8①", max_size=6), max_size=8), st.sampled_from(["nfc", "nfkc"]))
def test_a_normalizer_sees_the_whole_text(parts, form):
    tokenizer = tokenizer_of(b"ae", "é中".encode(), normalizer=form)
    stream = TextBytes(tokenizer)
    got = b"".join([*map(stream.push, parts), stream.flush()])
    assert got == unicodedata.normalize(form.upper(), "".join(parts)).encode()
    assert streamed(StreamEncoder(tokenizer), parts).tolist() == tokenizer.encode("".join(parts)).tolist()


def test_where_texts_may_be_normalized_apart():
    apart = [*range(0x300), *range(0x3400, 0xA000)]
    for form in ("NFC", "NFKC"):
        for first in ("a", "e\u0301", "\u1100", "か", "א\u05b4", "\u09c7"):
            whole, alone = unicodedata.normalize(form, first), [unicodedata.normalize(form, chr(c)) for c in apart]
            assert [unicodedata.normalize(form, first + chr(c)) for c in apart] == [whole + text for text in alone]


def test_what_is_certain_comes_at_once():
    tokenizer = tokenizer_of(b"ab")
    encoder = StreamEncoder(tokenizer)
    pushed = [tokenizer.decode(encoder.push(part)) for part in ("xyz", "a", "b", "a", "a", "", "b!")]
    assert pushed == ["xy", "z", "", "ab", "a", "", "ab"]
    assert tokenizer.decode(encoder.flush()) == "!"


def test_half_a_surrogate_pair_waits_for_the_other():
    encoder = StreamEncoder(LETTERS)
    assert LETTERS.decode(streamed(encoder, ["a\ud83d", "", "\ude00b"])) == "a😀b"
    assert LETTERS.decode(streamed(encoder, ["a\ud83d", b"", "b"])) == "a\ufffdb"
    assert LETTERS.decode(streamed(encoder, ["\ud83d", "\ud83d", "\ude00"])) == "\ufffd😀"
    assert LETTERS.decode(streamed(encoder, ["\ud83d", b"\xe4", b"\xb8\xad"])) == "\ufffd中"
    assert LETTERS.decode(streamed(encoder, ["a\ud83d"])) == "a\ufffd"
    assert LETTERS.decode(streamed(encoder, ["\ude00"])) == "\ufffd"


class Counting:
    """A tokenizer that notes how much it is given to encode."""

    def __init__(self, tokenizer: PieceTokenizer) -> None:
        self.token_bytes, self.automaton_rows = tokenizer.token_bytes, tokenizer.automaton_rows
        self.encode_bytes_of, self.sizes = tokenizer.encode_bytes, []

    def encode_bytes(self, data: bytes) -> np.ndarray:
        self.sizes.append(len(data))
        return self.encode_bytes_of(data)


@pytest.mark.parametrize("chunk", [1, 7, 5000, 100_000])
@pytest.mark.parametrize("text", [b"a" * 30_000, b"abc" * 10_000, b"abcabx bb " * 3_000], ids=["run", "cycle", "words"])
def test_every_byte_is_encoded_once_and_looked_at_no_more_than_twice(monkeypatch, text, chunk):
    counting, looked_at = Counting(LETTERS), 0
    scan = streaming._scan

    def counted(rows, some, start, trusted, state):
        nonlocal looked_at
        looked_at += len(some) - start
        return scan(rows, some, start, trusted, state)

    monkeypatch.setattr(streaming, "_scan", counted)
    ids = streamed(StreamEncoder(counting), [text[i : i + chunk] for i in range(0, len(text), chunk)])
    assert ids.tolist() == LETTERS.encode_bytes(text).tolist()
    assert sum(counting.sizes) == len(text) and looked_at <= 2 * len(text)


def test_no_more_is_held_than_is_undecided():
    cutter = StretchCutter(LETTERS)
    held = []
    for i in range(2000):
        cutter.push(b"abcab x"[i % 7 : i % 7 + 1] * 3)
        held.append(len(cutter._held))
    assert max(held) <= 15
    assert cutter.push(b"y") + cutter.flush() != b"" and len(cutter._held) == 0


@draws
@given(st.lists(st.sampled_from(["中文", "é", "😀", "ab", "c", "\ufffd"]), max_size=12), st.data())
def test_stream_decoder_emits_whole_characters_of_pieces(words, draw):
    half = tokenizer_of("中".encode()[:2], "文é".encode()[1:4], "😀".encode()[:3], b"abc")
    text = "".join(words)
    ids = half.encode(text)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(ids)), max_size=8)))
    stream = StreamDecoder(half)
    parts = [stream.push(ids[a:b]) for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)] + [stream.flush()]
    assert "".join(parts) == text
    assert all(set(part) <= set(text) for part in parts)


def test_stream_decoder_of_pieces_ends_in_the_middle_of_a_character():
    half = tokenizer_of("中".encode()[:2])
    stream = StreamDecoder(half)
    assert [stream.push(int(i)) for i in half.encode("中a")] == ["", "中", "a"]
    assert stream.push(half.encode("中")[:1]) == "" and stream.flush() == "\ufffd"
    assert stream.push([]) == "" and stream.push([half.eod, 65]) == "A"
