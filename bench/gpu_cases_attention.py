"""GPU cases of attention, with the norm and rotation of heads before it, and of the rotation alone."""

from __future__ import annotations

import torch

import kernels

from .gpu_case import Buffer, GpuCase, positive


def _documents(shape, _sizes, device):
    """Documents of 512 tokens."""
    return (torch.arange(shape[1], device=device) // 512 * 512).expand(shape)


def _slopes(shape, _sizes, device):
    return 0.5 ** torch.arange(1.0, shape[0] + 1.0, device=device)


def _attention(name: str, rows: int, tokens: int, heads: int, key_heads: int, dim: int, *, pairs: int = 0,
               documents: bool = False, alibi: bool = False, distance: bool = False, causal: bool = True,
               dtypes: tuple[str, ...] = ("bfloat16",), tf32: bool = False, **options) -> GpuCase:
    """Args: pairs of features that are rotated, after a norm; 0 for neither. The options are the contract's."""
    buffers = {"qkv": Buffer("b t w"), "dout": Buffer("b t o")}
    if pairs:
        buffers |= {"cos": Buffer("t r"), "sin": Buffer("t r"), "q_gain": Buffer("d", positive),
                    "k_gain": Buffer("d", positive)}
    if documents:
        buffers["doc_start"] = Buffer("b t", _documents, torch.int32)
    if alibi:
        buffers["alibi"] = Buffer("h", _slopes, torch.float32)
    if distance:
        buffers |= {"reach": Buffer("1", positive), "offset": Buffer("1", positive)}

    def arguments(b) -> tuple:
        given = [getattr(b, key, None) for key in ("cos", "sin", "q_gain", "k_gain")]
        return (heads, key_heads, *given, 1e-6, getattr(b, "doc_start", None), causal, options.get("window"),
                getattr(b, "alibi", None), options.get("softcap"), (b.reach, b.offset) if distance else None)

    def traffic(_, size: int) -> tuple[int, int]:
        token = size * rows * tokens * dim
        copies = 2 * (heads + key_heads) if pairs else 0
        return token * (2 * heads + 2 * key_heads + copies), token * (4 * heads + 4 * key_heads + 5 * copies // 2)

    products = 4 * rows * heads * tokens**2 * dim // (2 if causal else 1)
    return GpuCase(
        name, buffers, lambda b: kernels.attention.forward(b.qkv, *arguments(b)),
        lambda b, result: kernels.attention.backward(b.dout, *result, b.qkv, *arguments(b)),
        {"b": rows, "t": tokens, "w": (heads + 2 * key_heads) * dim, "o": heads * dim, "d": dim, "r": pairs,
         "h": heads},
        dtypes, ("document_ends", "reduce"), traffic, lambda _: (products, 5 * products // 2), tf32=tf32,
    )


def _talking_heads(name: str, rows: int, tokens: int, heads: int, dim: int, *, documents: bool = False,
                   dtypes: tuple[str, ...] = ("bfloat16",), tf32: bool = False) -> GpuCase:
    buffers = {"qkv": Buffer("b t 3*o"), "reach": Buffer("1", positive), "offset": Buffer("1", positive),
               "before": Buffer("h h"), "after": Buffer("h h"), "dout": Buffer("b t o")}
    if documents:
        buffers["doc_start"] = Buffer("b t", _documents, torch.int32)

    def arguments(b) -> tuple:
        return b.qkv, heads, b.reach, b.offset, b.before, b.after, getattr(b, "doc_start", None)

    token, seen = rows * tokens * heads * dim, rows * tokens**2 // 2
    product, mixing = 2 * seen * heads * dim, 2 * seen * heads**2
    return GpuCase(
        name, buffers, lambda b: kernels.talking_heads.forward(*arguments(b)),
        lambda b, result: kernels.talking_heads.backward(b.dout, result[1], *arguments(b)),
        {"b": rows, "t": tokens, "o": heads * dim, "h": heads}, dtypes, ("document_ends", "reduce"),
        lambda _, size: (4 * token * size, 7 * token * size),
        lambda _: (2 * (product + mixing), 5 * (product + mixing) + mixing), tf32=tf32,
    )


def _qk_norm_rope_in_place(b) -> None:
    dim = len(b.q_gain)
    heads = b.packed.shape[2] // (3 * dim)
    kernels.qk_norm_rope.in_place(b.packed, heads, heads, dim, b.cos, b.sin, b.q_gain, b.k_gain, 1e-6)


ATTENTION = [
    _attention("attention", 64, 1024, 6, 6, 128, pairs=64, dtypes=("bfloat16", "float16", "float32"), tf32=True),
    _attention("attention_64", 64, 1024, 12, 12, 64, dtypes=("bfloat16", "float32"), tf32=True),
    _attention("attention_grouped_documents", 64, 1024, 12, 4, 64, pairs=16, documents=True),
    _attention("attention_full_documents", 64, 1024, 12, 12, 64, documents=True, causal=False),
    _attention("attention_full", 4, 16_384, 6, 6, 128, causal=False),
    _attention("attention_options", 32, 2048, 6, 6, 128, documents=True, alibi=True, window=256, softcap=30.0),
    _attention("attention_32", 64, 1024, 24, 24, 32),
    _attention("attention_256", 64, 1024, 3, 3, 256, dtypes=("bfloat16", "float32")),
    _attention("attention_short", 512, 128, 6, 6, 128, pairs=64, dtypes=("bfloat16", "float16")),
    _attention("attention_short_64", 512, 128, 12, 12, 64),
    _attention("attention_short_256", 256, 256, 12, 12, 64),
    _attention("attention_short_documents", 512, 128, 12, 4, 64, documents=True, alibi=True, softcap=30.0),
    _attention("attention_short_float32", 1024, 64, 12, 12, 64, dtypes=("float32",), tf32=True),
    _attention("attention_distance", 64, 1024, 12, 12, 128, distance=True, dtypes=("bfloat16", "float32")),
    _attention("attention_short_distance", 512, 128, 12, 12, 128, distance=True),
    _talking_heads("talking_heads", 64, 1024, 12, 128, dtypes=("bfloat16", "float32"), tf32=True),
    _talking_heads("talking_heads_documents", 64, 1024, 12, 64, documents=True),
    GpuCase(
        "rope", {"x": Buffer("b t h d"), "cos": Buffer("t r"), "sin": Buffer("t r")},
        lambda b: kernels.rope.rotate(b.x, b.cos, b.sin), None, {"b": 64, "t": 1024, "h": 12, "d": 64, "r": 32},
        traffic=lambda n, size: (2 * n.b * n.t * n.h * n.d * size, 0),
    ),
    GpuCase(
        "qk_norm_rope_in_place",
        {"packed": Buffer("b t 3*h*d"), "cos": Buffer("t r"), "sin": Buffer("t r"), "q_gain": Buffer("d"),
         "k_gain": Buffer("d")},
        _qk_norm_rope_in_place, None, {"b": 64, "t": 1024, "h": 6, "d": 128, "r": 64},
        traffic=lambda n, size: (4 * n.b * n.t * n.h * n.d * size, 0),
    ),
]
