"""Text <-> token ids.

What needs Numba is imported when it is first used: importing it takes longer than loading a vocabulary.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from tokenizer.byte import ByteTokenizer
from tokenizer.interface import SPECIAL_NAMES, Tokenizer, TokenizerError, to_utf8
from tokenizer.storage import load
from tokenizer.vocabulary import Vocabulary

if TYPE_CHECKING:
    from tokenizer.piece import PieceTokenizer
    from tokenizer.streaming import StreamDecoder, StreamEncoder

_LATER = {"PieceTokenizer": "tokenizer.piece", "StreamDecoder": "tokenizer.streaming",
          "StreamEncoder": "tokenizer.streaming"}

__all__ = ["SPECIAL_NAMES", "ByteTokenizer", "PieceTokenizer", "StreamDecoder", "StreamEncoder", "Tokenizer",
           "TokenizerError", "Vocabulary", "load", "to_utf8"]


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
