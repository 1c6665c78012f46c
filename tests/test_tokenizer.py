import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenizer
from tokenizer import ByteTokenizer, StreamDecoder, TokenizerError

BYTE = ByteTokenizer()
draws = settings(max_examples=150, deadline=None, derandomize=True)


@draws
@given(st.binary(max_size=200))
def test_any_bytes_survive_the_round_trip(data):
    ids = BYTE.encode_bytes(data)
    assert ids.dtype == np.uint16 and len(ids) == len(data)
    assert BYTE.decode_bytes(ids) == data


@draws
@given(st.text(max_size=100))
def test_text_survives_and_never_yields_special_ids(text):
    ids = BYTE.encode(text)
    assert BYTE.decode(ids) == text
    assert not np.isin(ids, list(BYTE.special.values())).any()
    assert BYTE.token_bytes()[ids].sum() == len(text.encode("utf-8"))


def test_the_name_of_a_special_token_in_text_is_ordinary_text():
    text = "".join(BYTE.special)
    assert BYTE.encode(text).max() < 256
    assert BYTE.decode(BYTE.encode(text)) == text


def test_special_ids_are_fixed_and_stand_for_no_bytes():
    names = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|turn_end|>", "<|pad|>"]
    assert [BYTE.special[name] for name in names] == [256, 257, 258, 259, 260, 261]
    assert BYTE.eod == 256 and BYTE.vocab_size == 264
    assert BYTE.token_bytes().dtype == np.int32 and BYTE.token_bytes().tolist() == [1] * 256 + [0] * 8
    assert BYTE.decode([72, 256, 105, 263]) == "Hi"


def test_lone_surrogates_become_replacement_characters():
    assert BYTE.decode(BYTE.encode("a\ud800b")) == "a\ufffdb"
    assert BYTE.decode(BYTE.encode("\ud83d\ude00")) == "\U0001f600"


@draws
@given(st.one_of(st.text(max_size=40).map(str.encode), st.binary(max_size=60)), st.data())
def test_stream_decoder_joins_to_the_whole_text(data, draw):
    ids = BYTE.encode_bytes(data)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(ids)), max_size=8)))
    stream = StreamDecoder(BYTE)
    parts = [stream.push(ids[a:b]) for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    parts.append(stream.flush())
    assert "".join(parts) == BYTE.decode(ids)


def test_stream_decoder_never_emits_half_a_character():
    stream = StreamDecoder(BYTE)
    assert [stream.push(int(i)) for i in BYTE.encode("é中😀")] == ["", "é", "", "", "中", "", "", "", "😀"]
    assert stream.push(BYTE.encode("中")[:2]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.push(BYTE.encode("ok")) == "ok"
    assert stream.push([0xFF, 65]) == "\ufffdA"


@pytest.mark.parametrize("ids", [[264], [-1], [1, 70000], [0.5]])
def test_ids_that_are_no_tokens(ids):
    with pytest.raises(TokenizerError, match="token ids must be"):
        BYTE.decode(ids)


def test_save_and_load(tmp_path):
    path = tmp_path / "tokenizer.json"
    BYTE.save(path)
    loaded = tokenizer.load(path)
    assert isinstance(loaded, ByteTokenizer)
    assert loaded.fingerprint() == BYTE.fingerprint()
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]
    assert json.loads(path.read_text())["version"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "format is not 'loam-tokenizer'"),
        ({"version": 2}, "version must be 1, got 2"),
        ({"kind": "word"}, r"kind must be one of \['byte', 'pieces'\], got 'word'"),
        ({"special": {"<|end|>": 7}}, "special tokens must be"),
    ],
)
def test_a_file_not_understood(tmp_path, change, message):
    path = tmp_path / "tokenizer.json"
    BYTE.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(TokenizerError, match=message) as caught:
        tokenizer.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1]"])
def test_a_broken_file(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match="not a tokenizer file"):
        tokenizer.load(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(TokenizerError, match="cannot read the tokenizer file"):
        tokenizer.load(tmp_path / "none.json")
