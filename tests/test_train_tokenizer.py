"""The command that trains a vocabulary: what it writes and says, going on after a kill, bad input."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import tokenizer
from sources import ROOT
from tokenizer import TokenizerError
from tokenizer.documents import Piece, standard_library_files
from tokenizer.train import Progress, Settings, TooLittleText, train_vocabulary, unfinished
from tokenizer.train.__main__ import main
from tokenizer.train.progress import Display
from tokenizer.train.report import described

CHINESE = "今天天气很好，我们去公园看花。明天天气不好，我们在家里看书。公园里的花很好看！\n"
SIZE = 600


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for number, path in enumerate(standard_library_files()[:5]):
        (folder / f"{number}.txt").write_text(path.read_text(encoding="utf-8")[:12_000], encoding="utf-8")
    rows = (CHINESE[i % 7 : len(CHINESE) - i % 5] for i in range(80))
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return folder


def command(data: Path, out: Path, *flags: str, size: int = SIZE) -> list[str]:
    return ["--data", str(data), "--vocab-size", str(size), "--rounds", "3", "--out", str(out), *flags]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "vocabulary"
    assert main(command(data, out, "--workers", "1")) == 0
    return out


def run(arguments: list[str], script: str = "") -> subprocess.CompletedProcess:
    """The command in a process of its own, with a bit of script run before it."""
    code = f"{script}\nfrom tokenizer.command import run_command\nfrom tokenizer.train.__main__ import main\n"
    code += "run_command(main)"
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)


def killed_after(rounds: int, number: signal.Signals) -> str:
    return f"""
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us with Ctrl-C ignored
from tokenizer.train import rounds
save, calls = rounds._save, []
def _save(*arguments):
    save(*arguments)
    calls.append(1)
    if len(calls) == {rounds}:
        os.kill(os.getpid(), {int(number)})
