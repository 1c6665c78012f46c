import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sources import ROOT
from tokenizer import ByteTokenizer, TokenizerError, encode
from tokenizer.command import run_command
from tokenizer.documents import Piece, ReadOptions, iter_documents
from tokenizer.encode import decode_corpus, encode_corpus, encode_documents, main, open_ids
from tokenizer.piece import PieceTokenizer
from tokenizer.sampling import SampledTokenizer, sample
from tokenizer.vocabulary import Vocabulary, costs_of

draws = settings(max_examples=60, deadline=None, derandomize=True)
BYTE = ByteTokenizer()


def pieces_with(*more: bytes, normalizer: str = "") -> PieceTokenizer:
    pieces = [*(bytes([byte]) for byte in range(256)), b"ab", b"abc", b"bca", b"the ", "中文".encode(), *more]
    counts = np.arange(1, len(pieces) + 1)
    return PieceTokenizer(Vocabulary(pieces, counts, costs_of(counts), normalizer=normalizer))


PIECES = pieces_with()
MANY = pieces_with(*(bytes([a, b, c]) for a in range(41) for b in range(40) for c in range(40)))
TEXTS = ["abcabc the 中文 end", "", "second\nabca", "é\ud800x", "a" * 5000, "<|end|>"]


def of_documents(tokenizer, texts: list[str]) -> list[int]:
    return [i for text in texts if text for i in [*tokenizer.encode(text).tolist(), tokenizer.eod]]


def write_rows(path: Path, texts: list[str], field: str = "text") -> Path:
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    return path


@draws
@given(st.lists(st.lists(st.text("abc 中é\u0301\ud83d\ude00", max_size=20), min_size=1, max_size=4), max_size=8),
       st.integers(1, 3))
def test_documents_in_pieces_give_the_ids_of_whole_ones(documents, threads):
    pieces = [Piece(text, i == len(parts) - 1) for parts in documents for i, text in enumerate(parts)]
    texts = ["".join(parts) for parts in documents]
    for tokenizer in (BYTE, PIECES, pieces_with(normalizer="nfc")):
        encoded = list(encode_documents(tokenizer, pieces, threads))
        assert [i for some in encoded for i in some.ids.tolist()] == of_documents(tokenizer, texts)
        assert sum(some.documents for some in encoded) == sum(map(bool, texts))
        if not any("\ud83d" in text or "\ude00" in text for text in texts):
            assert sum(some.text_bytes for some in encoded) == len("".join(texts).encode())
    sampled = SampledTokenizer(PIECES, 0.3, 5)
    alone = [sample(PIECES, text, 0.3, 5, i).tolist() for i, text in enumerate(filter(None, texts))]
    assert [i for some in encode_documents(sampled, pieces, threads) for i in some.ids.tolist()] == [
        i for ids in alone for i in [*ids, sampled.eod]]


@pytest.mark.parametrize(("tokenizer", "dtype"), [(BYTE, "<u2"), (PIECES, "<u2"), (MANY, "<u4")])
def test_ids_and_their_description(tmp_path, tokenizer, dtype):
    data, out = write_rows(tmp_path / "data.jsonl", TEXTS), tmp_path / "ids.bin"
    told = []
    described = encode_corpus(tokenizer, [data, data], out, on_progress=lambda *progress: told.append(progress))
    ids = np.fromfile(out, dtype)
    assert ids.tolist() == 2 * of_documents(tokenizer, TEXTS)
    assert described == json.loads((tmp_path / "ids.bin.json").read_text())
    assert described == {
        "format": "loam-ids", "version": 1, "dtype": dtype, "tokens": len(ids), "documents": 10,
        "bytes": 2 * sum(len(text.encode(errors="replace")) for text in TEXTS) + 4, "end_of_document": tokenizer.eod,
        "fingerprint": tokenizer.fingerprint(),
    }
    assert told[-1] == (2 * data.stat().st_size,) * 2 and told == sorted(told)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "ids.bin", "ids.bin.json"]
    opened, again = open_ids(out)
    assert opened.dtype == dtype and opened.tolist() == ids.tolist() and again == described


