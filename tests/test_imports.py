"""Which room may look into which, and what a start on the CPU loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from sources import PRODUCT, ROOT, imported_modules, source_files

MAY_IMPORT = {
    "kernels": set(),
    "tokenizer": set(),
    "engine": {"kernels"},
    "models": {"kernels", "engine", "tokenizer"},
    "train": {"kernels", "engine", "models", "tokenizer"},
}
PACKAGES = {*PRODUCT, "bench", "tests"}
LONGEST_FILE = 320  # lines: what a person reads in one sitting
LONGEST_LINE = 120  # characters


def wrong_imports(source: str, file: Path) -> list[str]:
    """Imports of a file against the arrows."""
    own = file.parts[0]
    allowed = MAY_IMPORT[own] | {own}
    found = ((line, module.split(".")[0]) for line, module in imported_modules(ast.parse(source), file))
    return [f"{file}:{line}: {own} imports {package}" for line, package in found if package in PACKAGES - allowed]


def test_the_product_keeps_to_the_arrows():
    files = source_files(*PRODUCT)
    assert [wrong for file in files for wrong in wrong_imports((ROOT / file).read_text(), file)] == []


@pytest.mark.parametrize("file, source", [
    ("kernels/cpu/bad.py", "import engine"), ("kernels/cpu/bad.py", "from engine.autograd import Tensor"),
    ("tokenizer/bad.py", "import kernels"), ("engine/bad.py", "from models import decoder"),
    ("engine/ops/bad.py", "from ... import models"), ("models/bad.py", "import train.loop"),
    ("train/bad.py", "from bench.cases import CASES"), ("engine/bad.py", "def f():\n    import tests"),
    ("models/bad.py", "import importlib\nimportlib.import_module('bench.step')"),
])
def test_wrong_imports_are_found(file, source):
    assert wrong_imports(source, Path(file))


@pytest.mark.parametrize("file, source", [
    ("engine/ops/good.py", "from ..autograd import Tensor\nimport kernels"),
    ("train/good.py", "import models.decoder, tokenizer"),
    ("kernels/cpu/good.py", "from .. import memory\nimport numpy"),
])
def test_right_imports_pass(file, source):
    assert wrong_imports(source, Path(file)) == []


def shadowing(names: list[str]) -> list[str]:
    """Names of scripts that would hide a package: `python bench/x.py` puts bench/ first on the path."""
    others = {"torch", "numpy", "numba", "safetensors", "rich", "tqdm", "matplotlib", "pyarrow", "triton", "pytest"}
    return [name for name in names if name in PACKAGES | others | sys.stdlib_module_names]


def test_no_benchmark_hides_a_package():
    assert shadowing([path.stem for path in (ROOT / "bench").iterdir() if path.stem != "__init__"]) == []
    assert shadowing(["kernels", "random", "cases"]) == ["kernels", "random"]


def test_a_start_on_the_cpu_loads_no_triton():
    modules = [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in source_files(*PRODUCT)
               if file.parts[:2] != ("kernels", "gpu")]
    script = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
from engine import ops, tensor
ops.softmax(tensor([1.0, 2.0], requires_grad=True)).sum().backward()
print([name for name in sys.modules if name.split(".")[0] in ("triton", "bench", "tests", "pytest", "hypothesis")])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def too_long(lines: dict[str, int]) -> list[str]:
    return [f"{file}: {count} lines" for file, count in lines.items() if count > LONGEST_FILE]


def test_files_can_be_read_in_one_sitting():
    files = source_files(*PRODUCT, "bench")
    assert too_long({str(file): len((ROOT / file).read_text().splitlines()) for file in files}) == []
    assert too_long({"a.py": LONGEST_FILE + 1, "b.py": 10}) == [f"a.py: {LONGEST_FILE + 1} lines"]


def long_lines(sources: dict[str, str]) -> list[str]:
    return [f"{file}:{number}: {len(line)} characters" for file, source in sources.items()
            for number, line in enumerate(source.splitlines(), 1) if len(line) > LONGEST_LINE]


def test_lines_fit_a_screen():
    files = source_files(*PRODUCT, "bench", "tests")
    assert long_lines({str(file): (ROOT / file).read_text(encoding="utf-8") for file in files}) == []
    fits = "中" * LONGEST_LINE
    assert long_lines({"a.py": f"\n{fits}中", "b.py": fits}) == ["a.py:2: 121 characters"]


def test_every_package_is_installed():
    tomllib = pytest.importorskip("tomllib")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    tops = ("engine", "kernels", "tokenizer", "models", "train", "bench")
    found = {".".join(path.parent.relative_to(ROOT).parts)
             for top in tops for path in (ROOT / top).rglob("__init__.py")}
    assert sorted(listed) == sorted(found)
