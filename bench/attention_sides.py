"""The sides of bench/attention.py: ours, PyTorch's, and what attention is, in float64."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import kernels

Tensors = tuple[torch.Tensor, ...]
MEAN_DOCUMENT = 512  # tokens
ROWS_AT_A_TIME = 256  # queries of the reference
BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION}


@dataclass(frozen=True)
class Shape:
    """One case. Kinds: causal, full, grouped (causal, three query heads to a key head), documents (causal within)."""

    kind: str
    length: int
    head_dim: int
    batch: int
    heads: int
    key_heads: int

    @property
    def name(self) -> str:
        return f"{self.kind} {self.head_dim} x {self.length}"

    @property
    def causal(self) -> bool:
        return self.kind != "full"

    def flops(self, pairs: float) -> tuple[float, float]:
        """FLOPs of forward and backward: 4 D for each pair of a query and a key, 2.5 times that."""
        forward = 4.0 * self.heads * self.head_dim * pairs
        return forward, 2.5 * forward

    def pairs(self, doc_start: torch.Tensor | None) -> float:
        """Pairs per head that count: S^2 of a row, half if causal; of documents, half the squares of their lengths."""
        if doc_start is None:
            return self.batch * self.length**2 / (2.0 if self.causal else 1.0)
        starts = (doc_start == torch.arange(self.length, device=doc_start.device)).nonzero()
        ends = torch.cat([starts[1:, 1], starts.new_tensor([self.length])])
        lengths = torch.where(ends > starts[:, 1], ends, self.length) - starts[:, 1]
        return float((lengths.double() ** 2).sum()) / 2.0

    def traffic(self, itemsize: int) -> tuple[int, int]:
        """Bytes that must be read and written: q, k, v, o and lse; all of them, their gradients, dq, dk and dv."""
        tokens = self.batch * self.length
        query, key = (itemsize * tokens * heads * self.head_dim for heads in (self.heads, self.key_heads))
        lse = 4 * tokens * self.heads
        return 2 * query + 2 * key + lse, 4 * query + 4 * key + lse


@dataclass
class Inputs:
    """One set: the packed projection for ours; heads (B, H, S, D), views of (B, S, H, D), for the others."""

    shape: Shape
    qkv: torch.Tensor
    dout: torch.Tensor
    doc_start: torch.Tensor | None

    @classmethod
    def random(cls, shape: Shape, dtype: torch.dtype, device: str, seed: int) -> Inputs:
        generator = torch.Generator(device).manual_seed(seed)
        b, s, d = shape.batch, shape.length, shape.head_dim
        normal = functools.partial(torch.randn, generator=generator, device=device)
        qkv = normal(b, s, (shape.heads + 2 * shape.key_heads) * d).to(dtype)
        starts = document_starts(b, s, generator, device) if shape.kind == "documents" else None
        return cls(shape, qkv, normal(b, s, shape.heads * d).to(dtype), starts)

    def heads(self) -> Tensors:
        """q, k, v in memory of their own, each a leaf."""
        s = self.shape
        packed = self.qkv.view(s.batch, s.length, -1, s.head_dim)
        parts = packed.split([s.heads, s.key_heads, s.key_heads], dim=2)
        return tuple(part.contiguous().transpose(1, 2).requires_grad_() for part in parts)

    def out_gradient(self) -> torch.Tensor:
        return self.dout.view(*self.dout.shape[:2], self.shape.heads, -1).transpose(1, 2)


def document_starts(batch: int, length: int, generator, device: str) -> torch.Tensor:
    """int32 (B, S): documents of about MEAN_DOCUMENT tokens, and at least two in a row."""
    draws = torch.rand(batch, length, generator=generator, device=device)
    begins = draws < 1.0 / min(MEAN_DOCUMENT, length // 2)
    begins[:, 0] = True
    position = torch.arange(length, device=device, dtype=torch.int32)
    return torch.where(begins, position, 0).cummax(dim=1).values.to(torch.int32)


def ours_forward(x: Inputs) -> Tensors:
    """-> out, lse."""
    return kernels.attention.forward(x.qkv, *_ours_arguments(x), causal=x.shape.causal)


def ours_backward(x: Inputs, saved: Tensors) -> torch.Tensor:
    """-> dqkv."""
    return kernels.attention.backward(x.dout, *saved, x.qkv, *_ours_arguments(x), causal=x.shape.causal)[0]


def _ours_arguments(x: Inputs) -> tuple:
    """Of the contract, without rotation and norm of the heads."""
    return x.shape.heads, x.shape.key_heads, None, None, None, None, 1e-6, x.doc_start


def unpacked(packed: torch.Tensor, shape: Shape) -> Tensors:
    """A packed projection, or its gradient, as q, k, v (B, heads, S, D)."""
    heads = packed.view(shape.batch, shape.length, -1, shape.head_dim).transpose(1, 2)
    return heads.split([shape.heads, shape.key_heads, shape.key_heads], dim=1)


Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def rivals(shape: Shape) -> dict[str, Callable[[Inputs], Attend]]:
    """Name -> function of a set of inputs that gives its attention of q, k, v; masks are made there, untimed."""
    found = {name: functools.partial(_sdpa, backend) for name, backend in BACKENDS.items()}
    found["flex"] = _flex
    if shape.kind == "documents":
        found["varlen"] = _varlen
    return found


def visible(doc_start: torch.Tensor, first: int = 0, last: int | None = None) -> torch.Tensor:
    """(B, rows, S): which keys the queries from `first` to `last` may see."""
    position = torch.arange(doc_start.shape[1], device=doc_start.device)
    rows = position[first:last, None]
    return (position >= doc_start[:, first:last, None]) & (position <= rows)


def _sdpa(backend: SDPBackend, x: Inputs) -> Attend:
    mask = None if x.doc_start is None else visible(x.doc_start)[:, None]
    options = {"enable_gqa": True} if x.shape.heads != x.shape.key_heads else {}

    def attend(q, k, v):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask,
                                                  is_causal=x.shape.causal and mask is None, **options)

    return attend


@functools.cache
def _compiled_flex():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _flex(x: Inputs) -> Attend:
    from torch.nn.attention.flex_attention import create_block_mask

    s, starts = x.shape, x.doc_start
    mask = None
    if starts is not None:
        mask = create_block_mask(lambda b, h, i, j: (i >= j) & (j >= starts[b, i]), s.batch, None, s.length, s.length,
                                 device=x.qkv.device)
    elif s.causal:
        mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, s.length, s.length, device=x.qkv.device)
    grouped = s.heads != s.key_heads
    return lambda q, k, v: _compiled_flex()(q, k, v, block_mask=mask, enable_gqa=grouped)


def _varlen(x: Inputs) -> Attend:
    from torch.nn.attention.varlen import varlen_attn

    s, device = x.shape, x.qkv.device
    row, start = (x.doc_start == torch.arange(s.length, device=device)).nonzero().unbind(1)
    borders = torch.cat([row * s.length + start, row.new_tensor([s.batch * s.length])]).to(torch.int32)
    longest = int(borders.diff().max())
    known = inspect.signature(varlen_attn).parameters
    options = {"is_causal": True} if "is_causal" in known else {"window_size": (-1, 0)}
    flat = lambda t: t.transpose(1, 2).flatten(0, 1)  # noqa: E731

    def attend(q, k, v):
        out = varlen_attn(flat(q), flat(k), flat(v), borders, borders, longest, longest, **options)
        return out.view(s.batch, s.length, s.heads, s.head_dim).transpose(1, 2)

    return attend


def slice_of(heads: Tensors, shape: Shape) -> Tensors:
    """The part that is checked, in float64: the first row's first key head, and the query heads that read it."""
    group = shape.heads // shape.key_heads
    first, *others = (t.detach()[0] for t in heads)
    return first[:group].double(), *(t[0].double() for t in others)


