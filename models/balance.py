"""Balance between the experts of a mixture: what is counted in a training step, the losses made of it, and the bias.

With f_i the share of the choices that went to expert i, p_i its mean share of the scores, and E experts, a router's
loss is E sum_i f_i p_i: 1 where all are alike, whatever the number of experts and of choices (arXiv 2101.03961,
equation 4). That of a model is the mean over its routers. f_i is a constant to the gradient. The losses differ in the
tokens that f_i is counted over: those of a micro-batch, of each sequence (arXiv 2412.19437, section 2.1.2), or of the
whole step (arXiv 2501.11873, section 3). Tokens without a target count nothing.

The loss of a whole step is that of one big batch only if f_i is known before the first micro-batch. So `count`
"first_pass" runs all of them once before, without gradients and without the head; "running" costs nothing and takes the
tokens that came so far, which is the same for the last micro-batch alone. A step of one micro-batch needs no first
pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

import kernels
from engine import Op, Tensor, no_grad, ops
from models.config import ModelConfig
from models.router import Router, Routing

IGNORED = -100
SMALLEST_SUM = 1e-20


class Tally:
    """What one pass over a micro-batch counts, in the layers and then in `Balance`.

    Args:
        balance: whose settings hold.
        targets: int64 [B, T]; tokens whose target is -100 count nothing.
        normalizer: number of targets in the whole step; None: of these.
    """

    def __init__(self, balance: Balance, targets: torch.Tensor, normalizer: float | torch.Tensor | None):
        self.balance, self.settings = balance, balance.settings
        with no_grad():
            self._counts = ops.ne(Tensor(targets), IGNORED)
            counting = ops.to(self._counts, balance.dtype)
            if normalizer is None:
                normalizer = ops.clamp(ops.sum(counting), 1.0)
            elif isinstance(normalizer, torch.Tensor):
                normalizer = Tensor(normalizer)
            self._weights = _quotient(counting, normalizer)
        self._found: list[tuple[Tensor, ...]] = []

    def of(self, routing: Routing) -> tuple[Tensor, ...]:
        """The numbers that a router's layer passes on beside its result, so that they are the same under recompute:
        choices of each expert, float64 [sequences, E]; where they are wanted, shares of the scores / the normalizer
        [sequences, E], and the squared log-sum-exps / the normalizer. All tokens are one sequence, but with "sequence".
        """
        rows = len(self._counts) if self.settings.balance == "sequence" else 1
        found = (self._choices(routing.experts, rows),)
        if self.balance.wants_shares:
            found += (self._shares(routing.scores, rows),)
        if self.settings.z_loss:
            peaks = ops.logsumexp(routing.logits)
            found += (ops.sum(self._weights * (peaks * peaks)),)
        return found

    def _choices(self, experts: Tensor, rows: int) -> Tensor:
        n = self.settings.n
        with no_grad():
            counted = ops.where(self._counts.reshape(*self._counts.shape, 1), experts, n)
            parts = counted.reshape(rows, -1)
            found = ops.stack([ops.expert_counts(parts[row], n + 1)[:n] for row in range(rows)])
            return ops.to(found, torch.float64)

    def _shares(self, scores: Tensor, rows: int) -> Tensor:
        n = self.settings.n
        if self.settings.score == "sigmoid":
            scores = scores / (ops.sum(scores, -1, keepdim=True) + SMALLEST_SUM)
        return ops.matmul(self._weights.reshape(rows, 1, -1), scores.reshape(rows, -1, n)).reshape(rows, n)

    def take(self, result: tuple[Tensor, ...]) -> Tensor:
        """Keeps what `of` gave to a layer, and returns the layer's own result."""
        x, *numbers = result
        each = len(numbers) // self.settings.chain
        self._found += [tuple(numbers[start: start + each]) for start in range(0, len(numbers), each)]
        return x

    def counted(self) -> Tensor:
        """Adds the choices to those of the step; a loss of 0."""
        self.balance.add(self._found)
        return Tensor(kernels.zeros((), torch.float32, self._weights.device))

    def beside(self, loss: Tensor) -> Tensor:
        """Counts, and lets the gradients of the auxiliary losses flow beside those of `loss`, whose value stays."""
        if not self.balance.counted_first:
            self.balance.add(self._found)
        if not self.settings.has_loss:
            return loss
        extra = self.balance.loss(self._found)
        return _Beside.apply(loss, ops.to(extra, loss.dtype))


