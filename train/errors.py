"""Errors of a training run; `UserError` is the engine's, so that one `except` serves every command."""

from __future__ import annotations

from engine.errors import UserError

__all__ = ["NonFiniteError", "UserError"]


class NonFiniteError(RuntimeError):
    """A loss or gradient is not finite: the message names step, batch and tensor. Commands print it and exit with 1."""
