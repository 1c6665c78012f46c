"""Mixture of experts: tokens choose experts, and every chosen expert runs; no capacity limit, no dropped token."""

from __future__ import annotations

import torch

import kernels

from ..errors import UserError
from ..autograd import Op, Tensor
from .checks import as_ids, check_range, expect

SCORES = ("softmax", "sigmoid")


class RouterLogits(Op):
    exact = True

    def forward(self, x, weight, *, scale):
        self.saved, self.scale = (x, weight), scale
        return _scaled(kernels.linear.forward(*self.precise()), scale)

    def precise(self) -> list[torch.Tensor]:
        """Inputs in float32 at least: made anew for backward, as x is kept for the experts as it is."""
        return [_cast(buffer, buffer.dtype if buffer.dtype.itemsize >= 4 else torch.float32) for buffer in self.saved]

    def backward(self, dy):
        dx, dweight = kernels.linear.backward(_scaled(dy, self.scale), *self.precise(), self.gradient_of(1))
        return kernels.rounded(_cast(dx, self.saved[0].dtype)), dweight


def router_logits(x: Tensor, weight: Tensor, scale: float = 1.0) -> Tensor:
    """y = scale x W^T in float32 at least, whatever a model computes with: rounded logits choose other experts.

    Args:
        x: (..., d) of the dtype of the weight, or of half precision.
        weight: (experts, d).
    """
    if weight.ndim != 2 or x.shape[-1:] != weight.shape[1:] or not x.dtype.is_floating_point:
        raise UserError(f"router_logits: x must be floating-point (..., d) and the weight (experts, d), "
                        f"got {x.dtype}, {x.shape} and {weight.shape}")
    return RouterLogits.apply(x, weight, scale=scale)


def _scaled(buffer: torch.Tensor, scale: float) -> torch.Tensor:
    if scale == 1.0:
        return buffer
    return kernels.elementwise.apply("mul", buffer, torch.full((), scale, dtype=buffer.dtype, device=buffer.device))


def _cast(buffer: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return buffer if buffer.dtype == dtype else kernels.elementwise.cast(buffer, dtype)


class Route(Op):
    exact = True

    def forward(self, logits, *, indices, score, normalised, bias, noise):
        gates, scores = kernels.routing.forward(logits, indices, score, normalised, bias, noise)
        self.saved = logits, indices, gates, scores, score, normalised
        return gates, scores

    def backward(self, dgates, dscores):
        return kernels.routing.backward(dgates, dscores, *self.saved)


def route(logits: Tensor, k: int, score: str = "softmax", normalised: bool = True, bias: torch.Tensor | None = None,
          noise: torch.Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Choose k experts for every token.

    Args:
        logits: (..., experts) of the router, best in float32.
        score: "softmax" or "sigmoid" of the logits.
        normalised: whether a token's gates are shares of their sum; else they are the scores themselves.
        bias: (experts,) added to the scores for the choice only (loss-free balance: arXiv 2408.15664).
        noise: like logits; the choice is then by logits + noise (+ bias). Gumbel noise draws k experts by their
            softmax probabilities, without replacement (arXiv 1903.06059).

    Returns:
        gates (..., k); scores (..., experts); and the experts, int64 (..., k), the first choice first and the lower of
        equals before the higher. Gates and scores are float32 where the logits are of half precision.
    """
    if logits.ndim == 0 or not logits.dtype.is_floating_point:
        raise UserError(f"route: logits must be floating-point (..., experts), got {logits.dtype}, {logits.shape}")
    if score not in SCORES:
        raise UserError(f"route: score must be one of {', '.join(SCORES)}, got {score!r}")
    if not 1 <= k <= logits.shape[-1]:
        raise UserError(f"route: k must be from 1 to the {logits.shape[-1]} experts, got {k}")
    for name, values, shape in (("bias", bias, logits.shape[-1:]), ("noise", noise, logits.shape)):
        if values is not None and tuple(values.shape) != shape:
            raise UserError(f"route: {name} must have shape {shape}, got {tuple(values.shape)}")
    indices = kernels.empty((*logits.shape[:-1], k), torch.int64, logits.device)
    gates, scores = Route.apply(logits, indices=indices, score=score, normalised=normalised, bias=bias, noise=noise)
    return gates, scores, Tensor(indices)


def expert_counts(indices, experts: int) -> Tensor:
    """How often each expert was chosen: int32 (experts,).

    Args:
        indices: whole numbers below `experts`, any shape.
    """
    indices = _checked("expert_counts", indices, experts)
    return Tensor(kernels.routing.count(indices, experts))


class Experts(Op):
    def forward(self, x, gates, gate_up, down, residual=None, *, indices):
        groups = kernels.routing.group(indices, len(down))
        y, h = kernels.experts.forward(x, gates, groups, gate_up, down, residual)
        self.saved = x, gates, groups, gate_up, down, h
        return y

    def backward(self, dy):
        gradients = kernels.experts.backward(dy, *self.saved, (self.gradient_of(2), self.gradient_of(3)))
        return (*gradients, dy)[: len(self.needs)]


def experts(x: Tensor, gates: Tensor, indices, gate_up: Tensor, down: Tensor, residual: Tensor | None = None) -> Tensor:
    """y[t] = (residual[t] +) sum over c of gates[t, c] * expert(x[t], indices[t, c]).

    An expert e is (silu(gate) * up) down[e]^T with [gate | up] = x gate_up[e]^T.

    Args:
        x: (..., d).
        gates: (..., k), float32 or of the dtype of x.
        indices: whole numbers (..., k): the experts of each token.
        gate_up: (experts, 2 f, d).
        down: (experts, d, f). An expert that no token chose gets a gradient of 0.
        residual: (..., d), added to the sum.
    """
    if gate_up.ndim != 3 or gate_up.shape[0] == 0 or gate_up.shape[1] % 2 or x.ndim == 0:
        raise UserError(f"experts: gate_up must be (experts, 2 f, d) and x (..., d), got {gate_up.shape} and {x.shape}")
    count, inner, width = gate_up.shape[0], gate_up.shape[1] // 2, gate_up.shape[2]
    expect("experts", "x", x, (*x.shape[:-1], width), gate_up.dtype)
    expect("experts", "down", down, (count, width, inner), x.dtype)
    indices = _checked("experts", indices, count)
    if indices.ndim != x.ndim or tuple(indices.shape[:-1]) != x.shape[:-1] or not indices.shape[-1]:
        raise UserError(f"experts: indices must be {(*x.shape[:-1], 'k')}, got shape {tuple(indices.shape)}")
    expect("experts", "gates", gates, indices.shape, x.dtype if gates.dtype == x.dtype else torch.float32)
    if residual is not None:
        expect("experts", "residual", residual, x.shape, x.dtype)
    inputs = (x, gates, gate_up, down) if residual is None else (x, gates, gate_up, down, residual)
    return Experts.apply(*inputs, indices=indices)


def _checked(name: str, indices, experts: int) -> torch.Tensor:
    """The indices as a buffer; on a GPU they are not looked at, which would wait for it."""
    indices = as_ids(indices)
    if indices.device.type == "cpu":
        check_range(name, indices, experts)
    return indices
