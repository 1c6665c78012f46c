"""The tokenizer's benchmark: its arithmetic, its text, and a tiny run of all of it with the rivals that are there."""

import importlib.util
import json
import random

import numpy as np
import pytest

from bench import tokenization
from bench.tokenization_contest import Contest, ask, make_corpus
from bench.tokenization_goals import (Goal, compression_table, goals, projected_memory, projection, same_ids, scaling,
                                      speeds_table)
from bench.tokenization_report import plot, tables
from bench.tokenization_rivals import CONTESTANTS, byte_of_character
from bench.tokenization_text import (Document, Texts, cut, draw, hard_texts, is_held_out, kind_of, random_strings,
                                     write_texts)

INSTALLED = [name for name in ("tokenizers", "tiktoken", "sentencepiece", "gigatoken", "tokie")
             if importlib.util.find_spec(name)]
WORDS = {"en": "the of and river stone light walks over under bright morning with seven small houses".split(),
         "zh": "我们 今天 在 山 上 看到 了 很多 白 云 和 绿色 的 树 河水 流过 田野 不知道 什么 时候".split(),
         "code": ["def f(x):\n", "    return x + 1\n", "import json\n", "for i in range(10):\n", "    print(i)\n"]}


def documents_of(kind: str, count: int, seed: int = 0) -> list[str]:
    rng = random.Random(f"{kind}{seed}")
    space = " " if kind == "en" else ""
    return [space.join(rng.choices(WORDS[kind], k=80)) + f" {i}\n" for i in range(count)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for kind in WORDS:
        write_texts(folder / f"{kind}.jsonl", documents_of(kind, 100))
    (folder / "elsewhere.txt").write_text("A text about nothing of the kind: 1, 2, 3.\n" * 20)
    return folder


def test_a_kind_is_told_by_name_or_look():
    assert kind_of("今天在山上看到了云") == "zh"
    assert kind_of("The river flows over the stones; nobody walks there.\n") == "en"
    assert kind_of("import os\n\ndef f(x):\n    return x\n") == "code"
    assert kind_of("# nothing but a remark", "a/b.py") == "code"


def test_a_tenth_is_held_out_whatever_the_order():
    texts = [f"document {i}" for i in range(5000)]
    held = [text for text in texts if is_held_out(text)]
    assert 400 < len(held) < 600
    assert held == [text for text in reversed(texts) if is_held_out(text)][::-1]


def test_cutting_keeps_every_character_and_the_size():
    texts = ["河水流过田野" * 300, "abc", "é" * 1000]
    pieces = cut(texts, size=100)
    assert "".join(pieces) == "\n".join(texts)
    assert max(len(piece.encode()) for piece in pieces) <= 100
    assert sum(len(piece.encode()) < 95 for piece in pieces) <= 1
    assert sum(len(piece.encode()) for piece in cut(texts, size=100, room=1000)) in range(997, 1001)


def test_drawing_stops_after_enough_and_repeats_itself():
    documents = [Document("en", text) for text in documents_of("en", 50)]
    drawn = draw(documents, 2000)
    assert 2000 <= sum(len(text) for _, text in drawn) < 3000
    assert drawn == draw(documents, 2000) and drawn != draw(documents, 2000, seed=1)
    assert sorted(draw(documents, 10**9)) == sorted(documents)


def test_texts_come_back_from_their_file(tmp_path):
    texts = ["a\nb", "河\u2028", "\ud800x"]
    size = write_texts(tmp_path / "t.jsonl", texts)
    back = list(Texts(tmp_path / "t.jsonl"))
    assert back == ["a\nb", "河\u2028", "?x"] and size == sum(len(text.encode()) for text in back)


def test_hard_texts_are_long_enough_and_random_strings_broken_enough():
    pieces = [bytes([i]) for i in range(256)] + [b"the", b" the", "的时候".encode(), b"    ", b"  "]
    for name, text in hard_texts(pieces, 5000).items():
        assert len(text) == 5000, name
    strings = random_strings(600)
    assert len(strings) == 600 and len(set(strings)) > 400

    def is_text(data):
        try:
            return bool(data.decode())
        except UnicodeDecodeError:
            return False
    assert 50 < sum(map(is_text, strings)) < 550


def entry(name, turn, cold, warm, decode, kind="zh"):
    return {"kind": kind, "round": turn, "contestant": name, "bytes": 2_000_000, "cold": cold, "warm": warm,
            "decode": decode, "load": 0.01 * (turn + 1), "wrong": 0, "tokens": 5}


def test_speeds_are_medians_and_ratios_are_of_the_same_round():
    entries = [entry("ours", 0, 1.0, [0.5, 0.7, 0.9], [0.1]), entry("rival", 0, 2.0, [7.0], [0.4]),
               entry("ours", 1, 2.0, [1.0], [0.2]), entry("rival", 1, 12.0, [5.0], [0.4]),
               entry("ours", 2, 4.0, [2.0], [0.4]), entry("rival", 2, 12.0, [2.0], [0.4])]
    ours, rival = speeds_table(entries)
    assert ours["cold"] == {"median": 1.0, "best": 2.0, "ratio": 1.0} and ours["load_ms"] == pytest.approx(20)
    assert rival["cold"]["median"] == pytest.approx(2 / 12) and rival["cold"]["ratio"] == 3.0
    assert rival["warm"]["ratio"] == 5.0 and rival["decode"]["ratio"] == 2.0


def test_same_ids_is_a_share_of_documents():
    entries = [{"kind": "zh", "contestant": "a", "checks": [1, 2, 3, 4]}, {"kind": "zh", "contestant": "b",
                                                                          "checks": [1, 2, 9, 4]}]
    assert same_ids(entries, "a", "b") == 0.75 and same_ids(entries, "a", "c") is None


def test_two_processes_are_compared_turn_by_turn():
    entries = [{"kind": "en", "mb_per_second": rate} for rate in (10, 18, 20, 20, 5, 15)]
    assert scaling(entries) == {"en": pytest.approx(1.8)}


def test_compression_compares_what_had_the_same_training_text():
    def of(name, text, zh, en):
        return {"contestant": name, "text": text, "pieces": 9, "tokens": {"zh": zh, "en": en},
                "bytes": {"zh": 600, "en": 400}}

    rows = compression_table([of("ours", "train", 100, 100), of("tokenizers", "train", 150, 100),
                              of("ours", "small", 200, 100), of("bytepiece", "small", 100, 200)], ["zh", "en"])
    assert rows[0]["bytes_per_token"] == {"zh": 6.0, "en": 4.0, "mix": 5.0}
    assert rows[1]["ratio"] == {"zh": 1.5, "en": 1.0, "mix": 1.25}
    assert rows[3]["ratio"] == {"zh": 0.5, "en": 2.0, "mix": 1.0}


def test_the_projection_multiplies_what_was_measured():
    phases = {"reading": 1.0, "windows": 2.0, "words": 3.0, "round-00": 10.0, "round-01": 20.0}
    found = projection(phases, 10_000_000, share=0.1, target_bytes=36e9)
    assert found["per_mb"] == {"reading": 0.1, "candidates": 0.5, "rounds": 3.0}
    assert found["hours"] == pytest.approx({"reading": 1.0, "candidates": 0.5, "rounds": 30.0})
    assert found["core_hours"] == pytest.approx(31.5)
    assert "0.5000 CPU s/MB x 36,000 MB x 0.100 of the text / 3600 = 0.50 core-hours" in found["lines"][1]


def test_projected_memory_is_a_line_and_no_more_than_the_limit():
    line = projected_memory([(10_000_000, 100.0), (30_000_000, 140.0)], 1000.0, 100_000_000)
    assert line["straight_line_mb"] == pytest.approx(280) and line["mb"] == pytest.approx(280)
    assert projected_memory([(10_000_000, 100.0), (30_000_000, 140.0)], 200.0, 100_000_000)["mb"] == 200.0
    assert projected_memory([(30_000_000, 140.0)], 1000.0, 60_000_000)["mb"] == pytest.approx(280)


def test_goals_say_what_was_reached_and_what_was_not_measured():
    speeds = speeds_table([entry("ours", 0, 1.0, [1.0], [1.0]), entry("tokenizers", 0, 12.0, [9.0], [6.0])])
    training = {"ours": {"cpu": 30.0, "wall": 10.0, "bytes": 10_000_000, "peak_mb": 1000.0},
                "tokenizers": {"cpu": 30.0, "wall": 40.0, "bytes": 10_000_000, "peak_mb": 1.0}}
    found = {goal.name: goal for goal in goals({"speeds": speeds, "training": training})}
    assert found["encoding, cold, slowest kind: x tokenizers"][2:] == (10, 12.0)
    assert found["encoding, cold, slowest kind: x tokenizers"].reached is True
    assert found["encoding, warm, slowest kind: x tokenizers"].reached is False
    assert found["encoding, cold, slowest kind: x tiktoken"].reached is None
    assert found["training: CPU seconds per MB"].measured == 3.0
    assert found["training: wall time, x tokenizers' BPE"].measured == 0.25
    assert found["training: bytepiece's CPU, x ours"].measured is None
    training["tokenizers"]["kept"] = True
    found = {goal.name: goal for goal in goals({"training": training})}
    assert found["training: wall time, x tokenizers' BPE"][3] is None
    assert Goal("", "<=", 3, 3).reached and not Goal("", ">=", 3, 2.9).reached


def test_bytes_and_the_characters_that_stand_for_them_are_one_to_one():
    table = byte_of_character()
    assert sorted(table.values()) == list(range(256)) and table["Ġ"] == 32 and table["a"] == 97


def test_who_is_not_installed_takes_no_part(tmp_path):
    said = []
    contest = Contest(tmp_path, 300, 1, said.append, pythons={"tokie": str(tmp_path / "no-such-python")})
    contest.find(["ours", "tokie"])
    assert list(contest.versions) == ["ours"] and "tokie takes no part" in said[0]


def test_a_failing_trainer_leaves_the_others(tmp_path):
    if "sentencepiece" not in INSTALLED:
        pytest.skip("sentencepiece is not installed")
    write_texts(tmp_path / "t.jsonl", ["a" * 100])
    said = []
    contest = Contest(tmp_path, 30_000, 1, said.append)
    contest.find(["ours", "sentencepiece"])
    (tmp_path / "sentencepiece-5-x").mkdir()
    assert contest.train("sentencepiece", str(tmp_path / "t.jsonl"), size=1) is None
    assert "training failed" in contest.missing["sentencepiece"]


def test_documents_too_few_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="held out"):
        make_corpus(tmp_path, [Document("en", "one")], {}, 100, 100, 100)


