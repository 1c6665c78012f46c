"""GPU cases of the kernels that go over rows: layer norm, softmax, activations with their projections, and losses."""

from __future__ import annotations

import torch
from torch.nn import functional as F

import kernels

from .gpu_case import Buffer, GpuCase, below, positive
from .references import cross_entropy, swiglu

TOKENS, WIDTH, HIDDEN, VOCABULARY = 65_536, 768, 2048, 65_544
PADDED = 65_664  # the vocabulary in steps of 128


def _ones(shape, _sizes, device):
    return torch.ones(shape, device=device)


TARGETS = Buffer("t", below("v"), torch.int64)
SCALAR = Buffer("one", _ones, torch.float32)


def _layer_norm(name: str, rows: int, width: int) -> GpuCase:
    return GpuCase(
        name, {"x": Buffer("t d"), "gain": Buffer("d", positive), "bias": Buffer("d"), "dy": Buffer("t d")},
        lambda b: kernels.layer_norm.forward(b.x, b.gain, b.bias, 1e-5),
        lambda b, result: kernels.layer_norm.backward(b.dy, b.x, b.gain, result[1], result[2]),
        {"t": rows, "d": width},
        traffic=lambda n, size: (2 * n.t * n.d * size, 3 * n.t * n.d * size),
        rivals={"torch": lambda b: F.layer_norm(b.x, b.gain.shape, b.gain, b.bias, 1e-5)},
    )


def _softmax(name: str, forward, backward, rival, rows: int, width: int) -> GpuCase:
    return GpuCase(
        name, {"x": Buffer("t d"), "dy": Buffer("t d")}, lambda b: forward(b.x),
        (lambda b, y: backward(b.dy, y)) if backward else None, {"t": rows, "d": width},
        traffic=lambda n, size: ((2 if backward else 1) * n.t * n.d * size, 3 * n.t * n.d * size if backward else 0),
        rivals={"torch": lambda b: rival(b.x, -1)},
    )


def _probabilities(ending: str, rows: int, width: int) -> list[GpuCase]:
    softmax = kernels.softmax
    return [
        _softmax("softmax" + ending, softmax.forward, softmax.backward, torch.softmax, rows, width),
        _softmax("log_softmax" + ending, softmax.log_forward, softmax.log_backward, torch.log_softmax, rows, width),
        _softmax("logsumexp" + ending, softmax.logsumexp, None, torch.logsumexp, rows, width),
    ]


def _cross_entropy(name: str, rows: int, vocabulary: int) -> GpuCase:
    return GpuCase(
        name, {"logits": Buffer("t v"), "targets": TARGETS, "dloss": SCALAR},
        lambda b: kernels.cross_entropy.forward(b.logits, b.targets, 1.0),
        lambda b, result: kernels.cross_entropy.backward(b.dloss, b.logits, b.targets, *result[1:], 1.0),
        {"t": rows, "v": vocabulary, "one": 1},
        traffic=lambda n, size: (n.t * n.v * size, 2 * n.t * n.v * size),
        rivals={"torch": lambda b: cross_entropy(b.logits, b.targets, 1.0)},
    )


def _in_place(name: str, **settings) -> GpuCase:
    """A chunk's logits becoming their gradient; timed again, they are what the last time made of them."""
    return GpuCase(
        name, {"logits": Buffer("t padded"), "targets": TARGETS, "losses": Buffer("t", dtype=torch.float32),
               "normalizer": SCALAR},
        lambda b: kernels.cross_entropy.in_place(b.logits, b.targets, b.losses, b.normalizer, classes=VOCABULARY,
                                                 **settings),
        None, {"t": 8192, "padded": PADDED, "v": VOCABULARY, "one": 1},
        traffic=lambda n, size: (2 * n.t * n.v * size, 0),
    )


