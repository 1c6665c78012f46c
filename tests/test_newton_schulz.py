"""Newton-Schulz orthogonalisation against float64, against what theory says of singular values, and on both devices."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

import kernels
from harness import GPU, gpu_programs
from kernels import memory

MUON = ((3.4445, -4.7750, 2.0315),) * 5
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
SHAPES = [(1, 1, 1), (2, 7, 5), (3, 5, 18), (1, 33, 33), (2, 40, 17)]
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=str)
BOTH = pytest.mark.parametrize("coefficients", [MUON, POLAR_EXPRESS], ids=["muon", "polar_express"])


def matrices(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def reference(x: np.ndarray, coefficients, eps: float = 1e-7, margin: float = 1.0) -> np.ndarray:
    """In float64, without any of the tricks: products of the matrix as it is, on its longer side too."""
    result = []
    for matrix in x.astype(np.float64):
        matrix = matrix / (margin * np.linalg.norm(matrix) + eps)
        for a, b, c in coefficients:
            gram = matrix.T @ matrix
            matrix = a * matrix + matrix @ (b * gram + c * gram @ gram)
        result.append(matrix)
    return np.stack(result)


def polynomial(s: np.ndarray, coefficients) -> np.ndarray:
    for a, b, c in coefficients:
        s = a * s + b * s**3 + c * s**5
    return s


def on_gpu(x: torch.Tensor, *arguments, **options) -> torch.Tensor:
    pytest.importorskip("triton")
    with gpu_programs(), memory.poisoned():
        return kernels.newton_schulz.orthogonalise(x.to(GPU), *arguments, **options).cpu()


@EVERY_SHAPE
@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_cpu_against_float64(shape, coefficients, dtype):
    x = torch.from_numpy(matrices(shape)).to(dtype)
    with memory.poisoned():
        y = kernels.newton_schulz.orthogonalise(x, coefficients, 1e-3, 1.02)
    assert y.dtype == dtype and y.is_contiguous()
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    np.testing.assert_allclose(y.numpy(), reference(x.numpy(), coefficients, 1e-3, 1.02), rtol=0, atol=tolerance)


@EVERY_SHAPE
def test_gpu_in_float32(shape):
    x = torch.from_numpy(matrices(shape)).float()
    y = on_gpu(x, MUON[:3], 1e-3, 1.02)
    np.testing.assert_allclose(y.numpy(), reference(x.numpy(), MUON[:3], 1e-3, 1.02), rtol=0, atol=1e-5)


def rounding_error(x: np.ndarray, coefficients, dtype: torch.dtype) -> float:
    """Largest error of the plain iteration by torch, in float32 with every intermediate rounded to `dtype`."""
    matrix = torch.from_numpy(x / np.linalg.norm(x, axis=(1, 2), keepdims=True)).to(dtype)
    for a, b, c in coefficients:
        matrix = matrix.float()
        gram = (matrix @ matrix.mT).to(dtype).float()
        factor = (b * gram + c * gram @ gram).to(dtype).float()
        matrix = (a * matrix + factor @ matrix).to(dtype)
    return (matrix.double() - torch.from_numpy(reference(x, coefficients))).abs().max().item()


@pytest.mark.parametrize("shape", [(2, 7, 5), (2, 24, 40)], ids=str)
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_good_as_torch(shape, source, dtype):
    x = torch.from_numpy(matrices(shape)).to(source)
    check_half_precision(x, on_gpu(x, MUON, dtype=dtype), dtype)
    if source == torch.float32:
        check_half_precision(x, kernels.newton_schulz.orthogonalise(x, MUON, dtype=dtype), dtype)


def check_half_precision(x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype) -> None:
    assert y.dtype == dtype and y.shape == x.shape and y.is_contiguous()
    exact = x.double().numpy()
    error = np.abs(y.double().numpy() - reference(exact, MUON)).max()
    assert error <= 2 * rounding_error(exact, MUON, dtype)


@BOTH
@pytest.mark.parametrize("shape", [(1, 48, 80), (1, 80, 48)], ids=str)
def test_singular_values_go_through_the_polynomial_and_vectors_stay(coefficients, shape):
    x = matrices(shape, seed=1)
    u, s, v = np.linalg.svd(x[0], full_matrices=False)
    y = kernels.newton_schulz.orthogonalise(torch.from_numpy(x), coefficients, 0.0).numpy()[0]
    expected = polynomial(s / np.linalg.norm(s), coefficients)
    np.testing.assert_allclose(y, u @ np.diag(expected) @ v, rtol=0, atol=1e-10)


@pytest.mark.parametrize("coefficients, smallest, low, high", [
    (MUON, 2e-3, 0.68, 1.21), (MUON, 1e-2, 0.68, 1.14), (POLAR_EXPRESS, 1e-3, 0.858, 1.142)])
def test_singular_values_end_in_a_band_around_one(coefficients, smallest, low, high):
    ends = polynomial(np.geomspace(smallest, 1, 10_001), coefficients)
    assert low < ends.min() < low + 0.01 and high - 0.01 < ends.max() < high
    u, _, v = np.linalg.svd(matrices((64, 64)))
    s = np.geomspace(smallest, 1, 64)
    x = torch.from_numpy((u @ np.diag(s) @ v)[None])
    margin = 1 / np.linalg.norm(s)  # so that the largest singular value is 1
    y = kernels.newton_schulz.orthogonalise(x, coefficients, 0.0, margin).numpy()[0]
    found = np.linalg.svd(y, compute_uv=False)
    assert low < found.min() and found.max() < high


@pytest.mark.parametrize("context", [contextlib.nullcontext, gpu_programs])
def test_zero_stays_zero_and_the_input_as_it_was(context):
    if context is gpu_programs:
        pytest.importorskip("triton")
    x = torch.from_numpy(matrices((2, 6, 4))).float().to(GPU if context is gpu_programs else "cpu")
    x[1] = 0
    before = x.clone()
    with context():
        y = kernels.newton_schulz.orthogonalise(x, MUON)
    assert torch.equal(x, before) and not y[1].any() and y[0].any()


def test_no_steps_only_normalise_and_a_strided_stack_is_taken():
    x = torch.from_numpy(matrices((6, 5, 3))).float().permute(2, 1, 0)
    expected = x.numpy() / np.linalg.norm(x.numpy(), axis=(1, 2), keepdims=True)
    for stack, wanted in ((x, expected), (x.mT, expected.swapaxes(1, 2))):
        for steps in ((), ((1.0, 0.0, 0.0),)):
            np.testing.assert_allclose(kernels.newton_schulz.orthogonalise(stack, steps).numpy(), wanted, rtol=1e-5)
            np.testing.assert_allclose(on_gpu(stack, steps).numpy(), wanted, rtol=1e-5)
