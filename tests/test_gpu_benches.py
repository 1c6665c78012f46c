"""The benchmarks for GPUs, as far as they go without one: arithmetic, tables, the runner of stages, and dry runs."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton")

import kernels  # noqa: E402
from bench import attention, attention_sides, gpu, gpu_step, gpu_timing  # noqa: E402
from bench import memory_bound, memory_rows, moe, moe_sides, roofline, tune  # noqa: E402
from bench.attention_sides import Inputs, Shape  # noqa: E402
from bench.gpu_cases import CASES  # noqa: E402
from bench.gpu_timing import Times, contest, table, wall_clock  # noqa: E402
from kernels.gpu import launch as launching  # noqa: E402
from models.config import PRESETS  # noqa: E402
from sources import ROOT  # noqa: E402

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU these are the benchmarks themselves")


def run(*command: str) -> tuple[list[dict], str]:
    """JSON lines and stderr of a program run from the root, as typed."""
    environment = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "PYTHONPATH")}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], done.stderr


@WITHOUT_GPU
@pytest.mark.parametrize("command", [
    ("bench/attention.py",), ("bench/memory_bound.py", "--only", "rms_norm", "add_rms_norm"), ("-m", "bench.gpu_step"),
    ("-m", "bench.tune", "--only", "sum_rows"),
], ids=lambda command: command[-1])
def test_without_a_gpu_each_says_so_and_runs_what_it_can(command):
    (result,), said = run(*command)
    assert sum("no GPU here" in line for line in said.splitlines()) == 1
    assert result["gpu"] is False and not result.get("wrong")
    if result["bench"] == "tune":
        assert 0 < result["fit"] <= result["candidates"]


def test_a_table_has_words_to_the_left_and_numbers_to_the_right():
    text = table(["name", "us", "share"], [["a", 12345.6, "97%"], ["long name", 0.25, "5%"], ["b", None, None]])
    assert text.splitlines() == ["name           us  share", "a          12,346    97%",
                                 "long name    0.25     5%", "b"]
    assert table(["a", "b"], []) == "a  b"


def test_contestants_take_turns_and_what_raises_is_out():
    calls = []

    def contestant(name: str, broken_at: int | None = None):
        def prepare(number: int):
            def call():
                if sum(entry == (name, 0) for entry in calls) == broken_at:
                    raise ValueError("no\nmore")
                calls.append((name, number))
            return call
        return prepare

    never = lambda _: (_ for _ in ()).throw(KeyError("nothing"))  # noqa: E731
    found = contest({"a": contestant("a"), "b": contestant("b"), "c": contestant("c", 2), "d": never}, 2, wall_clock,
                    repetitions=4, warmup=1)
    assert found["c"] == "ValueError: no more" and found["d"] == "KeyError: 'nothing'"
    assert len(found["a"].samples) == len(found["b"].samples) == 4
    timed = [name for name, number in calls if number == 0 and name in "ab"]
    assert timed == list("ab" "ab" "ba" "ab" "ba")
    assert [number for name, number in calls if name == "a"] == [0, 1] * 5


def test_median_and_spread():
    times = Times([float(n) for n in range(10, 21)])
    assert times.median == 15 and times.spread == pytest.approx(8 / 15)
    assert Times([1.0]).spread == 0


def test_sets_of_inputs_are_larger_than_the_cache(monkeypatch):
    monkeypatch.setattr(gpu_timing, "has_gpu", lambda: False)
    assert [gpu_timing.sets_for(size << 20) for size in (1000, 50, 30, 1)] == [2, 2, 4, 64]


def test_floors():
    assert roofline.floor(3e12) == 1 and roofline.floor(3e12, 2 * 798e12) == 2
    lines = {(line[0], line[1]): line for line in roofline.floors()}
    assert lines["add_rms_norm", "forward"][3:] == [403, None, 134, "copy"]
    assert lines["rms_norm_linear", "forward"][6] == "products"


@pytest.mark.parametrize("registers, shared, warps, arch, resident", [
    (32, 0, 4, "sm_90", 64), (80, 8192, 8, "sm_90", 24), (255, 0, 8, "sm_90", 8), (168, 200_000, 12, "sm_90", 12),
    (65, 0, 4, "sm_90", 28), (32, 60_000, 4, "sm_90", 12), (32, 233_472, 4, "sm_90", 0), (32, 0, 1, "sm_90", 32),
    (40, 50_000, 4, "sm_89", 8), (40, 0, 4, "sm_89", 48), (128, 0, 4, "sm_80", 16),
])
def test_resident_warps(registers, shared, warps, arch, resident):
    """By hand from the limits: 65,536 registers, shared memory and 1 KiB per block, warps and blocks at most."""
    assert roofline.resident_warps(registers, shared, warps, arch) == resident


def test_the_page_has_the_tables_as_they_are():
    page = roofline.PAGE.read_text(encoding="utf-8")
    assert roofline.filled(page) == page, "run `python -m bench.roofline --write`"
    with pytest.raises(ValueError, match="markers of floors"):
        roofline.filled("no tables")


def stage(name: str, code: str, **options) -> gpu.Stage:
    return gpu.Stage(name, ("-c", code), **options)


def test_stages_that_are_done_are_not_done_again(tmp_path):
    log, path = tmp_path / "log", tmp_path / "folder" / "state.json"
    note = f"open({str(log)!r}, 'a').write"
    stages = (stage("one", f"{note}('1'); print('words'); print('{{\"headline\": \"quick\"}}')"),
              stage("two", f"{note}('2'); import os; exit(0 if os.path.exists({str(tmp_path / 'go')!r}) else 3)"),
              stage("three", f"{note}('3'); raise SystemExit(75)"))
    record = gpu.Record(path, "abc")
    saved = []
    assert not gpu.run_stages(stages, record, after_each=lambda: saved.append(1)) and len(saved) == 3
    assert [record.stages[name]["status"] for name in ("one", "two", "three")] == ["done", "failed (3)", "unfinished"]
    assert record.stages["one"]["results"] == [{"headline": "quick"}]
    (tmp_path / "go").touch()
    again = gpu.Record(path, "abc")
    assert gpu.run_stages(stages[:2], again) and log.read_text() == "1232"
    assert re.search(r"one +done +[\d.]+ +quick", gpu.summary(stages, again))
    again.forget(stages[1:])
    assert gpu.Record(path, "other").stages == {} and set(again.stages) == {"one"}


def test_a_stage_ends_at_its_limit_with_all_it_started():
    slow = "import subprocess, sys, time; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    outcome = gpu.run(stage("slow", slow), limit=1.0)
    assert outcome.status == "out of time" and 1.0 <= outcome.seconds < 20


def test_headlines():
    assert gpu.headline({"cases": [{"case": "a", "ratio": 1.5}, {"case": "b", "ratio": 0.8}, {"case": "c"}]}) \
        == "ahead in 1 of 2, least 0.80x (b)"
    assert gpu.headline({"other": 1}) == ""


@WITHOUT_GPU
def test_all_stages_without_a_gpu(monkeypatch, capfd):
    stages = stage("one", "import sys; print(sys.argv)", dry=("--few",)), stage("two", "1 / 0")
    monkeypatch.setattr(gpu, "STAGES", stages)
    assert gpu.main([]) == 0
    said = capfd.readouterr().out
    assert said.startswith("no GPU here") and "'--few'" in said
    assert re.search(r"one +done", said) and "needs a GPU" in said
    assert gpu.main(["--list"]) == 0


def test_stages_name_files_and_modules_that_exist():
    for entry in gpu.STAGES:
        first, *rest = entry.command
        place = rest[0].replace(".", "/") + ".py" if first == "-m" else first
        assert rest[:1] == ["pytest"] or (ROOT / place).exists(), entry.name
    tests = next(entry for entry in gpu.STAGES if entry.name == "tests")
    assert "tests/test_gpu_cases.py" in tests.command


SHAPES = [Shape("causal", 33, 16, 2, 2, 2), Shape("full", 20, 16, 1, 2, 2), Shape("grouped", 24, 16, 1, 6, 2),
          Shape("documents", 40, 16, 2, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.kind)
def test_the_reference_is_attention(shape, monkeypatch):
    monkeypatch.setattr(attention_sides, "ROWS_AT_A_TIME", 7)
    x = Inputs.random(shape, torch.float64, "cpu", 3)
    q, k, v = x.heads()
    mask = attention_sides.visible(x.doc_start)[:, None] if x.doc_start is not None else None
    grouped = shape.heads // shape.key_heads
    out = F.scaled_dot_product_attention(q, k.repeat_interleave(grouped, 1), v.repeat_interleave(grouped, 1), mask,
                                         is_causal=shape.causal and mask is None)
    gradients = torch.autograd.grad(out, (q, k, v), x.out_gradient())
    errors = attention_sides.errors(out, gradients, attention_sides.reference(x), shape)
    assert max(errors.values()) < 1e-12
    worse = attention_sides.errors(out * 1.01, gradients, attention_sides.reference(x), shape)
    assert worse["out"] == pytest.approx(0.01) and worse["gradients"] < 1e-12


def test_pairs_and_flops_of_attention():
    shape = Shape("documents", 8, 4, 2, 3, 3)
    starts = torch.tensor([[0, 0, 0, 3, 3, 3, 3, 3], [0, 0, 2, 2, 2, 2, 2, 7]], dtype=torch.int32)
    assert shape.pairs(starts) == (9 + 25 + 4 + 25 + 1) / 2
    assert Shape("causal", 8, 4, 2, 3, 3).pairs(None) == 64 and Shape("full", 8, 4, 2, 3, 3).pairs(None) == 128
    assert shape.flops(10) == (480, 1200)
    assert Shape("grouped", 8, 4, 1, 6, 2).traffic(2) == (2 * 8 * 4 * 16 + 4 * 48, 2 * 8 * 4 * 32 + 4 * 48)


def test_documents_begin_where_they_say():
    starts = attention_sides.document_starts(3, 1024, torch.Generator().manual_seed(0), "cpu")
    position = torch.arange(1024)
    assert starts.dtype == torch.int32 and (starts <= position).all() and (starts.diff(dim=1) >= 0).all()
    begins = starts == position
    assert (starts.gather(1, starts.long()) == starts).all() and 3 < begins.sum() < 60


@WITHOUT_GPU
def test_a_case_of_attention_from_inputs_to_files(monkeypatch, tmp_path):
    backend = attention_sides.SDPBackend
    monkeypatch.setattr(attention_sides, "BACKENDS", {"math": backend.MATH, "cudnn": backend.CUDNN_ATTENTION})
    sides = attention_sides.rivals
    monkeypatch.setattr(attention_sides, "rivals",
                        lambda shape: {name: make for name, make in sides(shape).items() if name != "flex"})
    known = {"device": "none", "commit": "abc"}
    monkeypatch.setattr(attention, "sets_for", lambda size, most: 2)
    with kernels.programs("gpu"):
        lines = attention.time_case(Shape("grouped", 16, 64, 1, 3, 1), wall_clock, 2, known, device="cpu")
    assert attention.verdict(lines) is None
    assert [(line["side"], line["phase"]) for line in lines] == [(side, phase) for phase in attention.PHASES
                                                                for side in ("ours", "math", "cudnn")]
    timed = {line["side"]: line for line in lines}
    assert float(timed["ours"]["milliseconds"]) > 0 and float(timed["ours"]["error"]) < 0.01
    assert timed["cudnn"]["milliseconds"] == "" and "RuntimeError" in timed["cudnn"]["note"]
    (case,) = attention.compared(lines)
    assert case["best"] == "math" and case["case"] == "grouped 64 x 16"
    path = tmp_path / "attention.csv"
    path.write_text(attention.as_csv(lines))
    assert attention.read_lines(path) == lines
    newer = [{**lines[0], "commit": "def"}, {**lines[0], "kind": "causal"}]
    merged = attention.merged(lines, newer)
    assert len(merged) == len(lines) + 1 and [line["commit"] for line in merged[:2]] == ["abc", "def"]
    attention.draw(merged, tmp_path / "attention.png")
    assert (tmp_path / "attention.png").read_bytes()[1:4] == b"PNG"
    assert len(attention.rows_of_table(lines)) == 3


def test_wrong_attention_is_found():
    def verdict(*ours: str, note: str = ""):
        errors = {"ours": ours, "cudnn": ("2e-3", "3e-3"), "flash": ("", "")}
        return attention.verdict([{"side": side, "phase": phase, "error": error, "note": note if side == "ours" else ""}
                                  for side, both in errors.items() for phase, error in zip(attention.PHASES, both)])

    assert verdict("3.9e-3", "8.9e-3") is None
    assert "forward" in verdict("4.1e-3", "3e-3") and "backward" in verdict("2e-3", "nan")
    assert verdict("2e-3", "3e-3", note="ValueError: no") == "ValueError: no"


def test_every_length_has_up_to_65536_tokens():
    shapes = attention.shapes(list(attention.KINDS), list(attention.DIMS), None)
    assert {shape.length for shape in shapes} == set(attention.LENGTHS)
    assert all(16_384 <= shape.batch * shape.length <= 65_536 for shape in shapes)
    assert all(shape.heads * shape.head_dim == 768 and shape.heads % shape.key_heads == 0 for shape in shapes)


@WITHOUT_GPU
def test_wrong_rows_are_found():
    case, sizes = CASES["add_rms_norm"], memory_rows.SPECIAL["add_rms_norm"].tiny
    with kernels.programs("gpu"):
        assert memory_bound.check(case, "cpu", sizes, "bfloat16") is None
        for phase, norm in {"forward": lambda x, b: F.rms_norm(1.1 * x, b.gain.shape, b.gain, 1e-6) * 1.02,
                            "backward": lambda x, b: F.rms_norm(x, b.gain.shape, b.gain, 1e-6) 
                            + 0.1 * (b.gain - b.gain.detach())}.items():
            rivals = {"torch": lambda b, norm=norm: (b.x + b.residual, norm(b.x + b.residual, b))}
            assert f"{phase}: error" in memory_bound.check(replace(case, rivals=rivals), "cpu", sizes, "bfloat16")


@WITHOUT_GPU
def test_memory_bound_cases_run_to_their_end(monkeypatch):
    """With PyTorch's timings on the CPU, at a small size."""
    case = replace(CASES["rms_norm"], sizes={"t": 4, "d": 16})
    monkeypatch.setitem(memory_rows.SPECIAL, "rms_norm", replace(memory_rows.SPECIAL["rms_norm"], liger=None))
    row, sets = memory_rows.row_of(case), [case.tensors("float32", "cpu") for _ in range(2)]
    with kernels.programs("gpu"):
        for phase, entries in memory_bound.contestants(case, row, sets, case.rivals).items():
            found = contest(entries, 2, wall_clock, 2, 1)
            assert set(found) == {"ours", "torch"} and all(isinstance(times, Times) for times in found.values()), phase