rounds._save = _save
"""


def test_what_is_written(trained, data):
    written = {path.name for path in trained.iterdir()}
    assert written == {"vocabulary.json", "vocabulary.tables", "rounds.jsonl", "rounds.png"}
    loaded = tokenizer.load(trained)
    assert len(loaded.vocabulary) == SIZE and loaded.vocab_size == SIZE + 8
    text = b"".join(path.read_bytes() for path in sorted(data.glob("*.txt"))).decode()
    text += "".join(json.loads(line)["text"] for line in open(data / "rows.jsonl", encoding="utf-8"))
    assert loaded.decode(loaded.encode(text)) == text
    assert len(text.encode()) / len(loaded.encode(text)) > 2
    rows = [json.loads(line) for line in open(trained / "rounds.jsonl", encoding="utf-8")]
    assert [row["round"] for row in rows] == [0, 1, 2, 3]
    assert rows[-1]["pieces"] == SIZE and rows[-1]["tokens"] == loaded.vocabulary.counts.sum()
    assert all(0 < row["coverage"] < 1 < row["bytes_per_token"] for row in rows)
    assert (trained / "rounds.png").read_bytes().startswith(b"\x89PNG")


def test_any_bytes_come_back(trained):
    loaded = tokenizer.load(trained)
    random = np.random.default_rng(0)
    for length in (0, 1, 2, 3, 17, 200):
        for _ in range(50):
            data = random.bytes(length)
            assert loaded.decode_bytes(loaded.encode_bytes(data)) == data


@pytest.mark.parametrize("flags", [["--workers", "3"], ["--memory", "200MB"]])
def test_the_same_file_for_any_number_of_workers(trained, data, tmp_path, flags):
    assert main(command(data, tmp_path / "out", *flags)) == 0
    assert (tmp_path / "out/vocabulary.json").read_bytes() == (trained / "vocabulary.json").read_bytes()


@pytest.mark.parametrize("method", ["discover", "seed", "seed-sampled"])
def test_a_pattern_shapes_training_and_encoding(data, tmp_path, method):
    regex = pytest.importorskip("regex")
    flags = ["--boundaries", "pattern:cl100k", "--method", method]
    assert main(command(data, tmp_path / "out", "--workers", "1", *flags)) == 0
    assert main(command(data, tmp_path / "more", "--workers", "3", "--memory", "64MB", *flags)) == 0
    assert (tmp_path / "out/vocabulary.json").read_bytes() == (tmp_path / "more/vocabulary.json").read_bytes()
    loaded = tokenizer.load(tmp_path / "out")
    expression = regex.compile(loaded.vocabulary.boundaries[len("pattern:"):])
    for piece in loaded.vocabulary.pieces[256:]:
        assert len(expression.findall(piece.decode())) <= 2, "a piece is of one match, though alone it may be parted"
    text = standard_library_files()[7].read_text(encoding="utf-8")[:50_000] + CHINESE
    ids, places = loaded.encode_with_offsets(text, unit="character")
    assert {match.end() for match in expression.finditer(text)} <= set(places.tolist())
    assert loaded.decode(ids) == text and len(text.encode()) / len(ids) > 1.5
    assert (loaded.vocabulary.counts[256:] > 0).mean() > 0.9


def test_a_ray_cluster_gives_the_same_file(trained, data, tmp_path):
    pytest.importorskip("ray")
    assert main(command(data, tmp_path / "out", "--engine", "ray", "--workers", "2")) == 0
    assert (tmp_path / "out/vocabulary.json").read_bytes() == (trained / "vocabulary.json").read_bytes()


@pytest.mark.parametrize("number, code", [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_the_same_command_goes_on_after_a_stop(trained, data, tmp_path, number, code):
    out = tmp_path / "out"
    cut = run(command(data, out), killed_after(2, number))
    assert cut.returncode == code, cut.stderr
    if number == signal.SIGINT:
        assert cut.stderr == f"interrupted; the same command goes on from {out / 'work'}\n"
    assert not (out / "vocabulary.json").exists() and (out / "work").is_dir()
    with pytest.raises(TokenizerError, match="an unfinished training with rounds 3, now 4; repeat its command"):
        main(command(data, out, "--rounds", "4"))
    with pytest.raises(TokenizerError, match="an unfinished training on other text"):
        main(command(data / "0.txt", out))
    again = run(command(data, out, "--workers", "1"))
    assert again.returncode == 0, again.stderr
    assert "reading" not in again.stdout and "round  3/3" in again.stdout
    assert (out / "vocabulary.json").read_bytes() == (trained / "vocabulary.json").read_bytes()
    assert not (out / "work").exists()
    rows = [json.loads(line) for line in open(out / "rounds.jsonl", encoding="utf-8")]
    expected = [json.loads(line) for line in open(trained / "rounds.jsonl", encoding="utf-8")]
    assert [{**row, "seconds": 0} for row in rows] == [{**row, "seconds": 0} for row in expected]


def test_a_command_says_what_it_does(data, tmp_path):
    done = run(command(data, tmp_path / "out", "--method", "seed"))
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].startswith("reading the text: 0.0") and "\x1b" not in done.stdout
    assert sum(line.startswith("fragments") for line in lines) == 7
    assert [line[:9] for line in lines if line.startswith("round")] == [f"round  {i}/" for i in range(4)]
    assert lines[-1].startswith(f"{tmp_path / 'out'}: {SIZE} pieces and 8 special tokens, fingerprint ")


@pytest.mark.parametrize("change, message", [
    ({"--vocab-size": "256"}, "vocab_size must be at least 257, the 256 bytes and a piece: got 256"),
    ({"--vocab-size": "90000"}, "vocab_size must be at most"), ({"--vocab-size": "many"}, "invalid int value: 'many'"),
    ({"--data": "/nowhere/at/all.txt"}, "no such file or folder"), ({"--memory": "lots"}, "a size must be a number"),
    ({"--boundaries": "wrd"}, "boundaries must be one of default, none, words, characters, or pattern:REGEX: got wrd"),
    ({"--boundaries": "pattern:["}, "a pattern must be a regular expression"),
    ({"--out": "FILE/out"}, "cannot write (Not a directory)"), ({"--data": "EMPTY"}, "no text to train on"),
    ({"--out": "TRAINED"}, "holds a vocabulary already"), ({"--data": "BROKEN"}, "line 1"),
])
def test_bad_input_gets_one_line(trained, data, tmp_path, capsys, change, message):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "broken.jsonl").write_text("{oops\n")
    places = {"EMPTY": tmp_path / "empty.txt", "BROKEN": tmp_path / "broken.jsonl", "TRAINED": trained,
              "FILE/out": tmp_path / "empty.txt/out"}
    out = tmp_path / "out"
    arguments = command(data, out)
    for flag, value in change.items():
        arguments += [flag, str(places.get(value, value))]
    with pytest.raises((TokenizerError, SystemExit)) as raised:
        main(arguments)
    if raised.type is SystemExit:
        assert raised.value.code == 2
    told = capsys.readouterr().err if raised.type is SystemExit else str(raised.value)
    assert message in told and len(told.strip().splitlines()) == 1
    assert not (out / "vocabulary.json").exists()
    if raised.type is TooLittleText:
        assert not out.exists()
    assert (trained / "vocabulary.json").exists()


def test_a_corpus_that_was_mended_is_read_anew(data, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text((data / "rows.jsonl").read_text() + "{oops\n")
    with pytest.raises(TokenizerError, match="line 81"):
        main(command(rows, tmp_path / "out", size=300))
    rows.write_text((data / "rows.jsonl").read_text())
    assert main(command(rows, tmp_path / "out", size=300)) == 0


def test_an_error_ends_the_command_with_code_2(data, tmp_path):
    done = run(command(data, tmp_path / "out", "--memory", "1MB"))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: memory must be at least 64MB: got 1048576 bytes\n"


def test_a_full_disk(data, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(TokenizerError, match=r"cannot write \(No space left on device\)"):
            main(command(data, tmp_path / "out"))
    assert not list((tmp_path / "out/work").glob("*.bin"))
    assert main(command(data, tmp_path / "out")) == 0


def test_two_trainings_in_one_folder(tmp_path):
    def documents():
        with pytest.raises(TokenizerError, match="another training is at work here"):
            train_vocabulary(iter(()), settings, tmp_path)
        yield Piece("the cat sat on the mat, the cat sat on the hat. " * 30, True)

    settings = Settings(300, rounds=1, allow_fewer=True)
    assert len(train_vocabulary(documents(), settings, tmp_path)) > 256


def test_phases_are_reported_and_a_temporary_folder_goes(data, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    phases: list[Progress] = []
    rows = []
    text = (data / "0.txt").read_text(encoding="utf-8")
    settings = Settings(400, rounds=3)
    vocabulary = train_vocabulary([Piece(text, True)], settings, on_progress=phases.append, on_round=rows.append)
    assert len(vocabulary) == 400 and [row.round for row in rows] == [0, 1, 2, 3]
    names = list(dict.fromkeys(progress.phase for progress in phases))
    assert names[0] == "reading" and names[-4:] == [f"round-{number:02d}" for number in range(4)]
    assert all(progress.done <= progress.total for progress in phases if progress.total is not None)
    assert list(tmp_path.iterdir()) == []


def test_work_files_count_only_once_the_text_is_read(tmp_path):
    settings = Settings(300, rounds=1, allow_fewer=True)
    assert not unfinished(tmp_path, settings, "a")
    train_vocabulary([Piece("a cat, a hat, a mat; " * 20, True)], settings, tmp_path, corpus="a")
    assert unfinished(tmp_path, Settings(300, rounds=1, allow_fewer=True, workers=7), "a")
    with pytest.raises(TokenizerError, match="on other text"):
        unfinished(tmp_path, settings, "b")


def test_a_terminal_sees_bars(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr("tokenizer.train.progress.Console",
                        lambda **options: Console(file=screen, force_terminal=True, width=100, **options))
    with Display() as display:
        display.progress("words", 1, 4)
        display.progress("words", 4, 4)
        display.progress("round-00", 1, 2)
        display.round(described(0, np.array([3, 1]), np.array([1, 4]), np.array([1, 2]), 0.5), 12)
    shown = screen.getvalue()
    assert "cutting text into words: 4/4" in shown and "round  0/12" in shown and "coverage  57.1%" in shown
    assert "\x1b[" in shown
