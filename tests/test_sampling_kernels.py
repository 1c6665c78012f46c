"""The next token on both devices: the same ids are kept, the same number draws the same id."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from harness import GPU, gpu_programs
from kernels import memory

pytest.importorskip("triton")

SETTINGS = st.fixed_dictionaries({
    "temperature": st.sampled_from([0.0, 1e-3, 0.3, 1.0, 1.7]), "top_k": st.sampled_from([0, 1, 2, 7, 64, 500]),
    "top_p": st.sampled_from([1.0, 0.95, 0.6, 0.05, 1e-6]), "repetition_penalty": st.sampled_from([1.0, 1.3, 0.5])})


def ours(function: str, logits: torch.Tensor, *arguments, context=None, **options) -> torch.Tensor:
    """By the GPU's program."""
    context = None if context is None else context.to(GPU)
    with gpu_programs(), memory.poisoned():
        return getattr(kernels.sampling, function)(logits.to(GPU), *arguments, context=context, **options).cpu()


def example(seed: int, rows: int, vocabulary: int, ties: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of which many are equal, or none; ids seen, of which some are padding and some occur twice."""
    rng = np.random.default_rng(seed)
    spread = np.round(rng.standard_normal((rows, vocabulary)) * 2) if ties else np.stack(
        [rng.permutation(vocabulary) / 16 - vocabulary / 40 for _ in range(rows)])
    return torch.from_numpy(spread).float(), torch.from_numpy(rng.integers(-3, vocabulary, (rows, 9)))


@pytest.mark.parametrize("draws", [15, pytest.param(200, marks=pytest.mark.slow)])
def test_probabilities_as_on_the_cpu(draws):
    @settings(max_examples=draws)
    @given(seed=st.integers(0, 999), rows=st.integers(1, 2), vocabulary=st.sampled_from([1, 5, 64, 65, 150]),
           ties=st.booleans(), options=SETTINGS)
    def check(**example):
        check_probabilities(**example)

    check()


def check_probabilities(seed, rows, vocabulary, ties, options):
    logits, context = example(seed, rows, vocabulary, ties)
    expected = kernels.sampling.probabilities(logits, context, **options).numpy()
    weights = ours("probabilities", logits, context=context, **options)
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights.numpy(), expected, rtol=2e-5, atol=1e-30)
    assert np.array_equal(weights.numpy() > 1e-30, expected > 1e-30)


@settings(max_examples=12)
@given(seed=st.integers(0, 2**64 - 1), offset=st.integers(0, 2**40), options=SETTINGS, on_device=st.booleans())
def test_draws_as_on_the_cpu(seed, offset, options, on_device):
    logits, context = example(seed % 1000, 2, 70, ties=False)
    place = torch.tensor([offset], device=GPU) if on_device else offset
    ids = ours("sample", logits, seed, place, context=context, **options)
    assert ids.dtype == torch.int64
    weights = kernels.sampling.probabilities(logits, context, **options).numpy()
    u = kernels.dropout.uniform(torch.empty(2), seed, offset).numpy()
    for row in range(2):
        after = weights[row].cumsum()
        chosen = int(ids[row])
        assert after[chosen] - weights[row, chosen] - 1e-5 <= u[row] <= after[chosen] + 1e-5
        assert weights[row, chosen] > 0
    assert torch.equal(ids, kernels.sampling.sample(logits, seed, offset, context, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_of_any_layout_and_dtype(dtype):
    wide = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 96))).to(dtype)
    for logits in (wide[:, :70], wide[:, 1:70], wide.t()[:70, :3].t(), wide.t().contiguous().t()):
        expected = kernels.sampling.probabilities(logits.float(), top_k=11, top_p=0.9).numpy()
        np.testing.assert_allclose(ours("probabilities", logits, top_k=11, top_p=0.9).numpy(), expected, rtol=1e-4)


def test_the_lowest_of_equal_ids_come_first():
    logits = torch.tensor([[0.0, -0.0, 1.0, 0.0, 1.0, -0.0, 0.0]])
    for options, kept in [({"top_k": 1}, [2]), ({"top_k": 3}, [0, 2, 4]), ({"top_k": 4}, [0, 1, 2, 4]),
                          ({"top_p": 0.1}, [2]), ({"top_p": 0.6}, [0, 2, 4]), ({"top_k": 4, "top_p": 0.8}, [0, 2, 4]),
                          ({"temperature": 0.0}, [2])]:
        weights = ours("probabilities", logits, **options)[0]
        assert weights.nonzero().flatten().tolist() == kept
        assert kernels.sampling.probabilities(logits, **options)[0].nonzero().flatten().tolist() == kept


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_damaged_rows_are_told(bad):
    logits = torch.zeros(3, 70)
    logits[1, 69] = bad
    for options in ({}, {"top_k": 3, "top_p": 0.5}, {"temperature": 0.0}):
        for ids in (ours("sample", logits, 1, 0, **options), kernels.sampling.sample(logits, 1, 0, **options)):
            assert ids[1] == -1 and (ids[::2] >= 0).all()
        assert ours("probabilities", logits, **options).isnan().all(dim=1).tolist() == [False, True, False]


def test_draws_follow_the_weights_and_a_row_its_number():
    logits = torch.log(torch.tensor([[0.5, 0.2, 0.0625, 0.2375]])).expand(2000, 4)
    ids = kernels.sampling.sample(logits, 5, 17, top_k=3)
    shares = torch.bincount(ids, minlength=4) / 2000
    np.testing.assert_allclose(shares.numpy(), np.array([0.5, 0.2, 0, 0.2375]) / 0.9375, atol=0.03)
    assert torch.equal(ids[100:106], ours("sample", logits[:6], 5, 117, top_k=3))
