"""Kernels that go over rows, where the table of cases does not look: long rows, padding, chunks, memory, precision."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from torch.nn import functional as F

import kernels
from engine import UserError, ops, tensor
from harness import GPU, gpu_programs
from kernels import memory

pytest.importorskip("triton")

from kernels.gpu import linear_cross_entropy  # noqa: E402
from kernels.gpu.launch import recording  # noqa: E402

TRAINING = {"tokens": 65_536, "width": 768, "vocabulary": 65_544}
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


@pytest.fixture(params=["cpu", "gpu"])
def device(request):
    """Device of tensors, within the programs of kernels/cpu or kernels/gpu."""
    with gpu_programs() if request.param == "gpu" else contextlib.nullcontext(), memory.poisoned():
        yield GPU if request.param == "gpu" else "cpu"


@pytest.fixture
def allocations(monkeypatch):
    """Bytes of every buffer handed out, as they come."""
    sizes, empty = [], memory.empty

    def noted(shape, dtype=torch.float32, device="cpu"):
        sizes.append(math.prod(shape) * dtype.itemsize)
        return empty(shape, dtype, device)

    monkeypatch.setattr(memory, "empty", noted)
    return sizes


def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def random(*shape, seed=0, **options):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(**options)


def classes_of(rows: int, classes: int) -> torch.Tensor:
    targets = torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(1))
    targets[1::4] = -100
    return targets


def true_loss(logits, targets, z_loss=0.0, softcap=None):
    """Each row's loss by torch."""
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    losses = F.cross_entropy(logits, targets, reduction="none")
    return losses + z_loss * logits.logsumexp(-1).square() * (targets != -100)


def test_linear_cross_entropy_of_a_training_step_stays_within_its_memory(allocations):
    x, weight = meta(TRAINING["tokens"], TRAINING["width"]), meta(TRAINING["vocabulary"], TRAINING["width"])
    with recording() as launches:
        _, dx, dweight = kernels.linear_cross_entropy.forward(x, weight, meta(len(x), dtype=torch.int64), 1.0)
    outputs = dx.nbytes + dweight.nbytes
    assert (dx.dtype, dweight.dtype) == (torch.bfloat16, torch.float32)
    assert sum(allocations) > outputs + 1e9 and sum(allocations) - outputs <= 2.2e9
    constants = dict(launches[0].constants)
    assert (constants["WIDTH"], constants["STRIDE"] % 128) == (TRAINING["vocabulary"], 0)
    assert 0 in launches[0].divisible and len(launches) == 9


def test_chunks_are_even_and_bounded():
    with recording():
        assert linear_cross_entropy.chunk_shape(65_536, 65_544, torch.bfloat16) == (8192, 65_664)
        assert linear_cross_entropy.chunk_shape(100, 264, torch.float32) == (100, 384)
        assert linear_cross_entropy.chunk_shape(0, 264, torch.float32) == (1, 384)
        height, width = linear_cross_entropy.chunk_shape(70_000, 128_256, torch.bfloat16)
        assert height % 128 == 0 and height * width * 2 <= 1.25e9 and 70_000 / height > 14.5


def test_feed_forward_keeps_one_wide_tensor_and_reuses_it(allocations):
    tokens, width, inner = 65_536, 768, 2048
    x, gate_up, down = meta(tokens, width), meta(2 * inner, width), meta(width, inner)
    with recording():
        y, h, rstd = kernels.feed_forward.forward(x, x[0], gate_up, down, 1e-6)
        allocations.clear()
        gradients = kernels.feed_forward.backward(y, x, x[0], gate_up, down, h, rstd)
    outputs = sum(gradient.nbytes for gradient in gradients)
    narrow, wide = x.nbytes, tokens * inner * 2
    assert sum(allocations) - outputs < wide + 2 * narrow + 5e6


@pytest.mark.parametrize("classes, columns", [(13, 13), (13, 16), (37, 48), (32, 32)])
@pytest.mark.parametrize("z_loss, softcap", [(0.0, None), (1e-2, None), (1e-2, 3.0)])
def test_logits_become_their_gradient_and_padding_none(device, classes, columns, z_loss, softcap):
    logits, targets = random(6, classes, dtype=torch.float64).requires_grad_(), classes_of(6, classes)
    truth = true_loss(logits, targets, z_loss, softcap)
    (gradient,) = torch.autograd.grad(truth.sum() / 4, logits)
    padded, losses = torch.full((6, columns), math.nan, device=device), torch.empty(6, device=device)
    padded[:, :classes] = logits.detach()
    before = padded.clone()
    settings = targets.to(device), losses, 4.0, -100, z_loss, softcap, classes
    kernels.cross_entropy.in_place(padded, *settings, with_gradient=False)
    torch.testing.assert_close(losses.cpu().double(), truth.detach(), rtol=1e-5, atol=1e-6)
    if device != "cpu":
        assert torch.equal(padded[:, :classes], before[:, :classes])
    padded.copy_(before)
    kernels.cross_entropy.in_place(padded, *settings)
    torch.testing.assert_close(padded[:, :classes].cpu().double(), gradient, rtol=1e-5, atol=1e-6)
    assert (padded[:, classes:] == 0).all() and (padded[targets == -100] == 0).all()


