"""Vocabularies of other systems, and ours for Hugging Face's tokenizers."""

from __future__ import annotations

import itertools
import json
import math
import os
import struct
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from piece_samples import SINGLES, best_cut, bytepiece_pieces, sample, seed_pieces
from sources import ROOT
from tokenizer import ByteTokenizer, PieceTokenizer, TokenizerError, load
from tokenizer.alphabet import CHARACTERS, from_characters, to_characters
from tokenizer.convert import UNCOVERED, convert
from tokenizer.documents import standard_library_files
from tokenizer.export import export, tokenizer_json
from tokenizer.vocabulary import COST_UNIT, Vocabulary

SEED = {"。": 437, "生活": 471, "生": 90, "活": 12, "有车": 42, "有": 170, "车": 41, "的": 1575, "生动有趣": 21, "动": 33,
        "活动": 60, "动有": 2, "趣的": 7, " ": 99, ".": 50, ",": 9, "a": 15, "b": 3, "aa": 8, "é": 2, "趣味": 3}
SEED_LOADED = {**SEED, ",": 50, "\n": 1, "\r": 1, "\t": 1}
SEED_TEXT = st.text("。生活有车的动趣味 .,aabé\n\t好", max_size=30)


def written(path, content) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def seed_file(path, counts=SEED) -> Path:
    return written(path, "".join(f"{word}\t{count}\n" for word, count in counts.items()) + "\t\t5106\n")


def pieces_of(made, text) -> list[bytes]:
    return [made.vocabulary.pieces[i] for i in made.encode(text)]


def in_bytes(words, known) -> list[bytes]:
    return [piece for word in words
            for piece in ([word.encode()] if word in known else [bytes([byte]) for byte in word.encode()])]


@pytest.fixture(scope="module")
def seed(tmp_path_factory):
    return PieceTokenizer(convert(seed_file(tmp_path_factory.mktemp("seed") / "vocab.txt")))


def test_the_seeds_scores_go_by_length_and_its_loaders_repairs(seed):
    of_piece = dict(zip(seed.vocabulary.pieces, seed.vocabulary.costs.tolist(), strict=True))
    singles = sum(count for word, count in SEED_LOADED.items() if len(word) == 1)
    pairs = sum(count for word, count in SEED_LOADED.items() if len(word) == 2)
    for word, total, count in (("的", singles, 1575), (",", singles, 50), ("\n", singles, 1), ("生活", pairs, 471)):
        assert of_piece[word.encode()] == round(math.log(total / count) * COST_UNIT)
    assert of_piece["生动有趣".encode()] == 0 and of_piece[b"z"] == of_piece[b"\xe8"] == UNCOVERED
    assert list(seed.vocabulary.pieces[256:260]) == [word.encode() for word in ("。", "生活", "生", "活")]
    assert dict(zip(seed.vocabulary.pieces, seed.vocabulary.counts))["生活".encode()] == 471


@settings(max_examples=400)
@given(SEED_TEXT)
def test_the_seeds_best_path(seed, text):
    singles, pairs = (sum(n for word, n in SEED_LOADED.items() if len(word) == length) for length in (1, 2))
    costs = {word: math.log({1: singles, 2: pairs, 4: SEED["生动有趣"]}[len(word)] / count)
             for word, count in SEED_LOADED.items()}
    assert pieces_of(seed, text) == in_bytes(best_cut(costs, text, 300), SEED_LOADED)
    if "趣" not in text and "味" not in text:
        assert pieces_of(seed, text) == in_bytes(seed_pieces(SEED_LOADED, text), SEED_LOADED)


def test_where_the_seed_prefers_bytes(tmp_path):
    """Bytes cost it nothing before a word that arrives first: for characters that are in longer pieces only."""
    counts = {"趣味": 3, "味的": 20, "的": 9}
    made = PieceTokenizer(convert(seed_file(tmp_path / "vocab.txt", counts)))
    assert seed_pieces(counts, "趣味的") == ["趣", "味的"]
    assert pieces_of(made, "趣味的") == ["趣味".encode(), "的".encode()]


