# SPDX-License-Identifier: AGPL-3.0-or-later
"""A homeserver in the process of the test: SQLite in memory, virtual time, no thread and no socket.

Nothing here is part of Synapse's module API. It is written for, and run against, Synapse 1.150 to 1.163.
"""

from __future__ import annotations

import base64
import select
import sqlite3
from collections import deque
from collections.abc import Callable
from typing import Any, Final
from unittest.mock import patch

from synapse.config.database import DatabaseConnectionConfig
from synapse.config.homeserver import HomeServerConfig
from synapse.http.server import JsonResource
from synapse.http.site import SynapseSite
from synapse.rest import ClientRestResource, admin
from synapse.rest.well_known import ClientWellKnownResource
from synapse.server import HomeServer
from synapse.storage import DataStore, database
from synapse.storage.engines import create_engine
from synapse.storage.prepare_database import prepare_database
from synapse.util.httpresourcetree import create_resource_tree
from twisted.internet.defer import maybeDeferred
from twisted.internet.testing import MemoryReactorClock
from twisted.web.resource import Resource

from synapse_lb.testing.throwaway_config import NO_RATE_LIMITS

SERVER_NAME: Final = "test"

_TEMPLATE: Final = "_TEST_PREPPED_CONN"
"""Key of a SQLite database's configuration: a connection whose content a new database in memory begins with.
Synapse has it for its own tests; without it each homeserver makes its tables anew, which takes seconds."""

_template: list[Any] = []


class ThreadlessReactor(MemoryReactorClock):
    """Virtual time for a homeserver. What would be done in another thread is done in the next turn."""

    def __init__(self) -> None:
        untyped: Any = super()
        untyped.__init__()
        self.threadpool = _NoThreads(self)
        self._from_threads: deque[Callable[[], object]] = deque()

    def run(self) -> None:
        """Do what waits for the reactor to run, once."""
        untyped: Any = super()
        untyped.run()
        self.whenRunningHooks.clear()

    def removeSystemEventTrigger(self, trigger: Any) -> None:
        """The reactor ends with the test, and tells nobody."""

    def callFromThread(self, function: Callable[..., object], *args: object, **named: object) -> None:
        """Do something in the next turn; any thread may call this."""
        self._from_threads.append(lambda: function(*args, **named))

    def getThreadPool(self) -> Any:
        """What stands in for threads."""
        return self.threadpool

    def suggestThreadPoolSize(self, size: int) -> None:
        """There are no threads."""

    def advance(self, amount: float) -> None:
        """Let time pass, and do everything that is due, also what follows from it."""
        super().advance(amount)
        while self._from_threads or self._read():
            if self._from_threads:
                self._from_threads.popleft()()
            super().advance(0)

    def _read(self) -> bool:
        """Let those read for whom something has come, as Synapse's part in Rust does from its own threads."""
        untyped: Any = self
        readers = {reader.fileno(): reader for reader in untyped.getReaders()}
        if not readers:
            return False
        readable = select.select(list(readers), [], [], 0)[0]
        for number in readable:
            readers[number].doRead()
        return bool(readable)


