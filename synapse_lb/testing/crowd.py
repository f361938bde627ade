# SPDX-License-Identifier: AGPL-3.0-or-later
"""A Synapse module for throw-away homeservers that makes many users at once, and profiles the process.

To register users and let them join a room over HTTP, one by one, would take longer than what is measured with them.
Only for homeservers of one's own on the loopback interface: whoever asks gets users with their access tokens.

    POST /_synapse/client/crowd/users    {"names": ["a", "b"], "room_id": "!room:localhost" or null}
                                         -> {"users": [{"user_id", "access_token"}]}
    POST /_synapse/client/crowd/profile  {"path": null}: begin; {"path": "..."}: end, and write it there (`pstats`)
"""

from __future__ import annotations

import cProfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

PATH = "/_synapse/client/crowd"

Work = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""From the body of a request to that of its answer."""


class CrowdModule:
    """See the top of this file.

    Args:
        config: none.
        api: Synapse's module API.
    """

    def __init__(self, config: Any, api: Any) -> None:
        self._api = api
        self._profile: cProfile.Profile | None = None
        api.register_web_resource(f"{PATH}/users", _resource(self._make_users))
        api.register_web_resource(f"{PATH}/profile", _resource(self._write_profile))

    @staticmethod
    def parse_config(config: Any) -> Any:
        """Take what there is: nothing."""
        return config

    async def _make_users(self, asked: dict[str, Any]) -> dict[str, Any]:
        users = []
        for name in asked["names"]:
            user_id = await self._api.register_user(name)
            _, token, _, _ = await self._api.register_device(user_id)
            if asked["room_id"] is not None:
                await self._api.update_room_membership(user_id, user_id, asked["room_id"], "join")
            users.append({"user_id": user_id, "access_token": token})
        return {"users": users}

    async def _write_profile(self, asked: dict[str, Any]) -> dict[str, Any]:
        path = asked["path"]
        if path is None:
            self._profile = cProfile.Profile(time.thread_time)
            self._profile.enable()
        elif self._profile is not None:
            self._profile.disable()
            self._profile.dump_stats(path)
            self._profile = None
        return {}


def _resource(work: Work) -> Any:
    """A resource that answers POST."""
    # Imported late: what is in this room is there without Synapse, too.
    from synapse.module_api import DirectServeJsonResource, parse_json_object_from_request

    class Resource(DirectServeJsonResource):
        async def _async_render_POST(self, request: Any) -> tuple[int, Any]:
            return 200, await work(parse_json_object_from_request(request))

    return Resource()
