"""The table of GPU cases: every kernel at the sizes of preset base-0.18b, and some at others.

A row buys ahead-of-time compilation of every launch it makes (`bench.aot`), and the timing.
"""

from __future__ import annotations

from torch.nn import functional as F

import kernels

from .gpu_case import Buffer, GpuCase, positive
from .gpu_cases_attention import ATTENTION
from .gpu_cases_generic import GENERIC
from .gpu_cases_moe import MIXTURES
from .gpu_cases_rows import ROWS
from .gpu_cases_steps import STEPS

TOKENS, WIDTH = 65_536, 768


def _rms_norm(name: str, rows: int, width: int) -> GpuCase:
    return GpuCase(
        name, {"x": Buffer("t d"), "gain": Buffer("d", positive), "dy": Buffer("t d")},
        lambda b: kernels.rms_norm.forward(b.x, b.gain, 1e-6),
        lambda b, result: kernels.rms_norm.backward(b.dy, b.x, b.gain, result[1]),
        {"t": rows, "d": width},
        traffic=lambda n, size: (2 * n.t * n.d * size, 3 * n.t * n.d * size),
        rivals={"torch": lambda b: F.rms_norm(b.x, b.gain.shape, b.gain, 1e-6)},
    )


NORMS = [
    _rms_norm("rms_norm", TOKENS, WIDTH),
    _rms_norm("rms_norm_wide", 4096, 8192),
    _rms_norm("rms_norm_head", 6 * TOKENS, 128),
    GpuCase(
        "add_rms_norm",
        {"x": Buffer("t d"), "residual": Buffer("t d"), "gain": Buffer("d", positive), "dy": Buffer("t d"),
         "dtotal": Buffer("t d")},
        lambda b: kernels.rms_norm.add_forward(b.x, b.residual, b.gain, 1e-6),
        lambda b, result: kernels.rms_norm.add_backward(b.dy, b.dtotal, result[0], b.gain, result[2]),
        {"t": TOKENS, "d": WIDTH}, ("bfloat16", "float16", "float32"),
        traffic=lambda n, size: (4 * n.t * n.d * size, 4 * n.t * n.d * size),
        rivals={"torch": lambda b: (b.x + b.residual, F.rms_norm(b.x + b.residual, b.gain.shape, b.gain, 1e-6))},
    ),
    GpuCase(
        "rms_norm_linear",
        {"x": Buffer("t d"), "gain": Buffer("d", positive), "weight": Buffer("3*d d"), "dy": Buffer("t 3*d"),
         "dresidual": Buffer("t d")},
        lambda b: kernels.rms_norm_linear.forward(b.x, b.gain, b.weight, 1e-6),
        lambda b, result: kernels.rms_norm_linear.backward(b.dy, b.x, b.gain, b.weight, result[1], None, b.dresidual),
        {"t": TOKENS, "d": WIDTH},
        flops=lambda n: (6 * n.t * n.d * n.d, 12 * n.t * n.d * n.d),
        rivals={"torch": lambda b: F.linear(F.rms_norm(b.x, b.gain.shape, b.gain, 1e-6), b.weight)},
    ),
]

CASES = {**{case.name: case for case in [*NORMS, *ROWS, *GENERIC, *ATTENTION, *MIXTURES]}, **STEPS}
