import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer import ByteTokenizer, TokenizerError
from tokenizer.chat import ROLES, encode_with_special, render
from tokenizer.interface import SPECIAL_NAMES
from tokenizer.piece import PieceTokenizer
from tokenizer.vocabulary import Vocabulary, costs_of

draws = settings(max_examples=150, deadline=None, derandomize=True)


def pieces_with(special: tuple[str, ...] = SPECIAL_NAMES) -> PieceTokenizer:
    """A vocabulary with pieces that go across the names of special tokens."""
    pieces = [*(bytes([byte]) for byte in range(256)), b"<|", b"|>", b"|><|", b"end", b"user|", b"a<", b"assistant"]
    counts = np.full(len(pieces), 5)
    return PieceTokenizer(Vocabulary(pieces, counts, costs_of(counts), special=special))


TOKENIZERS = [ByteTokenizer(), pieces_with()]
contents = st.lists(st.one_of(st.sampled_from([*SPECIAL_NAMES, "<|", "|>", "a<|user|>b"]), st.text(max_size=4)),
                    max_size=6).map("".join)
chats = st.lists(st.fixed_dictionaries({"role": st.sampled_from(sorted(ROLES)), "content": contents}), min_size=1,
                 max_size=5)


def is_special(tokenizer, ids: np.ndarray) -> np.ndarray:
    return np.isin(ids, list(tokenizer.special.values()))


@draws
@given(chats, st.booleans())
def test_special_ids_are_those_of_the_turns_and_no_others(chat, prompt):
    for tokenizer in TOKENIZERS:
        ids, mask = render(tokenizer, chat, prompt)
        assert ids.dtype == tokenizer.encode("").dtype and mask.dtype == bool and len(ids) == len(mask)
        names = [name for message in chat for name in (ROLES[message["role"]], "<|turn_end|>")]
        names += ["<|assistant|>"] * prompt
        assert ids[is_special(tokenizer, ids)].tolist() == [tokenizer.special[name] for name in names]
        texts = [tokenizer.decode(part[~is_special(tokenizer, part)])
                 for part in np.split(ids, np.flatnonzero(ids == tokenizer.special["<|turn_end|>"]))]
        wanted = [tokenizer.decode(tokenizer.encode(message["content"])) for message in chat]
        assert texts == [*wanted, ""]


@draws
@given(chats, st.booleans())
def test_only_answers_and_their_ends_are_learnt(chat, prompt):
    for tokenizer in TOKENIZERS:
        ids, mask = render(tokenizer, chat, prompt)
        end = [tokenizer.special["<|turn_end|>"]]
        learnt = [[*tokenizer.encode(message["content"]).tolist(), *end] for message in chat
                  if message["role"] == "assistant"]
        assert ids[mask].tolist() == sum(learnt, [])
        first = np.flatnonzero(mask & ~np.concatenate(([False], mask[:-1])))
        assert (ids[first - 1] == tokenizer.special["<|assistant|>"]).all() and len(first) == len(learnt)


def test_a_chat_in_full():
    tokenizer = TOKENIZERS[0]
    chat = [{"role": "user", "content": "<|assistant|>"}, {"role": "assistant", "content": "é"}]
    ids, mask = render(tokenizer, chat, add_generation_prompt=True)
    assert ids.tolist() == [258, *b"<|assistant|>", 260, 259, *"é".encode(), 260, 259]
    assert mask.tolist() == [False] * 16 + [True] * 3 + [False]


def test_a_chat_that_goes_on_begins_as_before():
    for tokenizer in TOKENIZERS:
        chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
        asked = render(tokenizer, chat, add_generation_prompt=True).ids
        answered = render(tokenizer, [*chat, {"role": "assistant", "content": "2"}]).ids
        assert answered[: len(asked)].tolist() == asked.tolist()


@pytest.mark.parametrize(("messages", "message"), [
    ([], "a chat must have at least one message"),
    ("hello", "a chat must be a list of messages: got str"),
    ({"role": "user", "content": ""}, "a chat must be a list of messages: got dict"),
    (None, "a chat must be a list of messages: got NoneType"),
    (["hello"], "message 1 must be a mapping with role and content: got str"),
    ([{"role": "user"}], "message 1 has no content"),
    ([{}], "message 1 has no role and no content"),
    ([{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}],
     "message 2: the role must be one of system, user, assistant: got 'tool'"),
    ([{"role": ["user"], "content": "a"}], r"message 1: the role must be one of .*: got \['user'\]"),
    ([{"role": "user", "content": b"a"}], "message 1: the content must be a str: got bytes"),
    ([{"role": "user", "content": None}], "message 1: the content must be a str: got NoneType"),
])
def test_what_is_no_chat(messages, message):
    with pytest.raises(TokenizerError, match=message):
        render(TOKENIZERS[0], messages)


@draws
@given(contents, st.sets(st.sampled_from(SPECIAL_NAMES)))
def test_names_stand_for_special_tokens_where_allowed_and_only_there(text, allowed):
    for tokenizer in TOKENIZERS:
        ids = encode_with_special(tokenizer, text, allowed)
        wanted, plain, at = [], "", 0
        while at < len(text):
            name = next((name for name in allowed if text.startswith(name, at)), None)
            if name:
                wanted += [*tokenizer.encode(plain).tolist(), tokenizer.special[name]]
            plain = "" if name else plain + text[at]
            at += len(name or "x")
        assert ids.tolist() == [*wanted, *tokenizer.encode(plain).tolist()]
        assert ids.dtype == tokenizer.encode("").dtype


def test_the_longest_name_counts():
    tokenizer = pieces_with(("<|end|>", "<a>", "<a><b>", "<b>"))
    special = tokenizer.special
    ids = encode_with_special(tokenizer, "<a><b><a>x<b>", ["<a>", "<a><b>", "<b>"])
    assert ids.tolist() == [special["<a><b>"], special["<a>"], ord("x"), special["<b>"]]
    assert encode_with_special(tokenizer, "<a><b>", ["<b>"]).tolist() == [*b"<a>", special["<b>"]]
    assert encode_with_special(tokenizer, "<a>", []).tolist() == [*b"<a>"]


def test_names_that_are_none():
    with pytest.raises(TokenizerError, match=r"'<\|tool\|>' is not a special token of this tokenizer, which has <"):
        encode_with_special(TOKENIZERS[0], "x", ["<|tool|>"])
    with pytest.raises(TokenizerError, match="allowed must be a collection of names"):
        encode_with_special(TOKENIZERS[0], "x", "<|end|>")
    with pytest.raises(TokenizerError, match=r"'<\|user\|>' is not a special token"):
        render(pieces_with(("<|end|>",)), [{"role": "user", "content": ""}])