def test_logits_in_place_are_contiguous(device):
    logits = torch.zeros(4, 6, device=device)[:, :5]
    with pytest.raises(ValueError, match="contiguous"):
        kernels.cross_entropy.in_place(logits, torch.zeros(4, dtype=torch.int64), torch.zeros(4), 1.0)


@pytest.mark.parametrize("with_into", [False, True])
def test_linear_cross_entropy_in_several_chunks(device, with_into):
    """Two in the interpreter; on the CPU and a GPU these rows are one."""
    rows, width, vocabulary = 140, 4, 37
    x, weight = random(rows, width, device=device), random(vocabulary, width, seed=2, device=device)
    targets, number = classes_of(rows, vocabulary).to(device), torch.tensor([100.0], device=device)
    into = torch.ones_like(weight) if with_into else None
    loss, dx, dweight = kernels.linear_cross_entropy.forward(x, weight, targets, number, -100, True, 1e-3, 5.0, into)
    x, weight = (t.cpu().double().requires_grad_() for t in (x, weight))
    truth = true_loss(F.linear(x, weight), targets.cpu(), 1e-3, 5.0).sum() / 100
    true_dx, true_dweight = torch.autograd.grad(truth, (x, weight))
    torch.testing.assert_close(loss.cpu().double(), truth.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dx.cpu().double(), true_dx, rtol=1e-4, atol=1e-5)
    assert (dweight is None) == with_into
    total = into - 1 if with_into else dweight
    torch.testing.assert_close(total.cpu().double(), true_dweight, rtol=1e-4, atol=1e-5)


def test_without_gradient_there_is_only_a_loss(device):
    x, weight, targets = random(5, 4, device=device), random(9, 4, device=device), classes_of(5, 9).to(device)
    loss, dx, dweight = kernels.linear_cross_entropy.forward(x, weight, targets, 2.0, with_gradient=False)
    assert dx is None and dweight is None
    assert torch.equal(loss, kernels.linear_cross_entropy.forward(x, weight, targets, 2.0)[0])


def test_no_rows_give_no_loss_and_no_gradient(device):
    x, weight = torch.empty(0, 4, device=device), random(9, 4, device=device)
    loss, dx, dweight = kernels.linear_cross_entropy.forward(x, weight, torch.empty(0, dtype=torch.int64), 2.0)
    assert loss.item() == 0 and dx.shape == (0, 4) and (dweight == 0).all()


@HALVES
def test_losses_of_half_precision_logits_are_float32(dtype):
    logits, targets = random(7, 40).to(dtype), classes_of(7, 40)
    with gpu_programs():
        loss, _, _ = kernels.cross_entropy.forward(logits.to(GPU), targets.to(GPU), 5.0)
    truth = true_loss(logits.double(), targets).sum() / 5
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.cpu().double(), truth, rtol=1e-6, atol=1e-6)


@HALVES
@pytest.mark.parametrize("name", ["linear", "swiglu_linear", "linear_cross_entropy"])
def test_weight_gradients_of_half_precision_add_up_in_float32(name, dtype):
    """Onto 1,000, where the next number in half precision is at least 0.5 away, comes a third."""
    rows, third = 16, 1 / 3
    into = torch.full((3, 8), 1000.0, device=GPU)
    x = torch.ones(rows, 8, dtype=dtype, device=GPU)
    weight = torch.zeros(3, 8, dtype=dtype, device=GPU)
    dy = torch.full((rows, 3), third / rows, dtype=dtype, device=GPU)
    with gpu_programs():
        if name == "linear":
            dweight = kernels.linear.backward(dy, x, weight, into)[1]
        elif name == "swiglu_linear":
            dweight = kernels.swiglu_linear.backward(dy, torch.cat([100 * x, 0.01 * x], dim=-1), weight, into)[1]
        else:
            targets = torch.zeros(rows, dtype=torch.int64, device=GPU)
            dweight = kernels.linear_cross_entropy.forward(x, weight, targets, float(rows), into=into)[2]
    assert dweight is None
    torch.testing.assert_close(into[1:], torch.full_like(into[1:], 1000 + third), rtol=0, atol=4e-3)


