# SPDX-License-Identifier: AGPL-3.0-or-later
"""The Synapse module ``synapse_lb.LowBandwidthModule``.

Importing this file teaches Synapse the listener type, which is early enough: Synapse reads ``modules`` before
``listeners``. The module opens the listeners when Synapse opens its own, and closes them when Synapse stops.
"""

from __future__ import annotations

import logging
from typing import Any

from synapse.module_api import ModuleApi
from synapse.module_api.errors import ConfigError

from synapse_lb import __version__
from synapse_lb.homeserver import hooks
from synapse_lb.homeserver.admin import AdminEndpoint
from synapse_lb.homeserver.config import (
    LISTENER_TYPE,
    LowBandwidthListenerConfig,
    ModuleConfig,
    check_listeners,
    parse_listener,
    parse_module,
)
from synapse_lb.homeserver.listener import Listener
from synapse_lb.homeserver.metrics import MetricsCollector
from synapse_lb.homeserver.news import SynapseNews
from synapse_lb.homeserver.streams import Streams
from synapse_lb.msc3079.keys_v1 import KEY_VERSION_1
from synapse_lb.msc3079.x1 import X1_VERSION

logger = logging.getLogger(__name__)

VERSIONS_KEY = "org.matrix.msc3079.low_bandwidth"
"""At the top level of ``/_matrix/client/versions`` (MSC3079, "Versioning" and "Unstable prefix")."""

PATH_CODES_VERSION = 1
"""Of the table of path codes (MSC3079 appendix B)."""

hooks.check()
hooks.teach_listener_type(LISTENER_TYPE, parse_listener)


class LowBandwidthModule:
    """Serves MSC3079 on the listeners of type ``lowbandwidth``.

    Args:
        config: what `parse_config` returned.
        api: Synapse's module API.

    Raises:
        ConfigError: the listeners collide, a certificate cannot be used, the module is there twice, or this
            version of Synapse lacks something that is needed.
    """

    def __init__(self, config: ModuleConfig, api: ModuleApi) -> None:
        self.listeners: list[Listener] = []
        self._config = config
        self._metrics: MetricsCollector | None = None
        self._admin: AdminEndpoint | None = None
        self._news: SynapseNews | None = None
        try:
            self._homeserver = hooks.Homeserver(api)
            self._set_up()
        except ConfigError as error:
            hooks.stop_starting_up(error)

    @staticmethod
    def parse_config(config: dict[str, Any]) -> ModuleConfig:
        """Read the module's ``config``; Synapse calls this.

        Raises:
            ConfigError: what is wrong and where.
        """
        return parse_module(config)

    def _set_up(self) -> None:
        homeserver = self._homeserver
        homeserver.claim()
        mine = _of_ours(homeserver.listeners)
        check_listeners(mine)
        advertised = next(
            (each for each in (*mine, *_of_ours(homeserver.main_listeners)) if each.advertise), None
        )
        elsewhere = self._config.advertised_port
        if advertised is None and elsewhere is not None and not mine:
            advertised = parse_listener(0, {"type": LISTENER_TYPE, "port": elsewhere})
        if advertised is not None:
            homeserver.advertise({VERSIONS_KEY: versions_content(advertised)})
        if not mine:
            if not homeserver.is_worker and elsewhere is None:
                logger.warning(
                    "The module synapse_lb.LowBandwidthModule is configured, but there is no listener "
                    "of type %r in this process: it serves nothing",
                    LISTENER_TYPE,
                )
            return
        self.listeners = [Listener(homeserver, each, self._get_news) for each in mine]
        self._admin = AdminEndpoint(homeserver, self.listeners)
        self._admin.install()
        homeserver.api.register_password_auth_provider_callbacks(on_logged_out=self._on_logged_out)
        homeserver.when_listening(lambda each: isinstance(each, LowBandwidthListenerConfig), self._start)
        homeserver.on_shutdown(self._stop)
        homeserver.on_sighup(self._reload)

    def _start(self) -> None:
        logger.info("synapse-lb %s", __version__)
        try:
            for listener in self.listeners:
                listener.start()
        except ConfigError as error:
            self._stop()
            hooks.stop_starting_up(error)
        if self._config.metrics:
            self._metrics = MetricsCollector(self._homeserver.server_name, self.listeners)
            self._metrics.register()

    def _get_news(self) -> SynapseNews:
        """Return the source of news, made when the listeners start: the homeserver has all of its parts then.

        Raises:
            ConfigError: this version of Synapse lacks something that is needed.
        """
        if self._news is None:
            self._news = SynapseNews(Streams(self._homeserver), self._homeserver.reactor)
        return self._news

    async def _on_logged_out(self, user_id: str, device_id: str | None, access_token: str) -> None:
        """Synapse calls this for each access token that it deletes: logout, another device's doing, deactivation."""
        if self._news is not None:
            self._news.token_ended(access_token)

    def _reload(self) -> None:
        for listener in self.listeners:
            listener.reload()

    def _stop(self) -> None:
        """Close everything. Idempotent."""
        for listener in self.listeners:
            listener.stop()
        news, self._news = self._news, None
        if news is not None:
            news.close()
        if self._metrics is not None:
            self._metrics.unregister()
            self._metrics = None
        if self._admin is not None:
            self._admin.uninstall()
            self._admin = None
        self._homeserver.stop_advertising()


def versions_content(listener: LowBandwidthListenerConfig) -> dict[str, int]:
    """Return what ``/versions`` says of a listener (MSC3079, "Versioning")."""
    content = {
        "dtls": listener.advertised_port,
        "cbor_enum_version": KEY_VERSION_1,
        "coap_enum_version": PATH_CODES_VERSION,
    }
    # The absence of these says that there is no OBSERVE, no Q-Block, and no x1.
    if listener.observe:
        content["observe"] = 1
    if listener.tuning.q_block:
        content["q_block"] = 1
    if listener.x1:
        content["x1"] = X1_VERSION
    return content


def _of_ours(listeners: Any) -> list[LowBandwidthListenerConfig]:
    return [each for each in listeners if isinstance(each, LowBandwidthListenerConfig)]
