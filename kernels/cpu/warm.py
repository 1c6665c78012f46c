"""Compiles the kernels of a decoder's training step ahead of time: `python -m kernels.cpu.warm`.

Numba compiles a loop at its first call and keeps the machine code. Doing that at installation takes the wait out of
the first training step.
"""

from __future__ import annotations

import time

import torch

import kernels


def warm(dtype: torch.dtype = torch.float32) -> None:
    """Run every kernel of a training step once, forward and backward, on tiny inputs."""
    tokens, width, heads, dim = 8, 16, 2, 8
    x, residual = torch.ones(1, tokens, width, dtype=dtype), torch.ones(1, tokens, width, dtype=dtype)
    gain, head_gain = torch.ones(width, dtype=dtype), torch.ones(dim, dtype=dtype)
    table = torch.ones(tokens, dim // 2, dtype=dtype)
    square, packed = torch.ones(width, width, dtype=dtype), torch.ones(3 * width, width, dtype=dtype)
    gate_up = torch.ones(2 * width, width, dtype=dtype)
    ids = torch.arange(tokens)[None]

    kernels.embedding.backward(kernels.embedding.forward(ids, square), ids, width)
    qkv, rstd = kernels.rms_norm_linear.forward(x, gain, packed, 1e-6)
    kernels.rms_norm_linear.backward(qkv, x, gain, packed, rstd)
    setting = (heads, heads, table, table, head_gain, head_gain, 1e-6, None)
    out, lse = kernels.attention.forward(qkv, *setting)
    kernels.attention.backward(out, out, lse, qkv, *setting)
    number, mixer = torch.ones(1, dtype=dtype), torch.ones(heads, heads, dtype=dtype)
    out, lse = kernels.talking_heads.forward(qkv, heads, number, number, mixer, mixer)
    kernels.talking_heads.backward(out, lse, qkv, heads, number, number, mixer, mixer)
    kernels.linear.backward(kernels.linear.forward(out, square, residual), out, square)
    _, h, rstd = kernels.feed_forward.forward(x, gain, gate_up, square, 1e-6)
    kernels.feed_forward.backward(x, x, gain, gate_up, square, h, rstd)
    indices, pair = torch.zeros(1, tokens, 1, dtype=torch.int64), torch.ones(1, tokens, 2, dtype=dtype)
    for score in ("softmax", "sigmoid"):
        gates, scores = kernels.routing.forward(pair, indices, score, True)
        kernels.routing.backward(gates, scores, pair, indices, gates, scores, score, True)
    kernels.routing.count(indices, 2)
    stacks = (torch.ones(2, 2 * width, width, dtype=dtype), torch.ones(2, width, width, dtype=dtype))
    groups = kernels.routing.group(indices, 2)
    y, h = kernels.experts.forward(x, gates, groups, *stacks, residual)
    kernels.experts.backward(y, x, gates, groups, *stacks, h)
    y, rstd = kernels.rms_norm.forward(x, gain, 1e-6)
    kernels.rms_norm.backward(y, x, gain, rstd)
    kernels.linear_cross_entropy.forward(x, square, ids, 1.0)
    flat = torch.ones(width, dtype=dtype)
    segments = torch.tensor([[0, width]]), torch.ones(1, 2, dtype=dtype)
    kernels.optimizer.adamw(flat, flat.clone(), flat.clone(), flat.clone(), segments,
                            torch.ones(8, dtype=torch.float64), beta1=0.9, beta2=0.9, eps=1e-8)
    kernels.optimizer.norm(flat)
    stacks, ready = (kernels.Stack(0, width, 1, 4, 4),), torch.ones(8, dtype=torch.float64)
    kernels.muon.step(flat, flat.clone(), flat.clone(), stacks, ready, None, [torch.ones(1, 4, dtype=dtype)],
                      lr_factor=1.0, decay=0.0, beta=0.9, row_beta=0.9, nesterov=True, coefficients=((1.5, -0.5, 0.0),),
                      margin=1.0, dtype=dtype)
    kernels.optimizer.average(flat, flat.clone(), ready, decay=0.9)
    kernels.elementwise.accumulate(flat, flat.clone())


def main() -> None:
    start = time.perf_counter()
    warm()
    print(f"CPU kernels compiled in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
