import gzip
import json
import os
import sysconfig
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer import TokenizerError
from tokenizer.documents import (
    Piece,
    ReadOptions,
    find_sources,
    iter_documents,
    read_source,
    standard_library_files,
)

draws = settings(max_examples=60, deadline=None, derandomize=True)


def documents(*paths, **options):
    joined, out = "", []
    for piece in iter_documents(paths, **options):
        joined += piece.text
        if piece.last:
            out.append(joined)
            joined = ""
    assert joined == ""
    return out


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_parquet(path: Path, **columns) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def compress(path: Path) -> list[Path]:
    content = path.read_bytes()
    return [
        write(path.with_name(path.name + ".gz"), gzip.compress(content, mtime=0)),
        write(path.with_name(path.name + ".zst"), zstandard.compress(content)),
    ]


TEXTS = ["first\nlines\r\n", "第二篇", "third \u2028 document"]
LINES = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS))


def test_a_text_file_is_one_document_whatever_its_line_ends(tmp_path):
    path = write(tmp_path / "a.txt", "one\r\ntwo\n\nthree")
    assert documents(path) == ["one\r\ntwo\n\nthree"]
    assert documents(write(tmp_path / "bom.txt", b"\xef\xbb\xbfhi")) == ["hi"]


def test_json_lines_json_array_and_parquet_rows_are_documents(tmp_path):
    lines = write(tmp_path / "a.jsonl", LINES.replace("\n", "\n\n"))
    lines_named_json = write(tmp_path / "b.json", "\ufeff" + LINES)
    array = write(tmp_path / "c.json", "\n " + json.dumps([json.loads(x) for x in LINES.splitlines()], indent=2))
    parquet = write_parquet(tmp_path / "d.parquet", id=[1, 2, 3], text=TEXTS)
    for path in (lines, lines_named_json, array, parquet):
        assert documents(path) == TEXTS
        for compressed in compress(path):
            assert documents(compressed) == TEXTS
    assert documents(write(tmp_path / "e.json", "[ ]")) == []


def test_the_text_field_can_be_chosen(tmp_path):
    assert documents(write(tmp_path / "a.jsonl", '{"body": "x"}'), text_field="body") == ["x"]
    dictionary = pyarrow.array(["p", "q", "p"]).dictionary_encode()
    assert documents(write_parquet(tmp_path / "a.parquet", body=dictionary), text_field="body") == ["p", "q", "p"]


def test_compressed_files_of_several_members(tmp_path):
    path = write(tmp_path / "a.txt.gz", gzip.compress(b"one ", mtime=0) + gzip.compress(b"two"))
    assert documents(path) == ["one two"]
    path = write(tmp_path / "a.txt.zst", zstandard.compress(b"one ") + zstandard.compress(b"two" * 200_000))
    assert documents(path) == ["one " + "two" * 200_000]


def test_folders_are_read_recursively_sorted_and_pass_over_other_files(tmp_path):
    for name in ("b.txt", "a/z.md", "a/y.py", "c.JSONL"):
        write(tmp_path / name, '{"text": "c.JSONL"}' if name == "c.JSONL" else name)
    for name in ("picture.png", "notes", ".hidden.txt", ".git/x.txt"):
        write(tmp_path / name, b"\0")
    assert documents(tmp_path) == ["b.txt", "c.JSONL", "a/y.py", "a/z.md"]
    assert documents(tmp_path / "b.txt", tmp_path / "a") == ["b.txt", "a/y.py", "a/z.md"]


@draws
@given(
    st.text(alphabet="ab\nX€😀-", max_size=60), st.sampled_from([None, "-", "--", "\n\n", "X\n"]), st.integers(1, 9)
)
def test_pieces_join_to_what_a_whole_read_gives(tmp_path_factory, text, separator, chunk_bytes):
    path = write(tmp_path_factory.mktemp("pieces") / "a.txt", text)
    expected = text.split(separator) if separator else [text]
    assert documents(path, document_separator=separator, chunk_bytes=chunk_bytes) == expected


def test_a_huge_text_file_comes_in_small_pieces_cut_at_line_ends(tmp_path):
    path = write(tmp_path / "a.txt", "".join(f"line {i}\n" for i in range(5000)) + "x" * 5000)
    pieces = list(iter_documents([path], chunk_bytes=1000))
    assert "".join(piece.text for piece in pieces) == path.read_text()
    assert max(len(piece.text) for piece in pieces) <= 2000
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(piece.text.endswith("\n") for piece in pieces[:40])


@draws
@given(st.lists(st.text(max_size=8), max_size=12), st.integers(1, 40), st.booleans())
def test_sections_of_a_json_lines_file_give_every_row_once(tmp_path_factory, texts, step, final_newline):
    content = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts) + "\n" * final_newline
    path = write(tmp_path_factory.mktemp("sections") / "a.jsonl", content.encode("utf-8", "replace"))
    (source,) = find_sources([path])
    whole = list(read_source(source, ReadOptions()))
    cut = [
        piece
        for start in range(0, max(source.size, 1), step)
        for piece in read_source(source, ReadOptions(), start=start, stop=start + step)
    ]
    assert cut == whole and len(whole) == len(texts)


@draws
@given(
    st.lists(st.fixed_dictionaries({"text": st.text(max_size=12), "n": st.integers(-(10**9), 10**9)}), max_size=6),
    st.integers(1, 50),
    st.sampled_from([None, 0, 2]),
    st.booleans(),
)
def test_a_json_array_is_read_in_windows(tmp_path_factory, rows, chunk_bytes, indent, ascii_only):
    path = tmp_path_factory.mktemp("array") / "a.json"
    write(path, json.dumps(rows, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "replace"))
    assert documents(path, chunk_bytes=chunk_bytes) == [row["text"] for row in json.loads(path.read_bytes())]


