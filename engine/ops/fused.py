"""The operations a decoder is made of, each one kernel: projections fused with what comes before them."""

from __future__ import annotations

import numpy as np
import torch

import kernels

from ..errors import UserError
from ..autograd import Op, Tensor
from .checks import as_ids, expect, expect_input


class Linear(Op):
    def forward(self, x, weight, residual=None):
        self.x, self.weight = x, weight
        return kernels.linear.forward(x, weight, residual)

    def backward(self, dy):
        dx, dweight = kernels.linear.backward(dy, self.x, self.weight, self.gradient_of(1))
        return (dx, dweight, dy)[: len(self.needs)]


def linear(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Tensor:
    """y = x W^T (+ residual).

    Args:
        x: (..., d_in).
        weight: (d_out, d_in).
        residual: (..., d_out), added to the product.
    """
    expect_input("linear", x, weight)
    if residual is not None:
        expect("linear", "residual", residual, (*x.shape[:-1], weight.shape[0]), x.dtype)
    return Linear.apply(x, weight) if residual is None else Linear.apply(x, weight, residual)


class RMSNormLinear(Op):
    def forward(self, x, gain, weight, *, eps):
        y, rstd = kernels.rms_norm_linear.forward(x, gain, weight, eps)
        self.saved = x, gain, weight, rstd
        return y

    def backward(self, dy):
        return kernels.rms_norm_linear.backward(dy, *self.saved, self.gradient_of(2), self.take_arrived(0))


def rms_norm_linear(x: Tensor, gain: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """y = rms_norm(x) W^T (RMSNorm: arXiv 1910.07467).

    Args:
        x: (..., d_in).
        gain: (d_in,).
        weight: (d_out, d_in).
    """
    expect_input("rms_norm_linear", x, weight)
    expect("rms_norm_linear", "gain", gain, weight.shape[1:], x.dtype)
    return RMSNormLinear.apply(x, gain, weight, eps=eps)


class SwiGLULinear(Op):
    def forward(self, h, weight, residual=None):
        self.h, self.weight = h, weight
        return kernels.swiglu_linear.forward(h, weight, residual)

    def backward(self, dy):
        dh, dweight = kernels.swiglu_linear.backward(dy, self.h, self.weight, self.gradient_of(1))
        return (dh, dweight, dy)[: len(self.needs)]


def swiglu_linear(h: Tensor, weight: Tensor, residual: Tensor | None = None) -> Tensor:
    """y = (silu(gate) * up) W^T (+ residual) with h = [gate | up] (SwiGLU: arXiv 2002.05202).

    Args:
        h: (..., 2 f).
        weight: (d_out, f).
        residual: (..., d_out), added to the product.
    """
    expect_input("swiglu_linear", h, weight, 2 * weight.shape[-1])
    if residual is not None:
        expect("swiglu_linear", "residual", residual, (*h.shape[:-1], weight.shape[0]), h.dtype)
    return SwiGLULinear.apply(h, weight) if residual is None else SwiGLULinear.apply(h, weight, residual)


class FeedForward(Op):
    def forward(self, x, gain, gate_up, down, *, eps):
        y, h, rstd = kernels.feed_forward.forward(x, gain, gate_up, down, eps)
        self.saved = x, gain, gate_up, down, h, rstd
        return y

    def backward(self, dy):
        return kernels.feed_forward.backward(dy, *self.saved, (self.gradient_of(2), self.gradient_of(3)))


def feed_forward(x: Tensor, gain: Tensor, gate_up: Tensor, down: Tensor, eps: float = 1e-6) -> Tensor:
    """y = x + (silu(gate) * up) W_down^T with [gate | up] = rms_norm(x) W_gate_up^T: a whole pre-norm SwiGLU part.

    Args:
        x: (..., d).
        gain: (d,) of the norm.
        gate_up: (2 f, d).
        down: (d, f).
    """
    expect_input("feed_forward", x, gate_up)
    width, inner = gate_up.shape[1], gate_up.shape[0] // 2
    expect("feed_forward", "gate_up", gate_up, (2 * inner, width), x.dtype)
    expect("feed_forward", "down", down, (width, inner), x.dtype)
    expect("feed_forward", "gain", gain, (width,), x.dtype)
    return FeedForward.apply(x, gain, gate_up, down, eps=eps)


class Attention(Op):
    def forward(self, qkv, *values, names, n_heads, n_kv_heads, cos, sin, eps, doc_start, **options):
        """`names` says which of the tensors that may be left out `values` are."""
        given = dict(zip(names, values, strict=True))
        distance = (given["reach"], given["offset"]) if "reach" in given else None
        self.arguments = (n_heads, n_kv_heads, cos, sin, given.get("q_gain"), given.get("k_gain"), eps, doc_start)
        self.options = {**options, "distance": distance}
        out, lse = kernels.attention.forward(qkv, *self.arguments, **self.options)
        self.saved = out, lse, qkv
        return out

    def backward(self, dout):
        dqkv, *others = kernels.attention.backward(dout, *self.saved, *self.arguments, **self.options)
        return dqkv, *(gradient for gradient in others if gradient is not None)


def attention(qkv: Tensor, n_heads: int, n_kv_heads: int, rope: tuple[torch.Tensor, torch.Tensor] | None = None,
              q_gain: Tensor | None = None, k_gain: Tensor | None = None, eps: float = 1e-6,
              doc_start: torch.Tensor | None = None, causal: bool = True, window: int | None = None,
              alibi: torch.Tensor | None = None, softcap: float | None = None,
              distance: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Grouped-query attention on a packed projection; scores are scaled by 1 / sqrt(D).

    Args:
        qkv: (B, T, (H + 2 K) D): the queries of H heads, then the keys of K heads, then the values of K heads.
        rope: cos and sin, each (at least T, R / 2), R at most D, to rotate features i and i + R / 2 of the first R
            (arXiv 2104.09864); in the dtype of qkv, or in float32 beside half precision.
        q_gain, k_gain: (D,) gains of a per-head RMS norm of queries and keys before the rotation; both or neither.
        doc_start: int32 (B, T), position in the row of the first token of each token's document; keys before it
            are invisible, and without `causal` those of later documents too.
        causal: whether keys after the query are invisible.
        window: a query sees only the last so many keys, its own among them; without `causal` as many ahead.
        alibi: float32 (H,) slopes: slope |i - j| is taken from the score of query i and key j (arXiv 2108.12409).
        softcap: c turns a score s into c tanh(s / c), before what follows from positions (arXiv 2408.00118).
        distance: reach and offset, each (1,): a score is divided by 1 + reach |i - j|, and less offset if j < i.

    Returns:
        (B, T, H D).
    """
    if n_heads % n_kv_heads:
        raise UserError(f"attention: n_heads must be a multiple of n_kv_heads, got {n_heads} and {n_kv_heads}")
    if qkv.ndim != 3 or qkv.shape[-1] % (2 * (n_heads + 2 * n_kv_heads)):
        raise UserError(f"attention: qkv must be (B, T, ({n_heads} + 2 * {n_kv_heads}) * even head size), "
                        f"got {qkv.shape}")
    if (q_gain is None) != (k_gain is None):
        raise UserError("attention: give both q_gain and k_gain, or neither")
    batch, tokens, width = qkv.shape
    dim = width // (n_heads + 2 * n_kv_heads)
    if q_gain is not None:
        expect("attention", "q_gain", q_gain, (dim,), qkv.dtype)
        expect("attention", "k_gain", k_gain, (dim,), qkv.dtype)
    cos, sin = rope if rope is not None else (None, None)
    if rope is not None:
        positions, pairs = max(len(cos), tokens), min(max(cos.shape[-1], 1), dim // 2)
        kind = torch.float32 if qkv.dtype.itemsize < cos.dtype.itemsize == 4 else qkv.dtype
        expect("attention", "cos", cos, (positions, pairs), kind)
        expect("attention", "sin", sin, (positions, pairs), kind)
    if doc_start is not None:
        expect("attention", "doc_start", doc_start, (batch, tokens), torch.int32)
        check_doc_start("attention", doc_start)
    if window is not None and window < 1:
        raise UserError(f"attention: window must be at least 1, the query's own key, got {window}")
    if alibi is not None:
        expect("attention", "alibi", alibi, (n_heads,), torch.float32)
    if softcap is not None and not 0 < softcap < float("inf"):
        raise UserError(f"attention: softcap must be positive and finite, got {softcap}")
    reach, offset = (None, None) if distance is None else distance
    if distance is not None:
        expect("attention", "reach", reach, (1,), qkv.dtype)
        expect("attention", "offset", offset, (1,), qkv.dtype)
    inputs = {"q_gain": q_gain, "k_gain": k_gain, "reach": reach, "offset": offset}
    inputs = {name: value for name, value in inputs.items() if value is not None}
    return Attention.apply(qkv, *inputs.values(), names=tuple(inputs), n_heads=n_heads, n_kv_heads=n_kv_heads, cos=cos,
                           sin=sin, eps=eps, doc_start=doc_start, causal=causal, window=window, alibi=alibi,
                           softcap=softcap)


def check_doc_start(name: str, doc_start: torch.Tensor) -> None:
    """Raise unless each row is 0 <= doc_start[i] <= i and never decreases; on a GPU that would mean waiting."""
    if doc_start.device.type != "cpu":
        return
    array = doc_start.numpy()
    position = np.arange(array.shape[1])
    if (array < 0).any() or (array > position).any() or (array[:, 1:] < array[:, :-1]).any():
        raise UserError(f"{name}: doc_start must never decrease along a row nor point below 0 or past its own token")


class LinearCrossEntropy(Op):
    exact = True

    def forward(self, x, weight, *, targets, normalizer, ignore_index, z_loss, softcap):
        loss, self.dx, self.dweight = kernels.linear_cross_entropy.forward(
            x, weight, targets, normalizer, ignore_index, any(self.needs), z_loss, softcap)
        return loss

    def backward(self, dloss):
        kernels.elementwise.scale(self.dx, dloss)
        kernels.elementwise.scale(self.dweight, dloss)
        return kernels.rounded(self.dx), self.dweight


def loss_settings(name: str, targets: torch.Tensor, classes: int, ignore_index: int, normalizer, z_loss: float,
                  softcap: float | None) -> dict:
    """What the kernels of cross-entropy need besides the logits.

    Raises unless every target that is not `ignore_index` is in [0, classes), which is only known without waiting where
    targets lie in the CPU's memory, and unless the other settings are numbers that make sense.
    """
    if isinstance(normalizer, Tensor):
        normalizer = normalizer.data
    if isinstance(normalizer, torch.Tensor):
        if normalizer.numel() != 1 or not normalizer.dtype.is_floating_point or normalizer.device != targets.device:
            raise UserError(f"{name}: normalizer must be a number or a floating-point tensor with one element on "
                            f"{targets.device}, got {normalizer.dtype} of shape {tuple(normalizer.shape)} on "
                            f"{normalizer.device}")
    elif normalizer is not None and not 0 < normalizer < float("inf"):
        raise UserError(f"{name}: normalizer must be a number above 0, got {normalizer}")
    if not 0 <= z_loss < float("inf"):
        raise UserError(f"{name}: z_loss must be a number from 0 on, got {z_loss}")
    if softcap is not None and not 0 < softcap < float("inf"):
        raise UserError(f"{name}: softcap must be a number above 0 or None, got {softcap}")
    if targets.device.type == "cpu":
        count = _check_targets(name, targets.numpy(), classes, ignore_index)
        normalizer = max(count, 1) if normalizer is None else normalizer
    elif normalizer is None:
        normalizer = kernels.cross_entropy.count(targets, ignore_index)
    return {"targets": targets, "normalizer": normalizer, "ignore_index": ignore_index, "z_loss": z_loss,
            "softcap": softcap}


def _check_targets(name: str, targets: np.ndarray, classes: int, ignore_index: int) -> int:
    """The number of targets that are not `ignore_index`; raises unless every one of those is in [0, classes)."""
    valid = targets[targets != ignore_index]
    if valid.size and (valid.min() < 0 or valid.max() >= classes):
        raise UserError(f"{name}: targets must lie in [0, {classes}) or be {ignore_index}, "
                        f"got {valid.min()} to {valid.max()}")
    return valid.size


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: torch.Tensor,
                         normalizer: float | torch.Tensor | None = None, ignore_index: int = -100, z_loss: float = 0.0,
                         softcap: float | None = None) -> Tensor:
    """Sum of cross-entropy(x W^T, target) over the targets that count, divided by `normalizer`.

    The logits of all rows never exist together: memory does not grow with rows times vocabulary. Where targets lie on a
    GPU, one that is no class makes the loss NaN instead of raising UserError.

    Args:
        x: (..., d).
        weight: (vocabulary, d).
        targets: int64 (...); rows whose target is `ignore_index` count nothing.
        normalizer: divisor, a number or a tensor with one element; the number of targets that count when left out.
        z_loss: adds z_loss log(sum e^logit)^2 to each row's loss (PaLM: arXiv 2204.02311, section 5).
        softcap: replaces logits by softcap tanh(logits / softcap) (Gemma 2: arXiv 2408.00118, section 2).

    Returns:
        A scalar, in nats.
    """
    expect_input("linear_cross_entropy", x, weight)
    targets = as_ids(targets)
    expect("linear_cross_entropy", "targets", targets, x.shape[:-1], torch.int64)
    settings = loss_settings("linear_cross_entropy", targets, len(weight), ignore_index, normalizer, z_loss, softcap)
    return LinearCrossEntropy.apply(x, weight, **settings)
