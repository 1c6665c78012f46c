"""Rules of borders against a character-by-character reading of what they say."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tokenizer import TokenizerError, patterns
from tokenizer.boundaries import RULES, allowed, allows, borders, checked
from tokenizer.documents import standard_library_files
from tokenizer.patterns import NAMED, divided

ALPHABET = "aZé\u043f\uff21\uac00中々カ 　\t\u00a0\n\r07\u0663\uff10.'_“。，！・\u2192\U0001F600\U00020000"


def kind(character: str) -> str:
    """Written from the docstrings, by other means than the module's tables."""
    if character in "\n\r":
        return "newline"
    if character in " \t\u00a0\u3000":
        return "space"
    if character.isdigit():
        return "digit"
    if character.isalpha():
        point = ord(character)
        han = 0x3000 <= point < 0xA000 or point >= 0x20000
        return "han" if han else "letter"
    return "mark"


def parted(left: str, right: str, rule: str) -> bool:
    """Whether a border lies between two characters."""
    a, b = kind(left), kind(right)
    if rule == "none":
        return False
    if rule == "characters":
        return not a == b == "han"
    if "digit" in (a, b) or (a == "newline" and b != "newline"):
        return True
    if rule == "default" or a == b:
        return False
    return (a, b) not in {("space", "letter"), ("space", "han"), ("space", "mark"), ("space", "newline"),
                          ("mark", "letter"), ("mark", "newline")}


def cut(text: str, rule: str) -> list[str]:
    """The text in the stretches that borders leave whole."""
    data = text.encode()
    edges = [0, *np.flatnonzero(borders(np.frombuffer(data, np.uint8), rule)).tolist(), len(data)]
    return [data[a:b].decode() for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("rule", RULES)
def test_every_pair_of_kinds(rule):
    for left, right in itertools.product(ALPHABET, repeat=2):
        assert len(cut(left + right, rule)) == 1 + parted(left, right, rule), (left, right)


@pytest.mark.parametrize("rule", RULES)
@given(text=st.text(ALPHABET, min_size=1, max_size=12))
def test_borders_of_texts(rule, text):
    expected = [text[0]]
    for left, right in itertools.pairwise(text):
        if parted(left, right, rule):
            expected.append("")
        expected[-1] += right
    assert cut(text, rule) == expected


@pytest.mark.parametrize("rule, text, expected", [
    ("default", "In 2024, don't stop.\r\n\r\n\tif x:", "In |2|0|2|4|, don't stop.\r\n\r\n|\tif x:"),
    ("words", "In 2024, don't stop.\n  foo_bar(x) != '\u201cé\u201d'",
     "In| |2|0|2|4|,| don|'t| stop|.\n|  foo|_bar|(x|)| !=| '\u201cé|\u201d'"),
    ("words", "我们用Python写代码。\u3000好，吗", "我们用|Python|写代码|。|\u3000好|，|吗"),
    ("characters", "我们用Py3。好！\n", "我们用|P|y|3|。|好|！|\n"),
    ("none", "a1\nb", "a1\nb"),
])
def test_what_the_rules_do_to_text(rule, text, expected):
    assert "|".join(cut(text, rule)) == expected


@given(data=st.binary(max_size=24))
def test_bytes_that_are_no_text(data):
    text = np.frombuffer(data, np.uint8)
    for rule in RULES:
        found = borders(text, rule)
        assert found.shape == text.shape and not found[:1].any()
        assert not found[(text & 0xC0) == 0x80].any()


@given(pieces=st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=6))
def test_pieces_are_judged_apart(pieces):
    data = [piece.encode() for piece in pieces]
    for rule in RULES:
        assert allowed(data, rule).tolist() == [allows(piece, rule) for piece in data]
        assert [allows(piece, rule) for piece in data] == [len(cut(piece, rule)) == 1 for piece in pieces]


def test_a_window_of_text_has_the_borders_of_the_whole():
    data = np.frombuffer((ALPHABET * 3).encode(), np.uint8)
    for rule in RULES:
        whole = borders(data, rule)
        for first in range(0, len(data) - 24, 7):
            assert (borders(data[first : first + 24], rule)[8:16] == whole[first + 8 : first + 16]).all()


PATTERNS = ["pattern:cl100k", "pattern:[a-zé中]+", "pattern:(?=[A-Z中])", r"pattern:\d{2}|\s+$|\uFF21",
            r"pattern:(?r)\w{2}"]


