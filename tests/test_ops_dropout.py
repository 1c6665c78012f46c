"""Dropout's random numbers: the generator, and what a mask depends on."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import kernels
from engine import Tensor, ops, random


def philox(key: int, counter: int) -> int:
    """The first word of Philox-4x32-10, written after the paper with Python's own integers."""
    c, k, mask = [counter & 0xFFFFFFFF, counter >> 32, 0, 0], [key & 0xFFFFFFFF, key >> 32], 0xFFFFFFFF
    for _ in range(10):
        left, right = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [right >> 32 ^ c[1] ^ k[0], right & mask, left >> 32 ^ c[3] ^ k[1], left & mask]
        k = [k[0] + 0x9E3779B9 & mask, k[1] + 0xBB67AE85 & mask]
    return c[0]


def to_unit(word: int) -> np.float32:
    return np.float32(word if word < 1 << 31 else (1 << 32) - 1 - word) * np.float32(4.6566127342e-10)


def test_the_generator_gives_the_published_word():
    assert philox(0, 0) == 0x6627E8D5


@pytest.mark.parametrize("seed, offset", [(0, 0), (123, 5), ((1 << 64) - 3, (1 << 32) - 5), (7 << 40, 1 << 45)])
def test_uniform_numbers(seed, offset):
    u = kernels.dropout.uniform(torch.empty(50), seed, offset)
    assert u.tolist() == [to_unit(philox(seed, offset + i)) for i in range(50)]
    assert u.min() >= 0 and u.max() < 1


def test_uniform_numbers_are_those_of_triton():
    pytest.importorskip("triton")
    script = """
import torch, triton, triton.language as tl
@triton.jit
def draw(out, seed, first, n: tl.constexpr):
    i = tl.arange(0, n)
    tl.store(out + i, tl.rand(seed, first + i))
for seed, first in ((42, 17), (987654321987, (1 << 33) + 7)):
    out = torch.empty(64)
    draw[(1,)](out, seed, first, 64)
    print(*(x.hex() for x in out.tolist()))
"""
    done = subprocess.run([sys.executable, "-c", script_file(script)], capture_output=True, text=True,
                          env={**os.environ, "TRITON_INTERPRET": "1"})
    assert done.returncode == 0, done.stderr
    for line, (seed, first) in zip(done.stdout.splitlines(), ((42, 17), (987654321987, (1 << 33) + 7))):
        ours = kernels.dropout.uniform(torch.empty(64), seed, first)
        assert [x.hex() for x in ours.tolist()] == line.split()


def script_file(script: str) -> str:
    """Triton reads a kernel's source from a file."""
    return ("import tempfile, runpy, os\nfolder = tempfile.mkdtemp()\npath = os.path.join(folder, 'draw.py')\n"
            f"open(path, 'w').write({script!r})\nrunpy.run_path(path)\nos.remove(path)\nos.rmdir(folder)")


def mask(x: Tensor, p: float) -> torch.Tensor:
    return ops.dropout(x, p).data != 0


def ones(*shape) -> Tensor:
    return Tensor(torch.ones(shape))


def test_share_scale_and_gradient():
    x = Tensor(torch.ones(64, 300, 11), requires_grad=True)
    y = ops.dropout(x, 0.3)
    kept = y.data != 0
    assert abs(kept.float().mean().item() - 0.7) < 0.005
    torch.testing.assert_close(y.data[kept], torch.full((int(kept.sum()),), 1 / 0.7))
    y.backward(torch.full(x.shape, 2.0))
    torch.testing.assert_close(x.grad, y.data * 2)


def test_off_outside_training_and_at_the_ends():
    x = ones(4, 5)
    assert ops.dropout(x, 0.5, training=False) is x and ops.dropout(x, 0.0) is x
    assert ops.dropout(x, 1.0).data.tolist() == torch.zeros(4, 5).tolist()


def test_calls_differ_and_a_seed_repeats_them():
    random.set_seed(5)
    first, second = mask(ones(8, 32), 0.5), mask(ones(8, 32), 0.5)
    random.set_seed(5)
    assert torch.equal(first, mask(ones(8, 32), 0.5)) and not torch.equal(first, second)
    random.set_seed(6)
    assert not torch.equal(first, mask(ones(8, 32), 0.5))


def test_the_mask_does_not_depend_on_the_cut_into_micro_batches():
    whole_x = ones(4, 6, 10)
    random.set_position(100)
    whole = mask(whole_x, 0.4)
    parts = []
    for i in range(0, 4, 2):
        random.set_position(100 + i * 6)
        parts.append(mask(whole_x[i: i + 2], 0.4))
    assert torch.equal(whole, torch.cat(parts))
    random.set_position(124)
    assert not torch.equal(whole, mask(whole_x, 0.4))


def test_the_mask_follows_the_order_of_elements_not_of_memory():
    x = ones(6, 40)
    random.set_position(0)
    straight = mask(x, 0.5)
    random.set_position(0)
    assert torch.equal(straight, mask(ones(40, 6).T, 0.5))


def test_both_dtypes_draw_the_same_mask():
    random.set_position(0)
    single = mask(ones(7, 70), 0.5)
    random.set_position(0)
    assert torch.equal(single, mask(Tensor(torch.ones(7, 70, dtype=torch.float64)), 0.5))
