"""The graph: order, sharing, freeing, recording."""

import gc
import weakref

import numpy as np
import pytest
import torch

from engine import Op, Tensor, UserError, enable_grad, grad_enabled, no_grad, ops, tensor


def leaf(*shape, seed=0):
    return Tensor(torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)), requires_grad=True)


def twin(x: Tensor) -> torch.Tensor:
    return x.data.clone().requires_grad_()


def assert_same_gradient(x: Tensor, y: torch.Tensor):
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-12, atol=1e-12)


def test_diamonds_and_reuse():
    def function(x, exp, tanh):
        a = x * 2
        b, c = exp(a), tanh(a)
        d = b * c + a
        return (d * d + x * b + d).sum()

    ours = leaf(3, 4)
    theirs = twin(ours)
    function(ours, ops.exp, ops.tanh).backward()
    function(theirs, torch.exp, torch.tanh).backward()
    assert_same_gradient(ours, theirs)


def test_a_tensor_used_twice_in_one_operation():
    x = leaf(3)
    (x * x).sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.data)


def test_several_outputs_of_which_some_are_unused():
    x = leaf(6, 2)
    a, _, c = x.split(2)
    (a * 3 + c.exp()).sum().backward()
    expected = torch.cat([torch.full((2, 2), 3.0, dtype=torch.float64), torch.zeros(2, 2).double(), x.data[4:].exp()])
    torch.testing.assert_close(x.grad, expected)


def test_gradient_of_one_output_only():
    x = leaf(5, 3)
    values, positions = x.max(1)
    values.sum().backward()
    assert positions.dtype == torch.int64 and not positions.requires_grad
    expected = torch.zeros(5, 3, dtype=torch.float64)
    expected[torch.arange(5), positions.data] = 1
    assert torch.equal(x.grad, expected)


def test_views_share_their_gradient():
    ours = leaf(4, 6)
    theirs = twin(ours)

    def function(x):
        y = x.transpose(0, 1)
        z = y[1:4].reshape(2, 6)
        return (z * y.reshape(4, 6)[:2] + x[0].expand(2, 6)).sum() + y[0, 0] * x[0, 0]

    function(ours).backward()
    function(theirs).backward()
    assert_same_gradient(ours, theirs)


def test_views_do_not_copy():
    x = tensor(np.arange(12.0).reshape(3, 4))
    for view in (x.reshape(4, 3), x.T, x[1:], x[None, :, 2], x.expand(2, 3, 4), x.split(2)[1], x.unsqueeze(1)):
        assert view.data.untyped_storage().data_ptr() == x.data.untyped_storage().data_ptr()


def test_gradients_add_up_over_calls_and_stay_separate_buffers():
    x, y = leaf(3), leaf(3, seed=1)
    for _ in range(2):
        (x + y).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 2.0, dtype=torch.float64))
    x.grad.zero_()
    assert y.grad.sum() == 6


def test_gradient_is_given_for_results_of_many_elements():
    x = leaf(2, 3)
    (x * 2).backward(torch.ones(2, 3, dtype=torch.float64) * 5)
    assert (x.grad == 10).all()
    with pytest.raises(RuntimeError, match=r"one element, got shape \(2, 3\)"):
        (x * 2).backward()
    with pytest.raises(ValueError, match=r"shape \(2, 3\), got torch.float64 of shape \(3,\)"):
        (x * 2).backward(torch.ones(3, dtype=torch.float64))


def test_a_chain_of_ten_thousand_operations():
    x = leaf(2)
    y = x
    for _ in range(10_000):
        y = y * 1.0001
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.full((2,), 1.0001**10_000, dtype=torch.float64))


def test_a_long_chain_dropped_without_backward():
    y = leaf(2)
    for _ in range(20_000):
        y = y + 1.0
    del y
    gc.collect()


def test_second_backward_is_an_error_that_names_the_operation():
    x = leaf(3)
    y = x.exp()
    z = y.sum()
    z.backward()
    with pytest.raises(RuntimeError, match="graph of Sum was already freed"):
        z.backward()
    with pytest.raises(RuntimeError, match="graph of Exp was already freed"):
        (y * 2).sum().backward()


def test_backward_frees_what_operations_saved():
    x = leaf(1000)
    y = x.exp()
    saved = weakref.ref(y.data)
    z = (y * y).sum()
    del y
    assert saved() is not None
    z.backward()
    assert saved() is None


class _Recorder(Op):
    order: list = []

    def forward(self, x, *, name):
        self.name = name
        return x

    def backward(self, dy):
        self.order.append(self.name)
        return dy