def test_comparison_of_memory_bound_kernels():
    lines = [{"case": "a", "phase": "forward", "side": side, "us": us} for side, us in
             {"ours": 10.0, "torch": 20.0, "compile": 15.0, "its products alone": 8.0}.items()]
    assert memory_bound.compared([*lines, {"case": "b", "phase": "forward", "side": "ours", "note": "no"}]) == [
        {"case": "a forward", "us": 10.0, "of_copy": None, "of_products": 1.25, "best": "compile", "ratio": 1.5}]
    assert memory_bound.figures(Times([1e-3]), 2e9, 0, 4e12) == {
        "us": 1000.0, "spread": 0.0, "gbytes_per_second": 2000.0, "of_copy": 0.5}


def test_rows_name_buffers_of_their_cases():
    cases = memory_bound.CASES
    assert set(memory_rows.SPECIAL) <= set(cases)
    for name, case in cases.items():
        row = memory_rows.row_of(case)
        assert {*row.leaves, *row.gradients} <= set(case.buffers), name
    assert memory_rows.row_of(CASES["rms_norm_linear"]).gradients == ("dy",)


def test_candidates_of_a_search():
    entry = {"ROWS": 1, "num_stages": 1, "FUSED": True, "WAY": "a"}
    assert tune.neighbours(entry) == [{**entry, "ROWS": 2}, {**entry, "num_stages": 2}, {**entry, "FUSED": False}]
    assert {"num_warps": 64} not in tune.neighbours({"num_warps": 32})


