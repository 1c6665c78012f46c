"""Attention's heads between the packed rows of the projection and the stacks that its matrix products take.

Shapes: b sequences, H query or key heads, K key heads, G = H / K, D features per head, n tokens of a block. Rows are
(b, T, columns); a stack is (b K, G n, D), where the heads that share a key head stand below each other. The tables
cos and sin turn as many pairs as they have columns, and leave the features after those.
"""

from __future__ import annotations

import numpy as np

from .compiled import compiled


@compiled
def take_heads(packed, first, heads, column, group, normed, eps, gain, cos, sin, scale, out, rstd):
    """out[b K + key_head, g * n + i] = rotated, normed and scaled head key_head * G + g of token first + i."""
    n, half, key_heads = out.shape[1] // group, cos.shape[1], heads // group
    dim = gain.shape[0]
    one, count = packed.dtype.type(1), packed.dtype.type(dim)
    for b in range(packed.shape[0]):
        for i in range(n):
            token = first + i
            for key_head in range(key_heads):
                for g in range(group):
                    head = key_head * group + g
                    x = packed[b, token, column + head * dim: column + head * dim + dim]
                    y = out[b * key_heads + key_head, g * n + i]
                    r = one
                    if normed:
                        total = packed.dtype.type(0)
                        for j in range(dim):
                            total += x[j] * x[j]
                        r = one / np.sqrt(total / count + eps)
                    rstd[b, token, head] = r
                    r *= scale
                    for j in range(half):
                        u, v = x[j] * gain[j] * r, x[j + half] * gain[j + half] * r
                        y[j] = u * cos[token, j] - v * sin[token, j]
                        y[j + half] = v * cos[token, j] + u * sin[token, j]
                    for j in range(2 * half, dim):
                        y[j] = x[j] * gain[j] * r


@compiled
def give_heads(dout, first, heads, column, group, normed, gain, cos, sin, scale, packed, rstd, dpacked, dgain, work):
    """The gradient of `take_heads` where every feature turns: writes dpacked, adds to dgain. `work` holds one head."""
    n, half, key_heads = dout.shape[1] // group, gain.shape[0] // 2, heads // group
    dim = 2 * half
    per_feature = packed.dtype.type(1) / packed.dtype.type(dim)
    for b in range(packed.shape[0]):
        for i in range(n):
            token = first + i
            for key_head in range(key_heads):
                for g in range(group):
                    head = key_head * group + g
                    dy = dout[b * key_heads + key_head, g * n + i]
                    x = packed[b, token, column + head * dim: column + head * dim + dim]
                    dx = dpacked[b, token, column + head * dim: column + head * dim + dim]
                    for j in range(half):
                        work[j] = (dy[j] * cos[token, j] + dy[j + half] * sin[token, j]) * scale
                        work[j + half] = (dy[j + half] * cos[token, j] - dy[j] * sin[token, j]) * scale
                    if not normed:
                        for j in range(dim):
                            dx[j] = work[j]
                        continue
                    r = rstd[b, token, head]
                    dot = packed.dtype.type(0)
                    for j in range(dim):
                        dot += work[j] * gain[j] * x[j]
                    dot *= r * r * r * per_feature
                    for j in range(dim):
                        dgain[j] += work[j] * x[j] * r
                        dx[j] = work[j] * gain[j] * r - x[j] * dot


@compiled
def give_heads_partly(dout, first, heads, column, group, normed, gain, cos, sin, scale, packed, rstd, dpacked, dgain,
                      work):
    """`give_heads` for tables that turn the first features only. Apart, as its loops run at a third of the speed."""
    n, half, key_heads = dout.shape[1] // group, cos.shape[1], heads // group
    dim = gain.shape[0]
    per_feature = packed.dtype.type(1) / packed.dtype.type(dim)
    for b in range(packed.shape[0]):
        for i in range(n):
            token = first + i
            for key_head in range(key_heads):
                for g in range(group):
                    head = key_head * group + g
                    dy = dout[b * key_heads + key_head, g * n + i]
                    x = packed[b, token, column + head * dim: column + head * dim + dim]
                    dx = dpacked[b, token, column + head * dim: column + head * dim + dim]
                    for j in range(half):
                        work[j] = (dy[j] * cos[token, j] + dy[j + half] * sin[token, j]) * scale
                        work[j + half] = (dy[j + half] * cos[token, j] - dy[j] * sin[token, j]) * scale
                    work_rest, dy_rest = work[2 * half: dim], dy[2 * half:]
                    for j in range(dy_rest.shape[0]):
                        work_rest[j] = dy_rest[j] * scale
                    if not normed:
                        for j in range(dim):
                            dx[j] = work[j]
                        continue
                    r = rstd[b, token, head]
                    dot = packed.dtype.type(0)
                    for j in range(dim):
                        dot += work[j] * gain[j] * x[j]
                    dot *= r * r * r * per_feature
                    for j in range(dim):
                        dgain[j] += work[j] * x[j] * r
                        dx[j] = work[j] * gain[j] * r - x[j] * dot


@compiled
def copy_heads(rows, first, heads, column, group, out):
    """out[b K + key_head, g * n + i] = the features of head key_head * G + g of token first + i."""
    n, dim, key_heads = out.shape[1] // group, out.shape[2], heads // group
    for b in range(rows.shape[0]):
        for i in range(n):
            for key_head in range(key_heads):
                for g in range(group):
                    start = column + (key_head * group + g) * dim
                    x, y = rows[b, first + i, start: start + dim], out[b * key_heads + key_head, g * n + i]
                    for j in range(dim):
                        y[j] = x[j]


@compiled
def store_output(o, inverse, n, first, heads, group, out):
    """out[b, first + i, head] = o's row times its reciprocal sum."""
    dim, key_heads = o.shape[2], heads // group
    for b in range(out.shape[0]):
        for i in range(n):
            for key_head in range(key_heads):
                for g in range(group):
                    part, start = b * key_heads + key_head, (key_head * group + g) * dim
                    scale = inverse[(part * group + g) * n + i]
                    x, y = o[part, g * n + i], out[b, first + i, start: start + dim]
                    for j in range(dim):
                        y[j] = x[j] * scale


@compiled
def delta_rows(dout, out, n, first, heads, dim, delta):
    """delta[(b H + head) * n + i] = dout . out of the head's row of token first + i: heads in stacked order."""
    for b in range(out.shape[0]):
        for i in range(n):
            for head in range(heads):
                x = dout[b, first + i, head * dim: head * dim + dim]
                y = out[b, first + i, head * dim: head * dim + dim]
                total = out.dtype.type(0)
                for j in range(dim):
                    total += x[j] * y[j]
                delta[(b * heads + head) * n + i] = total


@compiled
def store_heads(heads, column, rows):
    """rows[b, i, column + head D ...] = heads[b K + head, i]."""
    dim, count = heads.shape[2], heads.shape[0] // rows.shape[0]
    for b in range(rows.shape[0]):
        for i in range(heads.shape[1]):
            for head in range(count):
                x, y = heads[b * count + head, i], rows[b, i, column + head * dim: column + head * dim + dim]
                for j in range(dim):
                    y[j] = x[j]