def test_every_operation_runs_once_after_all_that_use_it():
    _Recorder.order = []
    x = leaf(2)
    a = _Recorder.apply(x, name="a")
    b = _Recorder.apply(a, name="b")
    c = _Recorder.apply(a + b, name="c")
    (a + b + c).sum().backward()
    assert _Recorder.order == ["c", "b", "a"]
    assert (x.grad == 4).all()


def test_no_grad_and_enable_grad():
    x = leaf(3)
    with no_grad():
        assert not grad_enabled() and not (x * 2).requires_grad
        with enable_grad():
            assert (x * 2).requires_grad
    assert (x * 2).requires_grad

    @no_grad()
    def function():
        return x * 2

    assert not function().requires_grad and grad_enabled()
    with pytest.raises(RuntimeError, match="does not"):
        function().sum().backward()


def test_no_grad_ends_with_an_exception():
    with pytest.raises(ZeroDivisionError), no_grad():
        raise ZeroDivisionError
    assert grad_enabled()


def test_only_floating_point_tensors_require_gradients():
    with pytest.raises(TypeError, match="int64"):
        Tensor(torch.arange(3), requires_grad=True)
    with pytest.raises(TypeError, match="bool"):
        Tensor(torch.ones(3, dtype=torch.bool), requires_grad=True)


def test_constants_get_no_gradient():
    x, constant = leaf(3), tensor(np.ones(3))
    (x * constant).sum().backward()
    assert constant.grad is None and x.grad is not None
    assert not x.detach().requires_grad


@pytest.mark.parametrize("shapes", [
    ((3, 4), (4,)), ((2, 1, 4), (3, 1)), ((), (2, 3)), ((1, 1), (5, 2)), ((0, 3), (1,)),
])
def test_broadcast_gradients_have_the_shapes_of_their_tensors(shapes):
    a, b = leaf(*shapes[0]), leaf(*shapes[1], seed=1)
    ta, tb = twin(a), twin(b)
    (a * b + a / (b * b + 1)).sum().backward()
    (ta * tb + ta / (tb * tb + 1)).sum().backward()
    assert_same_gradient(a, ta)
    assert_same_gradient(b, tb)


def test_errors_are_for_the_caller():
    assert issubclass(UserError, ValueError)
    with pytest.raises(UserError, match=r"add: .* got \(2, 3\) and \(4,\)"):
        leaf(2, 3) + leaf(4)


def test_weight_gradients_are_added_to_the_gradient_that_is_there():
    x, gain, weight = leaf(5, 4, seed=1), leaf(4, seed=2), leaf(6, 4, seed=3)
    half, gate_up, down = leaf(5, 6, seed=4), leaf(6, 4, seed=5), leaf(4, 3, seed=6)

    def loss():
        y = ops.linear(x, weight) + ops.rms_norm_linear(x, gain, weight) + half
        return (ops.swiglu_linear(y, down) * ops.feed_forward(x, gain, gate_up, down)).sum()

    leaves = [gain, weight, gate_up, down]
    loss().backward()
    once = [t.grad.clone() for t in leaves]
    buffers = [t.grad for t in leaves]
    loss().backward()
    for t, first, buffer in zip(leaves, once, buffers):
        assert t.grad is buffer
        torch.testing.assert_close(t.grad, 2 * first, rtol=1e-12, atol=1e-12)


def test_a_residual_gradient_that_has_arrived_passes_through_the_projection():
    source, gain, weight, out = leaf(5, 4, seed=1), leaf(4, seed=2), leaf(6, 4, seed=3), leaf(4, 6, seed=4)

    def loss(project, exp, linear):
        x = exp(source_of[exp])
        y = linear(project(x), out_of[exp])
        return (y * y + x * x).sum() + (project(x) * 3).sum()

    theirs = {name: twin(t) for name, t in (("source", source), ("gain", gain), ("weight", weight), ("out", out))}
    source_of = {ops.exp: source, torch.exp: theirs["source"]}
    out_of = {ops.exp: out, torch.exp: theirs["out"]}
    loss(lambda x: ops.rms_norm_linear(x, gain, weight), ops.exp, ops.linear).backward()
    functional = torch.nn.functional
    normed = lambda x: functional.rms_norm(x, (4,), theirs["gain"], 1e-6)  # noqa: E731
    loss(lambda x: functional.linear(normed(x), theirs["weight"]), torch.exp, functional.linear).backward()
    for ours, name in ((source, "source"), (gain, "gain"), (weight, "weight"), (out, "out")):
        assert_same_gradient(ours, theirs[name])