@pytest.mark.skipif("LOAM_TEST_DATA" not in os.environ, reason="needs the seed's vocabulary and Chinese text")
def test_the_real_seed_vocabulary():
    data = Path(os.environ["LOAM_TEST_DATA"])
    file = data / "jerry" / "vocab_b_65544.txt"
    made = PieceTokenizer(convert(file))
    loaded = dict(line.rsplit("\t", 1) for line in file.read_text().split("\n") if line and not line.startswith("\t"))
    loaded = {word: int(count) for word, count in loaded.items()}
    loaded |= {",": loaded["."], "\n": 1, "\r": 1, "\t": 1}
    with open(data / "zh_luxun" / "luxun.jsonl", encoding="utf-8") as file:
        lines = [line for row in itertools.islice(file, 30) for line in json.loads(row)["text"].splitlines() if line]
    covered = [line for line in lines if all(character in loaded for character in line)]
    assert len(covered) > 200
    for line in covered:
        assert pieces_of(made, line) == in_bytes(seed_pieces(loaded, line), loaded)


@pytest.mark.parametrize(("content", "message"), [
    ("的\t1\n活动\n", "line 2 must be a piece, a tab and a count above 0, got '活动"),
    ("的\t1\n活动\t-3\n", "line 2 must be"), ("的\t0\n", "line 1 must be"), ("的\tx\n", "line 1 must be"),
    ("plain text", "the file must be a .model of bytepiece.*it begins with b'plain text'"),
    ("", "the file must be"), ("{}", "the file must be"), ("[1]", "the file must be"),
    ('{"a": 1}', "the file must be"), (b"\xff\t1\n", "the vocabulary is damaged"),
    ('{"****": [3, "", 1]}', "the vocabulary is damaged"), ('{"YQ==": [3, "", 0]}', "counts must be above 0, got 0"),
    (b"\n\x80", "the vocabulary is damaged"), (b"\n\x08abc", "the file breaks off: field 1 needs 8 bytes"),
])
def test_files_that_are_no_vocabulary(tmp_path, content, message):
    file = written(tmp_path / "file", content)
    with pytest.raises(TokenizerError, match=message) as caught:
        convert(file)
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)


def bytepiece_file(path, counts) -> Path:
    ordered = sorted(counts.items(), key=lambda item: (len(item[0]), item[0]))
    return written(path, json.dumps({b64encode(piece).decode(): [3 + i, piece.decode(errors="ignore"), count]
                                     for i, (piece, count) in enumerate(ordered)}))


BYTEPIECE = {**{piece: 1 + piece[0] % 7 for piece in SINGLES}, "你好".encode(): 31, b"the": 60, b"the ": 41, b"he": 17,
             b"e\n": 9, b"\n\n": 5, b"\n\n\n": 2, b"\nth": 3000, b"\xe4\xbd": 8, "é".encode(): 12, b"--": 9, b"---": 3}


@settings(max_examples=300)
@given(text=st.one_of(st.text("the \n你好e\u0301-", max_size=40), st.text(max_size=30)))
def test_bytepieces_best_path_and_ids(tmp_path_factory, text):
    file = bytepiece_file(tmp_path_factory.mktemp("bytepiece") / "m.model", BYTEPIECE)
    made = PieceTokenizer(convert(file))
    expected = bytepiece_pieces(BYTEPIECE, text.encode(errors="replace").decode())
    assert pieces_of(made, text.encode(errors="replace").decode()) == expected
    theirs = {piece: row[0] for piece, row in zip(made.vocabulary.pieces, json.loads(file.read_text()).values())}
    assert [theirs[piece] - 3 for piece in expected] == made.encode(text.encode(errors="replace").decode()).tolist()


def message(*fields) -> bytes:
    """A message of protocol buffers from (number, int, float or bytes)."""
    def varint(value):
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)

    parts = []
    for number, value in fields:
        if isinstance(value, float):
            parts.append(varint(number << 3 | 5) + struct.pack("<f", value))
        elif isinstance(value, int):
            parts.append(varint(number << 3) + varint(value))
        else:
            parts.append(varint(number << 3 | 2) + varint(len(value)) + value)
    return b"".join(parts)


