"""The passes over flat parameter buffers, on both devices, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from harness import GPU, gpu_programs
from kernels import memory

BETAS = {"beta1": 0.9, "beta2": 0.95}
EVERY_DEVICE = pytest.mark.parametrize("device", ["cpu", "gpu"])


class on:
    """Within this context kernels run for a device; what it gives is where their tensors lie."""

    def __init__(self, device: str):
        self.place, self.programs = (GPU, gpu_programs()) if device == "gpu" else ("cpu", kernels.programs("cpu"))
        if device == "gpu":
            pytest.importorskip("triton")

    def __enter__(self):
        self.programs.__enter__()
        return self.place

    def __exit__(self, *error):
        self.programs.__exit__(*error)


def adamw_in_numpy(w, g, m, v, lr, decay, step, eps, scale):
    """One step in float64 (arXiv 1711.05101, algorithm 2)."""
    m[:] = 0.9 * m + 0.1 * scale * g
    v[:] = 0.95 * v + 0.05 * (scale * g) ** 2
    w[:] = w - lr * decay * w - lr * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.95**step)) + eps)


def buffers(rng: np.random.Generator, count: int, place: str) -> list[torch.Tensor]:
    """Weights, gradients, first and second moments."""
    values = [rng.standard_normal(count), rng.standard_normal(count), np.zeros(count), np.zeros(count)]
    return [torch.from_numpy(x.astype(np.float32)).to(place) for x in values]


def segments_of(rows: list[tuple[int, int, float, float]], place: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(start, stop, weight decay, factor of the learning rate) of each."""
    bounds = torch.tensor([row[:2] for row in rows], dtype=torch.int64).reshape(-1, 2)
    return bounds.to(place), torch.tensor([row[2:] for row in rows], dtype=torch.float32).reshape(-1, 2).to(place)


@EVERY_DEVICE
@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
@pytest.mark.parametrize("working_dtype", [None, torch.bfloat16, torch.float16])
def test_adamw_over_segments_and_steps(device, clip_norm, working_dtype):
    rng = np.random.default_rng(0)
    rows = [(0, 128, 0.1, 1.0), (128, 320, 0.0, 0.5), (384, 704, 0.3, 2.0)]
    with on(device) as place:
        w, g, m, v = buffers(rng, 768, place)
        expected = [t.cpu().double().numpy().copy() for t in (w, g, m, v)]
        initial = w.cpu().clone()
        working = None if working_dtype is None else torch.full((768,), 7.0, dtype=working_dtype, device=place)
        control, norm = (torch.zeros(n, dtype=torch.float64, device=place) for n in (8, 1))
        segments = segments_of(rows, place)
        for step in range(1, 6):
            lr = 0.1 / step
            gradient = rng.standard_normal(768).astype(np.float32) * 10.0 ** (step - 3)
            g.copy_(torch.from_numpy(gradient))
            control[0] = lr
            kernels.optimizer.norm(g, out=norm)
            kernels.optimizer.begin_step(control, norm, **BETAS, clip_norm=clip_norm)
            kernels.optimizer.adamw(w, g, m, v, segments, control, working, **BETAS, eps=1e-8)
            length = np.linalg.norm(gradient.astype(np.float64))
            scale = min(1.0, clip_norm / length) if clip_norm else 1.0
            for start, stop, decay, factor in rows:
                part = slice(start, stop)
                adamw_in_numpy(expected[0][part], gradient[part], expected[2][part], expected[3][part], lr * factor,
                               decay, step, 1e-8, scale)
            assert control[:4].tolist() == pytest.approx([lr, step, 0, length], rel=1e-12)
    w, m, v = (t.cpu() for t in (w, m, v))
    for ours, theirs in zip((w, m, v), (expected[0], expected[2], expected[3])):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=2e-5, atol=1e-6)
    for start, stop in ((320, 384), (704, 768)):
        assert torch.equal(w[start:stop], initial[start:stop]) and not m[start:stop].any() and not v[start:stop].any()
        assert working is None or (working[start:stop] == 7).all()
    if working is not None:
        assert all(torch.equal(working[a:b].cpu(), w[a:b].to(working_dtype)) for a, b, *_ in rows)


@EVERY_DEVICE
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_norm_that_is_not_finite_leaves_everything_and_is_counted(device, bad):
    with on(device) as place:
        w, g, m, v = buffers(np.random.default_rng(1), 128, place)
        g[77] = bad
        before, working = [t.clone() for t in (w, m, v)], torch.zeros(128, dtype=torch.bfloat16, device=place)
        control, norm = (torch.zeros(n, dtype=torch.float64, device=place) for n in (8, 1))
        segments = segments_of([(0, 128, 0.1, 1.0)], place)
        control[:2] = torch.tensor([1e-2, 4.0])
        for _ in range(2):
            kernels.optimizer.norm(g, out=norm)
            kernels.optimizer.begin_step(control, norm, **BETAS, clip_norm=1.0)
            kernels.optimizer.adamw(w, g, m, v, segments, control, working, **BETAS, eps=1e-8)
        assert all(torch.equal(a, b) for a, b in zip(before, (w, m, v))) and not working.any()
        assert control[1:3].tolist() == [4.0, 2.0] and not np.isfinite(control[3].item())
        g[77] = 0.0
        kernels.optimizer.begin_step(control, kernels.optimizer.norm(g, out=norm), **BETAS, clip_norm=1.0)
        kernels.optimizer.adamw(w, g, m, v, segments, control, working, **BETAS, eps=1e-8)
        assert control[1:3].tolist() == [5.0, 2.0] and not torch.equal(before[0], w)


@EVERY_DEVICE
def test_factors_of_a_step(device):
    with on(device) as place:
        control, norm = torch.zeros(8, dtype=torch.float64, device=place), torch.zeros(1, dtype=torch.float64)
        for step, length in enumerate((0.5, 2.0, 1e200, 0.0), 1):
            norm.fill_(length)
            kernels.optimizer.begin_step(control, norm.to(place), **BETAS, clip_norm=1.0)
            wanted = [step, 0, length, 1, min(1.0, 1 / max(length, 1e-9)), 1 / (1 - 0.9**step), 1 / (1 - 0.95**step)]
            assert control[1:].tolist() == pytest.approx(wanted, rel=1e-6)


@EVERY_DEVICE
@settings(max_examples=6)
@given(count=st.integers(0, 2000), offset=st.integers(0, 5), exponent=st.sampled_from([-30, -3, 0, 25]),
       dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_norm(device, count, offset, exponent, dtype):
    values = np.random.default_rng(count).standard_normal(count + offset) * 10.0**exponent
    x = torch.from_numpy(values).to(dtype if device == "gpu" else torch.float32)[offset:]
    expected = np.linalg.norm(x.double().numpy())
    with on(device) as place, memory.poisoned():
        out = torch.full((1,), float("nan"), dtype=torch.float64, device=place)
        assert kernels.optimizer.norm(x.to(place), out=out) is out
        assert kernels.optimizer.norm(x.to(place)) == out.item() == pytest.approx(expected, rel=1e-12)


@EVERY_DEVICE
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_norm_shows_what_is_not_finite(device, bad):
    with on(device) as place:
        x = torch.ones(3000, device=place)
        x[2999] = bad
        assert not np.isfinite(kernels.optimizer.norm(x))
