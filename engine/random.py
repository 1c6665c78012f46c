"""Counter-based randomness: a random number depends on what it is for, not on what was drawn before it.

Dropout asks for a stream per call. Its key mixes the run's seed with the number of the call in this forward pass,
its counter starts at the absolute position of the batch's first token. So the mask of a token is the same however
the batch is cut into micro-batches, and after a resume.
"""

from __future__ import annotations

import contextlib

import torch

_MASK = (1 << 64) - 1
_seed = 0
_first_token: int | torch.Tensor = 0
_site = 0


def set_seed(seed: int) -> None:
    """The run's seed: any whole number."""
    global _seed
    _seed = seed & _MASK
    set_position(0)


def set_position(first_token: int | torch.Tensor) -> None:
    """Start of a forward pass whose first token is number `first_token` of the whole training.

    On a GPU that may be an int64 tensor with one element there, so that a captured pass draws anew each time.
    """
    global _first_token, _site
    _first_token, _site = first_token, 0


def mix(*numbers: int) -> int:
    """A 64-bit key from whole numbers (the finaliser of splitmix64, applied after each)."""
    key = 0
    for number in numbers:
        key = (key ^ (number & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        key = (key ^ key >> 27) * 0x94D049BB133111EB & _MASK
        key ^= key >> 31
    return key


def next_stream(elements_per_token: int) -> tuple[int, int | torch.Tensor, int]:
    """Seed, offset and stride (see kernels.dropout) for a call that draws `elements_per_token` numbers for each token
    in order."""
    global _site
    _site += 1
    return mix(_seed, _site), _first_token, elements_per_token


def state() -> tuple[int | torch.Tensor, int]:
    """Position and number of streams given out since, for `restored`."""
    return _first_token, _site


@contextlib.contextmanager
def restored(saved: tuple[int | torch.Tensor, int]):
    """Within this context streams are given out as they were after `saved`; afterwards as before."""
    global _first_token, _site
    before = state()
    _first_token, _site = saved
    try:
        yield
    finally:
        _first_token, _site = before