def test_progress_adds_up_to_the_file(tmp_path):
    path = write(tmp_path / "a.jsonl", LINES * 1000)
    for path in (path, *compress(path)):
        (source,) = find_sources([path])
        counts = []
        assert len(list(read_source(source, ReadOptions(), counts.append))) == 3000
        assert sum(counts) == source.size


def error_of(*paths, **options) -> str:
    with pytest.raises(TokenizerError) as caught:
        documents(*paths, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "ok"}\n\n{"text": "bro\n', "a.jsonl, line 3: broken JSON (Unterminated string"),
        ("a.jsonl", '{"text": "ok"}\n[1]\n', "line 2: expected a JSON object, got list"),
        ("a.jsonl", '{"body": 1, "id": 2}\n', "line 1: no field 'text', the fields are 'body', 'id'"),
        ("a.jsonl", "{}\n", "line 1: no field 'text', the fields are none"),
        ("a.jsonl", '{"text": null}\n', "line 1: the field 'text' must be a string, got NoneType"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "line 2: not text (invalid UTF-8 at byte offset 24)"),
        ("a.jsonl", "[" * 200_000, "line 1: broken JSON"),
        ("a.json", '[{"text": "a"},\n {"text": 5}]', "a.json, row 2 at line 2: the field 'text' must be a string"),
        ("a.json", '[{"text": "a"},\n\n {"text" 5}]', "row 2 at line 3: broken JSON (Expecting ':' delimiter, line 3)"),
        ("a.json", '[{"text": "a"}\n {"text": "b"}]', "line 2: broken JSON (expected ',' or ']' after row 1, got '{')"),
        ("a.json", '[{"text": "a"},', "row 2 at line 1: broken JSON (Expecting value, line 1)"),
        ("a.json", '[{"text": "a"}', "broken JSON (expected ',' or ']' after row 1, got the end of the file)"),
        ("a.json", '[{"text": "a"}] x', "line 1: broken JSON (text after the closing bracket)"),
        ("a.json", '{\n "text": "a"\n}', "a.json, line 1: broken JSON"),
        ("a.txt", b"abc\0def", "a.txt: not a text file (a NUL byte at offset 3)"),
        ("a.txt", "é".encode() * 3 + b"\xe4\xb8", "a.txt: not a text file (invalid UTF-8 at byte offset 6)"),
        ("a.txt", b"abcdefgh\xffxyz", "not a text file (invalid UTF-8 at byte offset 8)"),
        ("a.txt.gz", b"plain", "a.txt.gz: cannot read (Not a gzipped file"),
        ("a.txt.gz", gzip.compress(b"plain" * 100, mtime=0)[:-9], "a.txt.gz: cannot read (Compressed file ended"),
        ("a.txt.zst", b"plain", "a.txt.zst: cannot read ("),
        ("a.txt.zst", zstandard.compress(b"plain" * 100)[:-3], "cannot read (the compressed file breaks off)"),
        ("a.parquet", b"PAR1 no", "a.parquet: not a readable Parquet file ("),
        ("a.parquet.gz", gzip.compress(b"", mtime=0), "a.parquet.gz: not a readable Parquet file ("),
        ("a.doc", "x", "a.doc: the extension must be one of .txt .md .py .tokens .jsonl .json .parquet (also with"),
        ("a.gz", gzip.compress(b"x", mtime=0), "a.gz: the extension must be one of"),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [4, 1 << 20])
def test_what_is_wrong_with_a_file_is_told_in_one_line(tmp_path, name, content, message, chunk_bytes):
    path = write(tmp_path / name, content)
    assert message in error_of(path, chunk_bytes=chunk_bytes)
    assert str(path) in error_of(path)


def test_what_is_wrong_with_a_parquet_column(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", text=[1, 2], body=["x", None])
    assert error_of(path).endswith("the column 'text' must be a string, got int64")
    assert error_of(path, text_field="body").endswith("a.parquet, row 2: the column 'body' has no value")
    lists = write_parquet(tmp_path / "b.parquet", text=[["x"], ["y"]])
    assert "the column 'text' must be a string, got list<" in error_of(lists)
    assert error_of(path, text_field="other").endswith("no column 'other', the columns are 'text', 'body'")


def test_a_line_number_counts_from_the_start_of_the_file_in_a_section(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n' * 50 + "oops\n")
    (source,) = find_sources([path])
    with pytest.raises(TokenizerError, match="line 51: broken JSON"):
        list(read_source(source, ReadOptions(), start=300))


def test_paths_that_cannot_be(tmp_path):
    assert error_of(tmp_path / "none.txt").endswith("none.txt: no such file or folder")
    assert "holds none of .txt" in error_of(tmp_path)
    assert error_of() == "no data: name at least one file or folder"
    os.mkfifo(tmp_path / "pipe.txt")
    assert error_of(tmp_path / "pipe.txt").endswith("neither a file nor a folder")


def test_the_standard_library_is_a_corpus():
    files = standard_library_files()
    assert files == standard_library_files()
    assert {"dataclasses.py", "argparse.py", "heapq.py"} <= {path.name for path in files}
    assert not any({"test", "tests", "site-packages", "idlelib"} & set(path.parts[-3:-1]) for path in files)
    assert 1_000_000 < sum(path.stat().st_size for path in files) < 60_000_000
    assert next(iter_documents(files[:1])) == Piece(files[0].read_bytes().decode("utf-8-sig"), True)


def test_a_python_without_sources_asks_for_data(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(TokenizerError, match="give your own text with --data"):
        standard_library_files()
