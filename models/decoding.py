"""Token by token: what keeps a text's keys and values, and draws the next id. On the CPU, and on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch

import kernels
from engine import no_grad
from models.cache import DeviceCache, KVCache
from models.decoder import Decoder
from models.sampling import NOT_FINITE, Sampling, draw, probabilities


def decoding(model: Decoder, sampling: Sampling, seed: int, n_ids: int, use_cache: bool):
    """What draws the ids of a text: a `DeviceDecoding` for a model on a GPU, else a `HostDecoding`."""
    kind = DeviceDecoding if use_cache and model.device.type != "cpu" else HostDecoding
    return kind(model, sampling, seed, n_ids, use_cache)


class HostDecoding:
    """Draws in float64 on the CPU, so that a seed gives the same text with and without a cache.

    Args:
        n_ids: ids from here on are never drawn.
        use_cache: keep keys and values; otherwise every id takes a whole pass over what the model sees.
    """

    def __init__(self, model: Decoder, sampling: Sampling, seed: int, n_ids: int, use_cache: bool = True):
        self.model, self.sampling, self.n_ids = model, sampling, n_ids
        self.rng = np.random.default_rng(seed)
        self.cache = KVCache(model.config) if use_cache else None
        self.start = 0

    def next(self, ids: Sequence[int], start: int) -> int:
        """The id after ids[start:]; `ids` begins with those of the last call."""
        logits = next_logits(self.model, ids[start:]) if self.cache is None else self._cached_logits(ids, start)
        return draw(probabilities(logits[: self.n_ids], ids[start:], self.sampling), self.rng)

    def _cached_logits(self, ids: Sequence[int], start: int) -> np.ndarray:
        if start != self.start:
            self.start, self.cache.length = start, 0
        return self.model.step(ids[start + self.cache.length :], self.cache)


def next_logits(model: Decoder, ids: Sequence[int]) -> np.ndarray:
    """Logits [vocab_size] after `ids`, by a whole forward pass; at least float32."""
    with no_grad():
        logits = model(torch.tensor([list(ids)], dtype=torch.int64, device=model.device)).data[0, -1]
    return (logits if logits.dtype.itemsize >= 4 else logits.to(torch.float32)).cpu().numpy()


class DeviceDecoding:
    """Cache, logits and the draw stay on the GPU; one id comes back. Arguments as for `HostDecoding`."""

    def __init__(self, model: Decoder, sampling: Sampling, seed: int, n_ids: int, use_cache: bool = True):
        self.model, self.settings, self.seed, self.n_ids = model, asdict(sampling), seed, n_ids
        self.cache = DeviceCache(model.config, model.output.dtype, model.device)
        self.start = 0

    def next(self, ids: Sequence[int], start: int) -> int:
        """The id after ids[start:]; `ids` begins with those of the last call."""
        if start != self.start:
            self.start, self.cache.length = start, 0
        new = self._on_device(ids[start + self.cache.length :])
        with no_grad():
            logits = self.model.decode(new, self.cache).data[:, : self.n_ids]
        seen = self._on_device(ids[start:]) if self.settings["repetition_penalty"] != 1.0 else None
        drawn = int(kernels.sampling.sample(logits, self.seed, len(ids), seen, **self.settings))
        if drawn < 0:
            raise FloatingPointError(NOT_FINITE)
        return drawn

    def _on_device(self, ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor([list(ids)], dtype=torch.int64, device=self.model.device)
