"""Which documents are held out for validation: it follows from their text, whatever the vocabulary."""

from __future__ import annotations

import hashlib

import numpy as np

from engine.errors import UserError


def check_fraction(fraction: float) -> None:
    """UserError for a share of documents that cannot be held out."""
    if not 0 <= fraction < 1:
        raise UserError(f"the validation fraction must be at least 0 and below 1, got {fraction}")


def text_hash(data: bytes) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def hash_limit(fraction: float) -> int:
    """Texts whose hash is below this are held out."""
    return int(fraction * 2.0**64)


def held_out(hashes: np.ndarray, text_bytes: np.ndarray, fraction: float) -> np.ndarray:
    """bool [documents], at least two of them: True for validation.

    A document is held out when its hash falls below `fraction` of all hashes: nothing else plays a part, and equal
    documents are on the same side. Where that leaves a part empty or holds out more than half of the text (few
    documents, very unequal ones), the one document whose length comes closest to `fraction` of all is held out instead.

    Args:
        hashes: uint64 [documents], of the texts.
        text_bytes: int64 [documents].
    """
    chosen = hashes < np.uint64(hash_limit(fraction))
    sizes = text_bytes + 1  # a document's end counts, too
    total = int(sizes.sum())
    if chosen.any() and not chosen.all() and sizes[chosen].sum() * 2 <= total:
        return chosen
    # Ties are broken by hash, so that the order of the files plays no part; equal documents go together.
    nearest = np.lexsort((hashes, np.abs(sizes - fraction * total)))[0]
    chosen = hashes == hashes[nearest]
    if chosen.all():
        chosen[:] = False
        chosen[-1] = True
    return chosen


def kept_bytes(text_bytes: int, fraction: float) -> int:
    """How many bytes of a corpus of one document are for training; the rest, its end, is held out."""
    return int((1 - fraction) * text_bytes)