def test_the_same_file_for_any_number_of_threads_and_any_chunks(tmp_path, monkeypatch):
    text = "".join(f"the abcab{i} 中文 {'abc' * (i % 50)}\n" for i in range(4000))
    (tmp_path / "one.txt").write_text(text)
    write_rows(tmp_path / "rows.jsonl", [text[i : i + 700] for i in range(0, 60_000, 700)])
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress(text[:9000].encode()))
    monkeypatch.setattr(encode, "BATCH_BYTES", 10_000)
    for tokenizer in (PIECES, SampledTokenizer(PIECES, 0.4, 1)):
        files = set()
        for threads, chunk in [(1, 1 << 20), (1, 5000), (2, 5000), (4, 20_000)]:
            out = tmp_path / f"{threads}.ids"
            encode_corpus(tokenizer, [tmp_path], out, ReadOptions(chunk_bytes=chunk), threads)
            files.add(out.read_bytes() + (tmp_path / f"{threads}.ids.json").read_bytes())
            out.unlink()
            (tmp_path / f"{threads}.ids.json").unlink()
        assert len(files) == 1
    assert np.frombuffer(out_of(tmp_path, PIECES), "<u2").tolist() == of_documents(
        PIECES, [text, text[:9000], *(text[i : i + 700] for i in range(0, 60_000, 700))])


def out_of(folder: Path, tokenizer) -> bytes:
    encode_corpus(tokenizer, [folder], folder / "ids", threads=2)
    return (folder / "ids").read_bytes()


def test_no_more_is_held_than_a_few_batches(tmp_path, monkeypatch):
    """Reading stays a bounded number of batches ahead of writing."""
    monkeypatch.setattr(encode, "BATCH_BYTES", 1000)
    read = 0

    def pieces():
        nonlocal read
        for _ in range(3000):
            read += 100
            yield Piece("ab c" * 25, read % 30_000 == 0)

    written = ahead = 0
    for encoded in encode_documents(PIECES, pieces(), threads=2):
        written += encoded.text_bytes
        ahead = max(ahead, read - written)
    assert written == 300_000 and ahead <= 8 * 1100


@pytest.mark.parametrize("tokenizer", [BYTE, PIECES])
def test_decoding_gives_the_documents_again(tmp_path, monkeypatch, tokenizer):
    data, out, again = write_rows(tmp_path / "a.jsonl", TEXTS), tmp_path / "ids.bin", tmp_path / "again.jsonl"
    encode_corpus(tokenizer, [data], out)
    for at_once in (1, 7, 1 << 20):
        monkeypatch.setattr(encode, "DECODED_AT_ONCE", at_once)
        decode_corpus(tokenizer, out, again, "words")
        texts = [text.replace("\ud800", "\ufffd") for text in TEXTS if text]
        assert [json.loads(line) for line in again.read_text().splitlines()] == [{"words": text} for text in texts]
        assert [piece.text for piece in iter_documents([again], text_field="words")] == texts


