"""A pseudo-random order of 0..n-1 that is computed, not stored."""

from __future__ import annotations

import hashlib

import numpy as np

ROUNDS = 8
MIX = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def permutation_key(seed: int, epoch: int, purpose: str) -> np.ndarray:
    """uint64 [ROUNDS]: round keys, independent for every seed, epoch and purpose."""
    text = f"{purpose}/{seed}/{epoch}".encode()
    return np.frombuffer(hashlib.blake2b(text, digest_size=8 * ROUNDS).digest(), dtype="<u8")


def permute(index: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """Where a bijection of 0..n-1 sends each of `index`.

    A Feistel network over the smallest power of two that holds n, walked on while it leaves 0..n-1 (Black and
    Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, section 4 and 5).

    Args:
        index: integers in 0..n-1, any shape.
        key: uint64 [rounds], from `permutation_key`.

    Returns:
        int64, the shape of `index`.
    """
    bits = max(n - 1, 0).bit_length()
    out = _feistel(np.asarray(index).astype(np.uint64).reshape(-1), bits, key)
    while len(outside := np.flatnonzero(out >= n)):
        out[outside] = _feistel(out[outside], bits, key)
    return out.astype(np.int64).reshape(np.shape(index))


def _feistel(value: np.ndarray, bits: int, key: np.ndarray) -> np.ndarray:
    low_bits = np.uint64(bits - bits // 2)
    low_mask = np.uint64((1 << int(low_bits)) - 1)
    high_mask = np.uint64((1 << bits // 2) - 1)
    low, high = value & low_mask, value >> low_bits
    for i in range(0, len(key), 2):
        low = low ^ (_mix(high, key[i]) & low_mask)
        high = high ^ (_mix(low, key[i + 1]) & high_mask)
    return (high << low_bits) | low


def _mix(value: np.ndarray, key: np.uint64) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014)."""
    value = value + key
    value = (value ^ (value >> np.uint64(30))) * MIX[0]
    value = (value ^ (value >> np.uint64(27))) * MIX[1]
    return value ^ (value >> np.uint64(31))
