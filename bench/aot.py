"""Compiles every launch of the table of GPU cases for three generations of cards, without one, and keeps what came out.

`python -m bench.aot` writes bench/results/aot.csv: one line per launch and architecture, with registers, spills, shared
memory, tensor-core instructions and the widest load, read from the machine code. A line is kept while its key stands:
a hash of the kernel's source, of the helpers it calls, of argument types, constants, options and architecture.
`--only NAME ...` looks at some cases and leaves other lines alone; `--check` compiles nothing and says what differs.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import csv
import hashlib
import inspect
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import triton
import triton.language as tl
from rich.console import Console
from rich.progress import track

from kernels import tf32_products
from kernels.gpu.launch import Launch, recording

from .gpu_case import GpuCase
from .gpu_cases import CASES

TABLE = Path(__file__).parent / "results" / "aot.csv"
ARCHITECTURES = (80, 89, 90)
COLUMNS = ["kernel", "case", "dtype", "arch", "configuration", "warps", "stages", "registers", "spills",
           "shared_bytes", "tensor_core_instructions", "widest_load", "key"]
NAMING = COLUMNS[:7] + ["key"]
"""What is known without compiling."""
SHARED_LIMIT = {80: 166_912, 89: 101_376, 90: 232_448}
"""Bytes of shared memory that one block may have: compute capability table of the CUDA programming guide."""


@dataclass(frozen=True)
class Job:
    """One launch of a case, to be compiled for one architecture."""

    case: str
    dtype: str
    arch: int
    launch: Launch
    key: str

    def naming(self) -> dict[str, str]:
        """The columns known without compiling."""
        runtime = {name for name, kind in self.launch.signature if kind != "constexpr"}
        constants = [f"{name}={value}" for name, value in self.launch.constants if name not in runtime]
        values = [name_of(self.launch.kernel), self.case, self.dtype, f"sm_{self.arch}", " ".join(constants),
                  self.launch.num_warps, self.launch.num_stages, self.key]
        return dict(zip(NAMING, map(str, values)))


def jobs(cases: dict[str, GpuCase] = CASES) -> list[Job]:
    """Every launch that the cases make, each once, under the first case that makes it."""
    found: dict[str, Job] = {}
    for case in cases.values():
        for dtype in (*case.dtypes, *(["tf32"] if case.tf32 else [])):
            for arch in ARCHITECTURES:
                with recording(arch) as launches, tf32_products() if dtype == "tf32" else contextlib.nullcontext():
                    case.run("float32" if dtype == "tf32" else dtype, "meta")
                for launch in launches:
                    job = Job(case.name, dtype, arch, launch, key_of(launch, arch))
                    found.setdefault(job.key, job)
    return list(found.values())


def key_of(launch: Launch, arch: int) -> str:
    parts = [source_of(launch.kernel), launch.signature, launch.divisible, launch.constants, launch.num_warps,
             launch.num_stages, arch]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def source_of(kernel) -> str:
    """Source of a Triton function and of all that it uses, without comment lines."""
    sources = sources_of(kernel)
    return "\n".join(f"{name}: {sources[name]}" for name in sorted(sources))


def sources_of(kernel) -> dict[str, str]:
    """Name -> source of a Triton function and those of ours that it calls; name -> value of constants it reads."""
    sources: dict[str, str] = {}
    pending = [("", kernel)]
    while pending:
        name, used = pending.pop()
        if not is_jit(used):
            sources[name] = repr(used)
            continue
        name = f"{used.fn.__module__}.{used.fn.__qualname__}"
        if name not in sources:
            sources[name] = text = _plain(textwrap.dedent(inspect.getsource(used.fn)))
            pending += uses(ast.parse(text), used.fn.__globals__)
    return sources


def uses(tree: ast.AST, names: dict) -> Iterator[tuple[str, object]]:
    """Triton functions of ours and constants that a source mentions, by name or as attribute of a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            name, value = node.id, names.get(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = names.get(node.value.id)
            name = f"{node.value.id}.{node.attr}"
            value = getattr(owner, node.attr, None) if isinstance(owner, types.ModuleType) else None
        else:
            continue
        if is_jit(value) and not value.fn.__module__.startswith("triton."):
            yield name, value
        elif isinstance(value, tl.constexpr):
            yield name, value.value
        elif isinstance(value, (int, float, str)):
            yield name, value


def name_of(kernel) -> str:
    """A Triton function's file and name: rms_norm.forward."""
    return f"{kernel.fn.__module__.rpartition('.')[2]}.{kernel.fn.__name__.lstrip('_')}"


def is_jit(value) -> bool:
    """Whether it is a Triton function, compiled or interpreted."""
    return isinstance(value, triton.runtime.jit.KernelInterface)


def _plain(source: str) -> str:
    lines = (line.rstrip() for line in source.splitlines())
    return "\n".join(line for line in lines if line and not line.lstrip().startswith("#"))


def compiled(job: Job) -> dict[str, str]:
    """The line of a job."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    launch = job.launch
    attributes = {(position,): [["tt.divisibility", 16]] for position in launch.divisible}
    source = ASTSource(launch.kernel, dict(launch.signature), dict(launch.constants), attributes)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    program = triton.compile(source, target=GPUTarget("cuda", job.arch, 32), options=options)
    usage, code = disassembled(program.asm["cubin"])
    return {**job.naming(), "shared_bytes": str(program.metadata.shared), **measured(usage, code)}


def disassembled(program: bytes) -> tuple[str, str]:
    """Resource usage and machine code as text, by the tools that come with Triton."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(program)
        file.flush()
        run = [[tools / "cuobjdump", "-res-usage", file.name], [tools / "nvdisasm", "-c", file.name]]
        usage, code = (subprocess.run(c, capture_output=True, text=True, check=True).stdout for c in run)
    return usage, code


def measured(usage: str, code: str) -> dict[str, str]:
    """The columns that machine code tells."""
    loads = re.findall(r"\bLDG(?:STS)?\.[\w.]*", code)
    widest = max((_bytes(load) for load in loads), default=0)
    counts = {
        "registers": int(re.search(r"REG:(\d+)", usage).group(1)),
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "tensor_core_instructions": len(re.findall(r"\bH(?:G)?MMA\b", code)),
        "widest_load": 16 if "UTMALDG" in code else widest,
    }
    return {name: str(count) for name, count in counts.items()}


def _bytes(load: str) -> int:
    """Bytes that one thread reads by an instruction such as LDG.E.128."""
    sizes = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
    return next((sizes[part] for part in load.split(".") if part in sizes), 4)


def read() -> dict[str, dict[str, str]]:
    """The table as it is: key -> line."""
    if not TABLE.exists():
        return {}
    with TABLE.open(newline="") as file:
        return {line["key"]: line for line in csv.DictReader(file)}


def write(lines: list[dict[str, str]]) -> None:
    """The whole table or nothing, sorted."""
    TABLE.parent.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=TABLE.parent, newline="", delete=False) as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(sorted(lines, key=lambda line: [line[column] for column in COLUMNS]))
        file.flush()
        os.fsync(file.fileno())
    os.chmod(file.name, 0o644)
    os.replace(file.name, TABLE)