class _Beside(Op):
    """The first of two losses, with the gradient of their sum."""

    exact = True

    def forward(self, loss, extra):
        return loss

    def backward(self, dloss):
        return dloss, dloss


class Balance:
    """What the routers of a model have in common while it is trained.

    `begin_step` and `end_step` stand around an optimizer step; between them come a pass under `first_pass` over all
    micro-batches, if `counted_first` says so, and the passes with gradients. Without them all passes are of one step.

    Args:
        routers: of each layer that has any, those of its steps in order.

    Attributes:
        dtype: of routers.
        counted_first: whether this step's tokens are counted before its passes with gradients.
        counting: whether a pass only counts.
    """

    def __init__(self, config: ModelConfig, routers: Sequence[Sequence[Router]]):
        self.settings, self.layers = config.experts, len(routers)
        self.routers = [router for of_layer in routers for router in of_layer]
        self.dtype = getattr(torch, config.dtype)
        self.wants_loss = self.settings.balance != "none" and self.settings.balance_weight > 0.0
        self.wants_shares = self.wants_loss or self.settings.load == "soft"
        self.counted_first, self.counting = False, False
        self._choices: torch.Tensor | None = None
        self._window = np.zeros((self.layers, self.settings.n))
        self._losses = {"balance_loss": 0.0, "z_loss": 0.0}

    def tally(self, targets: torch.Tensor, normalizer: float | torch.Tensor | None) -> Tally:
        """For one pass; arguments as for `Tally`."""
        return Tally(self, targets, normalizer)

    def counts_first(self, micro_batches: int) -> bool:
        """Whether a step of so many micro-batches begins with a pass that counts."""
        settings = self.settings
        return self.wants_loss and settings.balance == "global" and settings.count == "first_pass" and micro_batches > 1

    def begin_step(self, micro_batches: int) -> None:
        """Forget what was counted of a step."""
        self.counted_first = self.counts_first(micro_batches)
        if self._choices is None:
            device = self.routers[0].weight.device
            self._choices, self._loads = (kernels.zeros((len(self.routers), self.settings.n), torch.float64, device)
                                          for _ in range(2))
            self._values = {name: kernels.zeros((1,), torch.float64, device) for name in self._losses}
        for buffer in (self._choices, self._loads, *self._values.values()):
            buffer.zero_()

    @contextlib.contextmanager
    def first_pass(self) -> Iterator[None]:
        """Within this context a model's loss counts and does nothing else."""
        self.counting = True
        try:
            with no_grad():
                yield
        finally:
            self.counting = False

    def add(self, found: Sequence[tuple[Tensor, ...]]) -> None:
        """Add what the routers counted in a pass to the step's."""
        if self._choices is None:
            self.begin_step(1)
        soft = self.settings.load == "soft"
        with no_grad():
            for place, numbers in enumerate(found):
                choices = ops.sum(numbers[0], 0)
                loads = ops.to(ops.sum(numbers[1], 0), torch.float64) if soft else choices
                kernels.elementwise.accumulate(self._choices[place], choices.data)
                kernels.elementwise.accumulate(self._loads[place], loads.data)

    def loss(self, found: Sequence[tuple[Tensor, ...]]) -> Tensor:
        """The auxiliary losses of a micro-batch, weighted and with its share of the step."""
        settings, total = self.settings, None
        for place, numbers in enumerate(found):
            parts = []
            if self.wants_loss:
                shares = self._shares_of_choices(place, numbers)
                parts.append(("balance_loss", ops.sum(shares * numbers[1]), settings.n * settings.balance_weight))
            if settings.z_loss:
                parts.append(("z_loss", numbers[-1], settings.z_loss))
            for name, value, weight in parts:
                self._note(name, value, settings.n if name == "balance_loss" else 1)
                value = value * (weight / len(found))
                total = value if total is None else total + value
        return total

    def _shares_of_choices(self, place: int, numbers: tuple[Tensor, ...]) -> Tensor:
        """f, [sequences, E] or [E]."""
        with no_grad():
            if self.settings.balance == "global":
                loads = Tensor(self._loads[place])
            else:
                loads = ops.to(numbers[1 if self.settings.load == "soft" else 0], torch.float64)
            return ops.to(loads / ops.clamp(ops.sum(loads, -1, keepdim=True), SMALLEST_SUM), self.dtype)

    def _note(self, name: str, value: Tensor, factor: int) -> None:
        with no_grad():
            mean = ops.to(value, torch.float64).reshape(1) * (factor / len(self.routers))
        kernels.elementwise.accumulate(self._values[name], mean.data)

    def end_step(self) -> None:
        """After the weights were moved: the biases follow, and the choices join those since the last `row`."""
        if self.settings.bias_rate:
            for router, loads in zip(self.routers, self._loads):
                _move_bias(router.bias.data, Tensor(loads), self.settings.bias_rate)
        choices = Tensor(self._choices).numpy().reshape(self.layers, -1, self.settings.n)
        self._window += choices.sum(axis=1)
        self._losses = {name: float(value) for name, value in self._values.items()}

    def row(self) -> dict[str, object]:
        """Of the steps since the last call, by layer with experts: `load`, choices of each expert, those of a chain's
        steps together; `max_vio`, max_i load_i / mean - 1 (arXiv 2408.15664, equation 4); `entropy` of the load in
        nats, ln E at most; `dead`, experts without a token. And of the last step, mean over routers: the unweighted
        losses.
        """
        window, self._window = self._window, np.zeros_like(self._window)
        totals = window.sum(axis=1)
        shares = window / np.maximum(totals, 1.0)[:, None]
        logs = np.log(np.where(shares > 0, shares, 1.0))
        found = {"load": window.astype(np.int64).tolist(),
                 "max_vio": [float(top) for top in np.where(totals > 0, shares.max(axis=1) * window.shape[1] - 1, 0.0)],
                 "entropy": [float(nats) for nats in -(shares * logs).sum(axis=1)],
                 "dead": np.count_nonzero(window == 0, axis=1).tolist()}
        wanted = {"balance_loss": self.wants_loss, "z_loss": self.settings.z_loss > 0}
        return found | {name: value for name, value in self._losses.items() if wanted[name]}

    def state(self) -> dict[str, object]:
        """What a resumed run needs for its next `row`; JSON can hold it. Biases are the model's."""
        return {"choices": self._window.tolist(), "losses": dict(self._losses)}

    def load_state(self, state: dict | None) -> None:
        """Take over what `state` gave; None: start anew."""
        if state is None:
            state = {"choices": np.zeros_like(self._window), "losses": dict.fromkeys(self._losses, 0.0)}
        self._window, self._losses = np.array(state["choices"], dtype=np.float64), dict(state["losses"])


def _quotient(a: Tensor, b: Tensor | float) -> Tensor:
    """a / b in the dtype of a, every digit of it: 1 / the normalizer weighs all tokens."""
    if not isinstance(b, Tensor):
        b = Tensor(torch.full((), float(b), dtype=a.dtype, device=a.device))
    return Tensor(kernels.elementwise.apply("div", a.data, ops.to(b, a.dtype).data))


def _move_bias(bias: torch.Tensor, loads: Tensor, rate: float) -> None:
    """b_i += rate sign(mean load - load_i) (arXiv 2408.15664, algorithm 1): no step is larger, and there is no division
    that could give a NaN."""
    with no_grad():
        mean = ops.mean(loads)
        direction = ops.to(ops.gt(mean, loads), bias.dtype) - ops.to(ops.lt(mean, loads), bias.dtype)
        kernels.elementwise.accumulate(bias, (direction * rate).data)
