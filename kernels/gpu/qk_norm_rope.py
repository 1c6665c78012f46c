"""RMS norm of each query and key head and rotation by its position, on the packed projection; both are optional.

Decoding norms and rotates in place. In training, forward writes queries and keys to a buffer of their own: the norm's
gradient needs the raw ones, and dividing the results by gains near 0 would not bring those back. Attention's backward
makes the buffer again rather than keep it: reading and writing two thirds of the projection is cheap, and a layer then
keeps nothing but the projection. Backward works in place on the packed gradient.

QK-norm: arXiv 2302.05442, section 2. RoPE: arXiv 2104.09864, section 3.4.2, pairing feature i with i + R / 2 among
the first R, R / 2 being the width of the tables; features from R on stay as they are. A program takes a block of
tokens of one head. It holds the features that are first in their pairs, those that are second, and the rest, as three
tiles: so the two of a pair meet in one thread, and what is overwritten has been read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import memory
from .launch import launch, target
from .rows import contiguous, sum_rows
from .tuning import tuned


@triton.jit
def _inside(token, count, SIZE: tl.constexpr, COLUMNS: tl.constexpr):
    return (token < count)[:, None] & (tl.arange(0, COLUMNS) < SIZE)[None, :]


@triton.jit
def _offsets(token, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    return token.to(tl.int64)[:, None] * WIDTH + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def _load(base, token, count, WIDTH: tl.constexpr, SIZE: tl.constexpr, COLUMNS: tl.constexpr):
    """SIZE features of each token as float32 (tokens, COLUMNS)."""
    inside = _inside(token, count, SIZE, COLUMNS)
    return tl.load(base + _offsets(token, WIDTH, COLUMNS), mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store(base, token, values, count, WIDTH: tl.constexpr, SIZE: tl.constexpr, COLUMNS: tl.constexpr):
    inside = _inside(token, count, SIZE, COLUMNS)
    tl.store(base + _offsets(token, WIDTH, COLUMNS), values.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _gain(q_gain, k_gain, is_query, FIRST: tl.constexpr, SIZE: tl.constexpr, COLUMNS: tl.constexpr):
    """Of the head's kind, from feature FIRST, (1, COLUMNS)."""
    column = tl.arange(0, COLUMNS)
    of_queries = tl.load(q_gain + FIRST + column, mask=column < SIZE, other=0.0).to(tl.float32)
    of_keys = tl.load(k_gain + FIRST + column, mask=column < SIZE, other=0.0).to(tl.float32)
    return tl.where(is_query, of_queries, of_keys)[None, :]


@triton.jit
def _forward(packed, cos, sin, q_gain, k_gain, result, count, length, eps,
             HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr, WIDTH: tl.constexpr,
             RESULT_WIDTH: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, ROWS: tl.constexpr):
    LEFT: tl.constexpr = DIM - 2 * HALF
    head = tl.program_id(0) % (HEADS + KEY_HEADS)
    token = tl.program_id(0) // (HEADS + KEY_HEADS) * ROWS + tl.arange(0, ROWS)
    x = packed + head * DIM
    a = _load(x, token, count, WIDTH, HALF, PAIRS)
    b = _load(x + HALF, token, count, WIDTH, HALF, PAIRS)
    if LEFT > 0:
        rest = _load(x + 2 * HALF, token, count, WIDTH, LEFT, REST)
    if q_gain is not None:
        squares = tl.sum(a * a + b * b, axis=1)
        if LEFT > 0:
            squares += tl.sum(rest * rest, axis=1)
        scale = tl.rsqrt(squares * (1.0 / DIM) + eps)[:, None]
        a *= scale * _gain(q_gain, k_gain, head < HEADS, 0, HALF, PAIRS)
        b *= scale * _gain(q_gain, k_gain, head < HEADS, HALF, HALF, PAIRS)
        if LEFT > 0:
            rest *= scale * _gain(q_gain, k_gain, head < HEADS, 2 * HALF, LEFT, REST)
    y = result + head * DIM
    if cos is not None:
        c = _load(cos, token % length, length, HALF, HALF, PAIRS)
        s = _load(sin, token % length, length, HALF, HALF, PAIRS)
        _store(y, token, a * c - b * s, count, RESULT_WIDTH, HALF, PAIRS)
        _store(y + HALF, token, b * c + a * s, count, RESULT_WIDTH, HALF, PAIRS)
    else:
        _store(y, token, a, count, RESULT_WIDTH, HALF, PAIRS)
        _store(y + HALF, token, b, count, RESULT_WIDTH, HALF, PAIRS)
    if LEFT > 0:
        _store(y + 2 * HALF, token, rest, count, RESULT_WIDTH, LEFT, REST)