def _activation(name: str, rival) -> GpuCase:
    apply = kernels.elementwise.apply
    return GpuCase(
        name, {"x": Buffer("t f"), "dy": Buffer("t f")}, lambda b: apply(name, b.x),
        lambda b, _: apply(name + "_backward", b.dy, b.x), {"t": TOKENS, "f": 4 * WIDTH},
        traffic=lambda n, size: (2 * n.t * n.f * size, 3 * n.t * n.f * size),
        rivals={"torch": lambda b: rival(b.x)},
    )


ROWS = [
    _layer_norm("layer_norm", TOKENS, WIDTH),
    _layer_norm("layer_norm_wide", 4096, 8192),
    *_probabilities("", TOKENS, 1024),
    *_probabilities("_long", 8192, 65_536),
    _activation("relu_squared", lambda x: F.relu(x).square()),
    _activation("gelu", F.gelu),
    _activation("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")),
    GpuCase(
        "swiglu", {"h": Buffer("t 2*f"), "dy": Buffer("t f")},
        lambda b: kernels.swiglu.forward(b.h), lambda b, _: kernels.swiglu.backward(b.dy, b.h),
        {"t": TOKENS, "f": HIDDEN}, ("bfloat16", "float16", "float32"),
        traffic=lambda n, size: (3 * n.t * n.f * size, 5 * n.t * n.f * size),
        rivals={"torch": lambda b: swiglu(b.h)},
    ),
    GpuCase(
        "swiglu_linear", {"h": Buffer("t 2*f"), "weight": Buffer("d f"), "dy": Buffer("t d")},
        lambda b: kernels.swiglu_linear.forward(b.h, b.weight),
        lambda b, _: kernels.swiglu_linear.backward(b.dy, b.h, b.weight), {"t": TOKENS, "d": WIDTH, "f": HIDDEN},
        flops=lambda n: (2 * n.t * n.d * n.f, 4 * n.t * n.d * n.f),
        rivals={"torch": lambda b: F.linear(swiglu(b.h), b.weight)},
    ),
    GpuCase(
        "feed_forward",
        {"x": Buffer("t d"), "gain": Buffer("d", positive), "gate_up": Buffer("2*f d"), "down": Buffer("d f"),
         "dy": Buffer("t d")},
        lambda b: kernels.feed_forward.forward(b.x, b.gain, b.gate_up, b.down, 1e-6),
        lambda b, result: kernels.feed_forward.backward(b.dy, b.x, b.gain, b.gate_up, b.down, *result[1:]),
        {"t": TOKENS, "d": WIDTH, "f": HIDDEN},
        flops=lambda n: (6 * n.t * n.d * n.f, 12 * n.t * n.d * n.f),
        rivals={"torch": lambda b: b.x + F.linear(
            swiglu(F.linear(F.rms_norm(b.x, b.gain.shape, b.gain, 1e-6), b.gate_up)), b.down)},
    ),
    _cross_entropy("cross_entropy", 8192, VOCABULARY),
    _cross_entropy("cross_entropy_bytes", TOKENS, 264),
    _in_place("cross_entropy_in_place"),
    _in_place("cross_entropy_regularised", z_loss=1e-4, softcap=15.0),
    GpuCase("count_targets", {"targets": TARGETS}, lambda b: kernels.cross_entropy.count(b.targets), None,
            {"t": TOKENS, "v": VOCABULARY}, ("float32",), traffic=lambda n, _: (8 * n.t, 0)),
    GpuCase(
        "linear_cross_entropy", {"x": Buffer("t d"), "weight": Buffer("v d"), "targets": TARGETS},
        lambda b: kernels.linear_cross_entropy.forward(b.x, b.weight, b.targets, 1.0), None,
        {"t": TOKENS, "d": WIDTH, "v": VOCABULARY},
        flops=lambda n: (6 * n.t * n.d * n.v, 0),
        rivals={"torch": lambda b: cross_entropy(F.linear(b.x, b.weight), b.targets, 1.0)},
    ),
]
