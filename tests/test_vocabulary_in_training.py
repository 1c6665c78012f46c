"""A run's vocabulary: trained for it, kept in its folder, never swapped unseen; bits per byte are those of the text."""

import json
import math
import os
import pickle
import shutil

import numpy as np
import pytest
import torch

import tokenizer as tokenizers
from models import generate
from models.run_folder import latest_checkpoint, load_run
from test_bad_input import refused
from tokenizer.documents import ReadOptions, find_sources
from tokenizer.sampling import SampledTokenizer
from tokenizer.train import Settings
from train import evaluate, pretrain
from train.config import Config
from train.data import build, prepare
from train.data.shards import Section, write_shard
from train.data.vocabulary import cached_vocabulary
from train.inputs import read_texts
from vocabulary_samples import BYTE, decoded, recipe_of, rows_file, text_of

TINY = ["--seq-len", "16", "--batch-tokens", "64", "--steps", "2", "--vocab-size", "300", "--set", "model.n_layers=1",
        "--set", "model.d_model=16", "--set", "model.n_heads=2", "--set", "model.d_ff=32", "--set",
        "run.sample_tokens=5", "--set", "run.eval_every=-1", "--set", "tokenizer.rounds=2", "--set",
        "data.val_fraction=0.2"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    rows_file(folder / "rows.jsonl", [text_of(n) for n in range(120)])
    return folder


def flags(home, out, *more):
    return ["--data", str(home / "rows.jsonl"), "--out", str(out), *TINY, "--set", f"data.cache_dir={home / 'cache'}",
            *more]


@pytest.fixture(scope="module")
def trained(home):
    assert pretrain.main(flags(home, home / "trained")) == 0
    return home / "trained"


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_a_run_trains_its_vocabulary_and_keeps_it(home, trained):
    run = load_run(trained)
    config = Config.load(trained / "config.toml")
    assert run.tokenizer.vocab_size == run.config.vocab_size == config.model.vocab_size == 308
    assert config.tokenizer.vocab_size == 300 and config.tokenizer.fingerprint == run.tokenizer.fingerprint()
    assert {path.name for path in trained.iterdir()} >= {"vocabulary.json", "vocabulary.tables"}
    assert tokenizers.load(trained).fingerprint() == run.tokenizer.fingerprint()
    state = json.loads((latest_checkpoint(trained) / "state.json").read_text())
    assert state["tokenizer"] == run.tokenizer.fingerprint()


def test_a_text_with_too_little_for_the_size_gives_fewer_pieces(home, tmp_path):
    assert pretrain.main(flags(home, tmp_path / "run", "--vocab-size", "60000")) == 0
    config = Config.load(tmp_path / "run" / "config.toml")
    assert config.tokenizer.vocab_size == 60_000 and 264 < config.model.vocab_size < 5_000


def test_resume_takes_the_runs_vocabulary_and_refuses_another(home, trained, run, tmp_path, refused):
    assert pretrain.main(["--out", str(run), "--resume", "--steps", "3"]) == 0
    line = refused(["--out", run, "--resume", "--vocab-size", "280"])
    assert "--resume cannot change tokenizer.vocab_size from 300 to 280" in line
    line = refused(["--out", run, "--resume", "--tokenizer", "bytes"])
    assert "--resume cannot change tokenizer.path from '' to 'bytes'" in line
    settings = Settings(299, rounds=2, allow_fewer=True)
    other = cached_vocabulary(recipe_of(home / "rows.jsonl", settings=settings), home / "cache")
    other.save(run)
    line = refused(["--out", run, "--resume", "--steps", "5"])
    assert "vocabulary (vocabulary.json) has changed" in line and other.fingerprint()[:12] in line


def test_a_vocabulary_swapped_before_the_first_checkpoint_is_refused(home, run, refused):
    shutil.rmtree(run / "checkpoints")
    BYTE.save(run / "vocabulary.json")
    line = refused(["--out", run, "--resume"])
    assert "vocabulary (vocabulary.json) has changed" in line


def test_a_vocabulary_by_path_or_from_another_run(home, trained, tmp_path, refused):
    without = [flag for flag in flags(home, tmp_path / "a") if flag not in ("--vocab-size", "300")]
    assert pretrain.main([*without, "--tokenizer", str(trained)]) == 0
    config = Config.load(tmp_path / "a" / "config.toml")
    assert (config.tokenizer.path, config.tokenizer.vocab_size) == (str(trained), 0)
    assert load_run(tmp_path / "a").tokenizer.fingerprint() == load_run(trained).tokenizer.fingerprint()

    without[without.index(str(tmp_path / "a"))] = str(tmp_path / "b")
    assert pretrain.main([*without, "--init-from", str(trained)]) == 0
    assert load_run(tmp_path / "b").tokenizer.fingerprint() == load_run(trained).tokenizer.fingerprint()
    shutil.rmtree(tmp_path / "b")
    assert "brings its own vocabulary" in refused([*without, "--init-from", trained, "--vocab-size", "300"])
    assert "its vocabulary is not this run's" in refused([*without, "--init-from", trained, "--tokenizer", "bytes"])
    assert "cannot read the tokenizer file" in refused([*without, "--tokenizer", tmp_path / "nowhere"])
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("more, words", [
    (["--vocab-size", "100"], ["tokenizer.vocab_size must be at least 257", "100"]),
    (["--vocab-size", "-1"], ["--vocab-size must be above 0", "-1"]),
    (["--set", "tokenizer.boundaries=lines"], ["tokenizer.boundaries must be one of", "lines"]),
    (["--set", "tokenizer.sample_mb=0"], ["tokenizer.sample_mb must be above 0", "0"]),
    (["--set", "tokenizer.path=bytes"], ["one of tokenizer.path, tokenizer.vocab_size", "300"]),
    (["--set", "data.sampling=-1"], ["data.sampling must be at least 0", "-1"]),
    (["--set", "tokenizer.fingerprint=00"], ["tokenizer.fingerprint must be", "00"]),
    (["--set", "model.vocab_size=300"], ["model.vocab_size must be at least the tokenizer's 308", "300"]),
])
def test_settings_that_cannot_be(home, trained, tmp_path, refused, more, words):
    line = refused(flags(home, tmp_path / "run", *more))
    assert all(word in line for word in words)
    assert not (tmp_path / "run").exists()


def test_runs_of_older_versions_go_on(home, tmp_path):
    out = tmp_path / "run"
    without = [flag for flag in flags(home, out) if flag not in ("--vocab-size", "300")]
    assert pretrain.main([*without, "--tokenizer", "bytes"]) == 0
    os.rename(out / "vocabulary.json", out / "tokenizer.json")
    config = (out / "config.toml").read_text()
    start = config.index("[tokenizer]")
    (out / "config.toml").write_text(config[:start] + config[config.index("\n[", start) + 1 :])
    assert pretrain.main(["--out", str(out), "--resume", "--steps", "3"]) == 0
    assert load_run(out).tokenizer.vocab_size == 264


@pytest.mark.parametrize("doc_mask", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 200])
def test_bits_per_byte_are_those_of_a_direct_computation(home, trained, doc_mask, max_tokens):
    """Target by target from the logits; bytes from the texts that the targets decode to."""
    run = load_run(trained)
    run.model.layers[0].attention.out.weight.data.normal_(0, 0.1)
    part = prepare([home / "rows.jsonl"], run.tokenizer, val_fraction=0.2, cache_dir=home / "cache").validation
    result = evaluate.evaluate(run.model, evaluate.evaluation_batches(part, run.tokenizer, 16, doc_mask, max_tokens))

    batches = list(evaluate.evaluation_batches(part, run.tokenizer, 16, doc_mask, max_tokens))
    nats, text, tokens = 0.0, b"", 0
    for batch in batches:
        starts = None if batch.doc_start is None else torch.from_numpy(batch.doc_start)
        logits = run.model(torch.from_numpy(batch.ids), starts).numpy().astype(np.float64)
        for row, place in zip(*np.nonzero(batch.targets != -100)):
            scores, target = logits[row, place], batch.targets[row, place]
            nats += math.log(np.exp(scores).sum()) - scores[target]
            text += run.tokenizer.decode_bytes([target])
            tokens += 1
    assert (result.tokens, result.bytes) == (tokens, len(text))
    assert result.loss == pytest.approx(nats / tokens, rel=1e-5)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / len(text), rel=1e-5)
    assert result.bytes > 1.5 * result.tokens
    if not max_tokens:
        whole = "".join(decoded(part, run.tokenizer))
        firsts = [run.tokenizer.encode(document)[0] for document in decoded(part, run.tokenizer)]
        lost = run.tokenizer.token_bytes()[firsts].sum() if doc_mask else 0
        assert result.bytes == len(whole.encode()) - lost == part.bytes - lost
        assert result.tokens == part.tokens - (part.documents if doc_mask else 0)


