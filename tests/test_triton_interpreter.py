"""The mended interpreter against torch and NumPy: what bfloat16 programs compute in it is what hardware computes."""

import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

pytestmark = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="programs run on the GPU")

BF16 = torch.bfloat16


@triton.jit
def _copy(x, y, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    tl.store(y + i, tl.load(x + i).to(y.dtype.element_ty))


@triton.jit
def _arithmetic(a, b, y, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    p, q = tl.load(a + i), tl.load(b + i)
    tl.store(y + i, p + q)
    tl.store(y + COUNT + i, p - q)
    tl.store(y + 2 * COUNT + i, p * q)
    tl.store(y + 3 * COUNT + i, -p)
    tl.store(y + 4 * COUNT + i, tl.abs(p))
    tl.store(y + 5 * COUNT + i, tl.where(p < q, p, 0.5))
    tl.store(y + 6 * COUNT + i, tl.fma(p, q, p))


@triton.jit
def _divide(a, b, y, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    tl.store(y + i, (tl.load(a + i) / tl.load(b + i)).to(y.dtype.element_ty))


@triton.jit
def _compare(a, b, y, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    p, q = tl.load(a + i), tl.load(b + i)
    tl.store(y + i, (p < q).to(tl.float32))
    tl.store(y + COUNT + i, ((p <= q) & (p == p)).to(tl.float32))
    tl.store(y + 2 * COUNT + i, (p == q).to(y.dtype.element_ty))
    tl.store(y + 3 * COUNT + i, (p != q).to(tl.int32).to(tl.float32))


@triton.jit
def _dot(a, b, y, N: tl.constexpr):
    i = tl.arange(0, N)
    offset = i[:, None] * N + i[None, :]
    product = tl.dot(tl.load(a + offset), tl.load(b + offset), input_precision="ieee")
    tl.store(y + offset, product.to(y.dtype.element_ty))


@triton.jit
def _reduce(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    values = tl.load(x + i[:, None] * N + i[None, :])
    tl.store(y + i, tl.sum(values, axis=1).to(tl.float32))
    tl.store(y + N + i, tl.max(values, axis=0).to(tl.float32))
    tl.store(y + 2 * N + i, tl.argmax(values, axis=1).to(tl.float32))
    tl.store(y + 3 * N + i, tl.sum(tl.cumsum(values, axis=1), axis=1).to(tl.float32))


@triton.jit
def _not_a_number(x, y, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    values = tl.load(x + i)
    tl.store(y + i, tl.maximum(values, 0.0))
    tl.store(y + COUNT + i, tl.maximum(values, 0.0, propagate_nan=tl.PropagateNan.ALL))
    tl.store(y + 2 * COUNT + i, tl.minimum(values, 0.0))
    tl.store(y + 3 * COUNT + i, tl.clamp(values, 0.0, 1.0))
    tl.store(y + 4 * COUNT + i, tl.clamp(values, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def _loop(y, first, step, COUNT: tl.constexpr):
    total = 0
    for k in range(first, tl.num_programs(0) * COUNT, step):
        total += k
    for k in tl.range(first, COUNT):
        total += k
    tl.store(y + tl.program_id(0), total)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.itemsize])


def same(ours: torch.Tensor, truth: torch.Tensor) -> None:
    """Bit for bit, any NaN being like any other."""
    assert torch.equal(ours.isnan(), truth.isnan())
    assert torch.equal(bits(ours)[~ours.isnan()], bits(truth)[~truth.isnan()])


def numbers(shape, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(BF16)


def every_half() -> torch.Tensor:
    """Every pattern of 16 bits."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)


@pytest.mark.parametrize("low", [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
def test_float32_becomes_bfloat16_as_in_torch(low):
    x = ((every_half().to(torch.int64) << 16) | low).to(torch.int32).view(torch.float32)
    y = torch.empty(len(x), dtype=BF16)
    _copy[(1,)](x, y, COUNT=len(x))
    same(y, x.to(BF16))


@pytest.mark.parametrize("source, result", [(BF16, torch.float32), (BF16, torch.float16), (torch.float16, BF16),
                                            (BF16, BF16), (torch.float32, torch.float16)])
def test_other_casts_are_as_in_torch(source, result):
    x = every_half().view(source) if source.itemsize == 2 else every_half().view(BF16).float() * 1.0009765625
    y = torch.empty(len(x), dtype=result)
    _copy[(1,)](x, y, COUNT=len(x))
    same(y, x.to(result))


@pytest.mark.parametrize("source", [torch.int32, torch.int64, torch.bool])
def test_whole_numbers_become_bfloat16_as_in_torch(source):
    x = torch.arange(-512, 512).to(source)
    y = torch.empty(len(x), dtype=BF16)
    _copy[(1,)](x, y, COUNT=len(x))
    same(y, x.to(BF16))
    back = torch.empty(len(x), dtype=torch.int32)
    _copy[(1,)](y, back, COUNT=len(x))
    assert torch.equal(back, x.to(BF16).to(torch.int32))


def test_arithmetic_is_as_in_torch():
    a, b = numbers(256, 1), numbers(256, 2)
    y = torch.empty(7, 256, dtype=BF16)
    _arithmetic[(1,)](a, b, y, COUNT=256)
    half = torch.tensor(0.5, dtype=BF16)
    truth = [a + b, a - b, a * b, -a, a.abs(), torch.where(a < b, a, half),
             (a.float() * b.float() + a.float()).to(BF16)]
    for ours, true in zip(y, truth):
        same(ours, true)
    quotient = torch.empty(256, dtype=BF16)
    _divide[(1,)](a, b, quotient, COUNT=256)
    same(quotient, a / b)


def test_comparisons_are_as_in_torch():
    a, b = numbers(64, 1), numbers(64, 2)
    b[:20], a[0], a[1] = a[:20], float("nan"), float("inf")
    y = torch.empty(4, 64)
    _compare[(1,)](a, b, y, COUNT=64)
    for ours, true in zip(y, (a < b, a <= b, a == b, a != b)):
        assert torch.equal(ours, true.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BF16])
def test_products_of_matrices_are_as_in_torch(dtype):
    a, b = numbers((32, 32), 1).to(dtype), numbers((32, 32), 2).to(dtype)
    y = torch.empty(32, 32)
    _dot[(1,)](a, b, y, N=32)
    torch.testing.assert_close(y, a.float() @ b.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BF16])
def test_reductions_are_as_in_torch(dtype):
    x = numbers((16, 16), 3).to(dtype)
    y = torch.empty(4, 16)
    _reduce[(1,)](x, y, N=16)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y[0], x.double().sum(1).float(), rtol=2 * eps, atol=4 * eps)
    assert torch.equal(y[1], x.float().amax(0)) and torch.equal(y[2], x.argmax(1).float())
    torch.testing.assert_close(y[3], x.double().cumsum(1).sum(1).float(), rtol=16 * eps, atol=32 * eps)


def test_a_nan_goes_where_hardware_lets_it():
    nan = float("nan")
    y = torch.empty(5, 2)
    _not_a_number[(1,)](torch.tensor([nan, -2.0]), y, COUNT=2)
    truth = torch.tensor([[0.0, 0], [nan, 0], [0, -2], [0, 0], [nan, 0]])
    torch.testing.assert_close(y, truth, rtol=0, atol=0, equal_nan=True)


def test_loops_over_numbers_known_at_run_time():
    y = torch.empty(3, dtype=torch.int32)
    _loop[(3,)](y, 2, 5, COUNT=8)
    assert y.tolist() == [sum(range(2, 24, 5)) + sum(range(2, 8))] * 3


def test_scalars_become_numbers_without_numpys_help(recwarn):
    _loop[(1,)](torch.empty(1, dtype=torch.int32), 0, 1, COUNT=4)
    assert [warning for warning in recwarn if issubclass(warning.category, DeprecationWarning)] == []
