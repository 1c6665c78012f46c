"""Launching Triton programs: what is noted down, what the direct path calls, and the table of tile sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import make_backend  # noqa: E402
from triton.runtime.jit import JITFunction, create_function_from_signature  # noqa: E402

import kernels  # noqa: E402
from kernels.gpu import launch as launching  # noqa: E402
from kernels.gpu import rms_norm, tuning  # noqa: E402
from kernels.gpu.launch import Target, describe, launch, recording  # noqa: E402
from sources import ROOT  # noqa: E402

CONSTANTS = {"WIDTH": 8, "COLUMNS": 8, "ROWS": 2}


def arguments(x: torch.Tensor, rows, eps: float = 1e-6) -> tuple:
    return x, None, x, None, x, x, rows, eps


@pytest.mark.parametrize("x", [torch.empty(64), torch.empty(64)[1:], torch.empty(64, dtype=torch.bfloat16)[8:],
                               torch.empty(4, dtype=torch.float16), torch.empty(4, dtype=torch.int64),
                               torch.empty(4, dtype=torch.int32), torch.empty(4, dtype=torch.bool)])
@pytest.mark.parametrize("rows", [0, 1, 15, 16, -16, 2**31 - 1, 2**31, 2**40])
def test_arguments_are_described_as_triton_does(x, rows):
    function = JITFunction(rms_norm._forward.fn)
    backend = make_backend(GPUTarget("cuda", 90, 32))
    bind = create_function_from_signature(function.signature, function.params, backend)
    _, theirs, _ = bind(*arguments(x, rows), **CONSTANTS)
    ours = describe(rms_norm._forward, (1,), arguments(x, rows), 4, 3, CONSTANTS)
    assert [kind for _, kind in ours.signature] == [kind for kind, _ in theirs]
    assert list(ours.divisible) == [i for i, (_, value) in enumerate(theirs) if value == "D"]


def test_arguments_must_be_those_of_the_kernel():
    x = torch.empty(16)
    for wrong in [dict(args=arguments(x, 2)[1:], constexprs=CONSTANTS),
                  dict(args=arguments(x, 2), constexprs={**CONSTANTS, "more": 1}),
                  dict(args=arguments(x, True), constexprs=CONSTANTS),
                  dict(args=arguments(x, "2"), constexprs=CONSTANTS)]:
        with pytest.raises(TypeError):
            launch(rms_norm._forward, (1,), *wrong["args"], **wrong["constexprs"])


def test_recording_runs_nothing():
    x = torch.empty(65_536, 768, dtype=torch.bfloat16, device="meta")
    with recording(80) as noted:
        y, rstd = kernels.rms_norm.forward(x, x[0], 1e-6)
        dx, dgain = kernels.rms_norm.backward(y, x, x[0], rstd)
        assert launching.target() == Target("sm_80", 80, 108)
    assert [entry.kernel.fn.__name__ for entry in noted] == ["_forward", "_backward", "_sum_rows"]
    assert (y.shape, rstd.dtype, dx.dtype, dgain.shape) == (x.shape, torch.float32, torch.bfloat16, (768,))
    assert noted[0].signature[0] == ("x", "*bf16") and 0 in noted[0].divisible
    assert ("residual", None) in noted[0].constants and ("WIDTH", 768) in noted[0].constants
    assert noted[1].grid == (216,)


def test_a_meta_view_has_the_alignment_of_its_offset():
    flat = torch.empty(64, dtype=torch.bfloat16, device="meta")
    shifted = [describe(rms_norm._forward, (1,), arguments(flat[k:], 2), 4, 3, CONSTANTS) for k in (0, 4, 8)]
    assert [0 in entry.divisible for entry in shifted] == [True, False, True]


DIRECT = """
import json, torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
calls = []

class Launcher:
    def __init__(self, src, metadata):
        pass
    def __call__(self, gridX, gridY, gridZ, stream, function, *args):
        calls.append([gridX, gridY, gridZ, stream, function, *args])

class Utilities:
    def load_binary(self, name, program, shared, device):
        assert program[:4] == bytes([127]) + b"ELF"
        return 1, 1000 + len(loaded.append(name) or loaded), 32, 0, 1024
    def get_device_properties(self, device):
        return {"max_shared_mem": 232448}

class Driver:
    launcher_cls, utils = Launcher, Utilities()
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 77

loaded = []
driver.set_active(Driver())
from kernels.gpu import launch as launching, rms_norm
try:
    launching.launch(rms_norm._forward, (1,), *[torch.empty(64)] * 6, 1, 1e-6, WIDTH=8, ROWS=2, COLUMNS=8)
except ValueError as error:
    elsewhere = str(error)
