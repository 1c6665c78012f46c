"""The table of cases on the programs in kernels/gpu: on a GPU where there is one, else in Triton's interpreter."""

import pytest
import torch
from hypothesis import given, settings

from bench.case import apart, between
from bench.cases import CASES
from engine import Tensor
from engine.autograd import run_backward
from harness import GPU, converted, examples, gpu_programs, output_gradients, run_on_gpu
from test_cases import check_example, fixed_example

pytest.importorskip("triton")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16],
                                 ids=["float32", "float16", "bfloat16"])
NOT_YET: set[str] = set()
"""Cases of which some kernel has no program in kernels/gpu."""
READY = [name for name in CASES if name not in NOT_YET]


def gpu_examples(name: str, dtype: torch.dtype):
    """Small examples: the interpreter takes milliseconds per program. Distinct values stay distinct in `dtype`."""
    case = CASES[name]
    distinct = any(entry.values in (apart, between) for entry in case.inputs)
    return examples(case, most=80 if distinct and dtype == torch.bfloat16 else 1000)


@DTYPES
@pytest.mark.parametrize("name", READY)
def test_against_torch(name, dtype):
    @settings(max_examples=3)
    @given(example=gpu_examples(name, dtype))
    def check(example):
        check_example(example, dtype, run_on_gpu)

    check()


@pytest.mark.slow
@DTYPES
@pytest.mark.parametrize("name", READY)
def test_against_torch_with_many_examples(name, dtype):
    @settings(max_examples=40 if GPU == "cpu" else 8)  # a compiler needs a second for each shape
    @given(example=gpu_examples(name, dtype))
    def check(example):
        check_example(example, dtype, run_on_gpu)

    check()


WITH_WEIGHTS = [name for name in READY if "linear" in name or name == "feed_forward"] if "add" in READY else []
"""Cases whose backward adds to a gradient that is there; their other gradients are added by elementwise."""


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_gradients_of_several_passes_add_up(name):
    case, example = CASES[name], fixed_example(CASES[name])
    inputs = [converted(t, t.dtype, GPU) for t in example.inputs]
    arguments = [Tensor(t, requires_grad=True) if entry.gradient else t for t, entry in zip(inputs, case.inputs)]
    seen = []
    with gpu_programs():
        for _ in range(3):
            result = case.ours(*arguments, **example.options)
            run_backward([(result, output_gradients([result], example, torch.float32)[0])])
            seen.append([leaf.grad.clone() for leaf in arguments if isinstance(leaf, Tensor)])
    for passes, gradients in enumerate(seen, 1):
        for once, several in zip(seen[0], gradients):
            torch.testing.assert_close(several, passes * once, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(NOT_YET))
def test_what_is_not_yet_there_is_not(name):
    with pytest.raises(NotImplementedError, match="has no program"):
        run_on_gpu(fixed_example(CASES[name]), torch.float32)
