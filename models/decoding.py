"""Token by token: what keeps a text's keys and values, and draws the next id. On the CPU, and on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch

import kernels
from engine import UserError, no_grad
from models import parts
from models.cache import CACHES, DeviceCache
from models.decoder import Decoder
from models.sampling import NOT_FINITE, Sampling, draw, probabilities

NO_CACHE = "none"


def decoding(model: Decoder, sampling: Sampling, seed: int, n_ids: int, cache: str):
    """What draws the ids of a text: a `DeviceDecoding` for a model on a GPU with a cache of keys, else a
    `HostDecoding`.

    Raises:
        UserError: the model's attention cannot decode from this cache.
    """
    known = (*parts.ATTENTION[model.config.attention].caches, NO_CACHE)
    if cache not in known:
        raise UserError(f"the cache must be one of {', '.join(known)} for attention {model.config.attention}: "
                        f"got {cache}")
    kind = DeviceDecoding if cache == "keys" and model.device.type != "cpu" else HostDecoding
    return kind(model, sampling, seed, n_ids, cache)


class HostDecoding:
    """Draws in float64 on the CPU, so that a seed gives the same text with and without a cache.

    Args:
        n_ids: ids from here on are never drawn.
        cache: a key of CACHES, or "none": every id takes a whole pass over what the model sees.
    """

    def __init__(self, model: Decoder, sampling: Sampling, seed: int, n_ids: int, cache: str = "keys"):
        self.model, self.sampling, self.n_ids = model, sampling, n_ids
        self.rng = np.random.default_rng(seed)
        self.cache = None if cache == NO_CACHE else CACHES[cache](model.config)
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

    def __init__(self, model: Decoder, sampling: Sampling, seed: int, n_ids: int, cache: str = "keys"):
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
