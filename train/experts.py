"""What a run keeps of the balance of its model's experts; nothing where a model has none."""

from __future__ import annotations

from engine import Module
from models.balance import Balance


def balance_of(model: Module) -> Balance | None:
    """What balances the experts of a model that has some."""
    return getattr(model, "balance", None)


def row(model: Module) -> dict[str, object]:
    """For metrics.jsonl: `experts`, see `Balance.row`."""
    balance = balance_of(model)
    return {} if balance is None else {"experts": balance.row()}


def state(model: Module) -> dict[str, object]:
    """For state.json; the biases are among the model's weights."""
    balance = balance_of(model)
    return {} if balance is None else {"experts": balance.state()}


def load_state(model: Module, saved: dict) -> None:
    """Take over what a checkpoint's state has of it."""
    balance = balance_of(model)
    if balance is not None:
        balance.load_state(saved.get("experts"))
