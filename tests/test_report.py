"""The report: of whole, unfinished and broken runs, safe to open, and the command that trains a run again."""

import json
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from train.arguments import arguments_from, given_values
from train.errors import UserError
from train.presets import PRESETS, preset
from train.report import charts, facts, recorded, tables, write_report
from train.report.__main__ import main
from train.report.charts import Curve, Mark, figure, thinned
from train.report.history import read_history, told
from train.report.reproduce import arguments, command

VOID = {"meta"}


class Page(HTMLParser):
    """Reads a page, and keeps its text and whether every tag was closed."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(source)
        assert self.open == []
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)


def some_config(**settings):
    return preset("demo").with_values({"run.steps": 100, "run.device": "cpu", "run.threads": 2,
                                       "data.micro_tokens": 4096, **settings})


def some_rows():
    rows = []
    for step in range(1, 101):
        rows.append({"step": step, "tokens": 4096 * step, "loss": 8.0 - step / 20, "bits_per_byte": 3.0 - step / 50,
                     "lr": 1e-3, "grad_norm": 1.5, "tokens_per_second": 1000.0 + step, "elapsed_seconds": 4.0 * step,
                     "seq_len": 128 if step < 50 else 256, "batch_tokens": 4096,
                     "grad_norms": {"head": 0.5, "layers.0": 0.75}})
        if step % 50 == 0:
            rows.append({"step": step, "val_loss": 5.0 - step / 100, "val_bits_per_byte": 2.0 - step / 200,
                         "val_bits": {"web": 1.75, "code": 1.25}, "accuracy": 0.375})
    rows.insert(40, {"step": 40, "event": "set", "key": "lr", "value": 5e-4, "over": 10, "was": None})
    rows.insert(60, {"step": 58, "event": "spike", "loss": 9.0, "expected": 5.5})
    rows.insert(61, {"step": 58, "event": "save", "path": "checkpoints/step-000058"})
    return rows


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "my-run"
    (path / "samples").mkdir(parents=True)
    some_config().save(path / "config.toml")
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some_rows()) + '{"step": 101, "lo')
    (path / "samples" / "step-000050.txt").write_text("It was <b>the</b> \x1b[31mend & 林间.\n")
    (path / "samples" / "step-000100.txt").write_text("The end.\n")
    (path / "facts.json").write_text(json.dumps({
        "data": {"train": {"web": {"tokens": 1000, "documents": 10, "bytes": 4950},
                           "code": {"tokens": 3000, "documents": 30, "bytes": 9000}},
                 "validation": {"web": {"tokens": 100, "documents": 1, "bytes": 400}},
                 "weights": {"web": 0.7, "code": 0.3}},
        "sessions": [{"started": "2030-01-02T03:04:05+00:00", "first_step": 0, "arguments": ["--init-from", "runs/a"],
                      "threads": 2, "machine": {"processor": "A processor", "cores": 2}, "seconds": 3600.0,
                      "cpu_seconds": 7000.0, "peak_bytes": 812_000_000, "versions": {"torch": "9.9"}}]}))
    return path


def test_a_whole_run_has_every_part(run):
    page = Page(write_report(run).read_text())
    for words in ("Training run my-run", "step 100 of 100, finished", "Loss", "Bits per byte", "Learning rate",
                  "Gradient norm", "Gradient norm by group", "Speed", "Length of a row", "Validation by source",
                  "Accuracy", "Samples along the way", "It was <b>the</b> \ufffd[31mend & 林间.", "The end.",
                  "Evaluation", "1.5000", "Data", "training, web", "5.00", "70.0%", "A processor, 2 cores",
                  "Speed and memory",
                  "activations", "812.0 MB", "2.00 core-hours", "1.94 core-hours", "2030-01-02", "Events",
                  "1 set, 1 spike, 1 save", "lr = 0.0005 over 10 steps", "expected 5.5", "torch 9.9",
                  "python -m train.pretrain", "--init-from runs/a", "Configuration", "batch_tokens"):
        assert words in page.text, words


def experts_row(step, load, **more):
    shares = [[count / sum(line) for count in line] for line in load]
    return {"step": step, "loss": 4.0, "experts": {
        "load": load, "max_vio": [max(line) * len(line) - 1 for line in shares], "entropy": [1.25] * len(load),
        "dead": [line.count(0) for line in load], **more}}


def mixture(tmp_path, *rows):
    path = tmp_path / "experts"
    path.mkdir()
    config = preset("moe-demo").with_values({"run.steps": 100, "model.n_layers": 3, "model.experts.n": 4,
                                             "model.experts.first_dense": 1, "run.device": "cpu", "run.threads": 2,
                                             "data.micro_tokens": 1024})
    config.save(path / "config.toml")
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_load_of_experts_is_drawn_by_layer(tmp_path):
    run = mixture(tmp_path, experts_row(10, [[1, 1, 1, 1], [4, 0, 0, 0]], balance_loss=1.5),
                  experts_row(30, [[10, 20, 30, 20], [40, 0, 20, 20]], balance_loss=1.25))
    page = Page(write_report(run).read_text())
    for words in ("Load of each expert", "layer 1, expert 2: 30 choices, 1.50 times the mean", "steps 11 to 30",
                  "layer 2, expert 1: 0 choices, 0.00 times the mean", "Cells with a dashed line had none",
                  "MaxVio by layer", "layers.1", "layers.2", "1.386 is even", "Experts without a token", "Balance loss",
                  "0.750 MaxVio, mean of layers; 1 without a token", "of them for a token", "for a token",
                  "counting tokens", "activations"):
        assert words in page.text, words
    cells = [attributes for tag, attributes in page.tags if tag == "rect" and attributes.get("class") != "frame"]
    assert [cell["class"] for cell in cells[:8]] == ["few", "many", "many", "many", "many", "few none", "many", "many"]
    assert [float(cell["fill-opacity"]) for cell in cells[4:8]] == [0.4, 0.8, 0.0, 0.0]


@pytest.mark.parametrize("experts", [None, 3, {}, {"load": []}, {"load": [[1, 2], [3]]}, {"load": [["<b>"]]},
                                     {"load": [[-1, 2]]}, {"load": [[True]]}, {"max_vio": 1.0, "dead": None},
                                     {"dead": ["x"], "balance_loss": "x"}])
def test_experts_that_cannot_be_drawn_are_left_out(tmp_path, experts):
    page = Page(write_report(mixture(tmp_path, {"step": 1, "loss": 4.0, "experts": experts})).read_text())
    assert "Load of each expert" not in page.text and "Configuration" in page.text


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(run):
    source = write_report(run).read_text()
    page = Page(source)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    names = {name for _, attributes in page.tags for name in attributes}
    assert not any(name in ("src", "href") or name.startswith("on") for name in names)
    assert not re.search(r"url\(|@import|https?://", source)
    policy, = (a["content"] for tag, a in page.tags if tag == "meta" and "default-src" in a.get("content", ""))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_text_of_a_run_is_no_markup(tmp_path):
    path = tmp_path / "<script>alert(1)<"
    path.mkdir()
    config = some_config(**{"run.sample_prompt": "<img src=x onerror=y>", "data.paths": ["/a/<b>.txt"]})
    config.save(path / "config.toml")
    rows = [{"step": 1, "loss": 1.0, "grad_norms": {"<script>": 1.0}},
            {"step": 1, "event": "<script>", "reason": "<i>x"}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert not {"script", "img", "i"} & {tag for tag, _ in Page(write_report(path).read_text()).tags}


@pytest.mark.parametrize("missing", [["metrics.jsonl"], ["samples"], ["facts.json"],
                                     ["metrics.jsonl", "samples", "facts.json"]])
def test_what_is_missing_is_left_out(run, missing):
    for name in missing:
        (run / name).rename(run / f"was-{name}")
    page = Page(write_report(run).read_text())
    assert "python -m train.pretrain" in page.text and "Configuration" in page.text
    assert ("Samples along the way" in page.text) == ("samples" not in missing)
    assert ("No step has been logged yet" in page.text) == ("metrics.jsonl" in missing)


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"data": null, "sessions": null}'])
def test_broken_facts_are_no_facts(run, content):
    (run / "facts.json").write_text(content)
    page = Page(write_report(run).read_text())
    assert "0.22 core-hours" in page.text and "counting the steps that the log has" in page.text


def test_an_unfinished_run_says_so(run):
    rows = [row for row in some_rows() if row["step"] <= 30]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Page(write_report(run).read_text())
    assert "step 30 of 100, not finished" in page.text and "The run has not been evaluated yet" in page.text


def test_the_command_writes_the_file_and_says_where(run, capsys):
    assert main([str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    with pytest.raises(UserError, match="holds no run"):
        main([str(run.parent)])


SETTINGS = [
    {}, {"run.steps": 7}, {"run.tokens": 8192, "run.seed": 3},
    {"data.paths": ["web=/a b/it's.txt:0.7", "code=/c:0.3"], "data.val_data": ["/v.txt"], "data.doc_mask": True},
    {"data.document_separator": "\n\n", "run.sample_prompt": "Once \"upon\" a $HOME", "optim.betas": (0.8, 0.99)},
    {"tokenizer.path": "bytes", "optim.lr": 1e-4, "data.seq_len": 64, "data.batch_tokens": 512},
    {"tokenizer.vocab_size": 600, "run.statistics": ["accuracy"], "run.loggers": ["tensorboard"], "optim.ema": 0.999},
    {"data.lengths": "64:10%,256:90%", "data.window": 256, "model.n_layers": 3, "tokenizer.fingerprint": "abc"},
]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_command_gives_the_settings_again(name, settings):
    config = preset(name).with_values(settings)
    words = shlex.split(command(config))
    assert words[:3] == ["python", "-m", "train.pretrain"]
    parsed = arguments_from(words[3:])
    assert preset(parsed.preset).with_values(given_values(parsed)) == config


def test_a_run_by_minutes_is_told_by_its_steps():
    config = preset("demo").with_values({"run.minutes": 3.0})
    assert "--minutes 3.0" in command(config)
    measured = replace(config, run=replace(config.run, steps=77))
    assert "--steps 77" in command(measured) and "--minutes" not in command(measured)
    assert arguments(measured, ["--minutes", "3", "--init-from", "runs/x"])[2:4] == ["--init-from", "runs/x"]


def part(tokens, documents, size):
    return SimpleNamespace(tokens=tokens, documents=documents, bytes=size)


def test_facts_of_each_session_are_kept(tmp_path):
    texts = SimpleNamespace(train={"": part(90, 3, 400)}, validation={}, weights={"": 1.0})
    for first_step in (0, 50):
        with recorded(tmp_path, some_config(), texts, first_step):
            assert "seconds" not in facts.read_facts(tmp_path)["sessions"][-1]
    with pytest.raises(KeyboardInterrupt), recorded(tmp_path, some_config(), texts, 60):
        raise KeyboardInterrupt
    found = facts.read_facts(tmp_path)
    assert found["data"]["train"] == {"": {"tokens": 90, "documents": 3, "bytes": 400}}
    assert [session["first_step"] for session in found["sessions"]] == [0, 50, 60]
    assert all(session["peak_bytes"] > 10**7 and session["seconds"] >= 0 and session["machine"]["cores"] >= 1
               for session in found["sessions"])


def test_time_is_that_of_all_sessions_or_at_least_of_the_steps(run):
    history = read_history(run)
    assert tables.time_spent(history) == (3600.0, True)
    history.facts["sessions"].append({"started": "later"})
    assert tables.time_spent(history) == (3600.0, False)
    history.facts["sessions"][:] = []
    assert tables.time_spent(history) == (400.0, False)


def test_thinning_keeps_every_spike():
    points = [(i, 1.0) for i in range(20_000)]
    points[12_345], points[777] = (12_345, 99.0), (777, -5.0)
    found = thinned(points)
    assert len(found) <= charts.MOST_POINTS + 2 and (12_345, 99.0) in found and (777, -5.0) in found
    assert found == sorted(found) and thinned(points[:10]) == points[:10]


@pytest.mark.parametrize("low, high", [(0, 1), (2.3, 2.4), (-3, 3), (5, 5), (0, 173_396), (1e-6, 3e-3), (0, 0)])
def test_axes_hold_their_values_with_few_ticks(low, high):
    axis = charts.axis(low, high)
    assert axis.low <= low + 1e-12 and axis.high >= high - 1e-9 and axis.low < axis.high
    assert 2 <= len(axis.ticks) <= 8 and len({name for _, name in axis.ticks}) == len(axis.ticks)


def test_a_figure_without_points_is_none_and_marks_stand_at_their_steps():
    assert figure("t", "s", [Curve("a", [])]) == figure("t", "s", [Curve("a", [(1, float("nan"))])]) == ""
    drawn = figure("t", "s", [Curve("a", [(0, 1.0), (100, 2.0)])], [Mark(3, 50, "<here>")])
    middle = (charts.LEFT + charts.WIDTH - charts.RIGHT) / 2
    assert f'x1="{middle:.1f}"' in drawn and "&lt;here&gt;" in drawn


def test_events_in_words():
    assert told({"step": 4000, "event": "skipped", "reason": "a NaN"}) == "step 4,000: skipped reason a NaN"
    assert told({"step": 1, "event": "set", "key": "lr", "value": 1, "over": 0, "was": 2}) == \
        "step 1: set lr = 1 (it was 2)"
