"""Text on disk and jobs over it: whole files or none, in order, on threads and on Ray."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer.documents import Piece
from tokenizer.interface import TokenizerError, to_utf8
from tokenizer.train import engines
from tokenizer.train.ngrams import count_windows
from tokenizer.train.blocks import parts, read
from tokenizer.train.spool import open_arrays, open_shard, save_arrays, spool, spooled, write_whole


def documents_of(shards: list[Path]) -> list[bytes]:
    """Of each shard; a document that goes on in the next shard comes in several."""
    found = []
    for shard in shards:
        text, starts = open_shard(shard)
        found += [bytes(text[a:b]) for a, b in zip(starts[:-1], starts[1:])]
    return found


def in_pieces(document: str, length: int) -> list[Piece]:
    cuts = range(0, max(1, len(document)), length)
    return [Piece(document[at : at + length], at + length >= len(document)) for at in cuts]


DOCUMENTS = st.lists(st.text(alphabet="ab \n1é中😀", max_size=40), max_size=12)


@settings(deadline=None, derandomize=True)
@given(documents=DOCUMENTS, shard_bytes=st.integers(4, 60), length=st.integers(1, 9))
def test_shards_hold_the_documents_however_their_text_comes(documents, shard_bytes, length, tmp_path_factory):
    whole, cut = (tmp_path_factory.mktemp(name) for name in ("whole", "cut"))
    shards = spool([Piece(document, True) for document in documents], whole, shard_bytes)
    again = spool([piece for document in documents for piece in in_pieces(document, length)], cut, shard_bytes)
    assert documents_of(shards) == documents_of(again)
    assert shards == spooled(whole)
    assert all(shard.stat().st_size <= shard_bytes for shard in shards)
    assert b"".join(documents_of(shards)) == "".join(documents).encode()
    fitting = [document.encode() for document in documents if len(document.encode()) <= shard_bytes]
    assert [document for document in documents_of(shards) if document in fitting][: len(fitting)] == fitting or any(
        len(document.encode()) > shard_bytes for document in documents)
    for document in documents_of(shards):
        document.decode("utf-8")


def test_a_long_document_is_cut_after_a_line(tmp_path):
    lines = [f"line {i}\n" for i in range(100)]
    shards = spool([Piece("short", True), Piece("".join(lines), True), Piece("", True)], tmp_path, 100)
    found = documents_of(shards)
    assert found[0] == b"short" and open_shard(shards[0])[1].tolist() == [0, 5]
    assert all(part.endswith(b"\n") for part in found[1:-1]) and found[-1] == b""
    assert b"".join(found[1:]) == "".join(lines).encode()


def test_text_that_is_no_unicode_and_an_empty_corpus(tmp_path):
    assert documents_of(spool([Piece("a\ud800b", True)], tmp_path)) == [to_utf8("a\ud800b")]
    assert spool([], tmp_path) == [] == spooled(tmp_path)
    assert documents_of(spool([Piece("", True), Piece("", True)], tmp_path)) == [b"", b""]
    with pytest.raises(TokenizerError, match="at least 4"):
        spool([], tmp_path, 3)


def test_an_unfinished_spool_is_none(tmp_path):
    def broken():
        yield Piece("abc" * 10, True)
        raise OSError

    spool([Piece("x" * 90, True)], tmp_path, 10)
    with pytest.raises(OSError):
        spool(broken(), tmp_path, 10)
    assert spooled(tmp_path) is None
    assert documents_of(spool([Piece("new", True)], tmp_path, 10)) == [b"new"]
    assert sorted(path.name for path in tmp_path.glob("text-*")) == ["text-00000.bin", "text-00000.npy"]


def test_arrays_in_one_file(tmp_path):
    arrays = [np.arange(5), np.empty(0, np.uint64), np.ones((2, 3), np.int32), np.empty((0, 8), np.int32)]
    save_arrays(tmp_path / "some.npy", arrays)
    found = open_arrays(tmp_path / "some.npy")
    assert [(a.dtype, a.shape, a.tolist()) for a in arrays] == [(a.dtype, a.shape, a.tolist()) for a in found]


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    def broken(path):
        path.write_bytes(b"half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_whole(tmp_path / "a.npy", broken)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TokenizerError, match="cannot write"):
        write_whole(tmp_path / "no" / "a.npy", lambda path: path.write_bytes(b""))


def square(task: int, path: Path) -> None:
    if task < 0:
        raise TokenizerError(f"a task must be positive: got {task}")
    np.save(path, np.array([task * task]))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_stand_in_the_order_of_the_tasks(workers, tmp_path):
    told = []
    paths = engines.run(square, range(20), tmp_path, "squares", workers=workers,
                        on_progress=lambda done, total: told.append((done, total)))
    assert [int(np.load(path)[0]) for path in paths] == [i * i for i in range(20)]
    assert told == [(i, 20) for i in range(21)]


def test_what_is_there_is_not_done_again(tmp_path):
    with pytest.raises(TokenizerError, match="positive: got -1"):
        engines.run(square, [1, 2, -1], tmp_path, "squares", workers=1)
    done = sorted(path.name for path in tmp_path.iterdir())
    assert done == ["squares-00000.npy", "squares-00001.npy"]
    np.save(tmp_path / "squares-00001.npy", np.array([77]))
    (tmp_path / ".partial-squares-00002.npy").write_bytes(b"half")
    paths = engines.run(square, [1, 2, 3], tmp_path, "squares")
    assert [int(np.load(path)[0]) for path in paths] == [1, 77, 9]
    assert not list(tmp_path.glob(".partial*"))
    assert engines.run(square, [], tmp_path, "none") == []


KILLED = """
import os, signal, sys, time
from pathlib import Path
from tokenizer.train import engines
def job(task, path):
    path.write_bytes(b"%d" % task)
    if task == 2:
        while len(list(path.parent.glob("task*"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
engines.run(job, range(4), Path(sys.argv[1]), "task", workers=1)
"""


def write_number(task: int, path: Path) -> None:
    path.write_bytes(b"%d" % task)


def test_after_a_kill_there_are_whole_files_only(tmp_path):
    root = Path(__file__).parents[1]
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.glob("task*")) == ["task-00000.npy", "task-00001.npy"]
    paths = engines.run(write_number, range(4), tmp_path, "task")
    assert [path.read_bytes() for path in paths] == [b"0", b"1", b"2", b"3"]
    assert len(list(tmp_path.iterdir())) == 4


def test_tasks_run_at_the_same_time(tmp_path):
    met = threading.Barrier(2, timeout=60)
    engines.run(lambda task, path: (met.wait(), path.write_bytes(b"")), [0, 1], tmp_path, "meet", workers=2)


def test_remove_takes_only_the_named_results(tmp_path):
    for name in ("ab", "abc"):
        engines.run(square, [1, 2], tmp_path, name)
    engines.remove(tmp_path, "ab")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["abc-00000.npy", "abc-00001.npy"]


def test_an_unknown_engine(tmp_path):
    with pytest.raises(TokenizerError, match="one of local, ray: got 'dask'"):
        engines.run(square, [1], tmp_path, "a", engine="dask")


def test_ray_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(TokenizerError, match="pip install"):
        engines.run(square, [1], tmp_path, "a", engine="ray")


def test_parts_cover_each_document_once(tmp_path):
    documents = [f"{i} " * (i % 50) for i in range(300)]
    shards = spool([Piece(document, True) for document in documents], tmp_path, 5000)
    whole = b"".join(bytes(text) for part in parts(shards, 1.0, "default", 64) for text, _ in read(part))
    assert whole == "".join(documents).encode()
    sample = [bytes(text) for part in parts(shards, 0.25, "none", 1 << 20) for text, _ in read(part)]
    assert 0.15 < len(b"".join(sample)) / len(whole) < 0.35


def test_ray_gives_the_same_files(tmp_path):
    ray = pytest.importorskip("ray")
    shards = spool([Piece("words and words\n" * 30, True), Piece("中文" * 100, True)], tmp_path, 400)
    tasks = parts(shards, 1.0, "default", 100)
    here = engines.run(count_windows, tasks, tmp_path / "here", "windows")
    with engines.cluster("ray", 2):
        there = engines.run(count_windows, tasks, tmp_path / "there", "windows", engine="ray", workers=2)
        broken = tasks[0]._replace(shard=tmp_path / "missing.bin")
        with pytest.raises(FileNotFoundError):
            engines.run(count_windows, [broken], tmp_path / "there", "broken", engine="ray", workers=2)
    assert not ray.is_initialized()
    assert [path.read_bytes() for path in here] == [path.read_bytes() for path in there]