def test_every_vocabulary_validates_on_the_same_documents(home, trained, tmp_path):
    pieces = load_run(trained).tokenizer
    parts = [prepare([home / "rows.jsonl"], tokenizer, val_fraction=0.2, cache_dir=home / "cache")
             for tokenizer in (BYTE, pieces)]
    for name in ("train", "validation"):
        texts = [decoded(getattr(corpus, name), tokenizer) for corpus, tokenizer in zip(parts, (BYTE, pieces))]
        assert texts[0] == texts[1]
        assert getattr(parts[0], name).bytes == getattr(parts[1], name).bytes


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.999, 1e-9])
def test_one_document_is_cut_in_the_same_place_by_bytes(trained, tmp_path, fraction):
    pieces = load_run(trained).tokenizer
    text = "".join(text_of(n) for n in range(20))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    cuts = []
    for tokenizer in (BYTE, pieces):
        corpus = prepare([tmp_path / "a.txt"], tokenizer, val_fraction=fraction, cache_dir=tmp_path / "cache")
        parts = [tokenizer.decode_bytes(part.shards.gather(part.starts, part.lengths))
                 for part in (corpus.train, corpus.validation)]
        assert b"".join(parts).decode() == text
        assert [part.bytes for part in (corpus.train, corpus.validation)] == [len(part) for part in parts]
        cuts.append(len(parts[0]))
    assert 0 <= cuts[1] - cuts[0] < pieces.token_bytes().max()


