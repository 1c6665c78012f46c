"""The table of cases: for every operation our call, torch's call, and its inputs.

A row buys, in the tests, forward and all gradients against torch at drawn shapes and layouts in float64 and float32 and
against finite differences; and, in `bench.ops`, the timing.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from engine import Tensor, ops

from . import references
from .case import (
    Case, Input, apart, below, between, coin, cosine, document_starts, normal, positive, shifts, signed_below,
    sine, some_experts, targets,
)

CUBE = {"a": (1, 4, 16), "b": (1, 5, 512), "c": (1, 19, 192)}
ROWS = {"b": (1, 3, 8), "t": (1, 9, 512), "d": (1, 70, 192)}
X = Input("a b c", normal)
DIM = {"dim": (-1, 0, 1)}
REGULARISED = {"z_loss": (1e-2, 0.0), "softcap": (3.0, None)}
DIMS = {"dim": (-1, None, 0, 1, (0, 2), (1, 2), (-3, -1)), "keepdim": (False, True)}


def _elementwise(name: str, ours, theirs, *values, broadcasts=False, options=None) -> Case:
    return Case(name, ours, theirs, tuple(Input("a b c", v) for v in values), CUBE, options or {}, broadcasts)


def _compare(name: str) -> Case:
    values = lambda rng, shape, sizes: rng.integers(0, 3, shape).astype(np.float32)  # noqa: E731
    return _elementwise(name, getattr(ops, name), getattr(torch, name), values, values, broadcasts=True)


ELEMENTWISE = [
    _elementwise("add", ops.add, torch.add, normal, normal, broadcasts=True),
    _elementwise("sub", ops.sub, torch.sub, normal, normal, broadcasts=True),
    _elementwise("mul", ops.mul, torch.mul, normal, normal, broadcasts=True),
    _elementwise("div", ops.div, torch.div, normal, positive, broadcasts=True),
    _elementwise("pow", ops.pow, torch.pow, positive, normal, broadcasts=True),
    _elementwise("maximum", ops.maximum, torch.maximum, apart, between, broadcasts=True),
    _elementwise("minimum", ops.minimum, torch.minimum, apart, between, broadcasts=True),
    _elementwise("scalar", lambda x: 2 * (1 - x / 3) ** 2 - 0.5, lambda x: 2 * (1 - x / 3) ** 2 - 0.5, normal),
    _elementwise("pow_scalar", lambda x, p: x**p, lambda x, p: x**p, positive, options={"p": (2, 3, -1, 0, 0.5, 2.5)}),
    _elementwise("scalar_pow", lambda x, b: b**x, lambda x, b: b**x, normal, options={"b": (2, 0.5)}),
    _elementwise("neg", ops.neg, torch.neg, normal),
    _elementwise("abs", ops.abs, torch.abs, apart),
    _elementwise("clamp", ops.clamp, torch.clamp, apart,
                 options={"min": (-0.4, None), "max": (0.4, 2)}),
    _elementwise("exp", ops.exp, torch.exp, normal),
    _elementwise("log", ops.log, torch.log, positive),
    _elementwise("sqrt", ops.sqrt, torch.sqrt, positive),
    _elementwise("tanh", ops.tanh, torch.tanh, normal),
    _elementwise("sigmoid", ops.sigmoid, torch.sigmoid, normal),
    _elementwise("relu", ops.relu, torch.relu, apart),
    _elementwise("relu_squared", ops.relu_squared, lambda x: torch.relu(x).square(), normal),
    _elementwise("gelu", ops.gelu, F.gelu, normal, options={"approximate": ("none",)}),
    _elementwise("gelu_tanh", ops.gelu, F.gelu, normal, options={"approximate": ("tanh",)}),
    _elementwise("silu", ops.silu, F.silu, normal),
    *(_compare(name) for name in ("eq", "ne", "lt", "le", "gt", "ge")),
    Case("where", lambda m, a, b: ops.where(Tensor(m), a, b), torch.where,
         (Input("a b c", coin, gradient=False), X, X), CUBE, broadcasts=True),
]

REDUCTIONS = [
    Case("sum", ops.sum, torch.sum, (X,), CUBE, DIMS),
    Case("mean", ops.mean, torch.mean, (X,), CUBE, DIMS),
    Case("var", ops.var, torch.var, (X,), {**CUBE, "a": (2, 4, 16), "b": (2, 5, 512), "c": (2, 19, 192)},
         {**DIMS, "correction": (1, 0)}),
    Case("amax", ops.amax, lambda x, dim, keepdim: torch.amax(x, dim or (0, 1, 2) if dim != 0 else 0, keepdim),
         (Input("a b c", apart),), CUBE, DIMS),
    Case("amin", ops.amin, lambda x, dim, keepdim: torch.amin(x, dim or (0, 1, 2) if dim != 0 else 0, keepdim),
         (Input("a b c", apart),), CUBE, DIMS),
    Case("max", ops.max, torch.max, (Input("a b c", apart),), CUBE, {**DIM, "keepdim": (False, True)}),
    Case("min", ops.min, torch.min, (Input("a b c", apart),), CUBE, {**DIM, "keepdim": (False, True)}),
    Case("argmax", ops.argmax, torch.argmax, (Input("a b c", apart),), CUBE,
         {"dim": (-1, 0, 1, None), "keepdim": (False, True)}),
    Case("softmax", ops.softmax, torch.softmax, (X,), CUBE, DIM),
    Case("log_softmax", ops.log_softmax, torch.log_softmax, (X,), CUBE, DIM),
    Case("logsumexp", ops.logsumexp, torch.logsumexp, (X,), CUBE, {**DIM, "keepdim": (False, True)}),
    Case("cross_entropy", ops.cross_entropy, references.cross_entropy,
         (Input("b t v", normal), Input("b t", targets, gradient=False)),
         {"b": (1, 3, 8), "t": (1, 7, 512), "v": (1, 40, 4096)}, {"normalizer": (None, 17.0)}),
    Case("cross_entropy_regularised", ops.cross_entropy, references.cross_entropy,
         (Input("b t v", normal), Input("b t", targets, gradient=False)),
         {"b": (1, 3, 8), "t": (1, 7, 512), "v": (1, 40, 4096)}, REGULARISED),
]

LAYOUT = [
    Case("reshape", lambda x, shape: x.reshape(*shape), lambda x, shape: x.reshape(*shape), (X,),
         {"a": (2, 2, 16), "b": (1, 5, 512), "c": (1, 9, 192)}, {"shape": ((-1,), (1, -1, 2), (2, -1))}),
    Case("flatten", ops.flatten, torch.flatten, (X,), CUBE, {"start_dim": (0, 1), "end_dim": (-1, 1)}),
    Case("permute", lambda x, dims: x.permute(dims), lambda x, dims: x.permute(dims), (X,), CUBE,
         {"dims": ((2, 0, 1), (0, 2, 1), (-1, 1, 0))}),
    Case("transpose", ops.transpose, torch.transpose, (X,), CUBE, {"dim0": (0, -1), "dim1": (1, 0)}),
    Case("expand", lambda x, shape: x.expand(shape), lambda x, shape: x.expand(shape), (Input("a one c", normal),),
         {**CUBE, "one": (1, 1, 1)}, {"shape": ((-1, 512, -1), (2, -1, 3, -1))}),
    Case("squeeze", lambda x, dim: x.squeeze(dim), lambda x, dim: x.squeeze(dim), (Input("a one c", normal),),
         {**CUBE, "one": (1, 1, 1)}, {"dim": (1, 0, -1, (0, 1))}),
    Case("unsqueeze", ops.unsqueeze, torch.unsqueeze, (X,), CUBE, {"dim": (0, 1, -1, 3)}),
    Case("contiguous", lambda x: ops.contiguous(x.T), lambda x: x.permute(2, 1, 0).contiguous(), (X,), CUBE),
    Case("cat", lambda *x, dim: ops.cat(x, dim), lambda *x, dim: torch.cat(x, dim), (X, X, X), CUBE, DIM),
    Case("stack", lambda *x, dim: ops.stack(x, dim), lambda *x, dim: torch.stack(x, dim), (X, X), CUBE, DIM),
    Case("split", lambda x, n, dim: x.split(n, dim), lambda x, n, dim: x.split(n, dim), (X,), CUBE,
         {"n": (64, 1, 2), **DIM}),
    Case("chunk", ops.chunk, torch.chunk, (X,), CUBE, {"chunks": (3, 1, 2), **DIM}),
    Case("unbind", ops.unbind, torch.unbind, (X,), {**CUBE, "a": (1, 4, 4)}, {"dim": (0,)}),
    Case("slice", lambda x, key: x[key], lambda x, key: x[key], (X,),
         {"a": (2, 4, 16), "b": (2, 5, 512), "c": (3, 9, 192)},
         {"key": (slice(1, None), 0, -1, (slice(None), 1), (Ellipsis, slice(None, None, 2)), (None, 1, ..., None),
                  (slice(0, 2), slice(-1, None), 2), (slice(5, 2),), ())}),
    Case("index", lambda x, i, j, key: x[key(i, j)], lambda x, i, j, key: x[key(i, j)],
         (X, Input("n", signed_below("a"), gradient=False), Input("m n", below("a"), gradient=False)),
         {"a": (2, 5, 64), "b": (5, 6, 64), "c": (5, 7, 192), "n": (1, 6, 64), "m": (1, 3, 4)},
         {"key": (lambda i, j: i, lambda i, j: j, lambda i, j: (slice(None), i), lambda i, j: (j, i),
                  lambda i, j: (slice(1, None), j, i), lambda i, j: (i, slice(1, None), j), lambda i, j: (0, ..., i),
                  lambda i, j: (None, i, slice(None, None, 2)), lambda i, j: (i, j, i), lambda i, j: (i, None, j))}),
    Case("index_mask", lambda x, m: x[m], lambda x, m: x[m], (X, Input("a b", coin, gradient=False)), CUBE),
    Case("gather", lambda x, i, dim: ops.gather(x, dim, i), lambda x, i, dim: torch.gather(x, dim, i),
         (X, Input("p q r", below("p"), gradient=False)),
         {"a": (4, 5, 64), "b": (4, 6, 64), "c": (4, 7, 192), "p": (1, 4, 64), "q": (1, 4, 64), "r": (1, 4, 64)}, DIM),
    Case("embedding", ops.embedding, F.embedding, (Input("b t", below("v"), gradient=False), Input("v d", normal)),
         {"b": (1, 3, 8), "t": (1, 9, 512), "v": (1, 12, 4096), "d": (1, 20, 192)}),
]

PRODUCTS = [
    Case("matmul", ops.matmul, torch.matmul, (Input("b n k", normal), Input("b k m", normal)),
         {"b": (1, 4, 32), "n": (1, 9, 256), "k": (1, 12, 64), "m": (1, 7, 256)}),
    Case("matmul_matrix", ops.matmul, torch.matmul, (Input("b n k", normal), Input("k m", normal)),
         {"b": (1, 4, 8), "n": (1, 9, 512), "k": (1, 12, 192), "m": (1, 7, 512)}),
    Case("matmul_broadcast", ops.matmul, torch.matmul, (Input("a one n k", normal), Input("b k m", normal)),
         {"a": (1, 3, 4), "one": (1, 1, 1), "b": (1, 3, 4), "n": (1, 5, 128), "k": (1, 9, 64), "m": (1, 4, 128)}),
    Case("matmul_left", ops.matmul, torch.matmul, (Input("n k", normal), Input("a b k m", normal)),
         {"a": (1, 3, 4), "b": (1, 3, 4), "n": (1, 5, 128), "k": (1, 9, 64), "m": (1, 4, 128)}),
    Case("matvec", ops.matmul, torch.matmul, (Input("b n k", normal), Input("k", normal)),
         {"b": (1, 4, 8), "n": (1, 9, 512), "k": (1, 12, 192)}),
    Case("vecmat", ops.matmul, torch.matmul, (Input("k", normal), Input("b k m", normal)),
         {"b": (1, 4, 8), "m": (1, 9, 512), "k": (1, 12, 192)}),
    Case("dot", ops.matmul, torch.matmul, (Input("k", normal), Input("k", normal)), {"k": (1, 30, 65536)}),
    Case("linear", ops.linear, F.linear, (Input("b t d", normal), Input("o d", normal)), {**ROWS, "o": (1, 30, 576)}),
    Case("linear_residual", ops.linear, lambda x, w, r: F.linear(x, w) + r,
         (Input("b t d", normal), Input("o d", normal), Input("b t o", normal)), {**ROWS, "o": (1, 30, 192)}),
]

NORMED = {**ROWS, "d": (2, 70, 192)}
TOKENS = {"b": (1, 3, 8), "t": (1, 13, 512), "e": (1, 5, 32)}
HEADS = {**TOKENS, "g": (1, 3, 2), "k": (1, 2, 2)}
FEED_FORWARD = {"b": (1, 3, 8), "t": (1, 9, 512), "f": (1, 40, 512), "o": (1, 30, 192)}
GAINS = (Input("2*e", positive), Input("2*e", positive))
ANGLES = (Input("t e", cosine, gradient=False), Input("t e", sine, gradient=False))
DOCUMENTS = Input("b t", document_starts, gradient=False)
DISTANCE = (Input("1", positive), Input("1", normal))


def _attention(name: str, extra: tuple[Input, ...], *arguments: str, **options: tuple) -> Case:
    """engine.ops.attention with some of its optional inputs, by name, and values of its options."""

    def slopes(alibi: bool, heads: tuple[int, int], device: torch.device) -> dict:
        return {"alibi": torch.tensor([0.5**head for head in range(1, heads[0] + 1)], device=device)} if alibi else {}

    def ours(qkv, *values, heads, alibi=False, **options):
        given = dict(zip(arguments, values))
        if "cos" in given:
            given["rope"] = given.pop("cos"), given.pop("sin")
        if "reach" in given:
            given["distance"] = given.pop("reach"), given.pop("offset")
        return ops.attention(qkv, *heads, **given, **slopes(alibi, heads, qkv.device), **options)

    def theirs(qkv, *values, heads, alibi=False, **options):
        given = dict(zip(arguments, values))
        return references.packed_attention(qkv, **given, heads=heads[0], key_heads=heads[1],
                                           **slopes(alibi, heads, qkv.device), **options)

    return Case(name, ours, theirs, (Input("b t 16*e", normal), *extra), TOKENS,
                {"heads": ((4, 2), (6, 1)), **options})


def _linear_cross_entropy(name: str, options: dict) -> Case:
    return Case(name, ops.linear_cross_entropy,
                lambda x, w, t, **given: references.cross_entropy(F.linear(x, w), t, **given),
                (Input("b t d", normal), Input("v d", normal), Input("b t", targets, gradient=False)),
                {**ROWS, "v": (1, 40, 4096)}, options)


LAYERS = [
    Case("rms_norm", ops.rms_norm, lambda x, g: F.rms_norm(x, g.shape, g, 1e-6),
         (Input("b t d", normal), Input("d", positive)), NORMED),
    Case("add_rms_norm", ops.add_rms_norm, lambda x, r, g: (x + r, F.rms_norm(x + r, g.shape, g, 1e-6)),
         (Input("b t d", normal), Input("b t d", normal), Input("d", positive)), NORMED),
    Case("layer_norm", ops.layer_norm, lambda x, g, b: F.layer_norm(x, g.shape, g, b),
         (Input("b t d", normal), Input("d", positive), Input("d", normal)), NORMED),
    Case("rms_norm_linear", ops.rms_norm_linear, lambda x, g, w: F.linear(F.rms_norm(x, g.shape, g, 1e-6), w),
         (Input("b t d", normal), Input("d", positive), Input("o d", normal)), {**NORMED, "o": (1, 30, 576)}),
    Case("swiglu", ops.swiglu, references.swiglu, (Input("b t 2*f", normal),), FEED_FORWARD),
    Case("swiglu_linear", ops.swiglu_linear, lambda h, w: F.linear(references.swiglu(h), w),
         (Input("b t 2*f", normal), Input("o f", normal)), FEED_FORWARD),
    Case("swiglu_linear_residual", ops.swiglu_linear, lambda h, w, r: F.linear(references.swiglu(h), w) + r,
         (Input("b t 2*f", normal), Input("o f", normal), Input("b t o", normal)), FEED_FORWARD),
    Case("feed_forward", ops.feed_forward,
         lambda x, g, up, down: x + F.linear(references.swiglu(F.linear(F.rms_norm(x, g.shape, g, 1e-6), up)), down),
         (Input("b t d", normal), Input("d", positive), Input("2*f d", normal), Input("d f", normal)),
         {**NORMED, "f": (1, 40, 512)}),
    _linear_cross_entropy("linear_cross_entropy", {"normalizer": (None, 17.0)}),
    _linear_cross_entropy("linear_cross_entropy_regularised", REGULARISED),
    Case("rope", ops.rope, references.rotate, (Input("b t h 2*e", normal), *ANGLES), {**TOKENS, "h": (1, 4, 6)}),
    Case("rope_partial", ops.rope, references.rotate, (Input("b t h 6*e", normal), *ANGLES),
         {**TOKENS, "h": (1, 4, 6)}),
    Case("causal_attention", ops.causal_attention, references.attend,
         (Input("b t g*k 2*e", normal), Input("b t k 2*e", normal), Input("b t k 2*e", normal)), HEADS),
    Case("causal_attention_documents", ops.causal_attention, references.attend,
         (Input("b t g*k 2*e", normal), Input("b t k 2*e", normal), Input("b t k 2*e", normal), DOCUMENTS), HEADS),
    _attention("attention", ()),
    _attention("attention_rope", ANGLES, "cos", "sin"),
    _attention("attention_norm", (*GAINS, *ANGLES), "q_gain", "k_gain", "cos", "sin"),
    _attention("attention_documents", (*GAINS, *ANGLES, DOCUMENTS), "q_gain", "k_gain", "cos", "sin", "doc_start"),
    _attention("attention_full", (DOCUMENTS,), "doc_start", causal=(False,), window=(None, 3)),
    _attention("attention_window", (), window=(4, 1, 100), causal=(True, False)),
    _attention("attention_scores", (DOCUMENTS,), "doc_start", alibi=(True, False), softcap=(1.5, 5.0),
               causal=(True, False), window=(None, 6)),
    _attention("attention_distance", DISTANCE, "reach", "offset", alibi=(False, True), causal=(True, False),
               softcap=(None, 1.5)),
    _attention("attention_distance_norm", (*GAINS, *DISTANCE, DOCUMENTS), "q_gain", "k_gain", "reach", "offset",
               "doc_start"),
]

MIXED = (*DISTANCE, Input("3 3", normal), Input("3 3", normal))
LAYERS += [
    Case("talking_heads", lambda *given: ops.talking_heads(given[0], 3, *given[1:]),
         lambda *given: references.talking_heads(*given, heads=3), (Input("b t 9*e", normal), *MIXED), TOKENS),
    Case("talking_heads_documents", lambda *given: ops.talking_heads(given[0], 3, *given[1:]),
         lambda *given: references.talking_heads(*given, heads=3), (Input("b t 9*e", normal), *MIXED, DOCUMENTS),
         TOKENS),
]

ROUTED = {"b": (1, 2, 8), "t": (1, 9, 256), "e": (2, 6, 8)}
ROUTING = {"k": (2, 1), "score": ("softmax", "sigmoid"), "normalised": (True, False)}
EXPERTS = {**ROUTED, "e": (1, 5, 8), "k": (1, 3, 2), "d": (1, 40, 256), "f": (1, 24, 256)}
LOGITS = Input("b t e", apart)


def _experts(name: str, *extra: Input) -> Case:
    return Case(name, ops.experts, references.experts,
                (Input("b t d", normal), Input("b t k", positive), Input("b t k", some_experts, gradient=False),
                 Input("e 2*f d", normal), Input("e d f", normal), *extra), EXPERTS)


MIXTURE = [
    Case("router_logits", ops.router_logits, lambda x, w, scale: scale * F.linear(x, w),
         (Input("b t d", normal), Input("e d", normal)), {**ROWS, "e": (1, 9, 8)}, {"scale": (1.0, 0.5)}),
    Case("route", ops.route, references.route, (LOGITS,), ROUTED, ROUTING),
    Case("route_bias", lambda x, b, **options: ops.route(x, bias=b, **options), references.route,
         (LOGITS, Input("e", shifts, gradient=False)), ROUTED, ROUTING),
    Case("route_noise", lambda x, n, **options: ops.route(x, noise=n, **options),
         lambda x, n, **options: references.route(x, noise=n, **options),
         (LOGITS, Input("b t e", shifts, gradient=False)), ROUTED, ROUTING),
    Case("expert_counts", lambda i: ops.expert_counts(i, 8),
         lambda i: torch.bincount(i.flatten(), minlength=8).to(torch.int32),
         (Input("t k", below("e"), gradient=False),), {"t": (1, 40, 4096), "k": (1, 3, 2), "e": (1, 8, 8)}),
    _experts("experts"),
    _experts("experts_residual", Input("b t d", normal)),
]

CASES = {case.name: case for case in [*ELEMENTWISE, *REDUCTIONS, *LAYOUT, *PRODUCTS, *LAYERS, *MIXTURE]}
