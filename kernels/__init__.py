"""Device programs without autograd: the contract.

A kernel is known by its name here. Its programs for the CPU are in `kernels/cpu/NAME.py`, for the GPU in
`kernels/gpu/NAME.py`, with the same functions and signatures; a call goes to the device of its first tensor ("meta"
tensors, which have no values, go to the GPU's programs, to see what these would launch).
`forward` returns the result and what `backward` needs besides the inputs; `backward` takes the result's gradient
first. Where it takes `into`, a buffer like the weight (or one per weight, in a tuple), it adds the weight's gradient
to that and returns None in its place. Shapes are (rows, columns) of contiguous tensors unless said otherwise; "..."
stands for any leading dimensions. Results are fresh tensors of the inputs' floating dtype unless a line says "in
place"; where that has less than 32 bits, arithmetic, statistics (rstd, lse) and losses are float32.
"""

from __future__ import annotations

import contextlib
import functools
import importlib

import torch

from . import memory
from .memory import copy, empty, empty_like, zeros

__all__ = ["Kernel", "copy", "empty", "empty_like", "zeros", "memory", "programs", "set_threads", "threads"]

_packages = {"cpu": "cpu", "cuda": "gpu", "meta": "gpu"}
"""Device -> folder of its programs."""


class Kernel:
    """The programs of one name. `kernel.function(...)` runs `kernels.<device>.<name>.function(...)`."""

    def __init__(self, name: str, contract: str):
        self.name, self.__doc__ = name, contract

    def __getattr__(self, function: str):
        if function.startswith("__"):
            raise AttributeError(function)

        def call(*arguments, **options):
            device = next(a.device.type for a in arguments if isinstance(a, torch.Tensor))
            package = _packages.get(device, device)
            program = getattr(_program(self.name, package), function, None)
            if program is None:
                raise NotImplementedError(f"kernel {self.name} has no program {function} for {package}")
            return program(*arguments, **options)

        setattr(self, function, call)
        return call


@functools.cache
def _program(name: str, package: str):
    module = f"kernels.{package}.{name}"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not module.startswith(error.name):
            raise
        raise NotImplementedError(f"kernel {name} has no program for {package}") from error


@contextlib.contextmanager
def programs(package: str):
    """Within this context calls on CPU tensors run `kernels/<package>`; Triton's interpreter runs those of "gpu"."""
    before, _packages["cpu"] = _packages["cpu"], package
    try:
        yield
    finally:
        _packages["cpu"] = before


def set_threads(count: int) -> None:
    """Run CPU programs on `count` threads."""
    from .cpu import launch

    launch.set_threads(count)


def threads() -> int:
    """Number of threads that CPU programs run on."""
    from .cpu import launch

    return launch.threads()


linear = Kernel("linear", """y = x W^T (+ residual).

    forward(x, weight, residual=None) -> y
    backward(dy, x, weight, into=None) -> dx, dweight          (the residual's gradient is dy)
    x (..., d_in), weight (d_out, d_in), y and residual (..., d_out)
    """)

rms_norm = Kernel("rms_norm", """y = x / sqrt(mean(x^2) + eps) * gain over the last dimension (arXiv 1910.07467).

    forward(x, gain, eps) -> y, rstd
    backward(dy, x, gain, rstd) -> dx, dgain
    add_forward(x, residual, gain, eps) -> total, y, rstd               (total = x + residual, y = rms_norm(total))
    add_backward(dy, dtotal, total, gain, rstd) -> dx, dgain                (dx is the residual's gradient too)
    x, y, residual, total (..., d), gain (d), rstd (...)
    """)

rms_norm_linear = Kernel("rms_norm_linear", """y = rms_norm(x) W^T.

    forward(x, gain, weight, eps) -> y, rstd
    backward(dy, x, gain, weight, rstd, into=None, dresidual=None) -> dx, dgain, dweight
    x (..., d_in), gain (d_in), weight (d_out, d_in), y (..., d_out), rstd (...); dresidual (..., d_in) is added to dx
    """)