def test_an_answer_changes_what_is_launched_and_only_there():
    lookups = {lookup.kernel: lookup for lookup in tune.lookups({"rms_norm": CASES["rms_norm"]})}
    assert set(lookups) == {"rms_norm_forward", "rms_norm_backward", "sum_rows"}
    lookup = lookups["rms_norm_forward"]
    assert (lookup.phase, lookup.name) == ("forward", "rms_norm_forward bfloat16 width=1024")
    assert lookup.place("NVIDIA H100") == "NVIDIA H100 bfloat16 width=1024"

    def launches(entry):
        with launching.recording(90) as found:
            tune.override(CASES["rms_norm"], lookup, entry, lambda: CASES["rms_norm"].run("bfloat16", "meta"))
        return found

    usual, other = launches({"ELEMENTS": 4096, "num_warps": 8}), launches({"ELEMENTS": 2048, "num_warps": 2})
    assert usual[0].num_warps == 8 and other[0].num_warps == 2 and usual[1:] == other[1:]


def test_the_table_of_tile_sizes_is_written_as_it_was():
    text = tune.tuning.TABLE.read_text()
    assert tune.formatted(json.loads(text)) == text
    new = tune.with_entry(text, "sum_rows", "NVIDIA H100 float32", {"COLUMNS": 16, "ROWS": 8, "num_warps": 2})
    added = set(new.splitlines()) - set(text.splitlines())
    assert '    "NVIDIA H100 float32": {"COLUMNS": 16, "ROWS": 8, "num_warps": 2}' in added
    assert json.loads(new)["sum_rows"].keys() == {*json.loads(text)["sum_rows"], "NVIDIA H100 float32"}


