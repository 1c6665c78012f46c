"""Every kind of position, and the seed system's parts, in the decoder: against plain PyTorch, packed, and cached."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from models_samples import disturbed
from test_models import gradients

from bench.peers.jerry import TorchJerry
from engine import UserError, no_grad
from models.cache import KVCache
from models.config import JERRY, PRESETS, ModelConfig
from models.decoder import Decoder
from models.decoding import next_logits
from models.generate import generate_ids
from models.sampling import Sampling

LENGTH, VOCABULARY, BORDERS = 19, 37, (5, 12)
SMALL = ModelConfig(vocab_size=VOCABULARY, n_layers=2, d_model=24, n_heads=4, d_ff=20, max_seq_len=24, dtype="float64")
POSITIONS = {
    "rope": {},
    "partial rope": {"rope_fraction": 0.5},
    "jerry": {"position": "jerry"},
    "alibi": {"position": "alibi"},
    "sinusoidal": {"position": "sinusoidal"},
    "learned": {"position": "learned"},
    "none": {"position": "none"},
    "alibi, three heads": {"position": "alibi", "n_heads": 3},
    "jerry, grouped": {"position": "jerry", "n_kv_heads": 2, "qk_norm": False},
}
TALKING = {"attention": "jerry", "position": "jerry", "qk_norm": False}
PARTS = {
    "jerry's attention": TALKING,
    "heads not mixed": {**TALKING, "head_mixing": False},
    "post-norm": {"block": "post_norm"},
    "post-norm, none at the end": {"block": "post_norm", "final_norm": False, "residual_init": "scaled"},
    "relu": {"feed_forward": "relu"},
    "affine": {"parametrisation": "affine", "tie_embeddings": True},
    "affine positions": {"parametrisation": "affine", "position": "jerry"},
    "xavier": {"initialisation": "xavier"},
    "all": JERRY,
    "all, heads not mixed": {**JERRY, "head_mixing": False},
    "all, recomputed": {**JERRY, "dropout": 0.0, "recompute": True},
}
VARIANTS = {**POSITIONS, **PARTS}
every_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


def drawn_model(changes: dict) -> Decoder:
    """No weight is zero or one; scalars stay near their initial values, so that a reach is never negative."""
    model = disturbed(SMALL.with_(**changes))
    rng = np.random.default_rng(7)
    for module in model.modules():
        for name, value in getattr(module, "initial", {}).items():
            noise = rng.standard_normal((2, *getattr(module, name).shape))
            getattr(module, name).data.copy_(torch.from_numpy(value * (1 + 0.2 * noise[0]) + 0.003 * noise[1]))
    return model.train(not model.config.dropout)


def drawn_rows(rows: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids, targets with ignored ones, doc_start of three documents in each row."""
    rng = np.random.default_rng(0)
    ids, targets = rng.integers(0, VOCABULARY, (2, rows, LENGTH))
    targets[rng.random(targets.shape) < 0.2] = -100
    starts = np.searchsorted(BORDERS, np.arange(LENGTH), side="right")
    doc_start = np.tile(np.array([0, *BORDERS], dtype=np.int32)[starts], (rows, 1))
    return torch.from_numpy(ids), torch.from_numpy(targets), torch.from_numpy(doc_start)


def logits_of(model: Decoder, ids: torch.Tensor, doc_start: torch.Tensor | None = None) -> torch.Tensor:
    with no_grad():
        return model(ids, doc_start).data


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
@every_variant
def test_loss_and_gradients_equal_the_torch_twin(changes, packed):
    model = drawn_model(changes)
    twin = TorchJerry(model.config).train(model.training)
    twin.load_ours(model.state_dict())
    ids, targets, doc_start = drawn_rows()
    doc_start = doc_start if packed else None
    loss, ours = gradients(model, ids, targets, doc_start)
    expected = twin.loss(ids, targets, doc_start)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    theirs = {name: parameter.grad for name, parameter in twin.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-12, msg=name)


@every_variant
def test_a_document_packed_with_others_has_the_logits_it_has_alone(changes):
    model = drawn_model(changes)
    ids, _, doc_start = drawn_rows()
    together = logits_of(model, ids, doc_start)
    for start, stop in zip((0, *BORDERS), (*BORDERS, LENGTH)):
        alone = logits_of(model, ids[:, start:stop])
        torch.testing.assert_close(together[:, start:stop], alone, rtol=1e-10, atol=1e-12)


