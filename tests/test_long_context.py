"""The long-context bench: its text, what it counts as right, and a small run of all of it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from models_samples import disturbed, written_run

from bench import long_context, long_context_needle as needle, record
from bench.long_context import bands_of, bins_of, keep, losses, variants
from bench.long_context_report import tables
from engine import UserError
from models.config import ModelConfig
from models.context import KINDS, ContextConfig
from models.run_folder import load_run
from tokenizer import ByteTokenizer
from train import pretrain
from train.data import Batch

CONFIG = ModelConfig(vocab_size=264, n_layers=1, d_model=16, n_heads=2, d_ff=12, max_seq_len=32)


def test_every_question_of_a_document_follows_its_fact():
    rng = np.random.default_rng(0)
    for length in (60, 127, 500):
        text = needle.document(rng, length)
        facts = {match[1]: (match.start(), match[2]) for match in re.finditer(r"(?<!\?)([A-Z])(\d);", text)}
        questions = re.findall(r"\?([A-Z])(\d);", text)
        assert len(text) == length and questions and 0 < len(facts) <= needle.MOST_FACTS
        for key, value in questions:
            assert facts[key][1] == value and text.index(f"?{key}") > facts[key][0]
    with pytest.raises(UserError, match="haystack of 5 characters must hold"):
        needle.haystack(rng, [(0.0, "K7;"), (1.0, "?K7;")], 5)


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_the_fact_asked_for_stands_at_its_depth(depth):
    for seed in range(5):
        text, answer = needle.question(np.random.default_rng(seed), 400, depth)
        place = text.index(f"{text[-1]}{answer};")
        assert len(text) == 400 and text[-2] == "?" and text.count(text[-1]) == 2
        assert abs(place - depth * 400) < 40
        assert len(re.findall(r"[A-Z]\d;", text)) == 1 + needle.DISTRACTORS


class Oracle:
    """Knows where answers stand: its hidden state is the id to say, its head the identity."""

    device = torch.device("cpu")

    def __init__(self, sees: int):
        self.sees = sees
        self.output = type("Weight", (), {"data": torch.eye(264)})

    def hidden(self, ids):
        result = torch.zeros(*ids.shape, 264)
        for row, text in enumerate(bytes(i for i in line).decode() for line in ids.tolist()):
            found = re.search(rf"{text[-1]}(\d);", text[-self.sees:])
            result[row, -1, ord(found[1]) if found else ord("x")] = 1.0
        return type("Hidden", (), {"data": result})


def test_the_grid_counts_answers_and_only_those_within_sight_are_right():
    rows = needle.grid(Oracle(sees=90), ByteTokenizer(), [64, 400], trials=6)
    assert rows[0] == [1.0] * 5
    assert rows[1] == [0.0, 0.0, 0.0, 0.0, 1.0]
    with pytest.raises(UserError, match="needs a run on bytes"):
        needle.grid(Oracle(1), object(), [64], 1)


def test_losses_are_those_of_the_model():
    model = disturbed(CONFIG).eval()
    ids = np.random.default_rng(0).integers(0, 264, (2, 33))
    targets = ids[:, 1:].copy()
    targets[1, -1] = -100
    batch = Batch(ids=ids[:, :-1].copy(), targets=targets, doc_start=None, first_token=0, predicted=63, bytes=63,
                  row_bytes=np.full(2, 32))
    found = losses(model, batch)
    assert np.isnan(found[1, -1]) and np.isfinite(found).sum() == 63
    expected = model.loss(torch.from_numpy(batch.ids), torch.from_numpy(targets)).item()
    assert np.nanmean(found) == pytest.approx(expected, rel=1e-5)


def test_bands_double_and_bins_cover_every_position():
    assert bands_of(64, 512) == [(0, 16), (16, 32), (32, 64), (64, 128), (128, 256), (256, 512)]
    assert bands_of(64, 96) == [(0, 16), (16, 32), (32, 64), (64, 96)]
    assert [first for first, _ in bins_of(64, 130)] == list(range(0, 130, 8)) and bins_of(64, 130)[-1] == (128, 130)


def test_variants_are_what_was_asked_for(tmp_path):
    run = load_run(written_run(tmp_path / "run", CONFIG))
    every = variants(run, None, ())
    assert tuple(every) == KINDS and {config.max_seq_len for config in every.values()} == {256}
    assert every["none"].context.kind == "none"
    one = variants(run, None, ["model.context.kind=yarn", "model.context.factor=2"])
    assert list(one) == ["yarn"] and one["yarn"].context == ContextConfig("yarn", 2.0, 32)
    assert list(variants(run, ["none", "abf"], ["model.context.base=20000"])) == ["none", "abf"]
    longer = load_run(written_run(tmp_path / "long", CONFIG.with_(context=ContextConfig("ntk", 3.0))))
    assert {kind: config.max_seq_len for kind, config in variants(longer, None, ()).items()} == {"ntk": 96}
    assert list(variants(longer, ["none", "ntk"], ())) == ["none", "ntk"]
    alibi = load_run(written_run(tmp_path / "alibi", CONFIG.with_(position="alibi")))
    with pytest.raises(UserError, match="model.position rope: got 'alibi'"):
        variants(alibi, None, ())


def test_a_small_run_of_all_of_it(tmp_path, capsys, monkeypatch):
    settings = ("model.n_layers=1", "model.d_model=16", "model.n_heads=2", "model.d_ff=16", "run.eval_every=-1",
                "run.sample_tokens=2", "data.val_fraction=0.1")
    run = needle.trained_run(tmp_path, 0.2, 32, 60, settings)
    assert needle.trained_run(tmp_path, 0.2, 32, 60, settings) == run
    text = tmp_path / "valid.txt"
    text.write_text(needle.document(np.random.default_rng(1), 900))
    assert long_context.main([str(run), "--data", str(text), "--needle", "--trials", "2", "--seconds", "0.5", "--set",
                              "model.context.factor=2", "--out", str(tmp_path / "out")]) == 0
    output = capsys.readouterr()
    results = json.loads(output.out.strip().splitlines()[-1])
    assert results["trained_length"] == 32 and results["factor"] == 2
    assert results["needle"]["lengths"] == [32, 64] and list(results["needle"]["grids"]) == list(KINDS)
    found = results["perplexity"]["by_band"]
    assert list(found) == list(KINDS) and all(len(row) == 4 and min(row) > 1 for row in found.values())
    assert found["dca"][0] == pytest.approx(found["none"][0], rel=1e-4)
    assert found["linear"][0] != pytest.approx(found["none"][0], rel=1e-6)
    for name in ("long-context.json", "long-context-perplexity.png", "long-context-needle.png"):
        assert (tmp_path / "out" / name).stat().st_size > 1000
    assert "Perplexity by position" in output.err and "yarn" in output.err and len(list(tables(results))) == 2
    monkeypatch.setattr(long_context, "PLOTS", dict.fromkeys(long_context.PLOTS, lambda results, path: path.touch()))
    assert [path.name for path in keep({key: value for key, value in results.items() if key != "needle"},
                                       tmp_path / "again")] == ["long-context.json", "long-context-perplexity.png"]
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    long_context.record(results)
    del results["perplexity"]
    one = {"kinds": {"yarn": results["kinds"]["yarn"]}, "settings": ["kind=yarn", "fast_turns=4"]}
    long_context.record(results | one)
    names = {path.stem.rpartition("-20")[0] for path in (tmp_path / "results").glob("*.json")}
    assert names == {"long-context-perplexity", "long-context-needle", "long-context-needle-yarn-fast_turns-4"}
    assert len(list((tmp_path / "results").glob("*.png"))) == 3


def test_a_run_alone_is_measured_on_its_own_validation(tmp_path, capsys):
    text = tmp_path / "text.jsonl"
    needle.make_text(text, 64, documents=300)
    flags = ["--data", str(text), "--tokenizer", "bytes", "--seq-len", "16", "--batch-tokens", "64", "--steps", "1",
             "--out", str(tmp_path / "run"), "--set", f"data.cache_dir={tmp_path / 'cache'}",
             "model.n_layers=1", "model.d_model=8", "model.n_heads=2", "model.d_ff=8", "model.max_seq_len=16",
             "run.sample_tokens=2"]
    assert pretrain.main(flags) == 0
    capsys.readouterr()
    flags = [str(tmp_path / "run"), "--kinds", "none,ntk", "--seconds", "0.1"]
    assert long_context.main(flags) == 0
    found = json.loads(capsys.readouterr().out)["perplexity"]
    assert list(found["by_band"]) == ["none", "ntk"] and found["bands"][-1] == [64, 128]


def test_text_is_made_for_training(tmp_path):
    file = tmp_path / "facts.jsonl"
    needle.make_text(file, 64, documents=5)
    rows = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    assert len(rows) == 5 and {len(row) for row in rows} == {63} and len(set(rows)) == 5


@pytest.mark.parametrize("flags, words", [
    ([], ["RUN", "--needle", "--make-text"]), (["--kinds", "yarn,longrope", "--needle"], ["--kinds", "'longrope'"]),
    (["--needle", "--seconds", "0"], ["--seconds must be above 0", "0"]), (["--data", "x"], ["RUN"]),
])
def test_bad_flags_end_with_one_line(flags, words, capsys):
    with pytest.raises(SystemExit) as error:
        long_context.main(flags)
    told = capsys.readouterr().err
    assert error.value.code == 2 and told.count("\n") == 1 and all(word in told for word in words)


def test_bad_runs_and_settings_are_told(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        long_context.main([str(tmp_path / "none"), "--needle"])
    run = written_run(tmp_path / "run", CONFIG)
    with pytest.raises(UserError, match="--set takes model.context"):
        long_context.main([str(run), "--needle", "--set", "optim.lr=1"])
