import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from engine.errors import UserError
from tokenizer import ByteTokenizer, TokenizerError
from tokenizer.documents import ReadOptions, Source, find_sources
from train.data import prepare, prepare_part
from train.data import build as build_module
from train.data import cache as cache_module
from train.data.build import build, plan
from train.data.split import held_out
from train.data.shards import Shards, token_dtype

BYTE = ByteTokenizer()
REPOSITORY = Path(__file__).parent.parent


class WideTokenizer(ByteTokenizer):
    """Ids above 16 bits, to see that shards hold them."""

    vocab_size = 70_000

    def __init__(self):
        super().__init__()
        self.eod = 69_999

    def encode_bytes(self, data):
        return np.frombuffer(data, np.uint8).astype(np.uint32) + 65_536

    def fingerprint(self):
        return "wide"


def write_rows(path: Path, texts) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    long_ago = time.time_ns() - 10**12
    os.utime(path, ns=(long_ago, long_ago))
    return path


def texts_of(part, tokenizer=BYTE):
    stretches = zip(part.starts, part.lengths, strict=True)
    return [tokenizer.decode(part.shards.gather(np.array([s]), np.array([n]))) for s, n in stretches]


ROWS = [f"document {i} " + "x" * (i % 7) for i in range(400)]


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path / "rows.jsonl", ROWS)


def test_documents_come_back_each_with_one_end_mark(tmp_path, rows):
    part = prepare_part([rows], BYTE, cache_dir=tmp_path / "cache")
    assert texts_of(part) == ROWS
    assert part.documents == 400 and part.bytes == sum(map(len, ROWS)) and part.tokens == part.bytes + 400
    ids = part.shards.gather(part.starts, part.lengths)
    assert ids.dtype == np.uint16
    assert np.flatnonzero(ids == BYTE.eod).tolist() == (np.cumsum(part.lengths) - 1).tolist()


def test_documents_without_text_are_left_out(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", ["", "a", "", "b"])
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "cut.txt").write_text("--c----d--")
    paths = [path, tmp_path / "empty.txt", tmp_path / "cut.txt"]
    assert texts_of(prepare_part(paths, BYTE, document_separator="--", cache_dir=tmp_path / "cache")) == list("abcd")


def test_large_vocabularies_take_32_bits(tmp_path, rows):
    assert [token_dtype(n).itemsize for n in (264, 65_536, 65_537)] == [2, 2, 4]
    part = prepare_part([rows], WideTokenizer(), cache_dir=tmp_path / "cache")
    ids = part.shards.gather(part.starts, part.lengths)
    assert ids.dtype == np.uint32 and ids.max() == 69_999
    assert bytes((ids[ids != 69_999] - 65_536).astype(np.uint8)).decode() == "".join(ROWS)


def test_every_way_to_gather_gives_the_same_ids(tmp_path, rows, monkeypatch):
    monkeypatch.setattr(build_module, "plan", lambda sources: plan(sources, 900))
    part = prepare_part([rows], BYTE, cache_dir=tmp_path / "cache")
    assert len(list(part.shards.folder.glob("tokens-*.bin"))) > 5
    whole = np.concatenate([np.fromfile(path, "<u2") for path in sorted(part.shards.folder.glob("tokens-*.bin"))])
    chosen = np.random.default_rng(0).permutation(part.documents)
    starts, lengths = part.starts[chosen] + 1, part.lengths[chosen] - 1
    expected = np.concatenate([whole[s : s + n] for s, n in zip(starts, lengths, strict=True)])
    for short in (0, 1_000):
        monkeypatch.setattr("train.data.shards.SHORT_DOCUMENT", short)
        assert np.array_equal(part.shards.gather(starts, lengths), expected)


def test_shards_are_cut_between_lines_and_independent_of_processes(tmp_path, rows, monkeypatch):
    extra = tmp_path / "extra.txt"
    extra.write_text("a text\n" * 500)
    sources = find_sources([rows, extra, rows])
    shards = plan(sources, 2_000)
    assert [section.source for shard in shards for section in shard if section.source.kind == "text"] == [sources[1]]
    monkeypatch.setattr(build_module, "plan", lambda _: shards)
    folders, progress = [], []
    for workers in (1, 2):
        folder = tmp_path / f"shards-{workers}"
        folder.mkdir()
        build(folder, sources, BYTE, ReadOptions(), workers, lambda *p: progress.append(p))
        folders.append({path.name: path.read_bytes() for path in folder.iterdir()})
        assert progress[-1] == (sum(s.size for s in sources),) * 2
    assert folders[0] == folders[1]
    assert Shards(tmp_path / "shards-2").lengths.tolist() == [len(t) + 1 for t in [*ROWS, "a text\n" * 500, *ROWS]]