@every_variant
def test_shorter_rows_have_the_logits_of_the_longer_ones(changes):
    model = drawn_model(changes)
    ids, _, _ = drawn_rows()
    whole = logits_of(model, ids)
    for length in (1, 8, 18):
        torch.testing.assert_close(logits_of(model, ids[:, :length]), whole[:, :length], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("changes", POSITIONS.values(), ids=POSITIONS.keys())
def test_positions_tell_an_order_apart(changes):
    model = drawn_model(changes)
    ids, _, _ = drawn_rows(rows=1)
    turned = torch.cat([ids[:, :-1].flip(1), ids[:, -1:]], dim=1)
    one_layer = Decoder(model.config.with_(n_layers=1), seed=None)
    state = model.state_dict()
    one_layer.load_state_dict({name: state[name] for name in one_layer.state_dict()})
    apart = (logits_of(one_layer, ids) - logits_of(one_layer, turned))[:, -1].abs().max()
    assert apart < 1e-12 if changes.get("position") == "none" else apart > 1e-4


@every_variant
def test_steps_of_any_size_give_the_logits_of_one_pass(changes):
    model = drawn_model(changes).eval()
    ids = np.random.default_rng(0).integers(0, VOCABULARY, 16)
    cache = KVCache(model.config)
    for start, stop in ((0, 5), (5, 6), (6, 13), (13, 16)):
        logits = model.step(ids[start:stop], cache)
        np.testing.assert_allclose(logits, next_logits(model, ids[:stop]), rtol=1e-9, atol=1e-11)


@every_variant
def test_cache_changes_no_greedy_id(changes):
    model = drawn_model({**changes, "max_seq_len": 12})
    ids, greedy = [3, 14, 15], Sampling(temperature=0.0)
    cached = list(generate_ids(model, ids, 16, greedy))
    assert cached == list(generate_ids(model, ids, 16, greedy, cache="none"))


@every_variant
def test_parameter_count_equals_the_parameters(changes):
    config = SMALL.with_(**changes)
    assert sum(parameter.data.numel() for parameter in Decoder(config, None).parameters()) == config.n_parameters()


def test_the_seed_system_has_as_many_parameters_as_it_had():
    assert PRESETS["jerry-0.18b"].n_parameters() == 186_016_324


def test_xavier_draws_each_matrix_by_its_own_shape():
    model = Decoder(SMALL.with_(initialisation="xavier", d_model=48, n_heads=4, n_kv_heads=2, d_ff=40), seed=3)
    state, width, head_dim = model.state_dict(), 48, 12
    q, k, v = state["layers.0.attention.qkv.weight"].split((4 * head_dim, 2 * head_dim, 2 * head_dim))
    gate, up = state["layers.1.feed_forward.gate_up.weight"].split(40)
    whole = [state[f"layers.0.{name}.weight"] for name in ("attention.out", "feed_forward.down")]
    for matrix in (q, k, v, gate, up, *whole, state["embedding.weight"], state["head.weight"]):
        bound = math.sqrt(6 / sum(matrix.shape))
        assert 0.97 * bound < matrix.abs().max() <= bound
    assert state["layers.0.attention.qkv.weight"].shape == (8 * head_dim, width)


def test_scalars_start_as_the_seed_system_has_them():
    model = Decoder(SMALL.with_(**JERRY))
    state = model.state_dict()
    for name, value in (("embedding_affine", math.sqrt(24) / 100), ("layers.0.attention.qkv_affine", 0.01),
                        ("layers.1.attention.position.reach", 0.1), ("layers.1.attention.position.offset", 1.0)):
        assert np.allclose(state[f"{name}.weight"], value) and not state[f"{name}.bias"].any()


@pytest.mark.parametrize("changes", [PARTS["relu"], PARTS["all"]], ids=["relu", "all"])
def test_every_matrix_of_the_relu_part_learns(changes):
    ids, targets, _ = drawn_rows()
    model = Decoder(SMALL.with_(**changes, residual_init="zero"))
    model.layers[0].attention.out.weight.data.fill_(0.01)
    _, found = gradients(model, ids, targets)
    for name in ("up.weight", "down.weight"):
        assert found[f"layers.0.feed_forward.{name}"].abs().max() > 0


def test_learned_positions_end_with_their_table():
    model = drawn_model(POSITIONS["learned"])
    assert model.state_dict()["position.weight"].shape == (24, 24)
    with pytest.raises(UserError, match="max_seq_len 24"):
        model(torch.zeros((1, 25), dtype=torch.int64))


@pytest.mark.parametrize("changes, message", [
    ({"position": "spiral"}, "model.position must be one of rope, jerry, alibi"),
    ({"block": "sandwich"}, "model.block must be one of pre_norm, post_norm: got 'sandwich'"),
    ({"parametrisation": "log"}, "model.parametrisation must be one of plain, affine: got 'log'"),
    ({"initialisation": "he"}, "model.initialisation must be one of normal, xavier: got 'he'"),
    ({"rope_fraction": 0.1}, "model.rope_fraction must be above 0 and at most 1, and leave a pair .*: got 0.1"),
    ({"attention": "jerry"}, "model.position must be jerry where attention is jerry: got 'rope'"),
    ({**TALKING, "n_kv_heads": 2}, "model.n_kv_heads must be n_heads where attention is jerry: got 2 and 4"),
])
def test_bad_configs_name_rule_and_value(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        Decoder(SMALL.with_(**changes))
    assert "\n" not in str(caught.value)