@triton.jit
def _backward(packed, cos, sin, q_gain, k_gain, gradient, dgain, count, length, eps,
              HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr,
              WIDTH: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, ROWS: tl.constexpr):
    LEFT: tl.constexpr = DIM - 2 * HALF
    head = tl.program_id(0) % (HEADS + KEY_HEADS)
    lane = tl.program_id(0) // (HEADS + KEY_HEADS)
    lanes = tl.num_programs(0) // (HEADS + KEY_HEADS)
    x = packed + head * DIM
    d = gradient + head * DIM
    if q_gain is not None:
        gain_a = _gain(q_gain, k_gain, head < HEADS, 0, HALF, PAIRS)
        gain_b = _gain(q_gain, k_gain, head < HEADS, HALF, HALF, PAIRS)
        sum_a = tl.zeros((ROWS, PAIRS), tl.float32)
        sum_b = tl.zeros((ROWS, PAIRS), tl.float32)
        if LEFT > 0:
            gain_rest = _gain(q_gain, k_gain, head < HEADS, 2 * HALF, LEFT, REST)
            sum_rest = tl.zeros((ROWS, REST), tl.float32)
    for block in range(lane, tl.cdiv(count, ROWS), lanes):
        token = block * ROWS + tl.arange(0, ROWS)
        da = _load(d, token, count, WIDTH, HALF, PAIRS)
        db = _load(d + HALF, token, count, WIDTH, HALF, PAIRS)
        if cos is not None:
            c = _load(cos, token % length, length, HALF, HALF, PAIRS)
            s = _load(sin, token % length, length, HALF, HALF, PAIRS)
            turned = da * c + db * s
            db = db * c - da * s
            da = turned
        if q_gain is not None:
            a = _load(x, token, count, WIDTH, HALF, PAIRS)
            b = _load(x + HALF, token, count, WIDTH, HALF, PAIRS)
            squares = tl.sum(a * a + b * b, axis=1)
            if LEFT > 0:
                rest = _load(x + 2 * HALF, token, count, WIDTH, LEFT, REST)
                drest = _load(d + 2 * HALF, token, count, WIDTH, LEFT, REST)
                squares += tl.sum(rest * rest, axis=1)
            scale = tl.rsqrt(squares * (1.0 / DIM) + eps)[:, None]
            a *= scale
            b *= scale
            sum_a += da * a
            sum_b += db * b
            da *= gain_a
            db *= gain_b
            dot = tl.sum(da * a + db * b, axis=1)
            if LEFT > 0:
                rest *= scale
                sum_rest += drest * rest
                drest *= gain_rest
                dot += tl.sum(drest * rest, axis=1)
            mean = dot[:, None] * (1.0 / DIM)
            da = (da - a * mean) * scale
            db = (db - b * mean) * scale
            if LEFT > 0:
                _store(d + 2 * HALF, token, (drest - rest * mean) * scale, count, WIDTH, LEFT, REST)
        _store(d, token, da, count, WIDTH, HALF, PAIRS)
        _store(d + HALF, token, db, count, WIDTH, HALF, PAIRS)
    if q_gain is not None:
        column = tl.arange(0, PAIRS)
        part = dgain + (head * lanes + lane) * DIM
        tl.store(part + column, tl.sum(sum_a, axis=0), mask=column < HALF)
        tl.store(part + HALF + column, tl.sum(sum_b, axis=0), mask=column < HALF)
        if LEFT > 0:
            column = tl.arange(0, REST)
            tl.store(part + 2 * HALF + column, tl.sum(sum_rest, axis=0), mask=column < LEFT)


