"""What the documentation says: its snippets run, its files and flags exist, the two READMEs agree."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import importlib.util
import io
import re
import shlex
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kernels
from bench import cases
from engine import ops
from engine.ops import normalization
from harness import examples
from models.config import PRESETS, ModelConfig
from test_cases import check_example, directional_derivatives
from tokenizer import SPECIAL_NAMES
from tokenizer.documents.sources import COMPRESSIONS, KINDS
from train import presets, pretrain
from train.configure import new_config
from train.folder import RunFolder

ROOT = Path(__file__).parent.parent
README, README_ZH, CONTRIBUTING = "README.md", "README.zh.md", "CONTRIBUTING.md"
TOUR, TOUR_ZH, BENCH = "docs/tour.md", "docs/tour.zh.md", "bench/README.md"
PAGES = [README, README_ZH, CONTRIBUTING, TOUR, TOUR_ZH, BENCH]
EVERY_PAGE = pytest.mark.parametrize("page", PAGES)
FOLDERS = ["engine", "kernels", "tokenizer", "models", "train", "bench", "tests", "docs"]
NOT_HERE = {"config.toml", "vocabulary.json", "vocabulary.tables", "metrics.jsonl", "loss.png", "optimizer.txt",
            "profile.txt", "state.json", "tokenizer.json", "steering.jsonl", "control.sock", "report.html",
            "facts.json", "checkpoints/*/state.json", "kernels/cpu/l2_norm.py", "kernels/gpu/NAME.py"}
"""Files that a run makes, and files that a reader makes."""
OTHERS, PASSED_ON = {"venv", "pip", "pytest"}, {"train.plan": "train.pretrain"}
"""Commands that are not ours, and ours that take the flags of another, too."""
READS_TEXT = ["train.pretrain", "tokenizer.train", "tokenizer.encode", "tokenizer.inspect"]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


MADE = dict(re.findall(r"^([\w-]+):.*\n\t\$\(PY\) -m ([\w.]+)", text_of("Makefile"), re.MULTILINE))
"""Targets of the Makefile -> the modules that they run."""


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)


def prose(page: str) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def code_spans(page: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


def commands(page: str) -> list[str]:
    """Lines of shell blocks, and code in the text that is a command."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines() if line]
    return lines + [span for span in code_spans(page) if re.match(r"(make|python) \S", span)]


def python_modules(page: str) -> list[tuple[str, list[str]]]:
    """(module, arguments) of `python -m` commands, of scripts (`python bench/moe.py` is bench.moe), and of `make`."""
    found = []
    for command in commands(page):
        words = shlex.split(command)
        if words[0] == "make" and words[1] in MADE:
            given = [word.removeprefix("ARGS=") for word in words[2:] if word.startswith("ARGS=")]
            found.append((MADE[words[1]], shlex.split(*given or [""])))
        elif "-m" in words and "python" in words[words.index("-m") - 1]:
            found.append((words[words.index("-m") + 1], words[words.index("-m") + 2:]))
        elif words[0] == "python" and words[1].endswith(".py"):
            found.append((words[1].removesuffix(".py").replace("/", "."), words[2:]))
    return found


OUR_COMMANDS = sorted({module for page in PAGES for module, _ in python_modules(page)} - OTHERS)


def test_tour_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    namespace: dict = {"__name__": "tour"}
    text = text_of(TOUR)
    snippets = blocks(TOUR, "python")
    assert sum(snippet.count("assert ") for snippet in snippets) > 30
    for snippet in snippets:
        above = text[: text.index(snippet)].count("\n")
        exec(compile("\n" * above + snippet, str(ROOT / TOUR), "exec"), namespace)


def test_code_quoted_in_the_tour_is_the_code():
    found = quotes(TOUR)
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "engine").rglob("*.py")]
    assert found
    for quote in found:
        assert any(quote in source for source in sources), quote


def quotes(page: str) -> list[str]:
    """Indented blocks: code that stands in a source file."""
    found = re.findall(r"(?:^    .*\n|^\n(?=    ))+", prose(page), re.MULTILINE)
    return [textwrap.dedent(block).strip() for block in found if block.strip()]


