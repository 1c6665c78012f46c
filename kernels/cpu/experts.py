"""SwiGLU experts on the tokens routed to them, an expert's rows a block at a time.

Of the wide intermediate values only [gate | up] goes to memory, for backward. The gates' gradients need no outputs of
the experts: dgate = dy · (W_down a) = (W_down^T dy) · a, and backward makes W_down^T dy anyway.
"""

from __future__ import annotations

import numpy as np
import torch

from .. import memory
from .compiled import compiled, exp
from .gemm import multiply
from .grouped_linear import WeightGradients, combine_rows, gather_rows, piece_rows, pieces
from .launch import launch_ranges, scratch
from .rounding import rounded
from .rows import as_rows, as_vector, launch_rows
from .swiglu_linear import activate_rows

Groups = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@compiled
def _activation_backward_rows(da, h, pairs, gates, a, dh, dgates):
    """a: the activation times its gate. dh and dgates: gradients of [gate | up] and, where the pair is, of the gate.

    Args:
        da: the activation's gradient before the gate is applied.
        pairs: which of the gates belongs to a row.
    """
    width, one = a.shape[1], a.dtype.type(1)
    for i in range(a.shape[0]):
        gate, up, out, d = h[i, :width], h[i, width:], a[i], da[i]
        dgate, dup = dh[i, :width], dh[i, width:]
        weight, dot = gates[pairs[i]], a.dtype.type(0)
        for j in range(width):
            sigmoid = one / (one + exp(-gate[j]))
            silu = gate[j] * sigmoid
            active, scaled = silu * up[j], weight * d[j]
            dot += d[j] * active
            out[j] = weight * active
            dup[j] = scaled * silu
            dgate[j] = scaled * up[j] * (sigmoid + silu * (one - sigmoid))
        dgates[pairs[i]] = dot


def forward(x: torch.Tensor, gates: torch.Tensor, groups: Groups, gate_up: torch.Tensor, down: torch.Tensor,
            residual: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    offsets, order, place = groups
    _, width, inner = down.shape
    rows, choices = len(order), place.shape[-1]
    y, h = memory.empty(x.shape, x.dtype), memory.empty((rows, 2 * inner), x.dtype)
    z = memory.empty((rows, width), x.dtype)
    starts, pairs, array_x, array_h = offsets.numpy(), as_vector(order), as_rows(x), h.numpy()
    n = piece_rows(2 * width + 3 * inner)

    def program(_lane: int, start: int, stop: int):
        for expert, first, end in pieces(starts, start, stop, n):
            gathered = scratch("gathered", (n, width), x.dtype)[: end - first]
            active = scratch("active", (n, inner), x.dtype)[: end - first]
            gather_rows(array_x, pairs[first:end], choices, gathered.numpy())
            multiply(gathered, gate_up[expert].t(), h[first:end])
            rounded(h[first:end])
            activate_rows(array_h[first:end], active.numpy())
            multiply(rounded(active), down[expert].t(), z[first:end])
            rounded(z[first:end])

    launch_ranges(program, rows)
    _combine(z, place, as_rows(gates), residual, y)
    return y, h


def backward(dy: torch.Tensor, x: torch.Tensor, gates: torch.Tensor, groups: Groups, gate_up: torch.Tensor,
             down: torch.Tensor, h: torch.Tensor,
             into: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)):
    offsets, order, place = groups
    _, width, inner = down.shape
    rows, choices = len(order), place.shape[-1]
    dx, dgates = memory.empty(x.shape, x.dtype), memory.empty(gates.shape, gates.dtype)
    dx_rows = memory.empty((rows, width), x.dtype)
    starts, pairs, array_x, array_dy, array_h = offsets.numpy(), as_vector(order), as_rows(x), as_rows(dy), as_rows(h)
    gate, dgate = as_vector(gates), as_vector(dgates)
    dgate_up, ddown = WeightGradients(starts, gate_up, into[0]), WeightGradients(starts, down, into[1])
    n = piece_rows(2 * width + 4 * inner)

    def program(lane: int, start: int, stop: int):
        for expert, first, end in pieces(starts, start, stop, n):
            part = pairs[first:end]
            gathered = scratch("gathered", (n, width), x.dtype)[: end - first]
            active, d_active = (scratch(name, (n, inner), x.dtype)[: end - first] for name in ("active", "d_active"))
            dh = scratch("dh", (n, 2 * inner), x.dtype)[: end - first]
            gather_rows(array_dy, part, choices, gathered.numpy())
            multiply(gathered, down[expert], d_active)
            _activation_backward_rows(rounded(d_active).numpy(), array_h[first:end], part, gate, active.numpy(),
                                      dh.numpy(), dgate)
            ddown.add(lane, expert, gathered, rounded(active))
            gather_rows(array_x, part, choices, gathered.numpy())
            dgate_up.add(lane, expert, rounded(dh), gathered)
            multiply(dh, gate_up[expert], dx_rows[first:end])
            rounded(dx_rows[first:end])

    launch_ranges(program, rows)
    _combine(dx_rows, place, np.ones((rows // choices, choices), array_x.dtype), None, dx)
    return dx, dgates, dgate_up.total(), ddown.total()


def _combine(rows: torch.Tensor, place: torch.Tensor, gates: np.ndarray, residual: torch.Tensor | None,
             y: torch.Tensor) -> None:
    """y = (residual +) each token's rows, weighted by its gates."""
    array, places, out = rows.numpy(), as_rows(place), as_rows(y)
    base = array if residual is None else as_rows(residual)
    launch_rows(lambda part: combine_rows(array, places[part], gates[part], base[part], residual is not None,
                                          out[part]), *out.shape)