@pytest.mark.skipif("tokenizers" not in INSTALLED, reason="tokenizers is not installed")
def test_rivals_with_the_same_ranks_give_the_same_ids(data, tmp_path):
    ask("tokenizers", "train", texts=str(data / "en.jsonl"), size=400, threads=1, folder=str(tmp_path))
    checks = {name: ask(name, "speed", folder=str(tmp_path), texts=str(data / "en.jsonl"), passes=1)
              for name in INSTALLED if CONTESTANTS[name].folder == "tokenizers" or name == "tokenizers"}
    assert all(found["wrong"] == 0 for found in checks.values())
    for name, found in checks.items():
        assert found["checks"] == checks["tokenizers"]["checks"], name


@pytest.mark.skipif("tokenizers" not in INSTALLED, reason="tokenizers is not installed")
def test_a_rival_serves_as_a_tokenizer_for_training(data, tmp_path):
    from bench.tokenization_model import HuggingFaceTokenizer

    ask("tokenizers", "train", texts=str(data / "zh.jsonl"), size=300, threads=1, folder=str(tmp_path))
    tokenizer = HuggingFaceTokenizer(tmp_path)
    texts = ["今天的河水\n", "", "a b"]
    ids, starts = tokenizer.encode_batch(texts)
    assert [tokenizer.decode(ids[i:j]) for i, j in zip(starts[:-1], starts[1:])] == texts
    assert np.array_equal(tokenizer.encode_bytes(texts[0].encode()), ids[:starts[1]])
    assert tokenizer.token_bytes()[ids].sum() == len("".join(texts).encode())
    assert tokenizer.vocab_size == 308 and tokenizer.token_bytes()[tokenizer.eod] == 0


