"""Generic GPU kernels where the table of cases does not reach: far values, types, layouts, long sums, bad positions."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton")

import kernels  # noqa: E402
from engine import Tensor, ops  # noqa: E402
from harness import GPU, gpu_programs  # noqa: E402
from kernels.gpu import elementwise, indexing, segments, strides  # noqa: E402
from kernels.memory import poisoned  # noqa: E402


@pytest.fixture(autouse=True)
def on_gpu():
    torch.manual_seed(0)
    with gpu_programs(), poisoned():
        yield


def normal(*shape, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(dtype).to(GPU)


def apply(name, *operands):
    return kernels.elementwise.apply(name, *operands)


FAR = [-1e4, -200.0, -90.0, -30.0, -5.0, -0.7, -0.6, -1e-3, 0.0, 1e-3, 0.6, 0.7, 5.0, 30.0, 80.0, 1e4]
ONE = {"neg": torch.neg, "abs": torch.abs, "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt, "tanh": torch.tanh,
       "sigmoid": torch.sigmoid, "relu": torch.relu, "silu": F.silu, "gelu": F.gelu,
       "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


@pytest.mark.parametrize("name", ONE)
def test_functions_far_out(name):
    x = torch.tensor([*FAR, float("nan")], dtype=torch.float64)
    expected = ONE[name](x).float()
    torch.testing.assert_close(apply(name, x.float().to(GPU)).cpu(), expected, rtol=2e-6, atol=1e-7, equal_nan=True)


def test_powers_of_every_kind():
    base = torch.tensor([-float("inf"), -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, float("inf"), float("nan")])
    exponent = torch.cat([base, torch.tensor([2.0, -3.0])])[:, None]
    torch.testing.assert_close(apply("pow", base.to(GPU), exponent.to(GPU)).cpu(), base**exponent, equal_nan=True)
    whole = torch.arange(-4, 5)
    powers = torch.arange(5)[:, None]
    assert torch.equal(apply("pow", whole.to(GPU), powers.to(GPU)).cpu(), whole**powers)


def test_a_nan_always_shows():
    x = torch.tensor([0.5, float("nan")], device=GPU)
    other = torch.zeros((), device=GPU)
    results = [apply("maximum", x, other), apply("minimum", other, x), apply("clamp", x, other, other + 1),
               apply("relu", x), apply("abs_backward", x, x), kernels.reduce.reduce(x, "max", (0,)),
               kernels.reduce.reduce(x, "min", (0,))]
    assert all(torch.isnan(y[-1]) for y in results)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool])
def test_whole_numbers_and_booleans(dtype):
    x, y = torch.randint(0, 3, (4, 5)).to(dtype), torch.randint(0, 3, (5,)).to(dtype)
    for name in ("eq", "lt", "ge"):
        assert torch.equal(apply(name, x.to(GPU), y.to(GPU)).cpu(), getattr(torch, name)(x, y))
    for name in ("add", "mul", "maximum"):
        result = apply(name, x.to(GPU), y.to(GPU))
        assert result.dtype == dtype and torch.equal(result.cpu(), getattr(torch, name)(x, y))
    assert torch.equal(apply("logical_not", x.to(GPU)).cpu(), ~x.bool())
    assert torch.equal(apply("where", (x > 0).to(GPU), x.to(GPU), y.to(GPU)).cpu(), torch.where(x > 0, x, y))
    total = kernels.reduce.reduce(x.to(GPU), "max", (0,))
    assert total.dtype == dtype and torch.equal(total.cpu(), x.amax(0, keepdim=True))


def test_more_dimensions_than_programs_walk_over():
    x = normal(2, 3, 2, 3, 2, 3).permute(5, 1, 3, 0, 2, 4)
    assert strides.walk(x.shape, (x,)) is None
    assert torch.equal(apply("neg", x), -x)
    torch.testing.assert_close(apply("add", x, x[0, 0, 0, 0, 0, 0]), x + x[0, 0, 0, 0, 0, 0])
    for dims in ((0, 2, 4), (1, 3, 5)):
        torch.testing.assert_close(kernels.reduce.reduce(x, "sum", dims), x.sum(dims, keepdim=True))
    columns = torch.tensor([1, 0, -1], device=GPU)
    assert torch.equal(kernels.indexing.take(x, (slice(None), columns)), x[:, columns])


def test_rows_that_do_not_fit_in_32_bits(monkeypatch):
    monkeypatch.setattr(strides, "INT32", 1)
    monkeypatch.setattr(indexing, "INT32", 1)
    x, y = normal(5, 3, 4, 6).transpose(1, 2), normal(5, 4, 3, 6)
    assert strides.walk(x.shape, (x, y)).tile(16)["WIDE"] is True
    assert torch.equal(apply("add", x, y), x + y)
    index = torch.randint(0, 9, (2, 3), device=GPU)
    dy = normal(2, 3)
    expected = torch.zeros(2, 9, device=GPU).scatter_add_(1, index, dy)
    torch.testing.assert_close(kernels.indexing.gather_backward(dy, index, 1, (2, 9)), expected)


def test_walks_have_as_few_dimensions_as_possible():
    x = torch.empty(4, 5, 6)
    assert strides.walk(x.shape, (x, x)).dims == 1 and strides.walk(x.shape, (x, x[0, 0, 0])).dims == 1
    assert strides.walk(x.shape, (x, x[0])).dims == 2 and strides.walk(x.shape, (x, x[:, :, :1])).dims == 2
    assert strides.walk(x.shape, (x, x[:, :1])).dims == 3
    across = torch.empty(512, 512)
    assert strides.walk(across.shape, (across, across.T)).tile(2048)["ROWS"] == 32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_adds_to_float32(dtype):
    total, x = normal(4, 6), normal(6, 4, dtype=dtype).T
    expected = total + x.float()
    kernels.elementwise.accumulate(total, x)
    assert torch.equal(total, expected)
    kernels.elementwise.scale(total, torch.tensor([0.5], device=GPU))
    assert torch.equal(total, expected / 2)


def test_long_sums_keep_their_digits():
    x = torch.full((6000, 3), 0.1, device=GPU)
    exact = 6000 * float(torch.tensor(0.1))
    assert (kernels.reduce.reduce(x, "sum", (0,)).double() - exact).abs().max() < exact * 1e-6
    ones = torch.ones(3000, dtype=torch.bfloat16, device=GPU)
    assert kernels.reduce.reduce(ones, "sum", (0,)).item() == torch.tensor(3000.0).bfloat16().item()  # not 256


@pytest.mark.parametrize("shape, dims", [((), ()), ((0, 3), (0,)), ((3, 0), (0,)), ((2, 3), ()), ((700, 3), (0,)),
                                         ((2, 9, 5, 3), (1, 3)), ((3, 700), (1,))])
def test_reductions_of_many_shapes(shape, dims):
    x = normal(*shape)
    result = kernels.reduce.reduce(x, "sum", dims)
    torch.testing.assert_close(result, x.sum(dims, keepdim=True) if dims else x, rtol=1e-5, atol=1e-5)
    assert torch.equal(result, kernels.reduce.reduce(x, "sum", dims))


def test_positions_of_extremes():
    rows = torch.tensor([[0.0, -0.0, float("nan"), 3, float("nan")], [-float("inf")] * 5, [-0.0, 0.0, -1, -1, 0]])
    assert kernels.reduce.argmax(rows.to(GPU)).tolist() == [2, 0, 0]
    assert kernels.reduce.argmin(rows.to(GPU)).tolist() == [2, 0, 2]
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.int32, torch.bool):
        x = (torch.randn(900) * 3).to(dtype)
        assert kernels.reduce.argmax(x.to(GPU)).item() == int(np.argmax(x.double().numpy()))
        assert kernels.reduce.argmin(x.to(GPU)).item() == int(np.argmin(x.double().numpy()))


def signed(number: int) -> torch.Tensor:
    return torch.tensor([number - (1 << 64 if number >> 63 else 0)], device=GPU)


@pytest.mark.parametrize("seed, offset", [(0, 0), (1, 1), ((1 << 64) - 3, (1 << 32) - 5), (7 << 40, 1 << 45)])
def test_dropout_draws_the_numbers_of_the_cpu(seed, offset):
    x = normal(7, 45).T
    with kernels.programs("cpu"):
        uniform = kernels.dropout.uniform(x.cpu(), seed, offset)
        dropped = kernels.dropout.apply(x.cpu(), 0.3, seed, offset)
    for key in ((seed, offset), (signed(seed), signed(offset))):
        assert torch.equal(kernels.dropout.uniform(x, *key).cpu(), uniform)
        assert torch.equal(kernels.dropout.apply(x, 0.3, *key).cpu(), dropped)
    assert not kernels.dropout.apply(x, 1.0, seed, offset).any()


@pytest.mark.parametrize("count, rows", [(1, 1), (40, 3), (37, 600), (64, 40)])
def test_sorted_keys_keep_the_order_of_equals(count, rows):
    keys = torch.randint(-1, rows + 1, (count,))
    order = torch.where((keys < 0) | (keys >= rows), rows, keys)
    expected = torch.sort(order, stable=True)
    found = segments.sort(keys.to(GPU), rows)
    assert all(torch.equal(a.cpu(), b.int()) for a, b in zip(found, expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ids", [[0] * 23, [2, 0, 2, 2, 1, 2, 0, 2, 2], list(range(9)), [8] * 4 + [7],
                                 [5] * 8 + [6] * 4])
def test_gradients_of_an_embedding(ids, dtype):
    ids, rows, width = torch.tensor(ids), 9, 5
    dy = normal(len(ids), width, dtype=dtype)
    exact = torch.zeros(rows, width, dtype=torch.float64).index_add_(0, ids, dy.cpu().double())
    got = kernels.embedding.backward(dy, ids.to(GPU), rows).cpu()
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), exact, rtol=4e-3 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)
    into = normal(rows, width)
    expected = into.cpu().double() + exact
    assert kernels.embedding.backward(dy, ids.to(GPU), rows, into) is None
    torch.testing.assert_close(into.cpu().double(), expected, rtol=1e-6, atol=1e-6)


def test_an_embedding_adds_to_the_gradient_that_is_there():
    weight = Tensor(normal(6, 4), requires_grad=True)
    ids = torch.tensor([[1, 5, 1], [1, 0, 5]])
    for passes in (1, 2, 3):
        ops.embedding(ids, weight).sum().backward()
        counts = torch.bincount(ids.flatten(), minlength=6)
        assert torch.equal(weight.grad.cpu(), (passes * counts).float()[:, None].expand(6, 4))


def test_positions_that_are_not_there_show_as_nan():
    """The engine checks positions that lie in the CPU's memory; these are the kernels beneath."""
    ones = torch.ones(3, 2, device=GPU)
    far = torch.tensor([0, 3, -4, -3], device=GPU)
    nan = [False, True, True, False]
    assert torch.isnan(kernels.indexing.take(ones, (far,))).all(1).tolist() == nan
    assert torch.isnan(kernels.embedding.forward(far.abs(), ones)).all(1).tolist() == [False, True, True, True]
    assert torch.isnan(kernels.indexing.gather(ones, far[None, :2], 1)).tolist() == [[False, True]]
    dx = kernels.indexing.take_backward(torch.ones(4, 2, device=GPU), (far,), (3, 2))
    assert dx.tolist() == [[2, 2], [0, 0], [0, 0]]
    assert kernels.embedding.backward(torch.ones(4, 2, device=GPU), far, 3).tolist() == [[1, 1], [0, 0], [0, 0]]


def test_an_index_that_cannot_be_is_an_index_error():
    x = normal(3, 2)
    with pytest.raises(IndexError):
        kernels.indexing.take(x, (torch.tensor([0, 1], device=GPU), torch.tensor([0, 1, 0], device=GPU)))
    with pytest.raises(IndexError, match="size 0"):
        kernels.indexing.take(x[:0], (torch.tensor([0], device=GPU),))


def test_a_position_in_a_tensor_without_dimensions():
    x = normal(3, 4)
    assert torch.equal(kernels.indexing.take(x, (slice(None), torch.tensor(2, device=GPU))), x[:, 2])


def test_products_without_elements():
    assert kernels.matmul.matmul(normal(2, 0, 3), normal(3, 4)).shape == (2, 0, 4)
    assert kernels.matmul.matmul(normal(2, 1, 0), normal(2, 0, 4)).tolist() == torch.zeros(2, 1, 4).tolist()


def test_booleans_are_bytes():
    assert elementwise.as_numbers(torch.tensor([True])).dtype == torch.uint8
