"""Muon against NumPy, torch.optim.Muon, singular values, and itself."""

import numpy as np
import pytest
import torch

import kernels
import muon_reference
from engine import Linear, Module
from models.config import ModelConfig
from models.decoder import Decoder
from train.errors import UserError
from train.optim import AdamW, Muon, MuonSettings, make_optimizer
from train.sections import OptimConfig

GROUPED = ModelConfig(vocab_size=11, n_layers=2, d_model=12, n_heads=4, n_kv_heads=2, head_dim=6, d_ff=14,
                      max_seq_len=8, dtype="float64")
SEED_MUON = OptimConfig(optimizer="muon", betas=(0.9, 0.98), eps=1e-7, weight_decay=0.1, clip_norm=0.0,
                        muon_momentum=0.9, muon_nesterov=False, muon_steps=20, muon_coefficients="classical",
                        muon_per_head=True, muon_head=True)
"""Muon of the system that this project rebuilds."""


class One(Module):
    def __init__(self, rows: int, columns: int, dtype: torch.dtype = torch.float64):
        self.linear = Linear(columns, rows)
        self.linear.weight.data = torch.zeros(rows, columns, dtype=dtype)

    @property
    def weights(self) -> torch.Tensor:
        return self.linear.weight.data


def draw_gradients(model: Module, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _, parameter in model.named_parameters():
        parameter.grad.copy_(torch.from_numpy(rng.standard_normal(parameter.shape) * 10.0 ** rng.integers(-2, 2)))


def pieces(name: str, array: np.ndarray, per_head: bool) -> list[np.ndarray]:
    """The matrices of GROUPED that a parameter is made of."""
    heads = [6] * 8 if per_head else [24, 12, 12]
    rows = heads if name.endswith("qkv.weight") else [14, 14] if name.endswith("gate_up.weight") else [len(array)]
    return np.split(array, np.cumsum(rows)[:-1])


@pytest.mark.parametrize("clip_norm, settings", [
    (0.0, MuonSettings()),
    (1.0, MuonSettings(coefficients="polar_express", steps=8, scale="aspect", lr_factor=0.5)),
    (0.0, MuonSettings(momentum=0.9, nesterov=False, steps=20, coefficients="classical", per_head=True, head=True)),
    (1.0, MuonSettings(row_beta=0.95, per_head=True)),
    (0.0, MuonSettings(row_beta=0.9, coefficients="polar_express", weight_decay=0.3)),
], ids=["plain", "polar_express", "seed", "normuon_heads", "normuon"])
def test_equals_numpy_in_float64(clip_norm, settings):
    model, twin = Decoder(GROUPED, seed=1), Decoder(GROUPED, seed=1)
    optimizer, adamw = Muon(model, settings, clip_norm=clip_norm), AdamW(twin, clip_norm=clip_norm)
    muon = {route.parameter for route in optimizer.routing() if route.group == "muon"}
    reference = {name: [muon_reference.Matrix(piece, settings) for piece in pieces(name, p.data.numpy(),
                                                                                    settings.per_head)]
                 for name, p in model.named_parameters() if name in muon}
    assert ("head.weight" in muon) == settings.head and len(muon) == 8 + settings.head
    for step in range(1, 6):
        for each in (model, twin):
            draw_gradients(each, step)
        scale = min(1.0, clip_norm / optimizer.measure()) if clip_norm else 1.0
        for name, matrices in reference.items():
            gradients = pieces(name, scale * optimizer.arena.parameters[name].grad.numpy(), settings.per_head)
            for matrix, gradient in zip(matrices, gradients):
                matrix.step(gradient, 1e-2 / step)
        optimizer.step(1e-2 / step)
        adamw.measure()
        adamw.step(1e-2 / step)
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters()):
        if name in muon:
            wanted = np.concatenate([matrix.weights for matrix in reference[name]])
            np.testing.assert_allclose(parameter.data.numpy(), wanted, rtol=0, atol=1e-10)
        else:
            assert torch.equal(parameter.data, other.data), name


def run_torch_and_ours(shape: tuple[int, int], dtype: torch.dtype, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights after ten steps of torch.optim.Muon and of ours, from the same start and gradients."""
    scale = {"match_rms": "match_rms_adamw", "aspect": "original"}[options["scale"]]
    model = One(*shape, dtype)
    model.weights.copy_(torch.from_numpy(np.random.default_rng(0).standard_normal(shape)))
    twin = torch.nn.Parameter(model.weights.clone())
    ours = Muon(model, MuonSettings(momentum=0.9, weight_decay=0.1, **options))
    theirs = torch.optim.Muon([twin], lr=1e-2, weight_decay=0.1, momentum=0.9, nesterov=options["nesterov"],
                              adjust_lr_fn=scale)
    for step in range(10):
        gradient = torch.from_numpy(np.random.default_rng(step).standard_normal(shape) * 1e5).to(dtype)
        ours.arena.parameters["linear.weight"].grad.copy_(gradient)
        twin.grad = gradient.clone()
        ours.measure()
        ours.step(1e-2)
        theirs.step()
    return twin.data, model.weights


OPTIONS = pytest.mark.parametrize("shape, options", [
    ((24, 40), {"nesterov": True, "scale": "match_rms"}), ((40, 24), {"nesterov": False, "scale": "aspect"})])


@OPTIONS
def test_equals_torch_within_its_rounding(shape, options):
    theirs, ours = run_torch_and_ours(shape, torch.float32, **options)
    size = MuonSettings(**options).size(*shape)
    moved = 10 * 1e-2 * size / np.sqrt(max(shape))  # root mean square of ten orthogonal updates, were they all alike
    assert (theirs - ours).abs().max().item() < 0.05 * moved


@OPTIONS
def test_equals_torch_without_its_rounding(shape, options, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    theirs, ours = run_torch_and_ours(shape, torch.float64, **options)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def singular_values_of_an_update(settings: MuonSettings, values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Of a first update of size 1, the gradient having singular values in these proportions."""
    rng, model = np.random.default_rng(3), One(rows, columns)
    optimizer = Muon(model, settings)
    u, _, v = np.linalg.svd(rng.standard_normal((rows, columns)), full_matrices=False)
    model.linear.weight.grad.copy_(torch.from_numpy(1e6 * (u * values) @ v))
    optimizer.measure()
    optimizer.step(1.0)
    return np.linalg.svd(model.weights.numpy() / settings.size(rows, columns), compute_uv=False)


@pytest.mark.parametrize("coefficients, steps, smallest, low, high", [
    ("quintic", 5, 2e-3, 0.68, 1.21), ("polar_express", 5, 1e-3, 0.80, 1.20), ("polar_express", 8, 1e-3, 0.999, 1.001),
    ("classical", 20, 1e-3, 0.999999, 1.000001), ("classical", 5, 1e-2, 0.2, 1.000001)])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24)], ids=str)
