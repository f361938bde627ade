# SPDX-License-Identifier: AGPL-3.0-or-later
"""``/_synapse/admin/v1/lowbandwidth``: who is connected and what is observed, for server admins (docs/admin.md).

Synapse serves its admin API with one resource that has no children, so that a module's own web resource below it would
never be asked. What is here is registered with that resource, wherever Synapse makes one: in the main process and in
workers that serve clients. Each process tells of its own listeners.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

from attrs import frozen
from synapse.http.server import HttpServer
from synapse.http.servlet import parse_integer, parse_string
from synapse.module_api.errors import ConfigError

from synapse_lb.homeserver import hooks
from synapse_lb.homeserver.listener import BoundPort, Listener
from synapse_lb.msc3079.messages import MatrixResponse
from synapse_lb.server.roster import STATES, Present
from synapse_lb.server.sync_observer import Observation

try:
    from synapse.api.errors import AuthError, Codes, NotFoundError, SynapseError
    from synapse.rest import admin as admin_api
except ImportError as error:
    raise ConfigError(f"synapse-lb does not support this version of Synapse: {error}") from error

logger = logging.getLogger(__name__)

PATH: Final = "/_synapse/admin/v1/lowbandwidth"
DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000

_ENDED: Final = {"errcode": "M_UNKNOWN", "error": "An administrator has ended the observation"}
_RETRY_AFTER: Final = 60.0
"""s: after which a client whose observation an admin has ended may come back (Max-Age of the 5.03)."""

_serving: WeakKeyDictionary[Any, AdminEndpoint] = WeakKeyDictionary()
_original: list[Callable[[Any, Any], None]] = []


_Owner = tuple[str, "str | None"]
"""User and device."""

_Owners = dict[str, "_Owner | None"]
"""By access token, while one request is served."""


@frozen
class _Found:
    """An association with its place."""

    id: str
    tag: str
    port: BoundPort
    present: Present


class AdminEndpoint:
    """What an admin may see and end.

    Args:
        homeserver: the homeserver.
        listeners: its listeners in this process.

    Raises:
        ConfigError: this version of Synapse lacks something that is needed.
    """

    def __init__(self, homeserver: hooks.Homeserver, listeners: Sequence[Listener]) -> None:
        hooks.require(admin_api, "register_servlets")
        self._hs = homeserver.hs
        self._listeners = listeners

    def install(self) -> None:
        """Have it served by each admin resource that Synapse makes from now on."""
        if not _original:
            original = admin_api.register_servlets

            @functools.wraps(original)
            def register_servlets(hs: Any, http_server: Any) -> None:
                original(hs, http_server)
                if hs in _serving:
                    _serving[hs].register(http_server)

            _original.append(original)
            vars(admin_api)["register_servlets"] = register_servlets
        _serving[self._hs] = self

    def uninstall(self) -> None:
        """Undo `install`; the last one out restores Synapse's own function. Idempotent."""
        _serving.pop(self._hs, None)
        if not _serving and _original:
            vars(admin_api)["register_servlets"] = _original.pop()

    def register(self, resource: HttpServer) -> None:
        """Add the paths to Synapse's admin resource."""
        name = type(self).__name__
        add = resource.register_paths
        add("GET", [re.compile(f"^{PATH}$")], self._list, name)
        add("DELETE", [re.compile(f"^{PATH}/associations/(?P<wanted>[^/]+)$")], self._close, name)
        add("DELETE", [re.compile(f"^{PATH}/observations/(?P<wanted>[^/]+)$")], self._end, name)

    async def _list(self, request: Any) -> tuple[int, dict[str, Any]]:
        """``GET``: the listeners, and a page of the associations."""
        await self._authorize(request)
        start = _number(parse_integer(request, "from", default=0), "from", 0, 2**31)
        limit = _number(parse_integer(request, "limit", default=DEFAULT_LIMIT), "limit", 1, MAX_LIMIT)
        user_id = parse_string(request, "user_id")
        state = parse_string(request, "state", allowed_values=STATES)
        found = [each for each in self._everyone() if state is None or each.present.state == state]
        owners: _Owners = {}
        if user_id is not None:
            found = [each for each in found if await self._is_of(each, user_id, owners)]
        page = found[start : start + limit]
        observed = self._observed()
        body: dict[str, Any] = {
            "listeners": self._ports(),
            "total": len(found),
            "associations": [
                _association(each, await self._owner(each, owners), observed.get(each.id, ()))
                for each in page
            ],
        }
        if start + limit < len(found):
            body["next_token"] = start + limit
        return 200, body

    async def _close(self, request: Any, wanted: str) -> tuple[int, dict[str, Any]]:
        """``DELETE`` of an association: the client gets a close_notify."""
        await self._authorize(request)
        for each in self._everyone():
            if each.id == wanted:
                logger.info("An administrator closes the low-bandwidth association %s", wanted)
                each.port.dtls.close(each.present.id)
                return 200, {}
        raise NotFoundError("There is no such association")

    async def _end(self, request: Any, wanted: str) -> tuple[int, dict[str, Any]]:
        """``DELETE`` of an observation: the client gets a last notification, a 5.03."""
        await self._authorize(request)
        for observations in self._observed().values():
            for name, observation in observations:
                if name == wanted:
                    logger.info("An administrator ends the low-bandwidth observation %s", wanted)
                    observation.end(MatrixResponse(503, _ENDED, _RETRY_AFTER))
                    return 200, {}
        raise NotFoundError("There is no such observation")

    async def _authorize(self, request: Any) -> None:
        """Refuse whoever is no server admin (401, 403), as all of Synapse's admin API does."""
        auth = self._hs.get_auth()
        if not await auth.is_server_admin(await auth.get_user_by_req(request)):
            raise AuthError(403, "You are not a server admin")

    def _bound(self) -> Iterator[tuple[str, Listener, BoundPort]]:
        ports = [(listener, port) for listener in self._listeners for port in listener.ports]
        return ((str(number), listener, port) for number, (listener, port) in enumerate(ports))

    def _ports(self) -> list[dict[str, Any]]:
        return [
            {
                "listener": listener.config.tag,
                "address": port.address,
                "port": listener.config.port,
                "associations": port.dtls.associations,
                "handshakes": port.dtls.handshakes,
                "observations": port.gateway.observations,
                "requests": port.gateway.running,
            }
            for _, listener, port in self._bound()
        ]

    def _everyone(self) -> list[_Found]:
        return [
            _Found(f"{number}.{present.id}", listener.config.tag, port, present)
            for number, listener, port in self._bound()
            for present in port.gateway.present
        ]

    def _observed(self) -> dict[str, list[tuple[str, Observation]]]:
        """The observations with their names, by the name of their association."""
        found: dict[str, list[tuple[str, Observation]]] = {}
        for number, _, port in self._bound():
            for association_id, each in port.gateway.observing():
                name = f"{number}.{association_id}"
                found.setdefault(name, []).append((f"{name}.{each.exchange}", each))
        return found

    async def _is_of(self, found: _Found, user_id: str, owners: _Owners) -> bool:
        owner = await self._owner(found, owners)
        return owner is not None and owner[0] == user_id

    async def _owner(self, found: _Found, owners: _Owners) -> _Owner | None:
        """The user and the device of the association's token; None if it has none that is good."""
        token = found.present.access_token
        if token is None:
            return None
        if token not in owners:
            try:
                requester = await self._hs.get_auth().get_user_by_access_token(token)
                owners[token] = requester.user.to_string(), requester.device_id
            except SynapseError:
                owners[token] = None
        return owners[token]


def _association(
    found: _Found, owner: _Owner | None, observations: Sequence[tuple[str, Observation]]
) -> dict[str, Any]:
    present = found.present
    return {
        "id": found.id,
        "listener": found.tag,
        "ip": present.address.host,
        "port": present.address.port,
        "state": present.state,
        "user_id": owner[0] if owner else None,
        "device_id": owner[1] if owner else None,
        "age_ms": round(1000 * present.age),
        "silence_ms": round(1000 * present.silence),
        "messages": present.messages,
        "observations": [
            {
                "id": name,
                "user_id": each.user_id,
                "path": each.observable.request.path.decode("ascii"),
                "age_ms": round(1000 * each.age),
            }
            for name, each in observations
        ],
    }


def _number(value: int | None, name: str, least: int, most: int) -> int:
    if value is None or not least <= value <= most:
        raise SynapseError(400, f"{name} must be from {least} to {most}", Codes.INVALID_PARAM)
    return value