def reference(x: Inputs) -> dict[str, torch.Tensor]:
    """out, dq (g, S, D), dk, dv (S, D) in float64 of the part that is checked, some queries at a time."""
    q, k, v = slice_of(unpacked(x.qkv, x.shape), x.shape)
    dout = x.out_gradient()[0, : len(q)].double()
    out, dq, dk, dv = (torch.zeros_like(t) for t in (q, q, k, v))
    scale = x.shape.head_dim**-0.5
    position = torch.arange(x.shape.length, device=q.device)
    for first in range(0, x.shape.length, ROWS_AT_A_TIME):
        part = slice(first, first + ROWS_AT_A_TIME)
        scores = q[:, part] @ k.T * scale
        if x.doc_start is not None:
            scores.masked_fill_(~visible(x.doc_start[:1], part.start, part.stop), float("-inf"))
        elif x.shape.causal:
            scores.masked_fill_(position > position[part, None], float("-inf"))
        weights = scores.softmax(dim=-1)
        out[:, part] = weights @ v
        dweights = dout[:, part] @ v.T
        delta = (dout[:, part] * out[:, part]).sum(-1, keepdim=True)
        dscores = weights * (dweights - delta) * scale
        dq[:, part] = dscores @ k
        dk += torch.einsum("gij,gid->jd", dscores, q[:, part])
        dv += torch.einsum("gij,gid->jd", weights, dout[:, part])
    return {"out": out, "dq": dq, "dk": dk, "dv": dv}


def errors(out: torch.Tensor, gradients: Tensors, truth: dict[str, torch.Tensor], shape: Shape) -> dict[str, float]:
    """|a - truth| / |truth| in the Euclidean norm: of the result, and the largest of the three gradients'.

    Args:
        out, gradients: (B, heads, S, D).
    """
    found = dict(zip(("out", "dq", "dk", "dv"), (slice_of((out,), shape)[0], *slice_of(gradients, shape))))
    relative = {name: float((found[name] - truth[name]).norm() / truth[name].norm()) for name in truth}
    return {"out": relative.pop("out"), "gradients": max(relative.values())}
