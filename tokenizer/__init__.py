"""Text <-> token ids."""

from tokenizer.byte import ByteTokenizer
from tokenizer.interface import Tokenizer, TokenizerError, to_utf8
from tokenizer.storage import load
from tokenizer.streaming import StreamDecoder

__all__ = ["ByteTokenizer", "StreamDecoder", "Tokenizer", "TokenizerError", "load", "to_utf8"]
