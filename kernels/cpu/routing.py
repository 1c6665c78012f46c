"""Choosing experts for tokens, and the chosen (token, choice) pairs grouped by expert with a counting sort."""

from __future__ import annotations

import numpy as np
import torch

from .. import memory
from . import elementwise, softmax
from .compiled import compiled
from .rows import as_rows, as_vector, launch_rows
from .softmax import exp_to_zero

SMALLEST_SUM = 1e-20  # added to a sum of sigmoid scores before dividing: gates of 0 instead of 0 / 0 where all vanish
COST = 16  # of an element of these short rows, in elements of a loop that streams
_RAW, _SOFTMAX, _SHARE = 0, 1, 2


@compiled
def _choose_rows(values, bias, indices):
    """The largest values + bias of each row, the first of equals first; NaN comes last."""
    lowest = -values.dtype.type(np.inf)
    for i in range(values.shape[0]):
        row, chosen = values[i], indices[i]
        for j in range(chosen.shape[0]):
            best, top = -1, lowest
            for e in range(row.shape[0]):
                value = row[e] + bias[e]
                value = value if value == value else lowest
                taken = False
                for earlier in range(j):
                    taken = taken or chosen[earlier] == e
                if not taken and (best < 0 or value > top):
                    best, top = e, value
            chosen[j] = best


@compiled
def _gate_rows(values, indices, rule, gates):
    zero, one, smallest = values.dtype.type(0), values.dtype.type(1), values.dtype.type(SMALLEST_SUM)
    for i in range(values.shape[0]):
        row, chosen, out = values[i], indices[i], gates[i]
        top = row[chosen[0]]
        for j in range(out.shape[0]):
            out[j] = row[chosen[j]]
            top = out[j] if out[j] > top else top
        if rule == _RAW:
            continue
        total = zero if rule == _SOFTMAX else smallest
        for j in range(out.shape[0]):
            out[j] = exp_to_zero(out[j] - top) if rule == _SOFTMAX else out[j]
            total += out[j]
        scale = one / total
        for j in range(out.shape[0]):
            out[j] *= scale


@compiled
def _backward_rows(dgates, dscores, indices, gates, scores, is_softmax, normalised, dlogits):
    one, smallest = scores.dtype.type(1), scores.dtype.type(SMALLEST_SUM)
    for i in range(scores.shape[0]):
        row, out, chosen, gate, dgate = scores[i], dlogits[i], indices[i], gates[i], dgates[i]
        total, dot = smallest, row.dtype.type(0)
        for j in range(chosen.shape[0]):
            total += row[chosen[j]]
            dot += gate[j] * dgate[j]
        for e in range(row.shape[0]):
            out[e] = dscores[i, e]
        if not normalised:
            for j in range(chosen.shape[0]):
                out[chosen[j]] += dgate[j]
        elif not is_softmax:
            for j in range(chosen.shape[0]):
                out[chosen[j]] += (dgate[j] - dot) / total
        if is_softmax:
            mean = row.dtype.type(0)
            for e in range(row.shape[0]):
                mean += row[e] * out[e]
            for e in range(row.shape[0]):
                out[e] = row[e] * (out[e] - mean)
        else:
            for e in range(row.shape[0]):
                out[e] = out[e] * row[e] * (one - row[e])
        if is_softmax and normalised:
            for j in range(chosen.shape[0]):
                out[chosen[j]] += gate[j] * (dgate[j] - dot)


@compiled
def _count(indices, counts):
    for p in range(indices.shape[0]):
        counts[indices[p]] += 1


@compiled
def _place(indices, offsets, cursor, order, place):
    for e in range(cursor.shape[0]):
        offsets[e + 1] += offsets[e]
        cursor[e] = offsets[e]
    for p in range(indices.shape[0]):
        row = cursor[indices[p]]
        cursor[indices[p]] = row + 1
        order[row] = p
        place[p] = row


def forward(logits: torch.Tensor, indices: torch.Tensor, score: str, normalised: bool,
            bias: torch.Tensor | None = None, noise: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    scores = softmax.forward(logits) if score == "softmax" else elementwise.apply("sigmoid", logits)
    ranked = scores if bias is not None else logits
    if noise is not None:
        ranked = elementwise.apply("add", logits, noise)
    gates = memory.empty(indices.shape, logits.dtype)
    rule = _RAW if not normalised else _SOFTMAX if score == "softmax" else _SHARE
    values, source = as_rows(ranked), as_rows(logits if rule == _SOFTMAX else scores)
    shift = np.zeros(values.shape[1], values.dtype) if bias is None else as_vector(bias)
    rows_indices, rows_gates = as_rows(indices), as_rows(gates)

    def program(part: slice):
        _choose_rows(values[part], shift, rows_indices[part])
        _gate_rows(source[part], rows_indices[part], rule, rows_gates[part])

    launch_rows(program, len(values), COST * values.shape[1])
    return gates, scores


def backward(dgates: torch.Tensor, dscores: torch.Tensor, logits: torch.Tensor, indices: torch.Tensor,
             gates: torch.Tensor, scores: torch.Tensor, score: str, normalised: bool) -> torch.Tensor:
    dlogits = memory.empty(logits.shape, logits.dtype)
    rows = tuple(map(as_rows, (dgates, dscores, indices, gates, scores)))
    out, is_softmax = as_rows(dlogits), score == "softmax"
    launch_rows(lambda part: _backward_rows(*(array[part] for array in rows), is_softmax, normalised, out[part]),
                len(out), COST * out.shape[1])
    return dlogits


def count(indices: torch.Tensor, experts: int) -> torch.Tensor:
    counts = torch.zeros(experts, dtype=torch.int32)
    _count(as_vector(indices), counts.numpy())
    return counts


def group(indices: torch.Tensor, experts: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    flat = as_vector(indices)
    offsets, cursor = np.zeros(experts + 1, np.int32), np.empty(experts, np.int32)
    order, place = memory.empty((flat.size,), torch.int32), memory.empty(indices.shape, torch.int32)
    _count(flat, offsets[1:])
    _place(flat, offsets, cursor, as_vector(order), as_vector(place))
    return torch.from_numpy(offsets), order, place
