"""The torch fence: the product uses torch for memory, views, copies and matrix products only.

One test reads the sources for names taken from torch; another watches the operators that torch runs under our
operations, as methods and `+` on a buffer bear no name of torch's.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.cases import CASES
from engine import Tensor
from engine.autograd import run_backward
from harness import laid_out
from sources import PRODUCT, ROOT, imported_modules, source_files
from test_cases import fixed_example

ALLOWED_NAMES = {
    *"Tensor dtype device Size bool uint8 uint16 int8 int16 int32 int64 float16 bfloat16 float32 float64".split(),
    *"iinfo finfo result_type promote_types broadcast_shapes __version__".split(),
    *"empty empty_like zeros zeros_like ones ones_like full full_like arange".split(),
    *"tensor as_tensor from_numpy frombuffer".split(),
    *"mm bmm addmm baddbmm set_num_threads get_num_threads set_float32_matmul_precision backends".split(),
}

ALLOWED_OF_CUDA = {
    *"current_device get_device_properties is_available current_stream stream Stream Event CUDAGraph graph".split(),
    *"graph_pool_handle memory_allocated max_memory_allocated reset_peak_memory_stats".split(),
}

ALLOWED_OPERATORS = {
    *"empty zeros ones full arange lift_fresh scalar_tensor new_empty empty_like ones_like".split(),
    *"view _unsafe_view as_strided slice select transpose t permute expand unsqueeze squeeze detach alias".split(),
    *"split split_with_sizes unbind unfold _reshape_alias movedim".split(),
    *"copy_ clone _to_copy fill_ zero_ _local_scalar_dense is_pinned resize_".split(),
    *"mm bmm addmm baddbmm".split(),
}


def forbidden_names(source: str, file: Path) -> list[str]:
    """What a source takes from torch (or triton, outside kernels/gpu) that it may not."""
    tree = ast.parse(source)
    found = []
    for line, module in imported_modules(tree, file):
        parts = module.split(".")
        if parts[0] == "torch" and (len(parts) > 2 or len(parts) == 2 and parts[1] not in ALLOWED_NAMES):
            found.append(f"{file}:{line}: import {module}")
        if parts[0] == "triton" and file.parts[:2] != ("kernels", "gpu"):
            found.append(f"{file}:{line}: import {module}")
    named = set()
    for node in ast.walk(tree):
        if _dtype_by_name(node):
            named.add(node.args[0])
        elif _owner(node) == "torch.cuda":
            named.add(node.value)
            if node.attr not in ALLOWED_OF_CUDA:
                found.append(f"{file}:{node.lineno}: torch.cuda.{node.attr}")
        elif _owner(node) == "torch":
            named.add(node.value)
            if node.attr not in ALLOWED_NAMES and node not in named:
                found.append(f"{file}:{node.lineno}: torch.{node.attr}")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "Tensor":
            found.append(f"{file}:{node.lineno}: Tensor.{node.attr}")
        elif isinstance(node, ast.alias) and node.name == "torch" and node.asname:
            found.append(f"{file}: torch as {node.asname}")
    found += [f"{file}:{node.lineno}: torch as a value" for node in ast.walk(tree)
              if isinstance(node, ast.Name) and node.id == "torch" and node not in named]
    return found


def _owner(node: ast.AST) -> str:
    """a.b of a.b.c."""
    return ast.unparse(node.value) if isinstance(node, ast.Attribute) else ""


def _dtype_by_name(node: ast.AST) -> bool:
    """getattr(torch, config.dtype)."""
    return (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr"
            and len(node.args) == 2 and isinstance(node.args[1], ast.Attribute) and node.args[1].attr == "dtype")


def test_the_product_keeps_to_the_allowed_names():
    files = source_files(*PRODUCT)
    assert len(files) > 40
    assert [found for file in files for found in forbidden_names((ROOT / file).read_text(), file)] == []


@pytest.mark.parametrize("source", [
    "import torch.nn as nn", "from torch import nn", "import torch as t", "from torch.nn import functional as F",
    "import torch\ny = torch.softmax(x, -1)", "import torch\ntorch.autograd.grad(y, x)", "from torch import einsum",
    "import torch\nf = getattr(torch, 'exp')", "import torch\ngetattr(torch, config.activation)",
    "import torch\ntorch.Tensor.exp(x)", "import torch\ntorch.save(x, 'f')", "import torch\ntorch.compile(f)",
    "import importlib\nimportlib.import_module('torch.optim')", "import triton", "from triton import language",
    "import torch\ndef f(x: torch.nn.Module): pass", "import torch\ntorch.cuda.empty_cache()", "import torch.cuda",
    "import torch\ncuda = torch.cuda",
])
def test_forbidden_names_are_found(source):
    assert forbidden_names(source, Path("engine/ops/bad.py"))


def test_allowed_names_pass():
    source = """
import torch
from torch import Tensor
y: torch.Tensor = torch.mm(torch.empty(2, 2, dtype=getattr(torch, config.dtype)), x)
card = torch.cuda.get_device_properties(torch.cuda.current_device()).name
"""
    assert forbidden_names(source, Path("kernels/cpu/good.py")) == []
    assert forbidden_names("import triton", Path("kernels/gpu/good.py")) == []


class OperatorNames(TorchDispatchMode):
    """Notes which of torch's operators run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def operators(case, layout: str) -> set[str]:
    """torch's operators under our forward and backward of a case, of the calling thread."""
    example = fixed_example(case)
    inputs = [laid_out(t, layout) if entry.gradient else t for t, entry in zip(example.inputs, case.inputs)]
    arguments = [Tensor(t, requires_grad=True) if entry.gradient else t for t, entry in zip(inputs, case.inputs)]
    with OperatorNames() as seen:
        result = case.ours(*arguments, **example.options)
        outputs = [y for y in (result if isinstance(result, (tuple, list)) else [result]) if y.requires_grad]
        run_backward([(y, torch.ones(y.shape)) for y in outputs])
    return seen.names


@pytest.mark.parametrize("name", CASES)
def test_operations_run_no_torch_arithmetic(name):
    for layout in ("contiguous", "reversed"):
        assert operators(CASES[name], layout) <= ALLOWED_OPERATORS


def test_torch_arithmetic_on_buffers_is_seen():
    with OperatorNames() as seen:
        x = torch.ones(3)
        x = (x + 1).exp()
        x += x.sum()
    assert {"add", "exp", "sum", "add_"} <= seen.names - ALLOWED_OPERATORS
