"""Rules of borders against a character-by-character reading of what they say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tokenizer.boundaries import RULES, allowed, allows, borders

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