def test_the_tours_show_the_same_code():
    assert blocks(TOUR, "python") == blocks(TOUR_ZH, "python")
    assert quotes(TOUR) == quotes(TOUR_ZH)
    links = [[link for link in re.findall(r"\]\((\.\.[^)]+)\)", prose(page))] for page in (TOUR, TOUR_ZH)]
    assert sorted(links[0]) == sorted(links[1])


def test_the_operation_of_contributing_works(monkeypatch, tmp_path):
    program, contract, operation, row = blocks(CONTRIBUTING, "python")
    path = tmp_path / "l2_norm.py"
    path.write_text(program, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("kernels.cpu.l2_norm", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "kernels.cpu.l2_norm", module)
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr("kernels.cpu.compiled._cache_folder", lambda: str(tmp_path / "numba"))
    spec.loader.exec_module(module)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "kernels.cpu.l2_norm", module)

    namespace = {"Kernel": kernels.Kernel}
    exec(contract, namespace)
    monkeypatch.setattr(kernels, "l2_norm", namespace["l2_norm"], raising=False)
    namespace = dict(vars(normalization))
    exec(operation, namespace)
    monkeypatch.setattr(ops, "l2_norm", namespace["l2_norm"], raising=False)
    case = eval(row, dict(vars(cases)))

    @given(example=examples(case), dtype=st.sampled_from([torch.float64, torch.float32]))
    def check(example, dtype):
        check_example(example, dtype)
        ours, measured = directional_derivatives(example)
        assert ours == pytest.approx(measured, rel=1e-6, abs=1e-6)

    check()


@EVERY_PAGE
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        file, _, anchor = target.partition("#")
        place = (ROOT / page).parent / file if file else ROOT / page
        assert place.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@EVERY_PAGE
