"""A run's settings as typed dataclasses, one per section; `section.key=value` settings; config.toml and back."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import sys
import typing
from dataclasses import dataclass, field
from pathlib import Path

import tomli_w

from models.config import ModelConfig
from train.errors import UserError
from train.files import write_text
from train.sections import CheckpointConfig, DataConfig, OptimConfig, RunConfig, TokenizerConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LENGTHS = ("steps", "minutes", "tokens")
ALTERNATIVES = {"run": ("sets the length of a run", {"steps": 0, "minutes": 0.0, "tokens": 0}),
                "tokenizer": ("says where the vocabulary comes from", {"path": "", "vocab_size": 0})}


@dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def with_values(self, values: dict[str, object]) -> Config:
        """A copy with `section.key` names set to values of the right type; unknown names are UserErrors.

        Naming one of run.steps, run.minutes, run.tokens takes back the other two, and so with tokenizer.path and
        tokenizer.vocab_size.
        """
        sections: dict[str, dict[str, object]] = {}
        for section, (rule, nothing) in ALTERNATIVES.items():
            named = [f"{section}.{key}" for key in nothing if values.get(f"{section}.{key}")]
            if len(named) > 1:
                raise UserError(f"one of {', '.join(f'{section}.{key}' for key in nothing)} {rule}: got "
                                + " and ".join(f"{name}={values[name]}" for name in named))
            if named:
                sections[section] = dict(nothing)
        for name, value in values.items():
            section, key = _known(name)
            sections.setdefault(section, {})[key] = _check(name, _field_type(section, key), value)
        return dataclasses.replace(self, **{section: _changed(getattr(self, section), changes)
                                            for section, changes in sections.items()})

    def with_settings(self, settings: list[str]) -> Config:
        """A copy with `section.key=value` texts applied, in order; the text is parsed by the field's type."""
        return self.with_values(parse_settings(settings))

    def validated(self) -> Config:
        """Itself, when every rule between the values holds; else a UserError naming the rule and the value got."""
        from train.rules import check

        check(self)
        return self

    def flat(self) -> dict[str, object]:
        """`section.key` -> value of every setting, `section.inner.key` of those in a section of a section."""
        return _flat(dataclasses.asdict(self))

    def to_toml(self) -> str:
        """The text of config.toml: every setting, resolved."""
        return tomli_w.dumps(dataclasses.asdict(self))

    @classmethod
    def from_toml(cls, text: str, name: str = "config.toml") -> Config:
        """The settings that `to_toml` wrote. Sections other than this class's are a UserError."""
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{name} is not TOML: {error}") from None
        sections = {}
        for section, table in tables.items():
            if section not in _SECTIONS or not isinstance(table, dict):
                raise UserError(f"{name}: unknown section {section!r}: known are {', '.join(_SECTIONS)}")
            sections[section] = _section(_SECTIONS[section], section, table)
        return cls(**sections)

    def save(self, path: Path) -> None:
        """Write config.toml whole or not at all."""
        write_text(path, self.to_toml())

    @classmethod
    def load(cls, path: Path) -> Config:
        """Read config.toml; UserError when it is missing or not one of ours."""
        try:
            return cls.from_toml(path.read_text(encoding="utf-8"), str(path))
        except FileNotFoundError:
            raise UserError(f"no run at {path.parent}: {path.name} is missing") from None

    def digest(self) -> str:
        """SHA-256 of the settings' text, hexadecimal."""
        return hashlib.sha256(self.to_toml().encode()).hexdigest()


_SECTIONS: dict[str, type] = {name: kind for name, kind in typing.get_type_hints(Config).items()}


def parse_settings(settings: list[str]) -> dict[str, object]:
    """`section.key=value` texts as a dict of typed values; the last one of a name counts."""
    values: dict[str, object] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip()
        if not equals:
            raise UserError(f"--set takes section.key=value: got {setting!r}")
        section, key = _known(name)
        values[name] = _parse(name, _field_type(section, key), text.strip())
    return values


def _section(kind: type, name: str, table: dict) -> object:
    """A section from its table, which may hold tables of sections within it."""
    types, values = typing.get_type_hints(kind), {}
    for key, value in table.items():
        full = f"{name}.{key}"
        if dataclasses.is_dataclass(types.get(key)):
            if not isinstance(value, dict):
                raise UserError(f"{full} must be a table: got {value!r}")
            values[key] = _section(types[key], full, value)
        else:
            _known(full)
            values[key] = _check(full, types[key], value)
    return kind(**values)


def _changed(section: object, changes: dict[str, object]) -> object:
    """A copy of a section with keys changed, those of sections within it by `inner.key`."""
    own: dict[str, object] = {}
    within: dict[str, dict[str, object]] = {}
    for key, value in changes.items():
        inner, _, rest = key.partition(".")
        if rest:
            within.setdefault(inner, {})[rest] = value
        else:
            own[key] = value
    own |= {inner: _changed(getattr(section, inner), values) for inner, values in within.items()}
    return section.with_(**own) if isinstance(section, ModelConfig) else dataclasses.replace(section, **own)


def _flat(table: dict[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in table.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


@functools.cache
def _types(kind: type) -> dict[str, object]:
    """`key`, or `inner.key`, -> type of every setting of a section."""
    hints, found = typing.get_type_hints(kind), {}
    for item in dataclasses.fields(kind):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint):
            found |= {f"{item.name}.{key}": inner for key, inner in _types(hint).items()}
        else:
            found[item.name] = hint
    return found


def _known(name: str) -> tuple[str, str]:
    section, _, key = name.partition(".")
    if section in _SECTIONS and key in _types(_SECTIONS[section]):
        return section, key
    every = [f"{section}.{key}" for section, kind in _SECTIONS.items() for key in _types(kind)]
    by_key = {item.partition(".")[2]: item for item in reversed(every)}
    close = difflib.get_close_matches(name, every, n=2, cutoff=0.75)
    close = close or [by_key[item] for item in difflib.get_close_matches(key or name, by_key, n=2, cutoff=0.75)]
    hint = f"; did you mean {' or '.join(close)}?" if close else f"; sections are {', '.join(_SECTIONS)}"
    raise UserError(f"unknown setting {name!r}{hint}")


def _field_type(section: str, key: str) -> object:
    return _types(_SECTIONS[section])[key]


def _type_name(kind: object) -> str:
    return kind.__name__ if kind in (int, float, bool, str) else str(kind)


def _parse(name: str, kind: object, text: str) -> object:
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in (int, float):
            return kind(text)
        if kind is str:
            return text
        items = tomllib.loads(f"items = {text}")["items"] if text.startswith("[") else text.split(",")
        if kind == tuple[float, float]:
            first, second = (float(item) for item in items)
            return first, second
        return [str(item).strip() for item in items if str(item).strip()]
    except (ValueError, KeyError):
        raise UserError(f"{name} must be {_type_name(kind)}: got {text!r}") from None


def _check(name: str, kind: object, value: object) -> object:
    if kind == tuple[float, float] and isinstance(value, (list, tuple)) and len(value) == 2:
        return tuple(float(item) for item in value)
    if kind == list[str] and isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return list(value)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind in (int, bool, str) and type(value) is kind:
        return value
    raise UserError(f"{name} must be {_type_name(kind)}: got {value!r}")
