"""Validation during a run: the mean loss of each source's held-out text, and of the mixture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from engine import Module
from tokenizer import Tokenizer
from train.data import Part
from train.evaluate import Evaluation, evaluate, evaluation_batches
from train.metrics import NATS_PER_BIT
from train.sections import DataConfig
from train.statistics import Statistics


class Validated(NamedTuple):
    """An evaluation at a step.

    Attributes:
        total: of one source, that source's; of several, what the mixture's text would give: the means of the sources'
            losses and bytes per token, weighted as the mixture is.
        sources: by name; empty for one source without a name.
        more: statistics that were asked for.
    """

    step: int
    total: Evaluation
    sources: dict[str, Evaluation]
    more: dict[str, object]

    def row(self) -> dict[str, object]:
        """For metrics.jsonl."""
        result: dict[str, object] = {"val_loss": self.total.loss, "val_bits_per_byte": self.total.bits_per_byte,
                                     "val_perplexity": self.total.perplexity}
        if self.sources:
            result["val_losses"] = {name: found.loss for name, found in self.sources.items()}
            result["val_bits"] = {name: found.bits_per_byte for name, found in self.sources.items()}
        return result | self.more

    def __str__(self) -> str:
        parts = [f"{name} {found.bits_per_byte:.4f}" for name, found in self.sources.items()]
        return (f"loss {self.total.loss:.4f}  bits/byte {self.total.bits_per_byte:.4f}"
                + (f" ({', '.join(parts)})" if parts else ""))


class Validation:
    """Evaluates a model on the same text each time, in rows of the settings' `seq_len`.

    Args:
        parts: held-out text by source.
        weights: of the sources, adding up to 1.
        max_tokens: of all sources together; 0: all there are.
    """

    def __init__(self, model: Module, parts: Mapping[str, Part], weights: Mapping[str, float], tokenizer: Tokenizer,
                 data: DataConfig, max_tokens: int, statistics: Statistics):
        self.model, self.parts, self.weights, self.tokenizer = model, parts, weights, tokenizer
        self.data, self.max_tokens, self.statistics = data, max_tokens, statistics

    def batches(self, name: str):
        """Of one source."""
        most = -(-self.max_tokens // len(self.parts))
        return evaluation_batches(self.parts[name], self.tokenizer, self.data.seq_len, self.data.doc_mask, most)

    def __call__(self, step: int) -> Validated:
        found = {name: evaluate(self.model, self.batches(name)) for name in self.parts}
        more = self.statistics.at_evaluation(batch for name in self.parts for batch in self.batches(name))
        if len(found) == 1:
            (name, total), = found.items()
            return Validated(step, total, found if name else {}, more)
        return Validated(step, mixed(found, self.weights), found, more)


def mixed(found: Mapping[str, Evaluation], weights: Mapping[str, float]) -> Evaluation:
    """What text with so much of each source, by tokens, would give."""
    share = sum(weights[name] for name in found)
    loss = sum(weights[name] * one.loss for name, one in found.items()) / share
    bytes_per_token = sum(weights[name] * one.bytes / max(1, one.tokens) for name, one in found.items()) / share
    return Evaluation(loss, math.exp(min(loss, 700.0)), loss / (NATS_PER_BIT * max(1e-9, bytes_per_token)),
                      sum(one.tokens for one in found.values()), sum(one.bytes for one in found.values()))