def test_a_target_that_is_no_class_shows_as_nan_on_a_gpu():
    logits = random(3, 5, device=GPU)
    with gpu_programs():
        for wrong in (5, -1):
            targets = torch.tensor([0, wrong, 1], device=GPU)
            assert kernels.cross_entropy.forward(logits, targets, 1.0)[0].isnan()


@pytest.mark.parametrize("targets", [[1, -100, 3], [-100, -100], [[0] * 9, [-100] * 9]])
def test_targets_that_count(device, targets):
    targets = torch.tensor(targets, device=device)
    number = kernels.cross_entropy.count(targets)
    assert number.dtype == torch.float32 and number.shape == ()
    assert number.item() == max(1, (targets != -100).sum().item())


def test_a_normalizer_may_be_a_tensor():
    x, weight, targets = tensor(random(5, 4)), tensor(random(9, 4)), classes_of(5, 9)
    for number in (torch.tensor(3.0), torch.tensor([3.0]), tensor(torch.tensor(3.0))):
        for loss in (lambda n: ops.linear_cross_entropy(x, weight, targets, n),
                     lambda n: ops.cross_entropy(ops.linear(x, weight), targets, normalizer=n)):
            assert loss(number).item() == loss(3.0).item()


@pytest.mark.parametrize("setting", [{"z_loss": -1.0}, {"z_loss": math.nan}, {"softcap": 0.0}, {"softcap": -3.0},
                                     {"normalizer": 0.0}, {"normalizer": torch.ones(2)},
                                     {"normalizer": torch.tensor(2)}])
def test_settings_that_make_no_sense_are_refused(setting):
    x, weight, targets = tensor(torch.ones(2, 3)), tensor(torch.ones(4, 3)), torch.tensor([0, 1])
    for name, call in {"linear_cross_entropy": lambda: ops.linear_cross_entropy(x, weight, targets, **setting),
                       "cross_entropy": lambda: ops.cross_entropy(x, targets, **setting)}.items():
        with pytest.raises(UserError, match=f"^{name}: {next(iter(setting))} must be .*got") as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [31, 70, 96])
def test_long_rows(width, dtype):
    """In the interpreter a block is 32 columns."""
    x, dy = random(3, width).to(dtype), random(3, width, seed=3).to(dtype)
    x[0, 5:9] = -math.inf
    x[1, : width - 1] = -math.inf
    programs = kernels.softmax
    with gpu_programs(), memory.poisoned():
        y, log_y, lse = (f(x.to(GPU)).cpu() for f in (programs.forward, programs.log_forward, programs.logsumexp))
        dx = programs.backward(dy.to(GPU), y.to(GPU)).cpu()
        log_dx = programs.log_backward(dy.to(GPU), log_y.to(GPU)).cpu()
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 8e-3, "atol": 8e-3}

    def check(ours, truth):
        torch.testing.assert_close(ours.double(), truth, **tolerance)

    x, dy, exact, exact_log = x.double(), dy.double(), y.double(), log_y.double()
    check(y, x.softmax(-1))
    check(log_y, x.log_softmax(-1))
    check(lse, x.logsumexp(-1))
    check(dx, exact * (dy - (dy * exact).sum(-1, keepdim=True)))
    check(log_dx, dy - exact_log.exp() * dy.sum(-1, keepdim=True))
    assert (y[0, 5:9] == 0).all()


@pytest.mark.parametrize("width", [5, 70])
def test_logsumexp_of_infinities(width):
    x = torch.zeros(3, width, device=GPU)
    x[0], x[1, 2], x[2, 3] = -math.inf, math.inf, math.nan
    with gpu_programs():
        lse = kernels.softmax.logsumexp(x)
    assert lse[0] == -math.inf and lse[1] == math.inf and lse[2].isnan()


def test_layer_norm_far_from_zero(device):
    x = random(4, 50) + 1e4
    y, mean, rstd = kernels.layer_norm.forward(x.to(device), torch.ones(50, device=device),
                                               torch.zeros(50, device=device), 1e-5)
    truth = F.layer_norm(x.double(), (50,), eps=1e-5)
    torch.testing.assert_close(y.cpu().double(), truth, rtol=0, atol=1e-3)  # float32 has steps of 1e-3 at 1e4
    torch.testing.assert_close(mean.cpu().double(), x.double().mean(-1), rtol=1e-6, atol=0)
    dx, dgain, dbias = kernels.layer_norm.backward(y, x.to(device), torch.ones(50, device=device), mean, rstd)
    assert dx.abs().max() < 5e-3 and torch.isfinite(dgain).all() and torch.isfinite(dbias).all()