swiglu_linear = Kernel("swiglu_linear", """y = (silu(gate) * up) W^T (+ residual), h = [gate | up] (arXiv 2002.05202).

    forward(h, weight, residual=None) -> y
    backward(dy, h, weight, into=None) -> dh, dweight          (the residual's gradient is dy)
    h (..., 2 f), weight (d_out, f), y and residual (..., d_out)
    """)

feed_forward = Kernel("feed_forward", """y = x + (silu(gate) * up) W_down^T, [gate | up] = rms_norm(x) W_gate_up^T.

    forward(x, gain, gate_up, down, eps) -> y, h, rstd
    backward(dy, x, gain, gate_up, down, h, rstd, into=(None, None)) -> dx, dgain, dgate_up, ddown
    x, y (..., d), gain (d), gate_up (2 f, d), down (d, f), h (..., 2 f): [gate | up], rstd (...)
    """)

attention = Kernel("attention", """Causal attention on a packed projection, with optional QK-norm and RoPE.

    forward(qkv, n_heads, n_kv_heads, cos, sin, q_gain, k_gain, eps, doc_start) -> out, lse
    backward(dout, out, lse, qkv, <the same arguments>) -> dqkv, dq_gain, dk_gain
    qkv (B, T, (H + 2 K) D): queries of H heads, keys of K, values of K; head h reads key head h // (H / K)
    cos, sin (>= T, D / 2) or None: rotates features (i, i + D/2) (arXiv 2104.09864); gains (D) or None: RMS norm of
    queries and keys per head, before the rotation; doc_start int32 (B, T) or None: the first position in the row that
    a token may see; never past the token, never decreasing. Scores are scaled by 1 / sqrt(D).
    out (B, T, H D); lse (B, H, T): log-sum-exp of the scores
    """)

linear_cross_entropy = Kernel("linear_cross_entropy", """Sum of cross-entropy(x W^T, target) in nats / normalizer.

    forward(x, weight, targets, normalizer, ignore_index=-100, with_gradient=True) -> loss, dx, dweight
    x (..., d), weight (vocabulary, d), targets int64 (...): rows whose target is `ignore_index` count nothing.
    The gradients are for a loss gradient of 1. Holds logits of a bounded number of rows only.
    """)

elementwise = Kernel("elementwise", """Operations element by element, with broadcasting; operands of any strides.

    apply(name, *operands) -> result
    cast(x, dtype) -> result
    accumulate(into, x): into += x in place, same shape, into contiguous
    scale(x, factor): x *= factor in place, x contiguous; factor is a tensor with one element
    Operands have one dtype (the condition of `where` is bool); comparisons give bool.
    Names: add sub mul div pow neg abs maximum minimum clamp(x, low, high) exp log sqrt tanh sigmoid relu silu gelu
    gelu_tanh where(condition, a, b) eq ne lt le gt ge logical_not. For gradients, with y the result:
    abs_backward silu_backward gelu_backward gelu_tanh_backward (dy, x); sqrt_backward tanh_backward sigmoid_backward
    relu_backward (dy, y); clamp_backward (dy, x, low, high); divisor_backward (dy, y, divisor);
    pow_base_backward (dy, x, exponent); pow_exponent_backward (dy, x, exponent, y); larger_backward and
    smaller_backward (dy, a, b): the share of a in max and min, half at a tie; exp_shifted (dy, x, shift):
    dy e^(x - shift); square_difference (x, y): (x - y)^2; scaled_difference (dy, x, y): dy (x - y)
    """)

reduce = Kernel("reduce", """Reductions.

    reduce(x, name, dims) -> y       (name sum, max or min; the dimensions `dims` become 1; integers stay integers)
    argmax(x), argmin(x) -> int64    (over the last dimension; the first of equals)
    """)

