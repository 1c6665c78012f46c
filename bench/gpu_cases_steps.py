"""GPU cases of what runs once per step of training, and of decoding."""

from __future__ import annotations

import torch

import kernels

from .gpu_case import Buffer, GpuCase, below, positive

PARAMETERS = 185_597_952


def _ones(shape, _sizes, device):
    return torch.ones(shape, device=device)


def _two_groups(_shape, sizes, device):
    border = 3 * sizes["n"] // 4 // 64 * 64
    return torch.tensor([[0, border], [border, sizes["n"]]], device=device)


def _adamw(b):
    kernels.optimizer.adamw(b.weights, b.grads, b.exp_avg, b.exp_avg_sq, (b.bounds, b.factors), b.control, b.working,
                            beta1=0.9, beta2=0.95, eps=1e-8)


def _norm(b):
    kernels.optimizer.begin_step(b.control, kernels.optimizer.norm(b.x, out=b.out), beta1=0.9, beta2=0.95,
                                 clip_norm=1.0)


OPTIMIZER = [
    GpuCase(
        "adamw",
        {"weights": Buffer("n"), "grads": Buffer("n"), "exp_avg": Buffer("n"), "exp_avg_sq": Buffer("n", positive),
         "working": Buffer("n", dtype=torch.bfloat16), "bounds": Buffer("s 2", _two_groups, torch.int64),
         "factors": Buffer("s 2", positive), "control": Buffer("eight", _ones, torch.float64)},
        _adamw, None, {"n": PARAMETERS, "s": 2, "eight": 8}, ("float32",),
        traffic=lambda n, _: (30 * n.n, 0),
    ),
    GpuCase(
        "average", {"mean": Buffer("n"), "weights": Buffer("n"), "control": Buffer("eight", _ones, torch.float64)},
        lambda b: kernels.optimizer.average(b.mean, b.weights, b.control, decay=0.999), None,
        {"n": PARAMETERS, "eight": 8}, ("float32",), traffic=lambda n, size: (3 * n.n * size, 0),
    ),
    GpuCase(
        "norm",
        {"x": Buffer("n"), "out": Buffer("one", _ones, torch.float64),
         "control": Buffer("eight", _ones, torch.float64)},
        _norm, None, {"n": PARAMETERS, "one": 1, "eight": 8}, ("float32",), narrow=("begin_step",),
        traffic=lambda n, size: (n.n * size, 0),
        rivals={"torch": lambda b: torch.linalg.vector_norm(b.x)},
    ),
]

POLYNOMIAL = (3.4445, -4.7750, 2.0315)


def _newton_schulz(name: str, matrices: int, rows: int, columns: int, dtypes: tuple[str, ...]) -> GpuCase:
    """Of the two products that are symmetric, one half counts."""
    short, long = sorted((rows, columns))
    return GpuCase(
        name, {"x": Buffer("n r c")}, lambda b: kernels.newton_schulz.orthogonalise(b.x, (POLYNOMIAL,) * 5), None,
        {"n": matrices, "r": rows, "c": columns}, dtypes,
        flops=lambda n: (5 * n.n * (3 * short * short * long + short**3), 0), tf32="float32" in dtypes,
    )


def _muon(b):
    count, rows = b.squares.shape
    size = b.weights.numel() // count
    stack = kernels.Stack(0, size, count, rows, size // rows)
    kernels.muon.step(b.weights, b.grads, b.momentum, (stack,), b.control, b.working, [b.squares], lr_factor=1.0,
                      decay=0.1, beta=0.95, row_beta=0.95, nesterov=True, coefficients=(POLYNOMIAL,) * 5, margin=1.0,
                      dtype=torch.bfloat16)


NORMUON = GpuCase(
    "muon",
    {"weights": Buffer("m*r*c"), "grads": Buffer("m*r*c"), "momentum": Buffer("m*r*c"),
     "squares": Buffer("m r", positive), "working": Buffer("m*r*c", dtype=torch.bfloat16),
     "control": Buffer("eight", _ones, torch.float64)},
    _muon, None, {"m": 24, "r": 2048, "c": 768, "eight": 8}, ("float32",), narrow=("row_factors",),
    flops=lambda n: (5 * n.m * (3 * n.c * n.c * n.r + n.c**3), 0),
)

MUON = [_newton_schulz("newton_schulz", 12, 768, 2048, ("bfloat16", "float32")),
        _newton_schulz("newton_schulz_tall", 12, 4096, 768, ("bfloat16",)), NORMUON]


def _sampling(name: str, **settings: float) -> GpuCase:
    return GpuCase(
        name, {"logits": Buffer("b v"), "seen": Buffer("b c", below("v"), torch.int64),
               "offset": Buffer("one", _ones, torch.int64)},
        lambda b: (kernels.sampling.sample(b.logits[:, :65_544], 1 << 40, b.offset, b.seen, **settings),
                   kernels.sampling.probabilities(b.logits[:, :65_544], b.seen, **settings)), None,
        {"b": 16, "v": 65_664, "c": 1024, "one": 1},
    )


SAMPLING = [
    _sampling("sampling", temperature=0.8, top_k=50, top_p=0.95, repetition_penalty=1.1),
    _sampling("sampling_top_p", temperature=0.8, top_p=0.95),
    _sampling("sampling_greedy", temperature=0.0),
]


def _decode_attention(name: str, heads: int, key_heads: int, dim: int, with_alibi: bool = False,
                      with_distance: bool = False, **settings: float) -> GpuCase:
    alibi = {"alibi": Buffer("h", positive, torch.float32)} if with_alibi else {}
    distance = {"reach": Buffer("1", positive), "offset": Buffer("1", positive)} if with_distance else {}
    return GpuCase(
        name, {"q": Buffer("b h e"), "keys": Buffer("b t k e"), "values": Buffer("b t k e"),
               "lengths": Buffer("b", _nearly_full, torch.int32), **alibi, **distance},
        lambda b: kernels.decode_attention.forward(b.q, b.keys, b.values, b.lengths, **settings,
                                                   alibi=getattr(b, "alibi", None),
                                                   distance=(b.reach, b.offset) if with_distance else None), None,
        {"b": 16, "t": 4096, "h": heads, "k": key_heads, "e": dim},
        traffic=lambda n, size: (2 * n.b * min(n.t, settings.get("window", n.t)) * n.k * n.e * size, 0),
    )


def _nearly_full(shape, sizes, device):
    return torch.full(shape, sizes["t"] - 1, device=device)


DECODING = [
    _decode_attention("decode_attention", 6, 6, 128),
    _decode_attention("decode_attention_grouped", 32, 8, 64, with_alibi=True, window=1024, softcap=20.0),
    _decode_attention("decode_attention_wide", 8, 1, 256),
    _decode_attention("decode_attention_distance", 12, 12, 128, with_distance=True),
]

STEPS = {case.name: case for case in [*OPTIMIZER, *MUON, *SAMPLING, *DECODING]}