def test_a_slow_start_calls_for_processes(tmp_path, rows, monkeypatch):
    monkeypatch.setattr(build_module, "plan", lambda sources: plan(sources, 4_000))
    handed_over = []

    def here(jobs, tokenizer, options, processes, advance):
        handed_over.append(len(jobs))
        return [build_module.write_shard(*job, tokenizer, options, advance) for job in jobs]

    monkeypatch.setattr(build_module, "_build_in_processes", here)
    monkeypatch.setattr(build_module, "available_cpus", lambda: 2)
    sources = find_sources([rows])
    for seconds, workers, expected in ((1e9, 0, []), (0.0, 0, [len(plan(sources, 4_000)) - 1]), (0.0, 1, [])):
        monkeypatch.setattr(build_module, "PARALLEL_FROM_SECONDS", seconds)
        folder = tmp_path / f"{seconds}-{workers}"
        folder.mkdir()
        handed_over.clear()
        build(folder, sources, BYTE, ReadOptions(), workers)
        assert handed_over == expected
        assert Shards(folder).lengths.tolist() == [len(text) + 1 for text in ROWS]


def test_a_corpus_of_any_size_is_few_files():
    sources = [Source(f"{i}.{kind}", kind, "", 700 << 20, 0) for i in range(1000) for kind in ("lines", "parquet")]
    shards = plan(sources)
    assert 100 < len(shards) < 600
    sections = [section for shard in shards for section in shard]
    assert sum((part.stop or part.source.size) - part.start for part in sections) == 2000 * (700 << 20)
    assert len(plan(sources[:1])) == 22


def test_an_error_in_a_process_is_told_like_any_other(tmp_path, rows, monkeypatch):
    with rows.open("a") as file:
        file.write("oops\n")
    monkeypatch.setattr(build_module, "plan", lambda sources: plan(sources, 4_000))
    with pytest.raises(TokenizerError, match=r"rows\.jsonl, line 401: broken JSON \(Expecting value, column 1\)"):
        prepare_part([rows], BYTE, cache_dir=tmp_path / "cache", workers=2)
    assert not list((tmp_path / "cache").glob("*partial*"))


def builds(monkeypatch):
    made = []

    def counting(*args):
        made.append(args[0])
        return build(*args)

    monkeypatch.setattr(cache_module, "build", counting)
    return made


def test_the_cache_is_used_until_content_options_or_tokenizer_change(tmp_path, rows, monkeypatch):
    made = builds(monkeypatch)
    cache = tmp_path / "cache"
    first = prepare_part([rows], BYTE, cache_dir=cache)
    assert prepare_part([rows], BYTE, cache_dir=cache).fingerprint == first.fingerprint
    moved = shutil.copy(rows, tmp_path / "moved.jsonl")
    assert prepare_part([moved], BYTE, cache_dir=cache).fingerprint == first.fingerprint
    assert prepare_part([rows], BYTE, document_separator="--", cache_dir=cache).fingerprint == first.fingerprint
    assert len(made) == 1
    prepare_part([rows], WideTokenizer(), cache_dir=cache)
    assert len(made) == 2
    status = rows.stat()
    rows.write_text(rows.read_text().replace("document", "DOCUMENT"))
    os.utime(rows, ns=(status.st_mtime_ns, status.st_mtime_ns + 1))
    assert texts_of(prepare_part([rows], BYTE, cache_dir=cache)) == [text.upper().replace("X", "x") for text in ROWS]
    assert len(made) == 3
    write_rows(rows, ROWS[:5]).write_text(rows.read_text().replace('"text"', '"body"'))
    prepare_part([rows], BYTE, "body", cache_dir=cache)
    assert len(made) == 4


