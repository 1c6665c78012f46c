"""From AdamW to Muon while a run goes on, the average of the weights, and going on from saved state."""

import numpy as np
import pytest
import torch

from models.config import ModelConfig
from models.decoder import Decoder
from train.errors import UserError
from train.optim import Optimizer, make_optimizer
from train.sections import OptimConfig

TINY = ModelConfig(vocab_size=17, n_layers=2, d_model=16, n_heads=2, d_ff=24, max_seq_len=16)
SWITCHED = OptimConfig(lr=3e-3, switch_to_muon_at=4, ema=0.9, normuon=True)


def tokens(step: int) -> torch.Tensor:
    """Eight rows of a text with structure: each token depends on the two before it."""
    rng = np.random.default_rng(step)
    rows = rng.integers(0, 17, (8, 17))
    for i in range(2, 17):
        rows[:, i] = (3 * rows[:, i - 1] + rows[:, i - 2]) % 17
    return torch.from_numpy(rows)


def loss(model: Decoder, step: int):
    batch = tokens(step)
    return model.loss(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())


def take_steps(model: Decoder, optimizer: Optimizer, first: int, last: int, lr: float = 3e-3) -> list[float]:
    losses = []
    for step in range(first, last + 1):
        optimizer.advance_to(step)
        optimizer.arena.zero_grad()
        value = loss(model, step)
        value.backward()
        losses.append(float(value.item()))
        optimizer.measure()
        optimizer.step(lr)
    return losses


def on_validation(model: Decoder) -> float:
    return float(loss(model, 10_000).item())


def test_the_loss_does_not_jump_at_the_switch():
    model = Decoder(TINY)
    optimizer = make_optimizer(model, OptimConfig(lr=3e-3, switch_to_muon_at=60))
    take_steps(model, optimizer, 1, 50)
    before = [on_validation(model)]
    for step in range(51, 61):
        take_steps(model, optimizer, step, step)
        before.append(on_validation(model))
    after = []
    for step in range(61, 81):
        take_steps(model, optimizer, step, step)
        after.append(on_validation(model))
    assert optimizer.kind == "muon"
    usual = max(abs(a - b) for a, b in zip(before, before[1:]))
    assert after[0] - before[-1] < 2 * usual and max(after) < before[-1] + 2 * usual and after[-1] < before[-1]


def test_the_switch_goes_on_with_adams_first_moments():
    model = Decoder(TINY)
    optimizer = make_optimizer(model, SWITCHED)
    take_steps(model, optimizer, 1, 4)
    before = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    assert optimizer.kind == "adamw" and not optimizer.advance_to(4) and optimizer.advance_to(5)
    assert optimizer.kind == "muon" and optimizer.updates == 4
    after = optimizer.state()
    matrices = {route.parameter for route in optimizer.routing() if route.group == "muon"}
    dropped = {f"exp_avg_sq.{name}" for name in matrices}
    assert before.keys() - after.keys() == dropped and len(dropped) == 8
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - dropped)
    rows = [after[name] for name in after.keys() - before.keys()]
    assert rows and not any(tensor.any() for tensor in rows)


@pytest.mark.parametrize("optim", [
    SWITCHED, OptimConfig(lr=3e-3, optimizer="muon", ema=0.8), OptimConfig(lr=3e-3, ema=0.8),
    OptimConfig(lr=3e-3, optimizer="muon", normuon=True, muon_per_head=True, muon_coefficients="polar_express"),
], ids=["switch", "muon", "adamw", "normuon"])
@pytest.mark.parametrize("saved_at", [3, 4, 6])
def test_going_on_from_saved_state_is_equal_bit_for_bit(optim, saved_at):
    whole, part = Decoder(TINY), Decoder(TINY)
    optimizer = make_optimizer(whole, optim)
    take_steps(whole, optimizer, 1, 8)
    first = make_optimizer(part, optim)
    take_steps(part, first, 1, saved_at)
    model, state = ({name: tensor.clone() for name, tensor in tensors.items()}
                    for tensors in (part.state_dict(), first.state()))
    resumed = Decoder(TINY, seed=5)
    second = make_optimizer(resumed, optim)
    resumed.load_state_dict(model)
    second.load_state(state, first.updates)
    take_steps(resumed, second, saved_at + 1, 8)
    assert torch.equal(optimizer.arena.weights, second.arena.weights)
    assert optimizer.state().keys() == second.state().keys()
    assert all(torch.equal(a, second.state()[name]) for name, a in optimizer.state().items())


