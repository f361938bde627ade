# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every name of Synapse that is no part of its module API, in one place.

The rest of this package uses what stands here, and what `resources` makes of Synapse's classes for requests, and no
other internals of Synapse. The names are looked for when
this file is imported, which is while Synapse reads its configuration, and `check` looks for the methods: one
that is missing is a ``ConfigError`` that names Synapse's version, never a failure later on. `Homeserver` looks
for the attributes of the running homeserver in the same manner.

Written for, and run against, Synapse 1.150 to 1.163.
"""

from __future__ import annotations

import copy
import functools
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any, Final, Protocol
from weakref import WeakSet

from synapse.module_api import ModuleApi
from synapse.module_api.errors import ConfigError
from twisted.web.resource import Resource

try:
    from synapse.api.auth import Auth
    from synapse.api.errors import InvalidClientTokenError, SynapseError
    from synapse.app import _base as app_base
    from synapse.app import check_bind_error
    from synapse.config import server as server_config
    from synapse.config import workers as workers_config
    from synapse.config._base import Config, format_config_error, read_config_files
    from synapse.config.server import DEFAULT_BIND_ADDRESSES, HttpListenerConfig, TCPListenerConfig
    from synapse.config.workers import MAIN_PROCESS_INSTANCE_MAP_NAME, MAIN_PROCESS_INSTANCE_NAME
    from synapse.handlers.presence import BasePresenceHandler
    from synapse.http.server import UnrecognizedRequestResource
    from synapse.http.site import SynapseRequest
    from synapse.logging import context as log_contexts
    from synapse.logging.context import PreserveLoggingContext
    from synapse.notifier import Notifier, _NotifierUserStream
    from synapse.replication.tcp.streams import CachesStream
    from synapse.rest import ClientRestResource
    from synapse.rest.well_known import ClientWellKnownResource
    from synapse.server import HomeServer
    from synapse.types import StreamToken
    from synapse.util import SYNAPSE_VERSION
    from synapse.util.httpresourcetree import create_resource_tree

    from synapse_lb.homeserver import advertising, further_syncs, plain_syncs, shared_reads
    from synapse_lb.homeserver.contexts import between_requests, in_background, logging_context, outside
    from synapse_lb.homeserver.further_syncs import Batches, FurtherSyncs
    from synapse_lb.homeserver.plain_syncs import PlainSyncs
    from synapse_lb.homeserver.resources import (
        ClientAnswers,
        ClientResource,
        LowBandwidthRequest,
        LowBandwidthSite,
        ObjectAnswers,
        WellKnownClientResource,
    )
    from synapse_lb.homeserver.room_positions import RoomPositions
    from synapse_lb.homeserver.shared_reads import Overlay, SharedReads, SharingStore
except ImportError as error:
    raise ConfigError(
        "synapse-lb does not support this version of Synapse, which lacks something that it needs; "
        f"upgrade one of them: {error}"
    ) from error

__all__ = [
    "DEFAULT_BIND_ADDRESSES",
    "CachesStream",
    "ClientAnswers",
    "ClientResource",
    "Config",
    "Homeserver",
    "InvalidClientTokenError",
    "LowBandwidthRequest",
    "LowBandwidthSite",
    "ObjectAnswers",
    "PreserveLoggingContext",
    "StreamToken",
    "SynapseError",
    "between_requests",
    "check",
    "check_bind_error",
    "format_config_error",
    "in_background",
    "logging_context",
    "outside",
    "require",
    "stop_starting_up",
    "teach_listener_type",
]

NEEDED: Final = (
    (server_config, "parse_listener_def"),
    (workers_config, "parse_listener_def"),
    (app_base, "register_start"),
    (app_base, "register_sighup"),
    (app_base, "max_request_body_size"),
    (ClientRestResource, "_async_render"),
    (ClientRestResource, "_get_handler_for_request"),
    (ClientRestResource, "_send_response"),
    (ClientRestResource, "_send_error_response"),
    (ClientWellKnownResource, "_async_render_GET"),
    (advertising.VersionsRestServlet, "on_GET"),
    (SynapseRequest, "requestReceived"),
    (SynapseRequest, "connectionLost"),
    (SynapseRequest, "requester"),
    (HomeServer, "register_sync_shutdown_handler"),
    (HomeServer, "get_reactor"),
    (HomeServer, "get_auth"),
    (HomeServer, "get_datastores"),
    (HomeServer, "get_instance_name"),
    (HomeServer, "get_notifier"),
    (HomeServer, "get_presence_handler"),
    (Auth, "get_user_by_access_token"),
    (BasePresenceHandler, "user_syncing"),
    (Notifier, "wait_for_events"),
    (_NotifierUserStream, "new_listener"),
    (log_contexts, "LoggingContext"),
    *further_syncs.NEEDED,
    (StreamToken, "from_string"),
    (StreamToken, "is_before_or_eq"),
    (Config, "parse_size"),
    (Config, "parse_duration"),
)


def check(needed: Iterable[tuple[object, str]] = NEEDED) -> None:
    """Look for all methods of Synapse that this package calls or replaces.

    Args:
        needed: pairs of an object and the name of its attribute.

    Raises:
        ConfigError: one is missing.
    """
    for owner, name in needed:
        if not hasattr(owner, name):
            _refuse(owner, name)


def _refuse(owner: object, name: str) -> None:
    where = getattr(owner, "__qualname__", None) or getattr(owner, "__name__", type(owner).__qualname__)
    raise ConfigError(
        f"synapse-lb does not support Synapse {SYNAPSE_VERSION}, where {where} has no {name!r}; "
        "install a version of synapse-lb that does"
    )


_DEVICE_CHANGES: Final = ("generate_sync_entry_for_device_list", "get_device_changes_in_shared_rooms")
"""Methods of Synapse's device handler that a sync uses."""