def test_a_second_start_does_not_read_the_files(tmp_path, rows, monkeypatch):
    prepare_part([rows], BYTE, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(cache_module, "_content_hash", lambda path: pytest.fail("the file was read again"))
    assert prepare_part([rows], BYTE, cache_dir=tmp_path / "cache").documents == 400


def test_a_file_written_just_now_is_read_again(tmp_path, rows):
    now = time.time_ns()
    os.utime(rows, ns=(now, now))
    prepare_part([rows], BYTE, cache_dir=tmp_path / "cache")
    rows.write_text(rows.read_text().replace("document", "DOCUMENT"))
    os.utime(rows, ns=(now, now))
    assert texts_of(prepare_part([rows], BYTE, cache_dir=tmp_path / "cache"))[0].startswith("DOCUMENT")


@pytest.mark.parametrize("harm", ["short shard", "no meta", "broken meta", "other version", "short index"])
def test_a_damaged_cache_is_built_again(tmp_path, rows, harm):
    cache = tmp_path / "cache"
    folder = prepare_part([rows], BYTE, cache_dir=cache).shards.folder
    if harm == "short shard":
        os.truncate(folder / "tokens-00000.bin", 100)
    elif harm == "no meta":
        (folder / "meta.json").unlink()
    elif harm == "broken meta":
        (folder / "meta.json").write_text("{")
    elif harm == "other version":
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps({**meta, "version": 99}))
    else:
        np.save(folder / "lengths.npy", np.ones(3, np.int64))
    (cache / f"{folder.name}.partial-left").mkdir()
    (cache / "content-hashes.json").write_text("[]")
    assert texts_of(prepare_part([rows], BYTE, cache_dir=cache)) == ROWS
    assert not list(cache.glob("*partial*"))


def test_an_interrupted_build_leaves_nothing(tmp_path, rows):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_part([rows], BYTE, cache_dir=tmp_path / "cache", on_progress=interrupt)
    assert [path.suffix for path in (tmp_path / "cache").iterdir() if path.name != "content-hashes.json"] == [".lock"]


def test_a_file_that_changes_meanwhile_is_an_error(tmp_path, rows):
    with pytest.raises(UserError, match="rows.jsonl: the file changed while it was read"):
        prepare_part([rows], BYTE, cache_dir=tmp_path / "cache", on_progress=lambda *_: os.utime(rows))


