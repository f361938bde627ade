# SPDX-License-Identifier: AGPL-3.0-or-later
"""How a map with given keys is written: with a template, or else with its keys in their order."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import attrs

from synapse_lb.msc3079 import cbor
from synapse_lb.msc3079.x1.keys import KEY_TO_INTEGER
from synapse_lb.msc3079.x1.templates import NO_DEFAULT, TEMPLATES, Template

_UNSORTED: Final = 1 << 16


@attrs.frozen
class Form:
    """One template that fits.

    Attributes:
        head: The tag.
        fields: Key and default of each value, in order; the key is None where the map has none.
    """

    head: bytes
    fields: tuple[tuple[str | None, Any], ...]


@attrs.frozen
class Plan:
    """How a map is written.

    Attributes:
        forms: Templates, the best one first if nothing equals a default.
        keys: Its keys in the order in which a map without a template has them.
        size: Bytes of the head and the keys without a template.
    """

    forms: tuple[Form, ...]
    keys: tuple[str, ...]
    size: int


def _key_size(key: str) -> int:
    number = KEY_TO_INTEGER.get(key)
    if number is None:
        return 1 + len(key)
    return 1 if -24 <= number < 24 else 2


def key_order(key: str) -> tuple[int, str]:
    """Keys of the table by their first number, then the others as texts."""
    return _ORDER.get(key, _UNSORTED), key


_ORDER: Final = {key: index for index, key in enumerate(KEY_TO_INTEGER)}


def _by_key() -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for tag, template in enumerate(TEMPLATES):
        for field in template:
            found.setdefault(field.key, []).append(tag)
    return found


_BY_KEY: Final = _by_key()


def _fits(template: Template, keys: frozenset[str]) -> bool:
    return keys.issubset({field.key for field in template}) and all(
        field.default is NO_DEFAULT or field.key in keys for field in template
    )


PLANS_KEPT: Final = 1024
"""Plans that are kept between bodies, of maps all of whose keys are in the table; the least recently used goes."""


def plan(keys: tuple[str, ...]) -> Plan:
    """How a map with these keys is written."""
    return _kept_plan(keys) if all(key in KEY_TO_INTEGER for key in keys) else _make_plan(keys)


def _make_plan(keys: tuple[str, ...]) -> Plan:
    size = 1 + sum(map(_key_size, keys))
    wanted = frozenset(keys)
    forms: list[tuple[int, Form]] = []
    for tag in _BY_KEY.get(keys[0], ()) if keys else ():
        template = TEMPLATES[tag]
        if not _fits(template, wanted):
            continue
        fields = [(field.key if field.key in wanted else None, field.default) for field in template]
        while fields[-1][0] is None:
            fields.pop()
        surplus = 2 + sum(key is None for key, _ in fields)
        if surplus <= size:
            forms.append((surplus, Form(cbor.head(cbor.TAG, tag), tuple(fields))))
    forms.sort(key=lambda entry: entry[0])
    return Plan(tuple(form for _, form in forms), tuple(sorted(keys, key=key_order)), size)


_kept_plan: Final = lru_cache(PLANS_KEPT)(_make_plan)


def is_default(value: Any, default: Any) -> bool:
    """Whether a value is a default, in its types, too: 0 is not False."""
    kind = type(default)
    if type(value) is not kind or value != default:
        return False
    if kind is dict:
        return all(is_default(value[key], inner) for key, inner in default.items())
    if kind is list:
        return all(map(is_default, value, default))
    return True