def test_documents_in_pieces_have_the_ids_of_the_whole(trained, tmp_path):
    pieces = load_run(trained).tokenizer
    texts = ["".join(text_of(40 * number + n) for n in range(40)) for number in range(3)]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    rows_file(tmp_path / "rows.jsonl", texts)
    ids = []
    for name, chunk in (("rows.jsonl", 1 << 20), ("0.txt", 700), ("1.txt", 333), ("2.txt", 1)):
        (source,) = find_sources([tmp_path / name])
        index = write_shard(tmp_path / "ids", [Section(source)], 0, pieces, ReadOptions(chunk_bytes=chunk), lambda _: 0)
        ids.append(np.fromfile(tmp_path / "ids", "<u2"))
        assert index.lengths.sum() == len(ids[-1])
    assert np.array_equal(ids[0], np.concatenate(ids[1:]))
    expected = [[*pieces.encode(text), pieces.eod] for text in texts]
    assert ids[0].tolist() == sum(expected, [])


def test_sampled_segmentation_is_for_the_training_text_only(home, trained, tmp_path, refused):
    out = tmp_path / "run"
    assert pretrain.main(flags(home, out, "--set", "data.sampling=0.5")) == 0
    config = Config.load(out / "config.toml")
    tokenizer = load_run(out).tokenizer
    assert tokenizer.fingerprint() == load_run(trained).tokenizer.fingerprint()
    sampled, plain = (read_texts(config.with_values({"data.sampling": alpha}), tokenizer) for alpha in (0.5, 0.0))
    assert sampled.train[""].tokens > plain.train[""].tokens and sampled.fingerprint != plain.fingerprint
    assert decoded(sampled.train[""], tokenizer) == decoded(plain.train[""], tokenizer)
    assert sampled.validation[""].fingerprint == plain.validation[""].fingerprint
    assert pretrain.main(["--out", str(out), "--resume", "--steps", "3"]) == 0
    assert "--resume cannot change data.sampling" in refused(["--out", out, "--resume", "--set", "data.sampling=1"])
    bytes_ = [flag for flag in flags(home, tmp_path / "b", "--tokenizer", "bytes", "--set", "data.sampling=0.5")
              if flag not in ("--vocab-size", "300")]
    assert "data.sampling needs a vocabulary of pieces" in refused(bytes_)


def test_shards_of_sampled_text_depend_on_their_number_alone(home, trained, tmp_path):
    (source,) = find_sources([home / "rows.jsonl"])
    sampled = SampledTokenizer(load_run(trained).tokenizer, 0.5, 7)
    shards = build.plan([source], 9_000)
    assert len(shards) > 2

    def ids(number, tokenizer, sections):
        write_shard(tmp_path / "ids", sections, number, tokenizer, ReadOptions(), lambda _: 0)
        return (tmp_path / "ids").read_bytes()

    forwards = [ids(number, sampled, sections) for number, sections in enumerate(shards)]
    sent = pickle.loads(pickle.dumps(sampled))
    assert [ids(n, sent, shards[n]) for n in reversed(range(len(shards)))] == forwards[::-1]
    assert ids(1, sampled, shards[0]) != forwards[0]
    once, twice = (tmp_path / name for name in ("once.txt", "twice.txt"))
    for path in (once, twice):
        path.write_text("".join(text_of(n) for n in range(10)), encoding="utf-8")
    pieces = []
    for path, chunk in ((once, 1 << 20), (twice, 300)):
        write_shard(tmp_path / "ids", [Section(*find_sources([path]))], 0, sampled, ReadOptions(chunk_bytes=chunk),
                    lambda _: 0)
        pieces.append((tmp_path / "ids").read_bytes())
    assert pieces[0] == pieces[1]


def test_generate_prints_whole_characters(trained, monkeypatch, capsys):
    assert generate.main([str(trained), "--prompt", "北京 the", "--tokens", "20", "--temperature", "2"]) == 0
    assert capsys.readouterr().out.startswith("北京 the")
    run = load_run(trained)
    ids = run.tokenizer.encode("on 北京").tolist()
    monkeypatch.setattr(generate, "generate_ids", lambda *_: iter([*ids, 0xE7, 0x8C, 0xAB, 0xE7]))
    pieces = list(generate.generate_text(run.model, run.tokenizer, "x", 99))
    assert "".join(pieces) == "on 北京猫\ufffd" and "\ufffd" not in "".join(pieces[:-1])
