"""Conventions and corners of the operations that the table of cases does not reach."""

import numpy as np
import pytest
import torch

from engine import Tensor, UserError, ops, tensor


def t(values, dtype=torch.float32):
    return tensor(values, dtype)


def test_numbers_on_either_side_keep_the_dtype():
    for dtype in (torch.float32, torch.float64):
        x = t([1.0, 2.0], dtype)
        for y in (x * 2.0, 2.0 * x, x + 1, 1 - x, x / 3, 3 / x, x**2, 2**x, x * np.float64(2), -x, x * np.int64(3)):
            assert y.dtype == dtype
    assert (t([1, 2], torch.int64) + 1).dtype == torch.int64
    assert (t([1, 2], torch.int64) * 2.5).dtype == torch.float32
    assert (t([1, 2], torch.int64) / 2).tolist() == [0.5, 1.0]
    assert ops.sqrt(t([4, 9], torch.int64)).tolist() == [2.0, 3.0]


def test_arrays_on_either_side():
    x = t([1.0, 2.0])
    array = np.array([3.0, 4.0], np.float32)
    for y in (array * x, x * array, torch.from_numpy(array) * x, x * torch.from_numpy(array)):
        assert isinstance(y, Tensor) and y.tolist() == [3.0, 8.0]


def test_mixed_dtypes_promote_and_send_gradients_back():
    x = Tensor(torch.ones(3), requires_grad=True)
    y = Tensor(torch.ones(3, dtype=torch.float64) * 2, requires_grad=True)
    z = x * y + t([1, 2, 3], torch.int64)
    assert z.dtype == torch.float64
    z.sum().backward()
    assert x.grad.dtype == torch.float32 and (x.grad == 2).all() and y.grad.dtype == torch.float64


def test_comparisons_are_boolean_and_leave_tensors_hashable():
    x = t([1.0, 2.0, 3.0])
    assert (x > 2).tolist() == [False, False, True] and (2 <= x).tolist() == [False, True, True]
    assert (x == x).dtype == torch.bool and (x != 2).tolist() == [True, False, True]
    assert (~(x > 2)).tolist() == [True, True, False]
    assert len({x, x}) == 1 and (x == None) is False  # noqa: E711
    assert ops.sum(x > 1).item() == 2


def test_truth_of_a_tensor():
    assert bool(t([1.0])) and not bool(t(0.0)) and float(t([2.5])) == 2.5 and int(t([2])) == 2
    with pytest.raises(RuntimeError):
        bool(t([1.0, 2.0]))
    assert [row.tolist() for row in t([[1.0], [2.0]])] == [[1.0], [2.0]]


def test_masked_softmax():
    x = Tensor(torch.tensor([[1.0, -torch.inf, 2.0], [-torch.inf, 0.0, -torch.inf]]), requires_grad=True)
    for name in ("softmax", "log_softmax", "logsumexp"):
        ours, theirs = getattr(ops, name)(x, -1), getattr(torch, name)(x.data, -1)
        torch.testing.assert_close(ours.data, theirs)
    y = ops.softmax(x)
    assert y.data[0, 1] == 0 and y.data[1, 0] == 0
    (y * t([[1.0, 2.0, 3.0]])).sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad[0, 1] == 0


