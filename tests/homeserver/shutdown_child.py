# SPDX-License-Identifier: AGPL-3.0-or-later
"""A program for `test_shutdown`: one homeserver in this process, served once, shut down by itself alone.

    python -m tests.homeserver.shutdown_child homeserver.yaml port

One user observes /sync meanwhile. It prints what is left of the listener, before and after, as one JSON object.
"""

from __future__ import annotations

import gc
import json
import sys
import weakref
from typing import Any

from prometheus_client import REGISTRY
from synapse.app import homeserver as app
from synapse.config.homeserver import HomeServerConfig
from synapse.rest import admin
from synapse.rest.client.versions import VersionsRestServlet
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from synapse_lb.client import ClientVerification, LowBandwidthClient

reactor: Any = _reactor
original = VersionsRestServlet.on_GET
original_admin = vars(admin)["register_servlets"]


def traces() -> dict[str, Any]:
    """What there is of the listener in this process."""
    return {
        "versions_replaced": VersionsRestServlet.on_GET is not original,
        "admin_replaced": vars(admin)["register_servlets"] is not original_admin,
        "delayed_calls": [
            str(call)
            for call in reactor.getDelayedCalls()
            if getattr(call.func, "__module__", "").startswith("synapse_lb")
        ],
        "sockets": [str(reader) for reader in reactor.getReaders() if "DTLSServerPort" in repr(reader)],
        "metrics": [metric.name for metric in REGISTRY.collect() if metric.name.startswith("synapse_lb_")],
    }


def listening(hs: Any) -> int:
    """How many listeners Synapse's notifier has."""
    streams = hs.get_notifier().user_to_user_stream.values()
    return sum(stream.count_listeners() for stream in streams)


async def run(config_path: str, port: int) -> dict[str, Any]:
    """Start, serve, shut down."""
    config = HomeServerConfig.load_config("test", ["-c", config_path])
    hs = app.create_homeserver(config)
    app.setup(hs)
    await app.start(hs, freeze=False)
    client = LowBandwidthClient(reactor, f"127.0.0.1:{port}", verification=ClientVerification.none())
    answer = await client.request("GET", "/_matrix/client/versions")
    register = {
        "auth": {"type": "m.login.dummy"},
        "username": "observer",
        "password": "correct horse battery",
    }
    user = await client.request("POST", "/_matrix/client/v3/register", json=register)
    bodies: list[Any] = []
    client.observe_sync(None, bodies.append, token=user.body["access_token"])
    while not bodies:
        await deferLater(reactor, 0.02)
    await deferLater(reactor, 0.2)  # The first answer is acknowledged, and the observer waits for news.
    before = traces()
    before["listening"] = listening(hs)
    await hs.shutdown()
    await deferLater(reactor, 0.1)
    await client.close()
    left = listening(hs)
    after = traces()
    after["listening"] = left
    reference = weakref.ref(hs)
    del hs, config
    await deferLater(reactor, 1.5)  # Synapse's own last sleeps are over.
    gc.collect()
    return {"status": answer.status, "before": before, "after": after, "collected": reference() is None}


def main() -> None:
    """Run the reactor until `run` is done."""

    def begin() -> None:
        done = Deferred.fromCoroutine(run(sys.argv[1], int(sys.argv[2])))
        done.addCallbacks(lambda result: print(json.dumps(result)), Failure.printTraceback)
        done.addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(begin)
    reactor.run()


if __name__ == "__main__":
    main()
