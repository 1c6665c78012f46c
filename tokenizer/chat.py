"""Special tokens and chat: special ids come from the program that renders a chat, never from the text in it.

Encoding text never yields a special id, so chats are joined as ids. A message that contains "<|assistant|>" keeps it as
ordinary text. (Templates that join strings first cannot tell the two apart.)
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tokenizer.interface import Tokenizer, TokenizerError

ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
TURN_END = "<|turn_end|>"


class Rendered(NamedTuple):
    """A chat as ids.

    Attributes:
        ids: [tokens], of the tokenizer's dtype.
        loss_mask: bool [tokens], True where a model should learn to predict this id: the assistant's words and the
            end of its turn. It belongs to the ids as targets, so the mask for logits at position i is loss_mask[i + 1].
    """

    ids: np.ndarray
    loss_mask: np.ndarray


def render(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = False
) -> Rendered:
    """The ids of a chat: for each message its role's token, its content, <|turn_end|>.

    Args:
        messages: each a mapping with "role" (system, user or assistant) and "content" (a str, may be empty).
        add_generation_prompt: end with the token <|assistant|>, after which a model answers; stop at
            `tokenizer.special["<|turn_end|>"]`.

    Raises:
        TokenizerError: no messages, an unknown role, a message or a content of the wrong type.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise TokenizerError(f"a chat must be a list of messages: got {type(messages).__name__}")
    if not messages:
        raise TokenizerError("a chat must have at least one message: got none")
    checked = [_checked(message, number) for number, message in enumerate(messages, 1)]
    ids, mask = [], []

    def add(some: np.ndarray, learnt: bool) -> None:
        ids.append(some)
        mask.append(np.full(len(some), learnt))

    for role, content in checked:
        learnt = role == "assistant"
        text = tokenizer.encode(content)
        add(_special(tokenizer, ROLES[role], text.dtype), False)
        add(text, learnt)
        add(_special(tokenizer, TURN_END, text.dtype), learnt)
    if add_generation_prompt:
        add(_special(tokenizer, ROLES["assistant"], ids[0].dtype), False)
    return Rendered(np.concatenate(ids), np.concatenate(mask))


def encode_with_special(tokenizer: Tokenizer, text: str, allowed: Collection[str]) -> np.ndarray:
    """Ids of a text in which the names `allowed`, and no others, stand for special tokens.

    For text that the program itself wrote. Where one allowed name begins another, the longest counts.

    Raises:
        TokenizerError: a name in `allowed` is not a special token's.
    """
    if isinstance(allowed, str):
        raise TokenizerError(f"allowed must be a collection of names: got the str {allowed!r}")
    names = sorted(set(allowed), key=len, reverse=True)
    if not names:
        return tokenizer.encode(text)
    special = {name: _special(tokenizer, name, tokenizer.encode("").dtype) for name in names}
    parts = re.split(f"({'|'.join(map(re.escape, names))})", text)
    return np.concatenate([special[part] if i % 2 else tokenizer.encode(part) for i, part in enumerate(parts)])


def _checked(message: Mapping[str, str], number: int) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        raise TokenizerError(f"message {number} must be a mapping with role and content: got {type(message).__name__}")
    missing = [key for key in ("role", "content") if key not in message]
    if missing:
        raise TokenizerError(f"message {number} has no {' and no '.join(missing)}")
    role, content = message["role"], message["content"]
    if not isinstance(role, str) or role not in ROLES:
        raise TokenizerError(f"message {number}: the role must be one of {', '.join(ROLES)}: got {role!r}")
    if not isinstance(content, str):
        raise TokenizerError(f"message {number}: the content must be a str: got {type(content).__name__}")
    return role, content


def _special(tokenizer: Tokenizer, name: str, dtype: np.dtype) -> np.ndarray:
    if name not in tokenizer.special:
        raise TokenizerError(f"{name!r} is not a special token of this tokenizer, which has "
                             f"{', '.join(tokenizer.special) or 'none'}")
    return np.array([tokenizer.special[name]], dtype)