@pytest.mark.parametrize("rule, text, expected", [
    ("pattern:cl100k", "In 2024, don't  stop.\n\n  x", "In| |202|4|,| don|'t| | stop|.\n\n| | x"),
    ("pattern:cl100k", "我们用Python写。\u3000好😀é", "我们用Python写|。|\u3000好|😀é"),
    ("pattern:[a-z]+", "ab12cd", "ab|12|cd"), ("pattern:(?=[A-Z])", "fooBarBaz", "foo|Bar|Baz"),
    (r"pattern:\p{Han}", "ab我们é", "ab|我|们|é"), ("pattern:(?:x)", "", ""), ("pattern:(?:x)", "abc", "abc"),
    ("pattern:.*", "a\nb", "a|\n|b"),
])
def test_what_patterns_do_to_text(rule, text, expected):
    pytest.importorskip("regex")
    assert "|".join(cut(text, rule)) == expected


@pytest.mark.parametrize("rule", PATTERNS)
@given(text=st.text(ALPHABET, max_size=30))
def test_a_pattern_parts_matches_and_what_lies_between(rule, text):
    regex = pytest.importorskip("regex")
    places = {place for match in regex.finditer(checked(rule)[len("pattern:"):], text) for place in match.span()}
    edges = sorted({0, len(text), *places})
    assert cut(text, rule) == ([text[a:b] for a, b in itertools.pairwise(edges)] or [""])


@pytest.mark.parametrize("rule", PATTERNS)
@given(texts=st.lists(st.one_of(st.binary(max_size=20), st.text(ALPHABET, max_size=12).map(str.encode)), max_size=5))
def test_texts_are_divided_each_by_itself(rule, texts):
    pytest.importorskip("regex")
    starts = np.cumsum([3, *map(len, texts)])
    found = divided(np.frombuffer(b"***" + b"".join(texts) + b"**", np.uint8), starts, checked(rule))
    assert found.starts[-1] == starts[-1] and (np.diff(found.starts[:-1]) >= 0).all()
    assert found.starts[found.first].tolist() == starts[:-1].tolist() and len(found.first) == len(texts)
    sizes = np.diff(np.append(found.first, len(found.starts) - 1))
    assert found.added_up(np.ones(len(found.starts) - 1, np.int64)).tolist() == sizes.tolist()
    for text, first, size in zip(texts, found.first, sizes, strict=True):
        alone = np.flatnonzero(borders(np.frombuffer(text, np.uint8), rule))
        inside = found.starts[first + 1 : first + size] - found.starts[first]
        assert inside.tolist() == alone.tolist()
        characters = [part.decode(errors="surrogateescape") for part in np.split(np.frombuffer(text, np.uint8), alone)
                      for part in [part.tobytes()]]
        assert "".join(characters) == text.decode(errors="surrogateescape"), "no character is cut"


def test_a_pattern_divides_real_code_as_the_package_does():
    regex = pytest.importorskip("regex")
    for path in standard_library_files()[:3]:
        text = path.read_text(encoding="utf-8")[:30_000]
        assert cut(text, "pattern:cl100k") == regex.findall(NAMED["cl100k"], text)


@pytest.mark.parametrize("rule, told", [
    ("pattern:(", r"a pattern must be a regular expression, .*: got '\('"),
    ("pattern:cl99k", "a pattern must be a regular expression or one of cl100k: got 'cl99k'"),
    ("pattern:", "a pattern must be a regular expression or one of cl100k: got ''"),
    (r"pattern:\p{Nothing}", "a pattern must be a regular expression, .*Nothing"),
    ("cl100k", "boundaries must be one of default, none, words, characters, or pattern:REGEX: got cl100k"),
])
def test_a_bad_pattern_gets_one_line(rule, told):
    pytest.importorskip("regex")
    with pytest.raises(TokenizerError, match=told) as error:
        checked(rule)
    assert "\n" not in str(error.value)


def test_without_the_package_patterns_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "regex", None)
    patterns._compiled.cache_clear()
    with pytest.raises(TokenizerError, match=r"need the package regex: pip install 'loam\[patterns\]'"):
        checked("pattern:cl100k")
    assert checked("default") == "default"
    monkeypatch.undo()
    patterns._compiled.cache_clear()
