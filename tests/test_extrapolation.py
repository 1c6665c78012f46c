"""The extrapolation bench: its tasks, its runs, going on where it stopped, and its report."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from bench import extrapolation, extrapolation_runs, record
from bench.extrapolation_report import plot, tables, verdict
from bench.extrapolation_runs import EXAMPLES, KINDS, LENGTHS, exact_match, model_config, settings
from bench.extrapolation_tasks import (END, EQUALS, IGNORED, PLUS, START, TASKS, TRAINED_LENGTH, VOCABULARY,
                                       PackedExamples, tokens)
from engine import Tensor, UserError
from sources import ROOT


def number(digits: np.ndarray) -> int:
    """Of digits from the lowest on."""
    return sum(int(digit) * 10**place for place, digit in enumerate(digits))


def check_example(task: str, question: list[int], answer: list[int]) -> int:
    """Raises unless the answer is right; returns the length."""
    assert question[0] == START and question[-1] == EQUALS and answer[-1] == END
    text, result = question[1:-1], answer[:-1]
    assert all(0 <= digit < 10 for digit in result)
    if task != "addition":
        assert result == (text if task == "copy" else text[::-1])
        return len(text)
    middle = text.index(PLUS)
    one, other = text[:middle], text[middle + 1:]
    assert len(one) == len(other) == len(result) - 1
    assert number(one) + number(other) == number(result)
    return len(one)


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_right_at_every_length(task):
    for length in (1, 2, 9, 200):
        questions, answers = TASKS[task](20, length, np.random.default_rng(length))
        for question, answer in zip(questions.tolist(), answers.tolist()):
            assert check_example(task, question, answer) == length
            assert tokens(task, length) == len(question) + len(answer) - 1
        assert len(set(map(tuple, questions.tolist()))) > 1


@pytest.mark.parametrize("task", TASKS)
def test_batches_are_whole_examples_of_all_lengths_with_loss_on_the_answers_only(task):
    examples, lengths, first_token = PackedExamples(task, 16, np.random.default_rng(0)), [], 0
    for _ in range(40):
        batch = examples.batch(first_token, TRAINED_LENGTH)
        assert batch.ids.shape == batch.targets.shape == (16, tokens(task, TRAINED_LENGTH))
        assert batch.ids.max() < VOCABULARY and batch.first_token == first_token
        assert batch.predicted == np.count_nonzero(batch.targets != IGNORED)
        first_token += batch.ids.size
        for ids, targets, starts in zip(batch.ids, batch.targets, batch.doc_start):
            for start in np.unique(starts):
                document, wanted = ids[starts == start].tolist(), targets[starts == start].tolist()
                if wanted == [IGNORED] * len(wanted):
                    assert not any(document)
                    continue
                middle = document.index(EQUALS)
                answer = wanted[middle:]
                stop = middle + answer.index(END)
                assert wanted[:middle] == [IGNORED] * middle and document[middle + 1:stop + 1] == wanted[middle:stop]
                assert not any(document[stop + 1:])
                lengths.append(check_example(task, document[:middle + 1], wanted[middle:stop + 1]))
    counts = np.bincount(lengths, minlength=TRAINED_LENGTH + 1)[1:]
    assert len(counts) == TRAINED_LENGTH and counts.min() > 0.4 * counts.mean() and counts.max() < 1.7 * counts.mean()


def test_examples_grow_to_the_trained_length():
    lengths = [extrapolation_runs.longest_at(share) for share in (0.0, 0.3, 0.6, 1.0)]
    assert lengths == [4, 18, TRAINED_LENGTH, TRAINED_LENGTH]
    batch = PackedExamples("copy", 4, np.random.default_rng(0)).batch(0, 2)
    assert all(len(row) <= tokens("copy", 2) for starts in batch.doc_start
               for row in np.split(starts, np.flatnonzero(np.diff(starts)) + 1))


def test_an_answer_counts_if_every_id_is_right():
    length, batch_sizes = 40, []
    questions, answers = TASKS["copy"](EXAMPLES, length, np.random.default_rng(10_000 + length))
    written = answers.copy()
    written[3, 7], written[3, 8], written[9, -1] = 11, 11, 0

    def model(ids):
        rows = slice(sum(batch_sizes), sum(batch_sizes) + len(ids))
        batch_sizes.append(len(ids))
        assert ids[:, :length + 2].tolist() == questions[rows].tolist()
        logits = np.zeros((*ids.shape, VOCABULARY), dtype=np.float32)
        np.put_along_axis(logits[:, -length - 1:], written[rows, :, None], 1.0, axis=-1)
        return Tensor(torch.from_numpy(logits))

    model.config = SimpleNamespace(max_seq_len=tokens("copy", length))
    exact, ids = exact_match(model, "copy", length)
    assert (exact, ids) == pytest.approx((1 - 2 / EXAMPLES, 1 - 3 / answers.size))
    assert exact_match(model, "copy", length + 1) is None


def test_learned_positions_end_with_the_training_and_the_others_do_not():
    for task in TASKS:
        for kind in KINDS:
            longest = TRAINED_LENGTH if kind == "learned" else max(LENGTHS)
            assert model_config(task, kind).max_seq_len == tokens(task, longest)


def test_a_run_trains_and_tests(monkeypatch):
    monkeypatch.setattr(extrapolation_runs, "LENGTHS", (2, 33))
    learned = extrapolation_runs.run("reverse", "learned", 0, 0.3)
    assert learned["exact"]["33"] is None and learned["ids"]["33"] is None and 0 <= learned["exact"]["2"] <= 1
    assert learned["steps"] >= 1 and 0 < learned["loss"] < np.log(VOCABULARY) + 1
    jerry = extrapolation_runs.run("addition", "jerry", 1, 0.3)
    assert len(jerry["reach"]) == len(jerry["offset"]) == 2 and jerry["exact"]["33"] is not None


def made_up(task: str, kind: str, seed: int, seconds: float = 1.0) -> dict:
    """rope is right up to 32, jerry up to 64, learned positions end after 32, the others are never right."""
    last = {"rope": 32, "jerry": 64, "learned": 32}.get(kind, 0)
    exact = {str(n): None if kind == "learned" and n > 32 else 1.0 - 0.1 * (seed == 1) if n <= last else 0.0
             for n in LENGTHS}
    result = {"task": task, "kind": kind, "seed": seed, "steps": 1000, "loss": 0.125, "exact": exact, "ids": exact}
    return result | ({"reach": [0.1, -0.02], "offset": [1.0, 0.5]} if kind == "jerry" else {})


@pytest.fixture
def results() -> dict:
    runs = {f"{task}/{kind}/{seed}": made_up(task, kind, seed) for task in ("copy", "addition")
            for kind in ("rope", "jerry", "learned", "none") for seed in (0, 1)}
    return {"settings": settings(1.0), "runs": runs}


def test_tables_show_shares_spread_and_what_is_not_defined(results):
    console = Console(width=140, record=True, file=open("/dev/null", "w"))
    for table in tables(results):
        console.print(table)
    text = console.export_text()
    rows = {line.split()[1]: line.split()[3::2] for line in text.splitlines() if line.startswith("│")}
    assert "copy: wholly right" in text and "addition: wholly right" in text
    assert "95 (90-100)" in text
    assert list(rows) == ["rope", "jerry", "learned", "none"]
    assert rows["learned"][-7:] == ["-", "-", "-", "-", "2", "1,000", "0.125"]
    assert rows["none"] == ["0"] * 6 + ["2", "1,000", "0.125"]


def test_the_verdict_says_what_holds(results):
    text = "\n".join(verdict(results))
    assert "copy: rope holds to 32, jerry holds to 64, learned holds to 32, none holds at none." in text
    assert "of 2 tasks where it holds at all, it holds to the longest test, 512, in 0." in text
    assert "jerry: of 8 learned reaches 4 are negative" in text and "is 0 at 50 tokens (the nearest)" in text
    for run in results["runs"].values():
        run["exact"] = dict.fromkeys(run["exact"], 1.0)
        if run["kind"] == "jerry":
            run["reach"] = [0.1, 0.2]
    text = "\n".join(verdict(results))
    assert "the longest test, 512, in 2: copy, addition." in text and "negative" not in text
    for run in results["runs"].values():
        run["exact"] = dict.fromkeys(run["exact"], 0.0)
    assert "jerry, which learnt no task here: its runs say nothing of that" in "\n".join(verdict(results))


def test_the_plot_is_a_picture(results, tmp_path):
    plot(results, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [tmp_path / "a.png"]


FLAGS = ["--tasks", "copy,addition", "--kinds", "rope,jerry,learned", "--seeds", "2", "--seconds", "1"]


@pytest.fixture
def no_plot(monkeypatch):
    monkeypatch.setattr(extrapolation, "plot", lambda results, path: path.write_bytes(b""))


def test_it_goes_on_where_it_stopped(monkeypatch, tmp_path, capsys, no_plot):
    made = []

    def run_apart(task, kind, seed, seconds):
        if (task, kind, seed) == ("copy", "jerry", 1) and len(made) < 12:
            made.append("failed")
            raise UserError("copy, jerry, seed 1: the run ended with code 9")
        made.append((task, kind, seed))
        return made_up(task, kind, seed, seconds)

    monkeypatch.setattr(extrapolation, "run_apart", run_apart)
    command = [*FLAGS, "--out", str(tmp_path / "out")]
    assert extrapolation.main(command) == 1
    assert len(made) == 12 and "ended with code 9" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["runs"]) == 11
    assert extrapolation.main(command) == 0
    assert made[12:] == [("copy", "jerry", 1)]
    assert extrapolation.main([*command, "--kinds", "rope"]) == 0 and len(made) == 13
    told = capsys.readouterr()
    shown = json.loads(told.out.splitlines()[-1])["runs"]
    assert list(shown) == ["copy/rope/0", "copy/rope/1", "addition/rope/0", "addition/rope/1"]
    assert "0 runs of 1 s to go, 4 found" in told.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.json", "exact_match.png"}


def test_write_keeps_results(monkeypatch, tmp_path, no_plot):
    monkeypatch.setattr(extrapolation, "run_apart", made_up)
    monkeypatch.setattr(record, "RESULTS", tmp_path / "kept")
    assert extrapolation.main([*FLAGS, "--out", str(tmp_path / "out"), "--write"]) == 0
    kept = sorted((tmp_path / "kept").iterdir())
    assert [path.suffix for path in kept] == [".json", ".png"]
    assert {"machine", "settings", "runs", "verdict"} <= set(json.loads(kept[0].read_text()))


def test_other_settings_and_broken_results_are_refused(monkeypatch, tmp_path, no_plot):
    monkeypatch.setattr(extrapolation, "run_apart", made_up)
    command = [*FLAGS, "--out", str(tmp_path)]
    extrapolation.main(command)
    with pytest.raises(UserError, match="must have been written with seconds 2.0: got 1.0; name another --out"):
        extrapolation.main([*command, "--seconds", "2"])
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UserError, match="must be what an earlier run of this command wrote"):
        extrapolation.main(command)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out must be a folder"):
        extrapolation.main([*FLAGS, "--out", str(tmp_path / "file")])


@pytest.mark.parametrize("flags, message", [
    (["--tasks", "copy,sort"], "must be some of copy, reverse, addition: got 'sort'"),
    (["--kinds", ""], "must be some of rope, rope-partial, jerry"),
    (["--seeds", "0"], "--seeds must be at least 1: got 0"),
    (["--seconds", "-1"], "--seconds must be above 0 and at most 3600: got -1.0"),
    (["--seconds", "nan"], "--seconds must be above 0"),
    (["--lengths", "16"], "unrecognized arguments: --lengths 16"),
])
def test_bad_flags_fail_in_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as caught:
        extrapolation.main(flags)
    told = capsys.readouterr().err
    assert caught.value.code == 2 and message in told and told.count("\n") == 1


@pytest.mark.slow
def test_the_command(tmp_path):
    done = subprocess.run([sys.executable, "-m", "bench.extrapolation", "--tasks", "copy", "--kinds", "rope,learned",
                           "--seeds", "1", "--seconds", "1", "--out", str(tmp_path)], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runs"]["copy/learned/0"]["exact"]["64"] is None
