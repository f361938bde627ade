# SPDX-License-Identifier: AGPL-3.0-or-later
"""Reading values out of Synapse's configuration, with errors that say what to mend and where."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import attrs
from synapse.module_api.errors import ConfigError

from synapse_lb.homeserver import hooks

A = TypeVar("A", bound=attrs.AttrsInstance)
D = TypeVar("D")
T = TypeVar("T")


class Section:
    """One mapping of the configuration, whose keys are taken out one by one.

    Args:
        content: the mapping.
        path: where it stands, for errors.

    Raises:
        ConfigError: it is no mapping, or a key is no text.
    """

    def __init__(self, content: Any, path: Sequence[str]) -> None:
        self.path = tuple(path)
        if not isinstance(content, dict):
            raise ConfigError(f"must be a mapping, not {content!r}", self.path)
        for key in content:
            if not isinstance(key, str):
                raise ConfigError(f"must have texts as its keys, not {key!r}", self.path)
        self._content: dict[str, Any] = dict(content)

    def error(self, key: str, message: str) -> ConfigError:
        """Return the error for one key."""
        return ConfigError(message, (*self.path, key))

    def take(self, key: str, convert: Callable[[Any], T], default: D) -> T | D:
        """Take the value of a key, or the default if it is absent or null.

        Args:
            key: the key.
            convert: returns the wanted value, or raises ``ValueError`` with a text that goes after the key.
            default: for when there is none.
        """
        value = self._content.pop(key, None)
        if value is None:
            return default
        try:
            return convert(value)
        except ValueError as error:
            raise self.error(key, str(error)) from None

    def end(self, known: Collection[str]) -> None:
        """Refuse the keys that nobody took.

        Args:
            known: the keys that there are, for the error's text.
        """
        if self._content:
            key = min(self._content)
            raise self.error(key, f"unknown option {key!r}; known are: {', '.join(sorted(known))}")


def boolean(value: Any) -> bool:
    """Take true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {value!r}")
    return value


def text(value: Any) -> str:
    """Take a text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"must be a text, not {value!r}")
    return value


def texts(value: Any) -> tuple[str, ...]:
    """Take a list of texts."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be a list of texts, not {value!r}")
    return tuple(text(each) for each in value)


def integer(low: int, high: int) -> Callable[[Any], int]:
    """Take an integer from `low` to `high`."""

    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be an integer from {low} to {high}, not {value!r}")
        return value

    return convert


def size(value: Any) -> int:
    """Take a number of bytes, or a text with Synapse's suffixes K, M, G."""
    if isinstance(value, int | str) and not isinstance(value, bool) and value != "":
        try:
            return hooks.Config.parse_size(value)
        except ValueError:
            pass
    raise ValueError(f"must be a number of bytes, or a text like 64K or 1M, not {value!r}")


def number(value: Any) -> float:
    """Take a number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"must be a number, not {value!r}")
    return value


def seconds(value: Any) -> float:
    """Take a number of seconds, or a text with Synapse's suffixes s, m, h, d."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    if isinstance(value, str) and value[-1:] in ("s", "m", "h", "d") and value[:-1].isdigit():
        return hooks.Config.parse_duration(value) / 1000
    raise ValueError(f"must be a number of seconds, or a text like 30s or 5m, not {value!r}")


def fill(section: Section, defaults: A, fields: dict[str, Callable[[Any], Any]]) -> A:
    """Take those of an attrs object's fields that the section sets.

    Args:
        section: the mapping.
        defaults: the object.
        fields: the fields that may be set, and how each is read.

    Returns:
        The object, changed accordingly.

    Raises:
        ConfigError: a value that the object's class refuses, alone or with the others.
    """
    changes: dict[str, Any] = {}
    known = attrs.fields_dict(type(defaults))
    for name, convert in fields.items():
        value = section.take(name, convert, None)
        if value is None:
            continue
        validator = known[name].validator
        try:
            if validator is not None:
                validator(defaults, known[name], value)
        except ValueError as error:
            raise section.error(name, str(error)) from None
        changes[name] = value
    changed: Callable[..., A] = type(defaults)
    try:
        return changed(**{**attrs.asdict(defaults, recurse=False), **changes})
    except ValueError as error:
        raise ConfigError(str(error), section.path) from None
