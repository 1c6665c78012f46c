"""Attention across block borders, on the CPU's programs and the GPU's, and where tokens see nothing.

The table of cases has sequences of one block; here blocks are small, and the programs for short and for long sequences
both run.
"""

import contextlib

import numpy as np
import pytest
import torch

import kernels
from bench import references
from harness import GPU, gpu_programs
from kernels.cpu import attention as cpu_attention
from kernels.memory import poisoned

HEADS, KEY_HEADS, TOKENS = 4, 2, 41
ALIBI = 2.0 ** -torch.arange(1.0, HEADS + 1)
STARTS = torch.tensor([[0] * 7 + [7] * 20 + [27] * 14, [0] * 16 + [16] * 25], dtype=torch.int32)
DISTANCE = torch.tensor([0.25]), torch.tensor([0.75])
BLIND = torch.tensor([[0] * 20 + [20] * 16 + [41] * 5, [0] * 41], dtype=torch.int32)
"""The last tokens of the first row are padding: they see nothing, and nothing sees them."""
OPTIONS = {
    "causal": {},
    "full": {"causal": False},
    "window": {"window": 7},
    "full window": {"causal": False, "window": 7},
    "documents": {"doc_start": STARTS},
    "full documents": {"doc_start": STARTS, "causal": False},
    "window of documents": {"doc_start": STARTS, "window": 9},
    "alibi": {"alibi": ALIBI},
    "softcap": {"softcap": 1.5},
    "all": {"doc_start": STARTS, "causal": False, "window": 12, "alibi": ALIBI, "softcap": 2.0},
    "distance": {"distance": DISTANCE},
    "distance and all": {"doc_start": STARTS, "causal": False, "window": 12, "alibi": ALIBI, "softcap": 2.0,
                         "distance": DISTANCE},
}
PLACES = ("cpu", "gpu long", "gpu short")


@contextlib.contextmanager
def place(name: str, monkeypatch):
    """Programs in small blocks: of 16 queries and keys, or of one for all keys."""
    monkeypatch.setattr(cpu_attention, "QUERY_BLOCK", 16)
    if name == "cpu":
        yield "cpu"
        return
    tuning = pytest.importorskip("kernels.gpu.tuning")
    table = tuning.table()
    monkeypatch.setitem(table, "attention_short", {"default": {"TOKENS": 64 if name == "gpu short" else 0}})
    for kernel in ("attention_forward", "attention_query_gradients", "attention_key_gradients"):
        monkeypatch.setitem(table, kernel, {"default": {"KEYS": 16, "QUERIES": 16, "num_stages": 1, "num_warps": 4}})
    for kernel in ("attention_short_forward", "attention_short_backward"):
        monkeypatch.setitem(table, kernel, {"default": {"SCORES": 1024, "num_stages": 1, "num_warps": 4}})
    tuning._entry.cache_clear()
    try:
        with gpu_programs():
            yield GPU
    finally:
        tuning._entry.cache_clear()


def inputs(dim: int, dtype: torch.dtype, pairs: int = 0, batch: int = 2, tokens: int = TOKENS):
    """(qkv, dout, (q_gain, k_gain, cos, sin)): the norm and rotation only where pairs of features turn."""
    rng = np.random.default_rng(0)
    shapes = [(batch, tokens, (HEADS + 2 * KEY_HEADS) * dim), (batch, tokens, HEADS * dim), (dim,), (dim,)]
    qkv, dout, *gains = (torch.from_numpy(rng.standard_normal(shape)).to(dtype) for shape in shapes)
    if not pairs:
        return qkv, dout, ()
    angles = torch.outer(torch.arange(tokens), 1000.0 ** -(torch.arange(pairs) / pairs))
    return qkv, dout, (*gains, angles.cos().to(dtype), angles.sin().to(dtype))


def ours(device, qkv, dout, extra, doc_start=None, distance=None, **options):
    """[out, dqkv, dq_gain, dk_gain, dreach, doffset], lse."""
    distance = None if distance is None else tuple(number.to(device, qkv.dtype) for number in distance)
    qkv, dout, *extra = (tensor.to(device) for tensor in (qkv, dout, *extra))
    q_gain, k_gain, cos, sin = extra or [None] * 4
    options = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in options.items()}
    doc_start = None if doc_start is None else doc_start[: len(qkv)].to(device)
    arguments = HEADS, KEY_HEADS, cos, sin, q_gain, k_gain, 1e-6, doc_start
    with poisoned():
        out, lse = kernels.attention.forward(qkv, *arguments, **options, distance=distance)
        gradients = kernels.attention.backward(dout, out, lse, qkv, *arguments, **options, distance=distance)
    return [t.cpu() for t in (out, *gradients) if t is not None], lse.cpu()


def theirs(qkv, dout, extra, distance=(), **options):
    leaves = [tensor.clone().requires_grad_() for tensor in (qkv, *extra[:2])]
    numbers = [number.to(qkv.dtype).requires_grad_() for number in distance]
    options |= dict(zip(("reach", "offset"), numbers))
    out = references.packed_attention(*leaves, *extra[2:], heads=HEADS, key_heads=KEY_HEADS, **options)
    return [out.detach(), *torch.autograd.grad(out, leaves + numbers, dout)]