def sentencepiece_model(kind=1, normalizer=b"identity") -> bytes:
    rows = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("<0x0A>", -9.5, 6), ("\u2581the", -2.5, 1), ("你好", -4.25, 1),
            ("a" * 200, -7.0, 1), ("e", -1.5, 1), ("mine", 0.0, 4), ("unused", -1.0, 5)]
    pieces = [(1, message((1, text.encode()), (2, score), (3, number))) for text, score, number in rows]
    return message(*pieces, (2, message((3, kind), (4, 8000))), (3, message((1, normalizer), (3, 0))))


def test_sentencepieces_unigram(tmp_path):
    vocabulary = convert(written(tmp_path / "m.model", sentencepiece_model(normalizer=b"nmt_nfkc")))
    costs = dict(zip(vocabulary.pieces, vocabulary.costs.tolist(), strict=True))
    assert list(vocabulary.pieces[256:]) == [b" the", "你好".encode(), b"a" * 200, b"mine"]
    assert (costs[b" the"], costs["你好".encode()], costs[b"e"]) == (2.5 * COST_UNIT, 4.25 * COST_UNIT, 1.5 * COST_UNIT)
    assert costs[b"\n"] == UNCOVERED and vocabulary.normalizer == "nfkc"
    assert "the normalizer nmt_nfkc is Unicode's NFKC" in vocabulary.made_by["not_exact"]
    assert not any("space before" in note for note in vocabulary.made_by["not_exact"])
    with pytest.raises(TokenizerError, match=r"must be Unigram \(type 1\), got type 2"):
        convert(written(tmp_path / "bpe.model", sentencepiece_model(kind=2)))


def test_the_alphabet_is_one_printable_character_for_each_byte():
    assert len(set(CHARACTERS.values())) == 256
    assert all(character.isprintable() and not character.isspace() for character in CHARACTERS.values())
    assert to_characters(b" a\n") == "\u0120a\u010a"
    assert from_characters(to_characters(bytes(range(256)))) == bytes(range(256))
    with pytest.raises(KeyError):
        from_characters("你")


def test_an_export_comes_back(tmp_path):
    vocabulary = sample(normalizer="nfc")
    export(vocabulary, tmp_path / "tokenizer.json")
    assert convert(tmp_path / "tokenizer.json").fingerprint() == vocabulary.fingerprint()