def test_singular_values_lie_in_the_band_of_the_polynomials(coefficients, steps, smallest, low, high, shape):
    def through(s: np.ndarray) -> np.ndarray:
        s = s / muon_reference.MARGINS[coefficients]
        for a, b, c in muon_reference.polynomials(coefficients, steps):
            s = a * s + b * s**3 + c * s**5
        return s

    band = through(np.geomspace(smallest, 1.0, 5001))
    assert low < band.min() and band.max() < high
    values = np.geomspace(2 * smallest * np.sqrt(24), 1.0, 24)  # at least `smallest` of the Frobenius norm
    found = singular_values_of_an_update(MuonSettings(coefficients=coefficients, steps=steps), values, *shape)
    assert band.min() - 1e-12 < found.min() and found.max() < band.max() + 1e-12
    np.testing.assert_allclose(np.sort(found), np.sort(through(values / np.linalg.norm(values))), rtol=1e-8)


def test_the_muon_of_the_seed_is_the_polar_factor():
    """After 20 steps nothing of the polynomials is left: the update of each head is U V^T of its gradient."""
    model = Decoder(GROUPED, seed=2)
    optimizer = make_optimizer(model, SEED_MUON)
    before = {name: p.data.numpy().copy() for name, p in model.named_parameters()}
    draw_gradients(model, 7)
    optimizer.measure()
    optimizer.step(1e-2)
    for name in ("layers.1.attention.qkv.weight", "layers.0.attention.out.weight", "head.weight"):
        parameter = optimizer.arena.parameters[name]
        arrays = before[name], parameter.grad.numpy(), parameter.data.numpy()
        for old, gradient, new in zip(*(pieces(name, array, True) for array in arrays)):
            u, _, v = np.linalg.svd(gradient, full_matrices=False)
            wanted = old - 1e-2 * (0.2 * np.sqrt(max(old.shape)) * u @ v + 0.1 * old)
            np.testing.assert_allclose(new, wanted, rtol=0, atol=1e-6)


def test_normuon_makes_rows_equal_and_keeps_the_size():
    rng, model = np.random.default_rng(0), One(8, 40)
    optimizer = Muon(model, MuonSettings(row_beta=0.9, scale="aspect", weight_decay=0.0))
    for step in range(3):
        model.linear.weight.grad.copy_(torch.from_numpy(rng.standard_normal((8, 40))))
        before = model.weights.clone()
        optimizer.measure()
        optimizer.step(1.0)
        rows = np.linalg.norm((model.weights - before).numpy(), axis=1)
        assert np.linalg.norm(rows) == pytest.approx(np.sqrt(8), rel=1e-6)
        assert step or rows == pytest.approx(np.ones(8), rel=1e-6)  # the first time, a row's mean is its own size


def test_nothing_moves_without_a_gradient():
    for row_beta in (0.0, 0.95):
        model = One(6, 4)
        optimizer = Muon(model, MuonSettings(row_beta=row_beta))
        optimizer.measure()
        optimizer.step(1.0)
        assert optimizer.updates == 1 and not model.weights.any()


@pytest.mark.parametrize("settings", [MuonSettings(), MuonSettings(row_beta=0.95, per_head=True)])
def test_runs_are_equal_bit_for_bit_with_any_number_of_threads(settings):
    results, threads = [], kernels.threads()
    try:
        for count in (1, 2, 2, 3):
            kernels.set_threads(count)
            model = Decoder(GROUPED, seed=1)
            optimizer = Muon(model, settings, clip_norm=1.0)
            for step in range(3):
                draw_gradients(model, step)
                optimizer.measure()
                optimizer.step(1e-2)
            results.append(optimizer.arena.weights)
    finally:
        kernels.set_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_unknown_choices_are_named():
    for wrong in ({"muon_coefficients": "cubic"}, {"muon_scale": "rms"}):
        with pytest.raises(UserError, match="must be one of .*: got '(cubic|rms)'"):
            make_optimizer(One(2, 3), OptimConfig(optimizer="muon", **wrong))