def test_files_named_in_the_text_exist(page):
    folders = [folder for folder in ROOT.iterdir() if folder.name in FOLDERS]
    names = {path.name for path in [*ROOT.iterdir(), *(path for folder in folders for path in folder.rglob("*"))]}
    for span in set(code_spans(page)) - NOT_HERE:
        if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./*-]*", span):
            assert (ROOT / span).exists(), span
        elif re.fullmatch(r"\w[\w-]*\.(py|md|toml|json|txt|png)", span):
            assert span in names, span


@EVERY_PAGE
def test_modules_named_in_commands_exist(page):
    modules = {module for module, _ in python_modules(page)}
    modules |= {span for span in code_spans(page) if re.fullmatch(r"(bench|models|tokenizer|train)\.\w+", span)}
    assert [module for module in sorted(modules - OTHERS - NOT_HERE) if importlib.util.find_spec(module) is None] == []


@EVERY_PAGE
def test_make_targets_exist(page):
    makefile = text_of("Makefile")
    for command in commands(page):
        if command.startswith("make "):
            target, *variables = shlex.split(command)[1:]
            assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), command
            for variable in variables:
                assert re.search(rf"^{variable.partition('=')[0]} \?=", makefile, re.MULTILINE), command


@functools.cache
def help_of(module: str) -> str:
    """What --help of a command prints."""
    command = importlib.import_module(module)
    if not hasattr(command, "main"):
        command = importlib.import_module(f"{module}.__main__")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", [module, "--help"])
        with pytest.raises(SystemExit):
            command.main()
    return printed.getvalue()


def flags_of(module: str) -> set[str]:
    return {flag for name in (module, PASSED_ON.get(module, module))
            for flag in re.findall(r"--[a-z][\w-]*", help_of(name))}


@pytest.mark.parametrize("module", OUR_COMMANDS)
def test_flags_in_commands_exist(module):
    used = {word for page in PAGES for name, arguments in python_modules(page) if name == module
            for word in arguments if word.startswith("--")}
    assert used <= flags_of(module)


@pytest.mark.parametrize("page", [README, README_ZH, CONTRIBUTING, BENCH])
def test_flags_in_the_text_exist(page):
    known = {"--index-url"}.union(*map(flags_of, {module for module, _ in python_modules(page)} - OTHERS))
    named = {flag for span in code_spans(page) for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)}
    assert named and named <= known


@pytest.mark.parametrize("text", [README, README_ZH, *READS_TEXT])
def test_every_kind_of_file_is_named(text):
    told = help_of(text) if text in READS_TEXT else text_of(text)
    assert [ending for ending in (*KINDS, *COMPRESSIONS) if not re.search(rf"(?<!\w){re.escape(ending)}\b", told)] == []


@EVERY_PAGE
def test_pretrain_understands_every_command(page):
    for module, arguments in python_modules(page):
        if module == "train.pretrain":
            pretrain.given_values(pretrain.arguments_from(arguments))
    for span in code_spans(page):
        if re.match(r"--set \w+\.\w+=", span) and "section.key" not in span:
            pretrain.given_values(pretrain.arguments_from(span.split()))


@pytest.mark.parametrize("page", [README, README_ZH])
def test_settings_of_a_row_fit_together(page):
    table = prose(page).partition("| `--set` | |")[2].partition("\n\n")[0]
    rows = [row for row in table.splitlines() if "=" in row]
    assert len(rows) > 10
    for row in rows:
        (key, value), *more = (setting.split("=", 1) for setting in re.findall(r"`(\w+\.[\w.]+=[^`]+)`", row))
        for one in [value, *re.findall(r"`([a-z]+)`", row)]:
            arguments = pretrain.arguments_from(["--set", f"{key}={one}", *map("=".join, more), "run.device=cpu"])
            new_config(arguments, pretrain.given_values(arguments))


def too_long(text: str, limit: int = 120) -> list[str]:
    """Lines of a page with more characters, but for tables, numbers in JSON, and links that fill a line."""
    return [line for line in text.splitlines() if len(line) > limit and not re.match(r"[|{]|\S+$", line)]


@pytest.mark.parametrize("page", [page for page in PAGES if page != BENCH])
def test_lines_of_pages(page):
    assert too_long(text_of(page)) == []


def test_the_readmes_say_the_same():
    assert blocks(README, "sh") == blocks(README_ZH, "sh")
    assert filled(README) == filled(README_ZH)
    places = [[link.replace(".zh", "") for link in re.findall(r"\]\(([^)]+)\)", prose(page))]
              for page in (README, README_ZH)]
    assert sorted(places[0]) == sorted(places[1])
    sections = [prose(page).count("\n## ") for page in (README, README_ZH)]
    assert sections[0] == sections[1]


def filled(page: str) -> dict[str, str]:
    """What was measured: comment -> the block after it."""
    return dict(re.findall(r"^<!-- (.*?) -->\n```\w+\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("page", [README, README_ZH])
def test_what_was_measured_is_filled_in(page):
    assert filled(page).keys() == {"demo sample", "numbers: bench.step", "numbers: bench.time_to_loss"}
    assert [name for name, content in filled(page).items() if not content.strip()] == []


@pytest.mark.parametrize("page", [README, README_ZH])
def test_preset_table(page):
    rows = dict(re.findall(r"^\| `([\w.-]+)` \| ([\d,]+) \| ", text_of(page), re.MULTILINE))
    assert rows == {name: f"{with_its_vocabulary(name).n_parameters():,}" for name in PRESETS}
    for name, config in PRESETS.items():
        assert f"| {config.n_layers} x {config.d_model} | {config.max_seq_len:,} |" in text_of(page), name
    for name in ("demo", "base-0.18b"):
        settings = presets.preset(name).tokenizer
        assert f"{settings.vocab_size:,} " in text_of(page) and f"{settings.sample_mb:g} MB" in text_of(page)
    assert f"{PRESETS['demo'].with_(vocab_size=264).n_parameters():,}" in text_of(page)


def with_its_vocabulary(name: str) -> ModelConfig:
    """The model of a preset as train.pretrain makes it."""
    pieces = presets.preset(name).tokenizer.vocab_size or 256
    return PRESETS[name].with_(vocab_size=pieces + len(SPECIAL_NAMES))


@pytest.mark.parametrize("page", [README, README_ZH])
def test_run_folder_listing_is_whole(page):
    listing = next(block for block in blocks(page, "text") if block.startswith("runs/"))
    folder = RunFolder(Path("run"))
    names = [path.name for name, path in vars(folder).items() if isinstance(path, Path) and name != "path"]
    assert [name for name in [*names, "checkpoints"] if f"\n  {name}" not in listing] == []


def test_snippets_are_python():
    for page in (CONTRIBUTING, TOUR):
        for snippet in blocks(page, "python"):
            ast.parse(snippet)
