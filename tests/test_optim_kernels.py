"""Muon's step and the average of the weights on both devices, against NumPy in float64."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

import kernels
import muon_reference
from engine import Embedding, Linear, Module, RMSNorm
from harness import GPU, gpu_programs
from kernels import Stack, memory
from test_optimizer_kernels import EVERY_DEVICE, on
from train.optim.muon import Muon, MuonSettings

STACKS = (Stack(0, 60, 2, 6, 10, 0.5), Stack(128, 128, 2, 8, 8, 1.5), Stack(192, 128, 2, 3, 8, 1.0),
          Stack(384, 1, 1, 12, 5, 2.0))
"""Matrices side by side, two kinds with gaps between them, and a tall one."""
LENGTH = 512


def settings_of(settings: MuonSettings, dtype: torch.dtype) -> dict:
    coefficients = tuple(muon_reference.polynomials(settings.coefficients, settings.steps))
    return {"lr_factor": settings.lr_factor, "decay": settings.weight_decay, "beta": settings.momentum,
            "row_beta": settings.row_beta, "nesterov": settings.nesterov, "coefficients": coefficients,
            "margin": muon_reference.MARGINS[settings.coefficients], "dtype": dtype}


def matrices(flat: np.ndarray) -> list[list[np.ndarray]]:
    """Copies of all matrices, by stack."""
    return [[flat[s.start + i * s.stride:][: s.size].reshape(s.rows, s.columns).copy() for i in range(s.count)]
            for s in STACKS]


class Scaled(muon_reference.Matrix):
    """A reference whose update has the size that a stack states."""

    def __init__(self, weights: np.ndarray, settings: MuonSettings, scale: float):
        super().__init__(weights, settings)
        self.relative = scale / settings.size(*weights.shape)

    def step(self, gradient: np.ndarray, lr: float) -> None:
        before, kept = self.weights.copy(), 1 - lr * self.settings.lr_factor * self.settings.weight_decay
        super().step(gradient, lr)
        self.weights = kept * before + self.relative * (self.weights - kept * before)


@EVERY_DEVICE
@pytest.mark.parametrize("working_dtype, settings", [
    (torch.bfloat16, MuonSettings(lr_factor=0.5, steps=2)),
    (None, MuonSettings(coefficients="polar_express", nesterov=False, row_beta=0.9, weight_decay=0.0, steps=2))],
    ids=["plain", "normuon"])
def test_steps_over_stacks(device, working_dtype, settings):
    rng = np.random.default_rng(0)
    start = rng.standard_normal(LENGTH).astype(np.float32)
    references = [[Scaled(matrix, settings, stack.scale) for matrix in each]
                  for stack, each in zip(STACKS, matrices(start))]
    with on(device) as place, memory.poisoned():
        w, g, m = (torch.from_numpy(x.copy()).to(place) for x in (start, start, np.zeros_like(start)))
        working = None if working_dtype is None else torch.full((LENGTH,), 7.0, dtype=working_dtype, device=place)
        squares = [torch.zeros(s.count, s.rows, device=place) for s in STACKS] if settings.row_beta else None
        control, norm = (torch.zeros(n, dtype=torch.float64, device=place) for n in (8, 1))
        for step in range(1, 3):
            gradient = rng.standard_normal(LENGTH).astype(np.float32)
            g.copy_(torch.from_numpy(gradient))
            control[0] = 0.1 / step
            kernels.optimizer.norm(g, out=norm)
            kernels.optimizer.begin_step(control, norm, beta1=0.9, beta2=0.9, clip_norm=5.0)
            kernels.muon.step(w, g, m, STACKS, control, working, squares, **settings_of(settings, torch.float32))
            scale = min(1.0, 5.0 / np.linalg.norm(gradient.astype(np.float64)))
            for each, gradients in zip(references, matrices(scale * gradient.astype(np.float64))):
                for reference, part in zip(each, gradients):
                    reference.step(part, 0.1 / step)
        w, m = w.cpu(), m.cpu()
    found = matrices(w.numpy())
    for each, ours in zip(references, found):
        for reference, matrix in zip(each, ours):
            np.testing.assert_allclose(matrix, reference.weights, rtol=0, atol=2e-5)
    outside = np.ones(LENGTH, dtype=bool)
    for s in STACKS:
        for i in range(s.count):
            outside[s.start + i * s.stride:][: s.size] = False
    assert outside.any() and np.array_equal(w.numpy()[outside], start[outside])
    if working is not None:
        inside = torch.from_numpy(~outside)
        assert torch.equal(working.cpu()[inside], w.to(working_dtype)[inside]) and (working.cpu()[~inside] == 7).all()


@EVERY_DEVICE
def test_half_precision_inside_is_as_good_as_its_rounding(device):
    rng = np.random.default_rng(1)
    gradient = rng.standard_normal(LENGTH).astype(np.float32)
    moved = []
    with on(device) as place:
        for dtype in (torch.float32, torch.bfloat16):
            w, g, m = (torch.from_numpy(x).to(place) for x in (np.zeros(LENGTH, np.float32), gradient,
                                                               np.zeros(LENGTH, np.float32)))
            control = torch.tensor([1.0, 1, 0, 1, 1, 1, 1, 1], dtype=torch.float64, device=place)
            kernels.muon.step(w, g, m, STACKS, control, **settings_of(MuonSettings(weight_decay=0.0, steps=3), dtype))
            moved.append(matrices(w.cpu().numpy()))
    for exact, rounded in zip(*moved):
        for a, b in zip(exact, rounded):
            assert 0 < np.linalg.norm(a - b) < 0.03 * np.linalg.norm(a)


@pytest.mark.parametrize("values", [1.0 / np.arange(1, 17) ** 2, [1.0] * 4 + [1e-6] * 12, [1.0] + [0.0] * 15],
                         ids=["steep", "nearly low rank", "rank one"])
@pytest.mark.parametrize("coefficients, steps", [("quintic", 5), ("polar_express", 5), ("polar_express", 8)])
@pytest.mark.parametrize("shape", [(16, 64), (64, 16)], ids=str)
def test_oblong_matrices_of_any_spectrum_in_float32(values, coefficients, steps, shape):
    """Their steps are taken on X X^T where float32 bears it, which has the squares of the singular values."""
    u, _, v = np.linalg.svd(np.random.default_rng(4).standard_normal(shape), full_matrices=False)
    x = torch.from_numpy((u * values) @ v)
    polynomials, margin = muon_reference.polynomials(coefficients, steps), muon_reference.MARGINS[coefficients]
    y = kernels.newton_schulz.orthogonalise(x.float()[None], polynomials, 1e-7, margin)[0].numpy()
    wanted = muon_reference.orthogonalised(x.numpy(), coefficients, steps)
    assert np.linalg.norm(y - wanted) < 5e-3 * np.linalg.norm(wanted)


@EVERY_DEVICE
def test_a_step_left_out_leaves_everything(device):
    rng = np.random.default_rng(2)
    with on(device) as place:
        w, m = (torch.from_numpy(rng.standard_normal(LENGTH).astype(np.float32)).to(place) for _ in range(2))
        g = torch.full((LENGTH,), float("nan"), device=place)
        squares = [torch.ones(s.count, s.rows, device=place) for s in STACKS]
        mean, working = torch.ones(LENGTH, device=place), torch.ones(LENGTH, dtype=torch.bfloat16, device=place)
        control, norm = (torch.zeros(n, dtype=torch.float64, device=place) for n in (8, 1))
        control[:2] = torch.tensor([0.1, 3.0])
        before = [t.clone() for t in (w, m, mean, working, *squares)]
        kernels.optimizer.begin_step(control, kernels.optimizer.norm(g, out=norm), beta1=0.9, beta2=0.9)
        kernels.muon.step(w, g, m, STACKS, control, working, squares,
                          **settings_of(MuonSettings(row_beta=0.9, steps=1), torch.float32))
        kernels.optimizer.average(mean, w, control, decay=0.9)
        assert control[1:3].tolist() == [3.0, 1.0]
        assert all(torch.equal(a, b) for a, b in zip(before, (w, m, mean, working, *squares)))


@EVERY_DEVICE
def test_average(device):
    rng = np.random.default_rng(3)
    history = rng.standard_normal((5, 700)).astype(np.float32)
    with on(device) as place:
        mean = torch.full((700,), 3.0, device=place)  # of no weight once there is one step
        for step, weights in enumerate(history, 1):
            control = torch.tensor([0.1, step, 0, 1, 1, 1, 1, 1], dtype=torch.float64, device=place)
            kernels.optimizer.average(mean, torch.from_numpy(weights).to(place), control, decay=0.75)
    shares = 0.75 ** np.arange(4, -1, -1)
    wanted = shares @ history.astype(np.float64) / shares.sum()
    np.testing.assert_allclose(mean.cpu().numpy(), wanted, rtol=1e-5, atol=1e-6)


class Two(Module):
    def __init__(self):
        rng = np.random.default_rng(5)
        self.tall, self.norm, self.embedding = Linear(6, 9, rng), RMSNorm(4), Embedding(5, 4, rng)


def test_an_optimizer_on_a_gpu_steps_as_on_the_cpu():
    pytest.importorskip("triton")
    results = []
    for programs, place in ((contextlib.nullcontext, "cpu"), (gpu_programs, GPU)):
        with programs():
            optimizer = Muon(Two().to(place), MuonSettings(row_beta=0.9, steps=2), clip_norm=1.0, ema=0.5)
            rng, loss = np.random.default_rng(6), torch.ones(1, device=place)
            for step in range(2):
                optimizer.arena.grads.copy_(torch.from_numpy(rng.standard_normal(len(optimizer.arena.grads))))
                optimizer.measure_on_device(loss)
                optimizer.step(1e-2)
            results.append([t.cpu() for t in (optimizer.arena.weights, *optimizer.state().values())])
            norms = optimizer.group_norms()
    assert list(norms) == ["tall", "norm", "embedding"] and len(results[0]) == 1 + 3 + 2 + 1 + 3
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