@pytest.mark.parametrize("scale", [1e4, 1e-30])
def test_softmax_of_extreme_values(scale):
    x = torch.tensor([[1.0, -2.0, 3.0, 2.999]]) * scale
    for name in ("softmax", "log_softmax", "logsumexp"):
        torch.testing.assert_close(getattr(ops, name)(Tensor(x), -1).data, getattr(torch, name)(x, -1))
    loss = ops.cross_entropy(Tensor(x), torch.tensor([2]))
    torch.testing.assert_close(loss.data, torch.nn.functional.cross_entropy(x, torch.tensor([2])))


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "gelu", "silu", "relu", "exp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activations_far_out(name, dtype):
    x = torch.tensor([-1e4, -200, -90, -30, -5, -1e-3, 0, 1e-3, 5, 30, 1e4], dtype=dtype)
    reference = {"gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu}.get(name) or getattr(torch, name)
    torch.testing.assert_close(getattr(ops, name)(Tensor(x)).data, reference(x), rtol=2e-6, atol=3e-7)


def test_a_nan_always_shows():
    x = torch.tensor([[0.5, float("nan"), -0.5], [1.0, 2.0, 3.0]])
    targets = torch.tensor([0, 1])
    for y in (ops.softmax(Tensor(x)), ops.log_softmax(Tensor(x)), ops.logsumexp(Tensor(x)), ops.layer_norm(Tensor(x)),
              ops.rms_norm(Tensor(x)), ops.sum(Tensor(x), -1), ops.amax(Tensor(x), -1), ops.gelu(Tensor(x)),
              ops.silu(Tensor(x)), ops.relu(Tensor(x)), ops.maximum(Tensor(x), 0.0)):
        assert torch.isnan(y.data[0]).any() and torch.isfinite(y.data[1]).all()
    assert torch.isnan(ops.cross_entropy(Tensor(x), targets).data)


@pytest.mark.parametrize("shape, dims", [
    ((1000, 40), (0,)), ((1000, 3), (0,)), ((3, 700, 33), (1,)), ((70_000, 2), (0,)), ((300_001,), (0,)),
    ((4, 5000), (0,)), ((9, 65, 20), (0, 1)), ((2, 70, 3, 50), (1, 3)), ((40, 3, 5, 7), (0, 2)), ((200_000, 1), (0,)),
    ((12, 70_000), (1,)), ((100, 3000), (0,)), ((0, 3), (0,)), ((3, 0), (0,)), ((), ()),
])
def test_reductions_of_many_shapes(shape, dims):
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(shape)).float()
    ours = ops.sum(Tensor(x), dims).data
    truth, theirs = x.double().sum(dims), x.sum(dims)
    assert ours.shape == truth.shape
    if ours.numel():
        rounding = 1e-6 * x.double().square().sum(dims).sqrt().max()
        assert (ours - truth).abs().max() <= 2 * (theirs - truth).abs().max() + rounding
    if x.numel():
        assert torch.equal(ops.amax(Tensor(x), dims).data, x.amax(dims))
        assert torch.equal(ops.amin(Tensor(x), dims, keepdim=True).data, x.amin(dims, keepdim=True))


def test_long_sums_keep_their_digits():
    x = torch.full((100_000, 33), 0.1)
    exact = 100_000 * float(torch.tensor(0.1))
    assert (ops.sum(Tensor(x), 0).data.double() - exact).abs().max() < exact * 2e-6
    assert abs(ops.mean(Tensor(x)).item() - 0.1) < 1e-7


def test_whole_numbers_reduce_to_whole_numbers():
    x = t([[1, 2], [3, 4]], torch.int64)
    assert ops.sum(x).dtype == torch.int64 and ops.sum(x, 0).tolist() == [4, 6]
    assert ops.max(x).item() == 4 and ops.argmax(x).item() == 3 and ops.argmin(x, 1).tolist() == [0, 0]
    assert ops.mean(x).item() == 2.5


def test_large_broadcasts_run_in_blocks():
    rng = np.random.default_rng(0)
    a, b, c = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((1, 700, 300), (300,), (3, 1, 300)))
    torch.testing.assert_close((Tensor(a) * Tensor(b) + Tensor(c)).data, a * b + c)
    torch.testing.assert_close((Tensor(a[0].T) - Tensor(a[0].T[:, :1])).data, a[0].T - a[0].T[:, :1])


def test_index_adds_up_repeated_positions():
    x = Tensor(torch.zeros(3, 2), requires_grad=True)
    x[[0, 2, 0, 0]].sum().backward()
    assert x.grad.tolist() == [[3, 3], [0, 0], [1, 1]]


def test_index_takes_tensors_arrays_lists_and_masks():
    x = t(np.arange(12.0).reshape(3, 4))
    assert x[t([2, 0], torch.int64)].tolist() == x[np.array([2, 0])].tolist() == x[[2, 0]].tolist()
    assert x[x > 9].tolist() == [10, 11] and x[t(1, torch.int64)].tolist() == x[1].tolist() and x[-1, -1].item() == 11
    assert x[t([True, False, True], torch.bool), 1].tolist() == [1, 9]


def test_empty_tensors():
    x = Tensor(torch.zeros(0, 3), requires_grad=True)
    y = ops.softmax(ops.layer_norm(x * 2 + 1) @ Tensor(torch.ones(3, 2))) + ops.rms_norm(x)[:, :2]
    ops.cat([y, y]).sum().backward()
    assert x.grad.shape == (0, 3) and ops.sum(x).item() == 0


def rows(*shape):
    return Tensor(torch.zeros(shape))