launching.GPU = "cpu"  # tensors of this test
x, gain, y, rstd = torch.empty(64, 8), torch.empty(8), torch.empty(64, 8), torch.empty(64)
def run(x, rows, **options):
    launching.launch(rms_norm._forward, (3, 2), x, None, gain, None, y, rstd, rows, 1e-6, num_warps=2,
                     WIDTH=8, ROWS=2, COLUMNS=8, **options)
run(x, 16); run(x, 32); run(x, 17); run(x.view(-1)[1:], 16); run(x, 1); run(x, 16, num_stages=1)
launching.launch(rms_norm._forward, (0,), x, None, gain, None, y, rstd, 0, 1e-6, WIDTH=8, COLUMNS=8, ROWS=2)
expected = [x.data_ptr(), None, gain.data_ptr(), None, y.data_ptr(), rstd.data_ptr(), 16, 1e-6, 8, 8, 2]
try:
    run(torch.empty(64, 8, device="meta"), 16)
    refused = False
except RuntimeError:
    refused = True
launching.LAUNCHER_PARAMETERS, launching._ready = ["other"], {}
run(x, 16)
found = {"calls": calls, "loaded": loaded, "expected": expected, "refused": refused, "elsewhere": elsewhere}
print(json.dumps(found, default=repr))
"""


def test_the_direct_path_calls_the_compiled_kernels_launcher():
    """Compiles for a card that is not there, up to the call that would launch."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", DIRECT], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    *direct, slow = result["calls"]
    assert [call[:4] for call in direct] == [[3, 2, 1, 77]] * 6
    assert direct[0][6:9] == [None] * 3 and direct[0][9:] == result["expected"]
    assert direct[0][5] == [2, 1, direct[0][5][2]]  # warps, clusters, shared memory
    variants = [call[4] for call in direct]
    assert variants[0] == variants[1] and len(set(variants)) == 5 == len(result["loaded"])
    assert result["refused"] is True
    assert result["elsewhere"] == "launch: _forward takes tensors on the GPU, got some on cpu"
    assert "tensor" in slow[9] and slow[:5] == direct[0][:5]


@pytest.fixture
def no_entries():
    tuning._entry.cache_clear()
    yield
    tuning._entry.cache_clear()


def test_the_most_special_entry_is_taken(monkeypatch, no_entries):
    entries = {"default": {"A": 0}, "default width=64": {"A": 1}, "sm_90": {"A": 2}, "sm_90 float32": {"A": 3},
               "sm_90 float32 causal=True width=64": {"A": 4}, "Card": {"A": 5}}
    monkeypatch.setattr(tuning, "table", lambda: {"kernel": entries})
    lookups = [("sm_80", 80, torch.float32, {}), ("sm_80", 80, torch.float32, {"width": 33}),
               ("sm_90", 90, torch.bfloat16, {"width": 64}), ("sm_90", 90, torch.float32, {"width": 64}),
               ("sm_90", 90, torch.float32, {"width": 64, "causal": True}), ("Card", 90, torch.float32, {"width": 64})]
    for expected, (name, arch, dtype, shape) in enumerate(lookups):
        tuning._entry.cache_clear()
        monkeypatch.setattr(tuning, "target", lambda: Target(name, arch, 1))
        assert tuning.tuned("kernel", dtype, **shape) == {"A": expected}
    with pytest.raises(KeyError, match="no kernel 'other'"):
        tuning.tuned("other", torch.float32)


def test_sizes_are_rounded_up_to_powers_of_two():
    assert [tuning.bucket(size) for size in (1, 2, 3, 64, 65, True, "gelu")] == [1, 2, 4, 64, 128, True, "gelu"]


def test_every_kernel_of_the_table_has_a_default():
    assert [name for name, entries in tuning.table().items() if "default" not in entries] == []


def test_float32_precision_is_one_setting():
    try:
        launching.set_float32_precision("tf32")
        assert launching.float32_precision() == "tf32" and torch.get_float32_matmul_precision() == "high"
        with pytest.raises(ValueError, match="fp8"):
            launching.set_float32_precision("fp8")
    finally:
        launching.set_float32_precision("ieee")
    assert launching.float32_precision() == "ieee" and torch.get_float32_matmul_precision() == "highest"


def test_a_kernel_without_program_says_so():
    with kernels.programs("gpu"), pytest.raises(NotImplementedError, match="rms_norm has no program other for gpu"):
        kernels.rms_norm.other(torch.empty(1))
    missing = kernels.Kernel("nowhere", "")
    with pytest.raises(NotImplementedError, match="nowhere has no program for gpu"):
        missing.forward(torch.empty(1, device="meta"))