def test_the_command(tmp_path, capsys):
    PIECES.save(tmp_path / "vocabulary")
    data = write_rows(tmp_path / "data.jsonl", TEXTS[2:3] * 3, "words")
    command = [str(tmp_path / "vocabulary"), "--out", str(tmp_path / "ids.bin")]
    assert main([*command, "--data", str(data), "--text-field", "words", "--threads", "2"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'ids.bin'}: documents 3, bytes 33, tokens 30, bytes per ")
    assert np.fromfile(tmp_path / "ids.bin", "<u2").tolist() == of_documents(PIECES, TEXTS[2:3] * 3)
    back = [str(tmp_path / "vocabulary"), "--decode", str(tmp_path / "ids.bin"), "--out", str(tmp_path / "back.jsonl")]
    assert main(back) == 0
    assert (tmp_path / "back.jsonl").read_text() == '{"text": "second\\nabca"}\n' * 3
    (tmp_path / "data.txt").write_text("abc==ab====a")
    assert main([*command, "--data", str(tmp_path / "data.txt"), "--document-separator", "=="]) == 0
    assert np.fromfile(tmp_path / "ids.bin", "<u2").tolist() == of_documents(PIECES, ["abc", "ab", "a"])
    assert main([*command, "--data", str(data), "--text-field", "words", "--alpha", "0", "--seed", "4"]) == 0
    described = json.loads((tmp_path / "ids.bin.json").read_text())
    assert (described["alpha"], described["seed"]) == (0, 4)
    assert described["fingerprint"] == PIECES.fingerprint()
    assert main(back) == 0
    assert (tmp_path / "back.jsonl").read_text() == '{"text": "second\\nabca"}\n' * 3


@pytest.mark.parametrize(("arguments", "message"), [
    (["{dir}/none", "--data", "{dir}/a.txt", "--out", "{dir}/o"], "none: cannot read the tokenizer file"),
    (["{dir}/byte.json", "--data", "{dir}/none.txt", "--out", "{dir}/o"], "none.txt: no such file or folder"),
    (["{dir}/byte.json", "--data", "{dir}/empty.txt", "--out", "{dir}/o"], "empty corpus: no text in {dir}/empty.txt"),
    (["{dir}/byte.json", "--data", "{dir}/half.txt", "--out", "{dir}/o"], "half.txt: not a text file (invalid UTF-8"),
    (["{dir}/byte.json", "--data", "{dir}/a.jsonl", "--out", "{dir}/o"], "a.jsonl, line 1: no field 'text'"),
    (["{dir}/byte.json", "--data", "{dir}/a.txt", "--out", "{dir}"], "must be the name of a file, got a folder"),
    (["{dir}/byte.json", "--data", "{dir}/a.txt", "--out", "{dir}/no/o"], "no/o: there is no folder {dir}/no"),
    (["{dir}/byte.json", "--data", "{dir}/a.txt", "--out", "{dir}/o", "--threads", "-1"], "--threads must be at least"),
    (["{dir}/byte.json", "--data", "{dir}/a.txt", "--out", "{dir}/o", "--alpha", "-1"], "alpha must be a number >= 0"),
    (["{dir}/byte.json", "--decode", "{dir}/none", "--out", "{dir}/o"], "none.json: cannot read (No such file"),
    (["{dir}/byte.json", "--out", "{dir}/o"], "one of the arguments --data --decode is required"),
    (["{dir}/byte.json", "--data", "x", "--decode", "y", "--out", "{dir}/o"], "not allowed with argument --data"),
])
def test_bad_input_is_told_in_one_line(tmp_path, capsys, arguments, message):
    BYTE.save(tmp_path / "byte.json")
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "half.txt").write_bytes("text 中".encode()[:-1])
    (tmp_path / "a.jsonl").write_text('{"words": "x"}\n')
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: main([part.format(dir=tmp_path) for part in arguments]))
    told = capsys.readouterr()
    assert caught.value.code == 2 and told.out == ""
    assert told.err.startswith("error: ") and told.err.count("\n") == 1
    assert message.format(dir=tmp_path) in told.err
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_from_outside(tmp_path):
    BYTE.save(tmp_path / "byte.json")
    (tmp_path / "a.txt").write_text("text")

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "tokenizer.encode", *arguments], cwd=ROOT, capture_output=True,
                              text=True)

    done = run(str(tmp_path / "byte.json"), "--data", str(tmp_path / "a.txt"), "--out", str(tmp_path / "ids"))
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.endswith(
        "/ids: documents 1, bytes 4, tokens 5, bytes per token 0.800\n")
    done = run(str(tmp_path / "byte.json"), "--data", str(tmp_path / "b.txt"), "--out", str(tmp_path / "ids"))
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("error", "code", "message"), [
    (KeyboardInterrupt(), 130, "error: interrupted\n"), (TokenizerError("a\n b"), 2, "error: a b\n"),
    (FileNotFoundError(2, "No such file", "x"), 2, "error: x: No such file\n"),
    (OSError("disk"), 2, "error: disk\n"), (None, 0, ""),
])
def test_exit_codes(capsys, error, code, message):
    def run() -> int:
        if error:
            raise error
        return 0

    with pytest.raises(SystemExit) as caught:
        run_command(run)
    assert caught.value.code == code and capsys.readouterr().err == message


def test_what_was_there_stays_when_encoding_fails(tmp_path):
    good, bad = write_rows(tmp_path / "good.jsonl", TEXTS), tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"text": "x"}) + "\n{")
    encode_corpus(BYTE, [good], tmp_path / "ids")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(TokenizerError, match="bad.jsonl, line 2: broken JSON"):
        encode_corpus(BYTE, [good, bad], tmp_path / "ids")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_ids_that_do_not_fit_their_description(tmp_path):
    data, out = write_rows(tmp_path / "a.jsonl", TEXTS), tmp_path / "ids"
    encode_corpus(BYTE, [data], out)
    with pytest.raises(TokenizerError, match="the ids were made by another tokenizer"):
        decode_corpus(PIECES, out, tmp_path / "back.jsonl")
    out.write_bytes(out.read_bytes()[:-2])
    with pytest.raises(TokenizerError, match="must have [0-9]+ bytes by its description: got"):
        open_ids(out)
    for broken in ("{", "[]", '{"format": "loam-ids", "version": 2}', '{"format": "loam-ids", "version": 1}'):
        (tmp_path / "ids.json").write_text(broken)
        with pytest.raises(TokenizerError, match="ids.json: not a description of ids") as caught:
            open_ids(out)
        assert "\n" not in str(caught.value)
    os.unlink(out)
    encode_corpus(BYTE, [data], out)
    out.unlink()
    with pytest.raises(TokenizerError, match="ids: cannot read"):
        open_ids(out)