@pytest.mark.parametrize("call, message", [
    (lambda: rows(2, 3) @ rows(2, 3), r"matmul: .* got \(2, 3\) and \(2, 3\)"),
    (lambda: rows(2, 2, 3) @ rows(3, 3, 1), r"leading dimensions.* got \(2,\) and \(3,\)"),
    (lambda: rows(2, 3).sum(2), r"sum: dim must be in \[-2, 2\).* got 2"),
    (lambda: rows(2, 3).sum((0, -2)), r"every dimension may be named once, got \(0, -2\)"),
    (lambda: rows(2, 3).reshape(4, -1), r"the same 6 elements.* got \(2, 3\) to \(4, -1\)"),
    (lambda: rows(2, 3).T.view(6), r"strides \(1, 3\) of shape \(3, 2\)"),
    (lambda: rows(2, 3).permute(0, 0), r"permute: each of the 2 dimensions"),
    (lambda: rows(2, 3).expand(2, 4), r"expand: .* got \(2, 3\) to \(2, 4\)"),
    (lambda: rows(2, 3).split([1, 3]), r"add up to the 2 of dimension 0, got \(1, 3\)"),
    (lambda: ops.cat([rows(2, 3), rows(2, 4)]), r"cat: .* got \(2, 3\) and \(2, 4\)"),
    (lambda: ops.cat([]), "at least one tensor, got none"),
    (lambda: ops.stack([rows(2), rows(3)]), r"stack: .* got \(2,\) and \(3,\)"),
    (lambda: ops.gather(rows(2, 3), 1, torch.tensor([[3], [0]])), r"gather: .*\[0, 3\), got 0 to 3"),
    (lambda: ops.gather(rows(2, 3), 1, torch.tensor([0])), r"gather: the index needs 2 dimensions"),
    (lambda: ops.embedding([0, 5], rows(4, 3)), r"embedding: .*\[0, 4\), got 0 to 5"),
    (lambda: ops.embedding(torch.ones(2), rows(4, 3)), "whole numbers, got torch.float32"),
    (lambda: ops.rms_norm(rows(2, 3), rows(2)), r"the gain must be torch.float32 of shape \(3,\)"),
    (lambda: ops.layer_norm(rows(2, 3), bias=Tensor(torch.zeros(3).double())), "got torch.float64"),
    (lambda: ops.cross_entropy(rows(2, 3), torch.tensor([0, 3])), r"\[0, 3\) or be -100, got 0 to 3"),
    (lambda: ops.cross_entropy(rows(2, 3), torch.tensor([0])), r"got \(2, 3\) and \(1,\)"),
    (lambda: ops.softmax(rows(2, 0)), "must not be empty"),
    (lambda: ops.amax(rows(0, 2), 0), "must not be empty"),
    (lambda: ops.where(rows(2), rows(2), 0.0), "must be boolean, got torch.float32"),
    (lambda: ops.dropout(rows(2), 1.5), r"p must lie in \[0, 1\], got 1.5"),
    (lambda: ops.gelu(rows(2), "fast"), "got 'fast'"),
    (lambda: ops.clamp(rows(2)), "got neither"),
    (lambda: ops.swiglu(rows(2, 3)), r"must be even, gate then up, got shape \(2, 3\)"),
    (lambda: ops.rope(rows(1, 5, 2, 4), torch.zeros(4, 2), torch.zeros(4, 2)), "got 4 positions"),
    (lambda: ops.rope(rows(1, 5, 2, 4), torch.zeros(9, 3), torch.zeros(9, 3)), r"got \(1, 5, 2, 4\)"),
    (lambda: ops.causal_attention(rows(1, 5, 2, 4), rows(1, 4, 2, 4), rows(1, 4, 2, 4)), "the same B, T and D"),
    (lambda: ops.causal_attention(rows(1, 5, 3, 4), rows(1, 5, 2, 4), rows(1, 5, 2, 4)), "multiple of n_kv_heads"),
    (lambda: rows(2, 3)[::-1], "step of a slice must be positive, got -1"),
    (lambda: rows(2, 3)[[0], [0], [0]], "at most 2 indices, got 3"),
    (lambda: rows(2, 3) + rows(4), r"add: .* got \(2, 3\) and \(4,\)"),
])
def test_errors_name_the_rule_and_what_came(call, message):
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", [lambda: rows(2, 3)[2], lambda: rows(2, 3)[[0, 2]], lambda: rows(2, 3)[:, 5]])
def test_positions_out_of_range_are_index_errors(call):
    with pytest.raises(IndexError, match="out of bounds|out of range"):
        call()


def test_logsumexp_of_rows_of_infinities():
    inf = float("inf")
    x = torch.tensor([[-inf] * 40, [inf] + [0.0] * 39, [-inf] * 39 + [2.0]], dtype=torch.float32)
    for dtype in (torch.float32, torch.float64):
        assert ops.logsumexp(tensor(x.to(dtype)), -1).data.tolist() == [-inf, inf, 2.0]
