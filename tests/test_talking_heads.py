"""Talking heads across block borders, on the CPU's programs and the GPU's, and where tokens see nothing.

The table of cases has sequences of one block; here there are several, and on the CPU several parts of a sequence.
"""

import contextlib

import numpy as np
import pytest
import torch

import kernels
from bench import references
from harness import GPU, gpu_programs
from kernels.cpu import talking_heads as cpu_talking_heads
from kernels.memory import poisoned

TOKENS = 41
STARTS = torch.tensor([[0] * 7 + [7] * 20 + [27] * 14, [0] * 16 + [16] * 25], dtype=torch.int32)
BLIND = torch.tensor([[0] * 20 + [20] * 16 + [41] * 5], dtype=torch.int32)
"""The last tokens are padding: they see nothing, and nothing sees them."""
PLACES = pytest.mark.parametrize("where", ["cpu", "gpu"])


@contextlib.contextmanager
def place(name: str, monkeypatch):
    if name == "cpu":
        monkeypatch.setattr(cpu_talking_heads, "MOST_QUERIES", 8)
        yield "cpu"
        return
    pytest.importorskip("triton")
    with gpu_programs():
        yield GPU


def inputs(dtype: torch.dtype, heads: int = 3, dim: int = 20, batch: int = 2, tokens: int = TOKENS):
    """qkv, reach, offset, before, after, dout."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return torch.from_numpy(rng.standard_normal(shape)).to(dtype)

    numbers = (torch.tensor([number], dtype=dtype) for number in (0.25, -0.75))
    mixers = (normal(heads, heads) / heads**0.5 for _ in range(2))
    return normal(batch, tokens, 3 * heads * dim), *numbers, *mixers, normal(batch, tokens, heads * dim)


def ours(device, values, heads: int = 3, doc_start=None):
    """out, lse, and the gradients of all but dout."""
    qkv, *others, dout = (value.to(device) for value in values)
    doc_start = None if doc_start is None else doc_start[: len(qkv)].to(device)
    with poisoned():
        out, lse = kernels.talking_heads.forward(qkv, heads, *others, doc_start)
        gradients = kernels.talking_heads.backward(dout, lse, qkv, heads, *others, doc_start)
    return [tensor.cpu() for tensor in (out, lse, *gradients)]


def theirs(values, heads: int = 3, doc_start=None):
    """out and the gradients, in float64."""
    *leaves, dout = (value.double() for value in values)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    doc_start = None if doc_start is None else doc_start[: len(dout)]
    out = references.talking_heads(*leaves, doc_start, heads=heads)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def check_close(mine, true, dtype):
    tolerance = {torch.float32: 1e-5, torch.float16: 6e-3, torch.bfloat16: 5e-2}[dtype]
    assert len(mine) == len(true)
    for one, other in zip(mine, true):
        assert one.dtype == dtype and one.shape == other.shape
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance * other.abs().max().item())


@PLACES
@pytest.mark.parametrize("doc_start", [None, STARTS], ids=["plain", "documents"])
def test_blocks(doc_start, where, monkeypatch):
    values = inputs(torch.float32, batch=2 if where == "cpu" else 1)
    with place(where, monkeypatch) as device:
        out, _, *gradients = ours(device, values, doc_start=doc_start)
    check_close([out, *gradients], theirs(values, doc_start=doc_start), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision(dtype, monkeypatch):
    values = inputs(dtype, batch=1, dim=16)
    with place("gpu", monkeypatch) as device:
        out, lse, *gradients = ours(device, values, doc_start=STARTS)
    assert lse.dtype == torch.float32
    check_close([out, *gradients], theirs(values, doc_start=STARTS), dtype)


@PLACES
@pytest.mark.parametrize("heads, dim, tokens", [(1, 3, 5), (17, 2, 18)])
def test_any_number_of_heads(heads, dim, tokens, where, monkeypatch):
    values = inputs(torch.float32, heads, dim, 1, tokens)
    with place(where, monkeypatch) as device:
        out, _, *gradients = ours(device, values, heads)
    check_close([out, *gradients], theirs(values, heads), torch.float32)


@PLACES
def test_a_token_that_sees_nothing_gives_nothing(where, monkeypatch):
    values = inputs(torch.float32, batch=1)
    with place(where, monkeypatch) as device:
        out, lse, dqkv, *others = ours(device, values, doc_start=BLIND)
        qkv, *numbers, dout = values
        alone = ours(device, (qkv[:, :36], *numbers, dout[:, :36]), doc_start=BLIND[:, :36])
    assert (out[:, 36:] == 0).all() and (dqkv[:, 36:] == 0).all() and (lse[..., 36:] == float("-inf")).all()
    for one, other in zip((out[:, :36], lse[..., :36], dqkv[:, :36], *others), alone):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@PLACES
def test_log_sum_exp_of_the_mixed_scores(where, monkeypatch):
    values = inputs(torch.float32, batch=1)
    with place(where, monkeypatch) as device:
        lse = ours(device, values)[1]
    qkv, reach, offset, before, *_ = (value.double() for value in values)
    q, k, _ = qkv.view(1, TOKENS, 3, 3, 20).permute(2, 0, 3, 1, 4)
    away = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)
    scores = q @ k.transpose(-1, -2) / 20**0.5 / (1 + reach * away.abs()) - offset * (away > 0)
    mixed = torch.einsum("gh,bhij->bgij", before, scores).masked_fill(away < 0, float("-inf"))
    torch.testing.assert_close(lse.double(), mixed.logsumexp(-1), rtol=1e-5, atol=1e-5)


@PLACES
def test_two_runs_give_the_same_bits(where, monkeypatch):
    values = inputs(torch.float32, batch=1)
    with place(where, monkeypatch) as device:
        first, second = (ours(device, values, doc_start=STARTS) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second))


def test_memory_grows_with_the_length_and_not_with_its_square(monkeypatch):
    pytest.importorskip("triton")
    from kernels.gpu.launch import recording
    from kernels.gpu import talking_heads

    def elements(tokens: int) -> int:
        made, allocate = [], kernels.memory.empty
        with monkeypatch.context() as patch, recording(90):
            patch.setattr(kernels.memory, "empty", lambda shape, *rest: made.append(shape) or allocate(shape, *rest))
            qkv, *others, dout = (value.to("meta") for value in inputs(torch.float32, 3, 16, 1, tokens))
            _, lse = talking_heads.forward(qkv, 3, *others)
            talking_heads.backward(dout, lse, qkv, 3, *others)
        return sum(int(np.prod(shape)) for shape in made)

    assert elements(4096) == pytest.approx(4 * elements(1024), rel=0.01)
