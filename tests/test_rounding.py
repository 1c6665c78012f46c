"""bfloat16 emulated on the CPU: the bits, where they are rounded, and the arena's working copy."""

import numpy as np
import pytest
import torch

import kernels
from engine import Arena, Linear, Tensor, UserError, ops
from engine.precision import PRECISIONS, precision
from harness import GPU, gpu_programs


def every_exponent() -> torch.Tensor:
    """float32 values of both signs with all exponents, ties between bfloat16 values among them."""
    rng = np.random.default_rng(0)
    upper = rng.integers(0, 2**16, 50_000, dtype=np.uint32) << 16
    lower = rng.choice(np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32), 50_000)
    return torch.from_numpy((upper | lower).view(np.float32))


def test_rounding_is_to_nearest_even_as_torch_does():
    values = every_exponent()
    expected = values.to(torch.bfloat16).to(torch.float32)
    with kernels.emulated_bfloat16():
        ours = kernels.rounded(values.clone())
    assert torch.equal(ours.isnan(), expected.isnan())
    assert torch.equal(ours[~ours.isnan()].view(torch.int32), expected[~expected.isnan()].view(torch.int32))


def test_nothing_is_rounded_outside_the_context():
    values = torch.tensor([1 + 2**-20])
    assert torch.equal(kernels.rounded(values.clone()), values)


def is_bfloat16(buffer: torch.Tensor) -> bool:
    return torch.equal(buffer, buffer.to(torch.bfloat16).to(buffer.dtype))


def leaf(*shape, seed):
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return Tensor(torch.from_numpy(values).to(torch.bfloat16).float(), requires_grad=True)


def test_results_and_gradients_are_rounded_and_losses_are_not():
    x, gain, up, down = leaf(40, 16, seed=1), leaf(16, seed=2), leaf(24, 16, seed=3), leaf(16, 12, seed=4)
    targets = torch.arange(40) % 24
    with kernels.emulated_bfloat16():
        y = ops.feed_forward(x * 0.17, gain, up, down)
        loss = ops.linear_cross_entropy(y, up, targets)
        loss.backward()
    assert is_bfloat16(y.data) and is_bfloat16(x.grad)
    assert not is_bfloat16(loss.data)
    exact = ops.linear_cross_entropy(ops.feed_forward(x * 0.17, gain, up, down), up, targets)
    assert loss.item() != exact.item() and loss.item() == pytest.approx(exact.item(), rel=0.02)


@pytest.mark.parametrize("working", [torch.float32, torch.bfloat16])
def test_the_model_computes_with_a_rounded_copy_and_keeps_the_masters(working):
    layer = Linear(5, 3)
    values = layer.weight.data.clone()
    with kernels.emulated_bfloat16():
        arena = Arena(layer.named_parameters(), working=working)
    assert layer.weight.data.dtype == working and is_bfloat16(layer.weight.data)
    assert torch.equal(layer.state_dict()["weight"], values) and not is_bfloat16(values)
    assert layer.weight.grad.dtype == arena.weights.dtype == torch.float32
    with kernels.emulated_bfloat16():
        layer.load_state_dict({"weight": 2 * values})
    assert torch.equal(arena.weights[arena.slices["weight"]].view(3, 5), 2 * values)
    assert torch.equal(layer.weight.data.float(), (2 * values).to(torch.bfloat16).float())


def test_policies_and_devices():
    assert precision("auto", "cpu").name == "float32" and precision("auto", "cuda").name == "bf16"
    for name in PRECISIONS:
        assert any(precision_fits(name, device) for device in ("cpu", "cuda"))
    with pytest.raises(UserError, match="precision bf16 does not run on cpu: bf16-emulated"):
        precision("bf16", "cpu")
    with pytest.raises(UserError, match="must be auto or one of float32, tf32, bf16, bf16-emulated: got 'half'"):
        precision("half", "cpu")


def test_products_of_halves_are_added_up_in_float32_while_the_policy_holds():
    products = torch.backends.cuda.matmul
    before = products.allow_bf16_reduced_precision_reduction
    with precision("bf16", "cuda").active():
        assert not products.allow_bf16_reduced_precision_reduction
    assert products.allow_bf16_reduced_precision_reduction == before


def precision_fits(name: str, device: str) -> bool:
    try:
        return precision(name, device).name == name
    except UserError:
        return False


def test_experts_in_bfloat16_are_those_emulated():
    rng = np.random.default_rng(0)
    x, dy, gate_up, down, indices = (torch.from_numpy(rng.standard_normal(shape, np.float32)).bfloat16() for shape in
                                     ((12, 16), (12, 16), (3, 24, 16), (3, 16, 12), (12, 3)))
    chosen = indices.float().argsort(1)[:, :2].contiguous()
    gates = torch.from_numpy(rng.random((12, 2), np.float32))

    def both_ways(dtype, device):
        groups, gate = kernels.routing.group(chosen.to(device), 3), gates.to(device)
        rows, gradient, *weights = (t.to(device, dtype) for t in (x, dy, gate_up, down))
        y, h = kernels.experts.forward(rows, gate, groups, *weights)
        into = tuple(torch.zeros(w.shape, device=device) for w in weights)
        dx, dgates, _, _ = kernels.experts.backward(gradient, rows, gate, groups, *weights, h, into)
        return [kernels.rounded(t.float()) for t in (y, h, dx)] + [dgates, *into]

    with gpu_programs():
        ours = [t.cpu() for t in both_ways(torch.bfloat16, GPU)]
    with kernels.emulated_bfloat16():
        emulated = both_ways(torch.float32, "cpu")
    for a, b in zip(ours, emulated, strict=True):
        assert (a - b).norm() < 1e-3 * b.norm()
