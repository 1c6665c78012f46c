"""The numbers of a vocabulary's card, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenizer.card.cut_view import piece_html
from tokenizer.card.measure import describe_cut, describe_text, measure
from tokenizer.card.pieces import doubles, script, several_words, shown, visible, whole
from tokenizer.card.sides import HuggingFaceSide, LoamSide, Writing, open_side
from tokenizer.card.text import KINDS, blocks, kind_of
from tokenizer.card.vocabulary import describe
from tokenizer.interface import SPECIAL_NAMES, TokenizerError
from tokenizer.piece import PieceTokenizer
from tokenizer.vocabulary import COST_UNIT, Vocabulary

PIECES = {b" the": 5, b"the": 6, b"The": 7, "你好".encode(): 4, "你".encode(): 8, b"\xe4\xbd": 15, b"12": 30,
          b"<script>": 9}
HALF, TWELVE = 256 + 5, 256 + 6


def vocabulary() -> Vocabulary:
    """The bytes at 10 nats each, and PIECES: `12` is dearer than `1` and `2`."""
    pieces = [bytes([byte]) for byte in range(256)] + list(PIECES)
    costs = np.array([10] * 256 + list(PIECES.values())) * COST_UNIT
    return Vocabulary(pieces, np.arange(1000, 1000 - len(pieces), -1), costs, "none")


@pytest.fixture(scope="module")
def side() -> LoamSide:
    return LoamSide("tiny", PieceTokenizer(vocabulary()))


def test_what_a_vocabulary_holds(side):
    found = describe(side)
    assert (found["size"], found["pieces"], found["special"]) == (272, 264, list(SPECIAL_NAMES))
    assert (found["bits_per_id"], found["weights"], found["boundaries"]) == (16, 272 * 768, "none")
    assert found["lengths_in_bytes"] == {"1": 256, "2": 2, "3": 3, "4": 1, "6": 1, "8": 1}
    assert found["lengths_in_characters"] == {"1": 128 + 1, "2": 2, "3": 2, "4": 1, "8": 1}
    assert found["scripts"] == {"Han": 2, "Latin": 52 + 4, "other letters": 0, "several scripts": 0, "digits": 11,
                                "marks": 128 - 52 - 10 - 10, "white space": 10, "half characters": 1, "raw bytes": 128}
    assert (found["han_characters"], found["several_words"], found["several_digits"]) == (1, 0, 1)
    assert [entry["piece"] for entry in found["longest"][:4]] == ["<script>", "你好", "␣the", "the"]
    assert [entry["piece"] for entry in found["longest_by_script"]["Han"]] == ["你好", "你"]
    assert found["rarest"][0] == {"id": 263, "piece": "<script>", "bytes": 8, "count": 737, "cost": 9.0}
    assert found["half_characters"] == {"pieces": 1, "examples": [
        {"id": HALF, "piece": "<E4><BD>", "bytes": 2, "count": 739, "cost": 15.0}]}
    assert found["doubled"]["pieces"] == 2
    assert found["doubled"]["by"]["space"]["examples"] == [["␣the", "the"]]
    assert found["doubled"]["by"]["case"]["examples"] == [["The", "the"]]
    assert (found["beaten"]["pieces"], found["beaten"]["exact"]) == (1, True)
    assert found["beaten"]["examples"][0]["id"] == TWELVE
    assert found["forgeable"] is False
    assert found["seldom"] == {"10": 0, "100": 0, "1000": 8}


def test_numbers_are_cut_digit_by_digit(side):
    found = describe(side)["numbers"]
    assert [row["tokens"] for row in found["by_digits"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert {row["cut_alike"] for row in found["by_digits"]} == {1.0}
    assert found["examples"]["3.14159"] == list("3.14159")


def test_how_a_text_is_cut(side):
    text, (tally,) = measure([("a.txt", "the the 12 你好龘\n")], [side])
    assert describe_text(text)["bytes"] == 21
    found = describe_cut(tally, text)
    assert found["tokens"] == 11  # the| the| |1|2| |你好|3 bytes|line end
    assert found["bytes_per_token"] == round(21 / 11, 4)
    assert found["characters_per_token"] == round(15 / 11, 4)
    assert found["half_character_share"] == round(3 / 11, 4)
    assert found["own_han_share"] == {"different": 3, "own": 1, "share_of_text": round(1 / 3, 4)}
    assert found["token_lengths"] == {"1": 8, "3": 1, "4": 1, "6": 1}
    assert (found["stretches"], found["changed_stretches"]) == (1, 0)


def test_frequencies_of_a_text(side):
    text, (tally,) = measure([("a.txt", "the the the the")], [side])
    found = describe_cut(tally, text)
    entropy = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert found["entropy"] == round(entropy, 4)
    assert found["bits_per_byte"] == round(entropy * 4 / 15, 4)
    assert found["evenness"] == round(math.log2(0.25**2.5 + 0.75**2.5) / -1.5 / math.log2(272), 4)
    assert (found["used"], found["used_share"]) == (2, round(2 / 264, 4))
    assert found["ids_for_share"] == {"50%": 1, "90%": 2, "99%": 2}
    assert found["rank_frequency"] == [[1, 3], [2, 1]]
    assert [(entry["piece"], entry["uses"]) for entry in found["most_used"]] == [("␣the", 3), ("the", 1)]


def test_rates_by_file_and_kind(side):
    english = "the other the. The others, then the last of them said the same: the end.\n"
    files = [("a.txt", english), ("b.txt", "你好，你好，你好。\n"), ("b.txt", "你好\n")]
    text, (tally,) = measure(files, [side])
    found = describe_cut(tally, text)
    assert [row["name"] for row in found["files"]] == ["a.txt", "b.txt"]
    assert list(found["kinds"]) == ["chinese", "latin"]
    assert found["kinds"]["chinese"]["tokens"] == found["files"][1]["tokens"] == 4 + 3 * 3 + 2
    assert found["kinds"]["chinese"]["bytes_per_token"] == round((4 * 6 + 3 * 3 + 2) / 15, 4)
    assert found["kinds"]["latin"]["tokens_per_word"] == round(found["files"][0]["tokens"] / 15, 4)
    assert found["tokens"] == sum(row["tokens"] for row in found["files"])
    # o|the|r  o|the|r|s  the|n  l|a|s|t  o|f  the|m  s|a|i|d  s|a|m|e  e|n|d
    assert found["cuts_in_words"] == round((2 + 3 + 1 + 3 + 1 + 1 + 3 + 3 + 2) / 15, 4)


def test_a_tokenizer_that_loses_text_is_found_out():
    tokenizer = PieceTokenizer(Vocabulary(vocabulary().pieces, vocabulary().counts, vocabulary().costs,
                                          normalizer="nfkc"))
    text, (tally,) = measure([("a", "plain\n"), ("b", "ｗｉｄｅ\n")], [LoamSide("wide", tokenizer)])
    assert (tally.stretches, tally.changed) == (2, 1)


@pytest.mark.parametrize("kind, text", [
    ("chinese", "清晨的雾还没有散。"), ("chinese", "我用 Python 写了一个 tokenizer，准确率是 99%。"),
    ("latin", "The old lighthouse keeper had counted 1,024 ships since March."),
    ("latin", "Der Leuchtturmwärter hatte seit März über tausend Schiffe gezählt."),
    ("code", "def total(values: list[int]) -> int:\n    return sum(value for value in values)\n"),
    ("code", '<div class="cut"><header><strong>name</strong></header></div>'),
    ("other", "Доброе утро, капитан! Как дела на маяке сегодня?"), ("other", "おはようございます、きょうは いい天気ですね。ありがとうございます。"),
    (None, "Yes."),
])
def test_kinds_of_text(kind, text):
    assert kind_of(text) == kind


def test_a_short_paragraph_takes_the_kind_of_the_one_before():
    prose = "The keeper went up the stairs to look again.\n\n"
    code = "x = {'a': [1, 2], 'b': (3, 4)}; y[0] = x['a']\n\n"
    found = list(blocks(prose + "Yes.\n\n" + code + "pass\n\n" + "雾散了。\n"))
    assert [block.kind for block in found] == ["latin", "code", "chinese"]
    assert found[0].text == prose + "Yes.\n\n"


@given(st.text(st.sampled_from("aZ 你\n\r{;é"), max_size=300).map(lambda text: text * 9))
def test_blocks_are_the_text(text):
    found = list(blocks(text))
    assert "".join(block.text for block in found) == text
    assert all(block.kind in KINDS and block.text for block in found)


@pytest.mark.parametrize("piece, told", [
    (b" a\tb\n", "␣a⇥b⏎"), (b"\xe4\xbdx", "<E4><BD>x"), ("\u202e\u200b".encode(), "\\u{202E}\\u{200B}"),
    ("␣".encode(), "\\u{2423}"), (b" " * 36, "␣×36"), (b"-" * 7, "-------"), ("\u0301".encode(), "\u25cc\u0301"),
    (b"\x00", "\\u{0}"), ("e\u0301".encode(), "e\u0301"),
])
def test_pieces_are_made_visible(piece, told):
    assert visible(piece) == told


def test_scripts_and_wholeness():
    assert [script(piece.encode()) for piece in ("，的", "a1", "aЯ", "Я", "42", "--", " \n", "ａ", "か")] == [
        "Han", "Latin", "several scripts", "other letters", "digits", "marks", "white space", "Latin", "other letters"]
    assert [script(piece) for piece in (b"\xe4", b"\xe4\xbd", b"a\xe4")] == [
        "raw bytes", "half characters", "half characters"]
    assert whole("你".encode()) and not whole(b"\xbd")
    assert several_words(b"of the") and not several_words(b" the") and not several_words(b"12 3")


def test_doubles():
    found = doubles([b"a", b" ", b" a", b"the", b" the", b" The", b"end\n", b"end", "ａ".encode(), b"  ", b"\xbd\xbd"])
    assert found["space"] == [(b" a", b"a"), (b" the", b"the")]
    assert found["case"] == [(b" The", b" the")]
    assert found["line"] == [(b"end\n", b"end")]
    assert found["form"] == [("ａ".encode(), b"a")]


def test_a_split_character_stands_in_the_box_of_its_first_byte():
    first, last = "龘".encode()[:1], "龘".encode()[1:]
    assert piece_html(b" a" + first, last) == '<i class="sign">·</i><wbr>a<i class="byte">龘<s>E9</s></i>'
    assert piece_html(last) == '<i class="byte"><s>BE</s></i><i class="byte"><s>98</s></i>'
    assert "龘" not in piece_html(first, b"x")
    assert [part.sign for part in shown(b"a\xff")] == ["", "byte"]


def test_how_rivals_write_their_pieces():
    byte_level = Writing({"model": {}, "decoder": {"type": "ByteLevel"}})
    assert byte_level.piece("Ġtheä½") == b" the\xe4\xbd"
    assert byte_level.piece("ĊĠ") == b"\n "
    sentence_piece = Writing({"model": {"byte_fallback": True}, "decoder": {"type": "Metaspace"}})
    assert sentence_piece.piece("▁the") == b" the"
    assert sentence_piece.piece("<0xE4>") == b"\xe4"
    word_piece = Writing({"model": {"continuing_subword_prefix": "##"}, "decoder": {"type": "WordPiece"}})
    assert word_piece.piece("##ing") == b"ing"


def rival_file(path) -> None:
    """A byte-level BPE with one merge and a special token."""
    tokenizers = pytest.importorskip("tokenizers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE({letter: i for i, letter in enumerate([*letters, "th", "the"])},
                                  [("t", "h"), ("th", "e")])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(path))


def test_a_rival(tmp_path):
    rival_file(tmp_path / "tokenizer.json")
    rival = open_side(tmp_path)
    assert isinstance(rival, HuggingFaceSide) and rival.name == tmp_path.name
    assert [cut.text for cut in rival.cuts("the 你\n")] == [b"the", b" ", b"\xe4", b"\xbd", b"\xa0", b"\n"]
    found = describe(rival)
    assert (found["size"], found["special"], found["forgeable"]) == (259, ["<|end|>"], True)
    assert found["lengths_in_bytes"] == {"1": 256, "2": 1, "3": 1}
    assert found["beaten"] == {"pieces": 0, "exact": False, "examples": []}
    text, (tally,) = measure([("a", "the the\n")], [rival])
    assert (tally.total(), tally.changed) == (4, 0)


def test_a_wrong_rival_is_told(tmp_path):
    with pytest.raises(TokenizerError, match="no such file"):
        open_side(tmp_path / "none")


def test_an_empty_text_has_a_card(side):
    text, (tally,) = measure([], [side])
    found = describe_cut(tally, text)
    assert (found["tokens"], found["bytes_per_token"], found["rank_frequency"]) == (0, None, [])
