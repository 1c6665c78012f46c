"""What the tables of a model's settings share: the types of values, unknown keys, and values given as text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields

from engine.errors import UserError

_ACCEPTED = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
_READ = {"int": int, "float": float, "bool": {"true": True, "false": False}.__getitem__, "str": str}


def check_types(settings: object, prefix: str) -> None:
    """UserError when a field of a dataclass has a value that is not of its type. An int is a float, a bool no int; a
    type that is not simple goes by its name.

    Args:
        prefix: of a field's name for a person, such as "model.".
    """
    for field in fields(settings):
        value, accepted = getattr(settings, field.name), _ACCEPTED.get(field.type)
        if accepted is None:
            right = type(value).__name__ == field.type
        else:
            right = isinstance(value, accepted) and isinstance(value, bool) <= (field.type == "bool")
        if not right:
            raise UserError(f"{prefix}{field.name} must be {field.type}: got {value!r}")


def check_keys(kind: type, table: dict, called: str) -> None:
    """UserError when a table has a key that is no field of a dataclass.

    Args:
        called: what to call such a key, with {} for it.
    """
    known = [field.name for field in fields(kind)]
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise UserError(f"unknown {called.format(unknown[0])}: known are {', '.join(known)}")


def from_texts(kind: type, texts: Sequence[str], prefix: str, keys: Collection[str], asked: str) -> dict[str, object]:
    """The values in texts such as "model.context.kind=yarn" by field. UserError for a value not of its field's type, or
    a key that is none of `keys`.

    Args:
        asked: what --set takes here, for a person.
    """
    types = {field.name: field.type for field in fields(kind) if field.name in keys}
    found = {}
    for setting in texts:
        name, equals, text = setting.partition("=")
        key = name.strip().removeprefix(prefix)
        if not equals or not name.strip().startswith(prefix) or key not in types:
            raise UserError(f"--set takes {asked}: got {setting!r}")
        try:
            found[key] = _READ[types[key]](text.strip())
        except (ValueError, KeyError):
            raise UserError(f"{prefix}{key} must be {types[key]}: got {text.strip()!r}") from None
    return found
