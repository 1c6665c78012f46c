"""GPU cases of mixtures of experts: few wide experts, and many narrow ones, at the width of preset base-0.18b."""

from __future__ import annotations

import torch

import kernels

from .gpu_case import Buffer, GpuCase, below

TOKENS, WIDTH = 65_536, 768
INTEGERS = torch.int64
SHORT = ("forward", "backward", "count", "add_up", "place", "row_tiles")
"""Functions of routing that read a word per token or expert, or rows of experts shorter than 16 bytes per thread."""


def _routing(name: str, experts: int, k: int, score: str = "softmax", normalised: bool = True, biased: bool = False,
             noisy: bool = False) -> GpuCase:
    """Indices as the router gives them, the rest as the buffers have it."""
    def forward(b):
        indices = torch.empty_like(b.indices)
        gates, scores = kernels.routing.forward(b.logits, indices, score, normalised, b.bias if biased else None,
                                                b.noise if noisy else None)
        return gates, scores, indices

    def backward(b, result):
        return kernels.routing.backward(result[0], result[1], b.logits, result[2], *result[:2], score, normalised)

    word = torch.float32
    buffers = {"logits": Buffer("t e", dtype=word), "indices": Buffer("t k", below("e"), INTEGERS)}
    buffers |= {"bias": Buffer("e", dtype=word)} if biased else {}
    buffers |= {"noise": Buffer("t e", dtype=word)} if noisy else {}
    return GpuCase(name, buffers, forward, backward, {"t": TOKENS, "e": experts, "k": k}, ("float32",), SHORT,
                   traffic=lambda n, size: (n.t * ((2 + noisy) * n.e + 3 * n.k) * 4, n.t * (3 * n.e + 4 * n.k) * 4))


def _mixture(name: str, tokens: int, experts: int, k: int, inner: int, dtypes: tuple[str, ...],
             residual: bool = False) -> GpuCase:
    def forward(b):
        groups = kernels.routing.group(b.indices, len(b.down))
        return groups, *kernels.experts.forward(b.x, b.gates, groups, b.gate_up, b.down, b.x if residual else None)

    def backward(b, result):
        groups, _, h = result
        return kernels.experts.backward(b.dy, b.x, b.gates, groups, b.gate_up, b.down, h, (b.dgate_up, b.ddown))

    buffers = {"x": Buffer("t d"), "gates": Buffer("t k", dtype=torch.float32), "dy": Buffer("t d"),
               "indices": Buffer("t k", below("e"), INTEGERS), "gate_up": Buffer("e 2*f d"), "down": Buffer("e d f"),
               "dgate_up": Buffer("e 2*f d", dtype=torch.float32), "ddown": Buffer("e d f", dtype=torch.float32)}
    return GpuCase(name, buffers, forward, backward,
                   {"t": tokens, "d": WIDTH, "f": inner, "e": experts, "k": k}, dtypes, SHORT, traffic=_traffic,
                   flops=lambda n: (6 * n.t * n.k * n.d * n.f, 12 * n.t * n.k * n.d * n.f), tf32=True)


def _traffic(n, size):
    """What the chain of products reads and writes: an expert's weights once, a token k times.

    Forward: x, h and a written, a read, z written and read, y. Backward: dy, da written and read, h, a written, dh,
    a and dy, dh and x, dh, dx by rows written and read, dx; gradients of weights read and written in float32.
    """
    rows, weights = n.t * n.k, 3 * n.e * n.d * n.f
    forward = (rows * (3 * n.d + 4 * n.f) + n.t * n.d + weights) * size
    backward = (rows * (5 * n.d + 12 * n.f) + n.t * n.d + weights) * size + weights * 8
    return forward, backward


MIXTURES = [
    _mixture("experts_8_top_2", TOKENS, 8, 2, 2048, ("bfloat16", "float32"), residual=True),
    _mixture("experts_32_top_3", TOKENS, 32, 3, 512, ("bfloat16",), residual=True),
    _mixture("experts_64_top_8", TOKENS, 64, 8, 256, ("bfloat16", "float16", "float32")),
    _mixture("experts_few_tokens", 32, 8, 2, 2048, ("bfloat16", "float32")),
    _routing("routing_8_top_2", 8, 2, biased=True),
    _routing("routing_32_top_3", 32, 3, biased=True),
    _routing("routing_64_top_8", 64, 8),
    _routing("routing_64_top_8_sigmoid", 64, 8, "sigmoid", normalised=False, biased=True, noisy=True),
]
