"""The decoder against its PyTorch twin, and the rules of its configuration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models_samples import disturbed

from bench.peers.decoder import TorchDecoder
from engine import UserError, no_grad, random
from models.config import PRESETS, ModelConfig
from models.decoder import Decoder

LENGTH, VOCABULARY = 19, 37
SMALL = ModelConfig(vocab_size=VOCABULARY, n_layers=2, d_model=24, n_heads=4, d_ff=20, max_seq_len=24, dtype="float64")
VARIANTS = {
    "plain": {"qk_norm": False},
    "qk_norm": {},
    "grouped": {"n_kv_heads": 2},
    "one key head": {"n_kv_heads": 1, "rope_base": 100.0},
    "tied": {"tie_embeddings": True, "residual_init": "scaled"},
    "wide heads": {"head_dim": 10},
    "recompute": {"recompute": True, "n_kv_heads": 2},
}


def twin_of(model: Decoder) -> TorchDecoder:
    twin = TorchDecoder(model.config)
    twin.load_ours(model.state_dict())
    return twin


def drawn(rows: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids, targets with ignored ones, doc_start."""
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(0, VOCABULARY, (2, rows, LENGTH))
    targets[rng.random(targets.shape) < 0.2] = -100
    border = rng.random((rows, LENGTH)) < 0.15
    doc_start = np.maximum.accumulate(np.where(border, np.arange(LENGTH), 0), axis=1).astype(np.int32)
    return torch.from_numpy(ids), torch.from_numpy(targets), torch.from_numpy(doc_start)


def gradients(model: Decoder, ids, targets, doc_start=None) -> tuple[float, dict[str, torch.Tensor]]:
    for parameter in model.parameters():
        parameter.grad = None
    loss = model.loss(ids, targets, doc_start)
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def our_name(name: str) -> str:
    return name.replace("norm.weight", "norm.gain")


@pytest.mark.parametrize("masked", [False, True], ids=["one document", "documents"])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_loss_and_gradients_equal_the_torch_twin(changes, masked):
    model = disturbed(SMALL.with_(**changes))
    twin = twin_of(model)
    ids, targets, doc_start = drawn()
    doc_start = doc_start if masked else None
    loss, ours = gradients(model, ids, targets, doc_start)
    expected = twin.loss(ids, targets, doc_start)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    theirs = {our_name(name): parameter.grad for name, parameter in twin.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-13, msg=name)


def test_logits_equal_the_torch_twin_and_the_loss():
    model = disturbed(SMALL)
    ids, targets, doc_start = drawn()
    with no_grad():
        logits = model(ids, doc_start).data
        loss = model.loss(ids, targets, doc_start).item()
    torch.testing.assert_close(logits, twin_of(model)(ids, doc_start).detach())
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).item())


def test_a_document_does_not_see_the_one_before():
    model = disturbed(SMALL)
    ids, _, _ = drawn(rows=1)
    border = 7
    doc_start = torch.zeros((1, LENGTH), dtype=torch.int32)
    doc_start[:, border:] = border
    with no_grad():
        together = model(ids, doc_start).data[:, border:]
        other = ids.clone()
        other[:, :border] = (other[:, :border] + 1) % VOCABULARY
        assert torch.equal(together, model(other, doc_start).data[:, border:])
        alone = model(ids[:, border:]).data
    torch.testing.assert_close(together, alone)  # rotary positions are relative


def test_normalizer_makes_parts_sum_to_the_whole():
    model = disturbed(SMALL)
    ids, targets, _ = drawn(rows=4)
    loss, whole = gradients(model, ids, targets)
    count = int((targets != -100).sum())
    parts = 0.0
    for parameter in model.parameters():
        parameter.grad = None
    for rows in (slice(0, 1), slice(1, 4)):
        part = model.loss(ids[rows], targets[rows], normalizer=count)
        part.backward()
        parts += part.item()
    assert parts == pytest.approx(loss, rel=1e-12)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-9, atol=1e-13)