class ParsedListener(Protocol):
    """What Synapse asks of an entry of ``listeners``."""

    @property
    def type(self) -> str:
        """The listener's type."""

    def is_tls(self) -> bool:
        """Whether it is an HTTPS listener, for which Synapse would load a certificate."""

    def get_site_tag(self) -> str:
        """Its name in the logs."""


def teach_listener_type(name: str, parse: Callable[[int, dict[str, Any]], ParsedListener]) -> None:
    """Let Synapse's configuration accept a further type of listener, in ``listeners`` and ``worker_listeners``.

    Synapse's set of known types cannot be extended: the validator of its classes holds a copy. So the function
    that parses an entry is replaced, in both places that hold it. Idempotent.

    Args:
        name: the type.
        parse: given the entry's index and content, returns the parsed entry or raises ``ConfigError``.
    """
    for holder in (server_config, workers_config):
        original = vars(holder)["parse_listener_def"]
        if name in getattr(original, "synapse_lb_types", ()):
            continue
        _set(holder, "parse_listener_def", _parser_with(original, name, parse))


def _parser_with(
    original: Callable[[int, Any], Any], name: str, parse: Callable[[int, dict[str, Any]], ParsedListener]
) -> Callable[[int, Any], Any]:
    @functools.wraps(original)
    def parse_listener_def(num: int, listener: Any) -> Any:
        if isinstance(listener, dict) and listener.get("type") == name:
            return parse(num, listener)
        return original(num, listener)

    parse_listener_def.__dict__["synapse_lb_types"] = (*getattr(original, "synapse_lb_types", ()), name)
    return parse_listener_def


def stop_starting_up(error: ConfigError) -> None:
    """Raise `error`, or end the process with it as Synapse does with a faulty configuration.

    A ``ConfigError`` that comes after the configuration was read makes Synapse print a traceback and exit with
    status 1. When that is what would happen (its ``register_start`` is waiting for us), print the same error as
    Synapse prints one that comes early, without the traceback, and exit likewise.

    Raises:
        ConfigError: `error`, when someone else started this homeserver.
    """
    if not _inside_register_start(sys._getframe()):
        raise error
    message = "".join(format_config_error(error))
    app_base.logger.critical("Error during startup: %s", " ".join(message.split()))
    print(f"\n{message}", file=sys.__stderr__, flush=True)
    os._exit(1)  # As register_start does: SystemExit would be swallowed by the reactor.


def _inside_register_start(frame: FrameType | None) -> bool:
    while frame is not None:
        code = frame.f_code
        if code.co_name == "wrapper" and code.co_filename == app_base.register_start.__code__.co_filename:
            return True
        frame = frame.f_back
    return False


_claimed: WeakSet[HomeServer] = WeakSet()
"""Homeservers that have a module of ours."""


def _set(owner: object, name: str, value: object) -> None:
    """Replace a function or a method, which is what a hook is."""
    setattr(owner, name, value)


