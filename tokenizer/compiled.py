"""Numba, where it is installed: the loops over bytes are compiled, run without the interpreter lock, and are kept.

A compiled function calls compiled functions of its own file only: Numba's cache watches no other.
"""

from __future__ import annotations

try:
    import numba
except ImportError:
    numba = None

AVAILABLE = numba is not None


def compiled(function):
    """Compile a loop over arrays. Without Numba the function is left as Python, which is right but slow."""
    if numba is None:
        return function
    return numba.njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")(function)