def test_a_named_pattern_goes_out_and_comes_back_others_are_refused(tmp_path):
    pytest.importorskip("regex")
    vocabulary = sample([b"the 12", b" a b", b"don't"], boundaries="pattern:cl100k")
    export(vocabulary, tmp_path / "tokenizer.json")
    back = convert(tmp_path / "tokenizer.json")
    assert back.fingerprint() == vocabulary.fingerprint() and "left out" not in str(back.made_by)
    with pytest.raises(TokenizerError, match=r"only the patterns cl100k can be exported, .*got '\\\\d\+'"):
        export(sample(boundaries=r"pattern:\d+"), tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()
    tokenizers = pytest.importorskip("tokenizers")
    theirs, ours = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")), PieceTokenizer(vocabulary)
    texts = [path.read_text(encoding="utf-8")[:40_000] for path in standard_library_files()[:4]]
    texts += ["I don't 'LL 中文。\u3000 \n\n\r\n 12345\t\u00a0x ", "\u01c5\u0663\u2028😀a'\u017f"]
    for text in texts:
        assert theirs.encode(text).ids == ours.encode(text).tolist()


def test_a_tokenizer_json_with_byte_fallback(tmp_path):
    content = tokenizer_json(sample())
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"}
    content["model"] = {"type": "Unigram", "unk_id": 0, "byte_fallback": True,
                        "vocab": [["<unk>", 0.0], ["<0x0A>", -3.0], ["<|end|>", 0], ["\u2581the", -2.5], ["e", -1.5]]}
    vocabulary = convert(written(tmp_path / "tokenizer.json", json.dumps(content)))
    assert list(vocabulary.pieces[256:]) == [b" the"] and vocabulary.costs[ord("e")] == 1.5 * COST_UNIT
    assert "the pre-tokenizer Metaspace is left out" in vocabulary.made_by["not_exact"]
    content["model"]["vocab"].append(["x", 0.5])
    with pytest.raises(TokenizerError, match="at most 0, got 0.5 for 'x'"):
        convert(written(tmp_path / "tokenizer.json", json.dumps(content)))


def test_a_special_name_that_is_a_piece_is_not_exported(tmp_path):
    with pytest.raises(TokenizerError, match=r"must not be pieces too, got \['<\|end\|>'\]"):
        export(sample([b"<|end|>"]), tmp_path / "tokenizer.json")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Equal costs, so that ties abound, and the export as tokenizers loads it."""
    tokenizers = pytest.importorskip("tokenizers")
    path = tmp_path_factory.mktemp("export") / "tokenizer.json"
    vocabulary = sample([b"aa", b"aaa", "好你".encode(), b"a b"])
    lengths = vocabulary.pieces.lengths
    vocabulary = Vocabulary(vocabulary.pieces, vocabulary.counts, 100_000 + 30_000 * lengths)
    export(vocabulary, path)
    return PieceTokenizer(vocabulary), tokenizers.Tokenizer.from_file(str(path))


@settings(max_examples=300)
@given(text=st.one_of(st.text("ab \n你好😀", max_size=60), st.text(max_size=30)))
def test_hugging_face_gives_the_same_ids_and_texts(exported, text):
    ours, theirs = exported
    ids = ours.encode(text).tolist()
    assert theirs.encode(text).ids == ids
    assert theirs.decode(ids) == ours.decode(ids) == text


def test_hugging_faces_ids_special_tokens_and_half_characters(exported):
    ours, theirs = exported
    assert theirs.get_vocab_size() == ours.vocab_size
    scores = [score for _, score in json.loads(theirs.to_str())["model"]["vocab"]]
    assert scores == (-ours.vocabulary.costs).tolist(), "sums of whole numbers are exact: ties fall as ours do"
    assert {name: theirs.token_to_id(name) for name in ours.special} == ours.special
    ids = [*ours.encode("a").tolist(), ours.eod, *ours.encode_bytes(b"\xe4\xbd").tolist(), 255, 98]
    assert theirs.decode(ids) == ours.decode(ids)
    assert ours.eod in theirs.encode("a<|end|>b").ids
    theirs.encode_special_tokens = True
    assert theirs.encode("a<|end|>b").ids == ours.encode("a<|end|>b").tolist()
    theirs.encode_special_tokens = False


def command(module, *arguments):
    return subprocess.run([sys.executable, "-m", f"tokenizer.{module}", *map(str, arguments)], cwd=ROOT,
                          capture_output=True, text=True)


def test_the_commands(tmp_path):
    done = command("convert", seed_file(tmp_path / "vocab.txt"), "--out", tmp_path / "out")
    assert done.returncode == 0 and "pieces from the seed's vocabulary" in done.stdout, done.stderr
    assert load(tmp_path / "out").vocabulary.made_by["converted_from"] == "the seed's vocabulary"
    done = command("export", tmp_path / "out", "--out", tmp_path / "tokenizer.json")
    assert done.returncode == 0 and f"{load(tmp_path / 'out').vocab_size} ids" in done.stdout, done.stderr
    ByteTokenizer().save(tmp_path / "bytes")
    assert command("export", tmp_path / "bytes", "--out", tmp_path / "bytes.json").returncode == 0
    assert len(json.loads((tmp_path / "bytes.json").read_text())["model"]["vocab"]) == 256
    for module, source, out in (("convert", "vocab.txt", "out"), ("export", "out", "tokenizer.json"),
                                ("convert", "none.txt", "new"), ("export", "none", "new.json")):
        failed = command(module, tmp_path / source, "--out", tmp_path / out)
        assert failed.returncode == 2 and failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists() and not (tmp_path / "new.json").exists()