class _NoThreads:
    """A thread pool that does everything in the reactor's turns."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def start(self) -> None:
        """There is nothing to start."""

    def stop(self) -> None:
        """There is nothing to stop."""

    def callInThreadWithCallback(
        self,
        done: Callable[[bool, Any], object] | None,
        function: Callable[..., Any],
        *args: Any,
        **named: Any,
    ) -> None:
        """Call a function in the next turn, and say what came of it."""

        def call() -> None:
            result = maybeDeferred(function, *args, **named)
            if done is None:
                result.addErrback(lambda _: None)
                return
            result.addCallbacks(lambda value: done(True, value), lambda failure: done(False, failure))

        self._reactor.callLater(0, call)

    def callInThread(self, function: Callable[..., Any], *args: Any, **named: Any) -> None:
        """Call a function in the next turn."""
        self.callInThreadWithCallback(None, function, *args, **named)


class _Homeserver(HomeServer):
    """A main process."""

    DATASTORE_CLASS = DataStore


def default_config() -> dict[str, Any]:
    """The least ``homeserver.yaml``: no rate limits, cheap passwords, nothing that reaches out."""
    seed = base64.b64encode(b"a seed of thirty-two bytes ours!").decode("ascii").rstrip("=")
    return {
        "server_name": SERVER_NAME,
        "signing_key": f"ed25519 a_test {seed}",
        "macaroon_secret_key": "a secret of tests",
        "form_secret": "another one",
        "registration_shared_secret": "a third one",
        "report_stats": False,
        "trusted_key_servers": [],
        "federation_sender_instances": [],
        "media_store_path": "media",
        "enable_registration": True,
        "enable_registration_without_verification": True,
        "bcrypt_rounds": 4,
        # Its updates are made in the background, with connections and clocks that a test does not wait for.
        "update_user_directory_from_worker": "nobody",
        "caches": {"global_factor": 1, "sync_response_cache_duration": 0},
        "listeners": [{"port": 0, "type": "http"}],
        **NO_RATE_LIMITS,
    }


def make_homeserver(reactor: ThreadlessReactor, config: dict[str, Any]) -> HomeServer:
    """Make a homeserver with its modules; the caller shuts it down (``hs.shutdown()``).

    Args:
        reactor: its time.
        config: the content of ``homeserver.yaml``; ``database`` is not looked at.
    """
    parsed = HomeServerConfig()
    parsed.parse_config_dict(config, "", "")
    parsed.caches.resize_all_caches()
    parsed.database.databases = [DatabaseConnectionConfig("master", _database())]
    untyped_reactor: Any = reactor
    homeserver = _Homeserver(parsed.server.server_name, config=parsed, reactor=untyped_reactor)
    make_pool = database.make_pool

    def make_threadless_pool(**named: Any) -> Any:
        pool: Any = make_pool(**named)
        pool.threadpool.stop()
        pool.threadpool = reactor.threadpool
        pool.running = True
        return pool

    with patch.object(database, "make_pool", make_threadless_pool):
        homeserver.setup()
    homeserver.start_background_tasks()
    # It would keep the one thread that there is.
    homeserver.get_datastores().main.USE_DEDICATED_DB_THREADS_FOR_EVENT_FETCHING = False
    module_api = homeserver.get_module_api()
    for module, module_config in parsed.modules.loaded_modules:
        module(config=module_config, api=module_api)
    return homeserver


def make_site(homeserver: HomeServer) -> SynapseSite:
    """The homeserver's site: the client-server API and the admin API."""
    administration = JsonResource(homeserver, canonical_json=False)
    admin.register_servlets(homeserver, administration)
    tree: dict[str, Resource] = {
        "/_matrix/client": ClientRestResource(homeserver),
        "/.well-known/matrix/client": ClientWellKnownResource(homeserver),
        "/_synapse/admin": administration,
    }
    make_root: Callable[[], Resource] = Resource
    root: Any = create_resource_tree(tree, make_root())
    return SynapseSite(
        logger_name="synapse.access.http.test",
        site_tag="test",
        config=homeserver.config.server.listeners[0],
        resource=root,
        server_version_string="Synapse",
        max_request_body_size=1 << 20,
        reactor=homeserver.get_reactor(),
        hs=homeserver,
    )


def _database() -> dict[str, Any]:
    config: dict[str, Any] = {
        "name": "sqlite3",
        "args": {"database": ":memory:", "cp_min": 1, "cp_max": 1},
    }
    if not _template:
        engine = create_engine(config)
        connection = database.LoggingDatabaseConnection(
            conn=sqlite3.connect(":memory:"),
            engine=engine,
            default_txn_name="template",
            server_name=SERVER_NAME,
        )
        prepare_database(connection, engine, config=None)
        _template.append(connection)
    return {**config, _TEMPLATE: _template[0]}
