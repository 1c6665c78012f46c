"""The pool of buffers, and what memory operations hold on to."""

import numpy as np
import pytest
import torch

import kernels
from engine import Tensor, ops
from kernels import memory

BIG = (1 << 18,)


def test_blocks_are_used_again():
    a = kernels.empty(BIG)
    address = a.data_ptr()
    assert address % memory.ALIGNMENT == 0
    del a
    assert kernels.empty(BIG).data_ptr() == address


def test_a_view_keeps_its_block():
    a = kernels.empty(BIG)
    view, array = a[5:10], a.numpy()
    address = a.data_ptr()
    del a
    assert kernels.empty(BIG).data_ptr() != address
    del view
    assert kernels.empty(BIG).data_ptr() != address
    del array
    assert kernels.empty(BIG).data_ptr() == address


def test_bytes_in_use_are_counted():
    memory.reset_peak()
    before = memory.allocated_bytes
    a = kernels.empty(BIG)
    assert memory.allocated_bytes - before >= 4 * BIG[0]
    del a
    assert memory.allocated_bytes == before and memory.peak_bytes >= before + 4 * BIG[0]


@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (5, 7), BIG])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_fresh_tensors(shape, dtype):
    x = kernels.empty(shape, dtype)
    assert x.shape == shape and x.dtype == dtype and x.is_contiguous()
    assert not kernels.zeros(shape, dtype).any()


def test_poison_shows_what_was_never_written():
    with memory.poisoned():
        for shape in ((3,), BIG):
            assert torch.isnan(kernels.empty(shape)).all()
            assert (kernels.empty(shape, torch.int32) == torch.iinfo(torch.int32).max).all()
    assert not torch.isnan(kernels.zeros(BIG)).any()


def test_a_kernel_that_leaves_elements_unwritten_is_caught():
    def forgetful(x):
        out = kernels.empty_like(x)
        out[:-1] = x[:-1]
        return out

    with memory.poisoned():
        assert torch.isnan(forgetful(torch.ones(4))).any()


def peak_bytes(function) -> int:
    memory.reset_peak()
    before = memory.allocated_bytes
    function()
    return memory.peak_bytes - before


def test_the_fused_loss_never_holds_all_logits():
    rows, width, vocabulary = 4096, 16, 8192
    rng = np.random.default_rng(0)
    x = Tensor(torch.from_numpy(rng.standard_normal((rows, width)).astype(np.float32)), requires_grad=True)
    weight = Tensor(torch.from_numpy(rng.standard_normal((vocabulary, width)).astype(np.float32)), requires_grad=True)
    targets = torch.from_numpy(rng.integers(0, vocabulary, rows))

    def fused(count):
        ops.linear_cross_entropy(x[:count], weight, targets[:count]).backward()

    all_logits = rows * vocabulary * 4
    assert peak_bytes(lambda: fused(rows)) < all_logits / 4
    assert peak_bytes(lambda: ops.cross_entropy(ops.linear(x, weight), targets).backward()) > all_logits


def test_backward_gives_activations_back():
    x = Tensor(torch.ones(BIG), requires_grad=True)
    before = memory.allocated_bytes
    y = x
    for _ in range(20):
        y = y.exp().tanh()
    y.sum().backward()
    del y
    x.grad = None
    assert memory.allocated_bytes == before


def test_elements_of_small_operations_are_not_kept_by_the_graph():
    """Adding keeps no operand: a residual stream costs one buffer, not one per addition."""
    x = Tensor(torch.ones(BIG), requires_grad=True)
    size = 4 * BIG[0]

    def chain():
        y = x
        for _ in range(10):
            y = y + 1.0

    assert peak_bytes(chain) < 3.5 * size