def test_flops_of_a_step():
    assert gpu_step.flops_per_token(PRESETS["base-0.18b"], 1024) == pytest.approx(0.878e9, rel=1e-3)
    assert gpu_step.peak_flops("NVIDIA H100 PCIe") == 756e12 and gpu_step.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert gpu_step.peak_flops("other") is None


def test_figures_of_a_step():
    config = PRESETS["base-0.18b"]
    found = gpu_step.figures(Times([0.1] * 3), config, 65_536, 1024, 989e12)
    assert found["tokens_per_second"] == 655_360 and found["utilisation"] == pytest.approx(0.582, abs=1e-3)
    assert gpu_step.figures("Error: no", config, 1, 1, None) == {"note": "Error: no"}
    timed = {"ours": Times([1.0, 2.0, 1.0]), "eager": Times([2.0, 2.0, 2.0]), "compile": "Error"}
    assert gpu_step.ratios(timed) == {"vs_eager": 2.0}


def test_a_rival_of_the_step_learns():
    small = PRESETS["demo"].with_(n_layers=1, vocab_size=16)
    step = gpu_step.rival(small, 4, 8, 2, compile_model=False, device="cpu")
    losses = [step().item() for _ in range(20)]
    assert sum(losses[-2:]) < 0.99 * sum(losses[:2])


def test_a_mixture_is_checked_before_it_is_timed(monkeypatch):
    shape = moe_sides.Shape(24, 16, 16, 3, 2)
    with kernels.programs("gpu"):
        assert moe.wrong("cpu", torch.bfloat16, shape) is None
        right = kernels.experts.backward
        monkeypatch.setattr(kernels.experts, "backward", lambda *given: (2 * right(*given)[0], *right(*given)[1:]))
        assert moe.wrong("cpu", torch.bfloat16, shape).startswith("dx: error ")


def test_a_mixture_that_raises_is_wrong(monkeypatch, capsys):
    line = {"case": "a", "sides": [{"mixture": "a", "side": "ours", "note": "boom"}], "vs_torch": 1.5}
    for name, value in {"has_gpu": lambda: True, "GpuClock": lambda: None, "wrong": lambda _: None,
                        "gpu_line": lambda *_: line, "facts": lambda: {"clocks": {}}}.items():
        monkeypatch.setattr(moe, name, value)
    assert moe.main(["--only", "gpu"]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["wrong"] == ["boom", "boom"] and "wrong: boom" in told.err
    assert json.loads(told.out)["headline"] == "a: 1.5x grouped_mm, - of dense; a: 1.5x grouped_mm, - of dense"
