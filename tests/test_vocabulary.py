"""Vocabularies, and the files they are kept in."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokenizer
from piece_samples import AWKWARD, SINGLES, sample
from sources import ROOT
from tokenizer import ByteTokenizer, PieceTokenizer, TokenizerError, automaton, patterns, tables
from tokenizer.vocabulary import Pieces, Vocabulary, costs_of

TEXT = "the  the\n\n你好 a\u2028ab\u200bb ab ba\n".encode() + bytes(range(256)) + b"\xff\x00\xff\xe4\xbd\xed\xa0\x80"


@pytest.fixture
def saved(tmp_path):
    """A folder with a vocabulary, and its tokenizer."""
    made = PieceTokenizer(sample(made_by={"settings": {"rounds": 12}, "源": ["甲", 1.5, None]}))
    made.save(tmp_path / "vocabulary")
    return tmp_path / "vocabulary", made


def resealed(file, change):
    """Change the bytes after the checksum and put their checksum in."""
    lines = file.read_bytes().split(b"\n")
    body = change(b"\n".join(lines[5:]))
    lines[4] = b' "sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'",'
    file.write_bytes(b"\n".join([*lines[:5], body]))


def edited(file, **changes):
    """Change values of the JSON object."""
    resealed(file, lambda body: b"\n".join(
        json.dumps({**json.loads(b"{" + body), **changes}, indent=1).encode().split(b"\n")[1:]))


def no_building(monkeypatch):
    monkeypatch.setattr(automaton, "build", lambda *_: pytest.fail("tables were made anew"))


@given(st.lists(st.binary(min_size=1, max_size=9), unique=True))
def test_pieces_are_the_list_they_were_made_from(pieces):
    joined = Pieces.joined(pieces)
    assert joined == pieces and list(joined) == pieces and len(joined) == len(pieces)
    assert joined[1:3] == pieces[1:3] and (not pieces or joined[-1] == pieces[-1])
    assert joined.lengths.tolist() == [len(piece) for piece in pieces]
    assert Pieces.joined(joined) is joined and joined != [*pieces, b"x"]


def test_costs_are_logarithms_in_steps():
    assert costs_of(np.array([1, 1, 2])).tolist() == [round(np.log(4) * 65536)] * 2 + [round(np.log(2) * 65536)]
    assert costs_of(np.array([0, 1]))[0] == round(np.log(3) * 65536)


@pytest.mark.parametrize(("change", "message"), [
    ({"pieces": SINGLES[::-1]}, "the first 256 pieces of a vocabulary must be the bytes in order"),
    ({"pieces": [*SINGLES, b"ab", b"ab"]}, "must be different, got b'ab' twice"),
    ({"pieces": [*SINGLES, b""]}, "must not be empty"),
    ({"counts": np.ones(3)}, "a count and a cost for each of its 256 pieces, got 3 and 256"),
    ({"costs": np.full(256, -1)}, r"costs must be in 0\.\.2147483647, got -1\.\.-1"),
    ({"costs": np.full(256, 1 << 31)}, "costs must be in"),
    ({"special": ["<|end|>", "x", "x"]}, "special tokens must be different, got 'x' twice"),
    ({"special": ["x"]}, r"must include '<\|end\|>', got \['x'\]"),
    ({"boundaries": "some"}, "boundaries must be one of default, .* or pattern:REGEX: got some"),
    ({"boundaries": "pattern:["}, "a pattern must be a regular expression"),
    ({"normalizer": "nfd"}, "the normalizer must be one of .*'nfc'.*, got 'nfd'"),
])
def test_rules_of_a_vocabulary(change, message):
    values = {"pieces": SINGLES, **change}
    ones = np.ones(len(values["pieces"]), np.int64)
    with pytest.raises(TokenizerError, match=message):
        Vocabulary(**{"counts": ones, "costs": ones, **values})


def test_the_fingerprint_follows_what_ids_depend_on():
    base = sample()
    same = Vocabulary(list(base.pieces), base.counts + 1, base.costs, made_by={"a": 1})
    others = [Vocabulary(base.pieces, base.counts, base.costs + 1), sample(normalizer="nfc"), sample([b"another"]),
              sample(special=["<|end|>"]), Vocabulary(base.pieces[:-1], base.counts[:-1], base.costs[:-1])]
    assert same.fingerprint() == base.fingerprint()
    assert len({base.fingerprint(), *(other.fingerprint() for other in others)}) == 6


@pytest.mark.parametrize("name", ["folder", "deep/folder", "some.json"])
def test_save_and_load(tmp_path, name):
    vocabulary = sample(boundaries="words", normalizer="nfkc", special=["a", "<|end|>"], made_by={"源": {"甲": [1]}})
    (tmp_path / "deep").mkdir()
    PieceTokenizer(vocabulary).save(tmp_path / name)
    loaded = tokenizer.load(tmp_path / name)
    assert type(loaded) is PieceTokenizer and loaded.fingerprint() == vocabulary.fingerprint()
    for attribute in ("pieces", "boundaries", "normalizer", "special", "made_by"):
        assert getattr(loaded.vocabulary, attribute) == getattr(vocabulary, attribute)
    for attribute in ("counts", "costs"):
        ours, theirs = getattr(loaded.vocabulary, attribute), getattr(vocabulary, attribute)
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    assert loaded.special == {"a": len(vocabulary), "<|end|>": len(vocabulary) + 1}
    assert loaded.encode_bytes(TEXT).tolist() == PieceTokenizer(vocabulary).encode_bytes(TEXT).tolist()
    assert loaded.decode_bytes(loaded.encode_bytes(TEXT)) == TEXT


def test_both_kinds_load_by_folder_and_by_file(tmp_path, saved):
    ByteTokenizer().save(tmp_path / "bytes")
    assert [path.name for path in (tmp_path / "bytes").iterdir()] == ["vocabulary.json"]
    for folder, kind in ((tmp_path / "bytes", ByteTokenizer), (saved[0], PieceTokenizer)):
        assert type(tokenizer.load(folder)) is type(tokenizer.load(str(folder / "vocabulary.json"))) is kind


def test_the_file_can_be_read_and_checked_without_us(saved):
    folder, made = saved
    data = (folder / "vocabulary.json").read_bytes()
    content = json.loads(data)
    assert content["sha256"] == hashlib.sha256(data.split(b"\n", 5)[5]).hexdigest()
    assert content["made_by"] == {"settings": {"rounds": 12}, "源": ["甲", 1.5, None]}
    pieces = [row[0].encode() if isinstance(row[0], str) else bytes.fromhex(row[0]["hex"]) for row in content["pieces"]]
    assert pieces == list(made.vocabulary.pieces) and set(AWKWARD) <= set(pieces)
    assert [row[1:] for row in content["pieces"]] == list(map(list, zip(made.vocabulary.counts, made.vocabulary.costs)))
    lines = data.decode().splitlines()
    assert len(lines) == len(pieces) + lines.index(' "pieces": [') + 3
    assert '  ["你好", ' in data.decode() and '  [{"hex": "e4bd"}, ' in data.decode() and '"\\u200bb"' in data.decode()


def test_saving_again_gives_the_same_bytes(tmp_path, saved):
    folder, _ = saved
    tokenizer.load(folder).save(tmp_path / "again")
    for name in ("vocabulary.json", "vocabulary.tables"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_tables_spare_the_building_and_the_pieces_as_objects(monkeypatch, saved):
    folder, made = saved
    expected = made.encode_bytes(TEXT).tolist()
    no_building(monkeypatch)
    loaded = tokenizer.load(folder)
    assert loaded.encode_bytes(TEXT).tolist() == expected
    assert "_list" not in vars(loaded.vocabulary.pieces)
    assert loaded.decode_bytes(np.array(expected)) == TEXT
    assert loaded.vocabulary.pieces[:256] == SINGLES


def test_mapped_arrays_are_as_compiled_loops_want_them(saved):
    for name, array in vars_of_tables(saved[0]).items():
        assert array.flags.c_contiguous and array.flags.aligned and array.flags.writeable, name
        assert array.ctypes.data % 64 == 0, name


def vars_of_tables(folder):
    path = folder / "vocabulary.tables"
    with open(path, "rb") as file:
        return tables.mapped(path, json.loads(file.readline())["vocabulary"])


def test_writing_to_mapped_arrays_changes_no_file(saved):
    before = (saved[0] / "vocabulary.tables").read_bytes()
    for array in vars_of_tables(saved[0]).values():
        array.reshape(-1)[:] = 0
    assert (saved[0] / "vocabulary.tables").read_bytes() == before


def damage(name):
    def flipped(data, at):
        return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]

    return {
        "missing": lambda data: None, "empty": lambda data: b"", "garbage": lambda data: b"garbage" * 9999,
        "cut": lambda data: data[:-64], "longer": lambda data: data + bytes(64),
        "header": lambda data: flipped(data, 70), "middle": lambda data: flipped(data, len(data) // 2),
        "last": lambda data: flipped(data, len(data) - 1),
        "zeros": lambda data: data[:8192] + bytes(4096) + data[12288:],
        "blocks": lambda data: data[:8192] + data[12288:16384] + data[8192:12288] + data[16384:],
    }[name]


@pytest.mark.parametrize("name", ["missing", "empty", "garbage", "cut", "longer", "header", "middle", "last", "zeros",
                                  "blocks"])
def test_damaged_tables_are_made_anew(saved, name):
    folder, made = saved
    path, whole = folder / "vocabulary.tables", (folder / "vocabulary.tables").read_bytes()
    path.unlink()
    if (content := damage(name)(whole)) is not None:
        assert content != whole
        path.write_bytes(content)
    assert tokenizer.load(folder).encode_bytes(TEXT).tolist() == made.encode_bytes(TEXT).tolist()
    assert path.read_bytes() == whole


def test_stale_tables_are_made_anew(monkeypatch, tmp_path, saved):
    folder, _ = saved
    other = PieceTokenizer(sample(seed=1))
    other.save(tmp_path / "other")
    os.replace(tmp_path / "other" / "vocabulary.json", folder / "vocabulary.json")
    assert tokenizer.load(folder).encode_bytes(TEXT).tolist() == other.encode_bytes(TEXT).tolist()
    assert (folder / "vocabulary.tables").read_bytes() == (tmp_path / "other" / "vocabulary.tables").read_bytes()
    monkeypatch.setattr(tables, "LAYOUT", -1)
    assert tokenizer.load(folder).fingerprint() == other.fingerprint()
    assert json.loads((folder / "vocabulary.tables").read_bytes().split(b"\n")[0])["layout"] == -1


def test_the_number_of_the_layout_changes_with_the_tables():
    """Whoever changes what automaton.build or best_path.tables give must raise automaton.LAYOUT."""
    pieces = [*SINGLES, *(piece for piece in AWKWARD if len(piece) > 1), b"ab", b"abab", b"bab", b"b" * 40]
    made = PieceTokenizer(Vocabulary(pieces, np.ones(len(pieces), np.int64), np.arange(len(pieces))))
    arrays = [made.automaton_rows, *(np.asarray(value) for value in made.tables)]
    found = zlib.crc32(b"".join(array.tobytes() for array in arrays))
    assert (automaton.LAYOUT, found) == (4, 0x76E7AC3E), hex(found)


def test_a_folder_that_takes_no_tables(monkeypatch, saved):
    folder, made = saved
    (folder / "vocabulary.tables").unlink()
    (folder / "vocabulary.tables").mkdir()
    assert tokenizer.load(folder).encode_bytes(TEXT).tolist() == made.encode_bytes(TEXT).tolist()
    assert sorted(path.name for path in folder.iterdir()) == ["vocabulary.json", "vocabulary.tables"]


def test_an_edit_without_the_checksum_is_refused(saved):
    folder, made = saved
    file = folder / "vocabulary.json"
    data = file.read_bytes()
    count = str(made.vocabulary.counts[300]).encode()
    assert len(count) > 1
    for changed in (data.replace(count, count[::-1], 1), data[:-2], data + b" ", data.replace(b'"hex"', b'"HEX"', 1)):
        if changed == data:
            continue
        file.write_bytes(changed)
        with pytest.raises(TokenizerError, match="that of all bytes after its line, [0-9a-f]{64}, got") as caught:
            tokenizer.load(folder)
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("changes", "message"), [
    ({"pieces": "ab"}, "the pieces must be a list, got 'ab'"),
    ({"pieces": [["a", 1, 2], ["b", 1]]}, r'piece 1 must be \[piece, count, cost\], got \["b", 1\]'),
    ({"pieces": [["a", 1, 2.5]]}, r"piece 0 must be \[piece, count, cost\]"),
    ({"pieces": [[{"hex": "xy"}, 1, 2]]}, 'piece 0 must be text or {"hex": "..."}, got {"hex": "xy"}'),
    ({"pieces": [["\ud800", 1, 2]]}, "piece 0 must be text or"),
    ({"pieces": [["a", 1 << 70, 2]]}, "counts and costs must be in"),
    ({"pieces": [["a", 1, 2]], "special": {}}, "the first 256 pieces of a vocabulary must be the bytes in order"),
    ({"special": {"<|end|>": 3}}, r"the ids of special tokens must be \d+ and the following, in order, got"),
    ({"normalizer": ["nfc"]}, "normalizer must be there and be a str, got"),
    ({"boundaries": "some"}, "boundaries must be one of"), ({"boundaries": "pattern:["}, "a pattern must be a"),
    ({"made_by": 3}, "made_by must be there and be a dict, got 3"),
])
def test_a_file_that_breaks_a_rule(saved, changes, message):
    file = saved[0] / "vocabulary.json"
    if "pieces" in changes and "special" not in changes:
        changes["special"] = {"<|end|>": len(changes["pieces"])}
    edited(file, **changes)
    with pytest.raises(TokenizerError, match=message) as caught:
        tokenizer.load(saved[0])
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)


def test_a_file_that_was_written_by_another_program(saved):
    file = saved[0] / "vocabulary.json"
    file.write_text(json.dumps(json.loads(file.read_text())))
    with pytest.raises(TokenizerError, match='the first lines, up to "sha256", must stand as they were written'):
        tokenizer.load(saved[0])


def test_what_json_cannot_hold(tmp_path):
    for made_by in ({"x": {1}}, {"x": float("nan")}, {"x": "\ud800"}):
        with pytest.raises(TokenizerError, match="must be what JSON can hold"):
            PieceTokenizer(sample(made_by=made_by)).save(tmp_path / "x")
    assert not (tmp_path / "x" / "vocabulary.json").exists()


def test_a_write_that_fails_leaves_the_old_file(monkeypatch, saved):
    folder, _ = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        PieceTokenizer(sample(seed=1)).save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_normalizer_changes_text_but_not_bytes():
    text, composed = "e\u0301 ﬁ", "\u00e9 ﬁ"
    for normalizer, expected in (("", text), ("nfc", composed), ("nfkc", "\u00e9 fi")):
        made = PieceTokenizer(sample(normalizer=normalizer))
        assert made.decode(made.encode(text)) == expected
        assert made.decode_bytes(made.encode_batch([text])[0]).decode() == expected
        assert made.decode_bytes(made.encode_bytes(text.encode())).decode() == text


def test_importing_and_loading_bytes_import_no_compiler(tmp_path):
    ByteTokenizer().save(tmp_path)
    script = f"import sys, tokenizer; tokenizer.load({str(tmp_path)!r}).encode('a'); print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("False", "")


def test_every_public_name_is_there():
    assert all(getattr(tokenizer, name) is not None for name in tokenizer.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tokenizer.nothing  # noqa: B018


def test_a_pattern_is_in_the_file_and_checked_on_load(tmp_path, monkeypatch):
    pytest.importorskip("regex")
    vocabulary = sample([b"the 12"], boundaries="pattern:cl100k")
    assert vocabulary.boundaries == "pattern:" + patterns.NAMED["cl100k"], "a file needs no table of names"
    PieceTokenizer(vocabulary).save(tmp_path)
    for _ in range(2):  # with the tables, and without them
        loaded = tokenizer.load(tmp_path)
        assert loaded.vocabulary.boundaries == vocabulary.boundaries
        assert loaded.fingerprint() == vocabulary.fingerprint()
        assert len(loaded.encode("the 12")) > 2
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, "regex", None)
            patterns._compiled.cache_clear()
            with pytest.raises(TokenizerError, match="vocabulary.json: .*pip install 'loam") as error:
                tokenizer.load(tmp_path)
            assert "\n" not in str(error.value)
        patterns._compiled.cache_clear()
        (tmp_path / "vocabulary.tables").unlink()
