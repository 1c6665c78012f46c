"""Statistics worth watching that cost something: off unless `run.statistics` names them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

import kernels
from engine import Module, Op, autograd, no_grad
from train.attention_entropy import mean_entropy
from train.data.batches import IGNORED, Batch
from train.errors import UserError
from train.optim.router import group_of

if TYPE_CHECKING:
    from train.optim import Optimizer

AT_EVALUATION = ("accuracy", "confidence", "attention_entropy")
NAMES = ("accuracy", "confidence", "noise_scale", "update_ratio", "attention_entropy")
NOISE_DECAY = 0.99
LOGITS_ELEMENTS = 1 << 22
ENTROPY_TOKENS = 1024


def check_names(names: Sequence[str]) -> None:
    """UserError for a name that is not one of `NAMES`."""
    for name in names:
        if name not in NAMES:
            raise UserError(f"run.statistics must be among {', '.join(NAMES)}: got {name!r}")


class Statistics:
    """Measures what is named, where the loop and the session call it; does nothing for the rest.

    accuracy: share of the counted targets that are the likeliest id (of equals the lowest).
    confidence: mean probability that the model gives the target. Both of a whole evaluation, by a second forward pass.
    attention_entropy: by layer, mean over heads and queries of -sum_j p_j ln p_j in nats, p being a query's weights
        over the keys it sees (arXiv 2303.06296, section 3); of an evaluation's first rows, 1,024 tokens or one row.
    noise_scale: B_simple = tr(Sigma) / |G|^2 in predicted tokens (McCandlish et al. 2018, arXiv 1812.06162, appendix
        A.1). With the gradient norms of a step's first micro-batch (b tokens) and of its batch (B tokens)
            |G|^2 = (B |G_B|^2 - b |G_b|^2) / (B - b)     and     tr(Sigma) = (|G_b|^2 - |G_B|^2) / (1 / b - 1 / B)
        are estimated without bias at each step; both are averaged over steps with decay 0.99 before they are divided.
        Left out while a step has one micro-batch, or the estimate of |G|^2 is not positive.
    update_ratio: by group of parameters, |w' - w| / |w| for the weights before (w) and after (w') a logged step, weight
        decay included; a group whose weights are all 0 is left out. Keeps a copy of the weights.

    Args:
        names: of `NAMES`.

    Attributes:
        due: whether the step that comes is logged; the session sets it.
    """

    def __init__(self, names: Sequence[str], model: Module, optimizer: Optimizer):
        check_names(names)
        self.names, self.model, self.optimizer, self.due = frozenset(names), model, optimizer, False
        self._small, self._small_tokens = None, 0
        self._noise = {"gradient": 0.0, "variance": 0.0}
        self._before: torch.Tensor | None = None
        self._copied = False
        self._ratios: dict[str, float] = {}

    @property
    def wants_micro_norm(self) -> bool:
        """Whether `after_micro` has something to do."""
        return "noise_scale" in self.names

    def before_update(self) -> None:
        """Before a step's first micro-batch."""
        self._small_tokens, self._ratios = 0, {}
        self._copied = self.due and "update_ratio" in self.names
        if self._copied:
            weights = self.optimizer.arena.weights
            if self._before is None:
                self._before = kernels.empty_like(weights)
            self._before.copy_(weights)

    def after_micro(self, predicted: int) -> None:
        """After the backward pass of a micro-batch; the step's first is the one that counts. Waits for no GPU.

        Args:
            predicted: targets of the micro-batch that count.
        """
        if self.wants_micro_norm and not self._small_tokens and predicted:
            grads = self.optimizer.arena.grads
            if self._small is None:
                self._small = kernels.zeros((1,), torch.float64, grads.device)
            kernels.optimizer.norm(grads, out=self._small)
            self._small_tokens = predicted

    def after_update(self, predicted: int) -> None:
        """After the step's update.

        Args:
            predicted: targets of the whole batch that count.
        """
        if self.wants_micro_norm and 0 < self._small_tokens < predicted:
            # The arena held the micro-batch's summed loss / the whole batch's count.
            small = float(self._small) * predicted / self._small_tokens
            self._add_noise(small**2, self.optimizer.last_norm**2, self._small_tokens, predicted)
        if self._copied:
            self._ratios = self._update_ratios()

    def _add_noise(self, small: float, big: float, b: int, batch: int) -> None:
        gradient, variance = (batch * big - b * small) / (batch - b), (small - big) / (1 / b - 1 / batch)
        if math.isfinite(gradient) and math.isfinite(variance):
            kept = self._noise
            kept["gradient"] += (1 - NOISE_DECAY) * (gradient - kept["gradient"])
            kept["variance"] += (1 - NOISE_DECAY) * (variance - kept["variance"])

    def _update_ratios(self) -> dict[str, float]:
        arena = self.optimizer.arena
        moved, size = defaultdict(float), defaultdict(float)
        for name, part in arena.slices.items():
            before, group = self._before[part], group_of(name)
            change = kernels.elementwise.apply("sub", arena.weights[part], before)
            moved[group] += kernels.optimizer.norm(change) ** 2
            size[group] += kernels.optimizer.norm(before) ** 2
        return {group: math.sqrt(moved[group] / size[group]) for group in moved if size[group] > 0}

    def row(self) -> dict[str, object]:
        """What the steps since gave, for their row of metrics.jsonl."""
        found: dict[str, object] = {}
        if self._noise["gradient"] > 0:
            found["noise_scale"] = self._noise["variance"] / self._noise["gradient"]
        if self._ratios:
            found["update_ratio"] = self._ratios
        return found

    def state(self) -> dict[str, float]:
        """What a resumed run needs to go on as if it had not stopped; JSON can hold it."""
        return dict(self._noise)

    def load_state(self, state: dict[str, float] | None) -> None:
        """Take over what `state` gave; None: start anew."""
        self._noise.update(state or dict.fromkeys(self._noise, 0.0))

    def at_evaluation(self, batches: Iterable[Batch]) -> dict[str, object]:
        """Accuracy, confidence and attention entropy, those of them that are named; reads no batch for none."""
        wanted = self.names.intersection(AT_EVALUATION)
        if not wanted:
            return {}
        was_training = self.model.training
        self.model.eval()
        try:
            with no_grad():
                return self._evaluated(batches, wanted)
        finally:
            self.model.train(was_training)

    def _evaluated(self, batches: Iterable[Batch], wanted: frozenset[str]) -> dict[str, object]:
        found: dict[str, object] = {}
        right, probability, counted = 0, 0.0, 0
        for batch in batches:
            if "attention_entropy" in wanted and "attention_entropy" not in found:
                found["attention_entropy"] = self._entropies(batch)
                if len(wanted) == 1:
                    return found
            hits, probabilities = target_probabilities(self.model, batch)
            right, probability = right + int(hits.sum()), probability + float(probabilities.sum())
            counted += len(hits)
        if counted:
            both = {"accuracy": right / counted, "confidence": probability / counted}
            found |= {name: value for name, value in both.items() if name in wanted}
        return found

    def _entropies(self, batch: Batch) -> dict[str, float]:
        rows = slice(0, max(1, ENTROPY_TOKENS // batch.ids.shape[1]))
        found: list[float] = []
        before = autograd.observer

        def watch(op: Op, phase: str, run):
            result = run() if before is None else before(op, phase, run)
            entropy = mean_entropy(op)
            if entropy is not None:
                found.append(entropy)
            return result

        autograd.observer = watch
        try:
            _hidden(self.model, batch, rows)
        finally:
            autograd.observer = before
        return {f"layers.{layer}": entropy for layer, entropy in enumerate(found)}


def target_probabilities(model: Module, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """For each target that counts whether it is the likeliest id, and its probability, float64. A chunk of logits
    exists at a time."""
    hidden = _hidden(model, batch, slice(None))
    weight = model.output.data
    rows, targets = hidden.reshape(-1, hidden.shape[-1]), torch.as_tensor(batch.targets).reshape(-1).to(hidden.device)
    step = max(1, LOGITS_ELEMENTS // len(weight))
    hits, losses = [], []
    for first in range(0, len(rows), step):
        part = targets[first: first + step]
        logits = kernels.linear.forward(rows[first: first + step], weight)
        hits.append(kernels.reduce.argmax(logits).cpu().numpy() == part.cpu().numpy())
        loss = kernels.empty((len(part),), torch.promote_types(logits.dtype, torch.float32), logits.device)
        kernels.cross_entropy.in_place(logits, part, loss, 1.0, with_gradient=False)
        losses.append(loss.cpu().numpy())
    counts = batch.targets.reshape(-1) != IGNORED
    return np.concatenate(hits)[counts], np.exp(-np.concatenate(losses)[counts].astype(np.float64))


def _hidden(model: Module, batch: Batch, rows: slice) -> torch.Tensor:
    ids, doc_start = (None if array is None else torch.as_tensor(array[rows]).to(model.device)
                      for array in (batch.ids, batch.doc_start))
    return model.hidden(ids, doc_start).data
