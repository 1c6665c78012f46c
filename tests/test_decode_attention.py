"""What decoding calls: heads normed and rotated in place, and attention of a new token over a cache; against torch."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from bench import references
from harness import GPU, gpu_programs
from kernels import memory


def inputs(seed: int, lengths: list[int], capacity: int, heads: int, key_heads: int, dim: int, dtype: torch.dtype):
    """q, k_cache, v_cache, lengths; what lies past a sequence's length is NaN."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return torch.from_numpy(rng.standard_normal(shape)).to(dtype)

    q, *caches = normal(len(lengths), heads, dim), *(normal(len(lengths), capacity, key_heads, dim) for _ in range(2))
    for cache in caches:
        for sequence, length in enumerate(lengths):
            cache[sequence, length:] = float("nan")
    return q, *caches, torch.tensor(lengths, dtype=torch.int32)


def reference(q, k_cache, v_cache, lengths, window=None, alibi=None, softcap=None, distance=None,
              dtype=torch.float64):
    """Token by token in `dtype`."""
    q, k_cache, v_cache = (x.to(dtype) for x in (q, k_cache, v_cache))
    result, group = torch.zeros_like(q), q.shape[1] // k_cache.shape[2]
    for sequence, length in enumerate(lengths.tolist()):
        for head in range(q.shape[1]) if length else ():
            first = 0 if window is None else max(0, length - window)
            keys, values = (cache[sequence, first:length, head // group] for cache in (k_cache, v_cache))
            scores = keys @ q[sequence, head] / math.sqrt(q.shape[2])
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            away = torch.arange(len(scores) - 1, -1, -1)
            if distance is not None:
                reach, offset = (number.to(dtype) for number in distance)
                scores = scores / (1 + reach * away) - offset * (away > 0)
            if alibi is not None:
                scores = scores - alibi[head].to(dtype) * away
            result[sequence, head] = torch.softmax(scores, 0) @ values
    return result


def ours(q, k_cache, v_cache, lengths, window=None, alibi=None, softcap=None, distance=None):
    """By the GPU's programs."""
    pytest.importorskip("triton")
    tensors = [None if x is None else x.to(GPU) for x in (q, k_cache, v_cache, lengths, alibi)]
    distance = None if distance is None else tuple(number.to(GPU) for number in distance)
    with gpu_programs(), memory.poisoned():
        return kernels.decode_attention.forward(*tensors[:4], window, tensors[4], softcap, distance).cpu()


DRAWN = {"seed": st.integers(0, 999), "lengths": st.lists(st.integers(0, 70), min_size=1, max_size=2),
         "heads": st.sampled_from([(1, 1), (4, 2), (6, 1), (3, 3)]), "dim": st.sampled_from([8, 20, 32]),
         "window": st.sampled_from([None, 1, 13, 64, 500]), "biased": st.booleans(),
         "softcap": st.sampled_from([None, 2.0]), "falling": st.booleans()}


def slopes(heads: int) -> torch.Tensor:
    return 2.0 ** -torch.arange(1, heads + 1, dtype=torch.float32)


def options(heads: int, window, biased: bool, softcap, falling: bool, dtype: torch.dtype) -> tuple:
    distance = tuple(torch.tensor([number], dtype=dtype) for number in (0.25, -0.75)) if falling else None
    return window, slopes(heads) if biased else None, softcap, distance


@settings(max_examples=20)
@given(dtype=st.sampled_from([torch.float64, torch.float32]), **DRAWN)
def test_cpu(seed, lengths, heads, dim, window, biased, softcap, falling, dtype):
    tensors = inputs(seed, lengths, 70, *heads, dim, dtype)
    extra = options(heads[0], window, biased, softcap, falling, dtype)
    with memory.poisoned():
        out = kernels.decode_attention.forward(*tensors, *extra)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(out.double(), reference(*tensors, *extra), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("draws", [5, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gpu(dtype, draws):
    @settings(max_examples=draws)
    @given(**DRAWN)
    def check(seed, lengths, heads, dim, window, biased, softcap, falling):
        tensors = inputs(seed, lengths, 70, *heads, dim, dtype)
        extra = options(heads[0], window, biased, softcap, falling, dtype)
        out, exact = ours(*tensors, *extra), reference(*tensors, *extra)
        assert out.dtype == dtype and out.shape == exact.shape
        error = (out.double() - exact).abs().max().item()
        theirs = (reference(*tensors, *extra, dtype=dtype).double() - exact).abs().max().item()
        assert error <= 2 * theirs + 4 * torch.finfo(dtype).eps

    check()


def test_large_scores_and_a_full_cache():
    q, k_cache, v_cache, lengths = inputs(3, [64, 33], 64, 4, 2, 16, torch.float32)
    q *= 300
    distance = torch.tensor([0.1]), torch.tensor([1.0])
    for extra in ({}, {"window": 20}, {"distance": distance}):
        exact = reference(q, k_cache, v_cache, lengths, **extra)
        for out in (ours(q, k_cache, v_cache, lengths, **extra),
                    kernels.decode_attention.forward(q, k_cache, v_cache, lengths, **extra)):
            torch.testing.assert_close(out.double(), exact, rtol=1e-4, atol=1e-4)


def test_more_splits_than_are_put_together_at_once():
    tensors = inputs(5, [390], 400, 2, 1, 8, torch.float32)
    torch.testing.assert_close(ours(*tensors).double(), reference(*tensors), rtol=1e-5, atol=1e-6)


def test_the_same_bits_every_time():
    tensors = inputs(4, [70, 5], 70, 6, 2, 20, torch.float32)
    assert torch.equal(ours(*tensors), ours(*tensors))


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("pairs", [0, 3, 5])
@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_heads_are_normed_and_rotated_where_they_are(device, pairs, normed, dtype):
    if device == "gpu":
        pytest.importorskip("triton")
    elif dtype == torch.bfloat16:
        pytest.skip("the CPU's programs take no bfloat16")
    rng, heads, key_heads, dim, first = np.random.default_rng(pairs), 4, 2, 10, 3
    packed, q_gain, k_gain = (torch.from_numpy(rng.standard_normal(shape)).to(dtype)
                              for shape in ((2, 5, (heads + 2 * key_heads) * dim), dim, dim))
    angles = torch.from_numpy(rng.standard_normal((11, pairs))).float()
    tables = (angles.cos()[first:], angles.sin()[first:]) if pairs else (None, None)
    gains = (q_gain, k_gain) if normed else (None, None)

    parts = packed.double().view(2, 5, -1, dim).split((heads, key_heads, key_heads), 2)
    wanted = []
    for part, gain in zip(parts, (*gains, None)):
        if gain is not None:
            part = part / (part.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain.double()
        wanted.append(part)
    if pairs:
        wanted[:2] = (references.rotate(part, *(table.double() for table in tables)) for part in wanted[:2])

    with contextlib.nullcontext() if device == "cpu" else gpu_programs():
        place = "cpu" if device == "cpu" else GPU
        found, *others = (None if t is None else t.to(place) for t in (packed.clone(), *tables, *gains))
        kernels.qk_norm_rope.in_place(found, heads, key_heads, dim, *others, 1e-5)
    assert torch.equal(found.cpu()[..., -key_heads * dim:], packed[..., -key_heads * dim:]), "values stay"
    tolerance = {"atol": 2e-6, "rtol": 2e-6} if dtype == torch.float32 else {"atol": 1e-2, "rtol": 1e-2}
    torch.testing.assert_close(found.cpu().double(), torch.cat(wanted, 2).flatten(2), **tolerance)
