"""Sampling, decoding with and without a cache, and the two commands."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from harness import GPU, gpu_programs
from models_samples import disturbed, written_run

from engine import UserError
from models import chat, generate
from models.cache import KVCache
from models.config import ModelConfig
from models.decoder import Decoder
from models.decoding import DeviceDecoding, next_logits
from models.generate import generate_ids, generate_text, window_start
from models.sampling import Sampling, draw, probabilities
from tokenizer import ByteTokenizer

CONFIG = ModelConfig(vocab_size=300, n_layers=2, d_model=24, n_heads=4, n_kv_heads=2, d_ff=20, max_seq_len=16)
GREEDY = Sampling(temperature=0.0)


@pytest.mark.parametrize("changes", [{}, {"qk_norm": False}, {"n_kv_heads": 4, "tie_embeddings": True},
                                     {"max_seq_len": 1}, {"max_seq_len": 5}])
@pytest.mark.parametrize("context", [1, 7, 40])
def test_cache_changes_no_greedy_id(changes, context):
    model = disturbed(CONFIG.with_(**changes))
    ids = np.random.default_rng(2).integers(0, 300, context)
    cached = list(generate_ids(model, ids, 40, GREEDY))
    assert cached == list(generate_ids(model, ids, 40, GREEDY, cache="none"))
    assert len(cached) == 40 and len(set(cached)) > 1


@pytest.mark.parametrize("changes", [
    {}, {"qk_norm": False, "tie_embeddings": True},
    {"position": "jerry", "attention": "jerry", "n_kv_heads": 4, "qk_norm": False, "head_mixing": False},
    {"position": "jerry", "attention": "jerry", "n_kv_heads": 4, "qk_norm": False, "parametrisation": "affine",
     "block": "post_norm"},
])
def test_decoding_on_a_gpu_changes_no_greedy_id(changes):
    config, ids = CONFIG.with_(max_seq_len=8, **changes), [5, 7, 11]
    with gpu_programs():
        source = DeviceDecoding(disturbed(config).eval().to(GPU), GREEDY, 0, 300)
        for _ in range(8):
            ids.append(source.next(ids, window_start(len(ids), 8)))
    assert ids[3:] == list(generate_ids(disturbed(config), ids[:3], 8, GREEDY))


def test_drawing_on_a_gpu_keeps_to_the_filters():
    model = disturbed(CONFIG.with_(max_seq_len=8)).eval().to(GPU)
    with gpu_programs():
        source = DeviceDecoding(model, Sampling(temperature=2.0, top_k=1, repetition_penalty=1e9), 3, 17)
        first = source.next([4], 0)
        ids = [4, first, source.next([4, first], 0)]
        assert len(set(ids)) == 3 and max(ids) < 17
        model.norm.gain.data.fill_(float("nan"))
        with pytest.raises(FloatingPointError, match="not finite"):
            source.next(ids, 0)


def test_steps_of_any_size_give_the_logits_of_one_pass():
    model = disturbed(CONFIG.with_(dtype="float64"))
    ids = np.random.default_rng(0).integers(0, 300, 16)
    cache = KVCache(model.config)
    for start, stop in ((0, 5), (5, 6), (6, 13), (13, 16)):
        logits = model.step(ids[start:stop], cache)
        np.testing.assert_allclose(logits, next_logits(model, ids[:stop]), rtol=1e-10, atol=1e-12)
    with pytest.raises(UserError, match="room for 0 tokens: got 1"):
        model.step([1], cache)


@given(length=st.integers(1, 10_000), capacity=st.integers(1, 300))
@settings(derandomize=True, deadline=None)
def test_the_window_fits_and_keeps_half(length, capacity):
    start = window_start(length, capacity)
    assert 1 <= length - start <= capacity
    assert start == 0 or length - start > capacity // 2 - 1
    assert (start == 0) == (length <= capacity)


def test_generation_stops_before_the_end_mark_and_draws_no_unused_id():
    model = disturbed(CONFIG)
    ids = list(generate_ids(model, [1], 12, GREEDY))
    assert list(generate_ids(model, [1], 12, GREEDY, stop=ids[5])) == ids[:ids.index(ids[5])]
    hot = Sampling(temperature=50.0)
    assert max(generate_ids(model, [1], 200, hot, n_ids=17)) == 16


def test_the_seed_decides_the_text():
    model, sampling = disturbed(CONFIG), Sampling(temperature=2.0)
    first, same, other = (list(generate_ids(model, [1, 2], 30, sampling, seed)) for seed in (3, 3, 4))
    assert first == same != other


def test_generation_leaves_the_training_mode_as_it_was():
    model = disturbed(CONFIG.with_(dropout=0.5))
    list(generate_ids(model, [1], 3, GREEDY))
    assert model.training
    model.eval()
    list(generate_ids(model, [1], 3, GREEDY))
    assert not model.training


def test_text_comes_in_whole_characters(monkeypatch):
    text = "a é 语 😀"
    tokenizer = ByteTokenizer()
    monkeypatch.setattr(generate, "generate_ids", lambda *_: iter(tokenizer.encode(text).tolist() + [0xE8]))
    pieces = list(generate_text(Decoder(CONFIG), tokenizer, "x", 99))
    assert "".join(pieces) == text + "\ufffd"
    assert all(len(piece) == 1 for piece in pieces)


def test_bad_context():
    model = Decoder(CONFIG)
    with pytest.raises(UserError, match="at least one token"):
        next(generate_ids(model, [], 5))
    with pytest.raises(UserError, match="0..299: got 3 to 300"):
        next(generate_ids(model, [3, 300], 5))


@pytest.mark.parametrize("changes, message", [
    ({"temperature": -1.0}, "temperature must be at least 0: got -1.0"),
    ({"temperature": float("nan")}, "temperature"),
    ({"top_k": -1}, "top-k must be at least 0: got -1"),
    ({"top_p": 0.0}, "top-p must be above 0 and at most 1: got 0.0"),
    ({"repetition_penalty": 0.0}, "repetition penalty must be above 0"),
])
def test_bad_sampling(changes, message):
    with pytest.raises(UserError, match=message):
        Sampling(**changes)


LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3]))


def test_sampling_filters():
    def result(context=(), **settings_):
        return probabilities(LOGITS, context, Sampling(**{"temperature": 1.0, **settings_}))

    np.testing.assert_allclose(result(), [0.1, 0.4, 0.2, 0.3])
    np.testing.assert_allclose(result(temperature=0.0), [0, 1, 0, 0])
    np.testing.assert_allclose(result(temperature=0.5), np.array([1, 16, 4, 9]) / 30)
    np.testing.assert_allclose(result(top_k=2), [0, 4 / 7, 0, 3 / 7])
    np.testing.assert_allclose(result(top_p=0.3), [0, 1, 0, 0])
    np.testing.assert_allclose(result(top_p=0.75), [0, 4 / 9, 2 / 9, 3 / 9])
    np.testing.assert_allclose(result(top_k=3, top_p=0.7), [0, 4 / 7, 0, 3 / 7])
    np.testing.assert_allclose(result(context=[1, 1], repetition_penalty=2.0),
                               np.array([0.1, 0.16, 0.2, 0.3]) / 0.76)
    positive = probabilities(np.array([1.0, 2.0]), [1], Sampling(repetition_penalty=2.0, temperature=1.0))
    np.testing.assert_allclose(positive, [0.5, 0.5])


@given(logits=st.lists(st.floats(-700, 700), min_size=1, max_size=30), temperature=st.floats(0, 5),
       top_k=st.integers(0, 40), top_p=st.floats(1e-6, 1.0), penalty=st.floats(0.1, 10), seed=st.integers(0, 99))
@settings(derandomize=True, deadline=None)
def test_sampling_always_gives_a_distribution(logits, temperature, top_k, top_p, penalty, seed):
    weights = probabilities(np.array(logits), [0], Sampling(penalty, temperature, top_k, top_p))
    assert weights.sum() == pytest.approx(1.0) and (weights >= 0).all()
    assert not top_k or np.count_nonzero(weights) <= top_k
    assert weights[draw(weights, np.random.default_rng(seed))] > 0


def test_draws_follow_the_probabilities():
    rng, weights = np.random.default_rng(0), np.array([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    counts = np.bincount([draw(weights, rng) for _ in range(5000)], minlength=6) / 5000
    np.testing.assert_allclose(counts, weights, atol=0.03)


def test_damaged_weights_are_told():
    with pytest.raises(FloatingPointError, match="not finite"):
        probabilities(np.array([0.0, np.nan]), [], Sampling())


def test_generate_command(tmp_path, capsys):
    run = written_run(tmp_path / "run")
    command = [str(run), "--prompt", "Hé", "--tokens", "20", "--temperature", "0"]
    assert generate.main(command) == 0
    text = capsys.readouterr().out
    assert text.startswith("Hé") and text.endswith("\n")
    assert generate.main([*command, "--cache", "none"]) == 0
    assert capsys.readouterr().out == text


def test_generate_command_errors(tmp_path, capsys):
    for arguments in ([str(tmp_path)], [str(written_run(tmp_path / "run")), "--top-p", "2"]):
        assert generate.main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1


def test_chat_reads_a_pipe(tmp_path, capsys, monkeypatch):
    run = written_run(tmp_path / "runs" / "one")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n/help\n/reset\nHello\n/quit\nnever read\n"))
    assert chat.main(["--tokens", "5", "--temperature", "0"]) == 0
    lines = capsys.readouterr().out
    assert "runs/one, step 7: a base model" in lines and "(forgotten)" in lines
    assert chat.main([str(run), "--tokens", "0"]) == 2


def test_chat_without_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert chat.main([]) == 2
    assert "make pretrain" in capsys.readouterr().err