def test_a_whole_run(data, tmp_path, capsys):
    argv = ["--data", f"zh={data}/zh.jsonl", f"en={data}/en.jsonl", f"code={data}/code.jsonl", "--out-of-domain",
            str(data / "elsewhere.txt"), "--rivals", ",".join(INSTALLED) or "tokenizers", "--vocab-size", "300",
            "--model-vocab-size", "280", "--slow-mb", "0.03", "--speed-mb", "0.003", "--rounds", "1", "--passes", "1",
            "--strings", "30", "--minutes", "0.002", "--threads", "1", "--work", str(tmp_path / "work")]
    assert tokenization.main(argv) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["training"]["ours"]["pieces"] == 300
    assert {row["contestant"] for row in results["speeds"]} <= {"ours", *INSTALLED}
    assert {row["kind"] for row in results["speeds"]} == {"zh", "en", "code"}
    assert all(row["wrong"] == 0 for row in results["speeds"] if row["contestant"] == "ours")
    assert set(results["compression"][0]["bytes_per_token"]) == {"zh", "en", "code", "elsewhere", "mix"}
    assert results["lossless"]["ours"] == {"strings": 30, "changed": 0} and results["hard"]["wrong"] == []
    assert results["projection"]["core_hours"] > 0 and results["two_processes"]["zh"] > 0
    assert results["models"][0]["contestant"] == "ours" and 0 < results["models"][0]["bits_per_byte"] < 20
    assert len(list(tables(results))) == 6
    plot(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    again = ["train" if word == "THIS" else word for word in [*argv, "--only", "THIS"]]
    assert tokenization.main(again) == 0
    assert json.loads(capsys.readouterr().out)["training"]["ours"]["kept"] is True


@pytest.mark.parametrize("argv, message", [
    (["--data", "x.txt", "--only", "cooking"], "--only"),
    (["--data", "x.txt", "--vocab-size", "100"], "at least 257: got 100"),
    (["--data", "x.txt", "--rounds", "0"], "--rounds must be above 0: got 0"),
])
def test_bad_flags_are_told_in_a_line(argv, message, capsys):
    with pytest.raises(SystemExit) as end:
        tokenization.main(argv)
    assert end.value.code == 2 and message in capsys.readouterr().err
