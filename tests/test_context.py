"""Context extension: every kind against its paper's formula, dual chunk attention against explicit positions."""

from __future__ import annotations

import json
import math
from functools import lru_cache

import numpy as np
import pytest
import torch
from models_samples import disturbed, written_run

import kernels
from engine import Tensor, UserError
from models import generate
from models.cache import DeviceCache, KVCache
from models.config import ModelConfig
from models.context import ContextConfig
from models.decoder import Decoder
from models.decoding import next_logits
from models.generate import generate_ids
from models.positions.dual_chunk import query_places
from models.positions.rotary import rotary_table
from models.positions.scaling import frequencies as rotary_frequencies
from models.run_folder import load_run
from models.sampling import Sampling
from train import evaluate, pretrain
from train.config import Config
from train.configure import on_device
from train.presets import preset

SMALL = ModelConfig(vocab_size=40, n_layers=2, d_model=24, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=20, max_seq_len=8,
                    dtype="float64")
EXTENDED = ("linear", "ntk", "abf", "yarn", "dca")


def extended(kind: str, factor: float = 4.0, config: ModelConfig = SMALL, **settings) -> ModelConfig:
    return config.with_(context=ContextConfig(kind, factor if kind != "none" else 1.0, **settings))


@lru_cache
def expected_angles(kind: str, length: int, dim: int, base: float, s: float, trained: int) -> np.ndarray:
    """Angle of each position and pair, written position by position from the papers' own formulas."""
    angles = np.zeros((length, dim // 2))
    for m in range(length):
        for i in range(dim // 2):
            theta = base ** (-2 * i / dim)
            if kind == "linear":  # f'(x, m) = f(x, m L / L')
                angles[m, i] = m * trained / (trained * s) * theta
            elif kind == "ntk":  # b' = b s^(|D| / (|D| - 2))
                angles[m, i] = m * (base * s ** (dim / (dim - 2))) ** (-2 * i / dim)
            elif kind == "abf":
                angles[m, i] = m * 500_000.0 ** (-2 * i / dim)
            elif kind == "yarn":  # h(theta) = (1 - gamma(r)) theta / s + gamma(r) theta, alpha = 1, beta = 32
                wavelength = 2 * math.pi / theta
                r = trained / wavelength
                gamma = 0.0 if r < 1 else 1.0 if r > 32 else (r - 1) / 31
                angles[m, i] = m * ((1 - gamma) * theta / s + gamma * theta)
            else:
                angles[m, i] = m * theta
    return angles


@pytest.mark.parametrize("kind", ["none", "linear", "ntk", "abf", "yarn"])
def test_tables_follow_the_papers(kind):
    context = ContextConfig(kind, 4.0 if kind != "none" else 1.0, trained_length=600)
    angles = expected_angles(kind, 50, 32, 10_000.0, 4.0, 600)
    scale = 0.1 * math.log(4.0) + 1 if kind == "yarn" else 1.0
    cos, sin = rotary_table(50, 32, 10_000.0, context, torch.float64)
    np.testing.assert_allclose(cos.numpy(), scale * np.cos(angles), rtol=0, atol=1e-12)
    np.testing.assert_allclose(sin.numpy(), scale * np.sin(angles), rtol=0, atol=1e-12)


def test_yarn_leaves_alone_what_turns_often_and_interpolates_the_rest():
    context = ContextConfig("yarn", 4.0, trained_length=600, slow_turns=2.0, fast_turns=8.0)
    plain = rotary_frequencies(32, 10_000.0, ContextConfig())
    ratio, turns = rotary_frequencies(32, 10_000.0, context) / plain, 600 * plain / (2 * math.pi)
    np.testing.assert_allclose(ratio[turns > 8], 1.0)
    np.testing.assert_allclose(ratio[turns < 2], 0.25)
    between = (turns > 2) & (turns < 8)
    assert 0 < between.sum() and ((ratio[between] > 0.25) & (ratio[between] < 1)).all()


def test_ntk_slows_the_last_pair_by_the_factor_and_the_first_not_at_all():
    plain, slow = (rotary_table(2, 16, 10_000.0, ContextConfig(kind, factor, 64), torch.float64)
                   for kind, factor in (("none", 1.0), ("ntk", 8.0)))
    ratio = np.arctan2(slow[1][1].numpy(), slow[0][1].numpy()) / np.arctan2(plain[1][1].numpy(), plain[0][1].numpy())
    np.testing.assert_allclose(ratio[[0, -1]], [1, 1 / 8], rtol=1e-9)


def test_dual_chunk_places_are_those_of_the_papers_example():
    own, following, beyond = query_places(12, 6, 10)
    assert own.tolist() == [0, 1, 2, 3, 4, 5] * 2
    assert following.tolist() == [6, 7, 8, 9, 9, 9] * 2
    assert beyond.tolist() == [9] * 12
    assert 3 * 4096 // 4 == ContextConfig("dca", 8.0, 4096).chunk_tokens


class Twin(torch.nn.Module):
    """One attention part in plain PyTorch, every score from the rotations of its own pair of positions."""

    def __init__(self, model: Decoder, layer: int = 0):
        super().__init__()
        self.config = model.config
        part = model.layers[layer].attention
        self.tensors = {name: value.clone().requires_grad_() for name, value in part.state_dict().items()}

    def places(self, query: int, key: int) -> tuple[int, int]:
        context = self.config.context
        if context.kind != "dca":
            return query, key
        c, s = context.trained_length, context.chunk or 3 * context.trained_length // 4
        chunks_between = query // s - key // s
        if chunks_between == 0:
            return query % s, key % s
        return (min(query % s + s, c - 1) if chunks_between == 1 else c - 1), key % s

    def rotated(self, x: torch.Tensor, place: int) -> torch.Tensor:
        c = self.config
        width = c.rotary_features
        angle = torch.from_numpy(expected_angles(c.context.kind, 32, width, c.rope_base, c.context.factor,
                                                 c.context.trained_length)[place])
        scale = 0.1 * math.log(c.context.factor) + 1 if c.context.kind == "yarn" else 1.0
        a, b, rest = x[: width // 2], x[width // 2: width], x[width:]
        return torch.cat([scale * (a * angle.cos() - b * angle.sin()), scale * (b * angle.cos() + a * angle.sin()),
                          rest])

    def forward(self, x: torch.Tensor, starts: list[list[int]]) -> torch.Tensor:
        c, t = self.config, self.tensors
        normed = torch.nn.functional.rms_norm(x, (c.d_model,), t["norm.gain"], c.norm_eps)
        heads = (normed @ t["qkv.weight"].T).view(*x.shape[:2], -1, c.head_dim)
        q, k, v = heads.split([c.n_heads, c.n_kv_heads, c.n_kv_heads], dim=2)
        q = torch.nn.functional.rms_norm(q, (c.head_dim,), t["q_norm.gain"], c.norm_eps)
        k = torch.nn.functional.rms_norm(k, (c.head_dim,), t["k_norm.gain"], c.norm_eps)
        rows, rotated = [], lru_cache(None)(lambda side, b, i, h, place: self.rotated(side[b, i, h], place))
        for b in range(len(x)):
            for i in range(x.shape[1]):
                found = []
                for h in range(c.n_heads):
                    seen, key_head = range(starts[b][i], i + 1), h // (c.n_heads // c.n_kv_heads)
                    pairs = [self.places(i - starts[b][i], j - starts[b][i]) for j in seen]
                    scores = torch.stack([rotated(q, b, i, h, at) @ rotated(k, b, j, key_head, to)
                                          for j, (at, to) in zip(seen, pairs)])
                    found.append((scores / math.sqrt(c.head_dim)).softmax(0) @ v[b, starts[b][i]: i + 1, key_head])
                rows.append(torch.cat(found))
        return x + torch.stack(rows).view(*x.shape[:2], -1) @ t["out.weight"].T


DOCUMENTS = [[0] * 18, [0] * 3 + [3] * 14 + [17]]


@pytest.mark.parametrize("kind, settings", [("yarn", {}), ("dca", {}), ("dca", {"chunk": 3}), ("dca", {"chunk": 7})])
@pytest.mark.parametrize("fraction, packed", [(1.0, True), (0.5, False)])
def test_attention_and_its_gradients_equal_a_plain_reference(kind, settings, fraction, packed):
    model = disturbed(extended(kind, config=SMALL.with_(rope_fraction=fraction), **settings))
    part = model.layers[0].attention
    rng = np.random.default_rng(3)
    x, dy = (rng.standard_normal((2, 18, SMALL.d_model)) for _ in range(2))
    starts = DOCUMENTS if packed else [[0] * 18] * 2
    ours = Tensor(torch.from_numpy(x), requires_grad=True)
    y = part(ours, torch.tensor(starts, dtype=torch.int32) if packed else None)
    y.backward(torch.from_numpy(dy))
    twin, leaf = Twin(model), torch.from_numpy(x).requires_grad_()
    expected = twin(leaf, starts)
    expected.backward(torch.from_numpy(dy))
    np.testing.assert_allclose(y.data.numpy(), expected.detach().numpy(), rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(ours.grad.numpy(), leaf.grad.numpy(), rtol=1e-9, atol=1e-10)
    for name, parameter in part.named_parameters():
        np.testing.assert_allclose(parameter.grad.numpy(), twin.tensors[name].grad.numpy(), rtol=1e-9, atol=1e-10)


def test_within_one_chunk_dual_chunk_attention_is_plain():
    model = disturbed(SMALL)
    far = Decoder(extended("dca", chunk=7), seed=None)
    far.load_state_dict(model.state_dict())
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, 40, (2, 7)))
    np.testing.assert_allclose(far(ids).data.numpy(), model(ids).data.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", EXTENDED)
def test_a_document_in_a_row_of_many_gives_what_it_gives_alone(kind):
    model = disturbed(extended(kind)).eval()
    ids = torch.from_numpy(np.random.default_rng(2).integers(0, 40, (1, 30)))
    starts = torch.tensor([[0] * 4 + [4] * 19 + [23] * 7], dtype=torch.int32)
    packed, alone = model(ids, starts).data[0, 4:23], model(ids[:, 4:23]).data[0]
    np.testing.assert_allclose(packed.numpy(), alone.numpy(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind, settings", [*((kind, {}) for kind in EXTENDED), ("dca", {"chunk": 2})])
def test_steps_of_any_size_give_the_logits_of_one_pass(kind, settings):
    model = disturbed(extended(kind, **settings)).eval()
    ids = np.random.default_rng(0).integers(0, 40, 32)
    cache, device = KVCache(model.config), DeviceCache(model.config, torch.float64, torch.device("cpu"))
    model.decode(torch.from_numpy(ids[None, :11]), device)
    for start, stop in ((0, 5), (5, 6), (6, 20), (20, 21), (21, 32)):
        logits = model.step(ids[start:stop], cache)
        np.testing.assert_allclose(logits, next_logits(model, ids[:stop]), rtol=1e-9, atol=1e-11)
    for place in range(11, 32):
        logits = model.decode(torch.from_numpy(ids[None, place: place + 1]), device)
    np.testing.assert_allclose(logits.data.numpy()[0], next_logits(model, ids), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", EXTENDED)
def test_cache_changes_no_greedy_id(kind):
    model = disturbed(extended(kind, 3.0, SMALL.with_(dtype="float32")))
    greedy = Sampling(temperature=0.0)
    cached = list(generate_ids(model, [3, 1, 4], 40, greedy))
    assert cached == list(generate_ids(model, [3, 1, 4], 40, greedy, cache="none")) and len(set(cached)) > 1


def test_the_context_grows_by_the_factor_and_settings_survive_toml():
    settings = ["model.context.kind=yarn", "model.context.factor=4"]
    config = preset("demo").with_settings(settings)
    assert config.model.max_seq_len == 1024 and config.model.context == ContextConfig("yarn", 4.0, 256)
    again = Config.from_toml(config.to_toml())
    assert again == config and "[model.context]" in config.to_toml()
    assert config.flat()["model.context.factor"] == 4.0
    assert again.with_settings(["model.context.factor=8"]).model.max_seq_len == 2048
    assert again.with_settings(["model.n_layers=2"]).model.max_seq_len == 1024
    stopped = again.with_settings(["model.context.kind=none", "model.context.factor=1"]).model
    assert stopped.max_seq_len == 1024 and stopped.context.kind == "none"
    assert Config.from_toml(preset("demo").to_toml()) == preset("demo")


@pytest.mark.parametrize("settings, words", [
    (["kind=longrope"], ["model.context.kind", "dca", "'longrope'"]),
    (["factor=2"], ["model.context.factor must be 1", "none", "2.0"]),
    (["kind=yarn", "factor=0.5"], ["model.context.factor", "from 1 on", "0.5"]),
    (["kind=yarn", "factor=nan"], ["model.context.factor", "nan"]),
    (["kind=yarn", "trained_length=-1"], ["model.context.trained_length", "-1"]),
    (["kind=abf", "base=100"], ["model.context.base", "model.rope_base (10000)", "100"]),
    (["kind=dca", "chunk=256"], ["model.context.chunk", "trained length (256)", "256"]),
    (["kind=yarn", "slow_turns=40"], ["model.context.slow_turns", "(32)", "40"]),
    (["factor=far"], ["model.context.factor", "float", "'far'"]), (["length=2"], ["model.context.length"]),
])
def test_bad_values_are_told_in_one_line(settings, words, tmp_path):
    texts = [f"model.context.{setting}" for setting in settings]
    with pytest.raises(UserError) as error:
        preset("demo").with_settings(texts)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)
    with pytest.raises(UserError) as error:
        ModelConfig().with_(context=ContextConfig().changed(texts))
    assert words[0] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("changes, words", [
    ({"position": "alibi"}, ["model.context.kind", "model.position rope", "'alibi'"]),
    ({"max_seq_len": 100, "context": ContextConfig("yarn", 2.0, 64)}, ["model.max_seq_len", "(128)", "100"]),
    ({"head_dim": 2, "context": ContextConfig("ntk", 2.0)}, ["at least 4 features", "2"]),
    ({"max_seq_len": 1, "context": ContextConfig("dca", 2.0)}, ["model.context.chunk", "0"]),
])
def test_rules_between_a_model_and_its_context(changes, words):
    with pytest.raises(UserError) as error:
        ModelConfig().with_(**{"context": ContextConfig("yarn", 2.0), **changes})
    assert all(word in str(error.value) for word in words)


def test_foreign_tables_are_refused():
    with pytest.raises(UserError, match="model.context must be ContextConfig: got 3"):
        ModelConfig(context=3)
    with pytest.raises(UserError, match="unknown setting 'model.context.x'"):
        Config.from_toml("[model.context]\nx = 1\n")
    with pytest.raises(UserError, match="model.context must be a table: got 'yarn'"):
        Config.from_toml("[model]\ncontext = 'yarn'\n")
    with pytest.raises(UserError, match="unknown setting 'model.context.x'"):
        ModelConfig.from_dict({"context": {"x": 1}})


def test_a_trained_run_goes_on_reads_and_writes_further(tmp_path, capsys):
    text, first, second = tmp_path / "a.txt", tmp_path / "first", tmp_path / "second"
    text.write_text("the cat sat on the mat. " * 100)
    given = ["--data", str(text), "--steps", "2", "--set", f"data.cache_dir={tmp_path / 'cache'}",
             "run.sample_tokens=2", "run.eval_every=-1", "data.val_fraction=0.1"]
    assert pretrain.main([*given, "model.n_layers=1", "model.d_model=16", "model.n_heads=2", "model.d_ff=16",
                          "model.max_seq_len=16", "--tokenizer", "bytes", "--seq-len", "16", "--batch-tokens", "64",
                          "--out", str(first)]) == 0
    context = ["--set", "model.context.kind=dca", "model.context.factor=4"]
    assert pretrain.main([*given, *context, "--init-from", str(first), "--seq-len", "64", "--batch-tokens", "128",
                          "--doc-mask", "--out", str(second)]) == 0
    longer = Config.load(second / "config.toml").model
    assert (longer.max_seq_len, longer.context) == (64, ContextConfig("dca", 4.0, 16))
    assert load_run(second).model.config == longer
    with pytest.raises(UserError, match="--resume cannot change model.max_seq_len from 16 to 64: .* --init-from"):
        pretrain.main(["--resume", "--out", str(first), "--steps", "4", *context])
    capsys.readouterr()
    assert evaluate.main([str(first), "--data", str(text), "--seq-len", "64", *context]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] > 2000
    with pytest.raises(UserError, match=r"--seq-len must be 1 to the model's max_seq_len \(16\): got 64"):
        evaluate.main([str(first), "--data", str(text), "--seq-len", "64"])
    assert generate.main([str(first), "--prompt", "the", "--tokens", "40", *context]) == 0
    assert len(capsys.readouterr().out) >= 3
    assert generate.main([str(first), "--set", "optim.lr=1"]) == 2
    assert "--set takes model.context." in capsys.readouterr().err


def test_settings_of_a_command_reach_the_model(tmp_path):
    run = written_run(tmp_path / "run")
    settings = ["model.context.kind=yarn", "model.context.factor=2"]
    assert load_run(run, settings=settings).config.context == ContextConfig("yarn", 2.0, 32)
    assert load_run(run).config.context.kind == "none"


def test_dual_chunks_are_not_trained_on_a_gpu(monkeypatch):
    config = preset("demo").with_values({"model.context.kind": "dca", "model.context.trained_length": 256})
    assert on_device(config).run.device == "cpu"
    monkeypatch.setattr(kernels, "gpu_memory", lambda: 1 << 34)
    with pytest.raises(UserError, match="model.context.kind dca is trained on a CPU: run.device must be cpu, got cuda"):
        on_device(config)