def test_two_processes_build_one_cache(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", ["some text " * 50] * 20_000)
    program = (
        "import sys; from tokenizer import ByteTokenizer; from train.data import prepare_part\n"
        "part = prepare_part([sys.argv[1]], ByteTokenizer(), cache_dir=sys.argv[2])\n"
        "print(part.tokens, part.fingerprint)"
    )
    command = [sys.executable, "-c", program, str(path), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {process.communicate(timeout=60)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert len(answers) == 1 and answers.pop().startswith(str(501 * 20_000))
    assert len([entry for entry in (tmp_path / "cache").iterdir() if entry.is_dir()]) == 1


def test_where_the_cache_is(tmp_path, rows, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LOAM_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_module.default_cache_dir() == tmp_path / "home/.cache/loam"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_module.default_cache_dir() == tmp_path / "xdg/loam"
    monkeypatch.setenv("LOAM_CACHE", str(tmp_path / "mine"))
    assert prepare_part([rows], BYTE).shards.folder.parent == tmp_path / "mine"


def test_a_cache_that_cannot_be_written(tmp_path, rows, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot keep tokenised data here .*LOAM_CACHE names another place"):
        prepare_part([rows], BYTE, cache_dir=tmp_path / "file")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "build", full)
    with pytest.raises(UserError, match="No space left on device") as caught:
        prepare_part([rows], BYTE, cache_dir=tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*partial*"))


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": ""}\n'])
def test_an_empty_corpus(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match="empty corpus: no text in .*a.jsonl"):
        prepare([tmp_path / "a.jsonl"], BYTE, cache_dir=tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_arguments_that_cannot_be(tmp_path, rows):
    with pytest.raises(UserError, match="must be at least 0 and below 1, got 1.5"):
        prepare([rows], BYTE, val_fraction=1.5, cache_dir=tmp_path)
    with pytest.raises(UserError, match="separator must not be empty"):
        prepare([rows], BYTE, document_separator="", cache_dir=tmp_path)


def test_the_split_depends_on_the_texts_alone(tmp_path, rows, monkeypatch):
    corpus = prepare([rows], BYTE, val_fraction=0.1, cache_dir=tmp_path / "cache")
    train, validation = texts_of(corpus.train), texts_of(corpus.validation)
    assert sorted(train + validation) == sorted(ROWS)
    assert 20 <= len(validation) <= 70
    assert corpus.train.tokens == sum(len(t) + 1 for t in train) and corpus.train.bytes == sum(map(len, train))
    assert corpus.validation.bytes == sum(map(len, validation))

    turned = write_rows(tmp_path / "turned.jsonl", ROWS[::-1] + ROWS[:100])
    monkeypatch.setattr(build_module, "plan", lambda sources: plan(sources, 1_000))
    again = prepare([turned], BYTE, val_fraction=0.1, cache_dir=tmp_path / "cache")
    assert set(texts_of(again.validation)) == set(validation)
    assert set(texts_of(again.train)) == set(train)
    assert not set(texts_of(again.validation)) & set(texts_of(again.train))
    assert again.train.fingerprint != corpus.train.fingerprint != corpus.validation.fingerprint


def test_both_parts_have_a_document(tmp_path):
    for count in range(2, 12):
        path = write_rows(tmp_path / f"{count}.jsonl", ROWS[:count])
        for fraction in (1e-9, 0.02, 0.999):
            corpus = prepare([path], BYTE, val_fraction=fraction, cache_dir=tmp_path / "cache")
            assert corpus.train.documents and corpus.validation.documents
            assert corpus.train.documents + corpus.validation.documents == count


def test_the_smaller_of_two_very_unequal_documents_is_held_out(tmp_path):
    for i in range(6):
        path = write_rows(tmp_path / f"{i}.jsonl", [f"{i} long" * 1000, f"{i} short"])
        assert texts_of(prepare([path], BYTE, cache_dir=tmp_path / "cache").validation) == [f"{i} short"]


def test_equal_documents_stay_together_unless_there_are_no_others():
    lengths = np.array([5, 5, 9, 5])
    hashes = np.array([7, 7, 2**63, 7], np.uint64) + np.uint64(2**60)
    assert held_out(hashes, lengths, 1e-6).tolist() in ([True, True, False, True], [False, False, True, False])
    assert held_out(hashes[:2], lengths[:2], 1e-6).tolist() == [False, True]


def test_a_single_document_is_split_by_position(tmp_path):
    text = "".join(f"{i} " for i in range(1000)) + "€"
    (tmp_path / "a.txt").write_text(text)
    corpus = prepare([tmp_path / "a.txt"], BYTE, val_fraction=0.1, cache_dir=tmp_path / "cache")
    data = text.encode()
    kept = int(0.9 * len(data))
    assert texts_of(corpus.train) == [data[:kept].decode()] and texts_of(corpus.validation) == [data[kept:].decode()]
    assert (corpus.train.tokens, corpus.validation.tokens) == (kept, len(data) - kept + 1)
    assert (corpus.train.bytes, corpus.validation.bytes) == (kept, len(data) - kept)
    (tmp_path / "tiny.txt").write_text("a")
    tiny = prepare([tmp_path / "tiny.txt"], BYTE, cache_dir=tmp_path / "cache")
    assert (tiny.train.tokens, tiny.validation.tokens) == (1, 1)


def test_validation_data_of_its_own_or_none(tmp_path, rows):
    other = write_rows(tmp_path / "other.jsonl", ["for validation"])
    corpus = prepare([rows], BYTE, val_paths=[other], cache_dir=tmp_path / "cache")
    assert texts_of(corpus.train) == ROWS and texts_of(corpus.validation) == ["for validation"]
    corpus = prepare([rows], BYTE, val_fraction=0, cache_dir=tmp_path / "cache")
    assert texts_of(corpus.train) == ROWS and corpus.validation is None


def test_without_paths_the_standard_library_is_read(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("pass\n" * 9)
    monkeypatch.setattr("train.data.corpus.standard_library_files", lambda: [tmp_path / "a.py"])
    corpus = prepare([], BYTE, cache_dir=tmp_path / "cache")
    assert corpus.train.bytes + corpus.validation.bytes == 45
