"""The card's page and command: hostile text cannot break it, output that repeats, errors in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from sources import ROOT
from test_inspect import rival_file, vocabulary
from tokenizer import inspect as command
from tokenizer.byte import ByteTokenizer
from tokenizer.card import charts
from tokenizer.command import run_command
from tokenizer.piece import PieceTokenizer


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tiny"
    PieceTokenizer(vocabulary()).save(path)
    return path


class Page(HTMLParser):
    """Fails where tags do not nest; keeps what a browser would act on."""

    VOID = {"meta", "wbr"}

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], set(), [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


HOSTILE = """<script>alert(1)</script> "quoted" 'single' & <b onclick=x> </body> <!-- ]]> \u202e\x07 {{x}} &lt;
the quick brown fox jumps over the lazy dog again and again, all the way down to the river where the boats are
https://example.org/x.js url(http://example.org/y.png)
"""


@pytest.fixture
def hostile(tmp_path, folder):
    """The folder of a card about hostile text, with names that are hostile too."""
    ours, data = tmp_path / 'a<b>&"c', tmp_path / "d<img src=x>.txt"
    folder.rename(ours)
    data.write_text(HOSTILE * 3, encoding="utf-8")
    other = tmp_path / "other"
    ByteTokenizer().save(other)
    assert command.main([str(ours), "--data", str(data), "--against", str(other), "--out", str(tmp_path / "out")]) == 0
    return tmp_path / "out"


def test_the_page_is_well_formed_and_shows_hostile_text_as_text(hostile, capsys):
    page = Page((hostile / "card.html").read_text(encoding="utf-8"))
    assert not page.tags & {"script", "img", "link", "iframe", "object", "a", "embed", "base"}
    assert not [name for name, _ in page.attributes if name in ("src", "href", "xlink:href") or name.startswith("on")]
    assert not [value for name, value in page.attributes if name == "style" and "url(" in value]
    text = "".join(page.text)
    assert "<script>" in text and 'Vocabulary a<b>&"c' in text and "d<img src=x>.txt" in text
    assert "\u202e" not in text and "\x07" not in text and "\\u{7}" in text


def test_the_page_asks_for_nothing_from_outside(hostile):
    page = (hostile / "card.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style and "http" not in style


def test_the_page_holds_both_tokenizers_and_every_token(hostile):
    page = Page((hostile / "card.html").read_text(encoding="utf-8"))
    card = json.loads((hostile / "card.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in card["tokenizers"]] == ['a<b>&"c', "other"]
    assert card["tokenizers"][1]["text"]["bytes_per_token"] == 1
    told = [value for name, value in page.attributes if name == "data-t"]
    assert any(value.startswith("␣the · id 256 · 4 bytes 20 74 68 65 · cost 5.00 nats · 744 times") for value in told)


def test_the_card_is_the_same_every_time(folder, tmp_path, capsys):
    outputs = []
    for name in ("one", "two"):
        assert command.main([str(folder), "--against", str(folder), "--out", str(tmp_path / name)]) == 0
        outputs.append(((tmp_path / name / "card.html").read_bytes(), (tmp_path / name / "card.json").read_bytes(),
                        capsys.readouterr().out.splitlines()[:-1]))
    assert outputs[0] == outputs[1]
    card = json.loads(outputs[0][1])
    assert card["data"]["built_in"] is True
    assert [one["name"] for one in card["tokenizers"]] == ["tiny", "tiny (2)"]


def test_the_output_is_plain_where_there_is_no_terminal(folder, capsys):
    assert command.main([str(folder)]) == 0
    output = capsys.readouterr().out
    assert "\x1b" not in output and "At a glance" in output and "The|␣" in output
    assert max(map(len, output.splitlines()[:-1])) <= 120
    assert {path.name for path in folder.iterdir()} >= {"card.html", "card.json"}


def fails(arguments: list[object], capsys, monkeypatch) -> str:
    """The one line that a bad command prints."""
    monkeypatch.setattr(sys, "argv", ["inspect", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        run_command(command.main)
    output = capsys.readouterr()
    assert stop.value.code == 2 and output.err.count("\n") == 1 and output.err.startswith("error: ")
    return output.err


def test_bad_calls_fail_in_one_line(folder, tmp_path, capsys, monkeypatch):
    broken = tmp_path / "rival" / "tokenizer.json"
    broken.parent.mkdir()
    broken.write_text('{"model": ', encoding="utf-8")
    (tmp_path / "binary.txt").write_bytes(b"a\0b")
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    for arguments, told in [
        ([tmp_path / "none"], "none: no such file or folder"),
        ([tmp_path / "rival", "--out", tmp_path / "rival"], str(broken)),
        ([folder, "--data", tmp_path / "none.txt"], "none.txt: no such file"),
        ([folder, "--data", tmp_path / "binary.txt"], "not a text file"),
        ([folder, "--data", tmp_path / "empty.jsonl"], "must hold some text"),
        ([folder, "--against", tmp_path / "nobody"], "nobody: no such file or folder"),
        ([folder, "--against", broken], str(broken)),
        ([folder, "--out", tmp_path / "binary.txt"], "--out must be a folder"),
        ([folder, "--sizes"], "--sizes"),
        ([], "DIR"),
    ]:
        assert told in fails(arguments, capsys, monkeypatch), arguments
    assert not (folder / "card.html").exists()


def test_a_missing_package_is_named(folder, tmp_path, capsys, monkeypatch):
    rival = tmp_path / "tokenizer.json"
    rival.write_text("{}", encoding="utf-8")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert "pip install tokenizers" in fails([folder, "--against", rival], capsys, monkeypatch)


def test_it_runs_as_a_module(folder):
    done = subprocess.run([sys.executable, "-m", "tokenizer.inspect", str(folder)], cwd=ROOT, capture_output=True,
                          text=True, encoding="utf-8", env=None)
    assert done.returncode == 0, done.stderr
    assert "At a glance" in done.stdout


def test_a_rival_beside_ours_in_the_command(folder, tmp_path, capsys):
    (tmp_path / "rival").mkdir()
    rival_file(tmp_path / "rival" / "tokenizer.json")
    assert command.main([str(folder), "--against", str(tmp_path / "rival" / "tokenizer.json")]) == 0
    Page((folder / "card.html").read_text(encoding="utf-8"))
    assert "rival" in capsys.readouterr().out


def test_axes():
    assert [value for value, _ in charts.linear("bytes", 36).ticks] == [0, 5, 10, 15, 20, 25, 30, 35, 40]
    assert charts.linear("share", 1e-3, "{:g}".format).high >= 1e-3
    axis = charts.powers("rank", 20_000)
    assert (axis.place(1), axis.place(100_000), axis.place(10)) == (0, 1, pytest.approx(0.2))
    assert "10 k" in [name for _, name in axis.ticks]
