"""Numba, where it is installed: the loops over bytes are compiled, run without the interpreter lock, and are kept.

A compiled function calls compiled functions of its own file only. Machine code is kept under a hash of that file: by
the time of the file alone, which is what Numba goes by, a process that runs an older one would pass on its own.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

try:
    import numba
except ImportError:
    numba = None

AVAILABLE = numba is not None


def compiled(function):
    """Compile a loop over arrays. Without Numba the function is left as Python, which is right but slow."""
    if numba is None:
        return function
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, _cache_folder(function.__code__.co_filename)
    try:
        return numba.njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")(function)
    finally:
        numba.config.CACHE_DIR = before


@functools.cache
def _cache_folder(source: str) -> str:
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        return chosen
    root = os.environ.get("LOAM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loam"
    return str(Path(root) / "tokenizer" / hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16])