def widened(qkv, dout, extra):
    return qkv.double(), dout.double(), tuple(tensor.double() for tensor in extra)


def check_close(mine, true, dtype):
    tolerance = {torch.float64: 1e-12, torch.float32: 3e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    assert len(mine) == len(true)
    for one, other in zip(mine, true):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance * other.abs().max().item())


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("name", OPTIONS)
def test_blocks(name, where, monkeypatch):
    values, options = inputs(16, torch.float32, batch=2 if where == "cpu" else 1), OPTIONS[name]
    truth = theirs(*widened(*values), **{**options, **({"doc_start": options["doc_start"][: len(values[0])]}
                                                       if "doc_start" in options else {})})
    with place(where, monkeypatch) as device:
        check_close(ours(device, *values, **options)[0], truth, torch.float32)


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("dim, pairs", [(16, 8), (24, 5), (20, 10)])
def test_norm_and_rotation_of_some_or_all_features(dim, pairs, where, monkeypatch):
    values = inputs(dim, torch.float32, pairs, batch=1)
    with place(where, monkeypatch) as device:
        check_close(ours(device, *values)[0], theirs(*widened(*values)), torch.float32)


@pytest.mark.parametrize("where", PLACES[1:])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision(dtype, where, monkeypatch):
    values = inputs(16, dtype, pairs=8, batch=1)
    options = {"window": 20, "doc_start": STARTS, "distance": DISTANCE}
    with place(where, monkeypatch) as device:
        results, lse = ours(device, *values, **options)
    assert lse.dtype == torch.float32
    check_close(results, theirs(*widened(*values), **{**options, "doc_start": STARTS[:1]}), dtype)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("where", PLACES)
def test_a_token_that_sees_nothing_gives_nothing(where, causal, monkeypatch):
    values, blind = inputs(16, torch.float32), BLIND == TOKENS
    with place(where, monkeypatch) as device:
        (out, dqkv, *_), lse = ours(device, *values, doc_start=BLIND, causal=causal, distance=DISTANCE)
        (alone, d_alone, *_), lse_alone = ours(device, values[0][:1, :36], values[1][:1, :36], (),
                                               doc_start=BLIND[:, :36], causal=causal, distance=DISTANCE)
    assert (out[blind] == 0).all() and (dqkv[blind] == 0).all()
    assert (lse.transpose(1, 2)[blind] == float("-inf")).all()
    assert torch.isfinite(lse.transpose(1, 2)[~blind]).all() and torch.isfinite(dqkv).all()
    torch.testing.assert_close(out[:1, :36], alone)
    torch.testing.assert_close(dqkv[:1, :36], d_alone)
    torch.testing.assert_close(lse[:1, :, :36], lse_alone)


@pytest.mark.parametrize("where", PLACES)
def test_log_sum_exp(where, monkeypatch):
    qkv, dout, _ = values = inputs(16, torch.float32, batch=1)
    with place(where, monkeypatch) as device:
        lse = ours(device, *values)[1]
    q, k, _ = qkv.double().view(1, TOKENS, -1, 16).transpose(1, 2).split([HEADS, KEY_HEADS, KEY_HEADS], dim=1)
    scores = q @ k.repeat_interleave(HEADS // KEY_HEADS, dim=1).transpose(-1, -2) / 4
    truth = scores.masked_fill(~references.visible(TOKENS), float("-inf")).logsumexp(-1)
    torch.testing.assert_close(lse.double(), truth, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("where", PLACES)
def test_two_runs_give_the_same_bits(where, monkeypatch):
    values = inputs(16, torch.float32, pairs=8, batch=1)
    with place(where, monkeypatch) as device:
        (first, lse), (second, again) = (ours(device, *values, doc_start=STARTS, distance=DISTANCE) for _ in range(2))
    assert torch.equal(lse, again) and all(torch.equal(one, other) for one, other in zip(first, second))


def test_large_scores_of_values_alike_do_not_shift_gradients(monkeypatch):
    """All values of a head alike: dout * out sums to dout * v exactly, so queries get no gradient."""
    qkv, dout, _ = inputs(16, torch.bfloat16, batch=1)
    qkv[..., -KEY_HEADS * 16:] = qkv[:, :1, -KEY_HEADS * 16:].clone()
    with place("gpu long", monkeypatch) as device:
        (out, dqkv), _ = ours(device, 4 * qkv, dout, ())
    queries, values = dqkv[..., : HEADS * 16], dqkv[..., -KEY_HEADS * 16:]
    assert queries.abs().max() < 1e-2 * values.abs().max()


def test_heads_too_wide_for_a_gpu_are_refused():
    pytest.importorskip("triton")
    with gpu_programs(), pytest.raises(ValueError, match="at most 256 features, got 258"):
        kernels.attention.forward(torch.zeros(1, 2, 3 * 258, device=GPU), 1, 1)