softmax = Kernel("softmax", """Softmax over the last dimension; an element of -inf weighs exactly 0.

    forward(x) -> y;       backward(dy, y) -> dx              (softmax)
    log_forward(x) -> y;   log_backward(dy, y) -> dx          (log-softmax)
    logsumexp(x) -> lse (...)
    """)

cross_entropy = Kernel("cross_entropy", """Sum of cross-entropy(logits, target) in nats / normalizer.

    forward(logits, targets, normalizer, ignore_index=-100) -> loss, top, total
    backward(dloss, logits, targets, top, total, normalizer, ignore_index=-100) -> dlogits
    logits (..., classes), targets int64 (...): rows whose target is `ignore_index` count nothing; loss ();
    top and total (...): a row's largest logit, and its sum of e^(logit - top)
    """)

layer_norm = Kernel("layer_norm", """y = (x - mean) / sqrt(variance + eps) * gain + bias (arXiv 1607.06450).

    forward(x, gain, bias, eps) -> y, mean, rstd
    backward(dy, x, gain, mean, rstd) -> dx, dgain, dbias
    Over the last dimension. x, y (..., d), gain and bias (d), mean and rstd (...)
    """)

matmul = Kernel("matmul", """Matrix products.

    matmul(a, b) -> a @ b    (a (..., n, k), b (..., k, m) of any strides; leading dimensions are broadcast)
    """)

rope = Kernel("rope", """Rotary position embedding, pairing feature i with i + D/2 (arXiv 2104.09864).

    rotate(x, cos, sin) -> y    (x, y (B, T, H, D), cos and sin (T, D / 2); the inverse is the same with -sin)
    """)

dropout = Kernel("dropout", """Zeroes element i with probability p, scales the others by 1 / (1 - p).

    apply(x, p, seed, offset) -> y       (its own gradient: apply it to dy)
    uniform(like, seed, offset) -> u     (the float32 numbers in [0, 1) it draws; an element stays where u >= p)
    Element i (in contiguous order) draws the first word of Philox-4x32-10 with 64-bit key `seed` and 64-bit counter
    `offset + i`, as triton.language.rand(seed, offset + i).
    """)

swiglu = Kernel("swiglu", """y = silu(gate) * up for h = [gate | up] (arXiv 2002.05202).

    forward(h) -> y;  backward(dy, h) -> dh      (h (..., 2 f), y (..., f))
    """)

indexing = Kernel("indexing", """Picking elements, and its gradients; repeated positions add up in order.

    take(x, index) -> x[index];   take_backward(dy, index, shape) -> dx
        index: tuple of slices and integer or boolean tensors, NumPy's rules
    gather(x, index, dim) -> y;   gather_backward(dy, index, dim, shape) -> dx
        y[i][j][k] = x[i][index[i][j][k]][k] for dim 1; index within x's size in the other dimensions
    put(x, index, shape) -> zeros of `shape` with x at the basic index
    cat(*tensors, dim=dim) -> y
    """)

embedding = Kernel("embedding", """Rows of a table.

    forward(ids, weight) -> y
    backward(dy, ids, rows) -> dweight              (deterministic)
    ids int64 (...), weight (rows, d), y (..., d)
    """)

_optimizer = Kernel("optimizer", "Passes over flat parameter buffers.")


def adamw(weights, grads, exp_avg, exp_avg_sq, *, lr, beta1, beta2, eps, weight_decay, step, grad_scale=1.0) -> None:
    """One step of AdamW (arXiv 1711.05101, algorithm 2) in place over flat buffers (n,) of one floating dtype.

    Args:
        step: number of this step, from 1; corrects the moments' bias.
        grad_scale: factor for the gradients, for clipping.
    """
    _optimizer.adamw(weights, grads, exp_avg, exp_avg_sq, lr=lr, beta1=beta1, beta2=beta2, eps=eps,
                     weight_decay=weight_decay, step=step, grad_scale=grad_scale)


def sum_of_squares(x) -> float:
    """Sum of the squares of all elements, in float64."""
    return _optimizer.sum_of_squares(x)