def test_state_of_another_optimizer_is_refused():
    state = make_optimizer(Decoder(TINY), OptimConfig()).state()
    with pytest.raises(UserError, match="optimizer state does not fit the model"):
        make_optimizer(Decoder(TINY), OptimConfig(optimizer="muon")).load_state(state, 1)


def test_the_average_is_that_of_all_weights_there_were():
    model, decay = Decoder(TINY.with_(dtype="float64")), 0.75
    optimizer = make_optimizer(model, OptimConfig(optimizer="muon", ema=decay))
    with optimizer.averaged():
        assert not optimizer.average.any()  # there is none before the first step: the model keeps its weights
    history = []
    for step in range(1, 8):
        take_steps(model, optimizer, step, step)
        history.append(optimizer.arena.weights.clone())
    shares = [decay**age for age in range(len(history) - 1, -1, -1)]
    wanted = sum(share * weights for share, weights in zip(shares, history)) / sum(shares)
    torch.testing.assert_close(optimizer.average, wanted, rtol=0, atol=1e-14)
    present = on_validation(model)
    with optimizer.averaged():
        torch.testing.assert_close(optimizer.arena.weights, wanted, rtol=0, atol=1e-14)
        assert on_validation(model) != present
    assert torch.equal(optimizer.arena.weights, history[-1]) and on_validation(model) == present


@pytest.mark.parametrize("working", [None, torch.bfloat16])
def test_a_step_can_be_undone(working):
    model = Decoder(TINY)
    optimizer = make_optimizer(model, OptimConfig(optimizer="muon", normuon=True, ema=0.9), working)
    rng = np.random.default_rng(0)

    def draw():
        optimizer.arena.grads.copy_(torch.from_numpy(rng.standard_normal(len(optimizer.arena.grads))))
        optimizer.measure()

    def everything():
        return [t.clone() for t in (optimizer.arena.weights, *optimizer.state().values())] + [
            p.data.clone() for p in model.parameters()]

    draw()
    optimizer.step(1e-2)
    before = everything()
    draw()
    with optimizer.unchanged():
        optimizer.step(1e-2)
        assert not torch.equal(before[0], optimizer.arena.weights)
    assert optimizer.updates == 1 and all(torch.equal(a, b) for a, b in zip(before, everything()))
    if working is not None:
        assert all(torch.equal(p.data, p.master.to(working)) for p in model.parameters())


def test_a_gradient_that_is_not_finite_leaves_everything():
    model = Decoder(TINY)
    optimizer = make_optimizer(model, OptimConfig(optimizer="muon", normuon=True, ema=0.9))
    take_steps(model, optimizer, 1, 2)
    before = [t.clone() for t in (optimizer.arena.weights, *optimizer.state().values())]
    optimizer.arena.grads[3] = float("nan")
    optimizer.measure()
    optimizer.step(1e-2)
    assert optimizer.updates == 2 and optimizer.control[2] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, (optimizer.arena.weights, *optimizer.state().values())))


def test_norms_of_groups_add_up():
    model = Decoder(TINY)
    optimizer = make_optimizer(model, OptimConfig(optimizer="muon"))
    loss(model, 1).backward()
    norms = optimizer.group_norms()
    assert list(norms) == ["embedding", "layers.0", "layers.1", "norm", "head"]
    assert sum(norm**2 for norm in norms.values()) == pytest.approx(optimizer.measure() ** 2, rel=1e-12)
    head = optimizer.arena.parameters["head.weight"].grad.double().norm()
    assert norms["head"] == pytest.approx(float(head), rel=1e-9)
