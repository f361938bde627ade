# SPDX-License-Identifier: AGPL-3.0-or-later
"""The section ``dispatch`` of a listener: which processes there are, and what goes to which (docs/workers.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import attrs
from attrs import validators

from synapse_lb.homeserver import values
from synapse_lb.homeserver.routes import Route
from synapse_lb.homeserver.values import Section
from synapse_lb.upstream import addresses

_METHODS: Final = ("DELETE", "GET", "PATCH", "POST", "PUT")


@attrs.frozen(kw_only=True)
class DispatchConfig:
    """What a listener passes on to other processes; false if nothing.

    Attributes:
        instances: By name, the base URLs of their HTTP listeners, as `upstream.addresses` makes them.
        routes: Of the admin.
        tls_ca_path: PEM file of the authorities for those with `https:`; None for those that the system trusts.
        timeout: Seconds that an answer may take, beyond what a long poll asks for.
        max_requests: Requests under way; one more is answered with 503.
    """

    instances: Mapping[str, str] = attrs.field(factory=dict)
    routes: tuple[Route, ...] = ()
    tls_ca_path: str | None = None
    timeout: float = attrs.field(default=120.0, validator=validators.gt(0))
    max_requests: int = attrs.field(default=1000, validator=validators.ge(1))

    def __bool__(self) -> bool:
        return bool(self.instances)


def parse_dispatch(listener: Section) -> DispatchConfig:
    """Read the section of a listener.

    Raises:
        ConfigError: what is wrong and where.
    """
    section = Section(listener.take("dispatch", lambda value: value, {}), (*listener.path, "dispatch"))
    instances = section.take("instances", _instances, {})
    entries = section.take("routes", _list, [])
    where = (*section.path, "routes")
    routes = tuple(_route(Section(entry, (*where, str(num)))) for num, entry in enumerate(entries))
    if routes and not instances:
        raise section.error("instances", "is missing: there are routes, but no process that they lead to")
    config = DispatchConfig(instances=instances, routes=routes)
    fields = {
        "tls_ca_path": values.text,
        "timeout": values.seconds,
        "max_requests": values.integer(0, 2**31 - 1),
    }
    config = values.fill(section, config, fields)
    if config.tls_ca_path is not None and not any(url.startswith("https:") for url in instances.values()):
        raise section.error("tls_ca_path", "is for instances with https, of which there are none")
    section.end(("instances", "routes", *fields))
    return config


def _route(section: Section) -> Route:
    path = section.take("path", _pattern, None)
    if path is None:
        raise section.error(
            "path", "is missing: give a regular expression, such as ^/_matrix/client/v3/search$"
        )
    instance = section.take("instance", values.text, None)
    if instance is None:
        raise section.error("instance", "is missing: give the name of the process that serves it")
    route = Route(path, section.take("methods", _methods, None), instance)
    section.end(("path", "methods", "instance"))
    return route


def _instances(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError(f"must be a mapping of names to URLs, not {value!r}")
    return {name: _base_url(name, url) for name, url in value.items()}


def _base_url(name: Any, url: Any) -> str:
    if not isinstance(name, str) or not isinstance(url, str):
        raise ValueError(f"must be a mapping of names to URLs: {name!r} has {url!r}")
    try:
        return addresses.base_url(url)
    except ValueError as error:
        raise ValueError(f"must have for {name!r} the URL of an HTTP listener: {error}") from None


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"must be a list, not {value!r}")
    return value


def _pattern(value: Any) -> re.Pattern[str]:
    try:
        return re.compile(values.text(value))
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None


def _methods(value: Any) -> frozenset[str]:
    methods = values.texts(value)
    unknown = sorted(set(methods) - set(_METHODS))
    if unknown or not methods:
        raise ValueError(f"must be some of {', '.join(_METHODS)}, not {value!r}")
    return frozenset(methods)