class Homeserver:
    """The running homeserver, as far as this package needs it.

    Args:
        api: what Synapse hands to a module.

    Raises:
        ConfigError: this version of Synapse lacks an attribute that is needed.
    """

    def __init__(self, api: ModuleApi) -> None:
        require(api, "_hs")
        self._hs: Final[HomeServer] = api._hs
        require(self._hs, "hostname", "config", "start_listening", "version_string", "get_instance_id")
        config = self._hs.config
        require(config.server, "listeners", "server_name")
        require(config.worker, "worker_app", "worker_listeners", "writers")
        require(config.tls, "tls_certificate_file", "tls_private_key_file")
        require(config, "config_files")
        self.api: Final = api

    @property
    def hs(self) -> Any:
        """The homeserver itself, for `streams`."""
        return self._hs

    @property
    def server_name(self) -> str:
        """The homeserver's name."""
        return self._hs.hostname

    @functools.cached_property
    def batches(self) -> Batches:
        """Positions in the results of this process; not before the homeserver has all of its parts."""
        return Batches(self._hs.get_datastores().main)

    @property
    def reactor(self) -> Any:
        """The reactor that runs it (``ISynapseReactor``)."""
        return self._hs.get_reactor()

    @property
    def is_worker(self) -> bool:
        """Whether this process is a worker, not the main one."""
        return self._hs.config.worker.worker_app is not None

    @property
    def instance_name(self) -> str:
        """What this process is called in ``instance_map``."""
        return _in_instance_map(self._hs.get_instance_name())

    def writers(self, stream: str) -> Sequence[str]:
        """What the processes are called there that write a stream; none of a stream that this Synapse has not."""
        writers: Sequence[str] = getattr(self._hs.config.worker.writers, stream, ())
        return [_in_instance_map(name) for name in writers]

    @property
    def listeners(self) -> Sequence[object]:
        """The parsed listeners of this process."""
        config = self._hs.config
        return config.worker.worker_listeners if self.is_worker else config.server.listeners

    @property
    def main_listeners(self) -> Sequence[object]:
        """The parsed ``listeners`` of the configuration, which are those of the main process."""
        return self._hs.config.server.listeners

    @property
    def certificate_files(self) -> tuple[str | None, str | None]:
        """The homeserver's own ``tls_certificate_path`` and ``tls_private_key_path``."""
        tls = self._hs.config.tls
        return tls.tls_certificate_file, tls.tls_private_key_file

    @property
    def signing_key_folder(self) -> str | None:
        """The folder of the signing key; None if the configuration came from no file."""
        files = self._hs.config.config_files
        if not files:
            return None
        path = read_config_files(files).get("signing_key_path")
        return os.path.dirname(os.path.abspath(path or files[-1]))

    @property
    def max_request_body_size(self) -> int:
        """Bytes of JSON that Synapse takes as the body of a request."""
        return app_base.max_request_body_size(self._hs.config)

    def site(self, *, tag: str, port: int, logger_name: str) -> LowBandwidthSite:
        """Build what Synapse builds for each of its HTTP listeners, with the resources that are served here.

        Args:
            tag: its name in the access log and in log contexts.
            port: its port.
            logger_name: name of the logger of its access log.

        Raises:
            ConfigError: this version of Synapse lacks an attribute that is needed.
        """
        client = ClientResource(self._hs)
        servlet = client.sync_servlet()
        if servlet is not None:
            client.further, client.plain = self._syncs(servlet)
        tree: dict[str, Resource] = {
            "/_matrix/client": client,
            "/.well-known/matrix/client": WellKnownClientResource(self._hs),
        }
        config = TCPListenerConfig(
            port=port, bind_addresses=[], type="http", http_options=HttpListenerConfig(tag=tag)
        )
        site = LowBandwidthSite(
            logger_name=logger_name,
            site_tag=tag,
            config=config,
            resource=_resource_tree(tree),
            server_version_string=self._hs.version_string,
            max_request_body_size=self.max_request_body_size,
            reactor=self.reactor,
            hs=self._hs,
        )
        site.client, site.largest_body = client, self.max_request_body_size
        return site

    def _syncs(self, servlet: Any) -> tuple[FurtherSyncs, PlainSyncs]:
        """What serves syncs with Synapse's own servlet: those of observers, and those of clients."""
        check(further_syncs.needed_of(servlet))
        check(plain_syncs.needed_of(servlet))
        require(servlet, "_server_notices_sender")
        server, name = self._hs.config.server, self.server_name
        require(server, "hs_disabled", "limit_usage_by_mau")
        has_limits = bool(server.hs_disabled or server.limit_usage_by_mau)
        reads = SharedReads(self.reactor, lambda work: in_background("low-bandwidth-read", name, work))
        further = FurtherSyncs(
            servlet,
            _sharing(servlet.sync_handler, reads),
            self.batches,
            reads,
            notices=servlet._server_notices_sender,
            has_limits=has_limits,
        )
        return further, PlainSyncs(servlet, has_limits=has_limits)

    def request(self, channel: Any, site: LowBandwidthSite) -> LowBandwidthRequest:
        """Build a request, as Synapse does for each that comes in over HTTP.

        Args:
            channel: stands where Twisted's HTTP channel would.
            site: what `site` returned.
        """
        return LowBandwidthRequest(
            channel,
            site,
            our_server_name=self.server_name,
            max_request_body_size=site.largest_body,
        )

    def when_listening(self, mine: Callable[[object], bool], start: Callable[[], None]) -> None:
        """Call `start` when Synapse opens its listeners.

        Args:
            mine: tells the listeners which Synapse itself is not to see, because it would warn about them.
            start: is called once Synapse's own listeners are open.
        """
        original = self._hs.start_listening

        def start_listening() -> None:
            config = self._hs.config
            holder, name = (
                (config.worker, "worker_listeners") if self.is_worker else (config.server, "listeners")
            )
            everything = getattr(holder, name)
            setattr(holder, name, [listener for listener in everything if not mine(listener)])
            try:
                original()
            finally:
                setattr(holder, name, everything)
            start()

        _set(self._hs, "start_listening", start_listening)

    def on_shutdown(self, stop: Callable[[], None]) -> None:
        """Call `stop` before the reactor stops, or when this homeserver alone is shut down."""
        self._hs.register_sync_shutdown_handler(phase="before", eventType="shutdown", shutdown_func=stop)

    def on_sighup(self, reload: Callable[[], None]) -> None:
        """Call `reload` when the process gets SIGHUP."""
        app_base.register_sighup(self._hs, reload)

    def claim(self) -> None:
        """Refuse to be there twice.

        Raises:
            ConfigError: another instance of the module serves this homeserver.
        """
        if self._hs in _claimed:
            raise ConfigError("synapse_lb.LowBandwidthModule is there twice; remove one", ("modules",))
        _claimed.add(self._hs)

    def advertise(self, content: dict[str, Any]) -> None:
        """Add `content` to the top level of ``/_matrix/client/versions``, whoever serves it."""
        advertising.advertise(self._hs.config, content)

    def stop_advertising(self) -> None:
        """Take back what `advertise` added. Idempotent."""
        advertising.stop_advertising(self._hs.config)