def forward(packed: torch.Tensor, heads: int, key_heads: int, dim: int, cos, sin, q_gain, k_gain,
            eps: float) -> torch.Tensor:
    """The first `heads` + `key_heads` heads of each token, normed and rotated.

    Args:
        packed: (B, T, columns), the heads first.
        cos, sin: (at least T, R / 2) or None.
        q_gain, k_gain: (D) or None.

    Returns:
        (B, T, (heads + key_heads) D).
    """
    packed = contiguous(packed)
    result = memory.empty((*packed.shape[:2], (heads + key_heads) * dim), packed.dtype, packed.device)
    _write(result, packed, heads, key_heads, dim, cos, sin, q_gain, k_gain, eps)
    return result


def in_place(packed: torch.Tensor, heads: int, key_heads: int, dim: int, cos, sin, q_gain, k_gain, eps: float) -> None:
    """`forward`, its result taking the place of the heads it was made of; `packed` is contiguous."""
    _write(packed, packed, heads, key_heads, dim, cos, sin, q_gain, k_gain, eps)


def _write(result: torch.Tensor, packed: torch.Tensor, heads: int, key_heads: int, dim: int, cos, sin, q_gain, k_gain,
           eps: float) -> None:
    batch, length, width = packed.shape
    tile, options = _tile("qk_norm_rope_forward", packed.dtype, dim, cos)
    programs = triton.cdiv(batch * length, tile["ROWS"]) * (heads + key_heads)
    launch(_forward, (programs,), packed, *_tables(cos, sin, q_gain, k_gain), result, batch * length, length, eps,
           HEADS=heads, KEY_HEADS=key_heads, DIM=dim, WIDTH=width, RESULT_WIDTH=result.shape[2], **tile,
           num_warps=options["num_warps"])


def backward_in_place(gradient: torch.Tensor, packed: torch.Tensor, heads: int, key_heads: int, dim: int, cos, sin,
                      q_gain, k_gain, eps: float) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Turns the gradient of `forward`'s result, in the first columns of `gradient`, into that of `packed`.

    Args:
        gradient: contiguous, shaped like `packed`.

    Returns:
        dq_gain, dk_gain; None without gains.
    """
    packed = contiguous(packed)
    batch, length, width = packed.shape
    tile, options = _tile("qk_norm_rope_backward", packed.dtype, dim, cos)
    blocks = triton.cdiv(batch * length, tile["ROWS"])
    wanted = triton.cdiv(options["PER_MULTIPROCESSOR"] * target().multiprocessors, heads + key_heads)
    lanes = max(1, min(blocks, wanted))
    normed = q_gain is not None
    parts = memory.empty(((heads + key_heads) * lanes, dim), torch.float32, packed.device) if normed else None
    launch(_backward, (lanes * (heads + key_heads),), packed, *_tables(cos, sin, q_gain, k_gain), gradient, parts,
           batch * length, length, eps, HEADS=heads, KEY_HEADS=key_heads, DIM=dim, WIDTH=width, **tile,
           num_warps=options["num_warps"])
    if not normed:
        return None, None
    return (sum_rows(parts[: heads * lanes], q_gain.shape, q_gain.dtype),
            sum_rows(parts[heads * lanes:], k_gain.shape, k_gain.dtype))


def _tables(*tensors):
    return [None if tensor is None else contiguous(tensor) for tensor in tensors]


def _tile(kernel: str, dtype: torch.dtype, dim: int, cos: torch.Tensor | None):
    """Block sizes for heads of `dim` features, and the table's entry."""
    options = tuned(kernel, dtype)
    half = dim // 2 if cos is None else cos.shape[1]
    pairs, rest = triton.next_power_of_2(half), triton.next_power_of_2(max(dim - 2 * half, 1))
    rows = max(1, options["ELEMENTS"] // triton.next_power_of_2(dim))
    return {"HALF": half, "PAIRS": pairs, "REST": rest, "ROWS": rows}, options
