"""The table of cases against torch and against finite differences."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from bench.case import Case, Input, normal
from bench.cases import CASES
from engine import Op, Tensor, no_grad
from harness import Example, converted, examples, output_gradients, run_ours, run_torch
from kernels.memory import poisoned

EVERY_CASE = pytest.mark.parametrize("name", CASES)


def largest(tensor: torch.Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


def check_exact(kind: str, ours, truth) -> None:
    """float64: equal up to rounding."""
    assert (ours is None) == (truth is None), kind
    if truth is None:
        return
    assert ours.shape == truth.shape and ours.dtype == truth.dtype, (kind, ours.shape, truth.shape, ours.dtype)
    assert not truth.dtype.is_floating_point or torch.isfinite(ours).all(), (kind, ours)
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10 * max(1.0, largest(truth.double())),
                               msg=lambda text: f"{kind}: {text}")


def check_relative(kind: str, ours, theirs, truth, disturbed, factor: float) -> None:
    """float32 and less: our distance from the float64 truth is at most `factor` times torch's.

    As torch's may be 0 by luck, so much is added as the truth itself moves when every input is one rounding off, and
    roundings of the result: in float32 a few, in half precision, where each weighs, one. A loss or a weight's gradient
    may be float32 where torch's has half precision.
    """
    assert (ours is None) == (truth is None), kind
    if truth is None:
        return
    dtypes = {theirs.dtype, torch.promote_types(theirs.dtype, torch.float32)}
    assert ours.shape == truth.shape and ours.dtype in dtypes, (kind, ours.shape, truth.shape, ours.dtype)
    if not truth.dtype.is_floating_point:
        assert torch.equal(ours, truth), kind
        return
    error, allowed = largest(ours.double() - truth), factor * largest(theirs.double() - truth)
    eps, moved = torch.finfo(theirs.dtype).eps, largest(disturbed - truth)
    if theirs.dtype == torch.float32:
        allowed += factor * (moved + 4 * eps * max(1.0, largest(truth)))
    else:
        allowed += moved + eps * (largest(truth) + torch.finfo(theirs.dtype).smallest_normal)
        allowed += 16 * torch.finfo(torch.float32).eps  # of the sums inside, where they cancel
    assert error <= allowed, (kind, error, allowed)


def check_example(example: Example, dtype: torch.dtype, run=run_ours) -> None:
    if dtype.itemsize < 4:
        example = example.rounded(dtype)
    with poisoned():
        ours = run(example, dtype)
    truth = run_torch(example, torch.float64)
    if dtype == torch.float64:
        for kind, mine, true in zip(("output", "gradient"), ours, truth):
            for index, pair in enumerate(zip(mine, true)):
                check_exact(f"{kind} {index}", *pair)
        return
    eps = torch.finfo(dtype).eps
    theirs = run_torch(example, dtype)
    disturbed = run_torch(example, torch.float64, eps if dtype == torch.float32 else eps / 2)
    for kind, factor, *sides in zip(("output", "gradient"), (2, 3), ours, theirs, truth, disturbed):
        for index, values in enumerate(zip(*sides)):
            check_relative(f"{kind} {index}", *values, factor)


@EVERY_CASE
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_against_torch(name, dtype):
    @given(example=examples(CASES[name]))
    def check(example):
        check_example(example, dtype)

    check()


@pytest.mark.slow
@EVERY_CASE
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_against_torch_with_many_examples(name, dtype):
    @settings(max_examples=150)
    @given(example=examples(CASES[name]))
    def check(example):
        check_example(example, dtype)

    check()


def directional_derivatives(example: Example, step: float = 1e-4) -> tuple[float, float]:
    """Of sum(outputs * dy) along a random direction of all inputs: by backward, and by a difference of fourth order."""
    rng = np.random.default_rng(example.seed + 2)
    directions = [torch.from_numpy(rng.standard_normal(tuple(t.shape))) if need else None
                  for t, need in zip(example.inputs, example.needs)]

    def value(shift: float) -> float:
        arguments = []
        for t, direction, entry in zip(example.inputs, directions, example.case.inputs):
            t = converted(t, torch.float64)
            t = t if direction is None else t + shift * direction
            arguments.append(Tensor(t) if entry.gradient else t)
        with no_grad():
            result = example.case.ours(*arguments, **example.options)
        outputs = list(result) if isinstance(result, (tuple, list)) else [result]
        pairs = zip(outputs, output_gradients(outputs, example, torch.float64))
        return sum((y.data * dy).sum().item() for y, dy in pairs if dy is not None)

    _, gradients = run_ours(example, torch.float64)
    moved = [direction for direction in directions if direction is not None]
    ours = sum((g * d).sum().item() for g, d in zip(gradients, moved) if g is not None)
    return ours, (8 * (value(step) - value(-step)) - (value(2 * step) - value(-2 * step))) / (12 * step)


@EVERY_CASE
def test_finite_differences(name):
    @settings(max_examples=4)
    @given(example=examples(CASES[name], layouts=("contiguous",)))
    def check(example):
        ours, measured = directional_derivatives(example)
        assert ours == pytest.approx(measured, rel=1e-6, abs=1e-6)

    check()


class _Wrong(Op):
    def forward(self, x, *, scale, gradient_scale):
        self.scale = gradient_scale
        return x * scale

    def backward(self, dy):
        return dy * self.scale


def wrong_case(scale: float, gradient_scale: float) -> Case:
    return Case("wrong", lambda x: _Wrong.apply(x, scale=scale, gradient_scale=gradient_scale), lambda x: x * 3,
                (Input("a b", normal),), {"a": (2, 3, 1), "b": (2, 3, 1)})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("scale, gradient_scale", [(3 + 1e-5, 3.0), (3.0, 3 + 1e-5), (float("nan"), 3.0)])
def test_a_wrong_operation_is_caught(scale, gradient_scale, dtype):
    example = fixed_example(wrong_case(scale, gradient_scale))
    with pytest.raises(AssertionError):
        check_example(example, dtype)
    check_example(fixed_example(wrong_case(3.0, 3.0)), dtype)  # and a right one passes


def test_a_wrong_gradient_is_caught_by_finite_differences():
    ours, measured = directional_derivatives(fixed_example(wrong_case(3.0, 3.001)))
    assert ours != pytest.approx(measured, rel=1e-6, abs=1e-6)


def fixed_example(case: Case) -> Example:
    sizes = {name: high for name, (_, high, _) in case.dims.items()}
    arrays = case.arrays(np.random.default_rng(0), case.shapes(sizes), sizes)
    options = {name: values[0] for name, values in case.options.items()}
    return Example(case, [torch.from_numpy(np.array(a)) for a in arrays], options, [e.gradient for e in case.inputs], 0)


def test_every_operation_has_a_case():
    from engine import ops

    covered = {"index": "slice", "pow": "pow_scalar", "gelu": "gelu_tanh", "view": "reshape"}
    elsewhere = {"Op", "Tensor", "dropout", "argmin", "logical_not", "to"}
    missing = [name for name in ops.__all__ if name not in CASES and name not in covered and name not in elsewhere]
    assert missing == []
