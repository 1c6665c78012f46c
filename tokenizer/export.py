"""A vocabulary for Hugging Face's `tokenizers`: `python -m tokenizer.export DIR --out tokenizer.json`.

The export is a byte-level Unigram model: the pre-tokenizer turns each byte into one character, so pieces that are not
UTF-8, hold spaces or newlines are ordinary words of the model, and nothing is unknown. Its scores are our costs,
negative, as whole numbers in 1/65,536 nats: their sums in float64 are exact (as are ours), and among equal sums both
keep the longest last piece, so ids are equal, ties included. (In nats they would not be: the decimal fractions that the
file would need are not all read back as the number that was written.)

What is not the same:

- `tokenizers` finds the names of special tokens in text and gives their ids, which we never do. Set its
  `encode_special_tokens = True`, or `split_special_tokens=True` in transformers, for text that users wrote.
- It takes str only, and lone surrogates are an error there; here they become U+FFFD.
- A normalizer "nfc" or "nfkc" follows the Unicode version of either library.
- Its scores are not nats: nothing but the best path may be made of them (no sampling).
- Its regular expressions are another library's (Oniguruma), so a pattern of the user's own is refused. The named ones
  match the same text there, as far as the two libraries' versions of Unicode agree.

With transformers: `PreTrainedTokenizerFast(tokenizer_file="tokenizer.json", eos_token="<|end|>", pad_token="<|pad|>")`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tokenizer.alphabet import to_characters
from tokenizer.command import Parser, run_command
from tokenizer.interface import TokenizerError
from tokenizer.patterns import NAMED, PREFIX, is_pattern
from tokenizer.storage import load, write_whole
from tokenizer.vocabulary import BYTES, Vocabulary

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def tokenizer_json(vocabulary: Vocabulary) -> dict:
    """The content of Hugging Face's tokenizer.json: same ids, special tokens as added tokens."""
    scores = zip(vocabulary.pieces, vocabulary.costs.tolist(), strict=True)
    special = [{"id": len(vocabulary) + i, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True} for i, name in enumerate(vocabulary.special)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": vocabulary.normalizer.upper()} if vocabulary.normalizer else None,
        "pre_tokenizer": _pre_tokenizer(vocabulary.boundaries),
        "post_processor": None,
        "decoder": _BYTE_LEVEL,
        "model": {"type": "Unigram", "unk_id": None, "byte_fallback": False,
                  "vocab": [[to_characters(piece), -cost] for piece, cost in scores]},
    }


def split_by(expression: str) -> dict:
    """The pre-tokenizer that cuts at the matches of a regular expression, and then turns bytes into characters."""
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _BYTE_LEVEL]}


def _pre_tokenizer(boundaries: str) -> dict:
    if not is_pattern(boundaries):
        return _BYTE_LEVEL
    expression = boundaries[len(PREFIX) :]
    if expression not in NAMED.values():
        raise TokenizerError(f"only the patterns {', '.join(NAMED)} can be exported, since the other library's "
                             f"expressions may match other text: got {expression!r}")
    return split_by(expression)


def export(vocabulary: Vocabulary, path: str | os.PathLike[str]) -> None:
    """Writes tokenizer.json, whole or not at all.

    Raises:
        TokenizerError: the name of a special token is also a piece; `tokenizers` would give both the piece's id. The
            vocabulary has a pattern of the user's own.
    """
    if taken := {to_characters(piece) for piece in vocabulary.pieces}.intersection(vocabulary.special):
        raise TokenizerError(f"the names of special tokens must not be pieces too, got {sorted(taken)}")
    text = json.dumps(tokenizer_json(vocabulary), ensure_ascii=False, separators=(",", ":"))
    write_whole(Path(path), text.encode())


def main() -> None:
    parser = Parser(prog="python -m tokenizer.export",
                    description="Writes a tokenizer.json that Hugging Face's tokenizers loads, with the same ids.")
    parser.add_argument("tokenizer", metavar="DIR", help="a trained tokenizer, the folder or its vocabulary.json")
    parser.add_argument("--out", required=True, metavar="FILE", help="the tokenizer.json to write")
    arguments = parser.parse_args()
    tokenizer = load(arguments.tokenizer)
    if Path(arguments.out).exists():
        raise TokenizerError(f"--out must be a new file: {arguments.out} exists")
    export(getattr(tokenizer, "vocabulary", None) or bytes_only(), arguments.out)
    print(f"{arguments.out}: {tokenizer.vocab_size:,} ids")


def bytes_only() -> Vocabulary:
    """The byte tokenizer as a vocabulary of 256 pieces."""
    return Vocabulary([bytes([byte]) for byte in range(BYTES)], [0] * BYTES, [1] * BYTES)


if __name__ == "__main__":
    run_command(main)