def test_recompute_with_dropout_changes_nothing():
    ids, targets, _ = drawn()
    results = []
    for recompute in (False, True):
        model = disturbed(SMALL.with_(dropout=0.3, recompute=recompute))
        random.set_seed(5)
        random.set_position(0)
        results.append(gradients(model, ids, targets))
    assert results[0][0] == results[1][0]
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, rtol=1e-12, atol=1e-15)


def test_dropout_acts_in_training_only():
    model = disturbed(SMALL.with_(dropout=0.3))
    ids, targets, _ = drawn()
    with no_grad():
        random.set_seed(1)
        dropped = model.loss(ids, targets).item()
        model.eval()
        plain = model.loss(ids, targets).item()
    assert dropped != plain
    assert plain == pytest.approx(twin_of(model).eval().loss(ids, targets).item(), rel=1e-12)


def test_parameter_count_equals_the_parameters():
    for changes in VARIANTS.values():
        config = SMALL.with_(**changes)
        assert sum(p.data.numel() for p in Decoder(config).parameters()) == config.n_parameters()


def test_preset_sizes():
    assert PRESETS["base-0.18b"].n_parameters() == 185_632_512
    assert PRESETS["shakespeare"].n_parameters() == 813_440
    for name in ("demo", "shakespeare"):
        twin = TorchDecoder(PRESETS[name])
        assert sum(p.numel() for p in twin.parameters()) == PRESETS[name].n_parameters()


def test_the_seed_decides_the_weights():
    first, same, other = (Decoder(SMALL, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["layers.0.attention.qkv.weight"], other["layers.0.attention.qkv.weight"])


def test_initial_predictions_are_near_uniform():
    ids, targets, _ = drawn()
    for changes in VARIANTS.values():
        model = Decoder(SMALL.with_(**changes))
        assert model.loss(ids, targets).item() == pytest.approx(np.log(VOCABULARY), rel=0.05)


def test_decay_leaves_out_gains_and_embeddings():
    model = Decoder(SMALL)
    decayed = {name for name, parameter in model.named_parameters() if parameter.decay}
    assert "embedding.weight" not in decayed
    assert not any(name.endswith("gain") for name in decayed)
    assert {"head.weight", "layers.1.feed_forward.down.weight"} <= decayed


@pytest.mark.parametrize("changes, message", [
    ({"d_model": 10}, "multiple of n_heads"),
    ({"n_kv_heads": 3}, "multiple of n_kv_heads: got 4 and 3"),
    ({"head_dim": 5}, "head_dim must be even"),
    ({"n_layers": 0}, "n_layers must be at least 1: got 0"),
    ({"n_layers": 2.5}, "n_layers must be int: got 2.5"),
    ({"qk_norm": 1}, "qk_norm must be bool: got 1"),
    ({"dropout": 1.0}, r"dropout must be in \[0, 1\): got 1.0"),
    ({"dropout": float("nan")}, "dropout"),
    ({"dtype": "float16"}, "dtype must be one of float32, float64: got 'float16'"),
    ({"residual_init": "one"}, "residual_init must be one of"),
    ({"attention": "jerry", "position": "jerry"}, "qk_norm must be false where attention is jerry: got true"),
    ({"attention": "linear"}, "attention must be one of grouped_query, jerry: got 'linear'"),
    ({"feed_forward": "gelu"}, "feed_forward must be one of swiglu, relu, moe: got 'gelu'"),
])
def test_bad_configs_name_rule_and_value(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        Decoder(SMALL.with_(**changes))
    assert "\n" not in str(caught.value)


def test_unknown_setting():
    with pytest.raises(UserError, match="unknown model setting 'layers'"):
        ModelConfig.from_dict({"layers": 3})


def test_with_derives_head_dim_again():
    assert SMALL.with_(d_model=48).head_dim == 12
    assert SMALL.with_(head_dim=10).with_(d_model=48).head_dim == 10


@pytest.mark.parametrize("shape", [(1, 25), (1, 0), (5,)])
def test_ids_of_a_wrong_shape(shape):
    with pytest.raises(UserError, match="max_seq_len 24"):
        Decoder(SMALL)(torch.zeros(shape, dtype=torch.int64))
