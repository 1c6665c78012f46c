"""Tokenizers as files: JSON with a format name and a version."""

import json
import os
import tempfile
from pathlib import Path

from tokenizer.interface import Tokenizer, TokenizerError

FORMAT = "loam-tokenizer"
VERSION = 1


def write_json(path: str | os.PathLike[str], content: dict) -> None:
    """Writes format name, version and `content`, whole or not at all."""
    path = Path(path)
    text = json.dumps({"format": FORMAT, "version": VERSION, **content}, ensure_ascii=False, indent=1) + "\n"
    descriptor, temporary = tempfile.mkstemp(prefix=path.name + ".", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer saved at `path`; TokenizerError, naming the file, when it is missing or not understood."""
    from tokenizer.byte import ByteTokenizer

    kinds = {ByteTokenizer.kind: ByteTokenizer}
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise TokenizerError(f"{path}: cannot read the tokenizer file ({error.strerror or error})") from None
    except ValueError as error:
        raise TokenizerError(f"{path}: not a tokenizer file, the JSON is broken ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TokenizerError(f"{path}: not a tokenizer file, its format is not {FORMAT!r}")
    if content.get("version") != VERSION:
        raise TokenizerError(f"{path}: the format version must be {VERSION}, got {content.get('version')!r}")
    if content.get("kind") not in kinds:
        raise TokenizerError(f"{path}: the kind must be one of {sorted(kinds)}, got {content.get('kind')!r}")
    try:
        return kinds[content["kind"]].from_json(content)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None
