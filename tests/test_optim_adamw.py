"""AdamW against torch's, its routing, its clipping."""

import numpy as np
import pytest
import torch

from engine import Embedding, Linear, Module, RMSNorm
from models.config import PRESETS
from models.decoder import Decoder
from train.errors import UserError
from train.optim.adamw import AdamW


class Small(Module):
    def __init__(self):
        rng = np.random.default_rng(0)
        self.table, self.norm, self.out = Embedding(7, 5, rng), RMSNorm(5), Linear(5, 3, rng)
        for parameter in self.parameters():
            parameter.data = parameter.data.double()


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_equals_torch_over_50_steps(clip_norm):
    model = Small()
    twins = {name: torch.nn.Parameter(p.data.clone()) for name, p in model.named_parameters()}
    optimizer = AdamW(model, (0.9, 0.95), 1e-8, 0.1, clip_norm)
    reference = torch.optim.AdamW([{"params": [twins["out.weight"]], "weight_decay": 0.1},
                                   {"params": [twins["table.weight"], twins["norm.gain"]], "weight_decay": 0.0}],
                                  lr=1.0, betas=(0.9, 0.95), eps=1e-8)
    rng = np.random.default_rng(1)
    for step in range(1, 51):
        lr = 1e-2 * step / 50
        for name, parameter in model.named_parameters():
            gradient = torch.from_numpy(rng.standard_normal(parameter.shape) * 10.0 ** rng.integers(-3, 2))
            parameter.grad.copy_(gradient)
            twins[name].grad = gradient.clone()
        norm = optimizer.measure()
        assert norm == pytest.approx(float(torch.nn.utils.get_total_norm([t.grad for t in twins.values()])), rel=1e-12)
        if clip_norm:
            scale = min(1.0, clip_norm / norm)
            for twin in twins.values():
                twin.grad *= scale
        for group in reference.param_groups:
            group["lr"] = lr
        optimizer.step(lr)
        reference.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.data, twins[name].data, rtol=1e-12, atol=1e-12)


def test_routing_of_the_demo_model():
    routes = {route.parameter: route for route in AdamW(Decoder(PRESETS["demo"]), weight_decay=0.1).routing()}
    plain = {name for name, route in routes.items() if route.weight_decay == 0.0}
    assert all(name in plain for name in routes if name.endswith("gain") or name.startswith("embedding"))
    assert {name for name in routes if name not in plain} == {
        name for name in routes
        if name.endswith(("qkv.weight", "out.weight", "gate_up.weight", "down.weight", "head.weight"))}
    assert {route.group for route in routes.values()} == {"adamw", "adamw-no-decay"}
    order = [route.weight_decay for route in routes.values()]
    assert order == sorted(order, reverse=True)


def test_state_there_and_back():
    first, second = AdamW(Small()), AdamW(Small())
    first.exp_avg.copy_(torch.arange(len(first.exp_avg)))
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()}, 3)
    assert second.updates == 3
    assert all(torch.equal(a, b) for a, b in zip(first.state().values(), second.state().values()))
    broken = dict(first.state())
    broken["exp_avg.norm.gain"] = torch.zeros(5, dtype=torch.float32)
    with pytest.raises(UserError, match="exp_avg.norm.gain must be float64 of shape .5., got float32"):
        second.load_state(broken, 3)


def test_bad_tensors_are_found_by_name():
    optimizer = AdamW(Small())
    assert optimizer.first_bad_gradient() is None and optimizer.first_bad_weight() is None
    optimizer.arena.parameters["norm.gain"].grad[2] = float("nan")
    optimizer.arena.parameters["table.weight"].data[0, 0] = float("inf")
    assert (optimizer.first_bad_gradient(), optimizer.first_bad_weight()) == ("norm.gain", "table.weight")