def differences(wanted: list[Job], lines: dict[str, dict[str, str]]) -> list[str]:
    """What keeps the table from being that of the wanted jobs."""
    naming = {job.key: job.naming() for job in wanted}
    found = [f"missing or stale: {_words(line)}" for key, line in naming.items() if key not in lines]
    for key, line in lines.items():
        if key not in naming:
            found.append(f"superfluous: {_words(line)}")
        elif any(line[column] != naming[key][column] for column in NAMING):
            found.append(f"named otherwise: {_words(line)}")
    return sorted(found)


def _words(line: dict[str, str]) -> str:
    return " ".join(line[column] for column in COLUMNS[:5])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.aot", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="NAME", help="cases to look at")
    parser.add_argument("--check", action="store_true", help="compile nothing, only say what differs")
    given = parser.parse_args()
    if triton.knobs.runtime.interpret and not given.check:
        parser.error("compiling needs TRITON_INTERPRET unset")
    names = given.only or list(CASES)
    wanted = jobs({name: CASES[name] for name in names})
    lines = read()
    if given.only:
        lines = {key: line for key, line in lines.items() if line["case"] in names}
        wanted = [job for job in wanted if job.key in lines or job.key not in read()]
    if given.check:
        found = differences(wanted, lines)
        print("\n".join(found) or "every line stands", file=sys.stderr)
        return 1 if found else 0
    made, missing = {}, [job for job in wanted if job.key not in lines]
    try:
        for job in track(missing, "compiling", console=Console(stderr=True)):
            made[job.key] = line = compiled(job)
            measures = " ".join(f"{line[column]} {column}," for column in COLUMNS[7:-1])
            print(f"{_words(line)}: {measures.rstrip(',')}", file=sys.stderr)
    finally:
        kept = {job.key: {**lines[job.key], **job.naming()} for job in wanted if job.key in lines}
        others = {key: line for key, line in read().items() if key not in lines}
        write([*{**others, **kept, **made}.values()])
    return 0


if __name__ == "__main__":
    sys.exit(main())
