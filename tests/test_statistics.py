"""Statistics: each against its definition in NumPy or torch on a tiny model."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench.peers.decoder import TorchDecoder
from bench.peers.jerry import TorchJerry
from engine import no_grad
from models.config import ModelConfig
from models.decoder import Decoder
from train.data import Batch
from train.errors import UserError
from train.loop import next_token_loss
from train.optim import AdamW
from train.optim.router import group_of
from train.statistics import NAMES, Statistics

TINY = ModelConfig(n_layers=2, d_model=16, n_heads=4, n_kv_heads=2, d_ff=24, max_seq_len=12, vocab_size=40,
                   dtype="float64", residual_init="scaled")


def some_batch(seed=0, rows=6, length=12, documents=False):
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(0, 40, (2, rows, length))
    targets[rng.random((rows, length)) < 0.3] = -100
    valid = (targets != -100).sum(axis=1)
    doc_start = None
    if documents:
        begins = np.where(rng.random((rows, length)) < 0.3, np.arange(length), 0)
        doc_start = np.maximum.accumulate(begins, axis=1).astype(np.int32)
    return Batch(ids, targets, doc_start, 0, int(valid.sum()), int(valid.sum()), valid)


def loud_model(config=TINY):
    """With weights large enough for attention that is not uniform."""
    model = Decoder(config, seed=1)
    rng = np.random.default_rng(5)
    for parameter in model.parameters():
        noise = torch.from_numpy(rng.normal(0, 0.3, tuple(parameter.shape))).to(parameter.dtype)
        parameter.data = parameter.data + noise
    return model


def test_accuracy_and_confidence_are_those_of_torch_softmax():
    model, batches = loud_model(), [some_batch(0), some_batch(1, rows=2)]
    with no_grad():
        batches[0].targets[0] = model(torch.from_numpy(batches[0].ids)).data[0].argmax(-1)
    found = Statistics(["accuracy", "confidence"], model, None).at_evaluation(iter(batches))
    hits, probabilities = [], []
    for batch in batches:
        with no_grad():
            logits = model(torch.from_numpy(batch.ids)).data
        targets = torch.from_numpy(batch.targets)
        counts = targets != -100
        hits.append((logits.argmax(-1) == targets)[counts])
        probabilities.append(torch.softmax(logits, -1)[counts].gather(1, targets[counts][:, None]))
    assert found == {"accuracy": pytest.approx(float(torch.cat(hits).double().mean()), abs=1e-12),
                     "confidence": pytest.approx(float(torch.cat(probabilities).mean()), rel=1e-9)}
    assert 0 < found["accuracy"] < 1


def test_logits_are_made_a_chunk_at_a_time(monkeypatch):
    model, batch = loud_model(), some_batch()
    whole = Statistics(["accuracy", "confidence"], model, None).at_evaluation([batch])
    monkeypatch.setattr("train.statistics.LOGITS_ELEMENTS", 40 * 7)
    assert Statistics(["accuracy", "confidence"], model, None).at_evaluation([batch]) == pytest.approx(whole)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_entropy_is_that_of_the_peers_weights(documents, qk_norm, monkeypatch):
    model, batch = loud_model(TINY.with_(qk_norm=qk_norm)), some_batch(documents=documents)
    found = Statistics(["attention_entropy"], model, None).at_evaluation([batch])["attention_entropy"]
    peer = TorchDecoder.from_config(model.config).double()
    peer.load_ours(model.state_dict())
    expected = peer_entropies(peer, batch, monkeypatch)
    assert list(found) == ["layers.0", "layers.1"]
    assert list(found.values()) == pytest.approx(expected, rel=1e-6)
    assert all(0.1 < entropy < math.log(12) for entropy in found.values())


def peer_entropies(peer, batch, monkeypatch):
    entropies = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(q, k, v, attn_mask=None, is_causal=False, enable_gqa=False, **options):
        k_all = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        scores = q @ k_all.transpose(-1, -2) / math.sqrt(q.shape[-1])
        tokens = q.shape[2]
        mask = torch.ones(tokens, tokens, dtype=torch.bool).tril() if attn_mask is None else attn_mask
        p = torch.softmax(scores.masked_fill(~mask, -math.inf), -1)
        entropies.append(float(-torch.special.xlogy(p, p).sum(-1).mean()))
        return attend(q, k, v, attn_mask=attn_mask, is_causal=is_causal, enable_gqa=enable_gqa, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    ids = torch.from_numpy(batch.ids)
    starts = None if batch.doc_start is None else torch.from_numpy(batch.doc_start)
    with torch.no_grad():
        peer(ids) if starts is None else peer(ids, starts)
    return entropies


JERRY_ATTENTION = {"attention": "jerry", "position": "jerry", "qk_norm": False, "n_kv_heads": 4}


@pytest.mark.parametrize("changes", [{"position": "alibi"}, {"position": "jerry"}, JERRY_ATTENTION,
                                     {**JERRY_ATTENTION, "head_mixing": False}],
                         ids=["alibi", "jerry", "mixed", "apart"])
def test_attention_entropy_with_positions_and_mixed_heads(changes, monkeypatch):
    model, batch = loud_model(TINY.with_(**changes)), some_batch(documents=True)
    softmax, expected = torch.Tensor.softmax, []

    def watched(scores, dim):
        p = softmax(scores, dim)
        expected.append(float(-torch.special.xlogy(p, p).sum(-1).mean()))
        return p

    found = Statistics(["attention_entropy"], model, None).at_evaluation([batch])["attention_entropy"]
    twin = TorchJerry(model.config).double()
    twin.load_ours(model.state_dict())
    monkeypatch.setattr(torch.Tensor, "softmax", watched)
    with torch.no_grad():
        twin(torch.from_numpy(batch.ids), torch.from_numpy(batch.doc_start))
    assert list(found.values()) == pytest.approx(expected, rel=1e-6)


def test_entropy_reads_one_batch_and_no_more():
    def batches():
        yield some_batch()
        raise AssertionError("a second batch was read")

    assert Statistics(["attention_entropy"], loud_model(), None).at_evaluation(batches())
    assert Statistics([], None, None).at_evaluation(batches()) == {}


def test_an_evaluation_leaves_the_model_in_training():
    model = loud_model(TINY.with_(dropout=0.5))
    first = Statistics(list(NAMES), model, None).at_evaluation([some_batch()])
    assert model.training and first == Statistics(list(NAMES), model, None).at_evaluation([some_batch()])


def steps(statistics, optimizer, model, batches, micro_rows):
    for batch in batches:
        statistics.before_update()
        optimizer.arena.zero_grad()
        for micro in batch.split(micro_rows):
            next_token_loss(model, micro, batch.predicted).backward()
            statistics.after_micro(micro.predicted)
        optimizer.measure()
        optimizer.step(1e-3)
        statistics.after_update(batch.predicted)


def gradient_square(model, batch):
    for parameter in model.parameters():
        parameter.grad = None
    next_token_loss(model, batch, batch.predicted).backward()
    return sum(float((p.grad**2).sum()) for p in model.parameters())


def test_noise_scale_follows_its_formula():
    batches, gradient, variance = [some_batch(seed) for seed in range(4)], 0.0, 0.0
    model, shadow = loud_model(), loud_model()
    optimizer = AdamW(model)
    statistics = Statistics(["noise_scale"], model, optimizer)
    for batch in batches:
        for name, own in shadow.named_parameters():
            own.data = optimizer.arena.parameters[name].data.clone()
        small = batch.split(2)[0]
        b, whole = small.predicted, batch.predicted
        low, high = gradient_square(shadow, small), gradient_square(shadow, batch)
        gradient = 0.99 * gradient + 0.01 * (whole * high - b * low) / (whole - b)
        variance = 0.99 * variance + 0.01 * (low - high) / (1 / b - 1 / whole)
        steps(statistics, optimizer, model, [batch], 2)
    assert statistics.state() == {"gradient": pytest.approx(gradient), "variance": pytest.approx(variance)}
    assert statistics.row() == ({"noise_scale": pytest.approx(variance / gradient)} if gradient > 0 else {})
    again = Statistics(["noise_scale"], model, optimizer)
    again.load_state(statistics.state())
    assert again.row() == statistics.row()


def test_the_estimates_of_noise_are_unbiased():
    rng = np.random.default_rng(0)
    gradient, spread, b, whole = rng.normal(0, 0.2, 50), 3.0, 8, 64
    statistics = Statistics(["noise_scale"], None, None)
    for _ in range(3000):
        samples = gradient + rng.normal(0, spread, (whole, 50))
        small, big = samples[:b].mean(axis=0), samples.mean(axis=0)
        statistics._add_noise(small @ small, big @ big, b, whole)
    assert statistics.row()["noise_scale"] == pytest.approx(50 * spread**2 / (gradient @ gradient), rel=0.35)


def test_one_micro_batch_says_nothing_about_noise():
    optimizer = AdamW(model := loud_model())
    statistics = Statistics(["noise_scale"], model, optimizer)
    steps(statistics, optimizer, model, [some_batch()], 6)
    assert statistics.row() == {} and statistics.state() == {"gradient": 0.0, "variance": 0.0}


def test_update_ratio_of_logged_steps_by_group():
    optimizer = AdamW(model := loud_model())
    statistics = Statistics(["update_ratio"], model, optimizer)
    steps(statistics, optimizer, model, [some_batch(0)], 6)
    assert statistics.row() == {}
    statistics.due, before = True, {name: p.data.clone() for name, p in model.named_parameters()}
    steps(statistics, optimizer, model, [some_batch(1)], 6)
    expected = {}
    for group in {group_of(name) for name in before}:
        names = [name for name in before if group_of(name) == group]
        after = torch.cat([optimizer.arena.parameters[name].data.flatten() for name in names])
        old = torch.cat([before[name].flatten() for name in names])
        expected[group] = pytest.approx(float((after - old).norm() / old.norm()), rel=1e-9)
    assert statistics.row() == {"update_ratio": expected}
    assert set(expected) == {"embedding", "head", "norm", "layers.0", "layers.1"}
    statistics.due = False
    steps(statistics, optimizer, model, [some_batch(2)], 6)
    assert statistics.row() == {}


def test_nothing_is_measured_unless_it_is_named():
    statistics = Statistics([], None, SimpleNamespace())
    statistics.due = True
    statistics.before_update()
    statistics.after_micro(3)
    statistics.after_update(9)
    assert not statistics.wants_micro_norm and statistics.row() == {}


def test_an_unknown_name_lists_the_known():
    with pytest.raises(UserError, match="run.statistics must be among accuracy.*got 'acuracy'"):
        Statistics(["acuracy"], None, None)