def _sharing(handler: Any, reads: SharedReads) -> Any:
    """A copy of Synapse's sync handler whose syncs share what they read."""
    require(handler, "store", "_state_storage_controller", "_device_handler")
    controller, devices = handler._state_storage_controller, handler._device_handler
    require(controller, "stores", "get_state_ids_at")
    require(devices, "store", *_DEVICE_CHANGES)
    require(handler.store, "_events_stream_cache", *shared_reads.SHARED)
    came = handler.store._events_stream_cache
    require(came, "get_entities_changed")
    shared = copy.copy(handler)
    store = SharingStore(handler.store, reads, RoomPositions(), came.get_entities_changed)
    shared.store = store
    shared._state_storage_controller = Overlay(
        controller, "get_state_ids_at", stores=Overlay(controller.stores, main=store)
    )
    shared._device_handler = Overlay(devices, *_DEVICE_CHANGES, store=store)
    return shared


def _in_instance_map(name: str) -> str:
    return MAIN_PROCESS_INSTANCE_MAP_NAME if name == MAIN_PROCESS_INSTANCE_NAME else name


def _resource_tree(tree: dict[str, Resource]) -> Any:
    """The resources by path; everything else gets Synapse's M_UNRECOGNIZED."""
    make_root: Callable[[], Resource] = UnrecognizedRequestResource
    return create_resource_tree(tree, make_root())


def require(owner: object, *names: str) -> None:
    """Look for attributes of a running homeserver.

    Raises:
        ConfigError: one is missing.
    """
    check((owner, name) for name in names)
