"""The mixture of experts: the layer against a loop over experts in float64, and models that are made of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_samples import disturbed
from torch.nn import functional as F

from engine import Arena, Tensor, UserError, no_grad, random
from engine.precision import precision
from models.cache import KVCache
from models.config import PRESETS, ModelConfig
from models.decoder import Decoder
from models.decoding import next_logits
from models.experts import MixtureOfExperts
from models.experts_config import ExpertsConfig
from models.generate import generate_ids
from models.sampling import Sampling
from train.optim import Muon
from train.presets import preset
from train.rules import check

VOCABULARY = 41
EXPERTS = ExpertsConfig(n=5, top_k=2, width=7)
CONFIG = ModelConfig(vocab_size=VOCABULARY, n_layers=2, d_model=16, n_heads=2, d_ff=12, max_seq_len=16, dtype="float64",
                     residual_init="scaled", feed_forward="moe", experts=EXPERTS)
VARIANTS = {
    "plain": {},
    "raw gates": {"normalised": False, "temperature": 0.7},
    "sigmoid": {"score": "sigmoid", "shared": 2},
    "raw sigmoid": {"score": "sigmoid", "normalised": False, "top_k": 5},
    "biased": {"score": "sigmoid", "bias_rate": 0.1},
    "one of many": {"n": 11, "top_k": 1, "normalised": False, "shared": 1, "bias_rate": 0.1},
    "chain": {"chain": 3, "shared": 1},
    "chain with the stream": {"chain": 2, "outer_residual": True, "bias_rate": 0.1},
    "only one": {"n": 1, "top_k": 1},
}


def configured(changes: dict, **others) -> ModelConfig:
    return CONFIG.with_(experts=dataclasses.replace(EXPERTS, **changes), **others)


def loop(t: dict[str, torch.Tensor], x: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """The layer as written by hand; `t` are its tensors."""
    s = config.experts

    def swiglu(h, gate_up, down):
        gate, up = (h @ gate_up.T).chunk(2, -1)
        return (F.silu(gate) * up) @ down.T

    h = x if "norm.gain" not in t else F.rms_norm(x, x.shape[-1:], t["norm.gain"], config.norm_eps)
    for step in range(s.chain):
        logits = h @ t[f"routers.{step}.weight"].T / s.temperature
        scores = logits.softmax(-1) if s.score == "softmax" else logits.sigmoid()
        chosen = (scores + t.get(f"routers.{step}.bias", torch.zeros(s.n))).topk(s.top_k, -1).indices
        gates = scores.gather(-1, chosen)
        gates = gates / gates.sum(-1, keepdim=True) if s.normalised else gates
        total = torch.zeros_like(h)
        for place in np.ndindex(*h.shape[:-1]):
            for choice in range(s.top_k):
                expert = int(chosen[place][choice])
                add = gates[place][choice] * swiglu(h[place], t["gate_up"][expert], t["down"][expert])
                total = total.index_put(tuple(torch.tensor([n]) for n in place), add[None], accumulate=True)
        if s.shared:
            total = total + swiglu(h, t["shared_gate_up.weight"], t["shared_down.weight"])
        h = total + (h if s.chain > 1 else 0)
    return h if s.chain > 1 and not s.outer_residual else x + h


def part_of(config: ModelConfig, seed: int = 0) -> MixtureOfExperts:
    """A layer none of whose tensors is zero."""
    part, rng = MixtureOfExperts(config), np.random.default_rng(seed)
    for _, tensor in (*part.named_parameters(), *part.named_buffers()):
        tensor.data = torch.from_numpy(rng.standard_normal(tensor.shape) * 0.4)
    return part


def check_against_loop(part: MixtureOfExperts, x: torch.Tensor) -> None:
    theirs = {name: value.clone().requires_grad_() for name, value in part.state_dict().items()}
    inner, ours = x.clone().requires_grad_(), Tensor(x.clone(), requires_grad=True)
    expected = loop(theirs, inner, part.config)
    direction = torch.from_numpy(np.random.default_rng(9).standard_normal(x.shape))
    (expected * direction).sum().backward()
    y = part(ours)
    y.backward(direction)
    torch.testing.assert_close(y.data, expected.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.grad, inner.grad, rtol=1e-9, atol=1e-10)
    for name, parameter in part.named_parameters():
        gradient = theirs[name].grad
        torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter.data) if gradient is None else gradient,
                                   rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize("name", VARIANTS)
@given(rows=st.integers(1, 3), tokens=st.integers(1, 6), seed=st.integers(0, 100))
@settings(max_examples=4, deadline=None)
def test_the_layer_is_the_loop_over_experts(name, rows, tokens, seed):
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, tokens, 16)))
    check_against_loop(part_of(configured(VARIANTS[name]), seed), x)


@pytest.mark.parametrize("tokens", [1, 9])
def test_all_tokens_to_the_same_experts(tokens):
    part = part_of(configured({"top_k": 1, "normalised": False}))
    part.routers[0].weight.data[:] = torch.arange(5.0)[:, None] * part.norm.gain.data.sign()
    x = torch.from_numpy(np.random.default_rng(1).random((1, tokens, 16)) + 0.1)
    assert set(part.routers[0](part.norm(Tensor(x))).experts.data.flatten().tolist()) == {4}
    check_against_loop(part, x)
    assert (part.gate_up.grad[:4] == 0).all() and (part.down.grad[:4] == 0).all()
    assert (part.gate_up.grad[4] != 0).any()


def test_behind_the_norm_of_another_block():
    part = part_of(configured({"shared": 1}, block="post_norm"))
    assert part.norm is None
    check_against_loop(part, torch.from_numpy(np.random.default_rng(2).standard_normal((2, 4, 16))))


@pytest.mark.parametrize("name", VARIANTS)
def test_steps_of_any_size_give_the_logits_of_one_pass(name):
    model = disturbed(configured(VARIANTS[name])).eval()
    for _, bias in model.named_buffers():
        bias.data.copy_(torch.linspace(-0.3, 0.3, len(bias)))
    ids = np.random.default_rng(0).integers(0, VOCABULARY, 12)
    cache = KVCache(model.config)
    for start, stop in ((0, 5), (5, 6), (6, 12)):
        np.testing.assert_allclose(model.step(ids[start:stop], cache), next_logits(model, ids[:stop]), rtol=1e-9,
                                   atol=1e-12)


@pytest.mark.parametrize("changes, others", [({"sampled": True}, {"dropout": 0.3}), ({"chain": 2}, {}),
                                             ({"first_dense": 1}, {"block": "post_norm"})])
def test_cache_changes_no_greedy_id(changes, others):
    model = disturbed(configured(changes, **others))
    cached = list(generate_ids(model, [1, 2, 3], 20, Sampling(temperature=0.0)))
    assert cached == list(generate_ids(model, [1, 2, 3], 20, Sampling(temperature=0.0), cache="none"))
    assert len(set(cached)) > 1


def drawn(rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    ids, targets = np.random.default_rng(3).integers(0, VOCABULARY, (2, rows, 11))
    targets[:, :2] = -100
    return torch.from_numpy(ids), torch.from_numpy(targets)


@pytest.mark.parametrize("changes", [{"balance": "sequence", "z_loss": 0.1, "shared": 1},
                                     {"sampled": True, "chain": 2}])
def test_recompute_changes_nothing(changes):
    results = []
    for recompute in (False, True):
        model = disturbed(configured(changes, dropout=0.3, recompute=recompute))
        random.set_seed(5)
        model.balance.begin_step(1)
        loss = model.loss(*drawn())
        loss.backward()
        model.balance.end_step()
        results.append((loss.item(), model.balance.row(), {n: p.grad for n, p in model.named_parameters()}))
    (loss, row, gradients), (again, row_again, gradients_again) = results
    assert loss == again and row == row_again and sum(row["load"][0]) == 27 * 2 * model.config.experts.chain
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_again[name], gradient, rtol=1e-12, atol=1e-15, msg=name)


def test_dropout_is_of_what_is_added_to_the_stream():
    part = part_of(configured({"shared": 1}, dropout=0.5))
    x = Tensor(torch.from_numpy(np.random.default_rng(4).standard_normal((2, 8, 16))))
    random.set_seed(0)
    with no_grad():
        dropped = (part(x) - x).data
        part.eval()
        whole = (part(x) - x).data
    assert 0.3 < (dropped == 0).double().mean() < 0.7
    torch.testing.assert_close(dropped[dropped != 0], 2 * whole[dropped != 0])


def test_drawn_experts_follow_the_probabilities_and_not_the_cut():
    part = part_of(configured({"sampled": True, "top_k": 1, "temperature": 2.0}))
    router, h = part.routers[0], Tensor(torch.from_numpy(np.random.default_rng(5).standard_normal((1, 1, 16))))
    many = Tensor(h.data.expand(1, 5000, 16).contiguous())
    random.set_seed(1)
    chosen = router(many)
    share = torch.bincount(chosen.experts.data.flatten(), minlength=5) / 5000
    torch.testing.assert_close(share.double(), chosen.scores.data[0, 0], atol=0.03, rtol=0)
    random.set_position(1200)
    later = router(Tensor(many.data[:, 1200:1300])).experts.data
    assert torch.equal(later, chosen.experts.data[:, 1200:1300])
    router.eval()
    assert len(router(many).experts.data.unique()) == 1


@pytest.mark.parametrize("first_dense, every, layers", [(0, 1, "mmmmm"), (2, 1, "ssmmm"), (0, 2, "smsms"),
                                                        (1, 3, "sssms")])
def test_which_layers_have_experts(first_dense, every, layers):
    config = configured({"first_dense": first_dense, "every": every, "shared": 1, "chain": 2}, n_layers=5)
    model = Decoder(config)
    kinds = "".join("m" if isinstance(layer.feed_forward, MixtureOfExperts) else "s" for layer in model.layers)
    assert kinds == layers
    assert sum(parameter.data.numel() for parameter in model.parameters()) == config.n_parameters()
    assert len(model.balance.routers) == 2 * layers.count("m")


def test_active_parameters():
    config = configured({"shared": 1})
    expert = 3 * 16 * 7
    assert config.n_parameters() - config.n_parameters(active=True) == 2 * (5 - 2) * expert
    chained = configured({"chain": 4})
    assert chained.n_parameters() == chained.n_parameters(active=True)
    dense = CONFIG.with_(feed_forward="swiglu")
    assert dense.n_parameters() == dense.n_parameters(active=True) and Decoder(dense).balance is None


def test_presets():
    small, large = PRESETS["moe-demo"], PRESETS["moe-0.18b"]
    assert large.n_parameters(active=True) == pytest.approx(PRESETS["base-0.18b"].n_parameters(), rel=0.01)
    assert large.n_parameters() >= 500_000_000
    assert small.n_parameters(active=True) == pytest.approx(PRESETS["demo"].n_parameters(), rel=0.01)
    for name in ("moe-demo", "moe-0.18b"):
        check(preset(name))


def test_muon_takes_each_experts_matrices_and_leaves_the_router():
    model = Decoder(configured({"shared": 2, "bias_rate": 0.1}))
    routes = {route.parameter: route for route in Muon(model).routing()}
    prefix = "layers.0.feed_forward."
    assert routes[prefix + "gate_up"].pieces == ((7, 16),) * 10
    assert routes[prefix + "down"].pieces == ((16, 7),) * 5
    assert routes[prefix + "shared_gate_up.weight"].pieces == ((14, 16),) * 2
    assert routes[prefix + "routers.0.weight"].group == "adamw" and not routes[prefix + "routers.0.weight"].pieces
    assert routes[prefix + "routers.0.weight"].weight_decay > 0
    assert not any(name.endswith("bias") for name in routes)


def test_muon_moves_an_expert_as_if_it_were_alone():
    def moved(experts: slice) -> torch.Tensor:
        part = MixtureOfExperts(configured({"n": 5 if experts == slice(None) else 1, "top_k": 1}))
        optimizer = Muon(part)
        for name, parameter in part.named_parameters():
            if name in ("gate_up", "down"):
                rng = np.random.default_rng(len(name))
                for target in (parameter.data, parameter.grad):
                    target.copy_(torch.from_numpy(rng.standard_normal((5, *parameter.shape[1:])))[experts])
        optimizer.measure()
        optimizer.step(0.1)
        return part.gate_up.data

    together = moved(slice(None))
    for expert in (0, 3):
        torch.testing.assert_close(moved(slice(expert, expert + 1))[0], together[expert])


def test_the_router_keeps_every_digit():
    def rounded(values: torch.Tensor) -> bool:
        return torch.equal(values, values.to(torch.bfloat16).to(values.dtype))

    model = disturbed(configured({}, dtype="float32"))
    arena = Arena(model.named_parameters(), working=torch.float32)
    with precision("bf16-emulated", "cpu").active():
        for parameter in model.parameters():
            parameter.refresh()
        part = model.layers[0].feed_forward
        assert rounded(part.gate_up.data) and not rounded(part.routers[0].weight.data)
        assert part.routers[0].weight.data.data_ptr() == arena.parameters[
            "layers.0.feed_forward.routers.0.weight"].data.data_ptr()
        h = part.norm(Tensor(torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0)), requires_grad=True))
        routing = part.routers[0](h)
        assert rounded(h.data) and not rounded(routing.logits.data) and not rounded(routing.gates.data)
        model.loss(*drawn()).backward()
    gradient = arena.parameters["layers.0.feed_forward.routers.0.weight"].grad
    assert gradient.abs().max() > 0 and not rounded(gradient)


def test_xavier_draws_every_experts_matrix():
    model = Decoder(configured({"shared": 1}, initialisation="xavier"))
    part = model.layers[1].feed_forward
    for values, fans in ((part.gate_up.data, 7 + 16), (part.down.data, 7 + 16), (part.routers[0].weight.data, 5 + 16)):
        assert (6 / fans) ** 0.5 * 0.7 < values.abs().max() <= (6 / fans) ** 0.5


@pytest.mark.parametrize("changes, message", [
    ({"n": 0}, "model.experts.n must be at least 1: got 0"),
    ({"top_k": 6}, r"model.experts.top_k must be at most model.experts.n \(5\): got 6"),
    ({"top_k": 0}, "model.experts.top_k must be at least 1: got 0"),
    ({"score": "relu"}, "model.experts.score must be one of softmax, sigmoid: got 'relu'"),
    ({"temperature": 0.0}, "model.experts.temperature must be a finite number above 0: got 0.0"),
    ({"bias_rate": -1.0}, "model.experts.bias_rate must be a finite number from 0 on: got -1.0"),
    ({"balance_weight": float("nan")}, "model.experts.balance_weight must be a finite number from 0 on: got nan"),
    ({"sampled": 1}, "model.experts.sampled must be bool: got 1"),
    ({"every": True}, "model.experts.every must be int: got True"),
    ({"balance": "all"}, "model.experts.balance must be one of none, micro, global, sequence: got 'all'"),
])
def test_bad_settings_name_rule_and_value(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        configured(changes)
    assert "\n" not in str(caught.value)


def test_a_model_of_experts_needs_a_layer_with_some():
    config = preset("moe-demo").with_settings(["model.experts.first_dense=6"])
    with pytest.raises(UserError, match=r"every must be at most model.n_layers \(6\): got 7"):
        check(config)
    with pytest.raises(UserError, match="unknown setting 'model.experts.k'"):
        ModelConfig.from_dict({"experts": {"k": 2}})
    assert ModelConfig.from_dict(dataclasses.asdict(CONFIG)) == CONFIG
