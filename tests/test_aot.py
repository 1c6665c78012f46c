"""The table of compiled launches stands for the sources as they are, and what it says is good. Compiles nothing."""

import importlib
import inspect

import pytest

aot = pytest.importorskip("bench.aot")

from bench.gpu_case import Buffer, GpuCase  # noqa: E402
from bench.gpu_cases import CASES  # noqa: E402
from kernels.gpu import rms_norm, rows  # noqa: E402
from kernels.gpu.launch import recording  # noqa: E402
from sources import ROOT  # noqa: E402

AGAIN = "run `python -m bench.aot`"


@pytest.fixture(scope="module")
def wanted():
    return aot.jobs()


@pytest.fixture(scope="module")
def lines():
    return aot.read()


def test_the_table_stands_for_the_sources(wanted, lines):
    assert aot.differences(wanted, lines) == [], AGAIN


def flaws(job: "aot.Job", line: dict[str, str]) -> list[str]:
    """What is wrong with the machine code of a launch."""
    found = []
    if line["spills"] != "0":
        found.append(f"{line['spills']} spills")
    fast = job.dtype == "tf32" or any(kind in ("*bf16", "*fp16") for _, kind in job.launch.signature)
    if fast and "tl.dot(" in aot.source_of(job.launch.kernel) and line["tensor_core_instructions"] == "0":
        found.append("no tensor-core instructions")
    if int(line["widest_load"]) < 16 and job.launch.kernel.fn.__name__.lstrip("_") not in CASES[job.case].narrow:
        found.append(f"loads of {line['widest_load']} bytes at most")
    if int(line["shared_bytes"]) > aot.SHARED_LIMIT[job.arch]:
        found.append(f"{line['shared_bytes']} bytes of shared memory, the card has {aot.SHARED_LIMIT[job.arch]}")
    return found


def test_machine_code_is_good(wanted, lines):
    bad = {aot._words(lines[job.key]): flaws(job, lines[job.key]) for job in wanted if job.key in lines}
    assert {name: found for name, found in bad.items() if found} == {}


def test_flaws_are_found(wanted, lines):
    job = wanted[0]
    good = lines[job.key]
    assert flaws(job, good) == []
    for column, value in {"spills": "3", "widest_load": "2", "shared_bytes": "1000000"}.items():
        assert len(flaws(job, {**good, column: value})) == 1


def test_half_precision_products_need_tensor_cores(wanted, lines, monkeypatch):
    monkeypatch.setattr(aot, "source_of", lambda kernel: "tl.dot(a, b)")
    half = next(job for job in wanted if job.dtype == "bfloat16")
    single = next(job for job in wanted if job.dtype == "float32")
    line = {**lines[half.key], "tensor_core_instructions": "0"}
    assert flaws(half, line) == ["no tensor-core instructions"] and flaws(single, line) == []
    assert flaws(half, {**line, "tensor_core_instructions": "8"}) == []


def test_every_triton_function_is_compiled_somewhere(wanted):
    reached = {name for kernel in {job.launch.kernel for job in wanted} for name in aot.sources_of(kernel)}
    modules = [importlib.import_module(f"kernels.gpu.{path.stem}") for path in (ROOT / "kernels/gpu").glob("[a-z]*.py")]
    owned = {f"{module.__name__}.{value.fn.__name__}" for module in modules for value in vars(module).values()
             if aot.is_jit(value) and value.fn.__module__ == module.__name__}
    assert owned - reached == set(), "add rows to bench/gpu_cases.py"


def launches(case: GpuCase, dtype: str = "float32", arch: int = 90):
    with recording(arch) as found:
        case.run(dtype, "meta")
    return found


def test_a_key_depends_on_all_that_the_machine_code_does():
    first, second = launches(CASES["rms_norm"])[:2]
    key = aot.key_of(first, 90)
    assert key == aot.key_of(launches(CASES["rms_norm"])[0], 90)
    others = [aot.key_of(first, 80), aot.key_of(second, 90), aot.key_of(launches(CASES["rms_norm"], "bfloat16")[0], 90),
              aot.key_of(launches(CASES["rms_norm_wide"])[0], 90)]
    for name, value in {"num_warps": 2, "num_stages": 1, "divisible": (), "constants": first.constants[1:]}.items():
        others.append(aot.key_of(type(first)(**{**vars(first), name: value}), 90))
    assert len({key, *others}) == 1 + len(others)


def test_a_key_depends_on_helpers_and_constants_but_not_on_comments(monkeypatch):
    text = aot._plain("def f(x):\n    # why\n\n    return g(x) + WIDTH + rows.LIMIT\n")
    assert "why" not in text
    names = {"g": rows._sum_rows, "WIDTH": 3, "rows": rows}
    monkeypatch.setattr(rows, "LIMIT", 4, raising=False)
    found = dict(aot.uses(aot.ast.parse(text), names))
    assert found == {"g": rows._sum_rows, "WIDTH": 3, "rows.LIMIT": 4}
    assert list(aot.sources_of(rms_norm._forward)) == ["kernels.gpu.rms_norm._forward"]
    assert inspect.getsource(rms_norm._forward.fn).count("\n") >= aot.source_of(rms_norm._forward).count("\n") > 10


def test_differences_between_jobs_and_table(wanted):
    lines = {job.key: job.naming() for job in wanted}
    assert aot.differences(wanted, lines) == []
    first, *rest = wanted
    assert "missing" in aot.differences(wanted, {job.key: lines[job.key] for job in rest})[0]
    assert "superfluous" in aot.differences(rest, lines)[0]
    assert "named otherwise" in aot.differences(wanted, {**lines, first.key: {**lines[first.key], "case": "old"}})[0]


def test_what_machine_code_tells():
    code = """
        LDG.E.128 R4, [R2.64] ;
        @P0 LDG.E.U16.CONSTANT R5, desc[UR4][R6.64] ;
        LDGSTS.E.BYPASS.128 [R9], [R2.64] ;
        HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8] ;
        HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        STL [R1], R2 ;
        LDL.64 R2, [R1] ;
    """
    usage = " Function f:\n  REG:48 STACK:8 SHARED:1024 LOCAL:0"
    assert aot.measured(usage, code) == {
        "registers": "48", "spills": "2", "tensor_core_instructions": "2", "widest_load": "16"}
    for load, size in {"LDG.E.64.CONSTANT": 8, "LDG.E": 4, "LDG.E.U16": 2, "LDG.E.S8": 1, "STG.E.128": 0}.items():
        assert aot.measured(usage, f"{load} R1, [R2.64]")["widest_load"] == str(size)
    assert aot.measured(usage, "UTMALDG.2D [UR8], [UR4]")["widest_load"] == "16"


def test_a_case_without_backward_only_runs_forward():
    case = GpuCase("one", {"x": Buffer("t d")}, lambda b: rms_norm.forward(b.x, b.x[0], 1e-6), None, {"t": 8, "d": 64})
    assert [launch.kernel for launch in launches(case)] == [rms_norm._forward]
